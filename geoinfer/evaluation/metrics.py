"""Precision, recall and area agreement of footprints against true ones, in any coordinate system.

What happens at the border of the area of interest is told in `sides`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from geoinfer.errors import ConfigError
from geoinfer.evaluation.sides import Matching, Partners, Sides, check_matching, find_partners, sides_of
from geoinfer.evaluation.unions import BothPortions, portions_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How predicted footprints agree with true ones. A ratio of nothing to nothing is 1 if both sides are empty, else 0."""

    precision: float
    """tp / n_pred."""
    recall: float
    """tp / n_truth."""
    f1: float
    """2 tp / (n_pred + n_truth)."""
    tp: int
    """Pairs."""
    fp: int
    """Predictions without a partner."""
    fn: int
    """True footprints without a partner."""
    n_pred: int
    """tp + fp."""
    n_truth: int
    """tp + fn."""
    ignored_pred: int
    """Predictions at the border that were ignored."""
    ignored_truth: int
    """True footprints at the border that were ignored."""
    mean_iou: float
    """Mean IoU of the pairs; 0 where there are none."""
    pixel_iou: float
    """Area of both unions' intersection over the area of their union."""
    area_precision: float
    """Share of the predicted area that is true."""
    area_recall: float
    """Share of the true area that is predicted."""
    shared_area_m2: float
    """Area of both unions' intersection, square metres."""
    pred_area_m2: float
    """Area of the union of predictions, square metres."""
    truth_area_m2: float
    """Area of the union of true footprints, square metres."""
    aoi_area_m2: float | None
    """Area of the area of interest, square metres; None where none was given."""
    iou: float
    """The threshold."""
    matching: str
    """optimal or spacenet."""

    def to_dict(self) -> dict[str, float | int | str | None]:
        """All fields, ready for JSON."""
        return asdict(self)


def evaluate(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
) -> Evaluation:
    """Compare predicted footprints with true ones.

    Everything is computed in the truth's own coordinate system where its metre is a metre on the ground within 1 %, else in
    a Lambert azimuthal equal-area projection about the middle of the area of interest (or of the truth).

    Args:
        pred: Predicted polygons, with a coordinate system. Missing and empty geometries are no footprints.
        truth: True polygons, with a coordinate system, the same or another.
        aoi: Where the truth is complete. Without it everything counts.
        iou: Least intersection over union of a pair, above 0 and at most 1.
        matching: `optimal` (one to one, greatest total IoU, at or above `iou`) or `spacenet` (greedy in file order,
            strictly above `iou`).

    Raises:
        ConfigError: No coordinate system, a geometry that is no polygon, a threshold outside 0..1, an unknown matching.
        RegionError: The area of interest is empty, or lies outside the bounds of the truth.
    """
    check_matching(iou, matching)  # before any work
    sides = sides_of(pred, truth, aoi)
    return summarise(sides, find_partners(sides, iou, matching), portions_of(sides), iou, matching)


def summarise(sides: Sides, found: Partners, portions: BothPortions, iou: float, matching: Matching) -> Evaluation:
    """The totals of a comparison that was made."""
    tp, n_pred, n_truth = found.numbers
    shared, pred_area, truth_area = (
        float(part.sum()) for part in (portions.pred.shared_m2, portions.pred.union_m2, portions.truth.union_m2)
    )
    return _evaluation(
        tp, n_pred, n_truth,
        ignored=(int((~found.pred.counts).sum()), int((~found.truth.counts).sum())),
        iou_sum=float(found.pairs.iou.sum()),
        areas_m2=(shared, pred_area, truth_area, sides.aoi_area_m2),
        iou=iou, matching=matching,
    )  # fmt: skip


def combine(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of several places together: counts and areas add up, ratios follow from them.

    Raises:
        ConfigError: There are none, or they were made with different settings.
    """
    if not parts or len({(part.iou, part.matching) for part in parts}) > 1:
        raise ConfigError("only evaluations of one threshold and one matching can be combined, and at least one")
    areas = [part.aoi_area_m2 for part in parts if part.aoi_area_m2 is not None]
    return _evaluation(
        sum(part.tp for part in parts), sum(part.n_pred for part in parts), sum(part.n_truth for part in parts),
        ignored=(sum(part.ignored_pred for part in parts), sum(part.ignored_truth for part in parts)),
        iou_sum=sum(part.mean_iou * part.tp for part in parts),
        areas_m2=(
            sum(part.shared_area_m2 for part in parts),
            sum(part.pred_area_m2 for part in parts),
            sum(part.truth_area_m2 for part in parts),
            sum(areas) if len(areas) == len(parts) else None,
        ),
        iou=parts[0].iou, matching=parts[0].matching,
    )  # fmt: skip


def _evaluation(
    tp: int,
    n_pred: int,
    n_truth: int,
    *,
    ignored: tuple[int, int],
    iou_sum: float,
    areas_m2: tuple[float, float, float, float | None],
    iou: float,
    matching: str,
) -> Evaluation:
    """Ratios from counts and areas."""
    shared, pred_area, truth_area, aoi_area = areas_m2
    both_empty, no_area = not n_pred + n_truth, not pred_area + truth_area
    return Evaluation(
        precision=ratio(tp, n_pred, both_empty),
        recall=ratio(tp, n_truth, both_empty),
        f1=ratio(2 * tp, n_pred + n_truth, both_empty),
        tp=tp,
        fp=n_pred - tp,
        fn=n_truth - tp,
        n_pred=n_pred,
        n_truth=n_truth,
        ignored_pred=ignored[0],
        ignored_truth=ignored[1],
        mean_iou=iou_sum / tp if tp else 0.0,
        pixel_iou=ratio(shared, pred_area + truth_area - shared, no_area),
        area_precision=ratio(shared, pred_area, no_area),
        area_recall=ratio(shared, truth_area, no_area),
        shared_area_m2=shared,
        pred_area_m2=pred_area,
        truth_area_m2=truth_area,
        aoi_area_m2=aoi_area,
        iou=iou,
        matching=matching,
    )


def outcomes(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
) -> tuple[list[str], list[str]]:
    """What `evaluate` made of each row.

    Returns:
        For each row of `pred` tp, fp or ignored; for each row of `truth` tp, fn or ignored. Rows outside the area of
        interest and rows without a polygon are ignored.
    """
    check_matching(iou, matching)
    found = find_partners(sides_of(pred, truth, aoi), iou, matching)
    return found.pred.names(len(pred), found.pairs.pred, "fp"), found.truth.names(len(truth), found.pairs.truth, "fn")


def ratio(part: float, whole: float, both_empty: bool) -> float:
    """A share; of nothing, 1 if both sides are empty, else 0."""
    return float(part / whole) if whole else float(both_empty)
