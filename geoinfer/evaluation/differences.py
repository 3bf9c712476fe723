"""Two models against one truth: how far apart they are, as a whole and in each slice, and whether that can be chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.evaluation.blocks import Floats, Indices, Intervals, flatten, paired
from geoinfer.evaluation.rank_sums import NAMES, average_precisions
from geoinfer.evaluation.slices import FIGURES, SliceCounts, figures, resting_on

if TYPE_CHECKING:
    from geoinfer.evaluation.assess import Assessment


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of one model minus that of another, on the same blocks of ground."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval; None where there is none, and `note` says why."""
    high: float | None
    note: str | None = None

    @property
    def is_clear(self) -> bool:
        """The interval does not hold 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def compare_models(a: Assessment, b: Assessment) -> dict[str, Difference]:
    """Each measure of `b` minus that of `a`, with its interval from the same blocks and weights.

    Args:
        a: Of one model.
        b: Of another, against the same truth with the same settings.

    Returns:
        By name of the measure; where either has no value, none and a note.

    Raises:
        ConfigError: The two were not made against the same truth with the same settings.
    """
    _check_pair(a, b)
    blocks = np.union1d(a.sums.blocks, b.sums.blocks)
    one, other = a.sums.on(blocks), b.sums.on(blocks)
    rests = np.minimum((one[..., 1] != 0).sum(axis=0), (other[..., 1] != 0).sum(axis=0))
    replicates, seed = int(a.settings["replicates"]), int(a.settings["seed"])
    found = paired(flatten(one), flatten(other), a.sums.ratios, blocks=rests, replicates=replicates, seed=seed)
    differences = {name: _difference(a, b, name, found, at) for at, name in enumerate(a.sums.names)}
    if a.ranks is not None and b.ranks is not None:
        found = paired(a.ranks.on(blocks), b.ranks.on(blocks), average_precisions, replicates=replicates, seed=seed)
        differences |= {name: _difference(a, b, name, found, at) for at, name in enumerate(NAMES)}
    unknown = Difference(None, None, None, "not known of both")
    return {name: differences.get(name, unknown) for name in a.measures}


def compare_slices(a: Assessment, b: Assessment) -> pd.DataFrame:
    """Precision, recall and F1 of `b` minus those of `a` in each slice, with intervals from the same blocks and weights.

    Args:
        a: Of one model.
        b: Of another, against the same truth with the same settings and slices.

    Returns:
        A row a slice that either has, the whole first: `slice`, `value`; for each figure `_a`, `_b`, `_difference`, `_low`
        and `_high` (each row on its own, as in `bias_table`), and `clear`: the figures whose interval does not hold 0.

    Raises:
        ConfigError: The two were not made against the same truth with the same settings.
    """
    _check_pair(a, b)
    rows = tuple(dict.fromkeys((*a.counts.rows, *b.counts.rows)))
    blocks = np.union1d(a.counts.blocks, b.counts.blocks)
    one, other = (_arrange(side.counts, rows, blocks) for side in (a, b))

    def statistic(sums: Floats) -> Floats:
        return figures(sums.reshape(len(sums), len(rows), 3)).reshape(len(sums), -1)

    rests = np.minimum(resting_on(one), resting_on(other)).ravel()
    replicates, seed = int(a.settings["replicates"]), int(a.settings["seed"])
    found = paired(flatten(one), flatten(other), statistic, blocks=rests, replicates=replicates, seed=seed)
    frame = pd.DataFrame(rows, columns=["slice", "value"])
    judges = _judges(a.counts, rows) & _judges(b.counts, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = {"a": figures(one.sum(axis=0)), "b": figures(other.sum(axis=0))}
    ends = {"difference": found.value, "low": found.low, "high": found.high}
    for number, figure in enumerate(FIGURES):
        for tail, values in (*sides.items(), *((tail, flat.reshape(-1, 3)) for tail, flat in ends.items())):
            frame[f"{figure}_{tail}"] = np.where(judges[:, number], values[:, number], np.nan)
    clear = {figure: (frame[f"{figure}_low"] > 0) | (frame[f"{figure}_high"] < 0) for figure in FIGURES}
    frame["clear"] = [", ".join(figure for figure in FIGURES if clear[figure][at]) for at in range(len(rows))]
    return frame


def _check_pair(a: Assessment, b: Assessment) -> None:
    for key in ("iou", "matching", "block_m", "replicates", "seed"):
        one, other = a.settings[key], b.settings[key]
        if one != other:
            raise ConfigError(f"{key} {one} and {other}: two models are compared with equal settings only")
    facts = a.objects.truth, b.objects.truth
    rows, bounds = [side["row"].to_numpy() for side in facts], [side.geometry.bounds.to_numpy() for side in facts]
    if a.objects.plane != b.objects.plane or not np.array_equal(*rows) or not np.array_equal(*bounds):
        raise ConfigError("the assessments are not of one truth and one area of interest: assess both against the same")


def _arrange(counts: SliceCounts, rows: tuple[tuple[str, str], ...], blocks: Indices) -> NDArray[np.float64]:
    """(len(blocks), len(rows), 3) counts in the order of `rows`; 0 for a slice that occurs on the other side only."""
    found = np.zeros((len(blocks), len(rows), 3))
    found[:, [rows.index(row) for row in counts.rows]] = counts.on(blocks)
    return found


def _judges(counts: SliceCounts, rows: tuple[tuple[str, str], ...]) -> NDArray[np.bool_]:
    found = np.ones((len(rows), 3), np.bool_)
    found[[rows.index(row) for row in counts.rows]] = counts.judges
    return found


def _difference(a: Assessment, b: Assessment, name: str, found: Intervals, at: int) -> Difference:
    """What the measures themselves differ by; the interval is moved by what the bootstrap's value is off."""
    one, other = a.measures[name].value, b.measures[name].value
    if one is None or other is None:
        return Difference(None, None, None, a.measures[name].note or b.measures[name].note)
    value = other - one
    low, high = found.around(value, at)
    return Difference(value, number(low), number(high), found.note(at))


def number(value: float) -> float | None:
    """A number as JSON has it: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None
