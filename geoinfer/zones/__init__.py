"""A run over imagery or a region that no single grid can hold: a run for each zone, joined to one.

Each zone has a run directory of its own under `zones/`, complete and resumed as any other; the whole has the files of an
ordinary run beside them. So a crash costs what it costs in one zone, and what is done of the others stays. What a zone
computes depends on itself alone (`zones.plan`), what the join does on the zones' files alone (`zones.join`): so laws 1 to 7
hold.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
from pyproj import CRS

from geoinfer.dispatch import Progress, check_stop
from geoinfer.earth import Bounds, sphere_area
from geoinfer.errors import MaskAlarm, OutputError, RegionError, TilesFailed
from geoinfer.job import Execution, Job, fingerprint
from geoinfer.pipeline import DaskClient, Run, run
from geoinfer.region import GridRegion, Region, region_on
from geoinfer.store import Json, RunDirectory, differences, failpoint
from geoinfer.zones.join import ZoneRun, join_zones
from geoinfer.zones.manifest import closing, describe, opening
from geoinfer.zones.plan import LONLAT, MARGIN_M, ZonePart, lonlat, plan_zones

__all__ = ["ZoneJob", "Zones", "find_in_zones", "make_jobs", "plan_zones", "run_zones"]


@dataclass(frozen=True, slots=True)
class ZoneJob:
    """What is done in one zone."""

    part: ZonePart
    job: Job
    """For what the zone looks at; its output is in the system of its grid."""
    core: GridRegion
    """The pixels among them that the zone answers for."""


@dataclass(frozen=True, slots=True)
class Zones:
    """A job in several zones."""

    jobs: tuple[ZoneJob, ...]
    """At least one; western ones first. Zones in which there is no imagery are left out."""
    asked: Json
    """The whole region as JSON."""
    bounds: Bounds
    """Of it, degrees between -180 and 180."""
    covers: float
    """Share of its area that lies within the imagery."""
    margin_m: float

    def frame(self, crs: CRS) -> Json:
        """What of the job's description is known before any imagery is hashed."""
        zones = [{"zone": zone.part.label, "grid": zone.part.folder} for zone in self.jobs]
        return {"region": self.asked, "crs": crs.to_wkt(), "margin_m": self.margin_m, "zones": zones}


def make_jobs(
    make: Callable[[CRS, Region], Job],
    region: Region | None,
    bounds: Bounds | None = None,
    *,
    datum: CRS | None = None,
    margin_m: float = MARGIN_M,
) -> Zones:
    """Cut a job by zone.

    Args:
        make: The job of one zone, from the coordinate system of its grid and the region it looks at.
        region: What is asked for; None: all imagery.
        bounds: Of the imagery, degrees; west > east across the antimeridian; None: unknown.
        datum: As for `plan_zones`.
        margin_m: As for `plan_zones`.

    Raises:
        RegionError: No imagery in any zone.
    """
    parts = plan_zones(bounds, region, datum=datum, margin_m=margin_m)
    nothing: RegionError | None = None
    jobs, shares = [], []
    for part in parts:
        try:
            job = make(part.crs, part.grown)
            own = part.grown if len(parts) == 1 else part.core
            core = region_on(own, job.source.grid, job.source.bounds)
        except RegionError as error:
            nothing = error
            continue
        if not core.window.is_empty or len(parts) == 1:
            jobs.append(ZoneJob(part, replace(job, crs=job.source.grid.crs), core))
            shares.append(core.covers * sphere_area(part.core.geometry))
    if not jobs:
        raise nothing or RegionError("the region holds no pixel of the imagery")
    whole = shapely.union_all([part.core.geometry for part in parts]) if region is None else lonlat(region)
    asked: Json = {"whole": True} if region is None else region.describe()
    covers = min(1.0, sum(shares) / sphere_area(whole))
    return Zones(tuple(jobs), asked, whole.bounds, covers, margin_m)


def run_zones(
    zones: Zones,
    out: str | PathLike[str],
    *,
    crs: CRS | None = None,
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
    """Start a run over zones or go on with one; arguments and errors as for `pipeline.run`.

    Args:
        zones: What to do. Where there is one zone the run is an ordinary one.
        out: The run directory.
        crs: Of the output; EPSG:4326 where None and there are several zones, that of the grid where there is one.
        execution: For each zone's run. Failed tiles and alarms are judged on all zones together in the end.
        client, executor, overwrite, update, progress, stop: As for `pipeline.run`; each zone keeps its own tiles.
        warn: Called with alarms about mask layers in the end, when all zones are known.
        trace: One file a zone, with its name before the ending.
    """
    execution, stop, warn = execution or Execution(), stop or threading.Event(), warn or (lambda _: None)
    manners: dict[str, Any] = {"client": client, "executor": executor, "stop": stop, "update": update}
    if len(zones.jobs) == 1:
        job = zones.jobs[0].job if crs is None else replace(zones.jobs[0].job, crs=crs)
        manners |= {"execution": execution, "progress": progress, "warn": warn, "trace": trace, "overwrite": overwrite}
        return run(job, out, **manners)
    crs = LONLAT if crs is None else crs
    directory = RunDirectory(Path(out).expanduser().absolute())
    directory.create()
    with directory.lock():
        frame = zones.frame(crs)
        held = _prepare(directory, frame, overwrite, update)
        if held is None:
            held = opening(frame, execution, zones.covers)
            directory.write_manifest(held)
            failpoint("zones_opened")
        done, resumed = [], 0
        for zone, show in zip(zones.jobs, _shown(zones, execution, progress), strict=True):
            here = directory.zones / zone.part.folder
            manners |= {"progress": show, "trace": None if trace is None else _named(Path(trace), zone.part.folder)}
            try:
                finished = run(zone.job, here, execution=replace(execution, strict_masks=False), **manners)
                manifest, resumed = finished.manifest, resumed + finished.resumed
            except TilesFailed:  # judged below, on all zones
                manifest = RunDirectory(here).read_manifest() or {}
                resumed += manifest["tiles"]["resumed"]
            done.append(manifest)
            failpoint("zone_done")
        description = describe(frame, [manifest["job"] for manifest in done], [manifest["fingerprint"] for manifest in done])
        mark = fingerprint(description)
        if held["fingerprint"] == mark and directory.success.exists():
            _raise_alarms(directory, held, execution)
            return Run(directory, held, resumed=held["tiles"]["total"])
        since = time.perf_counter()
        directory.success.unlink(missing_ok=True)
        runs = [_zone_run(directory, zone, manifest) for zone, manifest in zip(zones.jobs, done, strict=True)]
        tiles = sum(manifest["tiles"]["total"] for manifest in done)
        joined = join_zones(runs, directory, crs, lambda: check_stop(stop, directory, tiles))
        labels = [zone.part.label for zone in zones.jobs]
        whole = {**held, "fingerprint": mark, "job": description, "region_covers": zones.covers}
        seconds = time.perf_counter() - since
        whole |= closing(done, labels, joined, zones.bounds, execution.mask_alarm, seconds)
        whole["zones"] = [_entry(zone, manifest) for zone, manifest in zip(zones.jobs, done, strict=True)]
        for layer in whole.get("masks", ()):
            for text in layer["alarms"]:
                warn(text)
        _conclude(directory, whole, execution)
        directory.succeed(mark)
        return Run(directory, whole, resumed)


def find_in_zones(
    zones: Zones,
    *,
    crs: CRS | None = None,
    execution: Execution | None = None,
    progress: Callable[[Progress], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> gpd.GeoDataFrame:
    """The footprints of all zones as a frame: what `pipeline.find` gives where one grid is enough."""
    with tempfile.TemporaryDirectory(prefix="geoinfer-zones-") as folder:
        found = run_zones(zones, Path(folder) / "run", crs=crs, execution=execution, progress=progress, warn=warn).read()
    return found.drop(columns="bbox", errors="ignore")


def _prepare(directory: RunDirectory, frame: Json, overwrite: bool, update: bool) -> Json | None:
    """Make the directory ready; the manifest of a run of the same zones that it holds, or of others where it is updated.

    Raises:
        OutputError: It holds another job's run.
    """
    if overwrite:
        directory.clear()
    directory.sweep()
    held = directory.read_manifest()
    if held is None:
        return None
    job = held.get("job", {})
    theirs = {name: job.get(name) for name in frame}
    theirs["zones"] = [{name: zone.get(name) for name in ("zone", "grid")} for zone in job.get("zones", ())]
    if update:  # on other imagery, which may lie in other zones
        theirs["zones"] = frame["zones"]
    if theirs != frame:
        lines = "\n  ".join(differences(theirs, frame))
        raise OutputError(f"{directory.root}: holds the run of another job; use --overwrite or another output:\n  {lines}")
    return held


def _shown(
    zones: Zones, execution: Execution, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Progress], None] | None]:
    """For each zone what to call after its tiles, so that they count for the whole."""
    if progress is None:
        yield from [None] * len(zones.jobs)
        return
    since, before = time.perf_counter(), Progress(0, 0, 0, 0, 0.0, 0.0)
    counts = [sum(1 for _ in zone.job.tiles(execution.tile)) for zone in zones.jobs]
    for at in range(len(zones.jobs)):
        base, last = before, [before]

        def show(now: Progress, base: Progress = base, last: list[Progress] = last) -> None:
            last[0] = replace(
                now,
                done=base.done + now.done,
                total=sum(counts),
                failed=base.failed + now.failed,
                footprints=base.footprints + now.footprints,
                area_m2=base.area_m2 + now.area_m2,
                seconds=time.perf_counter() - since,
            )
            progress(last[0])

        yield show
        before = replace(last[0], done=sum(counts[: at + 1]))  # a zone found finished shows nothing


def _named(trace: Path, folder: str) -> Path:
    return trace.with_name(f"{trace.stem}.{folder}{trace.suffix}")


def _zone_run(directory: RunDirectory, zone: ZoneJob, manifest: Json) -> ZoneRun:
    here = RunDirectory(directory.zones / zone.part.folder)
    return ZoneRun(zone.part, zone.job, zone.core, here, manifest["execution"]["tile"])


def _entry(zone: ZoneJob, manifest: Json) -> Json:
    """What the manifest says of one zone."""
    names = ("state", "fingerprint", "tiles", "footprints", "region_covers")
    about = {"zone": zone.part.label, "grid": zone.part.folder, "run": f"zones/{zone.part.folder}"}
    return about | {name: manifest[name] for name in names}


def _conclude(directory: RunDirectory, manifest: Json, execution: Execution) -> None:
    """Write down how the run ended.

    Raises:
        TilesFailed, MaskAlarm: As for `pipeline.run`.
    """
    failed, total = manifest["tiles"]["failed"], manifest["tiles"]["total"]
    are_enough = failed <= execution.max_failed * total
    alarmed = execution.strict_masks and any(layer["alarms"] for layer in manifest.get("masks", ()))
    manifest["state"] = "done" if are_enough and not alarmed else "failed"
    directory.write_manifest(manifest)
    if not are_enough:
        raise TilesFailed(
            f"{directory.root}: {failed} of {total} tiles failed; coverage.parquet lists them, and the same command tries "
            "only them again"
        )
    _raise_alarms(directory, manifest, execution)


def _raise_alarms(directory: RunDirectory, manifest: Json, execution: Execution) -> None:
    texts: Sequence[str] = [text for layer in manifest.get("masks", ()) for text in layer["alarms"]]
    if texts and execution.strict_masks:
        raise MaskAlarm(
            f"{directory.root}: {'; '.join(texts)}; the outputs are written, and without --strict-masks this is no error"
        )
