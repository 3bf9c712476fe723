"""A job: everything that can change the output, its fingerprint, and what it will take.

What only decides when and where work happens (tile size, batch size, workers, the device's number) is an `Execution` beside
the job and not in it: two runs that differ there alone give the same rows (law 1), and share a fingerprint (law 7).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pyproj import CRS

import geoinfer
from geoinfer.detection import CHIPS_AT_ONCE, Detection, Predicts, check_fit, threshold_to_u8
from geoinfer.errors import ConfigError
from geoinfer.grid import Tile, Window, blocks, cores_of, hull, tiles_of
from geoinfer.imagery import RasterSource
from geoinfer.imagery import open_raster as open_on_grid
from geoinfer.imagery.source import Source
from geoinfer.masks.layer import MaskLayer, open_masks
from geoinfer.masks.prepare import PreparedLayer, prepare
from geoinfer.model.spec import Calibration, ModelSpec
from geoinfer.region import Bounds, GridRegion, Region, parse_crs, region_on
from geoinfer.skipping import SkipRule
from geoinfer.vector.footprints import overshoot_m

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
Bbox = Sequence[float] | str
"""minx, miny, maxx, maxy, or the same as text with commas."""
Mask = MaskLayer | str | Mapping[str, Any]
"""A mask layer, or what opens one: `FILE:key=value,...` or a mapping with the key `file`."""
TILE = 4
"""Cores on a side of a tile where nothing else is said: some seconds of work on a CPU, and a bounded amount to lose."""


@dataclass(frozen=True, slots=True)
class Execution:
    """When and where a job's work is done; no row of the output depends on it."""

    tile: int = TILE
    """Cores on a side of a tile."""
    batch_size: int | Literal["auto"] = "auto"
    """Chips a forward pass."""
    threads: int | None = None
    """Threads of the network in this process, or in each worker; None: one for each core here, one in a worker. What reads
    and polygonizes meanwhile comes on top, and takes little."""
    in_flight: int | None = None
    """Tiles handed out and not yet back; None: two for each thread of the workers, or as many as keep this process busy."""
    retries: int = 3
    """More attempts after a failure that may pass."""
    on_error: Literal["fail", "skip"] = "skip"
    """Stop at the first failed tile, or go on with the rest."""
    max_failed: float = 0.0
    """Share of the tiles that may fail in a run that still counts as finished."""
    strict_masks: bool = False
    """An alarm about a mask layer is an error: one that touches nothing in the region, or removes too much."""
    mask_alarm: float = 0.2
    """Share of the footprints that came to a layer from which what it removes is an alarm."""

    def __post_init__(self) -> None:
        if not (isinstance(self.tile, int) and self.tile >= 1):
            raise ConfigError(f"tile {self.tile!r}: a tile has at least 1 core a side, a whole number")
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise ConfigError(f"batch size {self.batch_size!r}: use 1 or more, a whole number, or auto")
        if self.threads is not None and not (isinstance(self.threads, int) and self.threads >= 1):
            raise ConfigError(f"threads {self.threads!r}: use 1 or more, a whole number")
        if self.in_flight is not None and self.in_flight < 1:
            raise ConfigError(f"in flight {self.in_flight}: use 1 or more")
        if self.retries < 0:
            raise ConfigError(f"retries {self.retries}: use 0 or more")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max failed {self.max_failed}: a share between 0 and 1")
        if not 0 <= self.mask_alarm <= 1:
            raise ConfigError(f"mask alarm {self.mask_alarm}: a share between 0 and 1")
        if self.on_error not in ("fail", "skip"):
            raise ConfigError(f"on error {self.on_error!r}: use fail or skip")


@dataclass(frozen=True, slots=True)
class Job:
    """Imagery, region, model and every setting that acts on the footprints. Picklable; opens nothing by itself."""

    source: Source
    region: GridRegion
    spec: ModelSpec
    model: str | Predicts
    """What to load on a worker: a model's name or directory, or a predictor that is there already."""
    device: str
    """`cpu`, `cuda` (any) or `cuda:N`. Its kind enters the fingerprint, the number does not."""
    precision: str
    """Resolved: `fp32`, `bf16` or `fp16`."""
    crs: CRS
    """Of the output."""
    threshold: float
    """Probability from which a pixel is building, 0..1."""
    min_area_m2: float
    simplify_m: float
    grow_m: float
    min_confidence: float
    asked: dict[str, Any]
    """The region as JSON: what identifies it."""
    masks: tuple[MaskLayer, ...] = ()
    """Mask layers, in the order in which they act."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold}: a probability above 0 and at most 1")
        for name in ("min_area_m2", "simplify_m", "grow_m", "min_confidence"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)}: 0 or more")

    def describe(self) -> dict[str, Any]:
        """All that can change the output, as JSON. Takes the snapshot of the imagery, which may read it whole."""
        grid = self.source.grid
        description: dict[str, Any] = {
            "geoinfer": geoinfer.__version__,
            "imagery": self.source.snapshot(),
            "grid": {
                "crs": grid.crs.to_wkt(),
                "transform": list(grid.transform)[:6],
                "height": grid.height,
                "width": grid.width,
            },
            "region": self.asked,
            "model": self.spec.to_dict(),
            "config": {
                "threshold": self.threshold,
                "min_area_m2": self.min_area_m2,
                "simplify_m": self.simplify_m,
                "grow_m": self.grow_m,
                "min_confidence": self.min_confidence,
                "crs": self.crs.to_wkt(),
                "precision": self.precision,
                "device": self.device.partition(":")[0],
            },
        }
        if self.masks:  # else left out: a job without layers is what it was before there were any
            description["masks"] = [layer.describe() for layer in self.masks]
        plain: dict[str, Any] = json.loads(json.dumps(description, allow_nan=False))  # as it will be read back: no tuples
        return plain

    def detection(self, predictor: Predicts) -> Detection:
        """The part of the job that a tile needs."""
        return Detection(self.source, self.region, predictor, threshold_to_u8(self.threshold))

    def tiles(self, k: int) -> Iterator[tuple[Tile, Window]]:
        """The tiles that hold a pixel asked for, row-major, each with its pixels clipped to the region's window."""
        for tile in tiles_of(self.region.window, self.spec.chips.core, k):
            window = tile.window.intersection(self.region.window)
            if self.region.touches(window):
                yield tile, window

    @property
    def reach(self) -> Bounds:
        """Where footprints can lie, in the grid's coordinate system: outlines may go a little beyond the region's pixels."""
        grid = self.source.grid
        slack = self._slack_m / grid.pixel_m * grid.pixel_size
        minx, miny, maxx, maxy = grid.bounds(self.region.window)
        return minx - slack, miny - slack, maxx + slack, maxy + slack

    def prepare_masks(self, folder: Path) -> tuple[PreparedLayer, ...]:
        """The layers made ready for this job's region and grid, in a folder; those that are there already are taken.

        Raises:
            SourceError: A layer cannot be read.
        """
        return tuple(prepare(layer, self.source.grid.crs, self.reach, folder) for layer in self.masks)

    def skip_rule(self, layers: Sequence[PreparedLayer]) -> SkipRule:
        """Which cores need no look, by layers that were prepared for this job."""
        return SkipRule(tuple(layers), self.source.grid, self.region.window, self.spec.chips.core, self._slack_m)

    @property
    def _slack_m(self) -> float:
        return overshoot_m(self.source.grid, self.simplify_m, self.grow_m)


def fingerprint(description: dict[str, Any]) -> str:
    """SHA-256 of a job's description in canonical JSON: sorted keys, no spaces, numbers as Python prints them."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def open_raster(
    path_or_paths: Paths,
    *,
    model: str | PathLike[str] | Predicts = "buildings",
    gsd: float | None = None,
    core: int | None = None,
    bands: Sequence[int] | None = None,
    stretch: tuple[float, float] | None = None,
    resampling: str = "bilinear",
    assume_crs: str | CRS | None = None,
) -> RasterSource:
    """Open GeoTIFFs on the grid of a model: `imagery.open_raster`, with size and lattice from the model's card.

    Args:
        path_or_paths: One local GeoTIFF or several in order of priority, which share a coordinate system.
        model: Whose grid: a name, a directory or a predictor.
        gsd: Metres a pixel instead of the model's.
        core: Step of the lattice instead of the model's, pixels.
        bands, stretch, resampling, assume_crs: As for `imagery.open_raster`.
    """
    spec = _spec_of(model)
    return open_on_grid(
        path_or_paths,
        gsd=spec.gsd if gsd is None else gsd,
        core=spec.chips.core if core is None else core,
        bands=None if bands is None else tuple(bands),
        stretch=stretch,
        resampling=resampling,
        assume_crs=assume_crs,
    )


def _spec_of(model: str | PathLike[str] | Predicts) -> ModelSpec:
    """The card of a model that is named, or loaded already."""
    if not isinstance(model, str | PathLike):
        return model.spec
    from geoinfer.model.registry import resolve_model

    return resolve_model(str(model))


def _calibration_of(model: str | Predicts, region: str) -> Calibration:
    """What the card of a model says for a region."""
    if not isinstance(model, str):
        raise ConfigError(f"calibrated {region!r}: give the model by name or folder, not loaded")
    from geoinfer.model.registry import find_model

    known = find_model(model).calibrations
    if region not in known:
        names = ", ".join(known) or "none"
        raise ConfigError(
            f"calibrated {region!r}: the card of model {model} has {names}; add it with `geoinfer calibrate --write`"
        )
    return known[region]


def make_job(
    source: Paths | Source,
    *,
    model: str | PathLike[str] | Predicts = "buildings",
    bbox: Bbox | None = None,
    bbox_crs: str | CRS = "EPSG:4326",
    region: Any = None,
    crs: str | CRS | None = None,
    masks: Mask | Iterable[Mask] = (),
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
) -> Job:
    """Open the imagery, find the model, place the region: from what a user says to a job with nothing left open.

    Args:
        source: One raster or several that share a CRS; or a source opened for this model.
        model: A name, a directory, or a predictor.
        bbox: minx, miny, maxx, maxy in `bbox_crs`.
        region: Instead of `bbox`: a file of polygons, a GeoDataFrame, a shapely geometry in `bbox_crs`, or a `Region`.
        crs: Of the output; the grid's where None.
        masks: Mask layers, in the order in which they act; or one.
        calibrated: A region of the card: its calibrated threshold and minimum area stand for the model's.
        threshold: Probability from which a pixel is building; the model's where None.
        min_area: Smallest footprint, square metres; the model's where None.
        simplify: Tolerance of the outlines, metres; the model's where None.
        bands: Band numbers from 1, in the model's order.
        stretch: Values that become 0 and 255 where the imagery is not 8 bit.
        assume_crs: For imagery that names none.
        device, precision: `auto`, or `cpu`, `cuda`, `cuda:N`; `fp32`, `bf16`, `fp16`.
    """
    if bbox is not None and region is not None:
        raise ConfigError("both a bbox and a region: give one of them")
    spec = _spec_of(model)
    loaded: str | Predicts
    if isinstance(model, str | PathLike):
        from geoinfer.model.predictor import resolve_device, resolve_precision  # torch: only where a model runs

        loaded = str(model)
        here = resolve_device(device)
        device = "cuda" if here != "cpu" and device in ("auto", "cuda") else here  # any GPU: each worker takes its own
        precision = resolve_precision(precision, device)
    else:
        loaded = model
        device, precision = getattr(model, "device", "cpu"), getattr(model, "precision", "fp32")
    if isinstance(source, str | PathLike | Sequence):
        opened: Source = open_raster(source, model=model, bands=bands, stretch=stretch, assume_crs=assume_crs)
    else:
        opened = source
    check_fit(opened, spec)
    place = _region(bbox, bbox_crs, region)
    usual = spec if calibrated is None else _calibration_of(loaded, calibrated)
    return Job(
        source=opened,
        region=region_on(place, opened.grid, opened.bounds),
        spec=spec,
        model=loaded,
        device=device,
        precision=precision,
        crs=opened.grid.crs if crs is None else parse_crs(crs),
        threshold=usual.threshold if threshold is None else threshold,
        min_area_m2=usual.min_area_m2 if min_area is None else min_area,
        simplify_m=spec.simplify_m if simplify is None else simplify,
        grow_m=spec.grow_m,
        min_confidence=min_confidence,
        asked={"whole": True} if place is None else place.describe(),
        masks=open_masks([masks] if isinstance(masks, str | Mapping | MaskLayer) else masks),
    )


def _region(bbox: Bbox | None, bbox_crs: str | CRS, region: Any) -> Region | None:
    if bbox is not None:
        return Region.from_bbox(bbox, bbox_crs)
    if region is None or isinstance(region, Region):
        return region
    return Region.from_file(region) if isinstance(region, str | PathLike) else Region.from_geometry(region, bbox_crs)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job will take; counted on the grid, without reading a pixel."""

    tiles: int
    cores: int
    """Chips to infer: nodata found while reading makes it fewer, buildings that reach masked cores more."""
    masked_cores: int
    """Chips that mask layers marked `skip` spare."""
    pixels: int
    """Pixels of the tiles, at the model's gsd."""
    read_pixels: int
    """Pixels read, margins and overlaps between tiles included."""
    read_bytes: int
    """The same in bytes, uncompressed 8 bit at the model's gsd."""
    chip_pixels: int
    """Pixels through the network, margins included."""
    tile_bytes: int
    """Memory for one tile on a worker, the model not counted."""
    area_km2: float
    """Area of the tiles' windows on the grid."""
    covers: float
    """Share of the region that lies within the imagery, 0..1."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


def plan(job: Job, execution: Execution | None = None) -> Plan:
    """Count tiles, chips, pixels and bytes of a job. Reads no pixels."""
    execution = execution or Execution()
    spec, bands = job.spec.chips, job.source.bands
    tiles = cores = masked = pixels = read = 0
    with _spared(job) as rule:
        for tile, window in job.tiles(execution.tile):
            tiles += 1
            pixels += window.height * window.width
            asked = [core for core in cores_of(tile, spec.core) if job.region.touches(core.intersection(window))]
            spared = rule.cores(tile.window)
            seen = [core for core in asked if (core.row // spec.core, core.col // spec.core) not in spared]
            cores += len(seen)
            masked += len(asked) - len(seen)
            needed = [hull(block).grow(spec.margin) for block in blocks(seen)]
            read += sum(window.height * window.width for window in needed)
    metres = job.source.grid.pixel_m
    return Plan(
        tiles=tiles,
        cores=cores,
        masked_cores=masked,
        pixels=pixels,
        read_pixels=read,
        read_bytes=read * bands,
        chip_pixels=cores * spec.chip**2,
        tile_bytes=tile_bytes(job, execution),
        area_km2=pixels * metres**2 / 1e6,
        covers=job.region.covers,
    )


def tile_bytes(job: Job, execution: Execution) -> int:
    """Memory for one tile on a worker, the model not counted: probabilities, what was computed, and its chips twice over."""
    spec = job.spec.chips
    chips = min(execution.tile**2, CHIPS_AT_ONCE)
    return (execution.tile * spec.core) ** 2 * 3 + 2 * chips * spec.chip**2 * (job.source.bands + 1)


@contextmanager
def _spared(job: Job) -> Iterator[SkipRule]:
    """The job's rule for skipping, its layers prepared for as long as that takes."""
    with tempfile.TemporaryDirectory() as folder:
        skipping = replace(job, masks=tuple(layer for layer in job.masks if layer.action == "skip"))
        yield skipping.skip_rule(skipping.prepare_masks(Path(folder)))
