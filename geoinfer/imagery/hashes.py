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
import time
from collections.abc import Callable
from pathlib import Path

SETTLED_NS = 2_000_000_000
"""A file must have been left alone for so long before its hash is kept: coarser than the clock of any file system."""
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
        for line in reversed(memory.read_text(encoding="ascii", errors="replace").splitlines()):
            known, _, digest = line.partition(" ")
            if known == key and len(digest) == 64:
                return digest
    digest = make()
    after = os.stat(path)
    if _key(path, after) == key and time.time_ns() - max(after.st_ctime_ns, after.st_mtime_ns) > SETTLED_NS:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            mode = "w" if memory.exists() and memory.stat().st_size > MOST_BYTES else "a"
            with memory.open(mode, encoding="ascii") as file:
                file.write(f"{key} {digest}\n")  # one short write: lines of two processes do not mix
    return digest


def _memory() -> Path:
    """Where hashes are kept, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoinfer" / "sha256.txt"


def _key(path: str, status: os.stat_result) -> str:
    """What stands for one state of one file; tells nobody which file it is."""
    facts = (os.path.abspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
