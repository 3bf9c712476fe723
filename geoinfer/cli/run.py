"""`geoinfer run` and `geoinfer plan`: flags to a job, the job to the pipeline, the outcome to a line and a status."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli import flags
from geoinfer.cli.interrupt import soft_stop
from geoinfer.cli.printing import bytes_text, duration_text, emit_json, emit_pairs, say, warn
from geoinfer.cli.progress import shown
from geoinfer.cli.report import alarms, lines, time_lines
from geoinfer.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from geoinfer.cli.options import RunOptions
    from geoinfer.job import Execution, Job
    from geoinfer.pipeline import Run
    from geoinfer.zones import Zones

ROUNDING = 1e-6
"""Share of a region that a bounding box in other coordinates may be off by."""
MOST_WORKERS = 1024
"""No machine has more cores or GPUs that are worth a process each."""


def run(
    ctx: typer.Context,
    source: flags.Source = None,
    output: flags.Output = None,
    model: flags.Model = None,
    bbox: flags.Bbox = None,
    bbox_crs: flags.BboxCrs = None,
    region: flags.Region = None,
    place: flags.Place = None,
    crs: flags.Crs = None,
    mask: flags.Mask = None,
    calibrated: flags.Calibrated = None,
    threshold: flags.Threshold = None,
    min_area: flags.MinArea = None,
    bands: flags.Bands = None,
    stretch: flags.Stretch = None,
    scaling: flags.Scaling = None,
    assume_crs: flags.AssumeCrs = None,
    prefer: flags.Prefer = None,
    no_overviews: flags.NoOverviews = None,
    domain: flags.Domain = None,
    strict_domain: flags.StrictDomain = None,
    precision: flags.Precision = None,
    collection: flags.Collection = None,
    datetime: flags.Datetime = None,
    query: flags.Query = None,
    asset: flags.Asset = None,
    max_items: flags.MaxItems = None,
    zoom: flags.Zoom = None,
    tile_rate: flags.TileRate = None,
    tile_concurrency: flags.TileConcurrency = None,
    tile_cache: flags.TileCache = None,
    placeholder: flags.Placeholder = None,
    wmts_layer: flags.WmtsLayer = None,
    allow_host: flags.AllowHost = None,
    allow_vrt: flags.AllowVrt = None,
    aws_no_sign_requests: flags.NoSign = None,
    aws_requester_pays: flags.RequesterPays = None,
    sign: flags.Sign = None,
    changed: flags.Changed = None,
    device: flags.Device = None,
    tile: flags.Tile = None,
    batch_size: flags.BatchSize = None,
    workers: flags.Workers = None,
    threads: flags.Threads = None,
    scheduler: flags.Scheduler = None,
    in_flight: flags.InFlight = None,
    on_error: flags.OnError = None,
    max_failed: flags.MaxFailed = None,
    retries: flags.Retries = None,
    max_pixels: flags.MaxPixels = None,
    price_gpu_hour: flags.PriceGpuHour = None,
    mask_alarm: flags.MaskAlarm = None,
    strict_masks: flags.StrictMasks = None,
    update: flags.Update = None,
    trace: flags.Trace = None,
    dry_run: flags.DryRun = None,
    overwrite: flags.Overwrite = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML file of these settings; flags win.",
            envvar="GEOINFER_CONFIG",
            rich_help_panel=flags.MANNERS,
        ),
    ] = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> int:
    """Find buildings: start a run, or go on with the one in RUN.

    Each setting may also stand in the environment (GEOINFER_BATCH_SIZE=8) or in the file of --config. Flags win over the
    environment, the environment over the file.
    """
    from geoinfer.cli.options import resolve

    options = resolve(ctx.params, os.environ, config)
    if options.dry_run:
        return _plan(options, as_json)
    if options.output is None:
        raise ConfigError("no run directory given: add -o RUN")
    command = ["geoinfer", *(word for word in ctx.obj or [] if word != "--overwrite")]  # what resumes must not start again
    return _run(options, options.output, command, as_json=as_json, quiet=quiet, verbose=verbose)


@functools.wraps(run)
def plan(*args: Any, **given: Any) -> int:
    """`run --dry-run`, under a name of its own."""
    given["ctx"].params["dry_run"] = True
    return run(*args, **given)


plan.__doc__ = (
    "Say what a run will take: tiles, pixels, bytes, requests, device time, cost. Reads no pixels, writes nothing; "
    "takes the flags of `run`."
)


def _job(options: RunOptions, *, is_plan: bool = False) -> Job | Zones:
    from geoinfer.anywhere import make_any_job

    imagery = options.source_options()
    return make_any_job(
        list(options.source),
        model=options.model,
        bbox=options.bbox,
        bbox_crs=options.bbox_crs,
        region=options.region,
        crs=options.crs,
        masks=list(options.mask),
        calibrated=options.calibrated,
        threshold=options.threshold,
        min_area=options.min_area,
        imagery=replace(imagery, open_headers=False) if is_plan else imagery,
        places=options.place,
        max_pixels=options.max_pixels,
        device=options.device,
        precision=options.precision,
    )


def _execution(options: RunOptions) -> Execution:
    from geoinfer.job import Execution

    names = ("tile", "batch_size", "threads", "in_flight", "retries", "on_error", "max_failed", "mask_alarm", "strict_masks")
    given = {name: getattr(options, name) for name in names}
    return Execution(**{name: value for name, value in given.items() if value is not None})


def _plan(options: RunOptions, as_json: bool) -> int:
    from geoinfer.anywhere import plan_any

    job, execution = _job(options, is_plan=True), _execution(options)
    planned = plan_any(job, execution, price_gpu_hour=options.price_gpu_hour).to_json()
    if as_json:
        emit_json(planned)
    else:
        emit_pairs(
            {
                name.replace("_", " "): bytes_text(value) if name.endswith("_bytes") else value
                for name, value in planned.items()
            }
        )
    return 0


def _run(options: RunOptions, out: str, command: list[str], *, as_json: bool, quiet: bool, verbose: bool) -> int:
    from geoinfer.imagery.locate import suspects

    since = time.monotonic()
    told: set[str] = set()

    def alarm(text: str) -> None:
        """Said as soon as it is known, and whatever --quiet: a filter that removes nothing must not pass in silence."""
        if text not in told:
            told.add(text)
            warn(text)

    with soft_stop() as stop:
        try:
            finished = _work(options, out, stop.event, alarm, quiet=quiet, verbose=verbose)
        except Interrupted as error:
            say(f"geoinfer: {error}:")
            say(f"  {shlex.join(command)}")
            return stop.status
    for text in (*alarms(finished.manifest), *suspects(options.source)):  # also those of a run that was found finished
        alarm(text)
    if as_json:
        emit_json(summary(finished))
    elif not quiet:
        about = summary(finished)
        for line in (*lines(finished.manifest), *(time_lines(finished.manifest) if verbose else ())):
            say(line)
        say(
            f"{about['footprints']} footprints on {about['area_km2']:.4g} km² in {duration_text(time.monotonic() - since)}: "
            f"{finished.footprints}"
        )
    return 0


def _work(
    options: RunOptions, out: str, stop: threading.Event, alarm: Callable[[str], None], *, quiet: bool, verbose: bool
) -> Run:
    from geoinfer.anywhere import first_job, run_any, trusting
    from geoinfer.region import parse_crs

    job, execution = _job(options), _execution(options)
    first = first_job(job)
    tiles = count_up_to(first.tiles(execution.tile), MOST_WORKERS)
    if verbose:
        say(
            f"{first.spec.name} {first.spec.version} on {first.device} in {first.precision}, "
            f"tiles of {execution.tile} cores a side"
        )
    job, unlike = trusting(job, "refuse" if options.strict_domain else options.domain)
    for text in unlike:
        warn(text)
    for text in getattr(first.source, "remarks", ()):
        alarm(text)
    if not quiet:
        for note in notes(job):
            say(f"geoinfer: {note}")
    with _client(options, first.device, tiles) as client, shown(quiet) as show:
        if verbose and client is not None:
            say(f"{sum(client.nthreads().values())} worker threads, scheduler {client.scheduler.address}")
        return run_any(
            job,
            out,
            crs=None if options.crs is None else parse_crs(options.crs),
            execution=execution,
            client=client,
            overwrite=options.overwrite,
            progress=show,
            stop=stop,
            warn=alarm,
            trace=options.trace,
            update=options.update,
        )


@contextmanager
def _client(options: RunOptions, device: str, tiles: int) -> Iterator[Any]:
    """A Dask client, or None where threads of this process do the work: asked for, on a CPU, or too little for a second."""
    wanted = options.workers
    if wanted is None and options.scheduler is None:
        wanted = min(tiles, _usual_workers(device))
        wanted = 0 if wanted <= 1 else wanted
    if wanted == 0 and options.scheduler is None:
        yield None
        return
    from geoinfer.cluster import connect

    with connect(
        None if options.scheduler else wanted, options.scheduler, device=device, threads=options.threads or 1
    ) as client:
        yield client


def _usual_workers(device: str) -> int:
    """One process a GPU; on a CPU none beside this one, whose threads share a model and what is decoded of the imagery."""
    if device != "cuda":
        return 0
    from geoinfer.cluster import default_workers

    return default_workers(device)


def notes(job: Job | Zones) -> Iterator[str]:
    """What a user should know of a job before it starts, one line each."""
    from geoinfer.anywhere import covers

    share = covers(job)
    if share < 1 - ROUNDING:
        yield f"{100 * share:.3g} % of the region lies within the imagery; outside it nobody looks"


def count_up_to(items: Iterator[object], most: int) -> int:
    """How many items there are, or `most` where there are more: a continent's tiles need not be counted twice."""
    return sum(1 for _ in itertools.islice(items, most))


def summary(finished: Run) -> dict[str, Any]:
    """What a finished run tells on stdout with `--json`."""
    manifest = finished.manifest
    return {
        "run": str(finished.directory.root),
        "fingerprint": manifest["fingerprint"],
        "footprints": manifest["footprints"]["accepted"],
        "rejected": manifest["footprints"]["rejected"],
        "tiles": manifest["tiles"],
        "resumed": finished.resumed,
        "area_km2": manifest["area_m2"]["asked"] / 1e6,
        "seconds": manifest["timings_s"]["total"],
        "masks": manifest.get("masks", []),
        "false_positive_meter": manifest.get("false_positive_meter", []),
        "alarms": alarms(manifest),
        "outputs": {name: str(finished.directory.root / name) for name in manifest["outputs"]},
    }
