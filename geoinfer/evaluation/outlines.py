"""Polygons as flat arrays, for the compiled loops over pairs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

Geometries = NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """The rings of N polygons or multipolygons."""

    xy: NDArray[np.float64]
    """(V, 2) vertices, ring after ring; the first of a ring is there again as its last."""
    sign: NDArray[np.float64]
    """(R,) 1 for a ring that has the polygon's inside on its left, -1 for one that has it on its right."""
    rings: NDArray[np.int64]
    """(R + 1,) where each ring begins in `xy`."""
    polygons: NDArray[np.int64]
    """(N, 2) the first ring of each polygon, and the one after its last; the same twice for an empty one."""


def outlines_of(shapes: Geometries) -> Outlines:
    """Flatten valid polygons and multipolygons, none of them missing."""
    size = shapely.get_num_coordinates(shapes).astype(np.int64)
    single = (shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON) & (size > 0)
    single &= shapely.get_num_interior_rings(shapes) == 0
    xy, rings, shells, polygons = _flatten(shapes[~single])
    # Most footprints are one ring: their vertices are one copy away, without a geometry for each ring.
    points, count = shapely.get_coordinates(shapes[single]), int(single.sum())
    starts = np.append(rings, len(xy) + np.cumsum(size[single]))
    place = np.empty((len(shapes), 2), np.int64)
    place[~single] = polygons
    place[single] = len(rings) - 1 + np.arange(count)[:, None] + [0, 1]
    vertices, is_shell = np.concatenate([xy, points]), np.append(shells, np.ones(count, np.bool_))
    return Outlines(vertices, np.where(is_shell == (_signed_areas(vertices, starts) > 0), 1.0, -1.0), starts, place)


def _flatten(shapes: Geometries) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Vertices (V, 2), where rings begin (R + 1,), which are shells (R,), and the rings of each polygon (N, 2)."""
    if not len(shapes):
        return np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(0, np.bool_), np.zeros((0, 2), np.int64)
    kind, xy, offsets = shapely.to_ragged_array(shapes, include_z=False)
    rings, parts = (part.astype(np.int64) for part in offsets[:2])
    polygons = parts if kind == shapely.GeometryType.POLYGON else parts[offsets[2]]
    is_shell = np.zeros(len(rings) - 1, np.bool_)
    is_shell[parts[:-1][np.diff(parts) > 0]] = True  # an empty part has no shell
    return xy, rings, is_shell, np.stack([polygons[:-1], polygons[1:]], axis=1)


def _signed_areas(xy: NDArray[np.float64], rings: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) twice the area of each ring, positive if anticlockwise."""
    if not len(xy):
        return np.zeros(len(rings) - 1)
    first = np.repeat(xy[rings[:-1]], np.diff(rings), axis=0)
    x, y = (xy - first).T  # about the ring's first vertex: far from the origin products lose their last digits
    cross = np.zeros(len(xy))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]  # from a ring's end to the next one's start both are 0 in one of them
    cross[rings[1:] - 1] = 0.0
    return np.add.reduceat(cross, rings[:-1])
