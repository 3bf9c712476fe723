"""From a layer's coordinate system to the grid's: reprojected, buffered, and cut to pieces, each feature for itself.

What a feature becomes must not depend on the region that asks, so nothing here is cut to a region. A feature of ordinary
extent is projected whole. One that is wider than a square of a fixed lattice in the layer's own system (a sea may span the
world, and no projected system shows all of that) is taken square by square: its neighbourhood of the square is projected
and buffered, and of that the projected square is kept. Squares that are far from the region are left out, which changes no
other. Neighbours share their projected corners bit for bit, so the pieces fit together; where a long edge crosses from one
square to the next its two halves may be cut at other places, and differ by the 2 mm that an edge bulges.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.enums import TransformDirection

from geoinfer.errors import ConfigError
from geoinfer.masks.lattice import Cells, cut, divide
from geoinfer.masks.repair import each, polygonal, valid
from geoinfer.region import Bounds

OVERSHOOT_M = 100.0
"""A footprint may reach this far beyond the region's bounds (it grows, and its outline is simplified)."""
STEP_M = 256.0
"""Edges are cut to at most about this length: a parallel at 60 degrees then bulges from its chord by 2 mm."""
_STEP_DEGREES = 2.0**-9
_SIDE_STEPS = 64
"""Steps on a side of a square."""
_BUFFERED_STEPS = 8
"""The same where there is a buffer: the cost of one grows faster than the vertices."""
_BUFFER_M = 64.0
"""Wider buffers have wider squares: a square must be wider than what its neighbours do to it."""
_SAMPLES = 33


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Parts of features in the grid's system, in the order of the features and always in the same order within one."""

    index: NDArray[np.int64]
    """(N,) which feature of those given."""
    shapes: NDArray[np.object_]
    """(N,) valid Polygons."""
    dropped: Counter[str]


class Projection:
    """The way from one coordinate system to another, with a buffer at its end. Holds PROJ objects: not to be pickled."""

    def __init__(self, source: CRS, target: CRS, buffer_m: float, bounds: Bounds) -> None:
        """Everything that pieces within `bounds` (of `target`) depend on is asked for; `bounds` itself enters no piece."""
        if not target.is_projected:
            raise ConfigError(f"{target.name} is not projected: masks are applied in metres; choose a projected system")
        self.source, self.target = source, target
        self.is_same = source.equals(target, ignore_axis_order=True)
        self._transformer = Transformer.from_crs(source, target, always_xy=True)
        self.unit_m = float(target.axis_info[0].unit_conversion_factor)
        self.buffer = buffer_m / self.unit_m
        source_m = 1.0 if source.is_geographic else float(source.axis_info[0].unit_conversion_factor)
        self.step = _STEP_DEGREES if source.is_geographic else STEP_M / source_m  # a power of two in metres
        grown = max(0, int(np.ceil(np.log2(max(abs(buffer_m), 1.0) / _BUFFER_M))))
        self.side = self.step * (_BUFFERED_STEPS * 2.0**grown if buffer_m else _SIDE_STEPS)
        reach = OVERSHOOT_M / self.unit_m
        self.target_boxes = np.array([_grow(bounds, reach)])
        self.boxes = self._source_boxes(_grow(bounds, reach + abs(self.buffer) + self.step_slack()))

    def step_slack(self) -> float:
        """More than an edge can bulge, target units."""
        return 1.0 / self.unit_m

    def forward(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(V, 2) to the target system; infinite where that cannot show it. A function of each point alone."""
        if self.is_same:
            return points
        x, y = self._transformer.transform(points[:, 0], points[:, 1])
        return np.column_stack([x, y])

    def place(self, shapes: NDArray[np.object_]) -> Placed:
        """Project, buffer and cut features.

        Args:
            shapes: (N,) valid Polygons and MultiPolygons in the source system, not empty.
        """
        bounds = shapely.bounds(shapes)
        extent = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
        wide = extent > self.side if not self.is_same or self.buffer else np.zeros(len(shapes), np.bool_)
        small, dropped = self._whole(shapes[~wide])
        index, placed = np.flatnonzero(~wide), small
        if wide.any():
            owner, parts, more = self._by_squares(shapes[wide])
            dropped.update(more)
            index = np.concatenate([index, np.flatnonzero(wide)[owner]])
            placed = np.concatenate([small, parts])
            order = np.argsort(index, kind="stable")
            index, placed = index[order], placed[order]
        origin, pieces = self.cut(placed)
        return Placed(index[origin], pieces, +dropped)

    def cut(self, placed: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        """Which of the polygons (N,) of the target, and small pieces of it."""
        some = np.flatnonzero(~shapely.is_empty(placed))
        origin, pieces = cut(placed[some], self.target_boxes)
        return some[origin], pieces

    def place_cells(
        self, neighbourhoods: NDArray[np.object_], squares: NDArray[np.object_]
    ) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
        """Project and buffer what lies around squares of the source, and keep what lies in them.

        Args:
            neighbourhoods: (N,) valid polygons, complete as far as `reach_of` says around the square.
            squares: (N,) Polygons of the source, with vertices on edges that neighbours have too.

        Returns:
            (N,) polygons of the target, perhaps empty; (N,) the target can show it.
        """
        placed, projected = self._projected(neighbourhoods), shapely.transform(squares, self.forward)
        shown = _is_finite(placed) & _is_finite(projected)
        result = np.full(len(placed), shapely.Polygon(), object)
        if shown.any():
            around = self._buffered(valid(placed[shown]))
            result[shown] = polygonal(each(shapely.intersection, around, valid(projected[shown])))
        return result, shown

    def reach_of(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) how far around each box (N, 4) of the source the buffer's effect reaches, source units; at most half a side.

        From the box itself, projected: the shortest image of a source unit anywhere among its corners, edges and middle.
        """
        side = boxes[:, 2] - boxes[:, 0]
        at = np.linspace(0, 1, 3)
        x = boxes[:, None, None, 0] + side[:, None, None] * at[None, None, :]
        y = boxes[:, None, None, 1] + (boxes[:, 3] - boxes[:, 1])[:, None, None] * at[None, :, None]
        x, y = np.broadcast_arrays(x, y)  # (N, 3, 3)
        image = self.forward(np.column_stack([x.ravel(), y.ravel()])).reshape(*x.shape, 2)
        with np.errstate(invalid="ignore"):
            along = np.hypot(*np.moveaxis(np.diff(image, axis=2), -1, 0)).reshape(len(boxes), -1).min(axis=1)
            across = np.hypot(*np.moveaxis(np.diff(image, axis=1), -1, 0)).reshape(len(boxes), -1).min(axis=1)
            stretch = np.minimum(along, across) / (side / 2)  # target units a source unit
            reach = 1.5 * abs(self.buffer) / stretch + 0.1 * self.step  # the rest hides how edges bulge
        return np.where(np.isfinite(reach), np.minimum(reach, side / 2), side / 2)

    def _whole(self, shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], Counter[str]]:
        """(N,) features of ordinary extent; what the target cannot show becomes empty and is counted."""
        placed = self._projected(shapes)
        lost = ~_is_finite(placed)
        if lost.any():
            placed = placed.copy()
            placed[lost] = shapely.Polygon()
        return self._buffered(placed if self.is_same else valid(placed)), Counter(not_finite=int(lost.sum()))

    def _by_squares(self, shapes: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.object_], Counter[str]]:
        """Which feature, and its parts in squares."""
        cells = divide(shapes, self.side, self.boxes, lambda cells: np.asarray(cells.level <= 0), self.side / 2)
        cells = self._near(cells)
        if not len(cells.index):
            return cells.index, cells.shapes, Counter()
        squares = shapely.segmentize(shapely.box(*cells.boxes(self.side).T), self.step)
        parts, shown = self.place_cells(cells.shapes, squares)
        lost = len(np.unique(cells.index)) - len(np.unique(cells.index[shown]))
        return cells.index[shown], parts[shown], Counter(not_finite=lost)

    def _near(self, cells: Cells) -> Cells:
        """Neighbourhoods no larger than the buffer needs."""
        boxes = cells.boxes(self.side)
        reach = self.reach_of(boxes) if len(boxes) else np.zeros(0)
        around = shapely.box(*cells.boxes(self.side, reach).T)
        shapes = polygonal(each(shapely.intersection, cells.shapes, around)) if len(boxes) else cells.shapes
        return Cells(cells.index, cells.level, cells.cell, shapes).take(~shapely.is_empty(shapes))

    def _projected(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """(N,) reprojected, long edges cut first."""
        if self.is_same or not len(shapes):
            return shapes
        bounds = shapely.bounds(shapes)
        wide = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]) > self.step
        if wide.any():
            shapes = shapes.copy()
            shapes[wide] = shapely.segmentize(shapes[wide], self.step)
        moved: NDArray[np.object_] = shapely.transform(shapes, self.forward)
        return moved

    def _buffered(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        if not self.buffer:
            return shapes
        return polygonal(each(lambda some: shapely.buffer(some, self.buffer, quad_segs=4), shapes))

    def _source_boxes(self, bounds: Bounds) -> NDArray[np.float64]:
        """(K, 4) boxes of the source that hold all of a box of the target; none where the two have nothing in common.

        In degrees two at the antimeridian, and each also a turn to the west and to the east: layers write 190 for -170.
        """
        if self.is_same:
            return np.array([bounds])
        x, y = np.meshgrid(np.linspace(bounds[0], bounds[2], _SAMPLES), np.linspace(bounds[1], bounds[3], _SAMPLES))
        xs, ys = self._transformer.transform(x.ravel(), y.ravel(), direction=TransformDirection.INVERSE)
        seen = np.isfinite(xs) & np.isfinite(ys)
        if not seen.any():
            return np.zeros((0, 4))
        west, south, east, north = self._around(bounds, xs[seen], ys[seen])
        pad = self.step + 0.02 * max(east - west, north - south)
        west, south, east, north = west - pad, south - pad, east + pad, north + pad
        if not self.source.is_geographic:
            return np.array([[west, south, east, north]])
        if east - west >= 360:
            return np.array([[-540.0, south, 540.0, north]])
        first = west - 360 * np.ceil((west + 180) / 360)  # within (-540, -180]
        return np.array([[first + turn, south, first + turn + east - west, north] for turn in (0.0, 360.0, 720.0)])

    def _around(self, bounds: Bounds, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> Bounds:
        """The box around points; in degrees the narrow way round, and the whole turn where a pole lies within."""
        south, north = float(ys.min()), float(ys.max())
        if not self.source.is_geographic:
            return float(xs.min()), south, float(xs.max()), north
        for pole in (-90.0, 90.0):
            x, y = self._transformer.transform(0.0, pole)
            if bounds[0] <= x <= bounds[2] and bounds[1] <= y <= bounds[3]:
                return -180.0, min(south, pole), 180.0, max(north, pole)
        turned = np.sort(xs % 360)
        gaps = np.diff(np.append(turned, turned[0] + 360))
        widest = int(gaps.argmax())
        west = float(turned[(widest + 1) % len(turned)])
        return west, south, west + 360 - float(gaps[widest]), north


def _grow(bounds: Bounds, by: float) -> Bounds:
    return bounds[0] - by, bounds[1] - by, bounds[2] + by, bounds[3] + by


def _is_finite(shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(N,) no coordinate is infinite or none at all; shapes are not empty."""
    finite: NDArray[np.bool_] = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    return finite
