"""How much of each footprint a layer covers, as exact area. Knows shapes and pieces, and nothing of what follows from it.

    covered share = area(footprint ∩ union of the layer's pieces) / area(footprint)

Footprints are taken a bounded number at a time, neighbours together; each group reads the pieces around it once and meets
them through an R-tree. Most footprints touch nothing, or lie properly inside one piece: those are exactly 0 and 1 without an
overlay. The pieces of one feature do not overlap, so their shared areas add up; only where several features share area with
one footprint is a union needed.

The share of a footprint depends on it and the layer alone, bit for bit: every step looks at one (footprint, piece) pair or
at the pairs of one footprint, in the order of (feature, piece).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.masks.prepare import Pieces, PreparedLayer

Shapes = NDArray[np.object_]
Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

FOOTPRINTS_AT_ONCE = 8192
"""Footprints of a group: enough for one read to pay, little enough to hold."""
PIECES_AT_ONCE = 65_536
"""Pieces that a group may expect to read; groups whose box is too wide for that are split, down to single footprints."""
ROUNDING = 1e-9
"""A share this near 0 or 1 is 0 or 1 but for the rounding of coordinates: a touch is no cover, a seam between two pieces no
gap."""


def covered_share(shapes: Shapes, layer: PreparedLayer, *, threads: int = 1) -> Floats:
    """Which share of each shape's area a layer covers.

    Args:
        shapes: (N,) valid polygons or multipolygons in the layer's prepared coordinate system, in any order.
        layer: The prepared layer.
        threads: Groups worked on at the same time; the result is the same for any number.

    Returns:
        (N,) shares 0..1; 0 for missing and empty shapes, which cover nothing and are covered by nothing.
    """
    share = np.zeros(len(shapes))

    def measure(group: Indices) -> None:
        share[group] = _shares(shapes[group], _read_around(shapes[group], layer))

    _each_group(measure, shapes, layer, threads)
    return share


def uncovered(shapes: Shapes, layer: PreparedLayer, *, threads: int = 1) -> Shapes:
    """What of each shape lies outside a layer.

    Args:
        shapes: (N,) valid polygons or multipolygons in the layer's prepared coordinate system, in any order.
        layer: The prepared layer.
        threads: As in `covered_share`.

    Returns:
        (N,) polygons, multipolygons or empty ones; a shape that touches nothing of the layer comes back as it is.
    """
    outside: Shapes = np.array(shapes, dtype=object)

    def cut(group: Indices) -> None:
        outside[group] = _differences(shapes[group], _read_around(shapes[group], layer))

    _each_group(cut, shapes, layer, threads)
    return outside


def cores_inside(boxes: Shapes, layer: PreparedLayer, *, threads: int = 1) -> NDArray[np.bool_]:
    """Which boxes (N,) lie wholly inside a layer, but for the rounding of coordinates."""
    inside: NDArray[np.bool_] = covered_share(boxes, layer, threads=threads) == 1.0
    return inside


def _each_group(work: Callable[[Indices], None], shapes: Shapes, layer: PreparedLayer, threads: int) -> None:
    """Work on all groups; each writes to places of its own."""
    groups = _groups(shapely.bounds(shapes), layer)
    if threads <= 1:
        for group in groups:
            work(group)
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, group) for group in groups]:
            future.result()


def _groups(bounds: Floats, layer: PreparedLayer) -> Iterator[Indices]:
    """Footprints near each other, as indices: halved at the median of the longer axis until small enough.

    Args:
        bounds: (N, 4) minx, miny, maxx, maxy; NaN for missing and empty shapes.
        layer: Shapes beyond its bounds are in no group.
    """
    if layer.bounds is None:
        return
    minx, miny, maxx, maxy = layer.bounds
    left, bottom, right, top = bounds.T
    todo = [np.flatnonzero((left <= maxx) & (right >= minx) & (bottom <= maxy) & (top >= miny))]
    centres = np.stack([left + right, bottom + top], axis=1)  # (N, 2), twice as far out
    while todo:
        group = todo.pop()
        if not len(group):
            continue
        if len(group) == 1 or (len(group) <= FOOTPRINTS_AT_ONCE and _expected(bounds[group], layer) <= PIECES_AT_ONCE):
            yield group
            continue
        here = centres[group]
        order = np.argpartition(here[:, int(np.ptp(here, axis=0).argmax())], len(group) // 2)
        todo += [group[order[len(group) // 2 :]], group[order[: len(group) // 2]]]


def _expected(bounds: Floats, layer: PreparedLayer) -> float:
    """Pieces in the box around a group, if they lay evenly within the layer's bounds."""
    assert layer.bounds is not None
    low, high = np.array(layer.bounds[:2]), np.array(layer.bounds[2:])
    common = np.minimum(bounds[:, 2:].max(axis=0), high) - np.maximum(bounds[:, :2].min(axis=0), low)  # (2,)
    extent = high - low
    return float(layer.pieces * np.prod(np.divide(common, extent, out=np.ones(2), where=extent > 0)))


def _read_around(shapes: Shapes, layer: PreparedLayer) -> Pieces:
    minx, miny, maxx, maxy = shapely.total_bounds(shapes).tolist()
    return layer.read((minx, miny, maxx, maxy))


def _near(shapes: Shapes, pieces: Shapes) -> tuple[Indices, Indices]:
    """Pairs (shape, piece) whose boxes meet, sorted."""
    shape, piece = shapely.STRtree(pieces).query(shapes)
    order = np.lexsort((piece, shape))
    return shape[order].astype(np.int64), piece[order].astype(np.int64)


def _shares(shapes: Shapes, pieces: Pieces) -> Floats:
    shape, piece = _near(shapes, pieces.shapes)
    shapely.prepare(pieces.shapes[np.unique(piece)])
    share = np.zeros(len(shapes))
    share[shape[shapely.contains_properly(pieces.shapes[piece], shapes[shape])]] = 1.0
    left = share[shape] < 1.0
    shape, piece = shape[left], piece[left]
    parts = shapely.intersection(shapes[shape], pieces.shapes[piece])
    area = shapely.area(parts)
    real = area > 0
    shape, piece, parts, area = shape[real], piece[real], parts[real], area[real]
    feature = pieces.feature[piece]
    total: Floats = np.bincount(shape, area, len(shapes)).astype(np.float64)  # adds in the order given
    mixed = np.zeros(len(shapes), np.bool_)
    mixed[shape[1:][(shape[1:] == shape[:-1]) & (feature[1:] != feature[:-1])]] = True
    several = mixed[shape]
    _set_unions(total, shape[several], parts[several])
    touched = np.unique(shape)
    share[touched] = total[touched] / shapely.area(shapes[touched])
    share[share < ROUNDING] = 0.0
    share[share > 1.0 - ROUNDING] = 1.0
    return share


def _set_unions(total: Floats, shape: Indices, parts: Shapes) -> None:
    """Put the area of the union of each shape's parts in its place; `shape` is sorted."""
    for shapes, rows in _tables(shape):
        total[shapes] = shapely.area(shapely.union_all(parts[rows], axis=1))


def _differences(shapes: Shapes, pieces: Pieces) -> Shapes:
    shape, piece = _near(shapes, pieces.shapes)
    meets = shapely.intersects(shapes[shape], pieces.shapes[piece])
    shape, piece = shape[meets], piece[meets]
    outside: Shapes = shapes.copy()
    for touched, rows in _tables(shape):
        # One cut along the union: cuts along each piece in turn would leave slivers at the seams.
        outside[touched] = shapely.difference(shapes[touched], shapely.union_all(pieces.shapes[piece[rows]], axis=1))
    return outside


def _tables(owner: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Sorted owners as rectangular tables: those with equally many members together.

    Yields:
        (G,) owners and (G, k) indices into `owner`, for each k that occurs.
    """
    names, start, count = np.unique(owner, return_index=True, return_counts=True)
    for size in np.unique(count).tolist():
        which = count == size
        yield names[which], start[which][:, None] + np.arange(size)
