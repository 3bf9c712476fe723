"""What is wanted of a model, declared once: a figure to maximise, and what must hold all the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.evaluation.slices import FIGURES, figures

_GUARD = re.compile(r"(precision|recall|f1)\s*>=\s*(0?\.\d+|[01](?:\.\d*)?)")
_OTHER = {"precision": "recall", "recall": "precision"}
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Objective:
    """What to maximise, and what must hold all the same."""

    maximise: str
    """One of `FIGURES`."""
    guards: tuple[tuple[str, float], ...] = ()
    """Figure and the least it may be."""

    def __str__(self) -> str:
        return ",".join([self.maximise, *(f"{figure}>={least:g}" for figure, least in self.guards)])


def parse_objective(text: str) -> Objective:
    """`f1`, or a guard as `precision>=0.9` (then recall is maximised), or both, as `f1,precision>=0.8`.

    Raises:
        ConfigError: Neither.
    """
    named, guards = [], []
    for part in (part.strip() for part in text.split(",")):
        guard = _GUARD.fullmatch(part)
        if guard is not None and float(guard[2]) <= 1:
            guards.append((guard[1], float(guard[2])))
        elif part in FIGURES:
            named.append(part)
        else:
            raise ConfigError(f"objective {text!r}: say f1, precision>=0.9, recall>=0.8, or f1,precision>=0.8")
    if len(named) > 1 or (not named and (len(guards) != 1 or guards[0][0] not in _OTHER)):
        raise ConfigError(f"objective {text!r}: name one figure to maximise, as f1,precision>=0.8")
    return Objective(named[0] if named else _OTHER[guards[0][0]], tuple(guards))


def best(counts: NDArray[np.float64], objective: Objective) -> NDArray[np.int64]:
    """The candidates that are best for an objective: several where they are equal, none where none keeps the guards.

    Args:
        counts: (K, 3) tp, fp, fn of each candidate.
        objective: What is wanted.

    Returns:
        Positions, ascending.
    """
    values = figures(counts)  # (K, 3), NaN keeps no guard and is never the greatest
    keeps = np.isfinite(values[:, FIGURES.index(objective.maximise)])
    for figure, least in objective.guards:
        keeps &= values[:, FIGURES.index(figure)] >= least - _ROUNDING
    score = np.where(keeps, values[:, FIGURES.index(objective.maximise)], -np.inf)
    return np.flatnonzero(keeps & (score >= score.max(initial=-np.inf) - _ROUNDING))


def explain_none(counts: NDArray[np.float64], objective: Objective) -> str:
    """Why no candidate is best: which guard is not kept, and how near they come."""
    values = figures(counts)
    for figure, least in objective.guards:
        column = values[:, FIGURES.index(figure)]
        most = float(np.max(column[np.isfinite(column)], initial=0.0))
        if most < least:
            remedy = "higher" if figure == "precision" else "lower"
            return (
                f"objective {objective}: nothing that was tried reaches {figure} {least:g}, the most is {most:.3f}; "
                f"try {remedy} thresholds, or ask for less"
            )
    return f"objective {objective}: nothing that was tried keeps all of it at once; ask for less"
