"""Run a job: have tiles done, merge what they give, and account for every pixel asked for and every footprint removed.

`run` works through an executor (the `concurrent.futures` interface), so that the same code runs in this process, in a pool
or on a Dask cluster; who made the executor closes it. Killed anywhere, a run resumes from the committed tiles (law 6).
"""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd

from geoinfer.accounts import Accounts
from geoinfer.detection import TileRecord, detect_tile, predict
from geoinfer.dispatch import Hands, Progress, check_stop, detect_tiles, do_tiles
from geoinfer.errors import Interrupted, MaskAlarm, MaskWarning, OutputError, TilesFailed
from geoinfer.imagery.reading import headers_of
from geoinfer.job import Execution, Job
from geoinfer.keeping import keep_tiles, other_differences, placement_of, write_kept
from geoinfer.manifest import Times, closing, opening
from geoinfer.masks.prepare import PreparedLayer
from geoinfer.merge import judge, keys_of, merge, stitched
from geoinfer.naming import Naming
from geoinfer.rates import remember
from geoinfer.store import Json, RunDirectory, differences, failpoint, output_errors
from geoinfer.switching import settle, switch
from geoinfer.trace import collect, span, stages_of_run
from geoinfer.vector.polygons import Polygons
from geoinfer.worker import Work, tiles_at_once

__all__ = ["Interrupted", "Progress", "Run", "detect_tile", "find", "predict", "run"]


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
    update: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    warn: Callable[[str], None] | None = None,
    trace: str | PathLike[str] | None = None,
) -> Run:
    """Start a run or go on with one.

    Args:
        job: What to do.
        out: The run directory; made if need be. One that holds a run of the same job is resumed, or returned as it is when
            that run finished.
        execution: When and where; a run that has begun keeps its tile size.
        client: A Dask client to work on; without one, and without `executor`, tiles are done by threads of this process.
        executor: Any other executor whose workers see the run directory.
        overwrite: Remove another job's run, or a finished one, first.
        update: The directory may hold a run of the same job on other imagery: its tiles whose imagery is the same are kept,
            the others are done again, and the result is that of a full run.
        progress: Called after each tile.
        stop: Once set, no new tile is handed out; those in flight are committed, and `Interrupted` is raised.
        warn: Called with each alarm about a mask layer as soon as it is known; `run.json` has them as well.
        trace: A file for what each thread did when, in Chrome's trace format (chrome://tracing, Perfetto).

    Raises:
        SourceError: A mask layer cannot be read; nothing was inferred.
        MaskAlarm: With `execution.strict_masks`: a layer touches nothing in the region (nothing was inferred), or removed
            more than `execution.mask_alarm` allows. The outputs are written then, and running again without it ends soon.
        OutputError: The directory is another job's, is held by another run, or cannot be written.
        TilesFailed: More tiles failed than `execution.max_failed` allows. The outputs are written all the same, without the
            failed tiles, and running again tries these again.
        RemoteError: A server gave up on many tiles in a row; what is committed stays.
        Interrupted: `stop` was set, or Ctrl-C pressed.
        ResourceError: Out of memory or disk.
    """
    execution = execution or Execution()
    stop = stop or threading.Event()
    warn = warn or (lambda _: None)
    directory = RunDirectory(Path(out).expanduser().absolute())
    directory.create()
    with directory.lock() as token, stages_of_run(trace) as stages, Naming(job) as naming:
        clock = time.perf_counter()
        finished = _prepare(directory, naming, job, execution, overwrite, update)
        if finished is not None:
            _raise_alarms(directory, finished, execution)
            return Run(directory, finished, resumed=finished["tiles"]["total"])
        try:
            accounts = Accounts(job, _prepare_masks(directory, job))
            early = accounts.alarms(execution.mask_alarm)
            if early and execution.strict_masks:
                raise MaskAlarm(f"{early[0]}; nothing was inferred, and without --strict-masks it will be")
            for text in early:
                warn(text)
            work = Work(job, execution, directory, token, is_remote=client is not None or executor is not None)
            pool = executor if client is None else client.get_executor(pure=False, retries=0)
            in_flight = execution.in_flight or _in_flight(job, execution, client, pool)
            hands = Hands(work, pool, in_flight, stop, lambda: client is None or _has_workers(client))
            naming.then(partial(_open, directory, job, execution))
            begun = time.perf_counter()
            try:
                records, resumed = do_tiles(hands, accounts.layers, partial(_step, naming, progress), stages)
            finally:
                tiles_s = time.perf_counter() - begun
                manifest = naming.finish()  # also where tiles failed or somebody stopped: what is committed has a name
            failpoint("tiles_done")
            counts, outputs = merge(directory, job, records, accounts, lambda: check_stop(stop, directory, len(records)))
        except KeyboardInterrupt as error:
            raise Interrupted(f"{directory.root}: interrupted; the same command goes on from the committed tiles") from error
        stages.add(collect())
        times = Times(stages, job.device, tiles_s, time.perf_counter() - clock)
        headers = headers_of(job.source, job.chips_window(job.region.window))
        manifest |= closing(records, resumed, counts, accounts, execution.mask_alarm, outputs, times, headers)
        if not resumed:
            remember(job, manifest["chips"], tiles_s - manifest["stages_s"]["load"], stages.processes("forward"))
        for text in accounts.alarms(execution.mask_alarm):
            if text not in early:
                warn(text)
        _conclude(directory, manifest, records, execution)
        directory.succeed(manifest["fingerprint"])
        return Run(directory, manifest, resumed)


def _open(directory: RunDirectory, job: Job, execution: Execution, description: Json, mark: str) -> Json:
    """Write down whose run this is; from here on it can be resumed."""
    with span("open"):
        held = directory.read_manifest() or {}
        manifest = opening(description, mark, execution, job.region.covers, placement_of(job), held.get("updated"))
        if job.domain is not None:
            manifest["domain"] = job.domain
        if remarks := getattr(job.source, "remarks", ()):
            manifest["remarks"] = list(remarks)
        directory.write_manifest(manifest)
    failpoint("run_opened")
    return manifest


def _step(naming: Naming, progress: Callable[[Progress], None] | None, now: Progress) -> None:
    """After each tile."""
    naming.look()
    if progress is not None:
        progress(now)


def _conclude(directory: RunDirectory, manifest: Json, records: Sequence[TileRecord], execution: Execution) -> None:
    """Write down how the run ended.

    Raises:
        TilesFailed, MaskAlarm: See `run`. The outputs are there, and the manifest says `failed`.
    """
    failed = [record for record in records if record.status == "failed"]
    are_enough = len(failed) <= execution.max_failed * len(records)
    alarmed = execution.strict_masks and any(entry["alarms"] for entry in manifest.get("masks", []))
    manifest["state"] = "done" if are_enough and not alarmed else "failed"
    directory.write_manifest(manifest)
    if not are_enough:
        raise TilesFailed(
            f"{directory.root}: {len(failed)} of {len(records)} tiles failed, first {failed[0].row}_{failed[0].col} "
            f"({failed[0].reason}); coverage.parquet lists them, and the same command tries only them again"
        )
    _raise_alarms(directory, manifest, execution)


def _prepare_masks(directory: RunDirectory, job: Job) -> tuple[PreparedLayer, ...]:
    """The job's layers made ready in the run's directory, before anything is inferred; those of an earlier try are taken."""
    directory.keep_masks({layer.name for layer in job.masks})
    if not job.masks:
        return ()
    with output_errors(directory.masks):
        directory.masks.mkdir(exist_ok=True)
    failpoint("masks_begun")
    with span("masks"):
        layers = job.prepare_masks(directory.masks)
    failpoint("masks_prepared")
    return layers


def _raise_alarms(directory: RunDirectory, manifest: Json, execution: Execution) -> None:
    """An error where the user wants one and the run's layers gave cause.

    Raises:
        MaskAlarm: See `run`.
    """
    texts = [text for entry in manifest.get("masks", []) for text in entry["alarms"]]
    if texts and execution.strict_masks:
        raise MaskAlarm(
            f"{directory.root}: {'; '.join(texts)}; the outputs are written, and without --strict-masks this is no error"
        )


def _prepare(
    directory: RunDirectory, naming: Naming, job: Job, execution: Execution, overwrite: bool, update: bool
) -> Json | None:
    """Make the directory ready for this job. The manifest of a finished run of it, where there is nothing left to do.

    Raises:
        OutputError: It holds another job's run, or one cut in tiles of another size; the message says what differs.
    """
    if overwrite:
        directory.clear()
    directory.sweep()
    settle(directory)
    held = directory.read_manifest()
    if held is None:
        directory.drop_tiles()
        return None
    description, mark = naming.result()
    if held.get("fingerprint") != mark and update and not other_differences(held.get("job", {}), description):
        _check_tile(directory, held, execution)
        _update(directory, held, job, execution, description, mark)
        return None
    if held.get("fingerprint") != mark:
        lines = differences(held.get("job", {}), description) or ["fingerprint: the job was recorded by another version"]
        is_other_imagery = not other_differences(held.get("job", {}), description)
        remedy = "use --update for its new imagery, --overwrite" if is_other_imagery else "use --overwrite"
        raise OutputError(
            f"{directory.root}: holds the run of another job; {remedy} or another output:\n  " + "\n  ".join(lines)
        )
    if directory.success.exists():
        return held
    _check_tile(directory, held, execution)
    return None


def _update(directory: RunDirectory, held: Json, job: Job, execution: Execution, description: Json, mark: str) -> None:
    """Make a run on other imagery this job's, and keep what of its tiles is the same."""
    with span("snapshot"):
        kept = keep_tiles(directory, held, job, execution, description)
        write_kept(directory, kept, held, job, execution)
    updated = {"from": held["fingerprint"], "kept": len(kept)}
    switch(directory, opening(description, mark, execution, job.region.covers, placement_of(job), updated))


def _check_tile(directory: RunDirectory, held: Json, execution: Execution) -> None:
    """Raise OutputError where the run was begun with tiles of another size."""
    tile = held.get("execution", {}).get("tile")
    if tile != execution.tile and directory.committed():
        raise OutputError(
            f"{directory.root}: was begun with tiles of {tile} cores a side, not {execution.tile}; "
            f"use --tile {tile} or --overwrite"
        )


def _in_flight(job: Job, execution: Execution, client: DaskClient | None, pool: Executor | None) -> int:
    """Tiles handed out at once: enough that nobody waits, few enough to be bounded."""
    if pool is None:
        return tiles_at_once(job, execution)
    return 8 if client is None else 2 * max(1, sum(client.nthreads().values()))


def _has_workers(client: DaskClient) -> bool:
    try:
        return bool(client.nthreads())
    except OSError:  # the scheduler is gone, which its futures will say as well
        return False


def find(
    job: Job, execution: Execution | None = None, progress: Callable[[Progress], None] | None = None
) -> gpd.GeoDataFrame:
    """The footprints of a job, in this process, without a run directory.

    Returns:
        Footprints in the order and with the columns of `footprints.parquet`.

    Raises:
        MaskAlarm: With `execution.strict_masks`, where there would be a warning.

    Warns:
        MaskWarning: A mask layer touches nothing in the region, or removes an implausible share of the footprints.
    """
    execution = execution or Execution()
    with tempfile.TemporaryDirectory(prefix="geoinfer-masks-") as folder:
        accounts = Accounts(job, job.prepare_masks(Path(folder)) if job.masks else ())
        told = accounts.alarms(execution.mask_alarm)
        _tell(told, execution.strict_masks)
        results = detect_tiles(job, execution, accounts.layers, progress)
        origins = job.source.origins()
        parts = [judge(polygons, job, accounts, origins).accepted for polygons in stitched(results, [w for w, _ in results])]
        _tell([text for text in accounts.alarms(execution.mask_alarm) if text not in told], execution.strict_masks)
        frame: gpd.GeoDataFrame = pd.concat(parts) if parts else judge(Polygons.empty(), job, accounts, origins).accepted
    return frame.iloc[np.argsort(keys_of(frame))].reset_index(drop=True)


def _tell(alarms: Sequence[str], strict_masks: bool) -> None:
    """Say them as warnings, or as an error."""
    for text in alarms:
        if strict_masks:
            raise MaskAlarm(text)
        warnings.warn(text, MaskWarning, stacklevel=3)
