"""A raster's bytes, wherever they are: the tables at hand once they were read, and blocks fetched before they are decoded.

A process remembers the pages that tables and headers lie in, so that a file's header travels once however many threads read
it, and the bytes of blocks from when they are fetched until they are decoded. Both are bounded. Knows no pixels and no GDAL.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.cache import Cache
from geoinfer.imagery.tiff import Directory, Span, read_directories
from geoinfer.remote.address import shown
from geoinfer.remote.client import RemoteFile, join_ranges, read_views

HEAD_BYTES = 2**16
"""What is asked for to open a file; the tables of most lie within."""
_PAGE = 2**16
_PAGES_BYTES = 64 * 2**20
_HELD_BYTES = 64 * 2**20
_HELD_BYTES_A_THREAD = 12 * 2**20
_TABLES_BYTES = 32 * 2**20
_DIRECTORY_BYTES = 1024
"""What a parsed directory takes, about."""
_READ_AHEAD = 2**12
"""What GDAL and the parser may read beyond what they need."""
_NEAR = 64
"""Blocks so near to each other are one piece in memory."""

Key: TypeAlias = tuple[str, int, int, str]
Content: TypeAlias = bytes | memoryview
Pieces: TypeAlias = tuple[tuple[int, Content], ...]
"""(position in the file, bytes), in order."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One state of a file of bytes: a local one, or one behind an address."""

    path: str = field(repr=False)
    """Absolute, or an address that may hold secrets."""
    size: int
    """Bytes."""
    mtime_ns: int
    """0 where it is remote."""
    remote: RemoteFile | None = None

    @property
    def shown(self) -> str:
        """For messages."""
        return shown(self.path)

    @property
    def key(self) -> Key:
        """Differs for every file and every version of it."""
        return self.path, self.size, self.mtime_ns, "" if self.remote is None else self.remote.version

    def check_unchanged(self) -> None:
        """Raise SourceError where a local file is no longer the one that was opened; each request checks a remote one."""
        if self.remote is not None:
            return
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be found any more: {error.strerror}") from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise SourceError(f"{self.path}: changed since it was opened; start again when it is complete")


def _size_of_pieces(pieces: Pieces) -> int:
    return sum(len(content) for _, content in pieces)


def _size_of_tables(directories: tuple[Directory, ...]) -> int:
    return _DIRECTORY_BYTES * len(directories)


_PAGES: Cache[tuple[Key, int], bytes] = Cache(_PAGES_BYTES, len)
_HELD: Cache[tuple[Key, Window], Pieces] = Cache(_HELD_BYTES, _size_of_pieces)
_TABLES: Cache[Key, tuple[Directory, ...]] = Cache(_TABLES_BYTES, _size_of_tables)


def read(stored: Stored, spans: Sequence[Span]) -> list[Content]:
    """Bytes of a file, as it is now; shorter where it ends.

    Raises:
        SourceError: It changed, or cannot be read.
        RemoteError: A server gave up.
    """
    inside = [(min(start, stored.size), min(stop, stored.size)) for start, stop in spans]
    if stored.remote is not None:
        return list(read_views(stored.remote, inside))
    try:
        with open(stored.path, "rb") as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in inside]
    except OSError as error:
        raise SourceError(f"{stored.path}: cannot be read: {error.strerror or error}") from error


def load(stored: Stored, spans: Sequence[Span]) -> list[bytes]:
    """`read` for headers and tables: through pages that the process remembers, those that it lacks fetched together."""
    inside = [(min(start, stored.size), min(stop, stored.size)) for start, stop in spans]
    wanted = {page for start, stop in inside for page in range(start // _PAGE, -(-stop // _PAGE))}
    key = stored.key

    def fetch(lacking: list[tuple[Key, int]]) -> list[bytes]:
        pages = sorted(page for _, page in lacking)
        runs = [[page for _, page in run] for _, run in groupby(enumerate(pages), lambda pair: pair[1] - pair[0])]
        found: dict[int, bytes] = {}
        for run, content in zip(runs, read(stored, [(r[0] * _PAGE, (r[-1] + 1) * _PAGE) for r in runs]), strict=True):
            found |= {page: bytes(content[n * _PAGE : (n + 1) * _PAGE]) for n, page in enumerate(run)}
        return [found[page] for _, page in lacking]

    def get(pages: set[int]) -> dict[int, bytes]:
        ordered = sorted(pages)
        return dict(zip(ordered, _PAGES.get_all([(key, page) for page in ordered], fetch), strict=True))

    have = get(wanted)
    trimmed = {  # the head of a file is kept as far as its tables go
        page
        for start, stop in inside
        for page in range(start // _PAGE, -(-stop // _PAGE))
        if len(have[page]) < min(stop, (page + 1) * _PAGE) - page * _PAGE
    }
    if trimmed:
        _PAGES.drop((key, page) for page in trimmed)
        have |= get(trimmed)
    return [
        b"".join(
            have[page][max(0, start - page * _PAGE) : stop - page * _PAGE]
            for page in range(start // _PAGE, -(-stop // _PAGE))
        )
        for start, stop in inside
    ]


def keep_head(stored: Stored, head: bytes) -> None:
    """Remember the first bytes of a file, which came with its opening; only the tables of a large one."""
    _PAGES.put((stored.key, 0), head)
    if len(head) < stored.size:
        extent = max((directory.extent for directory in directories(stored) if directory.extent <= _PAGE), default=_PAGE)
        _PAGES.put((stored.key, 0), head[: extent - extent % _READ_AHEAD + 2 * _READ_AHEAD])


def directories(stored: Stored) -> tuple[Directory, ...]:
    """The images of a TIFF, parsed once.

    Raises:
        DamagedTable: Not a TIFF that can be read.
        SourceError, RemoteError: Its bytes cannot be had.
    """
    return _TABLES.get(stored.key, lambda: read_directories(lambda spans: load(stored, spans)))


def hold(stored: Stored, wanted: Sequence[tuple[Window, Sequence[Span]]]) -> list[Pieces]:
    """The bytes of blocks under windows of a remote file, what nobody has yet fetched together; kept until dropped."""
    spans = dict(wanted)

    def fetch(lacking: list[tuple[Key, Window]]) -> list[Pieces]:
        pieces = {window: _inside(stored, join_ranges(spans[window], _NEAR)) for _, window in lacking}
        parts = iter(read(stored, [span for group in pieces.values() for span in group]))
        return [tuple((start, next(parts)) for start, _ in group) for group in pieces.values()]

    key = stored.key
    return _HELD.get_all([(key, window) for window, _ in wanted], fetch)


def hold_more(threads: int) -> None:
    """Let so many threads fetch side by side."""
    _HELD.grow(_HELD_BYTES + max(0, threads - 2) * _HELD_BYTES_A_THREAD)


def drop(stored: Stored, windows: Sequence[Window]) -> None:
    """These blocks are decoded, or of no use."""
    key = stored.key
    _HELD.drop((key, window) for window in windows)


def forget_head(stored: Stored) -> None:
    """Read the tables of a file anew."""
    _PAGES.drop([(stored.key, 0)])
    _TABLES.drop([stored.key])


def forget(stored: Stored) -> None:
    """Nothing that was fetched of a file is used again."""
    key = stored.key
    _PAGES.discard(lambda known: known[0] == key)
    _HELD.discard(lambda known: known[0] == key)
    _TABLES.drop([key])


def held_bytes() -> int:
    """Fetched, and not yet decoded or forgotten."""
    return _HELD.size + _PAGES.size


def _inside(stored: Stored, spans: Sequence[Span]) -> list[Span]:
    """Cut to the file, which may have been cut off."""
    return [(start, min(stop, stored.size)) for start, stop in spans if start < stored.size]
