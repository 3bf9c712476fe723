"""From the file to pixels and what is valid of them, every time anew; `blocks` remembers, and others read through it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.meter import count_decoded
from geoinfer.imagery.raster import RasterFile, environment, handle, reason_of


def decode(file: RasterFile, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Pixels of the raster as they are stored, and which are valid.

    A pixel is invalid where the alpha band or the internal mask is 0, where all bands hold nodata, or where any is NaN or
    infinite. What was never written (sparse files) is nodata, or 0 where there is no nodata value, and costs nothing.

    Args:
        file: The raster.
        window: In the raster's own pixels, within it; whole blocks, or they will be decoded again for what is left.

    Returns:
        pixels: (C, H, W) of the file's dtype; valid: (H, W), None where all are. Never written: both broadcast, read only.

    Raises:
        SourceError: The file changed, or the blocks under the window are damaged or missing.
    """
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    fault = ""
    indexes = [*file.bands, file.alpha] if file.alpha is not None else list(file.bands)
    mask = None
    try:
        with environment():
            dataset = handle(file)
            stored = _stored_bytes(dataset, file, indexes, window)
            written = stored is not None or file.has_mask
            if written:
                pixels = dataset.read(indexes, window=area)
                count_decoded(window.height * window.width, stored or 0)
            if file.has_mask:
                mask = dataset.read_masks(file.bands[0], window=area) != 0
    except (RasterioError, OSError) as error:
        if isinstance(error, SourceError):
            raise
        rows, cols = f"{window.row}:{window.stop_row}", f"{window.col}:{window.stop_col}"
        fault = f"{file.name}: cannot read rows {rows}, cols {cols}: {reason_of(error)}"
    if fault:  # raised out here: GDAL's own errors cannot be unpickled, and would travel along as the context
        raise SourceError(fault)
    if written:
        return _validate(file, pixels, mask)
    pixels, valid = _validate(file, np.full((len(indexes), 1, 1), _blank_value(file), file.dtype), None)
    shape = window.height, window.width
    return np.broadcast_to(pixels, (len(pixels), *shape)), None if valid is None else np.broadcast_to(valid, shape)


def _validate(
    file: RasterFile, pixels: NDArray[Any], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Take the alpha band off the pixels and say which are valid, None where all are."""
    rules = [] if mask is None else [mask]
    if file.alpha is not None:
        rules.append(pixels[-1] != 0)
        pixels = pixels[:-1]
    if all(value is not None and not math.isnan(value) for value in file.nodata):
        absent = pixels[0] == file.nodata[0]
        for band, nodata in zip(pixels[1:], file.nodata[1:], strict=True):
            if not absent.any():
                break
            absent &= band == nodata
        rules.append(~absent)
    if pixels.dtype.kind == "f":
        rules.append(np.isfinite(pixels).all(axis=0))
    valid = np.logical_and.reduce(rules) if rules else None
    return pixels, None if valid is None or valid.all() else valid


def _stored_bytes(dataset: DatasetReader, file: RasterFile, indexes: Sequence[int], window: Window) -> int | None:
    """What the blocks under a window take in the file; None where none was ever written.

    From the names by which GDAL's GTiff driver gives away the tables of a TIFF; it has none for a block without an offset.
    """
    height, width = file.block
    sizes = [
        dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=index)
        for row in range(window.row // height, -(-window.stop_row // height))
        for col in range(window.col // width, -(-window.stop_col // width))
        for index in (indexes[:1] if dataset.interleaving == Interleaving.pixel else set(indexes))
    ]
    written = [int(size) for size in sizes if size is not None]
    return sum(written) if written else None


def _blank_value(file: RasterFile) -> float:
    """What GDAL reads where nothing was written: nodata, as far as the type can hold it, else 0."""
    nodata, kind = file.nodata[0], np.dtype(file.dtype)
    if nodata is None or kind.kind == "f":
        return nodata or 0.0
    if math.isnan(nodata):
        return 0.0
    return int(min(max(round(nodata), np.iinfo(kind).min), np.iinfo(kind).max))
