"""Both sides after matching, one row a footprint: what every metric, slice, curve and picture is computed from.

A row is a footprint that has area inside the area of interest; rows of the input that have none, or no polygon, are not
here. Why a footprint has no partner is told by where it lies, with over- and under-segmentation as of Hoover et al. 1996,
"An Experimental Comparison of Range Image Segmentation Algorithms", IEEE PAMI 18(7), with a tolerance of 0.5: a true
footprint is split when two or more predictions each lie by more than half in it and together cover more than half of it; a
prediction is a merge when that holds the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError
from geoinfer.evaluation.matching import ROUNDING, Indices, Pairs
from geoinfer.evaluation.metrics import Evaluation, summarise
from geoinfer.evaluation.sides import Matching, Partners, Side, Sides, check_matching, find_partners, sides_of
from geoinfer.evaluation.unions import Portions, portions_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

MAJORITY = 0.5
"""A footprint lies in another when more than this share of it does: Hoover's tolerance, and the least they allow."""

Reason = str
"""Why a footprint has no partner, the first that holds; empty for one that has one.

border: less than half of it is inside the area of interest (outcome `ignored`). alone: it shares area with nothing.
duplicate: it reaches the threshold with a footprint that has another partner. merged: the prediction is a merge, or the
true footprint lies in one. split: the true footprint is split, or the prediction lies in one that is. low_iou: none of
these.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Both sides after matching, in one plane. Rows are in the order of the input."""

    pred: GeoDataFrame
    """Predicted footprints: `row` (position in the input), `geometry` (plane, clipped to the area of interest), `outcome`
    (tp, fp or ignored), `reason` (see `Reason`), `iou` (of the pair; 0 without one), `best_iou` (with any true footprint),
    `partner` (row in truth, -1 without one), `area_m2` (inside), `is_border` (less than half of it is inside; it counts only
    with a partner), `is_cut` (the border cut its outline), `union_m2` and `shared_m2` (its portions of the side's union, and
    of what that shares with the other side's: they add up to `pred_area_m2` and `shared_area_m2` of the evaluation),
    `is_merge`, `confidence` (NaN where unknown)."""
    truth: GeoDataFrame
    """True footprints: the same columns without `confidence`; outcome tp, fn or ignored; `is_split` for `is_merge`."""
    overlap: Pairs
    """All pairs that share area; indices are positions in the two tables."""
    pairs: Pairs
    """Those that were matched; the same indices."""
    plane: CRS
    """Coordinate system of the geometries."""
    unit_m2: float
    """Square metres on the ground of a unit of area in the plane; a metre of the plane is its square root long."""
    aoi: BaseGeometry | None
    """The area of interest in the plane; None where none was given."""
    evaluation: Evaluation
    """The totals."""
    notes: tuple[str, ...]
    """What was repaired or left out, in words."""


def objects(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
    confidence: str = "confidence",
) -> Objects:
    """Match both sides and say of each footprint what became of it, and why.

    Args:
        pred: Predicted polygons, with a coordinate system.
        truth: True polygons, with a coordinate system, the same or another.
        aoi: Where the truth is complete.
        iou: Threshold, as for `evaluate`.
        matching: As for `evaluate`.
        confidence: Column of `pred` with confidences; where it is missing they are unknown.

    Raises:
        ConfigError: What `evaluate` raises, or confidences that are no numbers.
        RegionError: What `evaluate` raises.
    """
    check_matching(iou, matching)  # before any work
    sides = sides_of(pred, truth, aoi)
    found = find_partners(sides, iou, matching)
    portions = portions_of(sides)
    overlap, pairs = sides.overlap, found.pairs
    guesses = _table(found.pred, pairs.pred, overlap.pred, found, sides, portions.pred, ~sides.pred.counts, "fp")
    facts = _table(found.truth, pairs.truth, overlap.truth, found, sides, portions.truth, ~sides.truth.counts, "fn")
    guesses["partner"] = _partners(len(guesses), pairs.pred, facts["row"].to_numpy()[pairs.truth])
    facts["partner"] = _partners(len(facts), pairs.truth, guesses["row"].to_numpy()[pairs.pred])
    guesses["confidence"] = _confidence(pred, confidence)[found.pred.rows]
    _explain(guesses, facts, found, overlap, iou)
    notes = (*sides.pred.notes("pred"), *sides.truth.notes("truth"))
    return Objects(
        pred=guesses[[*COLUMNS, "is_merge", "confidence"]],
        truth=facts[[*COLUMNS, "is_split"]],
        overlap=overlap,
        pairs=pairs,
        plane=sides.plane,
        unit_m2=sides.unit_m2,
        aoi=sides.aoi,
        evaluation=summarise(sides, found, portions, iou, matching),
        notes=notes,
    )


COLUMNS = (
    "row", "geometry", "outcome", "reason", "iou", "best_iou", "partner", "area_m2", "is_border", "is_cut", "union_m2",
    "shared_m2",
)  # fmt: skip
"""Of both tables, in order."""


def _table(
    side: Side,
    partnered: Indices,
    touched: Indices,
    found: Partners,
    sides: Sides,
    portion: Portions,
    border: NDArray[np.bool_],
    alone: str,
) -> GeoDataFrame:
    """What can be said of a side without the other's table."""
    iou, best = np.zeros(len(side.shapes)), np.zeros(len(side.shapes))
    iou[partnered] = found.pairs.iou
    np.maximum.at(best, touched, sides.overlap.iou)
    outcome = np.where(side.counts, alone, "ignored").astype(object)
    outcome[partnered] = "tp"
    columns = {
        "row": side.rows,
        "outcome": outcome,
        "iou": iou,
        "best_iou": best,
        "area_m2": side.area * sides.unit_m2,
        "is_border": border,
        "is_cut": side.cut,
        "union_m2": portion.union_m2,
        "shared_m2": portion.shared_m2,
    }
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries(side.shapes, crs=sides.plane), crs=sides.plane)


def _partners(count: int, at: Indices, rows: Indices) -> Indices:
    partner = np.full(count, -1, np.int64)
    partner[at] = rows
    return partner


def _confidence(pred: GeoDataFrame | GeoSeries, column: str) -> NDArray[np.float64]:
    """(rows,) float64, NaN where unknown.

    Raises:
        ConfigError: The column holds something that is no number.
    """
    if not isinstance(pred, pd.DataFrame) or column not in pred:
        return np.full(len(pred), np.nan)
    try:
        values = np.asarray(pd.to_numeric(pred[column]), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"column {column!r} of pred holds no numbers: {error}; name another with confidence=") from error
    return np.where(np.isfinite(values), values, np.nan)


def _explain(guesses: GeoDataFrame, facts: GeoDataFrame, found: Partners, overlap: Pairs, iou: float) -> None:
    """Add `is_merge`, `is_split` and `reason`."""
    shared = overlap.shared_m2  # both in units of the plane
    guess_in = shared > MAJORITY * found.pred.area[overlap.pred]
    fact_in = shared > MAJORITY * found.truth.area[overlap.truth]
    guesses["is_merge"] = _holds_several(overlap.pred[fact_in], shared[fact_in], found.pred.area)
    facts["is_split"] = _holds_several(overlap.truth[guess_in], shared[guess_in], found.truth.area)
    reached = overlap.iou >= iou * (1 - ROUNDING)
    in_split = guess_in & facts["is_split"].to_numpy()[overlap.truth]
    in_merge = fact_in & guesses["is_merge"].to_numpy()[overlap.pred]
    for table, at, merged, split in (
        (guesses, overlap.pred, guesses["is_merge"].to_numpy(), _any(len(guesses), overlap.pred[in_split])),
        (facts, overlap.truth, _any(len(facts), overlap.truth[in_merge]), facts["is_split"].to_numpy()),
    ):
        outcome = table["outcome"].to_numpy()
        conditions = {
            "": outcome == "tp",
            "border": outcome == "ignored",
            "alone": table["best_iou"].to_numpy() == 0,
            "duplicate": _any(len(table), at[reached]),
            "merged": merged,
            "split": split,
        }
        table["reason"] = np.select([*conditions.values()], [*conditions], "low_iou").astype(object)


def _holds_several(whole: Indices, shared: NDArray[np.float64], area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Hoover's rule for each whole, of parts that lie in it: they are several, and together cover more than half of it.

    His parts are disjoint, so that one at most covers more than half of the whole. Where several do they are the same thing
    found again, and count once: a duplicate does not split.
    """
    covers = shared > MAJORITY * area[whole]
    parts = np.bincount(whole[~covers], minlength=len(area)) + (np.bincount(whole[covers], minlength=len(area)) > 0)
    covered = np.bincount(whole, weights=shared, minlength=len(area))
    result: NDArray[np.bool_] = (parts > 1) & (covered > MAJORITY * area)
    return result


def _any(count: int, at: Indices) -> NDArray[np.bool_]:
    flags = np.zeros(count, np.bool_)
    flags[at] = True
    return flags
