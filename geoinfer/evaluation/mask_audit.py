"""What a mask layer costs and gains against true footprints, at several thresholds and buffers.

A layer that is right everywhere removes false footprints only. Shorelines, piers and houseboats, and layers that are 100 m
off, make it remove true ones as well; this says how many, before anyone ships the result. The covered share of each
footprint is computed once a buffer, and the footprints that stay are matched anew at each threshold: where one is removed,
another may take its partner, so that the numbers are those of `evaluate` after the removal, exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geoinfer.errors import ConfigError, MaskWarning, OutputError, SourceError
from geoinfer.evaluation.metrics import ratio
from geoinfer.evaluation.sides import Partners, Sides, check_matching, find_partners, sides_of
from geoinfer.masks.apply import mask_footprints
from geoinfer.masks.layer import MaskLayer, open_masks

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

MAX_COVERS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Thresholds of the covered share that are tried where nothing else is said."""
BUFFERS = (-20.0, 0.0, 20.0)
"""Buffers that are tried, metres: a shoreline may be drawn a street too far out or in."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One layer with one buffer and one threshold."""

    layer: str
    action: str
    """`keep`, or `drop` for every other action: what would be lost if the layer decided."""
    buffer_m: float
    max_cover: float
    own: bool
    """These are the settings that the layer came with."""
    tested: int
    """Footprints with an outline."""
    removed: int
    """removed_true + removed_false + those at or beyond the border of the area of interest, which are not judged."""
    removed_true: int
    """Removed footprints that had a partner."""
    removed_false: int
    """Removed footprints that had none."""
    tp_before: int
    fp_before: int
    fn_before: int
    tp: int
    """With the layer, as of an `Evaluation`; tp_before - tp is at most `removed_true`: a partner may find another."""
    fp: int
    fn: int


KEYS = ("layer", "action", "buffer_m", "max_cover", "own")
COUNTS = tuple(name for name in AuditRow.__dataclass_fields__ if name not in KEYS)


def audit_masks(
    pred: GeoDataFrame,
    truth: GeoDataFrame | GeoSeries,
    masks: Iterable[MaskLayer | str | Mapping[str, object]],
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    max_covers: Sequence[float] = MAX_COVERS,
    buffers: Sequence[float] = BUFFERS,
    iou: float = 0.5,
) -> pd.DataFrame:
    """Recall cost and precision gain of each layer, alone, at several thresholds and buffers.

    Args:
        pred: Predicted footprints before any layer acted; see `unmasked` for those of a run.
        truth: True footprints.
        masks: Layers. Their own `max_cover` and buffer are tried as well, and are `own` in the result.
        aoi: Where the truth is complete.
        max_covers: Thresholds of the covered share, 0..1.
        buffers: Metres; instead of the layer's own.
        iou: Least intersection over union of a pair.

    Returns:
        One row a layer, buffer and threshold, in that order: the columns of `AuditRow`, and precision, recall and f1
        before (`precision_before`...) and with the layer, `precision_gain`, `recall_cost` and `f1_gain`.

    Raises:
        ConfigError: A threshold outside 0..1, a buffer that is no number, no layer, or what `evaluate` raises.
        SourceError: A layer that cannot be read.
    """
    layers = open_masks(masks)
    if not layers:
        raise ConfigError("no layer given: name one or more, as --mask water.gpkg")
    _check(max_covers, buffers)
    check_matching(iou, "optimal")
    sides = sides_of(pred, truth, aoi)
    before = find_partners(sides, iou, "optimal")
    rows: list[AuditRow] = []
    for layer in layers:
        covers = sorted({*map(float, max_covers), layer.max_cover})
        for buffer in sorted({*map(float, buffers), layer.buffer_m}):
            own_buffer = buffer == layer.buffer_m
            share = _shares(pred, replace(layer, buffer_m=buffer), is_own=own_buffer)
            rows += (
                _row(layer, buffer, cover, own_buffer and cover == layer.max_cover, share, sides, before, iou)
                for cover in covers
            )
    return _with_ratios(pd.DataFrame([asdict(row) for row in rows]))


def combine_audits(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The audit of several places together: counts add up, ratios follow from them.

    Args:
        parts: From `audit_masks`, with the same thresholds and buffers; a place may lack a layer.
    """
    counts = pd.concat(parts)[[*KEYS, *COUNTS]]
    return _with_ratios(counts.groupby([*KEYS], sort=False, as_index=False).sum())


def _with_ratios(counts: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall and F1 by the rule of `evaluate`, from counts."""
    frame = counts.copy()
    for tail in ("_before", ""):
        tp, fp, fn = (counts[name + tail].to_numpy() for name in ("tp", "fp", "fn"))
        empty = (tp + fp + fn == 0).tolist()
        for name, part, whole in (("precision", tp, tp + fp), ("recall", tp, tp + fn), ("f1", 2 * tp, 2 * tp + fp + fn)):
            frame[name + tail] = list(map(ratio, part.tolist(), whole.tolist(), empty))
    frame["precision_gain"] = frame["precision"] - frame["precision_before"]
    frame["recall_cost"] = frame["recall_before"] - frame["recall"]
    frame["f1_gain"] = frame["f1"] - frame["f1_before"]
    return frame


def _check(max_covers: Sequence[float], buffers: Sequence[float]) -> None:
    for cover in max_covers:
        if not 0 <= cover <= 1:
            raise ConfigError(f"max cover {cover}: a share between 0 and 1")
    for buffer in buffers:
        if not np.isfinite(buffer):
            raise ConfigError(f"buffer {buffer}: metres, a finite number")


def _shares(pred: GeoDataFrame, layer: MaskLayer, is_own: bool) -> NDArray[np.float64]:
    """(N,) share of each footprint that the layer covers; NaN for one without an outline.

    That a layer touches nothing is a warning with its own buffer only: one that another buffer makes vanish is an answer.
    """
    with warnings.catch_warnings():
        if not is_own:
            warnings.simplefilter("ignore", MaskWarning)
        flagged, _ = mask_footprints(pred, [replace(layer, action="flag")])
    share: NDArray[np.float64] = flagged[f"{layer.name}_cover"].to_numpy(np.float64)
    return share


def _row(
    layer: MaskLayer,
    buffer: float,
    max_cover: float,
    own: bool,
    share: NDArray[np.float64],
    sides: Sides,
    before: Partners,
    iou: float,
) -> AuditRow:
    """What is left when the layer decides with this threshold."""
    keeps = layer.action == "keep"
    removed = share <= max_cover if keeps else share > max_cover  # NaN, which has no outline, is neither
    after = find_partners(sides, iou, "optimal", kept=~removed)
    gone = removed[sides.pred.rows]
    partnered = np.zeros(len(gone), np.bool_)
    partnered[before.pairs.pred] = True
    return AuditRow(
        layer=layer.name,
        action="keep" if keeps else "drop",
        buffer_m=buffer,
        max_cover=max_cover,
        own=own,
        tested=int(np.isfinite(share).sum()),
        removed=int(removed.sum()),
        removed_true=int((gone & partnered).sum()),
        removed_false=int((gone & before.pred.counts & ~partnered).sum()),
        **_counts(before, "_before"),
        **_counts(after, ""),
    )


def _counts(found: Partners, tail: str) -> dict[str, int]:
    tp, n_pred, n_truth = found.numbers
    return {f"tp{tail}": tp, f"fp{tail}": n_pred - tp, f"fn{tail}": n_truth - tp}


def unmasked(run: str | PathLike[str]) -> GeoDataFrame:
    """The footprints of a finished run before any layer acted: the accepted ones, and those that layers rejected.

    What a `clip` layer cut away from footprints that stayed is not in a run directory: they come as they were accepted.

    Args:
        run: The run directory.

    Raises:
        SourceError: It holds no finished run.
    """
    folder = Path(run)
    try:
        accepted = geopandas.read_parquet(folder / "footprints.parquet")
        rejected = geopandas.read_parquet(folder / "rejected.parquet")
    except Exception as error:  # pyarrow and geopandas raise a dozen kinds for one fact
        raise SourceError(
            f"{folder}: not a finished run: {error}; give the directory that `geoinfer run -o` wrote"
        ) from error
    if "layer" not in rejected:  # written before there were layers
        return accepted
    common = [name for name in accepted.columns if name in rejected.columns]  # not what those layers said of each
    parts = [part[common] for part in (accepted, rejected[rejected["layer"].notna()]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else accepted[common]


def plot_audit(frame: pd.DataFrame, path: str | PathLike[str]) -> None:
    """Draw recall cost and precision gain over the threshold, a row of two panels a layer, a line a buffer, as PNG.

    Args:
        frame: From `audit_masks`.
        path: Where to.

    Raises:
        ConfigError: matplotlib is not installed (extra `viz`).
        OutputError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the curve needs matplotlib; install it with `pip install geoinfer[viz]`") from error
    names = list(dict.fromkeys(frame["layer"]))
    figure = Figure(figsize=(10, 0.6 + 2.6 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharex=True, sharey="col")
    for (layer, buffer), part in frame.groupby(["layer", "buffer_m"], sort=False):  # rows are in order of the threshold
        pair = panels[names.index(layer)]
        for panel, column, title in zip(
            pair, ("recall_cost", "precision_gain"), ("recall cost", "precision gain"), strict=True
        ):
            (line,) = panel.plot(
                part["max_cover"], part[column], marker="o", markersize=4, label=f"{buffer:+g} m" if buffer else "0 m"
            )
            own = part[part["own"]]
            panel.plot(own["max_cover"], own[column], "o", markersize=11, fillstyle="none", color=line.get_color())
            panel.set(title=f"{layer}: {title}", xlim=(0, 1))
            panel.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        pair[1].legend(title="buffer", frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    for panel in panels[-1]:
        panel.set_xlabel("max_cover (a ring: the layer's own settings)")
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=90)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the curve: {error.strerror or error}") from error
