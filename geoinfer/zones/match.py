"""Which zone keeps a building that two of them see: footprints near borders, matched by overlap, told apart by area.

Footprints of two zones that overlap by a tenth of the smaller one or more show one building; those that hang together this
way are given to the zone whose strip holds the larger share of their areas, the western one in a tie. A footprint that only
one zone sees follows the same rule: what lies mostly beyond a zone's border is for its neighbour to find. Only footprints
near the borders are held, those of one pair of zones at a time, and a few numbers of each. Nothing but the footprints
enters, so neither tiles nor restarts can change an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.earth import Bounds, project
from geoinfer.meridian import near, wrap
from geoinfer.zones.plan import LONLAT, ZonePart

Shapes = NDArray[np.object_]
OVERLAP = 0.1
"""Share of the smaller footprint from which an overlap makes two into one: neighbours in a row of houses share slivers."""

_SLACK = 2e-4
"""More than an outline ever lies beyond its pixels, degrees of latitude: 22 m."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Footprints of a zone that others keep."""

    rows: NDArray[np.int64]
    """(N,) numbers of their rows in the zone's file, ascending."""
    keeper: NDArray[np.int64]
    """(N,) number of the zone each goes to."""

    def within(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of rows `start` to `stop`, counted from `start`."""
        a, b = np.searchsorted(self.rows, [start, stop])
        return self.rows[a:b] - start, self.keeper[a:b]


@dataclass(slots=True)
class _Seen:
    """What is known of the footprints near borders."""

    number: dict[tuple[int, int], int] = field(default_factory=dict)
    """(zone, row) -> node."""
    shares: list[dict[int, float]] = field(default_factory=list)
    """Of each node, its area within the strips of zones."""
    parent: list[int] = field(default_factory=list)
    """Union-find."""

    def add(self, zone: int, row: int, shares: dict[int, float]) -> int:
        """The node of a footprint; what is known of it already stays."""
        node = self.number.setdefault((zone, row), len(self.parent))
        if node == len(self.parent):
            self.shares.append(shares)
            self.parent.append(node)
        return node

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def link(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a


def match(parts: Sequence[ZonePart], files: Sequence[Path]) -> list[Lost]:
    """Which accepted footprints of each zone another zone keeps.

    Args:
        parts: The zones, western ones first.
        files: Their `footprints.parquet`, in the coordinate systems of their grids.
    """
    seen = _Seen()
    for i, j in _pairs(parts):
        centre = parts[i].strip.centre  # never a cap: these come last, and do not meet
        shared = shapely.intersection(near(parts[i].grown.geometry, centre), near(parts[j].grown.geometry, centre))
        if shared.area <= 0:
            continue
        shared = _with_slack(shared)
        sides = []
        for zone in (i, j):
            rows, shapes = _border(files[zone], parts[zone].crs, shared, centre)
            shares = _shares(shapes, parts, centre)
            sides.append((shapes, [seen.add(zone, row, share) for row, share in zip(rows.tolist(), shares, strict=True)]))
        (left, left_nodes), (right, right_nodes) = sides
        for a, b in _same(left, right):
            seen.link(left_nodes[a], right_nodes[b])
    return _judge(seen, len(parts))


def _judge(seen: _Seen, zones: int) -> list[Lost]:
    order = sorted(seen.number)  # sums do not depend on the order in which footprints were met
    whole: dict[int, list[float]] = {}
    for key in order:
        node = seen.number[key]
        sums = whole.setdefault(seen.root(node), [0.0] * zones)
        for zone, area in seen.shares[node].items():
            sums[zone] += area
    lost: list[list[tuple[int, int]]] = [[] for _ in range(zones)]
    for zone, row in order:
        sums = whole[seen.root(seen.number[zone, row])]
        keeper = sums.index(max(sums)) if any(sums) else zone
        if keeper != zone:
            lost[zone].append((row, keeper))
    return [Lost(*np.array(pairs, np.int64).reshape(-1, 2).T) for pairs in lost]


def _pairs(parts: Sequence[ZonePart]) -> Iterator[tuple[int, int]]:
    for j in range(len(parts)):
        for i in range(j):
            a, b = parts[i].strip, parts[j].strip
            is_beside = abs((b.west - a.west + 180.0) % 360.0 - 180.0) <= 6.0
            if not a.is_cap and (is_beside or b.is_cap):
                yield i, j


def _with_slack(shared: BaseGeometry) -> BaseGeometry:
    """Outlines may lie beyond the pixels that were looked at."""
    _, south, _, north = shared.bounds
    return shapely.buffer(shared, _SLACK / np.cos(np.radians(max(abs(south), abs(north)))), join_style="mitre")


def _border(file: Path, crs: CRS, shared: BaseGeometry, centre: float) -> tuple[NDArray[np.int64], Shapes]:
    """Footprints that meet what two zones both look at: numbers of their rows, and shapes in degrees around a meridian."""
    transformer = Transformer.from_crs(crs, LONLAT, always_xy=True)
    box = project(shared, LONLAT, crs).bounds
    shapely.prepare(shared)
    rows, shapes = [np.empty(0, np.int64)], [np.empty(0, object)]
    with pq.ParquetFile(file) as stored:
        start = 0
        for group in range(stored.num_row_groups):
            count = stored.metadata.row_group(group).num_rows
            if _meets(stored.metadata.row_group(group), box):
                table = stored.read_row_group(group, columns=["geometry", "bbox"])
                minx, miny, maxx, maxy = (column.to_numpy() for column in table["bbox"].combine_chunks().flatten())
                is_near = (minx <= box[2]) & (maxx >= box[0]) & (miny <= box[3]) & (maxy >= box[1])
                chosen = np.flatnonzero(is_near)
                found = shapely.from_wkb(table["geometry"].take(chosen).to_numpy())
                moved = shapely.transform(found, transformer.transform, interleaved=False)
                moved = shapely.transform(moved, lambda p: np.column_stack([wrap(p[:, 0], centre), p[:, 1]]))
                moved = np.where(shapely.is_valid(moved), moved, shapely.make_valid(moved))
                is_in = shapely.intersects(shared, moved)
                rows.append(start + chosen[is_in])
                shapes.append(moved[is_in])
            start += count
    return np.concatenate(rows), np.concatenate(shapes)


def _meets(group: pq.RowGroupMetaData, box: Bounds) -> bool:
    """A row group may hold a footprint within a box; by its statistics."""
    limits = {"xmax": box[0], "ymax": box[1], "xmin": box[2], "ymin": box[3]}
    for number in range(group.num_columns):
        column = group.column(number)
        name = column.path_in_schema.removeprefix("bbox.")
        if name in limits and column.is_stats_set:
            if name.endswith("max") and column.statistics.max < limits[name]:
                return False
            if name.endswith("min") and column.statistics.min > limits[name]:
                return False
    return True


def _shares(shapes: Shapes, parts: Sequence[ZonePart], centre: float) -> list[dict[int, float]]:
    """Area of each shape within the strips of the zones, in square degrees, which compare where they are."""
    shares: list[dict[int, float]] = [{} for _ in shapes]
    if not len(shapes):
        return shares
    around = shapely.box(*shapely.total_bounds(shapes))
    for zone, part in enumerate(parts):
        strip = near(part.strip.shape(), centre)
        if not shapely.intersects(strip, around):
            continue
        areas = shapely.area(shapely.intersection(shapes, strip))
        for at in np.flatnonzero(areas).tolist():
            shares[at][zone] = float(areas[at])
    return shares


def _same(left: Shapes, right: Shapes) -> Iterator[tuple[int, int]]:
    """Pairs that show one building."""
    if not (len(left) and len(right)):
        return
    pairs = shapely.STRtree(right).query(left, predicate="intersects")  # (2, M) number in left, number in right
    a, b = left[pairs[0]], right[pairs[1]]
    common = shapely.area(shapely.intersection(a, b))
    is_same = common >= OVERLAP * np.minimum(shapely.area(a), shapely.area(b))
    is_same &= common > 0
    yield from zip(pairs[0][is_same].tolist(), pairs[1][is_same].tolist(), strict=True)
