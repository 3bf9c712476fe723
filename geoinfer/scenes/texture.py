"""Noise and blur: the few image operations that generated scenes are made of. Knows arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3) -> Floats:
    """Value noise: random lattices, interpolated smoothly, each octave half as wide and half as strong.

    Only element-wise arithmetic and gathers, so that the result does not depend on a BLAS or its threads.

    Args:
        rng: Source of randomness.
        shape: (H, W) in pixels.
        cell: Width of the coarsest lattice's cell, pixels.
        octaves: Lattices to add up; those finer than a pixel are left out.

    Returns:
        (H, W) float32 of mean about 0 and standard deviation about 1.
    """
    out = np.zeros(shape, np.float32)
    power = 0.0
    for octave in range(octaves):
        width = max(cell / 2**octave, 1.0)
        weight = 0.5**octave
        out += np.float32(weight) * _octave(rng, shape, width)
        power += weight * weight
        if width == 1.0:
            break
    # Smooth interpolation of independent normals leaves about 0.55 of their variance.
    return (out * np.float32(1.0 / np.sqrt(0.55 * power))).astype(np.float32)


def _octave(rng: np.random.Generator, shape: tuple[int, int], width: float) -> Floats:
    height_px, width_px = shape
    phase_row, phase_col = rng.random(2)
    rows, row_share = _lattice(height_px, width, phase_row)
    cols, col_share = _lattice(width_px, width, phase_col)
    values = rng.standard_normal((int(rows[-1]) + 2, int(cols[-1]) + 2), dtype=np.float32)
    along = values[rows] + (values[rows + 1] - values[rows]) * row_share[:, None]  # (H, n)
    left = np.take(along, cols, axis=1)  # (H, W)
    left += (np.take(along, cols + 1, axis=1) - left) * col_share
    return left


def _lattice(pixels: int, width: float, phase: float) -> tuple[NDArray[np.intp], Floats]:
    position = np.arange(pixels) / width + phase
    index = position.astype(np.intp)
    share = (position - index).astype(np.float32)
    return index, share * share * (3 - 2 * share)


def blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of the last two axes, edges repeated: the point spread of a sensor.

    Args:
        image: (..., H, W) float32.
        sigma: Standard deviation, pixels; 0 returns the image itself.
    """
    if sigma <= 0:
        return image
    radius = max(1, int(np.ceil(2.5 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (-1, -2):
        size = image.shape[axis]
        pad = [(0, 0)] * image.ndim
        pad[axis] = (radius, radius)
        padded = np.pad(image, pad, mode="edge")
        out = np.zeros_like(image)
        for step, weight in enumerate(kernel):
            part = padded[..., step : step + size] if axis == -1 else padded[..., step : step + size, :]
            out += np.float32(weight) * part
        image = out
    return image
