"""One block of a grid from the source pixels around it: weights as tables, and which kernel makes which part.

The kernels are those of separable image resampling (Keys 1981 with a = -1/2 for cubic), widened by the ratio of pixel sizes
where that is above 1 (anti-aliasing). `imagery.kernels` holds the loops and says what their arrays are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geoinfer.imagery.kernels import (
    WHOLE,
    Int64,
    classify,
    pack,
    pick_nearest,
    reduce_valid,
    reduce_whole,
    resample_partial,
    resample_plain,
    resample_wide,
    subdivide,
)
from geoinfer.imagery.source import Image

__all__ = [
    "ACROSS_BITS",
    "DOWN_BITS",
    "POSITION_BITS",
    "fill",
    "pick_nearest",
    "reduce_valid",
    "reduce_whole",
    "warm_up",
    "weights_of",
]

POSITION_BITS = 24
"""Fixed point of node positions."""
DOWN_BITS, ACROSS_BITS = 10, 12
"""Weights of rows, and of the taps of a row, add up to two to this power."""
_PHASES = 128
_PARTIAL_SIDE = 16
"""Side of cells where some pixels are not valid: small, so that most are wholly valid all the same, which is faster."""


def weights_of(method: str, ratio: float, bits: int) -> Int64:
    """Weights of a kernel by phase.

    A position v, counted between pixel centres, is j + phase / 128. Its taps are the T pixels from j - T / 2 + 1 on.

    Args:
        method: `bilinear` (a triangle), `cubic` (Keys 1981, a = -1/2) or `average` (the area covered).
        ratio: Source pixels a grid pixel: the kernel is that much wider; `average` also where it is below 1.
        bits: Rows add up to two to this power.

    Returns:
        (128, T) int64, T even.
    """
    reach = {"bilinear": ratio, "cubic": 2.0 * ratio, "average": ratio / 2.0 + 0.5}[method]
    half = max(1, math.ceil(reach))
    phase = np.arange(_PHASES)[:, None] / _PHASES
    away = np.abs(np.arange(1 - half, half + 1)[None] - phase)  # (128, T) distance of each tap
    if method == "average":
        exact = (np.minimum(away + 0.5, ratio / 2.0) - np.maximum(away - 0.5, -ratio / 2.0)).clip(0.0)
    elif method == "bilinear":
        exact = (1.0 - away / ratio).clip(0.0)
    else:
        d = away / ratio
        near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        exact = np.where(d < 1.0, near, np.where(d < 2.0, far, 0.0))
    exact *= 2**bits / exact.sum(axis=1, keepdims=True)
    weights: Int64 = np.floor(exact).astype(np.int64)
    missing = 2**bits - weights.sum(axis=1)
    rank = np.argsort(np.argsort(weights - exact, axis=1, kind="stable"), axis=1, kind="stable")  # largest remainder first
    weights += rank < missing[:, None]
    assert (np.minimum(weights, 0).sum(axis=1) >= -0.15 * 2**bits).all()  # what the lanes of the kernels have room for
    return weights


def fill(
    pixels: NDArray[np.uint8],
    known: NDArray[np.bool_] | None,
    reduce: tuple[int, int],
    nodes: Int64,
    n: int,
    weights: tuple[Int64, Int64],
    is_plain: bool,
    image: Image,
) -> None:
    """Make a block of all but the nearest pixels.

    Args:
        pixels: (C, h * reduce, w * reduce) of the source.
        known: (h * reduce, w * reduce) which of them are valid, None where all are and no tap lies outside.
        reduce: (rows, cols) of source pixels that are averaged first.
        nodes: Source positions, as in `kernels`, relative to the first of `pixels`, reduced.
        n: Side of a cell, a power of two.
        weights: Of rows and of columns.
        is_plain: They are those of the plain bilinear kernel.
        image: The block, blank; written.
    """
    rows, cols = reduce
    down, across = weights
    if known is None:
        kinds = np.full((nodes.shape[1] - 1, nodes.shape[2] - 1), WHOLE, np.uint8)
        means = pixels if rows == cols == 1 else reduce_whole(pixels, rows, cols)
        image.valid[...] = True
    else:
        while n > _PARTIAL_SIDE:
            nodes, n = subdivide(nodes), n // 2
        means, share = (pixels, known.astype(np.int32)) if rows == cols == 1 else reduce_valid(pixels, known, rows, cols)
        kinds = classify(nodes, share, rows * cols, down.shape[1], across.shape[1])
        resample_partial(means, share, known, nodes, n, kinds, down, across, image.pixels, image.valid)
    if (kinds == WHOLE).any():
        words = pack(means)
        if is_plain:
            resample_plain(words, nodes, n, kinds, image.pixels)
        else:
            resample_wide(words, nodes, n, kinds, down, across, image.pixels)


def warm_up() -> None:
    """Compile all kernels, or load them from the cache on disk, so that the first block is as fast as the next."""
    nodes = np.array(np.meshgrid([2, 10], [2, 10], indexing="ij"), np.int64) << POSITION_BITS  # (2, 2, 2)
    pixels = np.zeros((3, 24, 24), np.uint8)
    known = np.ones((24, 24), np.bool_)
    known[0] = False
    for is_plain in (True, False):
        weights = weights_of("bilinear", 1.0, DOWN_BITS), weights_of("bilinear", 1.0, ACROSS_BITS)
        for validity in (None, known):
            fill(pixels, validity, (2, 2), nodes, 32, weights, is_plain, Image.blank(3, 32, 32))
    image = Image.blank(3, 32, 32)
    pick_nearest(pixels, known, nodes, 32, image.pixels, image.valid)
