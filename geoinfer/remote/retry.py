"""Failures that may pass, and how long to wait before the next try. Sends nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from geoinfer.errors import RemoteError
from geoinfer.remote.access import Access
from geoinfer.remote.address import shown
from geoinfer.remote.meter import count_sent

PAUSE_S = 0.5
"""Before the second try; each further one waits twice as long, and every wait is cut short by a random share up to half."""
_LONGEST_PAUSE_S = 20.0
_LONGEST_ASKED_S = 60.0
"""As long as a server may ask for with `Retry-After`."""
_PASSING = (408, 425, 429)

T = TypeVar("T")


class Passing(Exception):
    """A failure that may pass. Never leaves this package."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


def is_passing(status: int) -> bool:
    """A status that another try may change."""
    return status >= 500 or status in _PASSING


def asked_wait_s(value: str | None) -> float:
    """What `Retry-After` asks for, seconds, within reason (RFC 9110, 10.2.3: seconds or a date)."""
    if not value:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(wait_s, 0.0), _LONGEST_ASKED_S)


def persist(url: str, access: Access, ask: Callable[[int], T]) -> T:
    """Call `ask(attempt)` until it does not fail with `Passing`, or as often as `access` allows.

    Raises:
        RemoteError: All tries failed.
    """
    reason = ""
    for attempt in range(access.tries):
        if attempt:
            count_sent(retries=1)
        try:
            return ask(attempt)
        except Passing as error:
            reason, wait_s = error.reason, error.wait_s
        if attempt + 1 < access.tries:
            pause_s = min(PAUSE_S * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            time.sleep(max(pause_s, wait_s))
    tries = f"{access.tries} tries" if access.tries > 1 else "1 try"
    raise RemoteError(f"{shown(url)}: no answer after {tries} ({reason}); check the address or try again later")
