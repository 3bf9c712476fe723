"""The worst mistakes as pictures: a piece of imagery around each, with outlines. Knows imagery and objects, no HTML.

Worst are the false positives of the highest confidence (of the largest area where there are no confidences): nothing would
have kept them out. And the misses of the largest area: the buildings that a map misses most.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoinfer import view
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.outlines import Geometries
from geoinfer.grid import Window
from geoinfer.imagery.source import Source
from geoinfer.view import Colour, encoded, overlay

CHIPS = 12
"""Pictures of each kind."""
SIDE = 256
"""Pixels that a picture has on each side, about."""
LEAST_M = 30.0
"""Side of the ground around a small footprint, metres: a building needs its surroundings to be judged."""
AROUND = 2.2
"""Side of a picture over that of its footprint."""
MOST_PIXELS = 2048
"""Side of the imagery read for one picture; what is larger is cut."""
QUALITY = 85
"""Of the JPEG."""
WIDTH = 2.2
"""Of an outline, pixels of the picture."""
COLOURS: Mapping[str, Colour] = {**view.COLOURS, "truth": (245, 245, 245)}
"""As elsewhere, but what was found and is there for comparison only is white: a miss is blue."""
_TRUE = {"tp": "truth", "fn": "fn", "ignored": "ignored"}
"""Outcome of a true footprint -> how it is drawn; one that was found is there for comparison only."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A picture of one mistake."""

    kind: str
    """fp or fn."""
    row: int
    """In the input of its side."""
    confidence: float
    """NaN where unknown, and for misses."""
    area_m2: float
    best_iou: float
    reason: str
    lon: float
    lat: float
    side_m: float
    """Ground that the picture is wide."""
    image: str
    """data:image/jpeg;base64,...: a fifth of a PNG's bytes, and two dozen of them make a page."""


def worst_rows(objects: Objects, kind: str) -> NDArray[np.int64]:
    """Positions in `objects.pred` (fp) or `objects.truth` (fn), the worst first; ties in the order of the input."""
    table = objects.pred if kind == "fp" else objects.truth
    area = table["area_m2"].to_numpy(float)
    confidence = np.nan_to_num(table["confidence"].to_numpy(float), nan=-1.0) if kind == "fp" else np.zeros(len(table))
    order = np.lexsort((np.arange(len(table)), -area, -confidence))
    return np.asarray(order[(table["outcome"].to_numpy() == kind)[order]], np.int64)


def chips(objects: Objects, source: Source, kind: str, count: int = CHIPS) -> Iterator[Chip]:
    """Pictures of the worst mistakes of one kind, of those that the imagery shows.

    Args:
        objects: Both sides after matching.
        source: Imagery, on any grid.
        kind: fp or fn.
        count: At most so many.
    """
    scene = _Scene(objects, source)
    table = objects.pred if kind == "fp" else objects.truth
    to_degrees = Transformer.from_crs(objects.plane, "EPSG:4326", always_xy=True)
    made = 0
    for at in worst_rows(objects, kind):
        if made == count:
            return
        one = table.iloc[at]
        found = scene.picture(one.geometry)
        if found is None:
            continue
        made += 1
        lon, lat = to_degrees.transform(one.geometry.centroid.x, one.geometry.centroid.y)
        yield Chip(
            kind=kind,
            row=int(one["row"]),
            confidence=float(one["confidence"]) if kind == "fp" else float("nan"),
            area_m2=float(one["area_m2"]),
            best_iou=float(one["best_iou"]),
            reason=str(one["reason"]),
            lon=float(lon),
            lat=float(lat),
            side_m=found[1],
            image="data:image/jpeg;base64," + base64.b64encode(encoded(found[0], "JPEG", quality=QUALITY)).decode(),
        )


class _Scene:
    """Imagery and all outlines on its grid, found by place."""

    def __init__(self, objects: Objects, source: Source) -> None:
        self._source = source
        move = _mover(objects.plane, source.grid.crs)
        pred = move(np.asarray(objects.pred.geometry.array, dtype=object))
        truth = move(np.asarray(objects.truth.geometry.array, dtype=object))
        self._move = move
        self._shapes = np.concatenate([truth, pred])
        self._kinds = [*objects.truth["outcome"].map(_TRUE), *objects.pred["outcome"]]
        self._tree = shapely.STRtree(self._shapes)

    def picture(self, shape: shapely.Geometry) -> tuple[NDArray[np.uint8], float] | None:
        """(3, S, S) uint8 around a shape of the plane, and how many metres wide; None where there is no imagery."""
        grid = self._source.grid
        minx, miny, maxx, maxy = self._move(np.array([shape], dtype=object))[0].bounds
        metres = grid.pixel_m
        side = max(AROUND * max(maxx - minx, maxy - miny) / grid.pixel_size, LEAST_M / metres)
        size = max(8, min(math.ceil(side), MOST_PIXELS))
        middle = grid.covering(((minx + maxx) / 2, (miny + maxy) / 2) * 2)
        window = Window(middle.row - size // 2, middle.col - size // 2, size, size)
        image = self._source.read(window)
        if not image.valid.any():
            return None
        zoom = max(1, round(SIDE / size))
        step = max(1, size // (2 * SIDE))
        pixels = np.repeat(np.repeat(image.pixels[:, ::step, ::step], zoom, axis=1), zoom, axis=2)  # (C, S, S)
        bounds = grid.bounds(window)
        near = np.sort(self._tree.query(shapely.box(*bounds)))
        pixel = grid.pixel_size * step / zoom
        corner = Affine(pixel, 0.0, bounds[0], 0.0, -pixel, bounds[3])
        kinds = [self._kinds[at] for at in near]
        return overlay(pixels, self._shapes[near].tolist(), corner, kinds, COLOURS, WIDTH, fill=0.0), size * metres


def _mover(source: CRS, target: CRS) -> Callable[[Geometries], Geometries]:
    """Geometries (N,) from one system to another, vertex by vertex: footprints are too small to bend."""
    transformer = Transformer.from_crs(source, target, always_xy=True)

    def move(shapes: Geometries) -> Geometries:
        return np.asarray(shapely.transform(shapes, transformer.transform, interleaved=False), dtype=object)

    return move
