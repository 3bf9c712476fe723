"""Run a job: have tiles done, merge what they give, and account for every pixel asked for and every footprint removed.

`run` works through an executor (the `concurrent.futures` interface), so that the same code runs in this process, in a pool
or on a Dask cluster; who made the executor closes it. Killed anywhere, a run resumes from the committed tiles (law 6).
"""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
from pyproj import CRS

from geoinfer.accounts import Accounts
from geoinfer.detection import Predicts, TileRecord, detect_tile, predict
from geoinfer.dispatch import Hands, Progress, check_stop, detect_tiles, do_tiles
from geoinfer.errors import Interrupted, MaskAlarm, MaskWarning, OutputError, TilesFailed
from geoinfer.imagery.source import Source
from geoinfer.job import TILE, Bbox, Execution, Job, Mask, Paths, make_job
from geoinfer.manifest import Times, closing, opening
from geoinfer.masks.prepare import PreparedLayer
from geoinfer.merge import judge, keys_of, merge, stitched
from geoinfer.naming import Naming
from geoinfer.store import Json, RunDirectory, differences, failpoint, output_errors
from geoinfer.trace import collect, span, stages_of_run
from geoinfer.vector.polygons import Polygons
from geoinfer.worker import Work, tiles_at_once

__all__ = ["Interrupted", "Progress", "Run", "detect", "detect_tile", "predict", "run"]


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
        finished = _prepare(directory, naming, execution, overwrite)
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
            origin = _origin(job)
            naming.then(partial(_open, directory, job, execution))
            begun = time.perf_counter()
            try:
                records, resumed = do_tiles(hands, accounts.layers, partial(_step, naming, progress), stages)
            finally:
                tiles_s = time.perf_counter() - begun
                manifest = naming.finish()  # also where tiles failed or somebody stopped: what is committed has a name
            failpoint("tiles_done")
            counts, outputs = merge(
                directory, job, records, accounts, *origin, lambda: check_stop(stop, directory, len(records))
            )
        except KeyboardInterrupt as error:
            raise Interrupted(f"{directory.root}: interrupted; the same command goes on from the committed tiles") from error
        stages.add(collect())
        times = Times(stages, job.device, tiles_s, time.perf_counter() - clock)
        manifest |= closing(records, resumed, counts, accounts, execution.mask_alarm, outputs, times)
        for text in accounts.alarms(execution.mask_alarm):
            if text not in early:
                warn(text)
        _conclude(directory, manifest, records, execution)
        directory.succeed(manifest["fingerprint"])
        return Run(directory, manifest, resumed)


def _open(directory: RunDirectory, job: Job, execution: Execution, description: Json, mark: str) -> Json:
    """Write down whose run this is; from here on it can be resumed."""
    with span("open"):
        manifest = opening(description, mark, execution, job.region.covers)
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


def _prepare(directory: RunDirectory, naming: Naming, execution: Execution, overwrite: bool) -> Json | None:
    """Make the directory ready for this job. The manifest of a finished run of it, where there is nothing left to do.

    Raises:
        OutputError: It holds another job's run, or one cut in tiles of another size; the message says what differs.
    """
    if overwrite:
        directory.clear()
    directory.sweep()
    held = directory.read_manifest()
    if held is None:
        directory.drop_tiles()
        return None
    description, mark = naming.result()
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
    bbox: Bbox | None = None,
    bbox_crs: str | CRS = "EPSG:4326",
    region: Any = None,
    crs: str | CRS | None = None,
    masks: Mask | Iterable[Mask] = (),
    strict_masks: bool = False,
    mask_alarm: float = 0.2,
    calibrated: str | None = None,
    threshold: float | None = None,
    min_area: float | None = None,
    simplify: float | None = None,
    min_confidence: float = 0.0,
    bands: Sequence[int] | None = None,
    stretch: tuple[float, float] | None = None,
    assume_crs: str | CRS | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tile: int = TILE,
    on_error: Literal["fail", "skip"] = "fail",
    progress: Callable[[Progress], None] | None = None,
) -> gpd.GeoDataFrame:
    """Building footprints of imagery, in this process, as a frame.

    Args:
        source: One raster or several, or a source opened for this model.
        model: A name, a directory or a predictor.
        bbox, bbox_crs, region, crs, masks, calibrated, threshold, min_area, simplify, min_confidence: As for `make_job`.
        bands, stretch, assume_crs, device, precision: As for `make_job`.
        strict_masks: Raise what would be a warning about a mask layer.
        mask_alarm: Share of the footprints that came to a layer from which what it removes is worth a warning.
        batch_size: Chips a forward pass, or auto.
        tile: Cores on a side of a tile.
        on_error: `fail` raises the first error; `skip` leaves the tile out.
        progress: Called after each tile.

    Returns:
        Footprints in the order and with the columns of `footprints.parquet`.

    Raises:
        MaskAlarm: See `strict_masks`.

    Warns:
        MaskWarning: A mask layer touches nothing in the region, or removes an implausible share of the footprints.
    """
    job = make_job(
        source,
        model=model,
        bbox=bbox,
        bbox_crs=bbox_crs,
        region=region,
        crs=crs,
        masks=masks,
        calibrated=calibrated,
        threshold=threshold,
        min_area=min_area,
        simplify=simplify,
        min_confidence=min_confidence,
        bands=bands,
        stretch=stretch,
        assume_crs=assume_crs,
        device=device,
        precision=precision,
    )
    execution = Execution(tile, batch_size, on_error=on_error, strict_masks=strict_masks, mask_alarm=mask_alarm)
    with tempfile.TemporaryDirectory(prefix="geoinfer-masks-") as folder:
        accounts = Accounts(job, job.prepare_masks(Path(folder)) if job.masks else ())
        told = accounts.alarms(mask_alarm)
        _tell(told, strict_masks)
        results = detect_tiles(job, execution, accounts.layers, progress)
        origin = _origin(job)
        parts = [judge(polygons, job, accounts, *origin).accepted for polygons in stitched(results, [w for w, _ in results])]
        _tell([text for text in accounts.alarms(mask_alarm) if text not in told], strict_masks)
        frame: gpd.GeoDataFrame = pd.concat(parts) if parts else judge(Polygons.empty(), job, accounts, *origin).accepted
    return frame.iloc[np.argsort(keys_of(frame))].reset_index(drop=True)


def _tell(alarms: Sequence[str], strict_masks: bool) -> None:
    """Say them as warnings of `detect`'s caller, or as an error."""
    for text in alarms:
        if strict_masks:
            raise MaskAlarm(text)
        warnings.warn(text, MaskWarning, stacklevel=3)
