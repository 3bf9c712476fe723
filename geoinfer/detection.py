"""One tile, from its window to polygons: the stage that runs on every worker.

    read(tile + margin) -> chips -> prob of each core -> mask -> polygons, fragments and seams

Chips lie on the model's lattice, so a pixel's probability is the same whatever window, tile, batch or region it was asked
for in (law 1). A core without a pixel to compute is neither cut nor inferred (law 8). Pure: no files are written here, and
failure is an exception; `pipeline` decides what becomes of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from geoinfer.errors import ConfigError
from geoinfer.grid import Grid, Tile, Window, cores_of
from geoinfer.imagery.source import Image, Source
from geoinfer.model.spec import ModelSpec
from geoinfer.vector.footprints import square_metres_per_unit
from geoinfer.vector.stitch import TileResult, split

Prob = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
GSD_TOLERANCE = 0.03
"""How far a grid's pixels may be from the model's, as a share; a source's own pixels are used up to 0.02."""
CHIPS_AT_ONCE = 64
"""Chips handed to the predictor together, which cuts them in batches of its own: bounds a tile's memory."""


class Predicts(Protocol):
    """What a predictor is to the pipeline."""

    @property
    def spec(self) -> ModelSpec:
        """The model's card."""
        ...

    def predict(self, chips: npt.NDArray[Any], valid: Mask | None) -> Prob:
        """(N, C, S, S) pixels and (N, S, S) validity -> (N, S, S) uint8 probabilities."""
        ...


class Masks(Protocol):
    """Which pixels are asked for; `region.GridRegion` is one."""

    def mask(self, window: Window) -> Mask | None:
        """(H, W) bool, or None where all are."""
        ...


@dataclass(frozen=True, slots=True)
class Detection:
    """What a tile needs to know: everything in it decides pixels, nothing in it decides when or where."""

    source: Source
    region: Masks
    predictor: Predicts
    threshold_u8: int
    """Smallest probability that is building, 1..255."""


@dataclass(frozen=True, slots=True)
class TileRecord:
    """A tile's row of the coverage: each pixel asked for is done, nodata, masked or failed, and the areas say how many."""

    row: int
    col: int
    window: tuple[int, int, int, int]
    """Row, col, height and width of the pixels looked at, clipped to the region's window."""
    status: str
    """`done` where any pixel was computed, else `nodata`, `masked` or `failed`."""
    reason: str | None
    """Why a tile failed."""
    area_m2: float
    """Area asked for, on the ellipsoid: the sum of the four below."""
    done_m2: float = 0.0
    nodata_m2: float = 0.0
    masked_m2: float = 0.0
    failed_m2: float = 0.0
    chips: int = 0
    """Chips inferred."""
    read_s: float = 0.0
    predict_s: float = 0.0
    polygonize_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TileRecord:
        """The inverse of `to_json`."""
        return cls(**{**record, "window": tuple(record["window"])})


def threshold_to_u8(threshold: float) -> int:
    """The integer threshold: prob >= it is building. At least 1, since prob 0 also marks what was not computed."""
    return max(1, math.ceil(threshold * 255 - 1e-9))  # 1e-9: 0.2 * 255 is 51.000000000000004 or 51, depending on luck


def check_fit(source: Source, spec: ModelSpec) -> None:
    """Imagery and model agree on bands, pixel size and lattice.

    Raises:
        ConfigError: They do not: the source was opened for another model, or with other bands.
    """
    if source.bands != len(spec.bands):
        bands = ", ".join(spec.bands)
        raise ConfigError(f"imagery of {source.bands} bands: model {spec.name} expects {len(spec.bands)} bands ({bands})")
    size = source.grid.pixel_m
    if abs(size / spec.gsd - 1) > GSD_TOLERANCE or any(at % spec.chips.core for at in source.grid.origin_pixel):
        raise ConfigError(
            f"the imagery was not opened for model {spec.name}, which sees pixels of {spec.gsd:g} m in cores of "
            f"{spec.chips.core} px: these are {size:.3g} m; use open_raster(..., model={spec.name!r})"
        )


def predict(source: Source, window: Window, predictor: Predicts) -> Prob:
    """Probabilities of a window, the same ones whatever the window (law 1).

    Args:
        source: Imagery on the model's grid.
        window: Any pixels of it, aligned to nothing.
        predictor: Of the model the source was opened for.

    Returns:
        (H, W) uint8; 0 where the imagery is invalid.

    Raises:
        ConfigError: The source was opened for another model.
    """
    check_fit(source, predictor.spec)
    prob, _, _ = _infer(source, window, predictor, None, _Clock())
    return prob


def detect_tile(tile: Tile, window: Window, detection: Detection) -> tuple[TileResult | None, TileRecord]:
    """Find the buildings of one tile.

    Args:
        tile: A tile of the lattice.
        window: Its pixels that lie in the region's window; only those are looked at.
        detection: Imagery, region and model.

    Returns:
        The polygons and seams, None where nothing was computed; and the coverage row.
    """
    clock = _Clock()
    asked = detection.region.mask(window)
    prob, computed, chips = _infer(detection.source, window, detection.predictor, asked, clock)
    pixel_m2 = pixel_area_m2(detection.source.grid, window)
    n_asked = window.height * window.width if asked is None else int(asked.sum())
    n_done = int(computed.sum())
    result = None
    if n_done:
        result = split(prob >= detection.threshold_u8, window, prob=prob, valid=computed)
    clock.lap("polygonize")
    record = TileRecord(
        tile.row,
        tile.col,
        (window.row, window.col, window.height, window.width),
        "done" if n_done else "nodata",
        None,
        area_m2=n_asked * pixel_m2,
        done_m2=n_done * pixel_m2,
        nodata_m2=(n_asked - n_done) * pixel_m2,
        chips=chips,
        read_s=clock.spent["read"],
        predict_s=clock.spent["predict"],
        polygonize_s=clock.spent["polygonize"],
    )
    return result, record


def failed_record(tile: Tile, window: Window, grid: Grid, region: Masks, reason: str) -> TileRecord:
    """The coverage row of a tile that could not be computed."""
    asked = region.mask(window)
    area = (window.height * window.width if asked is None else int(asked.sum())) * pixel_area_m2(grid, window)
    pixels = (window.row, window.col, window.height, window.width)
    return TileRecord(tile.row, tile.col, pixels, "failed", reason, area_m2=area, failed_m2=area)


def pixel_area_m2(grid: Grid, window: Window) -> float:
    """Area of a pixel on the ellipsoid, square metres, at the centre of a window."""
    minx, miny, maxx, maxy = grid.bounds(window)
    centre = np.array([(minx + maxx) / 2]), np.array([(miny + maxy) / 2])
    return float(grid.pixel_size**2 * square_metres_per_unit(grid.crs, *centre)[0])


def _infer(source: Source, window: Window, predictor: Predicts, asked: Mask | None, clock: _Clock) -> tuple[Prob, Mask, int]:
    """(H, W) probabilities, (H, W) which of them were computed, and how many chips that took."""
    chips = predictor.spec.chips
    prob = np.zeros((window.height, window.width), np.uint8)
    computed = np.zeros((window.height, window.width), np.bool_)
    wanted = [core for core in _cores(window, chips.core) if asked is None or asked[_slices(core, window)].any()]
    if not wanted:
        return prob, computed, 0
    needed = _hull(wanted).grow(chips.margin)
    image = source.read(needed)
    cores = []
    for core in wanted:
        here = _slices(core, window)
        live = image.valid[_slices(core.intersection(window), needed)]
        if asked is not None:
            live = live & asked[here]
        if live.any() and not _is_constant(image, _slices(core.grow(chips.margin), needed)):
            computed[here] = live
            cores.append(core)
    clock.lap("read")
    for batch in _batches(cores, CHIPS_AT_ONCE):
        cuts = [_slices(core.grow(chips.margin), needed) for core in batch]
        pixels = np.stack([image.pixels[:, rows, cols] for rows, cols in cuts])  # (N, C, S, S)
        valid = np.stack([image.valid[rows, cols] for rows, cols in cuts])  # (N, S, S)
        for core, found in zip(batch, predictor.predict(pixels, valid), strict=True):
            prob[_slices(core, window)] = found[_slices(core.intersection(window), core.grow(chips.margin))]
    prob[~computed] = 0
    clock.lap("predict")
    return prob, computed, len(cores)


def _is_constant(image: Image, chip: tuple[slice, slice]) -> bool:
    """The chip's valid pixels all hold one colour: a collar or a sensor gap that no nodata value declares.

    Decided on the whole chip, which belongs to the lattice, so no tile or region can change it.
    """
    pixels, valid = image.pixels[:, chip[0], chip[1]], image.valid[chip]
    sample = pixels[:, ::61, ::61][:, valid[::61, ::61]]  # nearly every chip differs here, and most of the cost is spared
    if sample.size and (sample != sample[:, :1]).any():
        return False
    rest = pixels[:, valid]
    return bool((rest == rest[:, :1]).all())


def _cores(window: Window, core: int) -> Iterator[Window]:
    """Cores of the lattice that share a pixel with a window, row-major."""
    if window.is_empty:
        return
    row, col = window.row // core, window.col // core
    for r in range(row, -(-window.stop_row // core)):
        for c in range(col, -(-window.stop_col // core)):
            yield from cores_of(Tile(r, c, Window(r * core, c * core, core, core)), core)


def _slices(part: Window, frame: Window) -> tuple[slice, slice]:
    """Where the part of a window that lies in a frame is in the frame's array."""
    inside = part.intersection(frame)
    row, col = inside.row - frame.row, inside.col - frame.col
    return slice(row, row + inside.height), slice(col, col + inside.width)


def _hull(windows: Sequence[Window]) -> Window:
    row, col = min(w.row for w in windows), min(w.col for w in windows)
    return Window(row, col, max(w.stop_row for w in windows) - row, max(w.stop_col for w in windows) - col)


def _batches(cores: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    for start in range(0, len(cores), size):
        yield cores[start : start + size]


class _Clock:
    """Seconds by stage; measures, decides nothing."""

    def __init__(self) -> None:
        self.spent = {"read": 0.0, "predict": 0.0, "polygonize": 0.0}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.spent[stage] += now - self._since
        self._since = now
