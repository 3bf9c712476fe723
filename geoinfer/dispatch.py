"""Hand tiles out, to threads of this process or to an executor's workers, until all have come to an end.

Works through the `concurrent.futures` interface, a bounded number in flight. Workers commit their tiles themselves and
return a coverage row, so the driver's memory does not grow with the region. In this process a few tiles are done side by
side, so that reading, polygonizing and writing of some go on while the network works for another. Tiles are handed out in
strips, so that neighbours find the blocks of the imagery that they share still decoded.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from geoinfer.detection import Core, Detection, Skip, TileRecord, failed_record
from geoinfer.errors import Interrupted, RemoteError, SourceError, TilesFailed
from geoinfer.grid import Tile, Window, in_strips
from geoinfer.imagery.blocks import make_room
from geoinfer.job import Execution, Job
from geoinfer.masks.prepare import PreparedLayer
from geoinfer.skipping import Openings
from geoinfer.store import RunDirectory
from geoinfer.trace import Stages, span
from geoinfer.vector.stitch import TileResult
from geoinfer.worker import FATAL, Outcome, Work, attempt, count, do_tile, gave_up, load, tiles_at_once, work_on

Step = tuple[Tile, Window]
Done = TypeVar("Done")
NO_WORKERS_S = 120.0
"""How long a cluster may be without a worker: spot machines come back, a forgotten cluster does not."""
MOST_GIVEN_UP = 8
"""Tiles in a row for which a server gave up. Each takes all tries, so a server that is gone would hold up a large run for
days: one that cannot succeed any more stops here."""
POLL_S = 2.0
"""How often that is looked at, while no tile comes back."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    done: int
    """Tiles finished, whatever their status, those found committed included."""
    total: int
    """Tiles of the run."""
    failed: int
    """Tiles that failed."""
    footprints: int
    """Candidates found so far, those that cross tiles counted in each."""
    area_m2: float
    """Ground covered by this process."""
    seconds: float
    """Since this process began on the tiles."""


class _Pace:
    """Turns records into progress; a tile that is done again counts once."""

    def __init__(self, total: int, show: Callable[[Progress], None] | None) -> None:
        self._total, self._show, self._since = total, show, time.perf_counter()
        self._footprints: dict[Core, int] = {}
        self.failed: set[Core] = set()
        self._found, self._area_m2 = 0, 0.0

    def step(self, record: TileRecord, footprints: int, done: int) -> None:
        """A tile came to an end; `done` have by now."""
        at = (record.row, record.col)
        (self.failed.add if record.status == "failed" else self.failed.discard)(at)
        self._area_m2 += 0.0 if at in self._footprints else record.area_m2
        self._found += footprints - self._footprints.get(at, 0)
        self._footprints[at] = footprints
        if self._show is not None:
            seconds = time.perf_counter() - self._since
            self._show(Progress(done, self._total, len(self.failed), self._found, self._area_m2, seconds))


def do_tiles(
    hands: Hands, layers: Sequence[PreparedLayer], progress: Callable[[Progress], None] | None, stages: Stages
) -> tuple[list[TileRecord], int]:
    """Bring every tile to an end. All coverage rows, row-major, and how many tiles were found committed.

    Where buildings of one tile reach skipped cores of another, that one is done again, with those cores opened, until no
    building does. A tile's committed record says what it opened and reached, which is all that a resumed run needs.

    Raises:
        TilesFailed: A tile failed, and `on_error` is `fail`.
        RemoteError: A server is gone; or the scheduler, or all workers.
        Interrupted: The user wants to stop.
    """
    directory, job, execution = hands.work.directory, hands.work.job, hands.work.execution
    steps = {(tile.row, tile.col): (tile, window) for tile, window in job.tiles(execution.tile)}
    records = {at: TileRecord.from_json(directory.read_record(*at)) for at in sorted(directory.committed() & steps.keys())}
    openings = Openings(job.skip_rule(layers), execution.tile)
    openings.learn(records.values())
    resumed = len(records)
    todo = in_strips([at for at in steps if at not in records] + openings.lacking(records.values()), execution.tile)
    pace, given_up = _Pace(len(steps), progress), 0
    while todo:
        left = set(todo)
        for outcome in hands.do([steps[at] for at in todo], openings.skip):
            record, at = outcome.record, (outcome.record.row, outcome.record.col)
            stages.add(outcome.spans)
            if outcome.arrays is not None:
                directory.commit_tile(*at, outcome.arrays, record.to_json())
            if record.status == "failed" and execution.on_error == "fail":
                raise TilesFailed(f"tile {record.row}_{record.col}: {record.reason}; --on-error skip goes on with the rest")
            records[at] = record
            openings.learn([record])
            left.discard(at)
            pace.step(record, outcome.footprints, len(records))
            given_up = given_up + 1 if gave_up(record) else 0
            is_lost = len(pace.failed) > execution.max_failed * len(steps)
            if is_lost and given_up >= min(MOST_GIVEN_UP, len(steps)):
                reason = (record.reason or "").partition(": ")[2]
                raise RemoteError(
                    f"{reason}; so ended {given_up} tiles in a row, and the run; the same command goes on from the "
                    "committed tiles, and --max-failed lets more of them fail"
                )
        if left:
            check_stop(hands.stop, directory, len(steps) - len(left), len(steps))
        todo = in_strips(openings.lacking(records.values()), execution.tile)
    return [records[at] for at in steps], resumed


class Hands:
    """Who does tiles: threads of this process, or the workers of an executor."""

    def __init__(
        self,
        work: Work,
        pool: Executor | None,
        in_flight: int,
        stop: threading.Event,
        has_workers: Callable[[], bool],
    ) -> None:
        """Loads nothing yet.

        Args:
            work: What to do.
            pool: On whom; None: this process.
            in_flight: Tiles handed out at most; in this process, the tiles done side by side.
            stop: Once set, no new tile is handed out.
            has_workers: Whether anybody is there to work.
        """
        self.work, self.stop = work, stop
        self._pool, self._in_flight, self._has_workers = pool, in_flight, has_workers

    @cached_property
    def _detection(self) -> Detection:
        with span("load"):
            return self.work.job.detection(load(self.work.job, self.work.execution))

    @cached_property
    def _blob(self) -> bytes:
        return pickle.dumps(self.work)  # once: workers tell by its bytes that they have loaded the model

    def do(self, todo: list[Step], skip: Callable[[Tile], Skip]) -> Iterator[Outcome]:
        """Each tile's outcome as it comes. After `stop`, only those of the tiles in flight.

        Args:
            todo: Tiles with their windows.
            skip: What a tile's worker is told, asked when the tile is handed out.
        """
        return self._do_here(todo, skip) if self._pool is None else self._do_there(self._pool, todo, skip)

    def _do_here(self, todo: list[Step], skip: Callable[[Tile], Skip]) -> Iterator[Outcome]:
        if not todo:
            return
        detection = self._detection
        make_room(self._in_flight)

        def do(step: Step) -> Outcome:
            return do_tile(self.work, detection, *step, skip(step[0]))

        yield from (outcome for _, outcome in side_by_side(do, todo, self._in_flight, self.stop))

    def _do_there(self, pool: Executor, todo: list[Step], skip: Callable[[Tile], Skip]) -> Iterator[Outcome]:
        def submit(step: Step) -> Future[Outcome]:
            return pool.submit(work_on, self._blob, *step, skip(step[0]))

        suspects: list[Step] = []
        for step, future in _completed(submit, todo, self._in_flight, self.stop, self._has_workers):
            try:
                yield future.result()
            except CancelledError as error:
                raise RemoteError("the scheduler went away; the same command goes on from the committed tiles") from error
            except FATAL:
                raise
            except Exception as error:
                if not _is_lost(error):
                    raise
                suspects.append(step)  # its worker died, which may be the fault of a neighbour on the same worker
        for step, future in _completed(submit, suspects, 1, self.stop, self._has_workers):  # alone: who dies now did it
            try:
                yield future.result()
            except Exception as error:
                if not _is_lost(error):
                    raise
                reason = "poison: each worker that took this tile died"
                yield Outcome(failed_record(*step, self.work.job.source.grid, self.work.job.region, reason))


def side_by_side(
    do: Callable[[Step], Done], steps: Sequence[Step], threads: int, stop: threading.Event
) -> Iterator[tuple[Step, Done]]:
    """What `do` gives for each step, as it comes, by threads of this process.

    Who stops listening waits for the steps that have begun.
    """
    if threads == 1:
        for step in steps:
            if stop.is_set():
                return
            yield step, do(step)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="geoinfer-tile") as pool:
        for step, future in _completed(lambda step: pool.submit(do, step), steps, threads, stop, lambda: True):
            yield step, future.result()


def _completed(
    submit: Callable[[Step], Future[Done]],
    steps: Sequence[Step],
    in_flight: int,
    stop: threading.Event,
    has_workers: Callable[[], bool],
) -> Iterator[tuple[Step, Future[Done]]]:
    """Futures as they end, never more than `in_flight` at once."""
    waiting: dict[Future[Done], Step] = {}
    for step in steps:
        if stop.is_set():
            break
        waiting[submit(step)] = step
        while len(waiting) >= in_flight:
            yield from _drain(waiting, stop, has_workers)
    while waiting:
        yield from _drain(waiting, stop, has_workers)


def _drain(
    waiting: dict[Future[Done], Step], stop: threading.Event, has_workers: Callable[[], bool]
) -> Iterator[tuple[Step, Future[Done]]]:
    """What has ended, at least one; nothing more where nobody is at work and the user wants to stop.

    Raises:
        RemoteError: The cluster has been without workers for `NO_WORKERS_S`.
    """
    seen = time.monotonic()
    while not (done := wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED).done):
        if has_workers():
            seen = time.monotonic()
        elif stop.is_set():
            waiting.clear()
            return
        elif time.monotonic() - seen > NO_WORKERS_S:
            raise RemoteError(
                "the cluster has no workers; start some, and the same command goes on from the committed tiles"
            )
    for future in done:
        yield waiting.pop(future), future


def detect_tiles(
    job: Job, execution: Execution, layers: Sequence[PreparedLayer], progress: Callable[[Progress], None] | None
) -> list[tuple[Window, TileResult | None]]:
    """Every tile's window and result, row-major, done in this process; those that buildings of others reach, again."""
    detection = job.detection(load(job, execution))
    openings = Openings(job.skip_rule(layers), execution.tile)
    steps = {(step.row, step.col): (step, window) for step, window in job.tiles(execution.tile)}
    pace = _Pace(len(steps), progress)
    records: dict[Core, TileRecord] = {}
    results: dict[Core, TileResult | None] = {}
    todo = in_strips(steps, execution.tile)

    def do(step: Step) -> tuple[TileResult | None, TileRecord]:
        return attempt(*step, detection, execution.retries, openings.skip(step[0]))

    while todo:
        threads = tiles_at_once(job, execution)
        for _, (result, record) in side_by_side(do, [steps[at] for at in todo], threads, threading.Event()):
            if record.status == "failed" and execution.on_error == "fail":
                kind = RemoteError if gave_up(record) else SourceError
                raise kind(f"tile {record.row}_{record.col}: {record.reason}")
            at = (record.row, record.col)
            records[at], results[at] = record, None if result is None else replace(result, computed=None)
            openings.learn([record])
            pace.step(record, count(result), len(records))
        todo = in_strips(openings.lacking(records.values()), execution.tile)
    return [(window, results[at]) for at, (_, window) in steps.items()]


def _is_lost(error: Exception) -> bool:
    """The worker died under the task. By name: this module works with any executor and imports none."""
    return type(error).__name__ in ("KilledWorker", "BrokenProcessPool")


def check_stop(stop: threading.Event, directory: RunDirectory, done: int, total: int | None = None) -> None:
    """End here if the user asked for it.

    Raises:
        Interrupted: `stop` is set.
    """
    if stop.is_set():
        of = "" if total is None else f" of {total}"
        raise Interrupted(f"{directory.root}: stopped with {done}{of} tiles committed; the same command goes on from there")
