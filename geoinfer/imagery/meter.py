"""How much of the imagery was decoded and fetched, by thread: counters that only grow; who reads takes differences."""

from __future__ import annotations

import threading
from typing import NamedTuple

from geoinfer.remote.meter import sent


class Decoded(NamedTuple):
    """What a thread decoded since it began."""

    pixels: int = 0
    """Pixels of the files' own, each band set counted once."""
    bytes: int = 0
    """What these took in the files."""
    headers: int = 0
    """Files opened."""
    requests: int = 0
    """Sent over networks for it."""
    fetched_bytes: int = 0
    """Received over networks."""
    retries: int = 0
    """Requests sent again."""


class _Count(threading.local):
    so_far = Decoded()


_COUNT = _Count()


def decoded() -> Decoded:
    """By this thread so far."""
    return Decoded(*_COUNT.so_far[:3], *sent())


def count_decoded(pixels: int = 0, bytes: int = 0, headers: int = 0) -> None:  # what it is
    """Add to this thread's counters."""
    known = _COUNT.so_far
    _COUNT.so_far = Decoded(known.pixels + pixels, known.bytes + bytes, known.headers + headers)
