"""How far a figure may be off by chance: the block bootstrap over space. Knows points, sums and weights, no footprints.

Neighbouring buildings are alike (one roof material, one shadow, one registration error), so a formula that takes them for
independent gives intervals that are too narrow. Here whole blocks of ground are drawn with replacement instead of
buildings (Künsch 1989, "The jackknife and the bootstrap for general stationary observations"; over space Hall 1985,
"Resampling a coverage pattern"; Lahiri 2003, "Resampling Methods for Dependent Data", ch. 12). Blocks are the squares of a
lattice fixed in the plane, so two models, a whole and its slices are compared on the same ones. Every figure is a function
of sums over blocks: a replicate is a row of weights times those sums, and nothing is matched twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import ConfigError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""(R, k) sums -> (R, m) figures, row by row; NaN where a figure is not defined."""

LEVEL = 0.95
"""Coverage that intervals aim at."""
MIN_BLOCKS = 8
"""With fewer blocks the spread between them says too little about itself: no interval is given."""
SIDES_M = (
    25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 400.0, 500.0, 750.0, 1000.0, 1500.0, 2000.0, 3000.0, 5000.0, 7500.0,
    10_000.0, 20_000.0, 50_000.0,
)  # fmt: skip
"""Sides of blocks to choose from."""
MIN_DEFINED = 0.5
"""Least share of replicates in which a figure must be defined for an interval."""
_CELLS_AT_ONCE = 1 << 22
"""Weights held at a time: bounds memory, and changes no digit since replicates are drawn one after the other."""
_ROW = 1 << 31
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Figures and how far each may be off."""

    value: Floats
    """(m,) of all blocks; NaN where not defined."""
    low: Floats
    """(m,) lower bound; NaN where there is no interval."""
    high: Floats
    """(m,) upper bound."""
    blocks: Indices
    """(m,) blocks that each figure rests on."""

    def around(self, value: float, at: int) -> tuple[float, float]:
        """The interval of a figure whose value is known better than by sums: moved by the difference, if it is one."""
        off = value - float(self.value[at])
        off = off if abs(off) > _ROUNDING else 0.0
        return float(self.low[at]) + off, float(self.high[at]) + off

    def note(self, at: int) -> str | None:
        """Why a figure has no interval; None where it has one."""
        if np.isfinite(self.low[at]):
            return None
        if not np.isfinite(self.value[at]):
            return "not defined: nothing to count"
        if self.blocks[at] < MIN_BLOCKS:
            return f"no interval: {self.blocks[at]} blocks of ground, at least {MIN_BLOCKS} are needed"
        return "no interval: not defined in most replicates"


def block_of(x: Floats, y: Floats, block_m: float) -> Indices:
    """The square of the plane's lattice that each point lies in.

    Args:
        x: (N,) metres in the plane.
        y: (N,) metres in the plane.
        block_m: Side of a square, metres. Its corners are multiples of it: the same for every data set in the plane.

    Returns:
        (N,) identifiers that are equal where the square is.

    Raises:
        ConfigError: The side is no positive number.
    """
    if not (math.isfinite(block_m) and block_m > 0):
        raise ConfigError(f"block_m {block_m}: the side of a block in metres, above 0")
    col, row = (np.floor(np.asarray(values, np.float64) / block_m).astype(np.int64) for values in (x, y))
    return row * _ROW + col


def choose_block_m(x: Floats, y: Floats) -> float:
    """A side for blocks where none is given: the largest of `SIDES_M` that leaves enough of them occupied.

    Longer than neighbours are alike, and yet many: for N points in the plane the best number of blocks grows with sqrt(N)
    (Hall, Horowitz and Jing 1995, "On blocking rules for the bootstrap with dependent data": sides as n^(1/(d + 2))). The
    factor, 1/4, and the least number, 30 (fewer where that would leave less than five points in each), are those with
    which intervals kept their coverage on simulated clusters (tests/test_blocks.py).

    Args:
        x: (N,) metres in the plane, of the true footprints, so that it is the same for every model.
        y: (N,) metres in the plane.
    """
    wanted = max(10.0, min(30.0, len(x) / 5), math.sqrt(len(x)) / 4)
    for side in reversed(SIDES_M):
        if len(np.unique(block_of(x, y, side))) >= wanted:
            return side
    return SIDES_M[0]


def sum_blocks(blocks: Indices, values: Floats) -> Floats:
    """Sums over each block.

    Args:
        blocks: (N,) identifiers from `block_of`.
        values: (N, k).

    Returns:
        (B, k), in the order of the identifiers.
    """
    found, at = np.unique(blocks, return_inverse=True)
    return sum_groups(at, len(found), values)


def sum_groups(at: Indices, groups: int, values: Floats) -> Floats:
    """Sums of rows by group.

    Args:
        at: (N,) group of each row, 0..groups - 1.
        groups: G.
        values: (N, k).

    Returns:
        (G, k).
    """
    columns = [np.bincount(at, weights=column, minlength=groups) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((groups, 0))


def flatten(sums: NDArray[np.float64]) -> Floats:
    """(B, ...) sums -> (B, k), also where there is no block at all."""
    return sums.reshape(len(sums), math.prod(sums.shape[1:]))


def bootstrap(
    sums: Floats,
    statistic: Statistic,
    *,
    replicates: int = 1000,
    seed: int = 0,
    blocks: Indices | None = None,
) -> Intervals:
    """Figures of sums, each with the interval that drawing blocks anew gives it.

    The interval is the percentile interval, its levels widened as Student's t and the divisor B - 1 ask for (Hesterberg
    2015, "What Teachers Should Know About the Bootstrap", 5.3): with some ten blocks the plain one is a fifth too narrow.

    Args:
        sums: (B, k) what each block adds.
        statistic: Figures from sums.
        replicates: R.
        seed: Of the generator; equal seeds and numbers of blocks give equal weights.
        blocks: (m,) blocks that each figure rests on; B for each unless given.

    Raises:
        ConfigError: Fewer than 100 replicates.
    """
    if replicates < 100:
        raise ConfigError(f"replicates {replicates}: at least 100, or the ends of an interval are guesses")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(sums.sum(axis=0, keepdims=True))[0]  # (m,)
        counts = np.full(len(value), len(sums)) if blocks is None else blocks
        low, high = np.full(len(value), np.nan), np.full(len(value), np.nan)
        if counts.size and counts.max() >= MIN_BLOCKS:
            drawn = np.concatenate([statistic(part @ sums) for part in weights(len(sums), replicates, seed)])  # (R, m)
            for at in np.flatnonzero((counts >= MIN_BLOCKS) & np.isfinite(value)):
                known = drawn[np.isfinite(drawn[:, at]), at]
                if len(known) >= MIN_DEFINED * replicates:
                    tail = tail_level(int(counts[at]))
                    low[at], high[at] = np.quantile(known, (tail, 1 - tail))
    return Intervals(value, low, high, counts.astype(np.int64))


def paired(
    a: Floats, b: Floats, statistic: Statistic, *, replicates: int = 1000, seed: int = 0, blocks: Indices | None = None
) -> Intervals:
    """The figures of `b` minus those of `a`, both from the same blocks with the same weights.

    What makes a block hard makes it hard for both, and cancels: the interval of the difference is far narrower than the
    difference of two intervals.

    Args:
        a: (B, k) what each block adds for one model.
        b: (B, k) the same blocks in the same order, for the other.
        statistic: Figures from sums.
        replicates: R.
        seed: Of the generator.
        blocks: (m,) blocks that each figure rests on.
    """
    width = a.shape[1]

    def difference(both: Floats) -> Floats:
        return statistic(both[:, width:]) - statistic(both[:, :width])

    return bootstrap(np.hstack([a, b]), difference, replicates=replicates, seed=seed, blocks=blocks)


def weights(blocks: int, replicates: int, seed: int) -> Iterator[Floats]:
    """How often each block is drawn, some replicates at a time.

    Args:
        blocks: B.
        replicates: R in all.
        seed: Of the generator.

    Yields:
        (r, B) float64, each row adding up to B.
    """
    rng = np.random.default_rng(seed)
    share = np.full(blocks, 1 / blocks)
    step = max(1, _CELLS_AT_ONCE // blocks)
    for start in range(0, replicates, step):
        yield rng.multinomial(blocks, share, size=min(step, replicates - start)).astype(np.float64)


def tail_level(blocks: int) -> float:
    """Share of replicates to leave out at each end, so that the interval covers `LEVEL` with so few blocks.

    Phi(-sqrt(B / (B - 1)) t), t the quantile of Student's distribution with B - 1 degrees of freedom (Hesterberg 2015).
    """
    normal = NormalDist()
    return normal.cdf(-math.sqrt(blocks / (blocks - 1)) * student(blocks - 1, normal.inv_cdf((1 + LEVEL) / 2)))


def student(freedom: int, z: float) -> float:
    """The quantile of Student's t at the level where the normal distribution's is z, within 0.001 from 7 degrees on.

    Abramowitz and Stegun 1964, 26.7.5.
    """
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / math.pow(freedom, power) for power, term in enumerate(terms, 1))
