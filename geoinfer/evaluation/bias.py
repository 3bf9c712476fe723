"""What a model is worse at than on the whole, and whether it saw too little of that when it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from geoinfer.evaluation.sides import plane_of
from geoinfer.evaluation.slices import FIGURES, MIN_COUNT, SliceCounts, fill, head, intervals_of, rank
from geoinfer.evaluation.slicing import Side, SliceSpec, label

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

UNDER = 0.5
"""A slice is under-represented when its share of the training footprints is less than this part of its share here."""


def bias_table(
    counts: SliceCounts,
    *,
    training: Mapping[str, Mapping[str, float]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    min_count: int = MIN_COUNT,
) -> pd.DataFrame:
    """How far each slice is from the whole, and whether the training footprints had enough of it.

    Args:
        counts: From `count_slices`.
        training: Slice -> value -> share of the training footprints; from `training_shares` or a record of a snapshot.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
        min_count: Footprints a side below which a slice is small.

    Returns:
        A row a slice, without the whole: `slice`, `value`, counts as in `slice_table`; for each of `FIGURES` `_gap` (slice
        minus whole), `_gap_low` and `_gap_high` (95 %, each row on its own: of twenty slices that do not differ one will
        seem to); `share_training` and `representation` (that over `share_truth`; NaN where unknown); `is_small`, `rank`
        (1 the worst), `finding` in words.
    """
    frame = head(counts, min_count)
    found = intervals_of(counts, gaps=True, replicates=replicates, seed=seed)
    fill(frame, counts, found, "_gap")
    shares = [_share(training or {}, *row) for row in counts.rows]
    frame["share_training"] = shares
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["representation"] = frame["share_training"] / frame["share_truth"].where(frame["share_truth"] > 0)
    frame["rank"] = rank(frame, "_gap")
    frame["finding"] = [_finding(dict(zip(frame.columns, row, strict=True))) for row in frame.itertuples(index=False)]
    return frame.iloc[1:].reset_index(drop=True)


def training_shares(
    training: GeoDataFrame | GeoSeries, specs: Sequence[SliceSpec], *, water: GeoDataFrame | GeoSeries | None = None
) -> dict[str, dict[str, float]]:
    """The share of the training footprints in each slice; kinds that they cannot be sliced by are left out.

    Args:
        training: The true footprints that a model was trained with.
        specs: How to slice.
        water: Polygons, for the slices `water`; they must cover the training places too.
    """
    plane, unit_m2 = plane_of(training, training.crs)
    shapes = np.asarray(training.geometry.to_crs(plane).array, dtype=object)
    real = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    table = training if isinstance(training, pd.DataFrame) else pd.DataFrame(index=range(len(training)))
    facts = Side(shapes[real], shapely.centroid(shapes[real]), table[real], shapely.area(shapes[real]) * unit_m2, None)
    nobody = Side(shapes[:0], shapes[:0], pd.DataFrame(), np.zeros(0), None)
    shares: dict[str, dict[str, float]] = {}
    for spec in specs:
        if spec.kind == "confidence" or (spec.kind == "column" and spec.column not in table):
            continue
        labels = label(spec, nobody, facts, plane=plane, water=water)
        assert labels.truth is not None
        counted = np.bincount(labels.truth, minlength=len(labels.values))
        shares[spec.name] = {
            name: float(count / max(1, counted.sum())) for name, count in zip(labels.values, counted, strict=True)
        }
    return shares


def _share(training: Mapping[str, Mapping[str, float]], kind: str, value: str) -> float:
    """Of a kind that is known, a value that is not named has a share of 0."""
    known = training.get(kind)
    return known.get(value, 0.0) if known else float("nan")


def _finding(row: Mapping[str, Any]) -> str:
    """What a row of the bias table says, in words."""
    if row["is_small"]:
        return "too few to judge"
    worse = [figure for figure in FIGURES[:2] if row[f"{figure}_gap_high"] < 0]
    parts = [f"{' and '.join(worse)} below the whole"] if worse else []
    if row["representation"] < UNDER:
        cause = ", a likely cause" if "recall" in worse else ""
        parts.append(
            f"under-represented in training ({row['share_training']:.1%} there, {row['share_truth']:.1%} here){cause}"
        )
    return "; ".join(parts)
