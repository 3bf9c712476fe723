"""Remote files as binary files of Python, and as local copies. Every part is of one version, or there is an error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from geoinfer.errors import SafetyError
from geoinfer.remote.client import LONGEST_BYTES, RemoteFile, read_all, read_ranges

_SEEK_BYTES = 2**18
_STREAM_BYTES = 2**22
_COPY_BYTES = 2**25
_LARGEST_WHOLE = 2**28
"""Bytes of a file that is held in memory because its server gives no parts."""


def open_seekable(file: RemoteFile) -> io.BufferedReader:
    """For reading here and there.

    Raises:
        SourceError: The server gives no parts of files.
    """
    file.check_ranges()
    return io.BufferedReader(_Ranges(file), _SEEK_BYTES)


def open_stream(file: RemoteFile) -> io.BufferedIOBase:
    """For reading from the beginning to the end.

    Raises:
        SafetyError: The server gives no parts of files, and this one is too large to be held.
    """
    if file.has_ranges:
        return io.BufferedReader(_Ranges(file), _STREAM_BYTES)
    try:
        return io.BytesIO(read_all(file, limit=_LARGEST_WHOLE))
    except SafetyError as error:
        raise SafetyError(
            f"{file.shown}: the server gives whole files only, and this one is larger than {_LARGEST_WHOLE // 2**20} MiB; "
            "download it first"
        ) from error


def copy(file: RemoteFile, path: Path) -> None:
    """Download a file, with several requests at a time."""
    file.check_ranges()
    with path.open("wb") as out:
        for start in range(0, file.size, _COPY_BYTES):
            stop = min(start + _COPY_BYTES, file.size)
            spans = [(place, min(place + LONGEST_BYTES, stop)) for place in range(start, stop, LONGEST_BYTES)]
            out.writelines(read_ranges(file, spans))


class _Ranges(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._file.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:
            return 0
        content = read_ranges(self._file, [(self._at, stop)])[0]
        buffer[: len(content)] = content
        self._at = stop
        return len(content)
