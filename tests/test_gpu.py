"""On a GPU: the CPU's answer within the stated flip rate, and the same bits from run to run and from thread to thread.

Skipped where there is none; `benchmarks/gpu.py` measures what these assert.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from geoinfer.model.predictor import load_predictor
from geoinfer.scenes import generate_scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLIPS = 0.002
"""Share of pixels whose decision may differ: sums in half precision are rounded in another order."""


@pytest.fixture(scope="module")
def chips() -> np.ndarray:
    """(5, 3, S, S): no whole batch, so that the last one is filled up."""
    side = load_predictor("buildings", device="cpu", precision="fp32").spec.chips.chip
    scene = generate_scene(seed=1, size=side).image
    return np.stack([np.rot90(scene, turns, (1, 2)) for turns in range(4)] + [scene[:, ::-1]])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gpu_decides_as_the_cpu_does(chips: np.ndarray, precision: str) -> None:
    here, there = (load_predictor("buildings", device=device, precision=precision) for device in ("cpu", "cuda:0"))
    threshold = here.spec.threshold * 255
    ours, theirs = here.predict(chips), there.predict(chips)
    assert ((ours >= threshold) != (theirs >= threshold)).mean() < (1e-5 if precision == "fp32" else FLIPS)


def test_a_gpu_repeats_itself_to_the_bit_whatever_thread_asks_and_with_whom(chips: np.ndarray) -> None:
    first = load_predictor("buildings", device="cuda:0").predict(chips)
    predictor = load_predictor("buildings", device="cuda:0")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(predictor.predict, [chips] * 8):
            np.testing.assert_array_equal(found, first)
        for at, found in enumerate(pool.map(lambda i: predictor.predict(chips[i : i + 1]), range(len(chips)))):
            np.testing.assert_array_equal(found[0], first[at])
