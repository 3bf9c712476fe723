"""Where the time goes: spans of work, by process and thread, which add up to stages and can be looked at as a trace.

Measures and decides nothing. Spans are noted by whatever thread does the work, collected once a tile, and sent to the driver
with it; the driver adds them up and, where a file was asked for, writes them down as they come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from geoinfer.errors import OutputError, ResourceError

MOST_HELD = 100_000
"""Spans kept while nobody collects them: a notebook that calls `predict` all day must not grow."""


class Span(NamedTuple):
    """One piece of work of one thread."""

    name: str
    """The stage."""
    start_us: int
    """Since the epoch, so that the processes of one machine agree."""
    duration_us: int
    process: int
    thread: int
    """Of the system, unique among all processes."""
    what: str
    """What it was done for, as a tile's row and column."""


_held: deque[Span] = deque(maxlen=MOST_HELD)  # appending and taking are atomic: no lock


class span:  # noqa: N801  # reads as a verb: `with span("read"):`
    """Note how long a block took, also when it fails."""

    __slots__ = ("_begin_ns", "_name", "_start_ns", "_what", "seconds")

    def __init__(self, name: str, what: str = "") -> None:
        self._name, self._what = name, what
        self.seconds = 0.0
        """What the block took, once it has ended."""

    def __enter__(self) -> span:
        self._start_ns, self._begin_ns = time.time_ns(), time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        took_ns = time.perf_counter_ns() - self._begin_ns
        self.seconds = took_ns / 1e9
        note(self._name, self._start_ns, took_ns, self._what)


def note(name: str, start_ns: int, duration_ns: int, what: str = "") -> None:
    """Note a piece of work of this thread that was timed elsewhere, as by the device itself."""
    _held.append(Span(name, start_ns // 1000, duration_ns // 1000, os.getpid(), threading.get_native_id(), what))


def collect() -> list[Span]:
    """All that this process noted since the last time, once."""
    return [_held.popleft() for _ in range(len(_held))]


class Stages:
    """Seconds by stage, over all threads, of the spans that came in; written to a file as well where one is given."""

    def __init__(self, file: TraceFile | None = None) -> None:
        self._file = file
        self._sums: Counter[str] = Counter()
        self._threads: dict[str, set[tuple[int, int]]] = {}

    def add(self, spans: Iterable[Span]) -> None:
        """Take in spans."""
        spans = list(spans)
        for one in spans:
            self._sums[one.name] += one.duration_us
            self._threads.setdefault(one.name, set()).add((one.process, one.thread))
        if self._file is not None:
            self._file.write(spans)

    def seconds(self, name: str) -> float:
        """Of all threads together."""
        return self._sums[name] / 1e6

    def threads(self, name: str) -> int:
        """How many threads had a part in a stage."""
        return len(self._threads.get(name, ()))

    def processes(self, name: str) -> int:
        """How many processes had."""
        return len({process for process, _ in self._threads.get(name, ())})


class TraceFile:
    """A trace in Chrome's format (Trace Event Format, JSON array), which Perfetto and chrome://tracing show.

    Written as spans come, so that memory does not grow; the format allows the end to be missing, so the trace of a killed
    run can be looked at.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refuse_other_files()
        self._write("w", _BEGIN + _event("process_name", "M", os.getpid(), args={"name": "driver"}))

    def write(self, spans: Iterable[Span]) -> None:
        """Append spans as complete events, times in microseconds.

        Raises:
            OutputError: The file cannot be written.
            ResourceError: The disk is full.
        """
        events = []
        for one in spans:
            about = {"args": {"tile": one.what}} if one.what else {}
            when = {"tid": one.thread, "ts": one.start_us, "dur": one.duration_us}
            events.append(",\n" + _event(one.name, "X", one.process, **when, **about))
        self._write("a", "".join(events))

    def close(self) -> None:
        """End the array."""
        self._write("a", "\n]\n")

    def _refuse_other_files(self) -> None:
        """A trace replaces an older one, and nothing else: a slip of the hand must not cost an image."""
        start = b""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            start = file.read(64)
        if start and not start.startswith(_BEGIN.encode() + b'{"name":"process_name"'):
            raise OutputError(f"{self._path}: is there already and is no trace; choose another file for it")

    def _write(self, mode: str, text: str) -> None:
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            kind = ResourceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
            raise kind(f"{self._path}: the trace cannot be written: {error.strerror}; choose another file") from error


_BEGIN = "[\n"


def _event(name: str, phase: str, process: int, **rest: object) -> str:
    return json.dumps({"name": name, "ph": phase, "pid": process, **rest}, separators=(",", ":"))


@contextmanager
def stages_of_run(trace: str | PathLike[str] | None) -> Iterator[Stages]:
    """What sums up a run's spans, and writes them to a file where one is named; what was noted before the run is dropped.

    Raises:
        OutputError: The file cannot be written.
    """
    collect()
    if trace is None:
        yield Stages()
        return
    file = TraceFile(Path(trace).expanduser().absolute())
    try:
        yield Stages(file)
    finally:
        file.close()
