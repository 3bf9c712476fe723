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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.interrupt import soft_stop
from geoinfer.cli.printing import bytes_text, duration_text, emit_json, emit_pairs, say, warn
from geoinfer.cli.progress import shown
from geoinfer.cli.report import alarms, lines, time_lines
from geoinfer.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from geoinfer.cli.options import RunOptions
    from geoinfer.job import Execution, Job
    from geoinfer.pipeline import Run

WHAT, HOW, MANNERS = "What is found", "How it is worked through", "Manners"

COARSE = 2.0
"""Pixels this many times the model's show less than the model was made for."""
ROUNDING = 1e-6
"""Share of a region that a bounding box in other coordinates may be off by."""
MOST_WORKERS = 1024
"""No machine has more cores or GPUs that are worth a process each."""

# All defaults are None: whether a flag was given decides if the environment or the file may speak. See `options`.
Text = str | None


def run(
    ctx: typer.Context,
    source: Annotated[list[str] | None, typer.Argument(help="Raster, or several that share a coordinate system.")] = None,
    output: Annotated[Text, typer.Option("-o", "--output", help="The run directory.", metavar="RUN")] = None,
    model: Annotated[
        Text, typer.Option("--model", help="A model's name or directory (default: buildings).", rich_help_panel=WHAT)
    ] = None,
    bbox: Annotated[
        Text,
        typer.Option("--bbox", help="Bounding box; four values do too.", metavar="W,S,E,N", rich_help_panel=WHAT),
    ] = None,
    bbox_crs: Annotated[
        Text, typer.Option("--bbox-crs", help="Its coordinate system (default: EPSG:4326).", rich_help_panel=WHAT)
    ] = None,
    region: Annotated[
        Text, typer.Option("--region", help="A file of polygons to stay inside.", rich_help_panel=WHAT)
    ] = None,
    crs: Annotated[Text, typer.Option("--crs", help="Of the output (default: the grid's).", rich_help_panel=WHAT)] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask",
            help="A mask layer: drop, keep, clip, flag or skip what a file covers; may stand several times, in order.",
            metavar="FILE:key=value,...",
            rich_help_panel=WHAT,
        ),
    ] = None,
    calibrated: Annotated[
        Text,
        typer.Option(
            "--calibrated",
            help="Region of the model's card whose threshold and minimum area to use.",
            metavar="REGION",
            rich_help_panel=WHAT,
        ),
    ] = None,
    threshold: Annotated[
        Text,
        typer.Option(
            "--threshold", help="Probability from which a pixel is building (default: the model's).", rich_help_panel=WHAT
        ),
    ] = None,
    min_area: Annotated[
        Text,
        typer.Option("--min-area", help="Smallest footprint (default: the model's).", metavar="M2", rich_help_panel=WHAT),
    ] = None,
    bands: Annotated[
        Text, typer.Option("--bands", help="Band numbers in the model's order.", metavar="3,2,1", rich_help_panel=WHAT)
    ] = None,
    stretch: Annotated[
        Text,
        typer.Option(
            "--stretch",
            help="Values that become 0 and 255 (default: 2nd and 98th percentile).",
            metavar="LO,HI",
            rich_help_panel=WHAT,
        ),
    ] = None,
    assume_crs: Annotated[
        Text, typer.Option("--assume-crs", help="Coordinate system of imagery that names none.", rich_help_panel=WHAT)
    ] = None,
    precision: Annotated[
        Text, typer.Option("--precision", help="auto, fp32, bf16 or fp16 (default: auto).", rich_help_panel=WHAT)
    ] = None,
    device: Annotated[
        Text, typer.Option("--device", help="auto, cpu or cuda:N (default: auto).", rich_help_panel=HOW)
    ] = None,
    tile: Annotated[
        Text, typer.Option("--tile", help="Cores on a side of a tile.", metavar="K", rich_help_panel=HOW)
    ] = None,
    batch_size: Annotated[
        Text,
        typer.Option(
            "--batch-size", help="Chips a forward pass, or auto (default: auto).", metavar="N", rich_help_panel=HOW
        ),
    ] = None,
    workers: Annotated[
        Text,
        typer.Option(
            "--workers",
            help="Processes (default: one a GPU; on a CPU 0, which works in this one).",
            metavar="N",
            rich_help_panel=HOW,
        ),
    ] = None,
    threads: Annotated[
        Text,
        typer.Option(
            "--threads",
            help="Threads of the network in each process (default: one a core, one in a worker).",
            metavar="N",
            rich_help_panel=HOW,
        ),
    ] = None,
    scheduler: Annotated[
        Text, typer.Option("--scheduler", help="An existing Dask scheduler.", metavar="ADDR", rich_help_panel=HOW)
    ] = None,
    in_flight: Annotated[
        Text, typer.Option("--in-flight", help="Most tiles handed out at once.", metavar="N", rich_help_panel=HOW)
    ] = None,
    on_error: Annotated[
        Text, typer.Option("--on-error", help="fail: stop at the first failed tile; skip: go on.", rich_help_panel=HOW)
    ] = None,
    max_failed: Annotated[
        Text,
        typer.Option(
            "--max-failed",
            help="Share of failed tiles that still counts as done (default: 0).",
            metavar="1%",
            rich_help_panel=HOW,
        ),
    ] = None,
    retries: Annotated[
        Text,
        typer.Option(
            "--retries", help="More attempts after a failure that may pass (default: 3).", metavar="N", rich_help_panel=HOW
        ),
    ] = None,
    mask_alarm: Annotated[
        Text,
        typer.Option(
            "--mask-alarm",
            help="Share of the footprints from which what a layer removes is an alarm (default: 20%).",
            metavar="20%",
            rich_help_panel=HOW,
        ),
    ] = None,
    strict_masks: Annotated[
        bool | None,
        typer.Option("--strict-masks", help="End with status 5 on an alarm.", show_default=False, rich_help_panel=HOW),
    ] = None,
    trace: Annotated[
        Text,
        typer.Option(
            "--trace",
            help="Write what each thread did when, in Chrome's trace format.",
            metavar="FILE",
            rich_help_panel=MANNERS,
        ),
    ] = None,
    dry_run: Annotated[
        bool | None, typer.Option("-n", "--dry-run", help="Only say what it will take, as `plan`.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Remove another job's run from RUN first.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML file of these settings; flags win.", envvar="GEOINFER_CONFIG", rich_help_panel=MANNERS
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=MANNERS)] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No talk but errors.", rich_help_panel=MANNERS)] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="More talk.", rich_help_panel=MANNERS)] = False,
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
def plan(*args: Any, **flags: Any) -> int:
    """`run --dry-run`, under a name of its own."""
    flags["ctx"].params["dry_run"] = True
    return run(*args, **flags)


plan.__doc__ = "Say what a run will take: tiles, pixels, bytes. Reads no pixels, writes nothing; takes the flags of `run`."


def _job(options: RunOptions) -> Job:
    from geoinfer.job import make_job

    return make_job(
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
        bands=options.bands,
        stretch=options.stretch,
        assume_crs=options.assume_crs,
        device=options.device,
        precision=options.precision,
    )


def _execution(options: RunOptions) -> Execution:
    from geoinfer.job import Execution

    names = ("tile", "batch_size", "threads", "in_flight", "retries", "on_error", "max_failed", "mask_alarm", "strict_masks")
    given = {name: getattr(options, name) for name in names}
    return Execution(**{name: value for name, value in given.items() if value is not None})


def _plan(options: RunOptions, as_json: bool) -> int:
    from geoinfer.job import plan as count

    planned = count(_job(options), _execution(options)).to_json()
    if as_json:
        emit_json(planned)
    else:
        shown_as = {"read_bytes": bytes_text, "tile_bytes": bytes_text}
        emit_pairs({name.replace("_", " "): shown_as.get(name, lambda v: v)(value) for name, value in planned.items()})
    return 0


def _run(options: RunOptions, out: str, command: list[str], *, as_json: bool, quiet: bool, verbose: bool) -> int:
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
    for text in alarms(finished.manifest):  # also those of a run that was found finished
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
    from geoinfer.pipeline import run as start

    job, execution = _job(options), _execution(options)
    tiles = count_up_to(job.tiles(execution.tile), MOST_WORKERS)
    if verbose:
        say(f"{job.spec.name} {job.spec.version} on {job.device} in {job.precision}, tiles of {execution.tile} cores a side")
    if not quiet:
        for note in notes(job):
            say(f"geoinfer: {note}")
    with _client(options, job.device, tiles) as client, shown(quiet) as show:
        if verbose and client is not None:
            say(f"{sum(client.nthreads().values())} worker threads, scheduler {client.scheduler.address}")
        return start(
            job,
            out,
            execution=execution,
            client=client,
            overwrite=options.overwrite,
            progress=show,
            stop=stop,
            warn=alarm,
            trace=options.trace,
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


def notes(job: Job) -> Iterator[str]:
    """What a user should know of a job before it starts, one line each."""
    covers, size = job.region.covers, job.source.describe().get("gsd")
    if covers < 1 - ROUNDING:
        yield f"{100 * covers:.3g} % of the region lies within the imagery; outside it nobody looks"
    if isinstance(size, float) and size > COARSE * job.spec.gsd:
        yield f"the imagery has pixels of {size:.3g} m, model {job.spec.name} is made for {job.spec.gsd:g} m: expect little"


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
