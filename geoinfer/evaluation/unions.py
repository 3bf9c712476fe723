"""What area a side covers, counted once where its footprints overlap, and which portion of it each footprint has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation.matching import Indices, shared_area
from geoinfer.evaluation.outlines import Geometries

if TYPE_CHECKING:
    from geoinfer.evaluation.sides import Sides


@dataclass(frozen=True, slots=True)
class Portions:
    """How the area of one side's union is divided among its footprints."""

    union_m2: NDArray[np.float64]
    """(N,) adds up to the area of the union. Footprints that overlap share theirs in proportion to their areas."""
    shared_m2: NDArray[np.float64]
    """(N,) adds up to the area that both unions share."""


@dataclass(frozen=True, slots=True)
class BothPortions:
    """Of both sides, square metres on the ground."""

    pred: Portions
    truth: Portions


def portions_of(sides: Sides) -> BothPortions:
    """Divide the areas of both unions among the footprints, so that those of any slices add up to the whole."""
    pred, truth = sides.pred, sides.truth
    pred_group, truth_group = overlap_groups(pred.shapes), overlap_groups(truth.shapes)
    pred_parts, truth_parts = _merge(pred.shapes, pred_group), _merge(truth.shapes, truth_group)
    if len(pred_parts) == len(pred.shapes) and len(truth_parts) == len(truth.shapes):  # the usual case: it is known already
        first, second, shared = sides.overlap.pred, sides.overlap.truth, sides.overlap.shared_m2
    else:
        first, second, shared = shared_area(pred_parts, truth_parts)
    return BothPortions(
        _divide(pred.area, pred_group, pred_parts, first, shared, sides.unit_m2),
        _divide(truth.area, truth_group, truth_parts, second, shared, sides.unit_m2),
    )


def _divide(
    area: NDArray[np.float64],
    group: Indices,
    parts: Geometries,
    at: Indices,
    shared: NDArray[np.float64],
    unit_m2: float,
) -> Portions:
    """The areas of groups, and what they share with the other side, in proportion to the areas of their members."""
    if len(parts) == len(area):
        return Portions(area * unit_m2, _sums(at, shared, len(area)) * unit_m2)
    weight = area / _sums(group, area, len(parts))[group]
    union = shapely.area(parts)[group] * weight
    return Portions(union * unit_m2, _sums(at, shared, len(parts))[group] * weight * unit_m2)


def _sums(at: Indices, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.bincount(at, values, count).astype(np.float64)  # integers where there are none
    return sums


def overlap_groups(polygons: Geometries) -> Indices:
    """(N,) number of the group of overlapping polygons that each belongs to, from 0, in the order of first members."""
    first, second, _ = shared_area(polygons, polygons, ordered=True)
    group = np.arange(len(polygons))
    if not len(first):
        return group
    while True:  # the smallest index spreads over each overlapping group
        before = group.copy()
        smaller = np.minimum(group[first], group[second])
        np.minimum.at(group, first, smaller)
        np.minimum.at(group, second, smaller)
        group = group[group]
        if (group == before).all():
            break
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def dissolve(polygons: Geometries) -> Geometries:
    """Polygons of the same union of which no two share area: overlapping ones become one.

    Far cheaper than one union of everything, and partners need only meet their neighbours afterwards.
    """
    return _merge(polygons, overlap_groups(polygons))


def _merge(polygons: Geometries, group: Indices) -> Geometries:
    """One polygon a group."""
    size = np.bincount(group)
    if len(size) == len(polygons):
        return polygons
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(size) - size
    merged: Geometries = polygons[order[starts]]
    for members in np.unique(size[size > 1]).tolist():  # groups of as many members at once
        groups = np.flatnonzero(size == members)
        merged[groups] = shapely.union_all(polygons[order[starts[groups][:, None] + np.arange(members)]], axis=1)
    return merged
