"""What every threshold and least area finds in labelled places: each is predicted once, and cut many times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from geoinfer.detection import Predicts, Prob, predict, threshold_to_u8
from geoinfer.errors import ConfigError
from geoinfer.evaluation.blocks import Indices, block_of, choose_block_m, sum_groups
from geoinfer.evaluation.layers import in_plane
from geoinfer.evaluation.places import Place
from geoinfer.evaluation.reliability import count_levels
from geoinfer.evaluation.sides import Matching, Partners, find_partners, sides_of
from geoinfer.evaluation.slices import FIGURES, figures
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.imagery.source import Source
from geoinfer.region import Region, region_on
from geoinfer.vector import polygonize
from geoinfer.vector.footprints import finish

THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
"""Thresholds that are tried where nothing else is said."""
AROUND_M = 80.0
"""Imagery looked at around an area of interest, metres, so that footprints on its border are whole."""
_STRIP = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """What every candidate finds in the places of a region."""

    candidates: tuple[tuple[float, float], ...]
    """(K,) threshold and least area in m²; the first is the card's own."""
    sums: NDArray[np.float64]
    """(B, K, 3) tp, fp, fn in each block of ground."""
    levels: NDArray[np.int64]
    """(256, 2) pixels that are building and pixels in all, by probability; see `reliability.count_levels`."""

    def table(self) -> pd.DataFrame:
        """A row a candidate: threshold, min_area_m2, tp, fp, fn, precision, recall, f1."""
        counts = self.sums.sum(axis=0)
        frame = pd.DataFrame(self.candidates, columns=["threshold", "min_area_m2"])
        frame[["tp", "fp", "fn"]] = np.rint(counts).astype(np.int64)
        frame[[*FIGURES]] = figures(counts)
        return frame


def sweep(
    places: Sequence[Place],
    predictor: Predicts,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    min_areas: Sequence[float] | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
    block_m: float | None = None,
) -> Sweep:
    """Count what every threshold and least area finds in the places of a region.

    Args:
        places: Labelled imagery; each is predicted once.
        predictor: The model.
        thresholds: To try, each between 0 and 1.
        min_areas: To try, m²; none, half the card's, the card's and twice it unless given.
        iou: Of a match.
        matching: As for `evaluate`.
        block_m: Side of the blocks of ground, metres; chosen a place unless given.

    Raises:
        ConfigError: No place, a threshold outside 0..1, a negative area, or what `evaluate` raises.
        SourceError: Imagery that cannot be read.
        RegionError: An area of interest outside its imagery.
    """
    spec = predictor.spec
    areas = (0.0, spec.min_area_m2 / 2, spec.min_area_m2, spec.min_area_m2 * 2) if min_areas is None else min_areas
    for threshold in thresholds:
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold {threshold:g}: must lie between 0 and 1")
    for area in areas:
        if not (math.isfinite(area) and area >= 0):
            raise ConfigError(f"least area {area:g}: square metres, at or above 0")
    if not places:
        raise ConfigError("no place to calibrate on: give imagery and its true footprints")
    own = (spec.threshold, spec.min_area_m2)
    candidates = (own, *(pair for pair in product(sorted({*thresholds}), sorted({*areas})) if pair != own))
    parts = [_sweep_place(place, predictor, candidates, iou, matching, block_m) for place in places]
    levels = np.stack([part.levels for part in parts]).sum(axis=0)
    return Sweep(candidates, np.concatenate([part.sums for part in parts]), levels)


def _sweep_place(
    place: Place,
    predictor: Predicts,
    candidates: Sequence[tuple[float, float]],
    iou: float,
    matching: Matching,
    block_m: float | None,
) -> Sweep:
    source = open_raster(place.image, gsd=predictor.spec.gsd, core=predictor.spec.chips.core)
    window = _window(place, source)
    prob = predict(source, window, predictor)
    spec, grid = predictor.spec, source.grid
    least = min(area for _, area in candidates)
    at_blocks: list[tuple[Indices, NDArray[np.float64]]] = []
    for threshold, group in groupby(candidates, itemgetter(0)):
        cut = polygonize(prob >= threshold_to_u8(threshold), grid.transform, prob=prob, offset=(window.row, window.col))
        table = finish(cut, grid, min_area_m2=least, simplify_m=spec.simplify_m, grow_m=spec.grow_m).accepted
        sides = sides_of(table, place.truth, place.aoi)
        centres = shapely.centroid(sides.truth.shapes)
        side = choose_block_m(shapely.get_x(centres), shapely.get_y(centres)) if block_m is None else block_m
        for _, area in group:
            kept = table["area_in_meters"].to_numpy() >= area
            at_blocks.append(_count_blocks(find_partners(sides, iou, matching, kept), side))
    blocks = np.unique(np.concatenate([ids for ids, _ in at_blocks]))
    sums = [sum_groups(np.searchsorted(blocks, ids), len(blocks), kinds) for ids, kinds in at_blocks]
    return Sweep(tuple(candidates), np.stack(sums, axis=1), _levels(place, prob, source, window, spec.grow_m))


def _count_blocks(found: Partners, block_m: float) -> tuple[Indices, NDArray[np.float64]]:
    """(E,) block and (E, 3) kind of each event, pairs by their true footprint, as in `slices`."""
    false, missed = (
        np.setdiff1d(np.flatnonzero(side.counts), at)
        for side, at in ((found.pred, found.pairs.pred), (found.truth, found.pairs.truth))
    )
    shapes = [found.truth.shapes[found.pairs.truth], found.pred.shapes[false], found.truth.shapes[missed]]
    centres = shapely.centroid(np.concatenate(shapes))
    kinds = np.repeat(np.eye(3), [len(part) for part in shapes], axis=0)
    return block_of(shapely.get_x(centres), shapely.get_y(centres), block_m), kinds


def _window(place: Place, source: Source) -> Window:
    """What to look at: the area of interest and its surroundings, or the whole raster."""
    if place.aoi is None:
        return region_on(None, source.grid, source.bounds).window
    near = place.aoi.to_crs(place.aoi.estimate_utm_crs())
    west, south, east, north = near.buffer(AROUND_M).to_crs(4326).total_bounds.tolist()
    return region_on(Region.from_bbox((west, south, east, north)), source.grid, source.bounds).window


def _levels(place: Place, prob: Prob, source: Source, window: Window, grow_m: float) -> NDArray[np.int64]:
    """Pixels of the area of interest that are imagery, by probability and truth.

    The truth is shrunk by what footprints are grown afterwards: a network that was taught the inside of buildings is right
    not to find their rim.
    """
    grid = source.grid
    transform = grid.transform * Affine.translation(window.col, window.row)
    shape = (window.height, window.width)
    inside = np.concatenate([source.read(part).valid for part in _strips(window)])
    if place.aoi is not None:
        inside &= _burn(in_plane(place.aoi, grid.crs, "aoi"), transform, shape)
    buildings = in_plane(place.truth, grid.crs, "truth")
    if grow_m:
        buildings = shapely.buffer(buildings, -grow_m * grid.pixel_size / grid.pixel_m, join_style="mitre")
    return count_levels(prob, _burn(buildings, transform, shape), inside)


def _strips(window: Window) -> Iterator[Window]:
    """The window in strips, so that its pixels are never in memory together."""
    for row in range(window.row, window.stop_row, _STRIP):
        yield Window(row, window.col, min(_STRIP, window.stop_row - row), window.width)


def _burn(shapes: NDArray[np.object_], transform: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    real = [geometry for geometry in shapes if not geometry.is_empty]
    if not real:
        return np.zeros(shape, np.bool_)
    burnt: NDArray[np.bool_] = rasterize(real, shape, transform=transform, dtype="uint8").astype(np.bool_)
    return burnt
