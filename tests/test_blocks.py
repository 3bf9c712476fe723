"""The block bootstrap: its lattice, its weights against a plain loop, and whether its intervals cover what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t

from geoinfer.errors import ConfigError
from geoinfer.evaluation import blocks as module
from geoinfer.evaluation.blocks import (
    MIN_BLOCKS,
    block_of,
    bootstrap,
    choose_block_m,
    paired,
    student,
    sum_blocks,
    tail_level,
    weights,
)

coordinates = st.one_of(st.floats(-4e6, 4e6), st.floats(-2000, 2000))


def share(sums: np.ndarray) -> np.ndarray:
    """(R, 2) -> (R, 1): precision, from right ones and all."""
    return sums[:, :1] / sums[:, 1:2]


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=20), st.sampled_from([25.0, 100.0, 333.0]))
def test_two_points_share_a_block_just_where_they_share_a_square(points: list, side: float) -> None:
    ids = block_of(*np.array(points).T, side)
    squares = [(math.floor(x / side), math.floor(y / side)) for x, y in points]
    for one, square in zip(ids, squares, strict=True):
        assert block_of(*(np.array([[square[0] + 0.5], [square[1] + 0.5]]) * side), side) == one
        assert [one == other for other in ids] == [square == other for other in squares]


def test_no_two_squares_of_a_country_share_an_identifier() -> None:
    x, y = (axis.ravel() * 100.0 for axis in np.meshgrid(np.arange(-300, 300), np.arange(-300, 300)))
    assert len(np.unique(block_of(x, y, 100.0))) == 600 * 600


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_sums_over_blocks_add_up_to_the_whole(rows: list) -> None:
    table = np.array(rows, float)
    sums = sum_blocks(table[:, 0].astype(np.int64), table[:, 1:])
    assert (sums.sum(axis=0) == table[:, 1:].sum(axis=0)).all()
    assert len(sums) == len({row[0] for row in rows})


def test_weights_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = np.concatenate([*weights(12, 150, 3)])
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 60)
    assert (np.concatenate([*weights(12, 150, 3)]) == at_once).all()
    assert (at_once.sum(axis=1) == 12).all()


def test_intervals_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    sums = np.stack([rng.integers(0, 20, 15), np.full(15, 20)], axis=1).astype(float)
    found = bootstrap(sums, share, replicates=400, seed=5)
    generator, drawn = np.random.default_rng(5), []
    for _ in range(400):
        counts = generator.multinomial(15, [1 / 15] * 15)
        picked = np.repeat(np.arange(15), counts)
        drawn.append(sums[picked, 0].sum() / sums[picked, 1].sum())
    tail = tail_level(15)
    assert (found.low[0], found.high[0]) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]).tolist())
    assert found.value[0] == sums[:, 0].sum() / 300


@pytest.mark.parametrize("freedom", [7, 8, 12, 30, 500])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert student(freedom, 1.959963985) == pytest.approx(student_t.ppf(0.975, freedom), abs=1e-3)


def clustered(seed: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) buildings in hamlets 100 m across anywhere in 2 km, and (N,) whether each was found: a hamlet is alike.

    The share that is found in a hamlet is Beta(3, 1.5), 2/3 on average, which is what a perfect estimate would say.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(25, clusters) + 1
    centres, chance = rng.uniform(0, 2000, (clusters, 2)), rng.beta(3, 1.5, clusters)
    at = np.repeat(np.arange(clusters), sizes)
    return centres[at] + rng.normal(0, 30, (len(at), 2)), rng.random(len(at)) < chance[at]


def test_intervals_cover_the_truth_where_neighbours_are_alike_and_the_binomial_one_does_not() -> None:
    true, worlds, covered, naive = 2 / 3, 200, 0, 0
    for seed in range(worlds):
        where, found = clustered(seed, 60)
        side = choose_block_m(*where.T)
        sums = sum_blocks(block_of(*where.T, side), np.stack([found, np.ones(len(found))], axis=1))
        interval = bootstrap(sums, share, replicates=300, seed=seed)
        covered += bool(interval.low[0] <= true <= interval.high[0])
        half = 1.96 * math.sqrt(found.mean() * (1 - found.mean()) / len(found))
        naive += abs(found.mean() - true) <= half
    # 200 worlds say 95 % to within 3 %, and hamlets that two blocks share cost some more.
    assert covered / worlds >= 0.9
    assert naive / worlds <= 0.7


def test_intervals_are_no_wider_than_they_need_be_where_neighbours_are_independent() -> None:
    covered, widths = 0, []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        where, found = rng.uniform(0, 2000, (1500, 2)), rng.random(1500) < 0.7
        side = choose_block_m(*where.T)
        sums = sum_blocks(block_of(*where.T, side), np.stack([found, np.ones(1500)], axis=1))
        interval = bootstrap(sums, share, replicates=300, seed=seed)
        covered += bool(interval.low[0] <= 0.7 <= interval.high[0])
        widths.append((interval.high[0] - interval.low[0]) / (2 * 1.96 * math.sqrt(0.7 * 0.3 / 1500)))
    assert 0.9 <= covered / 150 <= 0.99
    assert 0.9 <= np.mean(widths) <= 1.15  # the binomial one is right here


def test_few_blocks_have_no_interval_and_say_so() -> None:
    sums = np.ones((MIN_BLOCKS - 1, 2))
    found = bootstrap(sums, share)
    assert found.value[0] == 1
    assert np.isnan([found.low[0], found.high[0]]).all()
    assert "7 blocks" in str(found.note(0))


def test_a_figure_of_nothing_has_no_value_and_says_so() -> None:
    found = bootstrap(np.zeros((10, 2)), share)
    assert np.isnan(found.value[0])
    assert "nothing to count" in str(found.note(0))


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    sums = np.random.default_rng(1).integers(1, 9, (20, 2)).astype(float)
    found = paired(sums, sums, share)
    assert (found.value[0], found.low[0], found.high[0]) == (0, 0, 0)


def test_a_paired_difference_is_told_where_two_intervals_overlap() -> None:
    rng = np.random.default_rng(2)
    hard = rng.beta(2, 2, 40)  # what makes a block hard is the same for both
    a = np.stack([np.round(100 * hard), np.full(40, 100)], axis=1)
    b = a + np.stack([rng.integers(0, 5, 40), np.zeros(40)], axis=1)
    one, other, difference = bootstrap(a, share), bootstrap(b, share), paired(a, b, share)
    assert one.high[0] > other.low[0]  # each on its own: cannot be told apart
    assert difference.low[0] > 0


@pytest.mark.parametrize("side", [0.0, -5.0, math.nan, math.inf])
def test_a_block_needs_a_side(side: float) -> None:
    with pytest.raises(ConfigError, match="block_m"):
        block_of(np.zeros(1), np.zeros(1), side)


def test_too_few_replicates_are_refused() -> None:
    with pytest.raises(ConfigError, match="replicates 10"):
        bootstrap(np.ones((9, 2)), share, replicates=10)
