"""From the file to pixels and what is valid of them, every time anew; `blocks` remembers, and others read through it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.meter import count_decoded
from geoinfer.imagery.opener import serving
from geoinfer.imagery.raster import RasterFile, check_unchanged, close_handle, environment, handle, reason_of
from geoinfer.imagery.stored import Content, Pieces, directories, drop, forget, hold, load, read
from geoinfer.imagery.tiff import DamagedTable, Span, block_table, mask_of, overviews_of, spans_of
from geoinfer.remote.client import join_ranges


class DamagedError(SourceError):
    """Blocks that cannot be decoded."""


def decode(file: RasterFile, window: Window, pieces: Pieces | None = None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Pixels of the raster as they are stored, and which are valid.

    A pixel is invalid where the alpha band or the internal mask is 0, where all bands hold nodata, or where any is NaN or
    infinite. What was never written (sparse files) is nodata, or 0 where there is no nodata value, and costs nothing.

    Args:
        file: The raster.
        window: In the raster's own pixels, within it; whole blocks, or they will be decoded again for what is left.
        pieces: Bytes of its blocks where they are at hand; a remote raster's are fetched otherwise.

    Returns:
        pixels: (C, H, W) of the file's dtype; valid: (H, W), None where all are. Never written: both broadcast, read only.

    Raises:
        SourceError: The file changed, or the blocks under the window are damaged or missing.
        RemoteError: A server gave up.
    """
    if file.service is not None:
        from geoinfer.imagery import tiles

        return tiles.decode(file, window)
    if file.remote is not None:
        return _decode_remote(file, window, pieces)
    try:
        return _decode(file, window)
    finally:
        check_unchanged(file)  # written to meanwhile: neither a mixture of two files, nor damage


def ranges_under(file: RasterFile, window: Window) -> list[Span]:
    """Where the blocks under a window lie in the file, those of the mask too: what `decode` reads of them.

    Raises:
        DamagedError: The table of blocks is.
        SourceError: The file changed.
        RemoteError: A server gave up.
    """
    try:
        found = [table for table in _tables(file, window) if table is not None]
    except DamagedTable as error:
        raise DamagedError(f"{file.name}: cannot be read: {error}") from None
    return [span for offsets, sizes in found for span in spans_of(offsets, sizes)]


def _decode_remote(file: RasterFile, window: Window, pieces: Pieces | None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Blocks that cannot be decoded are fetched once more, past everything that was kept: they may have been garbled."""
    stored = file.stored
    try:
        if pieces is None:
            [pieces] = hold(stored, [(window, ranges_under(file, window))])
        return _decode(file, window, pieces)
    except DamagedError:
        close_handle(file)
        forget(stored)
    except BaseException:
        close_handle(file)
        raise
    finally:
        drop(stored, [window])
    try:
        return _decode(file, window, tuple(zip(*_fetched(file, window), strict=True)))
    except BaseException:
        close_handle(file)
        raise


def _fetched(file: RasterFile, window: Window) -> tuple[list[int], list[Content]]:
    spans = join_ranges([(a, min(b, file.size)) for a, b in ranges_under(file, window) if a < file.size], 0)
    return [start for start, _ in spans], read(file.stored, spans)


def _decode(file: RasterFile, window: Window, pieces: Pieces = ()) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    fault = ""
    indexes = [*file.bands, file.alpha] if file.alpha is not None else list(file.bands)
    mask = None
    try:
        with environment():
            size, is_written = _stored_bytes(file, window)
            if is_written or file.has_mask:
                dataset = handle(file)
                with serving(file.stored, pieces):
                    pixels = dataset.read(indexes, window=area)
                    if file.has_mask:
                        mask = dataset.read_masks(file.bands[0], window=area) != 0
                count_decoded(window.height * window.width, size)
    except (RasterioError, DamagedTable) as error:
        rows, cols = f"{window.row}:{window.stop_row}", f"{window.col}:{window.stop_col}"
        fault = f"{file.name}: cannot read rows {rows}, cols {cols}: {reason_of(error)}"
    if fault:  # raised out here: GDAL's own errors cannot be unpickled, and would travel along as the context
        raise DamagedError(fault)
    if is_written or file.has_mask:
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


def _tables(file: RasterFile, window: Window) -> list[tuple[NDArray[np.int64], NDArray[np.int64]] | None]:
    """Offsets and sizes of the blocks under a window, of the pixels and of their mask; None where the file has no table."""
    stored = file.stored
    images = directories(stored)
    image = images[0] if file.overview is None else overviews_of(images)[file.overview]
    bands = [*file.bands, file.alpha] if file.alpha is not None else list(file.bands)
    mask = mask_of(images, image) if file.has_mask else None
    wanted = [image] if mask is None else [image, mask]
    return [block_table(lambda spans: load(stored, spans), each, window, bands) for each in wanted]


def _stored_bytes(file: RasterFile, window: Window) -> tuple[int, bool]:
    """What the blocks under a window take in the file, and whether any of its pixels was ever written."""
    pixels, *others = _tables(file, window)
    size = sum(int(table[1].sum()) for table in (pixels, *others) if table is not None)
    return size, pixels is None or bool(pixels[1].any())


def _blank_value(file: RasterFile) -> float:
    """What GDAL reads where nothing was written: nodata, as far as the type can hold it, else 0."""
    nodata, kind = file.nodata[0], np.dtype(file.dtype)
    if nodata is None or kind.kind == "f":
        return nodata or 0.0
    if math.isnan(nodata):
        return 0.0
    return int(min(max(round(nodata), np.iinfo(kind).min), np.iinfo(kind).max))
