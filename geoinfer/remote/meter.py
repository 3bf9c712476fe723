"""How much came over networks, by thread: counters that only grow, so that whoever reads takes differences."""

from __future__ import annotations

import threading
from typing import NamedTuple


class Sent(NamedTuple):
    """What a thread asked for since it began. What helpers fetched on its behalf counts as its own."""

    requests: int = 0
    """Requests put on a connection: tries again and redirects too."""
    bytes: int = 0
    """Of bodies received, whether or not they could be used."""
    retries: int = 0
    """Tries after the first."""


class _Count(threading.local):
    so_far = Sent()


_COUNT = _Count()


def sent() -> Sent:
    """By this thread so far."""
    return _COUNT.so_far


def count_sent(requests: int = 0, bytes: int = 0, retries: int = 0) -> None:  # what it is
    """Add to this thread's counters."""
    known = _COUNT.so_far
    _COUNT.so_far = Sent(known.requests + requests, known.bytes + bytes, known.retries + retries)
