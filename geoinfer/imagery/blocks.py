"""The blocks that rasters are stored in, decoded once: what every read of pixels goes through.

Neighbouring chips share blocks, and so do the threads that read them. A process remembers what it decoded last, as it is
stored, and a window is copied together from there. The unit is a *granule*: the file's own block, or as many small ones as
make a square or a strip that is worth a call of GDAL. Granules lie on a lattice of their own, so windows share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoinfer.grid import Window
from geoinfer.imagery.cache import Cache
from geoinfer.imagery.decode import DamagedError, decode, ranges_under
from geoinfer.imagery.raster import RasterFile, check_unchanged, environment
from geoinfer.imagery.stored import Pieces, hold, hold_more
from geoinfer.remote.client import join_ranges

_SMALLEST_SIDE = 256
"""Smaller blocks are decoded together, pixels: below, a call of GDAL costs more than it decodes."""
_LARGEST_GRANULE = 8 * 2**20
"""Bytes up to which small blocks are put together; a single larger block is a granule all the same."""
_CAPACITY = 128 * 2**20
"""Bytes: with strips of tiles, a tenth of the blocks of 8-bit colour is then decoded a second time by two threads."""
_BYTES_A_THREAD = 32 * 2**20
"""For each thread more: the blocks of a row of chips, two high."""

Valid: TypeAlias = NDArray[np.bool_] | None
"""(H, W): which pixels are imagery; None where all are."""
_Block: TypeAlias = tuple[NDArray[Any], Valid]
"""A decoded granule; nobody may write into it."""


def _size_of(block: _Block) -> int:
    """Bytes in memory; 0 for what was never written, which is made anew as fast as it is found."""
    pixels, valid = block
    if not pixels.strides[-1]:
        return 0
    whole = pixels if pixels.base is None else pixels.base  # with the alpha band
    return int(whole.nbytes) + (0 if valid is None else valid.nbytes)


_BLOCKS: Cache[tuple[Any, ...], _Block] = Cache(_CAPACITY, _size_of)


def set_capacity(capacity: int = _CAPACITY) -> None:
    """Bound what this process remembers, bytes; forgets what it did."""
    _BLOCKS.resize(capacity)


def make_room(threads: int) -> None:
    """Let so many threads read tiles side by side; forgets nothing."""
    _BLOCKS.grow(_CAPACITY + max(0, threads - 2) * _BYTES_A_THREAD)
    hold_more(threads)


def remembered() -> int:
    """Bytes of decoded blocks that this process holds."""
    return _BLOCKS.size


def read_window(file: RasterFile, window: Window) -> tuple[NDArray[Any], Valid]:
    """Pixels of a raster as they are stored, and which are valid, by the rules of `decode.decode`.

    Args:
        file: The raster.
        window: In the raster's own pixels, within it.

    Returns:
        pixels: (C, H, W) of the file's dtype, the caller's own; valid: (H, W), None where all are.

    Raises:
        SourceError: The file changed, or the blocks under the window are damaged or missing.
    """
    pixels = np.empty((len(file.bands), window.height, window.width), file.dtype)
    return pixels, read_into(file, window, pixels)


def read_into(file: RasterFile, window: Window, pixels: NDArray[Any]) -> Valid:
    """`read_window` into an array of the caller's, which may be a view of a larger one."""
    check_unchanged(file)
    valid: Valid = None
    held = _fetch(file, [window])
    with environment():
        for granule in _granules(file, window):
            part = window.intersection(granule)
            frame, (source, known) = _find(file, granule, part, held.get(granule))
            there, here = part.slices_in(window), part.slices_in(frame)
            pixels[:, *there] = source[:, *here]
            if known is not None and not known[here].all():
                if valid is None:
                    valid = np.ones((window.height, window.width), np.bool_)
                valid[there] = known[here]
    return valid


def prefetch(file: RasterFile, windows: Sequence[Window]) -> None:
    """Fetch what windows of a remote raster take and nobody has, all of it side by side: reading them need not wait then.

    Raises:
        SourceError: The file changed.
        RemoteError: A server gave up.
    """
    if file.remote is not None or file.service is not None:
        _fetch(file, windows)


def planned_ranges(file: RasterFile, window: Window) -> list[tuple[int, int]]:
    """(start, stop) of the requests that fetch a window in one go; of a local file the reads.

    For a raster that was never opened (`is_assumed`) a guess: as many bytes as its share of the file's pixels.
    """
    part = window.intersection(file.window)
    if part.is_empty:
        return []
    if file.service is not None:
        from geoinfer.imagery import tiles

        return tiles.planned(file, part)
    rows, cols = granule_of(file)
    top, left = part.row - part.row % rows, part.col - part.col % cols
    whole = Window(top, left, -(-part.stop_row // rows) * rows - top, -(-part.stop_col // cols) * cols - left)
    whole = whole.intersection(file.window)
    if file.is_assumed:
        return _guess(file, whole)
    return join_ranges([(start, min(stop, file.size)) for start, stop in ranges_under(file, whole) if start < file.size])


def forget(file: RasterFile, window: Window) -> None:
    """Make room: nobody will read what lies wholly inside a window of the raster again."""
    inside = (granule for granule in _granules(file, window) if granule.intersection(window) == granule)
    _BLOCKS.drop(_key(file, granule) for granule in inside)


def _key(file: RasterFile, granule: Window) -> tuple[Any, ...]:
    return *file.identity, granule.row, granule.col


def granule_of(file: RasterFile) -> tuple[int, int]:
    """(rows, cols) that are decoded together: multiples of the file's blocks."""
    height, width = file.block
    pixel = np.dtype(file.dtype).itemsize * len(file.bands)
    cols = width * max(1, _SMALLEST_SIDE // width)
    rows = height * max(1, min(_SMALLEST_SIDE // height, _LARGEST_GRANULE // (cols * height * pixel)))
    return rows, cols


def _granules(file: RasterFile, window: Window) -> Iterator[Window]:
    """The granules under a window, clipped to the raster."""
    rows, cols = granule_of(file)
    for row in range(window.row - window.row % rows, window.stop_row, rows):
        for col in range(window.col - window.col % cols, window.stop_col, cols):
            yield Window(row, col, rows, cols).intersection(file.window)


def _fetch(file: RasterFile, windows: Sequence[Window]) -> dict[Window, Pieces]:
    """The bytes of those granules under windows that are not decoded, where the raster is remote."""
    if file.remote is None and file.service is None:
        return {}
    by_key = {_key(file, granule): granule for window in windows for granule in _granules(file, window)}
    lacking = [by_key[key] for key in _BLOCKS.missing(by_key)]
    if file.service is not None:
        from geoinfer.imagery import tiles

        tiles.prefetch(file, lacking)
        return {}
    try:
        pieces = hold(file.stored, [(granule, ranges_under(file, granule)) for granule in lacking])
    except DamagedError:  # tables that were garbled: each granule tries again by itself
        return {}
    return dict(zip(lacking, pieces, strict=True))


def _find(file: RasterFile, granule: Window, part: Window, pieces: Pieces | None) -> tuple[Window, _Block]:
    """A granule, or only the file's blocks under a part of it where others are damaged; and the window of what is given."""
    try:
        return granule, _BLOCKS.get(_key(file, granule), partial(decode, file, granule, pieces))
    except DamagedError:
        rows, cols = file.block
        top, left = part.row - part.row % rows, part.col - part.col % cols
        bottom, right = -(-part.stop_row // rows) * rows, -(-part.stop_col // cols) * cols
        needed = Window(top, left, bottom - top, right - left).intersection(granule)
        if needed == granule:
            raise
    return needed, decode(file, needed)


def _guess(file: RasterFile, window: Window) -> list[tuple[int, int]]:
    """A run of bytes for each row of blocks under a window, by its share of the pixels."""
    rows = file.block[0]
    share = file.size / max(1, file.height * file.width)
    tops = range(window.row, window.stop_row, rows)
    sizes = [int(min(rows, window.stop_row - top) * window.width * share) for top in tops]
    starts = [math.ceil(top * file.width * share) for top in tops]
    return join_ranges([(start, start + size) for start, size in zip(starts, sizes, strict=True)])
