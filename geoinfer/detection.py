"""One tile, from its window to polygons: the stage that runs on every worker.

    read(tile + margin) -> chips -> prob of each core -> mask -> polygons, fragments and seams

Chips lie on the model's lattice, so a pixel's probability is the same whatever window, tile, batch or region it was asked
for in (law 1). A core without a pixel to compute is neither cut nor inferred, nor one that need not be looked at, until a
building reaches its border (law 8; `skipping` says why that is enough). Pure: no files are written here, and failure is an
exception; `pipeline` decides what becomes of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
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
Core = tuple[int, int]
"""Lattice row and column of a core, counted from the grid's pixel (0, 0)."""
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
class Skip:
    """Which cores of a tile, and of the ring of cores around it, need not be looked at."""

    cores: Mapping[Core, int]
    """To the number of the mask layer that says so, which comes back in the record."""
    opened: frozenset[Core] = frozenset()
    """Those to look at all the same: buildings reach them from outside the tile."""


NO_SKIP = Skip({})


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
    skipped: tuple[tuple[int, int, int], ...] = ()
    """Cores that were not looked at: lattice row, column, number of the mask layer. Sorted, as the next two."""
    opened: tuple[tuple[int, int, int], ...] = ()
    """Cores that need not have been looked at but for the buildings that reach them."""
    knocks: tuple[Core, ...] = ()
    """Such cores outside the tile that buildings reach from here."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TileRecord:
        """The inverse of `to_json`."""
        of_layers: dict[str, Any] = {
            name: tuple(tuple(core) for core in record.get(name, ())) for name in ("skipped", "opened", "knocks")
        }
        return cls(**{**record, "window": tuple(record["window"]), **of_layers})


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
    look = _Look(source, predictor, window, None)
    look.at(_cores(window, predictor.spec.chips.core))
    return look.prob


def detect_tile(
    tile: Tile, window: Window, detection: Detection, skip: Skip = NO_SKIP
) -> tuple[TileResult | None, TileRecord]:
    """Find the buildings of one tile.

    Args:
        tile: A tile of the lattice.
        window: Its pixels that lie in the region's window; only those are looked at.
        detection: Imagery, region and model.
        skip: Cores that need not be looked at, unless a building reaches them.

    Returns:
        The polygons and seams, None where nothing was computed; and the coverage row.
    """
    asked = detection.region.mask(window)
    look = _Look(detection.source, detection.predictor, window, asked)
    wanted = look.wanted()
    opened, knocks = _look_around(look, wanted, tile, detection.threshold_u8, skip)
    closed = skip.cores.keys() - opened
    left = [at for at in wanted if _key(at) in closed]
    pixel_m2 = pixel_area_m2(detection.source.grid, window)
    n_asked, n_done = look.count(window), int(look.computed.sum())
    n_masked = sum(look.count(at) for at in left)
    result = None
    if n_done:
        result = split(look.prob >= detection.threshold_u8, window, prob=look.prob, valid=look.computed)
        if n_done < n_asked:
            result = replace(result, computed=look.computed)
    look.clock.lap("polygonize")
    record = TileRecord(
        tile.row,
        tile.col,
        (window.row, window.col, window.height, window.width),
        "done" if n_done else "masked" if n_masked else "nodata",
        None,
        area_m2=n_asked * pixel_m2,
        done_m2=n_done * pixel_m2,
        nodata_m2=(n_asked - n_done - n_masked) * pixel_m2,
        masked_m2=n_masked * pixel_m2,
        chips=look.chips,
        read_s=look.clock.spent["read"],
        predict_s=look.clock.spent["predict"],
        polygonize_s=look.clock.spent["polygonize"],
        skipped=tuple((*_key(at), skip.cores[_key(at)]) for at in left),
        opened=tuple((*at, skip.cores[at]) for at in sorted(opened)),
        knocks=tuple(sorted(knocks)),
    )
    return result, record


def _look_around(
    look: _Look, wanted: Sequence[Window], tile: Tile, threshold_u8: int, skip: Skip
) -> tuple[set[Core], set[Core]]:
    """Look at the cores that must be looked at, and at those that buildings reach from there, until none is reached.

    Returns:
        The cores of `skip` that were opened within the tile, and those outside that buildings reach.
    """
    core = look.predictor.spec.chips.core
    inside = {_key(at) for at in cores_of(tile, core)}
    opened, knocks = {at for at in skip.opened if at in inside}, set[Core]()
    todo = [at for at in wanted if _key(at) in opened or _key(at) not in skip.cores]
    while todo:
        look.at(todo)
        reached = {to for at in todo for to in _reached(look, at, threshold_u8) if to in skip.cores}
        knocks |= reached - inside
        new = (reached & inside) - opened
        opened |= new
        todo = [at for at in wanted if _key(at) in new]
    return opened, knocks


def _reached(look: _Look, core: Window, threshold_u8: int) -> Iterator[Core]:
    """The cores beside a core that one of its building pixels faces."""
    row, col = _key(core)
    part = core.intersection(look.window)
    is_building = look.prob[part.slices_in(look.window)] >= threshold_u8  # 0 where not computed, and never enough
    beside = (
        (part.row == core.row, is_building[0], (row - 1, col)),
        (part.stop_row == core.stop_row, is_building[-1], (row + 1, col)),
        (part.col == core.col, is_building[:, 0], (row, col - 1)),
        (part.stop_col == core.stop_col, is_building[:, -1], (row, col + 1)),
    )
    for is_border, pixels, other in beside:
        if is_border and pixels.any():
            yield other


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


class _Look:
    """What is known of a window's pixels; grows as cores are looked at."""

    def __init__(self, source: Source, predictor: Predicts, window: Window, asked: Mask | None) -> None:
        self.source, self.predictor, self.window, self.asked = source, predictor, window, asked
        self.prob = np.zeros((window.height, window.width), np.uint8)
        self.computed = np.zeros((window.height, window.width), np.bool_)
        self.chips = 0
        """Chips inferred so far."""
        self.clock = _Clock()

    def wanted(self) -> list[Window]:
        """The cores with a pixel that is asked for, row-major."""
        return [core for core in _cores(self.window, self.predictor.spec.chips.core) if self.count(core)]

    def count(self, part: Window) -> int:
        """Pixels asked for in a part of the window."""
        if self.asked is None:
            inside = part.intersection(self.window)
            return inside.height * inside.width
        return int(self.asked[part.slices_in(self.window)].sum())

    def at(self, cores: Iterable[Window]) -> None:
        """Read and infer cores."""
        chips = self.predictor.spec.chips
        todo: list[tuple[Window, Image, Window]] = []  # core, an image that holds its chip, and the image's window
        for block in blocks(cores):
            needed = hull(block).grow(chips.margin)
            image = self.source.read(needed)
            for core in block:
                here = core.slices_in(self.window)
                live = image.valid[core.intersection(self.window).slices_in(needed)]
                if self.asked is not None:
                    live = live & self.asked[here]
                if live.any() and not _is_constant(image, core.grow(chips.margin).slices_in(needed)):
                    self.computed[here] = live
                    todo.append((core, image, needed))
        self.clock.lap("read")
        for start in range(0, len(todo), CHIPS_AT_ONCE):
            batch = todo[start : start + CHIPS_AT_ONCE]
            cuts = [(image, *core.grow(chips.margin).slices_in(needed)) for core, image, needed in batch]
            pixels = np.stack([image.pixels[:, rows, cols] for image, rows, cols in cuts])  # (N, C, S, S)
            valid = np.stack([image.valid[rows, cols] for image, rows, cols in cuts])  # (N, S, S)
            for (core, _, _), found in zip(batch, self.predictor.predict(pixels, valid), strict=True):
                here = core.slices_in(self.window)
                prob = found[core.intersection(self.window).slices_in(core.grow(chips.margin))]
                self.prob[here] = np.where(self.computed[here], prob, 0)
        self.chips += len(todo)
        self.clock.lap("predict")


def blocks(cores: Iterable[Window]) -> list[list[Window]]:
    """Row-major cores in rectangles that hold no other core, so that what need not be looked at is not read either."""
    found: list[list[Window]] = []
    for _, row in groupby(cores, key=lambda core: core.row):
        runs: list[list[Window]] = []
        for core in row:
            if runs and runs[-1][-1].stop_col == core.col:
                runs[-1].append(core)
            else:
                runs.append([core])
        for run in runs:
            above = next((block for block in found if _continues(block, run)), None)
            if above is None:
                found.append(run)
            else:
                above.extend(run)
    return found


def _continues(block: Sequence[Window], run: Sequence[Window]) -> bool:
    """A run of cores lies right below a block and is as wide."""
    is_below = block[-1].stop_row == run[0].row
    return is_below and (block[0].col, block[-1].stop_col) == (run[0].col, run[-1].stop_col)


def _key(core: Window) -> Core:
    return core.row // core.height, core.col // core.width


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


def hull(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of these."""
    row, col = min(w.row for w in windows), min(w.col for w in windows)
    return Window(row, col, max(w.stop_row for w in windows) - row, max(w.stop_col for w in windows) - col)


class _Clock:
    """Seconds by stage; measures, decides nothing."""

    def __init__(self) -> None:
        self.spent = {"read": 0.0, "predict": 0.0, "polygonize": 0.0}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.spent[stage] += now - self._since
        self._since = now
