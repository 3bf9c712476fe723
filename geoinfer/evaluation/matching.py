"""Which predicted footprint is which true one. Knows polygons in one plane, and nothing of files or coordinate systems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation.kernels import shared_areas, take_in_order
from geoinfer.evaluation.outlines import Geometries, outlines_of

Indices = NDArray[np.int64]

PARTITION = 50_000
"""Polygons of one side, and pairs, looked at at a time: bounds the memory that their outlines take."""

EDGE_PAIRS = 100_000
"""Pairs of edges of two polygons beyond which GEOS is faster than looking at each of them."""

ROUNDING = 1e-9
"""Relative error that an IoU may have: one that is the threshold but for it is the threshold."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Predicted and true polygons that overlap, sorted by (pred, truth)."""

    pred: Indices
    """(K,) index of the predicted polygon."""
    truth: Indices
    """(K,) index of the true polygon."""
    iou: NDArray[np.float64]
    """(K,) intersection over union, above 0."""
    shared_m2: NDArray[np.float64]
    """(K,) area of the intersection."""

    def __len__(self) -> int:
        return len(self.pred)

    def take(self, which: NDArray[np.bool_] | Indices) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.pred[which], self.truth[which], self.iou[which], self.shared_m2[which])


def shared_area(a: Geometries, b: Geometries, *, ordered: bool = False) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """All pairs of polygons that share area. Works through `a` a partition at a time, which bounds the memory it takes.

    An area is right to 1e-9 of the smaller polygon's: what is less is none, and what is the whole polygon but for it is it.

    Args:
        a: (N,) valid polygons.
        b: (M,) valid polygons.
        ordered: Only pairs whose index in `a` is the smaller one: for the pairs within one set.

    Returns:
        index into `a`, index into `b`, area of the intersection; sorted by (a, b).
    """
    tree, area_a, area_b = shapely.STRtree(b), shapely.area(a), shapely.area(b)
    found: list[tuple[Indices, Indices, NDArray[np.float64]]] = []
    for start in range(0, len(a), PARTITION):
        first, second = tree.query(a[start : start + PARTITION])  # those whose boxes meet
        first = first + start
        if ordered:
            first, second = first[first < second], second[first < second]
        order = np.lexsort((second, first))
        first, second = first[order].astype(np.int64), second[order].astype(np.int64)
        area = _intersections(a, b, first, second)
        least = np.minimum(area_a[first], area_b[second])
        area = np.where(area >= least * (1 - ROUNDING), least, area)
        real = area > least * ROUNDING
        found.append((first[real], second[real], area[real]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    firsts, seconds, areas = zip(*found, strict=True)
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(areas)


def _intersections(a: Geometries, b: Geometries, first: Indices, second: Indices) -> NDArray[np.float64]:
    """(K,) areas of the intersections of pairs."""
    area = np.empty(len(first))
    for start in range(0, len(first), PARTITION):
        part = slice(start, start + PARTITION)
        rows, row_at = np.unique(first[part], return_inverse=True)
        cols, col_at = np.unique(second[part], return_inverse=True)
        left, right = outlines_of(a[rows]), outlines_of(b[cols])
        area[part] = shared_areas(
            left.xy, left.sign, left.rings, left.polygons,
            right.xy, right.sign, right.rings, right.polygons, row_at, col_at, EDGE_PAIRS,
        )  # fmt: skip
    long = np.flatnonzero(area < 0)
    area[long] = shapely.area(shapely.intersection(a[first[long]], b[second[long]]))
    return area


def pairs_of(pred: Geometries, truth: Geometries) -> Pairs:
    """The overlapping pairs of two sets of valid polygons.

    Args:
        pred: (N,) predicted polygons.
        truth: (M,) true polygons.
    """
    first, second, shared = shared_area(pred, truth)
    return Pairs(first, second, shared / (shapely.area(pred)[first] + shapely.area(truth)[second] - shared), shared)


def match(pairs: Pairs, iou: float = 0.5, matching: str = "optimal") -> Pairs:
    """Choose pairs so that no polygon is in two of them.

    Args:
        pairs: Candidates, sorted by (pred, truth).
        iou: Threshold.
        matching: `optimal`: the pairs of the greatest total IoU, each at or above the threshold. `spacenet`: predictions in
            file order, each takes the free true polygon of the greatest IoU, if that is strictly above the threshold
            (Van Etten, Lindenbaum and Bacastow 2018, "SpaceNet: A Remote Sensing Dataset and Challenge Series").

    Returns:
        The chosen pairs, sorted by pred.
    """
    if matching == "spacenet":
        return _greedy(pairs.take(pairs.iou > iou * (1 + ROUNDING)))
    return _optimal(pairs.take(pairs.iou >= iou * (1 - ROUNDING)))


def _greedy(pairs: Pairs) -> Pairs:
    """In file order; ties go to the true polygon that comes first in its file."""
    if not len(pairs):
        return pairs
    order = np.arange(pairs.pred[-1] + 1)
    everyone = np.ones(pairs.truth.max() + 1, np.bool_)
    takes = take_in_order(order, starts_of(pairs, len(order)), pairs.truth, pairs.iou, everyone)
    return pairs.take(takes[takes >= 0])


def starts_of(pairs: Pairs, count: int) -> Indices:
    """(count + 1,) where the pairs of each of `count` predictions begin."""
    return np.searchsorted(pairs.pred, np.arange(count + 1)).astype(np.int64)


def _optimal(pairs: Pairs) -> Pairs:
    """Maximum-weight matching, one connected component at a time.

    At a threshold of 0.5 and above, and where polygons of one side do not overlap, no polygon has two candidates and every
    component is one pair. The others are solved by assignment.
    """
    _, pred_at, pred_count = np.unique(pairs.pred, return_inverse=True, return_counts=True)
    _, truth_at, truth_count = np.unique(pairs.truth, return_inverse=True, return_counts=True)
    alone = (pred_count[pred_at] == 1) & (truth_count[truth_at] == 1)
    chosen = np.flatnonzero(alone).tolist()
    for group in _components(pairs, np.flatnonzero(~alone)):
        rows, row_at = np.unique(pairs.pred[group], return_inverse=True)
        cols, col_at = np.unique(pairs.truth[group], return_inverse=True)
        weight = np.zeros((len(rows), len(cols)))
        weight[row_at, col_at] = pairs.iou[group]
        at = {(row, col): index for row, col, index in zip(row_at.tolist(), col_at.tolist(), group.tolist(), strict=True)}
        chosen += [at[cell] for cell in assign(weight) if cell in at]
    return pairs.take(np.sort(np.array(chosen, np.int64)))


def _components(pairs: Pairs, among: Indices) -> list[Indices]:
    """Groups of pairs that are linked by shared polygons: union-find over both sides."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    # True polygons are numbered -1, -2, ... so that both sides fit into one forest.
    edges = list(zip(among.tolist(), pairs.pred[among].tolist(), (-1 - pairs.truth[among]).tolist(), strict=True))
    for _, pred, truth in edges:
        parent[root(pred)] = root(truth)
    groups: dict[int, list[int]] = {}
    for index, pred, _ in edges:
        groups.setdefault(root(pred), []).append(index)
    return [np.array(group, np.int64) for group in groups.values()]


def assign(weight: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The assignment of rows to columns of the greatest total weight.

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense
    and sparse linear assignment problems"): rows join one at a time, each by the cheapest path of reassignments.

    Args:
        weight: (R, C) float64.

    Returns:
        min(R, C) cells (row, col).
    """
    if weight.shape[0] > weight.shape[1]:
        return sorted((row, col) for col, row in assign(weight.T))
    rows, cols = weight.shape
    cost = -weight
    row_price, col_price = np.zeros(rows), np.zeros(cols + 1)
    owner = np.full(cols + 1, -1)  # row of each column; the last column is where a joining row waits
    for joining in range(rows):
        owner[cols] = joining
        here = cols
        distance = np.full(cols, np.inf)
        came_from = np.full(cols, cols)
        done = np.zeros(cols + 1, bool)
        while owner[here] >= 0:
            done[here] = True
            open_columns = ~done[:cols]
            reduced = cost[owner[here]] - row_price[owner[here]] - col_price[:cols]
            better = open_columns & (reduced < distance)
            distance[better], came_from[better] = reduced[better], here
            following = int(np.argmin(np.where(open_columns, distance, np.inf)))
            step = distance[following]
            row_price[owner[done]] += step
            col_price[done] -= step
            distance[open_columns] -= step
            here = following
        while here != cols:
            owner[here] = owner[came_from[here]]
            here = int(came_from[here])
    return sorted((int(row), col) for col, row in enumerate(owner[:cols].tolist()) if row >= 0)
