"""A job: everything that can change the output, its fingerprint, and what it will take.

What only decides when and where work happens (tile size, batch size, workers, the device's number) is an `Execution` beside
the job and not in it: two runs that differ there alone give the same rows (law 1), and share a fingerprint (law 7).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pyproj import CRS

import geoinfer
from geoinfer.detection import Detection, Predicts, check_fit, threshold_to_u8
from geoinfer.errors import ConfigError
from geoinfer.grid import Tile, Window, aligned, tile_phase, tiles_of
from geoinfer.imagery import RasterSource
from geoinfer.imagery.locate import open_source
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.source import Source
from geoinfer.masks.layer import MaskLayer, open_masks
from geoinfer.masks.prepare import PreparedLayer, prepare
from geoinfer.model.spec import Calibration, ModelSpec
from geoinfer.region import Bounds, GridRegion, Region, named_regions, parse_crs, region_on
from geoinfer.skipping import SkipRule
from geoinfer.vector.footprints import overshoot_m

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
"""What names imagery: files, folders, patterns, tile indexes, snapshots, URLs, searches, map tiles; see `imagery.locate`."""
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
    low_trust: tuple[bool, ...] | None = None
    """By raster, in order of priority: it lies outside the model's domain, and footprints found in it are marked. None: no
    column `low_trust`."""
    domain: dict[str, Any] | None = None
    """What was found of the imagery beside the model's training, for `run.json`; enters no fingerprint."""
    places: tuple[tuple[str, Region], ...] = ()
    """Named parts of the region: footprints get the column `place`."""

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
            "imagery": self.source.snapshot(self.chips_window(self.region.window)),
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
        if self.low_trust is not None:
            description["config"]["low_trust"] = list(self.low_trust)
        if self.places:
            description["config"]["places"] = [[name, place.describe()] for name, place in self.places]
        plain: dict[str, Any] = json.loads(json.dumps(description, allow_nan=False))  # as it will be read back: no tuples
        return plain

    def detection(self, predictor: Predicts) -> Detection:
        """The part of the job that a tile needs."""
        return Detection(self.source, self.region, predictor, threshold_to_u8(self.threshold))

    def tiles(self, k: int) -> Iterator[tuple[Tile, Window]]:
        """The tiles that hold a pixel asked for, row-major, each with its pixels clipped to the region's window."""
        core = self.spec.chips.core
        for tile in tiles_of(self.region.window, core, k, tile_phase(self.source.grid, core, k)):
            window = tile.window.intersection(self.region.window)
            if self.region.touches(window):
                yield tile, window

    def chips_window(self, window: Window) -> Window:
        """Every pixel that can act on the pixels of a window: those of the chips that it is found with."""
        return aligned(window, self.spec.chips.core).grow(self.spec.chips.margin)

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
    resampling: str | None = None,
    assume_crs: str | CRS | None = None,
    region: Region | None = None,
    imagery: SourceOptions | None = None,
) -> RasterSource:
    """Open imagery on the grid of a model: size and lattice are those of the model's card.

    Args:
        path_or_paths: One source or several, in order of priority.
        model: Whose grid: a name, a directory or a predictor.
        gsd: Metres a pixel instead of the model's.
        core: Step of the lattice instead of the model's, pixels.
        bands: Band numbers from 1, in the model's order.
        stretch: Values that become 0 and 255 where the imagery is not 8 bit.
        resampling: One of `imagery.RESAMPLING`, for rasters that are not on the model's grid; bilinear where None.
        assume_crs: For imagery that names none.
        region: Where it is wanted: needed by map tiles and searches, which have no end of their own.
        imagery: All settings of a source; the four above win over what it says.
    """
    spec = _spec_of(model)
    return open_source(
        _texts(path_or_paths),
        _source_options(imagery, bands, stretch, assume_crs, resampling),
        gsd=spec.gsd if gsd is None else gsd,
        core=spec.chips.core if core is None else core,
        region=region,
    )


def _texts(paths: Paths) -> list[str]:
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    for path in given:
        if not isinstance(path, str | PathLike):
            raise ConfigError(f"source {path!r}: not what names imagery; use a path or an address")
    return [str(path) for path in given]


def _source_options(
    options: SourceOptions | None,
    bands: Sequence[int] | None,
    stretch: tuple[float, float] | None,
    assume_crs: str | CRS | None,
    resampling: str | None = None,
) -> SourceOptions:
    """The options, and what stands beside them."""
    if not (options is None or isinstance(options, SourceOptions)):
        raise ConfigError(f"imagery {options!r}: use geoinfer.SourceOptions(...)")
    given: dict[str, Any] = {
        "bands": None if bands is None else tuple(bands),
        "stretch": stretch,
        "assume_crs": assume_crs,
        "resampling": resampling,
    }
    return replace(options or SourceOptions(), **{name: value for name, value in given.items() if value is not None})


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
    imagery: SourceOptions | None = None,
    places: Sequence[str] = (),
    max_pixels: int | None = None,
    grid_crs: CRS | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Job:
    """Open the imagery, find the model, place the region: from what a user says to a job with nothing left open.

    Args:
        source: What names imagery, in order of priority; or a source opened for this model.
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
        imagery: All settings of the source; bands, stretch and assume_crs win over what it says.
        places: Names of those places in the file of `region` that are asked for; all where empty.
        max_pixels: Refuse a region with more pixels.
        grid_crs: Coordinate system of the grid; chosen by the imagery where None.
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
    place = asked_region(bbox, bbox_crs, region, places)
    if isinstance(source, str | PathLike | Sequence):
        options = _source_options(imagery, bands, stretch, assume_crs)
        opened: Source = open_source(_texts(source), options, gsd=spec.gsd, core=spec.chips.core, region=place, crs=grid_crs)
    elif not hasattr(source, "snapshot"):
        raise ConfigError(f"source {source!r}: use a path, an address, a list of them, or what `open_raster` gives")
    else:
        opened = source
    check_fit(opened, spec)
    on_grid = region_on(place, opened.grid, opened.bounds)
    _check_pixels(on_grid.window, max_pixels)
    usual = spec if calibrated is None else _calibration_of(loaded, calibrated)
    return Job(
        source=opened,
        region=on_grid,
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
        places=tuple(named_regions(region, places)) if places else (),
        masks=open_masks([masks] if isinstance(masks, str | Mapping | MaskLayer) else masks),
    )


def asked_region(bbox: Bbox | None, bbox_crs: str | CRS, region: Any, places: Sequence[str] = ()) -> Region | None:
    """The region that a box, a file, a geometry or named places of a file ask for; None for all imagery."""
    if places and not isinstance(region, str | PathLike):
        raise ConfigError(f"place {places[0]!r}: places are named in a file; give it as the region (--region FILE)")
    if bbox is not None:
        return Region.from_bbox(bbox, bbox_crs)
    if region is None or isinstance(region, Region):
        return region
    if isinstance(region, str | PathLike):
        return Region.from_file(region, places=places) if places else Region.from_file(region)
    return Region.from_geometry(region, bbox_crs)


def _check_pixels(window: Window, most: int | None) -> None:
    pixels = window.height * window.width
    if most is not None and pixels > most:
        raise ConfigError(
            f"the region has {pixels:,} pixels of the model's size, more than the {most:,} of max_pixels; ask for less of it"
        )
