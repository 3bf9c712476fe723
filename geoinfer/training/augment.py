"""Crops that look as if other sensors, seasons and places had taken them. cv2 on uint8, one crop at a time.

Geometry: any rotation, mirror, a change of scale, and a shift. Radiometry: exposure, contrast, gamma, white balance,
saturation, hue, haze, shade. Sensor: blur, coarser sampling, chroma blur (pan-sharpening), noise, JPEG.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geoinfer.imagery.source import FILL
from geoinfer.training.samples import LabelledScene
from geoinfer.training.targets import VALID


def draw_crop(
    scene: LabelledScene, side: int, gsd: float, rng: np.random.Generator, scale: tuple[float, float] = (0.65, 1.5)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random square of a scene as (side, side, 3) uint8 pixels and (side, side) uint8 target bits.

    Args:
        side: Side of the crop, pixels.
        gsd: Metres a pixel the crop claims to have.
        scale: Range of the factor by which the true metres a pixel may differ from `gsd`.
    """
    factor = float(np.exp(rng.uniform(*np.log(scale))))
    step = gsd * factor  # true metres between crop pixels
    h, w = scene.bits.shape
    extent = np.array((w, h)) * scene.target_gsd
    if len(scene.centres) and rng.random() < 0.7:
        centre = scene.centres[rng.integers(len(scene.centres))] + rng.uniform(-0.4, 0.4, 2) * side * step
    else:
        centre = rng.uniform(0, 1, 2) * extent
    reach = np.minimum(side * step / 2, extent / 2)  # keep the crop on the scene, where the scene is large enough
    centre = np.clip(centre, reach, extent - reach)
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.7 else rng.integers(4) * np.pi / 2
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    middle = (side - 1) / 2

    def sample(array: NDArray[Any], array_gsd: float, how: int, fill: int) -> NDArray[np.uint8]:
        linear = turn * (step / array_gsd)
        offset = centre / array_gsd - 0.5 - linear @ np.array((middle, middle))
        affine = np.column_stack((linear, offset))
        border = cv2.BORDER_CONSTANT
        out = cv2.warpAffine(
            array, affine, (side, side), flags=how | cv2.WARP_INVERSE_MAP, borderMode=border, borderValue=(fill,) * 3
        )
        return np.asarray(out, np.uint8)

    source: NDArray[Any] = scene.pixels
    ratio = step / scene.gsd
    if ratio > 1.25:  # cv2 does not widen its kernel when it shrinks: blur first
        x, y = centre / scene.gsd
        r = int(side * ratio * 0.75) + 8
        x0, y0 = max(0, int(x) - r), max(0, int(y) - r)
        source = cv2.GaussianBlur(source[y0 : int(y) + r, x0 : int(x) + r], (0, 0), 0.4 * ratio)
        centre_before, centre = centre, centre - np.array((x0, y0)) * scene.gsd
        pixels = sample(source, scene.gsd, cv2.INTER_LINEAR, FILL)
        centre = centre_before
    else:
        pixels = sample(source, scene.gsd, cv2.INTER_LINEAR, FILL)
    bits = sample(scene.bits, scene.target_gsd, cv2.INTER_NEAREST, 0)
    return pixels, bits


def change_radiometry(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another light, another camera profile, another air; (S, S, 3) uint8 to the same."""
    x: NDArray[Any] = pixels.astype(np.float32) / 255
    if rng.random() < 0.8:  # exposure, contrast and gamma of all bands
        x = np.clip(x, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
        mean = x.mean()
        x = (x - mean) * np.float32(np.exp(rng.normal(0, 0.22))) + mean + np.float32(rng.normal(0, 0.06))
    if rng.random() < 0.6:  # white balance
        x = x * np.exp(rng.normal(0, 0.09, 3)).astype(np.float32) + rng.normal(0, 0.02, 3).astype(np.float32)
    if rng.random() < 0.6:  # saturation, down to grey
        grey = x.mean(2, keepdims=True)
        amount = 0.0 if rng.random() < 0.12 else float(np.exp(rng.normal(-0.1, 0.45)))
        x = grey + (x - grey) * np.float32(amount)
    if rng.random() < 0.15:  # hue
        x = _rotate_hue(x, rng.normal(0, 0.35))
    if rng.random() < 0.04:
        x = x[:, :, rng.permutation(3)]
    if rng.random() < 0.25:  # haze, thicker in places
        veil = rng.uniform(0.05, 0.5) * _clouds(x.shape[0], rng)[..., None]
        air = np.array((0.75, 0.8, 0.85), np.float32) * np.float32(rng.uniform(0.7, 1.2))
        x = x * (1 - veil) + air * veil
    if rng.random() < 0.1:  # shade of a cloud
        x = x * (1 - rng.uniform(0.2, 0.6) * _clouds(x.shape[0], rng)[..., None])
    if rng.random() < 0.2:  # linear stretch, as viewers deliver
        lo, hi = np.quantile(x[::8, ::8], (rng.uniform(0, 0.03), rng.uniform(0.95, 1)))
        x = (x - lo) / max(hi - lo, 0.1)
    return np.asarray(np.clip(x * 255 + 0.5, 0, 255), np.uint8)


def change_sensor(pixels: NDArray[np.uint8], gsd: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A coarser, softer or noisier sensor; (S, S, 3) uint8 to the same."""
    x: NDArray[Any] = pixels
    side = x.shape[0]
    if rng.random() < 0.35:  # sampled at up to a metre, then enlarged
        coarse = max(16, int(side * gsd / rng.uniform(0.35, 1.0)))
        x = cv2.resize(x, (coarse, coarse), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.3:
            x = _sharpen(x, rng)
        x = cv2.resize(x, (side, side), interpolation=cv2.INTER_CUBIC if rng.random() < 0.3 else cv2.INTER_LINEAR)
    elif rng.random() < 0.35:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.8))
    elif rng.random() < 0.3:
        x = _sharpen(x, rng)
    if rng.random() < 0.2:  # pan-sharpened: colour is coarser than light
        ycc = cv2.cvtColor(x, cv2.COLOR_RGB2YCrCb)
        ycc[..., 1:] = cv2.GaussianBlur(ycc[..., 1:], (0, 0), rng.uniform(1.5, 4))
        x = cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB)
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(2, 10), (*x.shape[:2], int(rng.choice((1, 3))))).astype(np.float32)
        x = np.clip(x.astype(np.float32) + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, coded = cv2.imencode(".jpg", x, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))))
        x = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return np.asarray(x, np.uint8)


def augmented_crop(
    scene: LabelledScene, side: int, gsd: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop as training sees it: (3, side, side) uint8 and (side, side) uint8 target bits."""
    pixels, bits = draw_crop(scene, side, gsd, rng)
    empty = (bits & VALID == 0) & (pixels == FILL).all(2)
    pixels = change_sensor(change_radiometry(pixels, rng), gsd, rng)
    if rng.random() < 0.08:  # a cut edge of the imagery, as at the rim of every mosaic
        normal, at = rng.normal(size=2), rng.uniform(0.05, 0.3)
        row, col = np.mgrid[:side, :side] / side - 0.5
        empty |= (row * normal[0] + col * normal[1]) / np.hypot(*normal) > 0.5 - at
        bits = np.where(empty, 0, bits).astype(np.uint8)
    pixels[empty] = FILL
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), bits


def _clouds(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(S, S) float32 in 0..1, smooth."""
    cells = int(rng.integers(2, 5))
    field = cv2.resize(rng.random((cells, cells), np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1).astype(np.float32)


def _sharpen(x: NDArray[Any], rng: np.random.Generator) -> NDArray[np.uint8]:
    amount = rng.uniform(0.3, 1.2)
    return np.asarray(cv2.addWeighted(x, 1 + amount, cv2.GaussianBlur(x, (0, 0), 1.2), -amount, 0), np.uint8)


def _rotate_hue(x: NDArray[Any], angle: float) -> NDArray[np.float32]:
    """Turn colours about the grey axis (Rodrigues' formula for the axis (1, 1, 1))."""
    c, s = np.cos(angle), np.sin(angle) / np.sqrt(3)
    near, far = c + (1 - c) / 3, (1 - c) / 3
    matrix = np.array(((near, far - s, far + s), (far + s, near, far - s), (far - s, far + s, near)), np.float32)
    return np.asarray(x @ matrix.T, np.float32)
