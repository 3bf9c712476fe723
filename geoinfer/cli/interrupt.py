"""Ctrl-C and its kin: the first asks a run to end softly, the second ends it at once.

Knows signals only; what ending softly means is the pipeline's affair, which looks at the event between tiles.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from geoinfer.cli.printing import say, talks_to_a_person

SHOW_CURSOR = b"\x1b[?25h\n"
"""For a terminal: the progress bar hides the cursor, and has no time to give it back."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Stop:
    """Whether somebody asked to stop, and how."""

    event: threading.Event = field(default_factory=threading.Event)
    """Set by the first signal."""
    number: int = signal.SIGINT
    """The signal that set it."""

    @property
    def status(self) -> int:
        """Exit status that tells a shell or a batch system which signal it was: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


@contextmanager
def soft_stop() -> Iterator[Stop]:
    """Catch SIGINT, SIGTERM and SIGHUP while the block runs."""
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.event.is_set():
            if talks_to_a_person():
                os.write(2, SHOW_CURSOR)
            os._exit(128 + number)  # the second time means now: committed tiles are on disk, workers notice and leave
        stop.number = number
        stop.event.set()
        say("geoinfer: stopping after the tiles in flight; once more stops at once")

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
