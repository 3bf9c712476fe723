"""Cutting polygons on an absolute lattice of squares: what lies in a square depends on the polygon and the square alone.

The lattice begins at the origin of the coordinate system. Level 0 has squares of a given side, level n of 2^n times that
side; each square has four children, which a polygon is handed down to until it is small. Squares that are not wanted are
left out on the way, so a sea that spans the world costs what lies near the region, and leaving out changes no other square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.masks.repair import each, polygonal

MAX_EXTENT = 4096.0
"""Widest piece, in units of the coordinate system."""
MAX_VERTICES = 128
"""A piece with more is cut again, down to `_DEEPEST`."""
_DEEPEST = -10
_CHILD = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Polygons handed down to squares, in the order given and, within one, always in the same order of squares."""

    index: NDArray[np.int64]
    """(N,) which polygon of those given."""
    level: NDArray[np.int64]
    cell: NDArray[np.int64]
    """(N, 2) column and row of the square at its level."""
    shapes: NDArray[np.object_]
    """(N,) Polygon or MultiPolygon: what of it lies in the square."""

    def take(self, keep: NDArray[np.bool_]) -> Cells:
        """Those where `keep` is True."""
        return Cells(self.index[keep], self.level[keep], self.cell[keep], self.shapes[keep])

    def boxes(self, side: float, margin: float | NDArray[np.float64] = 0.0) -> NDArray[np.float64]:
        """(N, 4) bounds of the squares, grown by a margin (scalar, or (N,))."""
        sides = side * 2.0**self.level  # powers of two: exact for any side
        low, high = self.cell * sides[:, None], (self.cell + 1) * sides[:, None]
        edge = np.broadcast_to(margin, sides.shape)[:, None]
        return np.concatenate([low - edge, high + edge], axis=1)


def cut(shapes: NDArray[np.object_], wanted: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Small polygons that together are the ones given, as far as the wanted boxes reach.

    A polygon with few vertices and a small extent stays whole, wherever it lies on the lattice.

    Args:
        shapes: (N,) valid Polygons and MultiPolygons.
        wanted: (K, 4) boxes.

    Returns:
        index: (M,) which of those given; pieces: (M,) valid Polygons, those of one feature do not overlap.
    """
    parts, index = shapely.get_parts(shapes, return_index=True)
    bounds = shapely.bounds(parts)
    extent = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    large = (extent > MAX_EXTENT) | (shapely.get_num_coordinates(parts) > MAX_VERTICES)
    if not large.any():
        return index, parts

    def is_done(cells: Cells) -> NDArray[np.bool_]:
        small = shapely.get_num_coordinates(cells.shapes) <= MAX_VERTICES
        done: NDArray[np.bool_] = (cells.level <= 0) & (small | (cells.level <= _DEEPEST))
        return done

    cells = divide(parts[large], MAX_EXTENT, wanted, is_done)
    pieces, owner = shapely.get_parts(cells.shapes, return_index=True)
    solid = shapely.area(pieces) > 0
    origin = np.concatenate([np.flatnonzero(~large), np.flatnonzero(large)[cells.index[owner[solid]]]])
    pieces = np.concatenate([parts[~large], pieces[solid]])
    order = np.argsort(origin, kind="stable")
    return index[origin[order]], pieces[order]


def divide(
    shapes: NDArray[np.object_],
    side: float,
    wanted: NDArray[np.float64],
    is_done: Callable[[Cells], NDArray[np.bool_]],
    margin: float = 0.0,
) -> Cells:
    """Hand polygons down the lattice.

    Args:
        shapes: (N,) valid Polygons and MultiPolygons, not empty.
        side: Of a square of level 0.
        wanted: (K, 4) boxes; squares that meet none are left out.
        is_done: (N,) what need not be cut again.
        margin: A square gets also what lies this far around it.
    """
    bounds = shapely.bounds(shapes) + np.array([-margin, -margin, margin, margin])
    extent = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    level = np.ceil(np.log2(np.maximum(extent, side) / side)).astype(np.int64)
    corner = np.floor(bounds[:, :2] / (side * 2.0**level)[:, None]).astype(np.int64)
    whole = Cells(np.arange(len(shapes)), level, corner, shapes)  # spans at most two squares a side
    cells, _ = _clip(_family(whole, np.ones(len(shapes), np.bool_), corner), side, wanted, margin)
    while True:
        todo = ~is_done(cells)
        if not todo.any():
            return cells
        finer = Cells(cells.index, cells.level - todo, cells.cell, cells.shapes)
        grown = _family(finer, todo, 2 * cells.cell)
        is_new = np.repeat(todo, np.where(todo, 4, 1))
        clipped, place = _clip(grown.take(is_new), side, wanted, margin)
        all_shapes, keep, place = grown.shapes.copy(), ~is_new, np.flatnonzero(is_new)[place]
        all_shapes[place], keep[place] = clipped.shapes, True
        cells = Cells(grown.index, grown.level, grown.cell, all_shapes).take(keep)


def _family(cells: Cells, todo: NDArray[np.bool_], corner: NDArray[np.int64]) -> Cells:
    """Each square where `todo`, as four: its corner square and the neighbours of that; the others as they are."""
    counts = np.where(todo, 4, 1)
    children = np.repeat(corner, counts, axis=0) + _CHILD[_ranks(counts)]
    cell = np.where(np.repeat(todo, counts)[:, None], children, np.repeat(cells.cell, counts, axis=0))
    return Cells(np.repeat(cells.index, counts), np.repeat(cells.level, counts), cell, np.repeat(cells.shapes, counts))


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0..count-1 for each count, one after another."""
    starts = np.cumsum(counts) - counts
    ranks: NDArray[np.int64] = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return ranks


def _clip(cells: Cells, side: float, wanted: NDArray[np.float64], margin: float) -> tuple[Cells, NDArray[np.int64]]:
    """What of each polygon lies in its square (grown by the margin), where the square is wanted; and which these are."""
    place = np.flatnonzero(meets(cells.boxes(side), wanted))
    boxes, bounds = cells.boxes(side, margin)[place], shapely.bounds(cells.shapes[place])
    near = meets_pairwise(boxes, bounds)
    place, boxes, bounds = place[near], boxes[near], bounds[near]
    shapes = cells.shapes[place]
    crosses = ~((bounds[:, :2] >= boxes[:, :2]) & (bounds[:, 2:] <= boxes[:, 2:])).all(axis=1)
    if crosses.any():
        shapes[crosses] = polygonal(each(shapely.intersection, shapes[crosses], shapely.box(*boxes[crosses].T)))
    place, shapes = place[~shapely.is_empty(shapes)], shapes[~shapely.is_empty(shapes)]
    return Cells(cells.index[place], cells.level[place], cells.cell[place], shapes), place


def meets(boxes: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) a box (N, 4) touches any of the wanted ones (K, 4)."""
    result = np.zeros(len(boxes), np.bool_)
    for box in wanted:
        result |= meets_pairwise(boxes, np.broadcast_to(box, boxes.shape))
    return result


def meets_pairwise(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) box i of one touches box i of the other."""
    return np.asarray(((a[:, :2] <= b[:, 2:]) & (a[:, 2:] >= b[:, :2])).all(axis=1))
