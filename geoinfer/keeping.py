"""Which tiles of an earlier run stay when the imagery changed, and the same tiles as the new run numbers them.

A tile depends on the rasters that its chips meet: on what identifies each, on where its pixels lie, and on their order. All
of that stands in `run.json`: `job.imagery` has the identities, `placement` the windows in absolute pixels. Where it is the
same for a tile then and now, its result is the same, and it is kept; all others are done again. Tiles lie at absolute
multiples of their size, so they are where they were when rasters come in or go out, though a grid's pixel (0, 0) moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoinfer.detection import Core, TileRecord, pixel_area_m2
from geoinfer.grid import Grid, Window, tile_phase
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.job import Execution, Job
from geoinfer.store import Json, RunDirectory, differences
from geoinfer.switching import next_tiles
from geoinfer.vector.polygons import UNKNOWN

Shift = tuple[int, int]
"""(rows, cols)"""


def placement_of(job: Job) -> Json | None:
    """Where the rasters of `job.imagery` lie, in absolute pixels, and their numbers in the source; None if it has none."""
    source, (row, col) = job.source, job.source.grid.origin_pixel
    if not isinstance(source, RasterSource):
        return None
    numbers = source.meeting(job.chips_window(job.region.window))
    windows = [source.rasters[number].window for number in numbers]
    return {
        "rasters": len(source.rasters),
        "numbers": numbers,
        "windows": [[w.row + row, w.col + col, w.height, w.width] for w in windows],
    }


def other_differences(held: Json, description: Json) -> list[str]:
    """What differs between two jobs beside their imagery: a line each, empty where tiles of one may serve the other."""
    return differences(_but_imagery(held), _but_imagery(description))


def _but_imagery(description: Json) -> Json:
    """Without the rasters, what they make of the grid's size and origin, and what merging alone looks at."""
    left = {name: value for name, value in description.items() if name != "imagery"}
    grid = description.get("grid", {})
    transform = grid.get("transform", [0.0] * 6)
    left["grid"] = {"crs": grid.get("crs"), "pixel": [transform[0], transform[4]]}
    left["config"] = {name: value for name, value in description.get("config", {}).items() if name != "low_trust"}
    return left


@dataclass(frozen=True, slots=True)
class Layout:
    """The rasters of a run as far as its tiles depend on them."""

    identities: tuple[str, ...]
    """Of each raster that the region meets, in order of priority."""
    numbers: tuple[int, ...]
    """Of each in its source, as footprints count them."""
    rasters: int
    """In the source, all told."""
    edges: NDArray[np.int64] = field(compare=False)
    """(N, 4) row, col, stop_row, stop_col of each in absolute pixels."""

    @classmethod
    def of(cls, imagery: Sequence[Json], placement: Json | None) -> Layout | None:
        """From a manifest; None where it does not say enough."""
        if placement is None or len(placement["windows"]) != len(imagery):
            return None
        windows = np.array(placement["windows"], np.int64).reshape(-1, 4)
        edges = np.column_stack([windows[:, :2], windows[:, :2] + windows[:, 2:]])
        identities = tuple(json.dumps(entry, sort_keys=True) for entry in imagery)
        return cls(identities, tuple(placement["numbers"]), int(placement["rasters"]), edges)

    def meeting(self, window: Window) -> tuple[list[tuple[str, tuple[int, ...]]], list[int]]:
        """What identifies the imagery under a window in absolute pixels; and the numbers of these rasters."""
        row, col, stop_row, stop_col = self.edges.T
        meets = (row < window.stop_row) & (stop_row > window.row) & (col < window.stop_col) & (stop_col > window.col)
        chosen = np.flatnonzero(meets).tolist()
        return [(self.identities[at], tuple(self.edges[at].tolist())) for at in chosen], [self.numbers[at] for at in chosen]


@dataclass(frozen=True, slots=True)
class Kept:
    """A tile of the earlier run that serves the new one."""

    before: Core
    """Its tile row and column then."""
    after: Core
    """And now."""
    record: TileRecord
    """As it is now."""
    numbers: Mapping[int, int]
    """Raster's number then -> now."""


def keep_tiles(directory: RunDirectory, held: Json, job: Job, execution: Execution, description: Json) -> list[Kept]:
    """The committed tiles of an earlier run that a full run of the new job would make again, just so.

    Args:
        directory: Of the earlier run.
        held: Its manifest.
        job: The new job; it differs by its imagery alone (`other_differences`).
        execution: Cut in tiles of the size that the earlier run had.
        description: The new job's.
    """
    old = Layout.of(held["job"]["imagery"], held.get("placement"))
    new = Layout.of(description["imagery"], placement_of(job))
    if old is None or new is None:
        return []
    move = _Move.between(held["job"]["grid"], job, execution.tile)
    origin = job.source.grid.origin_pixel
    committed = directory.committed()
    kept: dict[Core, Kept] = {}
    steps: dict[Core, Window] = {}
    for tile, window in job.tiles(execution.tile):
        at = tile.row, tile.col
        steps[at] = window
        before = at[0] - move.tiles[0], at[1] - move.tiles[1]
        if before not in committed:
            continue
        chips = job.chips_window(window)
        absolute = Window(chips.row + origin[0], chips.col + origin[1], chips.height, chips.width)
        then, numbers = old.meeting(absolute)
        now, renumbered = new.meeting(absolute)
        if then != now:
            continue
        record = move.record(TileRecord.from_json(directory.read_record(*before)))
        if Window(*record.window) == window and _asks_alike(record, job, window):
            kept[at] = Kept(before, at, record, _renumbering(numbers, renumbered, old.rasters, new.rasters))
    _drop_doubtful(kept, steps.keys())
    return list(kept.values())


def _renumbering(then: Sequence[int], now: Sequence[int], before: int, after: int) -> dict[int, int]:
    """Numbers that footprints of a tile carry, then -> now. A source of one raster leaves them out."""
    found = dict(zip(then, now, strict=True))
    if before == 1 and then:
        found = {UNKNOWN: now[0]}
    return dict.fromkeys(found, UNKNOWN) if after == 1 else found


def _asks_alike(record: TileRecord, job: Job, window: Window) -> bool:
    """As many pixels of the tile are asked for as were: rounding at the region's edge could move one."""
    mask = job.region.mask(window)
    asked = window.height * window.width if mask is None else int(np.count_nonzero(mask))
    return round(record.area_m2 / pixel_area_m2(job.source.grid, window)) == asked


def _drop_doubtful(kept: dict[Core, Kept], every: Iterable[Core]) -> None:
    """Take out tiles in which buildings of tiles that are done again opened cores of a mask layer: they might not, now."""
    todo = [at for at in every if at not in kept]
    while todo:
        row, col = todo.pop()
        for at in ((row + down, col + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
            if at in kept and kept[at].record.opened:
                del kept[at]
                todo.append(at)


@dataclass(frozen=True, slots=True)
class _Move:
    """From the pixels, cores and tiles of one grid to those of another that has the same lattice."""

    pixels: Shift
    cores: Shift
    tiles: Shift

    @classmethod
    def between(cls, grid: Json, job: Job, k: int) -> _Move:
        """From a grid as a manifest has it to a job's."""
        before = Grid(job.source.grid.crs, Affine(*grid["transform"]), grid["height"], grid["width"])
        core, after = job.spec.chips.core, job.source.grid
        pixels = _minus(before.origin_pixel, after.origin_pixel)
        corners = [_minus(each.origin_pixel, tile_phase(each, core, k)) for each in (before, after)]
        down, right = _minus(*corners)
        side = core * k
        return cls(pixels, (pixels[0] // core, pixels[1] // core), (down // side, right // side))

    @property
    def is_none(self) -> bool:
        """Nothing moves."""
        return self.pixels == (0, 0)

    def record(self, record: TileRecord) -> TileRecord:
        """A coverage row as the new grid has it."""
        row, col, height, width = record.window
        down, right = self.cores
        return replace(
            record,
            row=record.row + self.tiles[0],
            col=record.col + self.tiles[1],
            window=(row + self.pixels[0], col + self.pixels[1], height, width),
            skipped=tuple((r + down, c + right, number) for r, c, number in record.skipped),
            opened=tuple((r + down, c + right, number) for r, c, number in record.opened),
            knocks=tuple((r + down, c + right) for r, c in record.knocks),
        )


def _minus(a: Shift, b: Shift) -> Shift:
    return a[0] - b[0], a[1] - b[1]


def write_kept(directory: RunDirectory, kept: Sequence[Kept], held: Json, job: Job, execution: Execution) -> None:
    """Put the tiles that stay beside the earlier run's, under the names that they have now."""
    move = _Move.between(held["job"]["grid"], job, execution.tile)
    with next_tiles(directory) as write:
        for tile in kept:
            is_same = move.is_none and all(then == now for then, now in tile.numbers.items())
            if is_same and tile.before == tile.after:
                write.link(*tile.before)
            else:
                arrays, _ = directory.read_tile(*tile.before)
                write.commit(*tile.after, _moved(arrays, move.pixels, tile.numbers), tile.record.to_json())


def _moved(arrays: Mapping[str, NDArray[Any]], pixels: Shift, numbers: Mapping[int, int]) -> dict[str, NDArray[Any]]:
    """A tile's arrays (`TileResult.to_arrays`) on the new grid."""
    moved = dict(arrays)
    if not arrays:
        return moved
    down, right = pixels
    moved["window"] = arrays["window"] + np.array([down, right, 0, 0], arrays["window"].dtype)
    for part in ("complete_", "fragments_"):
        coords, first = arrays[part + "coords"], arrays[part + "first"]
        moved[part + "coords"] = coords + np.array([right, down], coords.dtype)  # x, y
        moved[part + "first"] = first + np.array([down, right], first.dtype)
        count = len(arrays[part + "pixels"])
        source = moved.pop(part + "source", np.full(count, UNKNOWN, np.int32))
        renumbered = np.array([numbers.get(number, UNKNOWN) for number in source.tolist()], np.int32)
        if (renumbered != UNKNOWN).any():
            moved[part + "source"] = renumbered
    return moved
