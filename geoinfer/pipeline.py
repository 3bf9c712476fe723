"""Run a job: hand out tiles, commit what comes back, merge, and account for every pixel asked for.

`run` works through an executor (the `concurrent.futures` interface), so that the same code runs in this process, in a pool
or on a Dask cluster; who made the executor closes it. Workers commit their tiles themselves and return a coverage row, so
the driver's memory does not grow with the region. Killed anywhere, a run resumes from the committed tiles (law 6).
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd

from geoinfer.detection import Predicts, TileRecord, detect_tile, failed_record, predict
from geoinfer.errors import Interrupted, OutputError, RemoteError, SourceError, TilesFailed
from geoinfer.grid import Tile, Window
from geoinfer.imagery.source import Source
from geoinfer.job import TILE, Execution, Job, Paths, fingerprint, make_job
from geoinfer.manifest import closing, opening
from geoinfer.merge import finish_polygons, keys_of, merge, stitched
from geoinfer.store import Json, RunDirectory, differences, failpoint
from geoinfer.vector.polygons import Polygons
from geoinfer.vector.stitch import TileResult
from geoinfer.worker import FATAL, Outcome, Work, attempt, count, do_tile, load, work_on

__all__ = ["Interrupted", "Progress", "Run", "detect", "detect_tile", "predict", "run"]

Step = tuple[Tile, Window]
NO_WORKERS_S = 120.0
"""How long a cluster may be without a worker: spot machines come back, a forgotten cluster does not."""
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


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    directory: RunDirectory
    manifest: Json
    """`run.json`."""
    resumed: int
    """Tiles that an earlier process had committed."""

    @property
    def footprints(self) -> Path:
        """The accepted footprints."""
        return self.directory.footprints

    def read(self) -> gpd.GeoDataFrame:
        """The accepted footprints as a frame."""
        return gpd.read_parquet(self.footprints)


class DaskClient(Protocol):
    """The two things `run` wants of a `distributed.Client`."""

    def get_executor(self, **options: Any) -> Executor:
        """An executor over the cluster."""

    def nthreads(self) -> Mapping[str, int]:
        """Worker address -> threads."""


def run(
    job: Job,
    out: str | PathLike[str],
    *,
    execution: Execution | None = None,
    client: DaskClient | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Start a run or go on with one.

    Args:
        job: What to do.
        out: The run directory; made if need be. One that holds a run of the same job is resumed, or returned as it is when
            that run finished.
        execution: When and where; a run that has begun keeps its tile size.
        client: A Dask client to work on; without one, and without `executor`, tiles are done one by one in this process.
        executor: Any other executor whose workers see the run directory.
        overwrite: Remove another job's run, or a finished one, first.
        progress: Called after each tile.
        stop: Once set, no new tile is handed out; those in flight are committed, and `Interrupted` is raised.

    Raises:
        OutputError: The directory is another job's, is held by another run, or cannot be written.
        TilesFailed: More tiles failed than `execution.max_failed` allows. The outputs are written all the same, without the
            failed tiles, and running again tries these again.
        Interrupted: `stop` was set, or Ctrl-C pressed.
        ResourceError: Out of memory or disk.
    """
    execution = execution or Execution()
    stop = stop or threading.Event()
    directory = RunDirectory(Path(out).expanduser().absolute())
    directory.create()
    with directory.lock() as token:
        clock = time.perf_counter()
        description = job.describe()
        mark = fingerprint(description)
        finished = _prepare(directory, description, mark, execution, overwrite)
        if finished is not None:
            return Run(directory, finished, resumed=finished["tiles"]["total"])
        manifest = opening(description, mark, execution, job.region.covers)
        directory.write_manifest(manifest)
        failpoint("run_opened")
        work = Work(job, execution, directory, token, is_remote=client is not None or executor is not None)
        pool = executor if client is None else client.get_executor(pure=False, retries=0)
        in_flight = execution.in_flight or (8 if client is None else 2 * max(1, sum(client.nthreads().values())))
        origin = _origin(job)
        try:
            records, resumed = _do_tiles(
                work, pool, in_flight, progress, stop, lambda: client is None or _has_workers(client)
            )
            tiles_s = time.perf_counter() - clock
            failpoint("tiles_done")
            counts, outputs = merge(directory, job, records, *origin, lambda: _check(stop, directory, len(records)))
        except KeyboardInterrupt as error:
            raise Interrupted(f"{directory.root}: interrupted; the same command goes on from the committed tiles") from error
        manifest |= closing(records, resumed, counts, outputs, tiles_s, time.perf_counter() - clock)
        failed = [record for record in records if record.status == "failed"]
        is_success = len(failed) <= execution.max_failed * len(records)
        manifest["state"] = "done" if is_success else "failed"
        directory.write_manifest(manifest)
        if not is_success:
            raise TilesFailed(
                f"{directory.root}: {len(failed)} of {len(records)} tiles failed, first {failed[0].row}_{failed[0].col} "
                f"({failed[0].reason}); coverage.parquet lists them, and the same command tries only them again"
            )
        directory.succeed(mark)
        return Run(directory, manifest, resumed)


def _prepare(directory: RunDirectory, description: Json, mark: str, execution: Execution, overwrite: bool) -> Json | None:
    """Make the directory ready for this job. The manifest of a finished run of it, where there is nothing left to do.

    Raises:
        OutputError: It holds another job's run, or one cut in tiles of another size; the message says what differs.
    """
    if overwrite:
        directory.clear()
    directory.sweep()
    held = directory.read_manifest()
    if held is None:
        return None
    if held.get("fingerprint") != mark:
        lines = differences(held.get("job", {}), description) or ["fingerprint: the job was recorded by another version"]
        raise OutputError(
            f"{directory.root}: holds the run of another job; use --overwrite or another output\n  " + "\n  ".join(lines)
        )
    if directory.success.exists():
        return held
    tile = held.get("execution", {}).get("tile")
    if tile != execution.tile and directory.committed():
        raise OutputError(
            f"{directory.root}: was begun with tiles of {tile} cores a side, not {execution.tile}; "
            f"use --tile {tile} or --overwrite"
        )
    return None


def _do_tiles(
    work: Work,
    pool: Executor | None,
    in_flight: int,
    progress: Callable[[Progress], None] | None,
    stop: threading.Event,
    has_workers: Callable[[], bool],
) -> tuple[list[TileRecord], int]:
    """Bring every tile to an end. All coverage rows, row-major, and how many tiles were found committed."""
    directory, job, execution = work.directory, work.job, work.execution
    steps = {(tile.row, tile.col): (tile, window) for tile, window in job.tiles(execution.tile)}
    records = {at: TileRecord.from_json(directory.read_record(*at)) for at in sorted(directory.committed() & steps.keys())}
    resumed = len(records)
    todo = [step for at, step in steps.items() if at not in records]
    clock = time.perf_counter()
    footprints, failed, area_m2 = 0, 0, 0.0
    for outcome in _outcomes(work, todo, pool, in_flight, stop, has_workers):
        record = outcome.record
        if outcome.arrays is not None:
            directory.commit_tile(record.row, record.col, outcome.arrays, record.to_json())
        if record.status == "failed" and execution.on_error == "fail":
            raise TilesFailed(f"tile {record.row}_{record.col}: {record.reason}; --on-error skip goes on with the rest")
        records[record.row, record.col] = record
        footprints += outcome.footprints
        failed += record.status == "failed"
        area_m2 += record.area_m2
        if progress is not None:
            progress(Progress(len(records), len(steps), failed, footprints, area_m2, time.perf_counter() - clock))
    if len(records) < len(steps):
        _check(stop, directory, len(records), len(steps))
    return [records[at] for at in steps], resumed


def _outcomes(
    work: Work,
    todo: list[Step],
    pool: Executor | None,
    in_flight: int,
    stop: threading.Event,
    has_workers: Callable[[], bool],
) -> Iterator[Outcome]:
    """Each tile's outcome as it comes. After `stop`, only those of the tiles in flight."""
    if not todo:
        return
    if pool is None:
        detection = work.job.detection(load(work.job, work.execution))
        for tile, window in todo:
            if stop.is_set():
                return
            yield do_tile(work, detection, tile, window)
        return
    blob = pickle.dumps(work)
    suspects: list[Step] = []
    for step, future in _completed(pool, blob, todo, in_flight, stop, has_workers):
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
    for step, future in _completed(pool, blob, suspects, 1, stop, has_workers):  # alone: who dies now did it
        try:
            yield future.result()
        except Exception as error:
            if not _is_lost(error):
                raise
            reason = "poison: each worker that took this tile died"
            yield Outcome(failed_record(*step, work.job.source.grid, work.job.region, reason))


def _completed(
    pool: Executor,
    blob: bytes,
    steps: list[Step],
    in_flight: int,
    stop: threading.Event,
    has_workers: Callable[[], bool],
) -> Iterator[tuple[Step, Future[Outcome]]]:
    """Futures as they end, never more than `in_flight` at once."""
    waiting: dict[Future[Outcome], Step] = {}
    for step in steps:
        if stop.is_set():
            break
        waiting[pool.submit(work_on, blob, *step)] = step
        while len(waiting) >= in_flight:
            yield from _drain(waiting, stop, has_workers)
    while waiting:
        yield from _drain(waiting, stop, has_workers)


def _drain(
    waiting: dict[Future[Outcome], Step], stop: threading.Event, has_workers: Callable[[], bool]
) -> Iterator[tuple[Step, Future[Outcome]]]:
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


def _has_workers(client: DaskClient) -> bool:
    try:
        return bool(client.nthreads())
    except OSError:  # the scheduler is gone, which its futures will say as well
        return False


def _is_lost(error: Exception) -> bool:
    """The worker died under the task. By name: this module works with any executor and imports none."""
    return type(error).__name__ in ("KilledWorker", "BrokenProcessPool")


def _check(stop: threading.Event, directory: RunDirectory, done: int, total: int | None = None) -> None:
    if stop.is_set():
        of = "" if total is None else f" of {total}"
        raise Interrupted(f"{directory.root}: stopped with {done}{of} tiles committed; the same command goes on from there")


def _origin(job: Job) -> tuple[str | None, str | None]:
    """What the footprints say of their imagery: its name where it is one raster, its time where it is known."""
    about = job.source.describe()
    paths, taken = about.get("path"), about.get("datetime")
    name = Path(str(paths[0])).name if isinstance(paths, list) and len(paths) == 1 else None
    return name, str(taken) if taken else None


def detect(
    source: Paths | Source,
    model: str | PathLike[str] | Predicts = "buildings",
    *,
    batch_size: int | Literal["auto"] = "auto",
    tile: int = TILE,
    on_error: Literal["fail", "skip"] = "fail",
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> gpd.GeoDataFrame:
    """Building footprints of imagery, in this process, as a frame.

    Args:
        source: One raster or several, or a source opened for this model.
        model: A name, a directory or a predictor.
        batch_size: Chips a forward pass, or auto.
        tile: Cores on a side of a tile.
        on_error: `fail` raises the first error; `skip` leaves the tile out.
        progress: Called after each tile.
        settings: As for `make_job`: bbox, bbox_crs, region, crs, threshold, min_area, bands, stretch, device, precision...

    Returns:
        Footprints in the order and with the columns of `footprints.parquet`.
    """
    job = make_job(source, model=model, **settings)
    execution = Execution(tile=tile, batch_size=batch_size, on_error=on_error)
    detection = job.detection(load(job, execution))
    steps = list(job.tiles(execution.tile))
    clock = time.perf_counter()
    found, area, failed = 0, 0.0, 0

    def results() -> Iterator[tuple[Window, TileResult | None]]:
        nonlocal found, area, failed
        for done, (step, window) in enumerate(steps, 1):
            result, record = attempt(step, window, detection, execution.retries)
            if record.status == "failed":
                failed += 1
                if execution.on_error == "fail":
                    raise SourceError(f"tile {record.row}_{record.col}: {record.reason}")
            found += count(result)
            area += record.area_m2
            if progress:
                progress(Progress(done, len(steps), failed, found, area, time.perf_counter() - clock))
            yield window, result

    origin = _origin(job)
    whole = stitched(results(), [window for _, window in steps])
    parts = [finish_polygons(polygons, job, *origin).accepted for polygons in whole]
    frame: gpd.GeoDataFrame = pd.concat(parts) if parts else finish_polygons(Polygons.empty(), job, *origin).accepted
    return frame.iloc[np.argsort(keys_of(frame))].reset_index(drop=True)
