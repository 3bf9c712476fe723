"""How good each slice is: counts that add up to the whole, intervals from blocks of ground, and gaps to the whole.

Everything is counted in events: a pair, a prediction without a partner, a true footprint without one. An event belongs to
exactly one slice and to exactly one block: a pair, and a miss, to those of the true footprint, a false one to its own. So
tp, fp and fn of the slices of one kind add up to those of the whole, whatever the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation.blocks import Floats, Indices, Intervals, bootstrap, flatten, sum_groups
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.slicing import NONE, Labels, Side, SliceSpec, label
from geoinfer.evaluation.sums import Ground

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

FIGURES = ("precision", "recall", "f1")
WHOLE = ("whole", "all")
"""Slice and value of the first row of every table."""
MIN_COUNT = 30
"""A slice with fewer footprints on either side is marked and not ranked."""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """What happened, once each: E = tp + fp + fn. Footprints that are ignored take no part."""

    pred: Indices
    """(E,) position in `Objects.pred`; -1 for a miss."""
    truth: Indices
    """(E,) position in `Objects.truth`; -1 for a false one."""
    iou: Floats
    """(E,) of pairs, else 0."""
    block: Indices
    """(E,) position of the block in `Ground.blocks`."""

    @property
    def kinds(self) -> NDArray[np.float64]:
        """(E, 3) 1 where the event is a tp, fp, fn."""
        has_pred, has_truth = self.pred >= 0, self.truth >= 0
        return np.stack([has_pred & has_truth, ~has_truth, ~has_pred], axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class SliceCounts:
    """Counts of the whole (row 0) and of each slice, by block."""

    rows: tuple[tuple[str, str], ...]
    """(G,) slice and value."""
    judges: NDArray[np.bool_]
    """(G, 3) whether precision, recall and f1 mean something: not recall by confidence, which misses do not have."""
    blocks: Indices
    """(B,) identifiers of the blocks."""
    sums: NDArray[np.float64]
    """(B, G, 3) tp, fp, fn."""
    iou_sum: Floats
    """(G,) over pairs."""

    @property
    def totals(self) -> NDArray[np.int64]:
        """(G, 3) tp, fp, fn."""
        totals: NDArray[np.int64] = np.rint(self.sums.sum(axis=0)).astype(np.int64)
        return totals

    def on(self, blocks: Indices) -> NDArray[np.float64]:
        """(len(blocks), G, 3) the sums on other blocks, which include its own; 0 where it has no event."""
        spread = np.zeros((len(blocks), *self.sums.shape[1:]))
        spread[np.searchsorted(blocks, self.blocks)] = self.sums
        return spread


def events_of(objects: Objects, ground: Ground) -> Events:
    """The events of a comparison on its ground."""
    pairs = objects.pairs
    false = np.flatnonzero(objects.pred["outcome"].to_numpy() == "fp")
    missed = np.flatnonzero(objects.truth["outcome"].to_numpy() == "fn")
    return Events(
        np.concatenate([pairs.pred, false, np.full(len(missed), -1)]).astype(np.int64),
        np.concatenate([pairs.truth, np.full(len(false), -1), missed]).astype(np.int64),
        np.concatenate([pairs.iou, np.zeros(len(false) + len(missed))]),
        np.concatenate([ground.truth[pairs.truth], ground.pred[false], ground.truth[missed]]),
    )


def count_slices(
    objects: Objects,
    ground: Ground,
    specs: Sequence[SliceSpec],
    *,
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    water: GeoDataFrame | GeoSeries | None = None,
) -> SliceCounts:
    """Divide a comparison into slices.

    Args:
        objects: The comparison.
        ground: Its blocks.
        specs: How; see `slicing`.
        pred: The tables that were compared, for their columns.
        truth: The same.
        water: Polygons, for the slices `water`.

    Raises:
        ConfigError: What `slicing.label` raises.
        SourceError: What `slicing.label` raises.
    """
    events = events_of(objects, ground)
    kinds, at, blocks = events.kinds, events.block, ground.blocks
    sides = sides_of_objects(objects, pred, truth)
    rows, judges, sums, iou_sums = [WHOLE], [(True, True, True)], [sum_groups(at, len(blocks), kinds)], [events.iou.sum()]
    for spec in specs:
        labels = label(spec, *sides, plane=objects.plane, water=water)
        names, codes = _slices_of(labels, events)
        has = labels.pred is not None, labels.truth is not None
        inside = sum_groups(at * len(names) + codes, len(blocks) * len(names), kinds).reshape(len(blocks), len(names), 3)
        shared = np.bincount(codes, weights=events.iou, minlength=len(names))
        for number, name in enumerate(names):
            rows.append((spec.name, name))
            judges.append((has[0], has[1], all(has)))
            sums.append(inside[:, number])
            iou_sums.append(shared[number])
    return SliceCounts(tuple(rows), np.array(judges), blocks, np.stack(sums, axis=1), np.array(iou_sums))


def sides_of_objects(objects: Objects, pred: GeoDataFrame | GeoSeries, truth: GeoDataFrame | GeoSeries) -> tuple[Side, Side]:
    """What slices may look at of both sides."""
    found = []
    for compared, table in ((objects.pred, pred), (objects.truth, truth)):
        columns = table if isinstance(table, pd.DataFrame) else pd.DataFrame(index=range(len(table)))
        shapes = np.asarray(compared.geometry.array, dtype=object)
        found.append(
            Side(
                shapes,
                shapely.centroid(shapes),
                columns.iloc[compared["row"].to_numpy()],
                compared["area_m2"].to_numpy(),
                compared["confidence"].to_numpy() if "confidence" in compared else None,
            )
        )
    return found[0], found[1]


def _slices_of(labels: Labels, events: Events) -> tuple[tuple[str, ...], Indices]:
    """Names of the slices that may occur, and (E,) the one of each event.

    The true footprint decides where true footprints carry the value, for pairs too.
    """
    names = labels.values if NONE in labels.values else (*labels.values, NONE)
    codes = np.full(len(events.pred), len(names) - 1)
    for at, side in ((events.pred, labels.pred), (events.truth, labels.truth)):
        if side is not None:
            codes[at >= 0] = side[at[at >= 0]]
    if NONE not in labels.values and not (codes == len(names) - 1).any():
        names = labels.values
    return names, codes


def figures(counts: NDArray[np.float64]) -> Floats:
    """(..., 3) tp, fp, fn -> (..., 3) precision, recall, f1; NaN where there is nothing to divide by."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.stack([tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)], axis=-1)
    return found


def resting_on(sums: NDArray[np.float64]) -> Indices:
    """(B, G, 3) sums -> (G, 3) blocks that precision, recall and f1 of each row rest on."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.stack([((tp + fp) > 0).sum(0), ((tp + fn) > 0).sum(0), ((tp + fp + fn) > 0).sum(0)], axis=-1)


def intervals_of(counts: SliceCounts, *, gaps: bool = False, replicates: int = 1000, seed: int = 0) -> Intervals:
    """Precision, recall and f1 of each row (G * 3 figures), or with `gaps` how far they are from those of the whole.

    A gap is drawn with its whole: the same blocks, the same weights.
    """
    groups = len(counts.rows)

    def statistic(sums: Floats) -> Floats:
        found = figures(sums.reshape(len(sums), groups, 3))  # (R, G, 3)
        return (found - found[:, :1] if gaps else found).reshape(len(sums), -1)

    return bootstrap(
        flatten(counts.sums), statistic, replicates=replicates, seed=seed, blocks=resting_on(counts.sums).ravel()
    )


def slice_table(counts: SliceCounts, *, replicates: int = 1000, seed: int = 0, min_count: int = MIN_COUNT) -> pd.DataFrame:
    """Counts, precision, recall and F1 of the whole and of each slice, with 95 % intervals.

    Args:
        counts: From `count_slices`.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
        min_count: Footprints a side below which a slice is small.

    Returns:
        A row a slice, the whole first: `slice`, `value`, `tp`, `fp`, `fn`, `n_pred`, `n_truth`, `share_truth`; for each of
        `FIGURES` itself, `_low` and `_high` (NaN where there is none; `note` says why); `mean_iou` of the pairs, `blocks`,
        `is_small`, `rank` (1 the worst of its kind; none for small ones and for `NONE`), `note`.
    """
    frame = head(counts, min_count)
    found = intervals_of(counts, replicates=replicates, seed=seed)
    fill(frame, counts, found, "")
    with np.errstate(invalid="ignore"):
        frame["mean_iou"] = counts.iou_sum / np.where(frame["tp"] > 0, frame["tp"], np.nan)
    frame["blocks"] = ((counts.sums.sum(axis=2)) > 0).sum(axis=0)
    frame["rank"] = rank(frame, "")
    frame["note"] = _notes(counts, found, frame)
    return frame


def head(counts: SliceCounts, min_count: int) -> pd.DataFrame:
    """The columns that every table of slices begins with: names, counts, the share of the true ones, which are small."""
    tp, fp, fn = counts.totals.T
    frame = pd.DataFrame(counts.rows, columns=["slice", "value"])
    frame["tp"], frame["fp"], frame["fn"] = tp, fp, fn
    frame["n_pred"], frame["n_truth"] = tp + fp, tp + fn
    frame["share_truth"] = frame["n_truth"] / (frame["n_truth"].iloc[0] or np.nan)
    n_judged = np.stack([tp + fp, tp + fn], axis=1)
    frame["is_small"] = np.any((n_judged < min_count) & counts.judges[:, :2], axis=1).tolist()
    return frame


def fill(frame: pd.DataFrame, counts: SliceCounts, found: Intervals, tail: str) -> None:
    """Add each figure with its interval, where it means something."""
    for number, figure in enumerate(FIGURES):
        for end, values in (("", found.value), ("_low", found.low), ("_high", found.high)):
            column = values.reshape(-1, 3)[:, number]
            frame[f"{figure}{tail}{end}"] = np.where(counts.judges[:, number], column, np.nan)


def rank(frame: pd.DataFrame, tail: str) -> pd.Series:
    """1 for the worst of each kind: by F1, where that means nothing by the one figure that does."""
    score = frame[f"f1{tail}"].fillna(frame[f"recall{tail}"]).fillna(frame[f"precision{tail}"])
    ranked = score.where(~frame["is_small"] & (frame["value"] != NONE) & (frame["slice"] != WHOLE[0]))
    return ranked.groupby(frame["slice"]).rank(method="min").astype("Int64")


def _notes(counts: SliceCounts, found: Intervals, frame: pd.DataFrame) -> list[str]:
    notes = []
    for at, is_small in enumerate(frame["is_small"].tolist()):
        parts = ["too few to rank"] if is_small else []
        for number, (figure, side) in enumerate((("precision", "predictions"), ("recall", "true footprints"))):
            if not counts.judges[at, number]:
                parts.append(f"no {figure}: {side} do not carry this value")
            elif not np.isfinite(found.value[at * 3 + number]):
                parts.append(f"no {figure}: there are no {side}")
        missing = found.note(at * 3 + 2)
        if missing is not None and missing.startswith("no interval"):
            parts.append(missing)
        notes.append("; ".join(parts))
    return notes
