"""The blocks that rasters are stored in, decoded once: what every read of pixels goes through.

Neighbouring chips share blocks, and so do the threads that read them. A process remembers what it decoded last, as it is
stored, and a window is copied together from there. The unit is a *granule*: the file's own block, or as many small ones as
make a square or a strip that is worth a call of GDAL. Granules lie on a lattice of their own, so windows share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.cache import Cache
from geoinfer.imagery.decode import decode
from geoinfer.imagery.raster import RasterFile, check_unchanged, environment

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
    with environment():
        for granule in _granules(file, window):
            part = window.intersection(granule)
            frame, (source, known) = _find(file, granule, part)
            there, here = part.slices_in(window), part.slices_in(frame)
            pixels[:, *there] = source[:, *here]
            if known is not None and not known[here].all():
                if valid is None:
                    valid = np.ones((window.height, window.width), np.bool_)
                valid[there] = known[here]
    return valid


def forget(file: RasterFile, window: Window) -> None:
    """Make room: nobody will read what lies wholly inside a window of the raster again."""
    inside = (granule for granule in _granules(file, window) if granule.intersection(window) == granule)
    _BLOCKS.drop(_key(file, granule) for granule in inside)


def _key(file: RasterFile, granule: Window) -> tuple[Any, ...]:
    return file.path, file.size, file.mtime_ns, file.bands, granule.row, granule.col


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


def _find(file: RasterFile, granule: Window, part: Window) -> tuple[Window, _Block]:
    """A granule, or only the file's blocks under a part of it where others are damaged; and the window of what is given."""
    try:
        return granule, _BLOCKS.get(_key(file, granule), partial(decode, file, granule))
    except SourceError:
        rows, cols = file.block
        top, left = part.row - part.row % rows, part.col - part.col % cols
        bottom, right = -(-part.stop_row // rows) * rows, -(-part.stop_col // cols) * cols
        needed = Window(top, left, bottom - top, right - left).intersection(granule)
        if needed == granule:
            raise
    return needed, decode(file, needed)
