"""Whose turn it is to ask a tile service: so many requests at a time and a second from a machine, by however many processes.

Workers that share a cache folder share the turns: each place is a lock on a small file beside the tiles, which the system
gives back when a process dies. Where files cannot be locked (a folder that is read only, some network file systems) each
process keeps to the numbers by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE_S = 0.01
"""Between two looks for a free place; longer by chance, so that nobody is always first."""


@contextmanager
def turn(folder: Path, service: str, concurrency: int, rate: float | None) -> Iterator[None]:
    """Wait for a place, and hold it.

    Args:
        folder: Of the cache.
        service: What shares places.
        concurrency: Places.
        rate: Turns a second, at most.
    """
    name = hashlib.sha256(service.encode()).hexdigest()[:16]
    place = _place(folder / "turns", name, concurrency)
    try:
        if rate is not None:
            _pace(folder / "turns" / f"{name}.rate", rate)
        yield
    finally:
        if place is not None:
            os.close(place)


def _place(folder: Path, name: str, count: int) -> int | None:
    """A descriptor that holds a lock; None where there are no locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            for number in random.sample(range(count), count):
                descriptor = os.open(folder / f"{name}.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                except OSError:
                    os.close(descriptor)
                    raise
                else:
                    return descriptor
            time.sleep(_PAUSE_S * random.uniform(1.0, 3.0))
    except OSError:
        return None


def _pace(path: Path, rate: float) -> None:
    """Sleep until the next turn of all processes: the file holds when that is, seconds since 1970."""
    begun, due = time.time(), 0.0
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 64, 0)
            with contextlib.suppress(ValueError):
                due = float(text or b"0")
            due = due if begun < due < begun + 60.0 + 100.0 / rate else begun  # a clock that jumped holds nobody up
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, repr(due + 1.0 / rate).encode(), 0)
        finally:
            os.close(descriptor)
    time.sleep(max(0.0, due - time.time()))
