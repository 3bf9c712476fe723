"""What runs on a worker: a tile tried, tried again where that may help, and committed.

The one place that turns an exception into a failed tile. A failure that the next tile would meet as well (settings, disk,
memory) is passed on instead, and a broken device context ends the process, since nothing computed in it can be trusted.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psutil

from geoinfer.detection import NO_SKIP, Detection, Predicts, Skip, TileRecord, detect_tile, failed_record
from geoinfer.errors import ConfigError, OutputError, RemoteError, ResourceError, SafetyError
from geoinfer.estimate import tile_bytes
from geoinfer.grid import Tile, Window
from geoinfer.job import Execution, Job
from geoinfer.store import FULL, RunDirectory, failpoint
from geoinfer.trace import Span, collect, span
from geoinfer.vector.stitch import TileResult

TRANSIENT = (RemoteError, ConnectionError, TimeoutError)
"""Failures that another attempt may cure."""
FATAL = (ConfigError, OutputError, ResourceError, SafetyError)
"""Failures that the next tile would meet as well."""
BROKEN_DEVICE = 70
"""Exit status of a worker whose device context is broken; its tile is tried on another."""

MOST_LANES = 16
"""Tiles side by side before a GPU, where there are as many cores."""

_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs for any tile of a run; pickled once, unpickled once a process."""

    job: Job
    execution: Execution
    directory: RunDirectory
    token: str
    """Of the run's hold on its directory: a worker that does not read the same there does not share our file system."""
    is_remote: bool
    """The worker is a process of its own, which may end without taking the run along."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes back: small, unless the worker could not commit by itself."""

    record: TileRecord
    footprints: int = 0
    """Candidates in the tile, those that cross its edge included."""
    arrays: dict[str, Any] | None = None
    """The tile's result where the worker does not share the run's file system."""
    spans: tuple[Span, ...] = ()
    """What this process worked on since it last sent some."""


def work_on(blob: bytes, tile: Tile, window: Window, skip: Skip = NO_SKIP) -> Outcome:
    """Do one tile of pickled `Work`: the task that is sent to executors."""
    work, detection = open_work(blob)
    return do_tile(work, detection, tile, window, skip)


def do_tile(work: Work, detection: Detection, tile: Tile, window: Window, skip: Skip = NO_SKIP) -> Outcome:
    """Detect, retry, commit.

    Failed tiles are not committed: a later run tries them again.
    """
    failpoint("tile_started")
    try:
        result, record = attempt(tile, window, detection, work.execution.retries, skip)
    except Exception as error:
        if work.is_remote and is_device_broken(error):
            os._exit(BROKEN_DEVICE)
        raise
    failpoint("tile_detected")
    if record.status == "failed":
        return Outcome(record, spans=tuple(collect()))
    arrays: dict[str, Any] | None = {} if result is None else result.to_arrays()
    with span("commit", f"{tile.row}_{tile.col}"):
        if work.directory.is_held_with(work.token):
            work.directory.commit_tile(tile.row, tile.col, arrays or {}, record.to_json())
            arrays = None
    return Outcome(record, count(result), arrays, tuple(collect()))


def attempt(
    tile: Tile, window: Window, detection: Detection, retries: int, skip: Skip = NO_SKIP
) -> tuple[TileResult | None, TileRecord]:
    """Detect a tile; again, after a pause that doubles, where the failure may pass; a failed record where it does not.

    Raises:
        ConfigError, OutputError, ResourceError, SafetyError: The next tile would fail as well.
        RuntimeError: The device's context is broken.
    """
    for tried in range(retries + 1):
        try:
            return detect_tile(tile, window, detection, skip)
        except TRANSIENT as error:
            if tried == retries:
                return None, _failed(tile, window, detection, error)
            time.sleep(min(30.0, 0.5 * 2**tried) * random.uniform(0.5, 1.0))  # spreads workers, hides nothing
        except FATAL:
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or is_device_broken(error):
                raise
            if isinstance(error, OSError) and error.errno in FULL:  # not the output, which says so itself: numba's cache
                where = error.filename or "a temporary file"
                raise ResourceError(f"{where}: no space left: {error.strerror}; free some and run it again") from error
            return None, _failed(tile, window, detection, error)
    raise AssertionError("unreachable: the last attempt returns")


def count(result: TileResult | None) -> int:
    """Candidates of a tile."""
    return 0 if result is None else len(result.complete) + len(result.fragments)


def is_device_broken(error: BaseException) -> bool:
    """After this the device's context answers nothing but errors: only a new process helps."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def load(job: Job, execution: Execution, threads: int | None = None) -> Predicts:
    """The job's predictor, loaded in this process.

    Args:
        job: Names the model.
        execution: Says how large the batches are, and how many threads it gets.
        threads: Where `execution` does not say; None: one for each core.
    """
    if not isinstance(job.model, str):
        return job.model
    from geoinfer.model.predictor import load_predictor  # torch: only where a model runs

    return load_predictor(
        job.model,
        device=job.device,
        precision=job.precision,
        batch_size=execution.batch_size,
        threads=execution.threads or threads or usable_cores(),
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def tiles_at_once(job: Job, execution: Execution) -> int:
    """Tiles that this process does side by side, so that the network never waits for one to be read or polygonized.

    A model that the caller made is not asked by two threads at once unless `threads` says so. Memory for the tiles' pixels
    is bounded by a quarter of what is free.
    """
    if execution.threads is None and not isinstance(job.model, str):
        return 1
    fits = psutil.virtual_memory().available // 4 // tile_bytes(job, execution)
    return int(max(1, min(lanes(job.device, execution.threads or usable_cores()), fits)))


def lanes(device: str, threads: int) -> int:
    """Tiles side by side that keep a network busy: on a CPU a tile's chips occupy some eight threads; a GPU outruns many.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Of the network on a CPU; cores that the process has for itself on a GPU.
    """
    if device == "cpu":
        return 1 if threads == 1 else 1 + math.ceil(threads / 8)
    return max(2, min(MOST_LANES, threads))


def open_work(blob: bytes) -> tuple[Work, Detection]:
    """Pickled `Work` and its detection, made once a process however many threads ask."""
    with _loading:
        return _open_work(blob)


@lru_cache(maxsize=1)
def _open_work(blob: bytes) -> tuple[Work, Detection]:
    work: Work = pickle.loads(blob)  # made by `run` in this session, never read from a file
    with span("load"):
        return work, work.job.detection(load(work.job, work.execution, threads=1))


def gave_up(record: TileRecord) -> bool:
    """A tile failed because a server did not answer, whatever was tried."""
    return record.status == "failed" and (record.reason or "").startswith(f"{RemoteError.__name__}: ")


def _failed(tile: Tile, window: Window, detection: Detection, error: Exception) -> TileRecord:
    reason = f"{type(error).__name__}: {error}"
    return failed_record(tile, window, detection.source.grid, detection.region, reason)
