"""One tile, from its window to polygons: the stage that runs on every worker.

    read(tile + margin) -> chips -> prob of each core -> mask -> polygons, fragments and seams

Chips lie on the model's lattice, so a pixel's probability is the same whatever window, tile, batch or region it was asked
for in (law 1). A core without a pixel to compute is neither cut nor inferred, nor one that need not be looked at, until a
building reaches its border (law 8; `skipping` says why that is enough). Pure: no files are written here, and failure is an
exception; `pipeline` decides what becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from geoinfer.errors import ConfigError
from geoinfer.grid import Grid, Tile, Window, cores_of
from geoinfer.imagery.meter import Decoded, decoded
from geoinfer.imagery.reading import fetch_ahead
from geoinfer.imagery.source import Image, Source
from geoinfer.model.spec import ModelSpec
from geoinfer.trace import span
from geoinfer.vector.bits import at_least
from geoinfer.vector.footprints import square_metres_per_unit
from geoinfer.vector.polygons import UNKNOWN, Polygons
from geoinfer.vector.stitch import TileResult, split

Pixels = npt.NDArray[np.uint8]
Prob = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Core = tuple[int, int]
"""Lattice row and column of a core, counted from the grid's pixel (0, 0)."""
GSD_TOLERANCE = 0.03
"""How far a grid's pixels may be from the model's, as a share; a source's own pixels are used up to 0.02."""
CHIPS_AT_ONCE = 64
"""Chips read and handed to the predictor together, at most: bounds a tile's memory."""


class Predicts(Protocol):
    """What a predictor is to the pipeline. One with a `chips_at_once` is brought that many chips a call, else one."""

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
    """Until the predictor answered: longer than it worked, where others wait for it as well."""
    polygonize_s: float = 0.0
    decoded_pixels: int = 0
    """Pixels of the imagery's own that were decoded for this tile, and not for one before it."""
    decoded_bytes: int = 0
    """What these took in the file."""
    requests: int = 0
    """Sent over networks for these."""
    fetched_bytes: int = 0
    """Received over networks."""
    retries: int = 0
    """Requests sent again."""
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
    look = _Look(detection.source, detection.predictor, window, asked, tile)
    wanted = look.wanted()
    opened, knocks = _look_around(look, wanted, tile, detection.threshold_u8, skip)
    closed = skip.cores.keys() - opened
    left = [at for at in wanted if _key(at) in closed]
    pixel_m2 = pixel_area_m2(detection.source.grid, window)
    n_asked, n_done = look.count(window), int(np.count_nonzero(look.computed))
    n_masked = sum(look.count(at) for at in left)
    result, polygonize_s = None, 0.0
    if n_done:
        with span("polygonize", look.name) as took:
            mask = at_least(look.prob, detection.threshold_u8)  # never where nothing was computed: that is 0
            is_all_computed = n_done == look.prob.size
            result = split(mask, window, prob=look.prob, valid=None if is_all_computed else look.computed)
        polygonize_s = took.seconds
        if look.origins:
            complete, fragments = look.with_source(result.complete), look.with_source(result.fragments)
            result = replace(result, complete=complete, fragments=fragments)
        if n_done < n_asked:
            result = replace(result, computed=look.computed)
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
        read_s=look.read_s,
        predict_s=look.predict_s,
        polygonize_s=polygonize_s,
        decoded_pixels=look.decoded.pixels,
        decoded_bytes=look.decoded.bytes,
        requests=look.decoded.requests,
        fetched_bytes=look.decoded.fetched_bytes,
        retries=look.decoded.retries,
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
        if not skip.cores:
            break  # nothing to reach
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
    area = (window.height * window.width if asked is None else int(np.count_nonzero(asked))) * pixel_area_m2(grid, window)
    pixels = (window.row, window.col, window.height, window.width)
    return TileRecord(tile.row, tile.col, pixels, "failed", reason, area_m2=area, failed_m2=area)


def pixel_area_m2(grid: Grid, window: Window) -> float:
    """Area of a pixel on the ellipsoid, square metres, at the centre of a window."""
    minx, miny, maxx, maxy = grid.bounds(window)
    centre = np.array([(minx + maxx) / 2]), np.array([(miny + maxy) / 2])
    return float(grid.pixel_size**2 * square_metres_per_unit(grid.crs, *centre)[0])


class _Look:
    """What is known of a window's pixels; grows as cores are looked at."""

    def __init__(
        self, source: Source, predictor: Predicts, window: Window, asked: Mask | None, tile: Tile | None = None
    ) -> None:
        self.source, self.predictor, self.window, self.asked = source, predictor, window, asked
        self.tile, self.name = tile, "" if tile is None else f"{tile.row}_{tile.col}"
        self.prob = np.zeros((window.height, window.width), np.uint8)
        self.computed = np.zeros((window.height, window.width), np.bool_)
        self.origins: dict[Core, npt.NDArray[np.int32]] = {}  # of each core looked at, where the source has several rasters
        self.chips, self.decoded = 0, Decoded()
        self.read_s = self.predict_s = 0.0

    def wanted(self) -> list[Window]:
        """The cores with a pixel that is asked for, row-major."""
        return [core for core in _cores(self.window, self.predictor.spec.chips.core) if self.count(core)]

    def count(self, part: Window) -> int:
        """Pixels asked for in a part of the window."""
        if self.asked is None:
            inside = part.intersection(self.window)
            return inside.height * inside.width
        return int(np.count_nonzero(self.asked[part.slices_in(self.window)]))

    def at(self, cores: Iterable[Window]) -> None:
        """Read and infer cores, as many at a time as the predictor asks for."""
        for group in self._groups(cores):
            with span("predict", self.name) as took:
                self._infer(group)
            self.predict_s += took.seconds

    def _groups(self, cores: Iterable[Window]) -> Iterator[list[tuple[Window, Image]]]:
        """The cores with a pixel to compute and the images of their chips, side by side in one array that is used again."""
        size = max(1, min(CHIPS_AT_ONCE, getattr(self.predictor, "chips_at_once", 1)))
        chip = self.predictor.spec.chips.chip
        self.pixels = np.empty((size, self.source.bands, chip, chip), np.uint8)
        group: list[tuple[Window, Image]] = []
        for _, together in groupby(cores, key=lambda core: core.row):
            row = list(together)
            self._fetch(row)
            for core in row:
                image = self._read(core, self.pixels[len(group)])
                if image is not None:
                    group.append((core, image))
                if len(group) == size:
                    yield group
                    group = []
            self._forget_above(core.stop_row)
        if group:
            yield group

    def _fetch(self, cores: Sequence[Window]) -> None:
        """Fetch at once what the chips of a row need of remote rasters."""
        before = decoded()
        with span("read", self.name) as took:
            fetch_ahead(self.source, [core.grow(self.predictor.spec.chips.margin) for core in cores])
        self._count(before, took.seconds)

    def _read(self, core: Window, out: Pixels) -> Image | None:
        """The image of a core's chip, where the core has a pixel to compute."""
        before = decoded()
        with span("read", self.name) as took:
            frame, here = core.grow(self.predictor.spec.chips.margin), core.slices_in(self.window)
            image = self.source.read(frame, out)
            live = image.valid[core.intersection(self.window).slices_in(frame)]
            if self.asked is not None:
                live = live & self.asked[here]
            is_live = bool(live.any()) and not _is_constant(image)
            if is_live:
                self.computed[here] = live
                if image.origin is not None:
                    self.origins[_key(core)] = _compact(image.origin[core.slices_in(frame)])
        self._count(before, took.seconds)
        return image if is_live else None

    def _count(self, before: Decoded, seconds: float) -> None:
        self.decoded = Decoded(*(sum_ + now - then for sum_, now, then in zip(self.decoded, decoded(), before, strict=True)))
        self.read_s += seconds

    def with_source(self, polygons: Polygons) -> Polygons:
        """Polygons of the window, each with the raster that its first pixel came from."""
        core = self.predictor.spec.chips.core
        at, source = polygons.first // core, np.full(len(polygons), UNKNOWN, np.int32)
        for key in {(int(row), int(col)) for row, col in at}:
            chosen = np.flatnonzero((at == key).all(axis=1))
            row, col = (polygons.first[chosen] - np.array(key) * core).T
            source[chosen] = self.origins[key][row, col]
        return replace(polygons, source=source)

    def _forget_above(self, row: int) -> None:
        """Say what nobody will read again once the tile's cores above a row of the lattice are read.

        Tiles are handed out from the top of a strip to its end, so that is what lies above: in the tile's own middle down to
        that row; beside it, where tiles of the same row still read, down to its top. Were tiles to come in another order,
        some blocks would be decoded again.
        """
        chips, w = self.predictor.spec.chips, self.window
        if self.tile is None or w.width <= 2 * chips.margin:
            return
        top = w.row - self.tile.window.height
        stop = w.row - chips.margin
        self.source.forget(Window(top, w.col - chips.core, stop - top, w.width + 2 * chips.core))
        self.source.forget(Window(top, w.col + chips.margin, row - chips.margin - top, w.width - 2 * chips.margin))

    def _infer(self, group: Sequence[tuple[Window, Image]]) -> None:
        """Fill in the probabilities of some cores."""
        pixels = self.pixels[: len(group)]  # (N, C, S, S)
        valid = None if all(image.valid.all() for _, image in group) else np.stack([image.valid for _, image in group])
        for (core, _), found in zip(group, self.predictor.predict(pixels, valid), strict=True):
            here = core.slices_in(self.window)
            frame = core.grow(self.predictor.spec.chips.margin)
            prob = found[core.intersection(self.window).slices_in(frame)]
            if self.asked is None and valid is None:
                self.prob[here] = prob
            else:
                np.multiply(prob, self.computed[here], out=self.prob[here])
        self.chips += len(group)


def _key(core: Window) -> Core:
    return core.row // core.height, core.col // core.width


def _compact(origin: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """(H, W) that takes no memory where one raster gave all."""
    first = origin[0, 0]
    return np.broadcast_to(first.copy(), origin.shape) if (origin == first).all() else origin.copy()


def _is_constant(chip: Image) -> bool:
    """The chip's valid pixels all hold one colour: a collar or a sensor gap that no nodata value declares.

    Decided on the whole chip, which belongs to the lattice, so no tile or region can change it.
    """
    pixels, valid = chip.pixels, chip.valid
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
