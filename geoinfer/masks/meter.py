"""A meter of false positives that needs no labels: candidates per km² where nothing true can stand, against elsewhere.

No building stands in open water, so what a model finds there is false, and its density estimates the density of false
positives. Counts and areas are kept by core of the lattice, which no tile size, order or worker can change; sums are exact.

The interval of a density takes the wider of two views. Where candidates fall independently, their number is Poisson and
the interval is Garwood's (1936, "Fiducial limits for the Poisson distribution", Biometrika 28): half the chi-square
quantiles of 2n and 2n + 2 degrees of freedom. False candidates come in swarms, so their variance is also estimated between
cores, as that of a ratio (Cochran 1977, "Sampling Techniques", 2.46). Where it is the larger one, Garwood's formula is
entered with the effective number of candidates n / (design effect), corrected for few cores (Korn and Graubard 1998,
"Confidence intervals for proportions with small expected number of positive counts estimated from survey data").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray

from geoinfer.grid import Grid, Window
from geoinfer.masks.prepare import PreparedLayer

LEVEL = 0.95
"""Of the intervals, two-sided."""
INSIDE = 0.5
"""A candidate is inside a layer that covers more than this share of it."""
COMPACT_ROWS = 1_000_000
"""Rows held before those of one core are added up."""
_QUANTUM_M2 = 2.0**-10
"""Areas are rounded to multiples of this: then floats add without rounding, in any order, up to 8 million km²."""
_SQUARE_KM = 1e6


@dataclass(slots=True)
class Meter:
    """Candidates and looked-at area inside and outside one negative layer, by core. About 64 bytes a core."""

    _cores: list[NDArray[np.int64]] = field(default_factory=list)
    """(n, 2) row, col of cores, counted in cores from any fixed corner."""
    _amounts: list[NDArray[np.float64]] = field(default_factory=list)
    """(n, 6) raw and kept inside, raw and kept outside, square metres inside and outside."""
    _rows: int = 0

    def add_candidates(self, core_ids: ArrayLike, inside: ArrayLike, kept: ArrayLike) -> None:
        """Count candidates.

        Args:
            core_ids: (N, 2) row, col of the core that each one's first pixel lies in.
            inside: (N,) the layer covers more than `INSIDE` of it.
            kept: (N,) it passed the model's own filters (area, confidence), whatever layers say.
        """
        cores = np.asarray(core_ids, np.int64).reshape(-1, 2)
        within, good = np.asarray(inside, np.bool_).reshape(-1), np.asarray(kept, np.bool_).reshape(-1)
        amounts = np.zeros((len(cores), 6))
        amounts[:, 0], amounts[:, 1], amounts[:, 2], amounts[:, 3] = within, within & good, ~within, ~within & good
        self._add(cores, amounts)

    def add_area(self, core_ids: ArrayLike, inside_m2: ArrayLike, outside_m2: ArrayLike) -> None:
        """Add what was looked at.

        Args:
            core_ids: (N, 2) row, col of cores; or one pair.
            inside_m2: (N,) area of the core's computed pixels inside the layer, square metres; or one number.
            outside_m2: (N,) area of those outside.
        """
        cores = np.asarray(core_ids, np.int64).reshape(-1, 2)
        amounts = np.zeros((len(cores), 6))
        for column, area in ((4, inside_m2), (5, outside_m2)):
            amounts[:, column] = np.rint(np.asarray(area, np.float64).reshape(-1) / _QUANTUM_M2) * _QUANTUM_M2
        self._add(cores, amounts)

    def add(self, other: Meter) -> None:
        """Add another meter's counts and areas."""
        for cores, amounts in zip(other._cores, other._amounts, strict=True):
            self._add(cores, amounts)

    def result(self) -> dict[str, object]:
        """Densities and their intervals, ready for JSON.

        Returns:
            `inside` and `outside`, each with area_km2, raw, raw_per_km2, raw_interval_95, kept, kept_per_km2 and
            interval_95 (of kept_per_km2: what would be in the output); densities and intervals are None where nothing was
            looked at. `ratio`: kept per km² inside over outside, None where that has no value.
        """
        self._compact()
        amounts = self._amounts[0] if self._amounts else np.zeros((0, 6))
        inside, outside = _side(amounts[:, [0, 1, 4]]), _side(amounts[:, [2, 3, 5]])
        within, beyond = inside["kept_per_km2"], outside["kept_per_km2"]
        ratio = within / beyond if isinstance(within, float) and isinstance(beyond, float) and beyond else None
        return {"inside": inside, "outside": outside, "ratio": ratio}

    def _add(self, cores: NDArray[np.int64], amounts: NDArray[np.float64]) -> None:
        if len(cores):
            self._cores.append(cores)
            self._amounts.append(amounts)
            self._rows += len(cores)
        if self._rows > COMPACT_ROWS + 2 * len(self._cores[0] if self._cores else ()):
            self._compact()

    def _compact(self) -> None:
        """One row for each core, sorted."""
        if not self._cores:
            return
        cores, core = np.unique(np.concatenate(self._cores), axis=0, return_inverse=True)
        amounts = np.zeros((len(cores), 6))
        np.add.at(amounts, core.reshape(-1), np.concatenate(self._amounts))  # exact: see _QUANTUM_M2
        self._cores, self._amounts, self._rows = [cores], [amounts], len(cores)


def _side(amounts: NDArray[np.float64]) -> dict[str, object]:
    """What is known of one side, from (cores, 3) raw, kept, square metres."""
    part = amounts[(amounts > 0).any(axis=1)]
    area_km2 = math.fsum(part[:, 2].tolist()) / _SQUARE_KM
    result: dict[str, object] = {"area_km2": area_km2}
    for column, name, interval in ((0, "raw", "raw_interval_95"), (1, "kept", "interval_95")):
        count = int(part[:, column].sum())
        result[name] = count
        result[f"{name}_per_km2"] = count / area_km2 if area_km2 else None
        result[interval] = list(density_interval(part[:, column], part[:, 2] / _SQUARE_KM)) if area_km2 else None
    return result


def density_interval(counts: NDArray[np.float64], areas: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the density that counts over areas estimate: the wider of Poisson and clustered.

    Args:
        counts: (m,) of each cluster.
        areas: (m,) of each cluster; their sum is above 0. Clusters with neither count nor area are not looked at.
        level: Two-sided.

    Returns:
        lower and upper limit, per unit of area. No count gives (0, the exact upper limit). A single cluster tells nothing
        about the variance between clusters: Poisson.
    """
    live = (counts > 0) | (areas > 0)
    n, a = counts[live], areas[live]
    total, area = math.fsum(n.tolist()), math.fsum(a.tolist())
    if not total:
        return 0.0, poisson_interval(0.0, level)[1] / area
    effect = 1.0  # variance between clusters over that of Poisson counts
    if len(n) > 1:
        degrees = len(n) - 1
        spread = math.fsum(((n - total / area * a) ** 2).tolist()) * len(n) / degrees / total  # Cochran 2.46, over n / A²
        few = student_quantile((1 + level) / 2, degrees) / student_quantile((1 + level) / 2, math.inf)
        effect = max(1.0, spread * few**2)
    low, high = poisson_interval(total / effect, level)
    return low * effect / area, high * effect / area


def poisson_interval(count: float, level: float = LEVEL) -> tuple[float, float]:
    """Garwood's limits of the mean of a Poisson number; `count` may be a fraction, as an effective count is."""
    tail = (1 - level) / 2
    # chi2(p; 2k) / 2 is the p quantile of the gamma distribution of shape k.
    low = gamma_quantile(tail, count) if count > 0 else 0.0
    return low, gamma_quantile(1 - tail, count + 1)


def gamma_quantile(p: float, shape: float) -> float:
    """What a share `p` of the gamma distribution of unit scale lies below, by bisection; `shape` above 0."""
    return _bisect(lambda x: _gamma_below(shape, x) < p, 0.0, shape + 10 * math.sqrt(shape) + 50)


def _gamma_below(shape: float, x: float) -> float:
    """Regularized lower incomplete gamma function P(shape, x).

    By its series left of the mode (DLMF 8.11.4), by Legendre's continued fraction right of it (DLMF 8.9.2), evaluated with
    Lentz's method (Press et al. 2007, "Numerical Recipes", 6.2).
    """
    if x <= 0:
        return 0.0
    weight = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        step = shape
        while term > total * 1e-17:
            step += 1
            term *= x / step
            total += term
        return total * weight
    b = x + 1 - shape
    c, d = math.inf, 1 / b
    value = d
    for i in range(1, 100_000):
        b += 2
        d = 1 / (b - i * (i - shape) * d)
        c = b - i * (i - shape) / c
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 - value * weight


def student_quantile(p: float, degrees: float) -> float:
    """The p quantile, p above 0.5, of Student's distribution with a whole number of degrees of freedom, or infinity.

    By bisection of the finite sums for its probability (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4). More than 1000
    degrees count as 1000: the quantile is then too wide by less than 0.2 %.
    """
    if math.isinf(degrees):
        return math.sqrt(2) * _bisect(lambda x: (1 + math.erf(x)) / 2 < p, 0.0, 10.0)
    n = min(int(degrees), 1000)

    def between(t: float) -> float:
        """Probability of -t..t."""
        angle = math.atan(t / math.sqrt(n))
        square = math.cos(angle) ** 2
        term, total = (math.cos(angle) if n % 2 else 1.0), 0.0
        for k in range(1 if n % 2 else 0, n - 1, 2):
            total += term
            term *= square * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total) if n % 2 else math.sin(angle) * total

    return _bisect(lambda t: (1 + between(t)) / 2 < p, 0.0, 2 / (1 - p))


def _bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Where a claim that holds at the low end stops to hold, to the last bit or nearly."""
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def layer_pixels(layer: PreparedLayer, core_window: Window, grid: Grid) -> NDArray[np.bool_]:
    """Which pixels of a core have their centre inside a layer.

    Asked core by core, so that the tiles cannot matter: what GDAL decides about a centre on an edge could depend on the
    window.

    Args:
        layer: Prepared in the grid's coordinate system.
        core_window: A core of the grid's lattice.
        grid: The compute grid.

    Returns:
        (H, W) bool.
    """
    from rasterio.features import rasterize

    bounds = grid.bounds(core_window)
    pieces = layer.read(bounds).shapes
    shape = (core_window.height, core_window.width)
    if not len(pieces):
        return np.zeros(shape, np.bool_)
    size = grid.pixel_size
    transform = Affine(size, 0.0, bounds[0], 0.0, -size, bounds[3])
    inside: NDArray[np.bool_] = rasterize(pieces.tolist(), shape, transform=transform, dtype=np.uint8).astype(np.bool_)
    return inside
