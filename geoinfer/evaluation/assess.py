"""The one assessment that the notebook, the command line, the gate and monitoring all use: totals, measures with intervals,
curves, slices and biases of one comparison, and paired differences of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geoinfer.evaluation.bias import bias_table, training_shares
from geoinfer.evaluation.blocks import Intervals, bootstrap, flatten
from geoinfer.evaluation.differences import Difference, compare_models, compare_slices, number
from geoinfer.evaluation.measures import Measure, measures, terms
from geoinfer.evaluation.metrics import Evaluation
from geoinfer.evaluation.objects import Objects, objects
from geoinfer.evaluation.rank_sums import NAMES, RankSums, average_precisions, sum_ranks
from geoinfer.evaluation.ranking import f1_by_threshold, precision_recall_curve
from geoinfer.evaluation.reliability import Reliability, reliability
from geoinfer.evaluation.sides import Matching
from geoinfer.evaluation.slices import FIGURES, MIN_COUNT, SliceCounts, count_slices, slice_table
from geoinfer.evaluation.slicing import SliceSpec, parse_slices
from geoinfer.evaluation.sums import MeasureSums, ground_of, sum_measures

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

__all__ = ["Assessment", "Curves", "Difference", "assess", "compare_models", "compare_slices"]

POINTS = 1000
"""Points of a curve that JSON has at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What the confidences are worth; without confidences each is empty, and `note` says so."""

    precision_recall: pd.DataFrame
    """`confidence` (falling), `precision`, `recall`."""
    f1_by_threshold: pd.DataFrame
    """`threshold` of the confidence, `precision`, `recall`, `f1`, `tp`, `n_pred`, `n_truth`."""
    reliability: Reliability
    """Confidence of the predictions that count against the share of them that has a partner."""
    note: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """Everything that is known of how footprints agree with true ones."""

    evaluation: Evaluation
    """The totals: those of `evaluate`, exactly."""
    measures: Mapping[str, Measure]
    """By name; with 95 % intervals where a measure is a ratio of sums over footprints."""
    curves: Curves
    slices: pd.DataFrame
    """See `slices.slice_table`; the whole alone where no slices were asked for."""
    bias: pd.DataFrame
    """See `bias.bias_table`."""
    objects: Objects
    """Both sides after matching, a row a footprint."""
    counts: SliceCounts
    """What the slices are made of, by block of ground."""
    sums: MeasureSums
    """What the intervals are made of, by block of ground."""
    ranks: RankSums | None
    """What the intervals of average precision are made of; None where that has no value."""
    settings: Mapping[str, Any]
    """How it was computed: iou, matching, block_m, blocks, replicates, seed, min_count, slices."""

    @property
    def precision(self) -> float:
        """Tp / n_pred."""
        return self.evaluation.precision

    @property
    def recall(self) -> float:
        """Tp / n_truth."""
        return self.evaluation.recall

    @property
    def f1(self) -> float:
        """2 tp / (n_pred + n_truth)."""
        return self.evaluation.f1

    def to_json(self) -> dict[str, Any]:
        """Everything but the footprints, ready for JSON: the totals at the top level, null where there is no number."""
        return {
            **self.evaluation.to_dict(),
            "measures": {name: asdict(one) for name, one in self.measures.items()},
            "slices": _records(self.slices),
            "bias": _records(self.bias),
            "curves": {
                "precision_recall": _records(_thin(self.curves.precision_recall)),
                "f1_by_threshold": _records(self.curves.f1_by_threshold),
                "reliability": self.curves.reliability.to_dict(),
                "note": self.curves.note,
            },
            "settings": dict(self.settings),
            "notes": list(self.objects.notes),
        }


def assess(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
    slices: Sequence[str | SliceSpec] = (),
    water: GeoDataFrame | GeoSeries | None = None,
    training: GeoDataFrame | GeoSeries | Mapping[str, Mapping[str, float]] | None = None,
    confidence: str = "confidence",
    block_m: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
    min_count: int = MIN_COUNT,
) -> Assessment:
    """Compare predicted footprints with true ones, in every way that is known here.

    Args:
        pred: Predicted polygons, with a coordinate system.
        truth: True polygons, with a coordinate system, the same or another.
        aoi: Where the truth is complete. Without it everything counts.
        iou: Least intersection over union of a pair.
        matching: As for `evaluate`.
        slices: Ways to divide: `size`, `density`, `confidence`, `water`, a column, or a file; see `slicing.parse_slice`.
        water: Polygons of water: for false positives in it, and for the slices `water`.
        training: The true footprints that the model was trained with, or their shares by slice and value.
        confidence: Column of `pred` with confidences.
        block_m: Side of the blocks of ground that intervals are drawn from, metres; chosen from the truth unless given.
        replicates: Of the bootstrap.
        seed: Of the bootstrap; the same one gives the same intervals.
        min_count: Footprints a side below which a slice is marked as small.

    Raises:
        ConfigError: What `evaluate` raises, a slice that cannot be made, fewer than 100 replicates.
        RegionError: What `evaluate` raises.
        SourceError: A file to slice by that cannot be read.
    """
    specs = parse_slices(slices)  # before any work
    found = objects(pred, truth, aoi=aoi, iou=iou, matching=matching, confidence=confidence)
    ground = ground_of(found, block_m)
    counts = count_slices(found, ground, specs, pred=pred, truth=truth, water=water)
    known = terms(found, water)
    sums, ranks = sum_measures(ground, known), sum_ranks(found, ground)
    shares = training if training is None or isinstance(training, Mapping) else training_shares(training, specs, water=water)
    drawn: dict[str, int] = {"replicates": replicates, "seed": seed}
    return Assessment(
        evaluation=found.evaluation,
        measures=_with_intervals(measures(found, water, known=known), sums, ranks, **drawn),
        curves=_curves(found),
        slices=_as_evaluated(slice_table(counts, min_count=min_count, **drawn), found.evaluation),
        bias=bias_table(counts, training=shares, min_count=min_count, **drawn),
        objects=found,
        counts=counts,
        sums=sums,
        ranks=ranks,
        settings={
            "iou": iou,
            "matching": matching,
            "block_m": ground.block_m,
            "blocks": len(ground.blocks),
            **drawn,
            "min_count": min_count,
            "slices": [spec.name for spec in specs],
        },
    )


def _with_intervals(
    plain: Mapping[str, Measure], sums: MeasureSums, ranks: RankSums | None, *, replicates: int, seed: int
) -> dict[str, Measure]:
    rests = (sums.sums[..., 1] != 0).sum(axis=0)
    found = bootstrap(flatten(sums.sums), sums.ratios, replicates=replicates, seed=seed, blocks=rests)
    measured = {**plain, **{name: _with_interval(plain[name], found, at) for at, name in enumerate(sums.names)}}
    if ranks is not None:
        found = bootstrap(ranks.sums, average_precisions, replicates=replicates, seed=seed)
        measured |= {name: _with_interval(plain[name], found, at) for at, name in enumerate(NAMES)}
    return measured


def _with_interval(one: Measure, found: Intervals, at: int) -> Measure:
    """The measure with its interval, moved by what the bootstrap's value is off (0 but for average precision)."""
    if one.value is None:
        return one
    low, high = found.around(one.value, at)
    note = "; ".join(text for text in (one.note, found.note(at)) if text) or None
    return replace(one, low=number(low), high=number(high), note=note)


def _curves(found: Objects) -> Curves:
    """Curves of the confidence; ignored predictions take no part in the reliability."""
    counts = (found.pred["outcome"] != "ignored").to_numpy()
    said = found.pred["confidence"].to_numpy(np.float64)[counts]
    outside = np.isfinite(said) & ((said < 0) | (said > 1))
    came = (found.pred["outcome"] == "tp").to_numpy()[counts]
    note: str | None = None
    if outside.any():
        note = f"no reliability: confidences such as {said[outside][0]:g} are no probabilities, 0..1"
        said = np.full(len(said), np.nan)
    elif not np.isfinite(said).any():
        note = "no curves: no prediction has a confidence"
    return Curves(precision_recall_curve(found, found.evaluation.iou), f1_by_threshold(found), reliability(said, came), note)


def _as_evaluated(table: pd.DataFrame, whole: Evaluation) -> pd.DataFrame:
    """The whole's figures as `evaluate` has them: where there is nothing to divide by, 1 if both sides are empty, else 0."""
    table.loc[0, [*FIGURES]] = [getattr(whole, figure) for figure in FIGURES]
    return table


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` rows, the first and the last among them."""
    return curve if len(curve) <= POINTS else curve.iloc[np.linspace(0, len(curve) - 1, POINTS).astype(np.int64)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: null for NaN and for no rank."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in plain.to_numpy().tolist()]
