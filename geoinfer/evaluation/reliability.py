"""Whether a probability means what it says, and the temperature that makes it so. Knows numbers, not where they are from.

Of the footprints with confidence 0.8, are 80 % right? The table of a reliability diagram (DeGroot and Fienberg 1983, "The
comparison and evaluation of forecasters"), the expected calibration error over equal bins (Naeini, Cooper and Hauskrecht
2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. 2017, eq. 3), and the Brier score (Brier
1950, "Verification of forecasts expressed in terms of probability").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geoinfer.errors import ConfigError

Floats = NDArray[np.float64]
BINS = 15
"""Bins of a reliability table, as in Guo et al. 2017."""
LEVELS: Floats = np.r_[0.25, np.arange(1.0, 255.0), 254.75] / 255
"""(256,) what each uint8 probability stands for: the middle of the numbers that are rounded to it."""
_HOTTEST = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """What probabilities said, and what became of it."""

    table: pd.DataFrame
    """A row a bin that holds anything: `low`, `high`, `n`, `mean_prob`, `share_true`."""
    ece: float | None
    """Expected calibration error: mean gap of `mean_prob` and `share_true`, weighted by n; None of nothing."""
    brier: float | None
    """Mean squared difference of probability and outcome; None of nothing."""
    n: int

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {"ece": self.ece, "brier": self.brier, "n": self.n, "bins": self.table.to_dict("records")}


def reliability(
    prob: Floats, true: NDArray[np.generic], total: NDArray[np.generic] | None = None, bins: int = BINS
) -> Reliability:
    """Compare probabilities with outcomes.

    Args:
        prob: (N,) 0..1; NaN (unknown) takes no part.
        true: (N,) whether it came true, or how many of `total` did.
        total: (N,) how many each stands for; one each unless given.
        bins: Of equal width; each holds its lower end, the last one both.
    """
    known = np.isfinite(prob)
    p, hits = prob[known], np.asarray(true, np.float64)[known]
    count = np.ones(len(p)) if total is None else np.asarray(total, np.float64)[known]
    n = float(count.sum())
    at = np.minimum((p * bins).astype(np.int64), bins - 1)
    in_bin, said, came = (np.bincount(at, weights=values, minlength=bins) for values in (count, count * p, hits))
    real = in_bin > 0
    low = np.arange(bins) / bins
    table = pd.DataFrame(
        {
            "low": low[real],
            "high": low[real] + 1 / bins,
            "n": in_bin[real].astype(np.int64),
            "mean_prob": said[real] / in_bin[real],
            "share_true": came[real] / in_bin[real],
        }
    )
    if not n:
        return Reliability(table, None, None, 0)
    brier = float((hits * (1 - p) ** 2 + (count - hits) * p**2).sum() / n)
    return Reliability(table, float(np.abs(said - came).sum() / n), brier, int(n))


def count_levels(prob: NDArray[np.uint8], truth: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """All that calibration needs of pixels: how many there are of each level, and how many of them are building.

    Args:
        prob: (H, W) uint8.
        truth: (H, W) building or not.
        inside: (H, W) pixels that count.

    Returns:
        (256, 2) pixels that are building, pixels in all. Counts of several places add up.
    """
    every, building = (np.bincount(prob[where], minlength=256) for where in (inside, inside & truth))
    return np.stack([building, every], axis=1)


def level_reliability(counts: NDArray[np.int64], temperature: float = 1.0, bins: int = BINS) -> Reliability:
    """Reliability of pixels from `count_levels`, with their probabilities at a temperature."""
    return reliability(heat(LEVELS, temperature), counts[:, 0], counts[:, 1], bins)


def heat(prob: Floats, temperature: float) -> Floats:
    """Probabilities whose logits are divided by a temperature: above 1 less sure, below 1 surer; 0.5 stays 0.5."""
    with np.errstate(divide="ignore"):
        odds = np.exp((np.log(prob) - np.log1p(-prob)) / temperature)
        cooled: Floats = 1 / (1 + 1 / odds)
    return cooled


def fit_temperature(counts: NDArray[np.int64]) -> float:
    """The temperature at which the probabilities of pixels have the least negative log likelihood.

    Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", section 4.2. With one class the
    likelihood is concave in 1/T, and its slope, sum over levels of logit x (building - all x sigmoid(logit / T)), is
    halved in until it is 0. Where most pixels are surer than uint8 can tell (below 1/510, above 1 - 1/510) what is found
    lies between 1 and the temperature of the network's own logits.

    Args:
        counts: (256, 2) from `count_levels`.

    Raises:
        ConfigError: No pixel, pixels of one kind only, or probabilities that say nothing: no temperature is best.
    """
    building, every = counts.astype(np.float64).T
    if not 0 < building.sum() < every.sum():
        raise ConfigError("temperature: needs pixels with and without buildings; give a place that has both")
    logit = np.log(LEVELS) - np.log1p(-LEVELS)

    def slope(inverse: float) -> float:
        return float((logit * (building - every / (1 + np.exp(-logit * inverse)))).sum())

    low, high = 1 / _HOTTEST, _HOTTEST
    if slope(low) <= 0 or slope(high) >= 0:
        raise ConfigError(
            f"temperature: none from {1 / _HOTTEST:g} to {_HOTTEST:g} is best: the probabilities and the truth "
            "of these places do not fit each other"
        )
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 1 / low
