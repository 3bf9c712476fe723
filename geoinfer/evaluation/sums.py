"""What each block of ground adds to each measure: all that intervals and paired differences are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation.blocks import Floats, Indices, block_of, choose_block_m
from geoinfer.evaluation.measures import Terms
from geoinfer.evaluation.objects import Objects

MAX_EMPTY = 100_000
"""Squares looked at for blocks without a footprint: an area of interest of more has enough of the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """The blocks of a comparison, and which one each footprint lies in: that of its centroid."""

    block_m: float
    """Side of a block, metres of the plane."""
    blocks: Indices
    """(B,) identifiers in order: all that hold a footprint or a part of the area of interest."""
    pred: Indices
    """(P,) position in `blocks` of each row of `Objects.pred`."""
    truth: Indices
    """(T,) of each row of `Objects.truth`."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasureSums:
    """What each block adds to each measure that is a ratio of sums."""

    names: tuple[str, ...]
    """(m,) of the measures."""
    blocks: Indices
    """(B,) identifiers of the blocks."""
    sums: NDArray[np.float64]
    """(B, m, 2) numerator and denominator; a fixed denominator is shared out evenly, so that any B blocks have it."""
    less: Floats
    """(m,) taken off each ratio."""

    def on(self, blocks: Indices) -> NDArray[np.float64]:
        """(len(blocks), m, 2) the sums on other blocks, which include its own."""
        spread = np.zeros((len(blocks), *self.sums.shape[1:]))
        spread[np.searchsorted(blocks, self.blocks)] = self.sums
        return spread

    def ratios(self, sums: Floats) -> Floats:
        """(R, m * 2) sums -> (R, m) measures."""
        pairs = sums.reshape(len(sums), -1, 2)
        found: Floats = pairs[..., 0] / pairs[..., 1] - self.less
        return found


def ground_of(found: Objects, block_m: float | None = None) -> Ground:
    """The blocks of a comparison.

    Args:
        found: The comparison.
        block_m: Side of a block, metres; chosen from the true footprints (the predicted ones where there are none) if None.

    Raises:
        ConfigError: The side is no positive number.
    """
    centroids = [shapely.centroid(np.asarray(side.geometry.array, dtype=object)) for side in (found.pred, found.truth)]
    (pred_x, pred_y), (x, y) = ((shapely.get_x(points), shapely.get_y(points)) for points in centroids)
    side = block_m if block_m is not None else choose_block_m(x, y) if len(x) else choose_block_m(pred_x, pred_y)
    pred, truth = block_of(pred_x, pred_y, side), block_of(x, y, side)
    blocks = np.unique(np.concatenate([pred, truth, _blocks_within(found, side)]))
    return Ground(side, blocks, np.searchsorted(blocks, pred), np.searchsorted(blocks, truth))


def _blocks_within(found: Objects, side: float) -> Indices:
    """Blocks that hold a part of the area of interest: where nothing stands and nothing was found is ground as well."""
    if found.aoi is None:
        return np.zeros(0, np.int64)
    west, south, east, north = np.asarray(found.aoi.bounds) // side
    if (east - west + 1) * (north - south + 1) > MAX_EMPTY:
        return np.zeros(0, np.int64)
    x, y = (axis.ravel() * side for axis in np.meshgrid(np.arange(west, east + 1), np.arange(south, north + 1)))
    shapely.prepare(found.aoi)
    inside = shapely.intersects(found.aoi, shapely.box(x, y, x + side, y + side))
    return block_of(x[inside] + side / 2, y[inside] + side / 2, side)


def sum_measures(ground: Ground, by_name: Mapping[str, Terms]) -> MeasureSums:
    """What each block adds to each measure; pairs count where their true footprint lies.

    Args:
        ground: Of the comparison.
        by_name: From `measures.terms`.
    """
    at = np.concatenate([ground.pred, ground.truth])
    count = len(ground.blocks)
    sums = np.zeros((count, len(by_name), 2))
    for number, one in enumerate(by_name.values()):
        sums[:, number, 0] = np.bincount(at, weights=one.numerator, minlength=count)
        if isinstance(one.denominator, np.ndarray):
            sums[:, number, 1] = np.bincount(at, weights=one.denominator, minlength=count)
        else:
            sums[:, number, 1] = one.denominator / max(count, 1)
    return MeasureSums(tuple(by_name), ground.blocks, sums, np.array([one.less for one in by_name.values()]))
