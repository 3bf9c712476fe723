"""The tables of a TIFF: which images it holds, and where the blocks of each lie. Knows how to get no byte, and no GDAL.

The layout read here is TIFF 6.0 (section 2) and BigTIFF. The first directory is the raster, as GDAL sees it; of the others,
those marked "reduced" are its overviews, those marked "mask" the masks of the image that is as large.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoinfer.grid import Window

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

Span: TypeAlias = tuple[int, int]
"""(start, stop) in bytes of the file."""
Load: TypeAlias = Callable[[Sequence[Span]], list[bytes]]
"""Gives the bytes of spans; shorter where the file ends."""

_MAX_DIRECTORIES = 256
_MAX_ENTRIES = 4096
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES, _PLANAR = (
    254, 256, 257, 258, 259, 273, 277, 278, 279, 284,
)  # fmt: skip
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_SCALARS = {
    _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT,
}  # fmt: skip
_ARRAYS = {_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES}
_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_FARTHEST = 2**62
_LINE_STRIP = 8192
"""Bytes to which strips without compression are cut, as libtiff does."""


class DamagedTable(ValueError):
    """The tables are cut off or make no sense."""


@dataclass(frozen=True, slots=True)
class Table:
    """An array of integers in the file."""

    position: int
    """Of the first value, bytes."""
    count: int
    kind: str
    """NumPy's type, with the byte order."""

    def span(self, first: int, stop: int) -> Span:
        """Where the values first:stop lie."""
        size = np.dtype(self.kind).itemsize
        return self.position + first * size, self.position + stop * size


@dataclass(frozen=True, slots=True)
class Directory:
    """One image of a TIFF."""

    height: int
    width: int
    samples: int
    bits: int
    """Of a sample."""
    interleaved: bool
    """All samples of a pixel lie in one block."""
    is_tiled: bool
    is_compressed: bool
    stored_block: tuple[int, int]
    """(rows, cols) of a tile or strip, as the file says."""
    is_reduced: bool
    is_mask: bool
    offsets: Table | None
    sizes: Table | None
    extent: int
    """Where the directory, and what its entries point to, end."""

    @property
    def is_plain(self) -> bool:
        """Strips without compression: any line can be read alone."""
        return not self.is_tiled and not self.is_compressed

    @property
    def line_bytes(self) -> int:
        """Of a line of a strip without compression."""
        return -(-self.width * self.bits * (self.samples if self.interleaved else 1) // 8)

    @property
    def block(self) -> tuple[int, int]:
        """(rows, cols) that can be read alone."""
        rows, cols = self.stored_block
        return (max(1, min(rows, _LINE_STRIP // max(1, self.line_bytes))), cols) if self.is_plain else (rows, cols)

    @property
    def block_bytes(self) -> int:
        """Of a decoded block as the file says, 0 where GDAL cuts it."""
        if self.is_plain:
            return 0
        rows, cols = self.stored_block
        return rows * cols * -(-self.bits // 8) * (self.samples if self.interleaved else 1)

    @property
    def lattice(self) -> tuple[int, int]:
        """Tiles or strips (down, across)."""
        rows, cols = self.stored_block
        return -(-self.height // rows), -(-self.width // cols)


def read_directories(load: Load) -> tuple[Directory, ...]:
    """All images of a TIFF, in the file's order.

    Raises:
        DamagedTable: Cut off or damaged.
    """
    [head] = load([(0, 16)])
    if head[:4] not in MAGIC:
        raise DamagedTable("no TIFF")
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\x00", b"\x00+")
    found: list[Directory] = []
    seen: set[int] = set()
    try:
        position = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
        while position and position not in seen and len(found) < _MAX_DIRECTORIES:
            seen.add(position)
            directory, position = _read_directory(load, order, big, min(position, _FARTHEST))
            found.append(directory)
    except (struct.error, OverflowError) as error:
        raise DamagedTable("its tables are cut off or damaged") from error
    if not found:
        raise DamagedTable("no image in it")
    return tuple(found)


def overviews_of(directories: Sequence[Directory]) -> tuple[Directory, ...]:
    """The overviews of the first image, in the file's order, which is GDAL's."""
    main = directories[0]
    return tuple(
        other
        for other in directories[1:]
        if other.is_reduced and not other.is_mask and other.samples == main.samples and other.bits == main.bits
    )


def mask_of(directories: Sequence[Directory], image: Directory) -> Directory | None:
    """The mask of an image."""
    size = image.height, image.width
    return next((other for other in directories[1:] if other.is_mask and (other.height, other.width) == size), None)


def block_table(
    load: Load, image: Directory, window: Window, bands: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Where the tiles or strips under a window lie.

    Args:
        load: Gives bytes.
        image: Of the file.
        window: In the image, within it.
        bands: Numbers of the bands wanted, from 1.

    Returns:
        offsets, sizes (rows * cols * planes,) in bytes; 0 for what was never written. Strips without compression are cut to
        the lines under the window. None where the file has no such table.

    Raises:
        DamagedTable: Cut off.
    """
    if image.offsets is None or (image.sizes is None and not image.is_plain):
        return None
    rows, cols = image.stored_block
    down, across = image.lattice
    first, stop = window.row // rows, -(-window.stop_row // rows)
    left, right = window.col // cols, -(-window.stop_col // cols)
    planes = [0] if image.interleaved else sorted({band - 1 for band in bands})
    runs = [
        ((plane * down + row) * across + left, (plane * down + row) * across + right)
        for plane in planes
        for row in range(first, stop)
    ]
    if right - left == across:  # whole rows follow on each other
        runs = [((plane * down + first) * across, (plane * down + stop) * across) for plane in planes]
    if image.is_plain or image.sizes is None:
        [offsets] = _values(load, [image.offsets], runs)
        return _lines(image, window, offsets, len(planes), first, stop)
    offsets, sizes = _values(load, [image.offsets, image.sizes], runs)
    is_written = (offsets > 0) & (sizes > 0)
    return np.where(is_written, offsets, 0), np.where(is_written, sizes, 0)


def _read_directory(load: Load, order: str, big: bool, position: int) -> tuple[Directory, int]:
    """A directory, and the position of the next."""
    offset, count_kind, entry = (
        order + ("Q" if big else "I"),
        order + ("Q" if big else "H"),
        order + ("HHQ" if big else "HHI"),
    )
    head, step, inline = struct.calcsize(count_kind), (20 if big else 12), (8 if big else 4)
    [body] = load([(position, position + 2048)])  # one look for most
    count = struct.unpack_from(count_kind, body)[0]
    if count > _MAX_ENTRIES:
        raise DamagedTable("a directory without end")
    end = position + head + count * step + struct.calcsize(offset)
    if end > position + len(body):
        [body] = load([(position, end)])
    following = struct.unpack_from(offset, body, head + count * step)[0]
    tags: dict[int, int] = {}
    tables: dict[int, Table] = {}
    for at in range(head, head + count * step, step):
        tag, kind, values = struct.unpack_from(entry, body, at)
        size = values * _KIND_BYTES.get(kind, 0)
        place = at + step - inline
        where = position + place if size <= inline else struct.unpack_from(offset, body, place)[0]
        if size > inline:
            end = max(end, where + size)
        if not values or kind not in _INTEGERS:
            continue
        if tag in _ARRAYS:
            tables[tag] = Table(
                min(where, _FARTHEST), values, order + {"B": "u1", "H": "u2", "I": "u4", "Q": "u8"}[_INTEGERS[kind]]
            )
        elif tag in _SCALARS:
            first = (
                body[place : place + 8] if size <= inline else load([(min(where, _FARTHEST), min(where, _FARTHEST) + 8)])[0]
            )
            tags[tag] = struct.unpack_from(order + _INTEGERS[kind], first)[0]
    return _directory(tags, tables, end), following


def _directory(tags: dict[int, int], tables: dict[int, Table], extent: int) -> Directory:
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    tiled = _TILE_WIDTH in tags
    if tiled:
        block = tags.get(_TILE_HEIGHT, tags[_TILE_WIDTH]), tags[_TILE_WIDTH]
    else:
        block = min(height, tags.get(_ROWS_PER_STRIP, height)), width
    kind = tags.get(_SUBFILE, 0)
    offsets = tables.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    sizes = tables.get(_TILE_SIZES if tiled else _STRIP_SIZES)
    samples, interleaved = tags.get(_SAMPLES, 1), tags.get(_PLANAR, 1) == 1
    block = max(1, block[0]), max(1, block[1])
    blocks = -(-height // block[0]) * -(-width // block[1]) * (1 if interleaved else samples)
    return Directory(
        height=height,
        width=width,
        samples=samples,
        bits=tags.get(_BITS, 1),
        interleaved=interleaved,
        is_tiled=tiled,
        is_compressed=tags.get(_COMPRESSION, 1) != 1,
        stored_block=block,
        is_reduced=bool(kind & 1),
        is_mask=bool(kind & 4),
        offsets=offsets if offsets is not None and offsets.count >= blocks else None,
        sizes=sizes if sizes is not None and sizes.count >= blocks else None,
        extent=extent,
    )


def _values(load: Load, tables: Sequence[Table], runs: Sequence[Span]) -> list[NDArray[np.int64]]:
    """The values of runs of indices of each table, one behind the other."""
    spans = [table.span(*run) for table in tables for run in runs]
    parts = load(spans)
    found: list[NDArray[np.int64]] = []
    for number, table in enumerate(tables):
        pieces = []
        for (start, stop), content in zip(
            spans[number * len(runs) :][: len(runs)], parts[number * len(runs) :][: len(runs)], strict=True
        ):
            if len(content) < stop - start:
                raise DamagedTable("its table of blocks is cut off")
            pieces.append(np.frombuffer(content, table.kind))
        values = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        found.append(values.astype(np.int64))
    return found


def _lines(
    image: Directory, window: Window, offsets: NDArray[np.int64], planes: int, first: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lines of a window in strips without compression."""
    rows = image.stored_block[0]
    tops = np.arange(first, stop, dtype=np.int64) * rows
    begin = np.maximum(tops, window.row) - tops
    lines = np.minimum(tops + rows, window.stop_row) - tops - begin
    line = image.line_bytes
    starts = offsets.reshape(planes, -1) + begin * line
    sizes = np.broadcast_to(lines * line, starts.shape)
    is_written = offsets.reshape(planes, -1) > 0
    return np.where(is_written, starts, 0).ravel(), np.where(is_written, sizes, 0).ravel()


def spans_of(offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[Span]:
    """(start, stop) of each block that was written."""
    for start, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        if size:
            yield start, start + size
