"""How far a run is, on stderr: a bar for a person, a line now and then for a log.

Knows how to show numbers; the pipeline brings them, as `pipeline.Progress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from geoinfer.cli.printing import duration_text, say, talks_to_a_person

if TYPE_CHECKING:
    from geoinfer.pipeline import Progress

LINES = 20
"""A line in a log each time this many-th of the tiles is done, 5 % ..."""
EVERY_SECONDS = 30.0
"""... or after this long, whichever comes first; but not more often than each second."""

Show = Callable[["Progress"], None]


class Speed:
    """Speed and time left, by the tiles that this process did: tiles found finished took none of its time."""

    def __init__(self) -> None:
        self._found: int | None = None

    def text(self, progress: Progress) -> str:
        """`12/40 tiles, 0.31 km²/s, 5120 footprints, 1:05 min left`."""
        if self._found is None:
            self._found = progress.done - 1
        here = progress.done - self._found
        left = duration_text((progress.total - progress.done) * progress.seconds / here) if here > 0 else "?"
        failed = f", {progress.failed} failed" if progress.failed else ""
        speed = progress.area_m2 / 1e6 / max(progress.seconds, 1e-9)
        tiles = f"{progress.done}/{progress.total} tiles{failed}"
        return f"{tiles}, {speed:.3g} km²/s, {progress.footprints} footprints, {left} left"


@contextmanager
def shown(quiet: bool) -> Iterator[Show]:
    """A function to call after each tile, for as long as the block runs."""
    if quiet:
        yield lambda _progress: None
    elif talks_to_a_person():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _lines() -> Show:
    speed = Speed()
    last_step, last_time = 0, time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last_step, last_time
        text = speed.text(progress)
        now, step = time.monotonic(), progress.done * LINES // progress.total
        is_due = step > last_step and now - last_time >= 1
        if is_due or now - last_time >= EVERY_SECONDS or progress.done == progress.total:
            last_step, last_time = step, now
            say(f"{progress.done / progress.total:.0%} {text}")

    return show


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    speed = Speed()
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("opening the imagery and the model", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=speed.text(progress))

        yield show
