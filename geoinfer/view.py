"""A picture of footprints over imagery, as PNG. No plotting library: rasterio burns the shapes and writes the file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, OutputError

Colour = tuple[int, int, int]

COLOURS: Mapping[str, Colour] = {
    "found": (255, 214, 10),
    "truth": (90, 200, 250),
    "tp": (52, 220, 110),
    "fp": (255, 69, 58),
    "fn": (64, 156, 255),
    "ignored": (170, 170, 170),
}
"""Colour of each kind of footprint: found (not judged), truth, true positive, false positive, missed, ignored."""

SAMPLES = 4
"""Samples a pixel, along each axis: smooth lines."""
BAND = 512
"""Rows burnt at a time: bounds the memory that the samples take."""
GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71244",
    "8": "75757", "9": "75717", "k": "45655", " ": "00000", ".": "00002",
}  # fmt: skip
"""Five rows of three bits, an octal digit each, for each character that a scale bar needs."""
WIDE = {"m": ("00000", "00000", "11010", "10101", "10101")}
"""Characters that three bits cannot show."""


def draw(
    image: NDArray[np.uint8],
    geometries: Sequence[BaseGeometry],
    transform: Affine,
    path: str | Path,
    *,
    kinds: Sequence[str] | None = None,
    colours: Mapping[str, Colour] = COLOURS,
    width: float = 1.6,
    fill: float = 0.18,
    scale_m: float | None = None,
) -> None:
    """Write a picture of outlines over imagery. The same input gives the same pixels.

    Args:
        image: (C, H, W) uint8; the first three bands are red, green and blue, a single one is grey.
        geometries: Polygons in the frame that `transform` leads to.
        transform: (col, row) -> (x, y).
        path: Where to write the PNG.
        kinds: The kind of each polygon, a key of `colours`; `found` where not given. Later kinds lie above earlier ones.
        colours: Colour of each kind.
        width: Width of an outline, pixels.
        fill: Opacity of the inside, 0..1.
        scale_m: Metres a pixel; draws a scale bar.

    Raises:
        ConfigError: An image that is not (C, H, W) uint8, as many kinds as not geometries, or an unknown kind.
        OutputError: The file cannot be written.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ConfigError(f"image {image.shape} {image.dtype}: a picture needs (bands, rows, cols) of uint8")
    labels = list(kinds) if kinds is not None else ["found"] * len(geometries)
    if len(labels) != len(geometries):
        raise ConfigError(f"{len(labels)} kinds for {len(geometries)} geometries")
    unknown = sorted(set(labels) - set(colours))
    if unknown:
        raise ConfigError(f"kind {unknown[0]!r} is unknown; use {', '.join(colours)}")
    picture = overlay(image, geometries, transform, labels, colours, width, fill)
    if scale_m is not None:
        _scale_bar(picture, scale_m)
    try:
        Path(path).write_bytes(encoded(picture))
    except OSError as error:
        raise OutputError(f"{path}: cannot write the picture: {error}") from error


def overlay(
    image: NDArray[np.uint8],
    geometries: Sequence[BaseGeometry],
    transform: Affine,
    kinds: Sequence[str],
    colours: Mapping[str, Colour] = COLOURS,
    width: float = 1.6,
    fill: float = 0.18,
) -> NDArray[np.uint8]:
    """The picture that `draw` writes, without its scale bar; see there.

    Returns:
        (3, H, W) uint8.
    """
    red_green_blue = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    picture = red_green_blue.astype(np.float32)  # (3, H, W)
    to_pixels = ~transform
    matrix = np.array([[to_pixels.a, to_pixels.b], [to_pixels.d, to_pixels.e]])
    offset = np.array([to_pixels.c, to_pixels.f])
    shapes_xy = np.fromiter(geometries, dtype=object, count=len(geometries))
    in_pixels = np.asarray(shapely.transform(shapes_xy, lambda xy: xy @ matrix.T + offset), dtype=object)
    words = np.asarray(kinds, dtype=object)
    for kind in colours:
        inside = in_pixels[words == kind]
        inside = inside[~(shapely.is_missing(inside) | shapely.is_empty(inside))]
        if not len(inside):
            continue
        rims = shapely.boundary(inside)
        colour = np.array(colours[kind], np.float32)
        # A darker rim below the line keeps it visible on roofs of its own colour.
        for shapes, tone, opacity in (
            (inside, colour, fill),
            (shapely.buffer(rims, width / 2 + 0.8, quad_segs=4), colour * 0.15, 0.45),
            (shapely.buffer(rims, width / 2, quad_segs=4), colour, 1.0),
        ):
            _blend(picture, shapes, tone, opacity)
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)


def encoded(picture: NDArray[np.uint8], driver: Literal["PNG", "JPEG"] = "PNG", **options: str | int) -> bytes:
    """(3, H, W) uint8 as a picture file. Made in memory: GDAL would leave an .aux.xml beside it, and raise no OSError.

    Args:
        picture: Red, green, blue.
        driver: GDAL's name of the format.
        options: Of the driver, such as `quality`.
    """
    _, height, width = picture.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver, count=3, height=height, width=width, dtype="uint8", **options) as file:
            file.write(picture)
        return bytes(memory.read())


def _blend(picture: NDArray[np.float32], shapes: NDArray[np.object_], colour: NDArray[np.float32], opacity: float) -> None:
    """Mix a colour into the picture, by the share of each pixel that the shapes cover."""
    _, height, width = picture.shape
    bounds = shapely.bounds(shapes)
    for top in range(0, height, BAND):
        rows = min(BAND, height - top)
        near = shapes[(bounds[:, 3] > top) & (bounds[:, 1] < top + rows)]
        if not len(near):
            continue
        samples = rasterize(
            near.tolist(),
            (rows * SAMPLES, width * SAMPLES),
            transform=Affine(1 / SAMPLES, 0, 0, 0, 1 / SAMPLES, top),
        )
        cover = samples.reshape(rows, SAMPLES, width, SAMPLES).mean(axis=(1, 3), dtype=np.float32) * np.float32(opacity)
        part = picture[:, top : top + rows]
        part += (colour[:, None, None] - part) * cover


def _scale_bar(picture: NDArray[np.uint8], scale_m: float) -> None:
    """A white bar of a round length on a dark ground, lower left, with its length in metres or kilometres."""
    _, height, width = picture.shape
    size = max(1, min(height, width) // 320)
    wanted = width * scale_m / 4
    power = 10.0 ** math.floor(math.log10(wanted))
    length_m = max(step for step in (power, 2 * power, 5 * power) if step <= wanted)
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    bar = round(length_m / scale_m)
    rows, cols = 14 * size, bar + 8 * size
    if (
        rows + 8 * size > height
        or cols + 8 * size > width
        or any(letter not in GLYPHS and letter not in WIDE for letter in text)
    ):
        return
    top, left = height - rows - 4 * size, 4 * size
    panel = picture[:, top : top + rows, left : left + cols]
    panel[:] = panel // 3
    panel[:, 10 * size : 12 * size, 4 * size : 4 * size + bar] = 255
    at = 4 * size
    for letter in text:
        rows_of = WIDE.get(letter) or [f"{int(row):03b}" for row in GLYPHS[letter]]
        bits = np.array([[bit == "1" for bit in row] for row in rows_of])
        big = np.repeat(np.repeat(bits, size, axis=0), size, axis=1)
        if at + big.shape[1] > cols:
            return
        panel[:, 2 * size : 7 * size, at : at + big.shape[1]][:, big] = 255
        at += big.shape[1] + size
