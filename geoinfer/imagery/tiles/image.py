"""From the bytes of one map tile to red, green, blue and what is valid.

Only PNG, JPEG, WebP and GIF reach GDAL, told by their first bytes, each with its own driver, from memory; pixels are decoded
after a look at the size.

A pixel is invalid where its alpha is 0 or its colour is the transparent one. A tile that is black all over is invalid as a
whole: that is how services and proxies paint 'nothing here', and a sensor never sees it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from geoinfer.imagery.raster import environment, reason_of

LARGEST_SIDE = 4096
"""Pixels; larger tiles are refused before they are decoded."""

_LONGEST_TAIL = 1024
"""Bytes that may follow the end of an image."""


class NotATileError(ValueError):
    """These bytes are no map tile; the text says why. Becomes a SourceError where the tile's address is known."""


def driver_of(content: bytes) -> str | None:
    """GDAL's driver for an image, by its first bytes; None for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return "GIF" if content.startswith((b"GIF87a", b"GIF89a")) else None


def side_of(content: bytes) -> int:
    """Side of a square tile, pixels.

    Raises:
        NotATileError: No image, or not a square one.
    """
    with _open(content) as dataset:
        if dataset.width != dataset.height:
            raise NotATileError(f"an image of {dataset.width} x {dataset.height} px, not square")
        return int(dataset.height)


def decode_tile(content: bytes, side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Pixels of a tile.

    Args:
        content: As it came.
        side: What it must be, pixels.

    Returns:
        pixels: (3, side, side); valid: (side, side), None where all are.

    Raises:
        NotATileError: No image, damaged, another size, or not 8 bit.
    """
    with _open(content) as dataset:
        if (dataset.width, dataset.height) != (side, side):
            raise NotATileError(f"an image of {dataset.width} x {dataset.height} px; tiles of {side} x {side} are expected")
        pixels, valid = _read(dataset)
    seen = pixels if valid is None else pixels[:, valid]
    if not seen.any():
        return pixels, np.zeros((side, side), np.bool_)
    return pixels, None if valid is None or valid.all() else valid


@contextmanager
def _open(content: bytes) -> Iterator[DatasetReader]:
    """The dataset of an image in memory; GDAL's errors, which cannot be pickled, become ours."""
    driver = driver_of(content)
    if driver is None:
        raise NotATileError(f"not an image (first bytes {content[:12]!r})" if content else "empty (0 bytes)")
    if not _is_whole(content, driver):
        raise NotATileError(f"a {driver} that is cut off after {len(content):,} bytes")
    fault = ""
    try:
        with environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(content) as file, file.open(driver=driver) as dataset:
                if max(dataset.width, dataset.height) > LARGEST_SIDE:
                    raise NotATileError(f"an image of {dataset.width} x {dataset.height} px, larger than {LARGEST_SIDE}")
                if not 1 <= dataset.count <= 4 or any(kind != "uint8" for kind in dataset.dtypes):
                    raise NotATileError(f"{dataset.count} bands of {dataset.dtypes[0]}; tiles have 1 to 4 bands of uint8")
                yield dataset
    except RasterioError as error:
        fault = f"a {driver} that cannot be read: {reason_of(error)}"
    if fault:
        raise NotATileError(fault)


def _is_whole(content: bytes, driver: str) -> bool:
    """The image has an end: decoders fill up with black what they do not find."""
    if driver == "WEBP":
        return len(content) >= int.from_bytes(content[4:8], "little") + 8
    mark = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}[driver]
    return mark in content[-_LONGEST_TAIL:]


def _read(dataset: DatasetReader) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Red, green and blue of any of the ways to store them; and what is opaque."""
    stored: NDArray[np.uint8] = dataset.read()  # (1..4, S, S)
    rules = []
    if dataset.count in (2, 4):
        if dataset.colorinterp[-1] != ColorInterp.alpha:
            raise NotATileError(f"{dataset.count} bands, the last of them no alpha band")
        rules.append(stored[-1] != 0)
        stored = stored[:-1]
    if dataset.colorinterp[0] == ColorInterp.palette:
        table = np.zeros((256, 4), np.uint8)
        for index, colour in dataset.colormap(1).items():
            table[index] = colour
        rgba = table[stored[0]]  # (S, S, 4)
        rules.append(rgba[..., 3] != 0)
        stored = np.ascontiguousarray(np.moveaxis(rgba[..., :3], -1, 0))  # (3, S, S)
    elif all(value is not None for value in dataset.nodatavals[: len(stored)]):  # PNG's transparent colour
        blank = np.array(dataset.nodatavals[: len(stored)])[:, None, None]
        rules.append((stored != blank).any(axis=0))
    pixels = np.repeat(stored, 3, axis=0) if len(stored) == 1 else stored
    return pixels, np.logical_and.reduce(rules) if rules else None
