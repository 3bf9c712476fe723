"""Content hashes that are known already, so that a second run on a large file need not read it whole to name it.

A file's hash is taken from memory where path, device, inode, size and both times of change are what they were: the time
of the last status change cannot be set by a program, so a file that was written to is hashed anew. Files that changed within
the last moments are never remembered, since another write could leave the same times. Remembering may fail (a read-only
home); then files are hashed each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from geoinfer.errors import SourceError
from geoinfer.imagery.stored import Stored, read
from geoinfer.remote.client import LONGEST_BYTES

SETTLED_NS = 2_000_000_000
"""A file must have been left alone for so long before its hash is kept: coarser than the clock of any file system."""
_TOGETHER = 2**26
"""Bytes of a remote file that are fetched side by side."""
MOST_BYTES = 4 * 2**20
"""Size at which the memory is started again: about 30,000 files."""


def remembered(path: str, make: Callable[[], str]) -> str:
    """The SHA-256 of a file, from memory or made.

    Args:
        path: The file.
        make: Reads it and gives the hash in hexadecimal.

    Raises:
        OSError: The file is gone; and what `make` raises.
    """
    before = os.stat(path)
    key = _key(path, before)
    memory = _memory()
    with contextlib.suppress(OSError):
        found = _SEEN.get(memory, key)
        if found is not None:
            return found
    digest = make()
    after = os.stat(path)
    if _key(path, after) == key and time.time_ns() - max(after.st_ctime_ns, after.st_mtime_ns) > SETTLED_NS:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            mode = "w" if memory.exists() and memory.stat().st_size > MOST_BYTES else "a"
            with memory.open(mode, encoding="ascii") as file:
                file.write(f"{key} {digest}\n")  # one short write: lines of two processes do not mix
    return digest


class _Seen:
    """What of the memory this process has read. It grows at its end, so only that is read again: thousands of files cost one
    pass. Where it was started again, what is known stays true; what is missed is hashed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: tuple[str, int] | None = None
        self._stop = 0
        self._known: dict[str, str] = {}

    def get(self, memory: Path, key: str) -> str | None:
        """The hash of a key, None where the memory has none."""
        with self._lock, memory.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if self._file != (str(memory), status.st_ino) or status.st_size < self._stop:
                self._file, self._stop, self._known = (str(memory), status.st_ino), 0, {}
            stream.seek(self._stop)
            fresh = stream.read()
            fresh = fresh[: fresh.rfind(b"\n") + 1]
            self._stop += len(fresh)
            for line in fresh.decode("ascii", errors="replace").splitlines():
                known, _, digest = line.partition(" ")
                if len(digest) == 64:
                    self._known[known] = digest
            return self._known.get(key)


_SEEN = _Seen()


def hash_stored(stored: Stored) -> str:
    """The SHA-256 of a file's content, in hexadecimal: remembered where it is local, fetched as a whole where it is remote.

    Raises:
        SourceError: It changed, or cannot be read.
        RemoteError: A server gave up.
    """
    if stored.remote is not None:
        digest = hashlib.sha256()
        for first in range(0, stored.size, _TOGETHER):
            stop = min(first + _TOGETHER, stored.size)
            for part in read(stored, [(at, min(at + LONGEST_BYTES, stop)) for at in range(first, stop, LONGEST_BYTES)]):
                digest.update(part)
        return digest.hexdigest()
    try:
        stored.check_unchanged()
        found = remembered(stored.path, lambda: _hash_content(stored.path))
        stored.check_unchanged()
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{os.path.basename(stored.path)}: cannot be read: {error.strerror or error}") from error
    return found


def _hash_content(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _memory() -> Path:
    """Where hashes are kept, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoinfer" / "sha256.txt"


def _key(path: str, status: os.stat_result) -> str:
    """What stands for one state of one file; tells nobody which file it is."""
    facts = (os.path.abspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
