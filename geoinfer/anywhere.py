"""The same three calls wherever on earth: a job, a run, a frame, on one grid where one is enough, else a zone at a time.

Who calls these need not know which it was. What differs is `zones`' affair; whether the imagery is like what the model was
trained on, `trust`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal

import geopandas as gpd
from pyproj import CRS

from geoinfer import pipeline
from geoinfer.detection import Predicts
from geoinfer.dispatch import Progress
from geoinfer.errors import DomainWarning, MaskWarning, TooWideError
from geoinfer.estimate import Plan
from geoinfer.estimate import plan as plan_job
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.source import Source
from geoinfer.job import TILE, Bbox, Execution, Job, Mask, Paths, asked_region, make_job
from geoinfer.region import named_regions, parse_crs
from geoinfer.trust import trusted
from geoinfer.zones import Zones, find_in_zones, make_jobs, run_zones

Domain = Literal["warn", "mark", "refuse", "ignore"]
"""What imagery unlike the model's training leads to."""


def make_any_job(source: Paths | Source, **settings: Any) -> Job | Zones:
    """`job.make_job`, and where no single grid can hold it the same job in several zones.

    Args:
        source: As for `make_job`.
        settings: As for `make_job`.
    """
    try:
        return make_job(source, **settings)
    except TooWideError as error:
        bounds = error.bounds
    names, where = settings.pop("places", ()), settings.pop("region", None)
    region = asked_region(settings.pop("bbox", None), settings.get("bbox_crs", "EPSG:4326"), where, names)
    places = tuple(named_regions(where, names)) if names else ()
    settings |= {"crs": None}  # of a zone's own run; the whole has that of `run_any`

    def make(crs: CRS, part: Any) -> Job:
        return replace(make_job(source, region=part, grid_crs=crs, **settings), places=places)

    return make_jobs(make, region, bounds)


def trusting(job: Job | Zones, domain: Domain) -> tuple[Job | Zones, list[str]]:
    """A job that knows whether its imagery is like what the model was trained on, and what a user should be told.

    Raises:
        SourceError: It is not, and `domain` is `refuse`.
    """
    if isinstance(job, Job):
        return trusted(job, domain)
    judged = [trusted(zone.job, domain) for zone in job.jobs]
    zones = tuple(replace(zone, job=part) for zone, (part, _) in zip(job.jobs, judged, strict=True))
    return replace(job, jobs=zones), list(dict.fromkeys(text for _, texts in judged for text in texts))


def first_job(job: Job | Zones) -> Job:
    """The job, or that of the first zone: model, device and settings are the same in all."""
    return job if isinstance(job, Job) else job.jobs[0].job


def covers(job: Job | Zones) -> float:
    """Share of the region that lies within the imagery, 0..1."""
    return job.region.covers if isinstance(job, Job) else job.covers


def plan_any(job: Job | Zones, execution: Execution | None = None, *, price_gpu_hour: float | None = None) -> Plan:
    """What a job will take, over all its zones; the margins of zones, which several compute, are counted in each."""
    if isinstance(job, Job):
        return plan_job(job, execution, price_gpu_hour=price_gpu_hour)
    plans = [plan_job(zone.job, execution, price_gpu_hour=price_gpu_hour) for zone in job.jobs]
    first = plans[0]
    same = {"tile_bytes", "covers", "rate_mpx_s", "rate_from", "cost"}
    sums = {name: sum(getattr(part, name) for part in plans) for name in first.__slots__ if name not in same}
    cost = None if first.cost is None else sum(part.cost or 0.0 for part in plans)
    return replace(first, covers=job.covers, cost=cost, **sums)


def run_any(job: Job | Zones, out: str | PathLike[str], *, crs: CRS | None = None, **manners: Any) -> pipeline.Run:
    """`pipeline.run`, or `zones.run_zones`.

    Args:
        job: What to do.
        out: The run directory.
        crs: Of the output of a job in zones; an ordinary job has its own.
        manners: As for `pipeline.run`.
    """
    if isinstance(job, Job):
        return pipeline.run(job, out, **manners)
    return run_zones(job, out, crs=crs, **manners)


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
    imagery: SourceOptions | None = None,
    places: Sequence[str] = (),
    domain: Domain = "warn",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tile: int = TILE,
    on_error: Literal["fail", "skip"] = "fail",
    progress: Callable[[Progress], None] | None = None,
) -> gpd.GeoDataFrame:
    """Building footprints of imagery, anywhere on earth, in this process, as a frame.

    Args:
        source: What names imagery, as for `make_job`; or a source opened for this model.
        model: A name, a directory or a predictor.
        bbox, bbox_crs, region, crs, masks, calibrated, threshold, min_area, simplify, min_confidence: As for `make_job`.
        bands, stretch, assume_crs, imagery, places, device, precision: As for `make_job`.
        domain: What imagery unlike the model's training leads to: a warning, and with `mark` a column `low_trust`; an error
            with `refuse`; nothing with `ignore`.
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
        DomainWarning: The imagery is unlike what the model was trained on.
        MaskWarning: A mask layer touches nothing in the region, or removes an implausible share of the footprints.
    """
    job: Job | Zones = make_any_job(
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
        imagery=imagery,
        places=places,
        device=device,
        precision=precision,
    )
    job, unlike = trusting(job, domain)
    for text in unlike:
        warnings.warn(text, DomainWarning, stacklevel=2)
    execution = Execution(tile, batch_size, on_error=on_error, strict_masks=strict_masks, mask_alarm=mask_alarm)
    if isinstance(job, Job):
        return pipeline.find(job, execution, progress)
    wanted = None if crs is None else parse_crs(crs)
    return find_in_zones(job, crs=wanted, execution=execution, progress=progress, warn=_warn)


def _warn(text: str) -> None:
    warnings.warn(text, MaskWarning, stacklevel=2)


__all__: Sequence[str] = ["covers", "detect", "first_job", "make_any_job", "plan_any", "run_any", "trusting"]
