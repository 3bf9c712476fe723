"""Choose a region's threshold and least area on labelled places of it, and the temperature of its probabilities.

What is chosen on a place says nothing about how good the model is there. So the figures are also given as chosen on one half
of the ground and counted on the other, the gain over the card's own settings has an interval from blocks of ground, and
`places` refuses those of a split `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoinfer.detection import Predicts
from geoinfer.errors import ConfigError
from geoinfer.evaluation.blocks import MIN_BLOCKS, Floats, paired
from geoinfer.evaluation.objective import Objective, best, explain_none, parse_objective
from geoinfer.evaluation.places import Place
from geoinfer.evaluation.reliability import fit_temperature, level_reliability
from geoinfer.evaluation.slices import FIGURES, figures
from geoinfer.evaluation.sweep import Sweep, sweep
from geoinfer.model.spec import Calibration


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The candidate that is best for an objective, and how sure that is."""

    objective: Objective
    threshold: float
    min_area_m2: float
    chosen: dict[str, float | None]
    """Precision, recall and f1 with it, on the places it was chosen on: flattering."""
    before: dict[str, float | None]
    """The same with the card's own settings."""
    gain: dict[str, float | None]
    """`value`, `low`, `high` of the maximised figure, chosen minus before, on the same blocks."""
    held_out: dict[str, float | None] | None
    """Precision, recall and f1 when chosen on one half of the blocks and counted on the other, both ways; None where the
    halves are too small or one of them cannot meet the guards."""
    note: str | None


def choose(found: Sweep, objective: Objective, *, replicates: int = 1000, seed: int = 0) -> Choice:
    """The candidate with the greatest figure among those that keep the guards; of equal ones that nearest the card's.

    Args:
        found: From `sweep`.
        objective: What is wanted.
        replicates: Of the bootstrap of the gain.
        seed: Of that.

    Raises:
        ConfigError: No true footprint, or no candidate keeps the guards; the message says how near they come.
    """
    counts = found.sums.sum(axis=0)  # (K, 3)
    if not counts[0, 0] + counts[0, 2]:
        raise ConfigError("no true footprint in these places: there is nothing to choose by")
    chosen = _choose(counts, objective, found)
    if chosen is None:
        raise ConfigError(explain_none(counts, objective))
    gain, note = _gain(found, chosen, objective, replicates, seed)
    threshold, tried = found.candidates[chosen][0], [candidate[0] for candidate in found.candidates]
    if chosen and len({*tried}) > 2 and threshold in (min(tried), max(tried)):
        at_end = f"{threshold:g} is the end of the thresholds that were tried; try more beyond it"
        note = f"{note}; {at_end}" if note else at_end
    return Choice(
        objective,
        *found.candidates[chosen],
        chosen=_named(counts[chosen]),
        before=_named(counts[0]),
        gain=gain,
        held_out=_held_out(found, objective),
        note=note,
    )


def _choose(counts: NDArray[np.float64], objective: Objective, found: Sweep) -> int | None:
    """Of equal candidates that nearest the card's own: nothing is changed without a reason."""
    threshold, area = found.candidates[0]
    equal = [
        (abs(found.candidates[at][0] - threshold), abs(found.candidates[at][1] - area), at)
        for at in best(counts, objective).tolist()
    ]
    return min(equal)[2] if equal else None


def _named(counts: NDArray[np.float64]) -> dict[str, float | None]:
    values = zip(FIGURES, figures(counts).tolist(), strict=True)
    return {figure: value if np.isfinite(value) else None for figure, value in values}


def _gain(
    found: Sweep, chosen: int, objective: Objective, replicates: int, seed: int
) -> tuple[dict[str, float | None], str | None]:
    """How much more of what is maximised, and whether that can be chance."""
    figure = FIGURES.index(objective.maximise)

    def statistic(sums: Floats) -> Floats:
        return figures(sums)[:, figure : figure + 1]

    difference = paired(found.sums[:, 0], found.sums[:, chosen], statistic, replicates=replicates, seed=seed)
    ends = {"value": difference.value[0], "low": difference.low[0], "high": difference.high[0]}
    gain = {name: float(value) if np.isfinite(value) else None for name, value in ends.items()}
    if chosen == 0:
        return gain, "the card's own settings are the best of those that were tried"
    if gain["low"] is not None and gain["high"] is not None and gain["low"] <= 0 <= gain["high"]:
        return gain, f"the change of {objective.maximise} can be chance: its interval holds 0"
    return gain, difference.note(0)


def _held_out(found: Sweep, objective: Objective) -> dict[str, float | None] | None:
    """Blocks are in order of their place and from south to north, so the halves are two coherent pieces of ground."""
    half = len(found.sums) // 2
    if half < MIN_BLOCKS:
        return None
    first, second = found.sums[:half].sum(axis=0), found.sums[half:].sum(axis=0)
    counted = np.zeros(3)
    for mine, other in ((first, second), (second, first)):
        chosen = _choose(mine, objective, found)
        if chosen is None:
            return None
        counted += other[chosen]
    return _named(counted)


def calibrate(
    region: str,
    places: Sequence[Place],
    predictor: Predicts,
    objective: str | Objective = "f1",
    *,
    replicates: int = 1000,
    seed: int = 0,
    **how: Any,
) -> tuple[Calibration, Sweep]:
    """Choose threshold, least area and temperature for a region.

    Args:
        region: Its name in the card.
        places: Labelled imagery of it; see `places.read_places`, which refuses those of a split `test`.
        predictor: The model.
        objective: Or its text.
        replicates: Of the bootstrap of the gain.
        seed: Of that.
        **how: Arguments of `sweep`.

    Returns:
        The entry for the card (`registry.write_calibration` writes it), and all that was tried.

    Raises:
        ConfigError, SourceError, RegionError: What `sweep` and `choose` raise.
    """
    wanted = parse_objective(objective) if isinstance(objective, str) else objective
    found = sweep(places, predictor, **how)
    choice = choose(found, wanted, replicates=replicates, seed=seed)
    temperature, heat_note = _temperature(found.levels)
    before, after = (level_reliability(found.levels, heat) for heat in (1.0, temperature or 1.0))
    evidence = {
        "places": [place.name for place in places],
        "n_truth": int(found.sums[:, 0, [0, 2]].sum()),
        "blocks": len(found.sums),
        "chosen": choice.chosen,
        "before": choice.before,
        "gain": choice.gain,
        "held_out": choice.held_out,
        "pixels": before.n,
        "ece": {"before": before.ece, "after": after.ece},
        "brier": {"before": before.brier, "after": after.brier},
        "notes": [note for note in (choice.note, heat_note) if note],
    }
    return (
        Calibration(region, choice.threshold, choice.min_area_m2, temperature, str(wanted), evidence),
        found,
    )


def reliability_data(calibration: Calibration, found: Sweep) -> dict[str, object]:
    """The reliability diagram of the pixels, before and after the temperature, ready for JSON."""
    heats = {"before": 1.0, "after": calibration.temperature or 1.0}
    return {name: level_reliability(found.levels, heat).to_dict() for name, heat in heats.items()}


def _temperature(levels: NDArray[np.int64]) -> tuple[float | None, str | None]:
    try:
        return fit_temperature(levels), None
    except ConfigError as error:  # the threshold is worth having without it
        return None, str(error)
