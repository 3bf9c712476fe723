"""Windows, grids and the lattice: integer pixel geometry and nothing else.

A grid is a north-up raster frame. Its pixel (0, 0) is a corner of the lattice, and the lattice is fixed to the coordinate
system: lattice corners lie at multiples of `core` pixels counted from the coordinate system's origin (plus the pixel
phase of the source, where the grid is the source's own). So neither the region, nor the set of rasters, nor the tile size
can move a core (law 1). Arrays are (row, col); this module and `vector.footprints` alone turn them into (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from affine import Affine
from pyproj import CRS

from geoinfer.errors import ConfigError

STRIP_CORES = 16
"""Cores across a strip of tiles: two rows of blocks along it fit the cache of decoded blocks, also at fine resolutions."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """An integer pixel rectangle; half open: rows row..row+height-1, cols col..col+width-1."""

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            raise ConfigError(f"window {self.height}x{self.width} px: height and width cannot be negative")

    @property
    def stop_row(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def is_empty(self) -> bool:
        """The window holds no pixel."""
        return self.height == 0 or self.width == 0

    def intersection(self, other: Window) -> Window:
        """The pixels in both; height or width 0 where there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(
            row,
            col,
            max(0, min(self.stop_row, other.stop_row) - row),
            max(0, min(self.stop_col, other.stop_col) - col),
        )

    def slices_in(self, frame: Window) -> tuple[slice, slice]:
        """Where what of the window lies in a frame is in the frame's array: rows, columns."""
        part = self.intersection(frame)
        row, col = part.row - frame.row, part.col - frame.col
        return slice(row, row + part.height), slice(col, col + part.width)

    def grow(self, margin: int) -> Window:
        """The window with `margin` more pixels on each side."""
        return Window(self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin)


def nearest_pixel(position: float) -> int:
    """The integer nearest to a position in pixels; the lower one for half a pixel, whatever the rounding noise.

    Rasters whose pixel centres lie on whole coordinates have a phase of exactly half a pixel: there `round` would let the
    last bit of a division decide which pixel is which.
    """
    return math.floor(position + 0.499)


@dataclass(frozen=True, slots=True)
class Grid:
    """A north-up pixel frame in a projected coordinate system."""

    crs: CRS
    """Coordinate system; units are metres on the ground up to a constant unit factor."""
    transform: Affine
    """(col, row) -> (x, y) of the upper left corner of pixel (0, 0); `e` is negative, `b` and `d` are 0."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    @property
    def window(self) -> Window:
        """The whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def pixel_size(self) -> float:
        """Side of a pixel in the units of `crs`."""
        return float(self.transform.a)

    @property
    def pixel_m(self) -> float:
        """Side of a pixel in metres."""
        return self.pixel_size * float(self.crs.axis_info[0].unit_conversion_factor)

    @property
    def origin_pixel(self) -> tuple[int, int]:
        """(row, col) of pixel (0, 0) counted from the coordinate system's origin: what makes identifiers absolute."""
        return nearest_pixel(-self.transform.f / self.pixel_size), nearest_pixel(self.transform.c / self.pixel_size)

    def covering(self, bounds: tuple[float, float, float, float]) -> Window:
        """The smallest window that holds (minx, miny, maxx, maxy) in `crs`, not clipped; a 1/1000 pixel is noise."""
        size, left, top = self.pixel_size, self.transform.c, self.transform.f
        col, row = math.floor((bounds[0] - left) / size + 1e-3), math.floor((top - bounds[3]) / size + 1e-3)
        stop_col, stop_row = math.ceil((bounds[2] - left) / size - 1e-3), math.ceil((top - bounds[1]) / size - 1e-3)
        return Window(row, col, max(stop_row - row, 0), max(stop_col - col, 0))

    def bounds(self, window: Window | None = None) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy) of a window (default: of the grid) in `crs`."""
        w = self.window if window is None else window
        size, left, top = self.pixel_size, self.transform.c, self.transform.f
        return left + size * w.col, top - size * w.stop_row, left + size * w.stop_col, top - size * w.row


@dataclass(frozen=True, slots=True)
class ChipSpec:
    """How a model wants its input cut, and nothing about files or devices."""

    chip: int
    """Side of the input square, pixels."""
    margin: int
    """Context on each side, predicted and thrown away, pixels."""
    stride: int = 32
    """What chip and core are multiples of, pixels: the network's total stride."""

    def __post_init__(self) -> None:
        if self.core <= 0:
            limit = self.chip // 2 - 1
            raise ConfigError(f"margin {self.margin} leaves no core in a {self.chip} px chip; use at most {limit}")
        if self.chip % self.stride or self.core % self.stride:
            raise ConfigError(
                f"chip {self.chip} and core {self.core} must be multiples of the network's stride {self.stride}"
            )

    @property
    def core(self) -> int:
        """Side of the square that each chip owns: the step of the lattice."""
        return self.chip - 2 * self.margin


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A k x k group of cores: a unit of scheduling, which no result may depend on."""

    row: int
    """Tile row, counted from the grid's lattice corner."""
    col: int
    """Tile column."""
    window: Window
    """The pixels of its cores, not clipped to the grid."""


def tile_phase(grid: Grid, core: int, k: int) -> tuple[int, int]:
    """(rows, cols) from the nearest tile's corner before it to the grid's pixel (0, 0).

    Tiles lie at multiples of k cores counted from the coordinate system's origin, so that they stay where they are when
    the imagery, and the grid with it, grows.
    """
    row, col = grid.origin_pixel
    return row // core % k * core, col // core % k * core


def tiles_of(window: Window, core: int, k: int, phase: tuple[int, int] = (0, 0)) -> Iterator[Tile]:
    """The tiles that share a pixel with a window of the grid, in row-major order. Tile (0, 0) holds pixel (0, 0).

    Args:
        window: Pixels asked for.
        core: Side of a core, pixels.
        k: Cores on a side of a tile.
        phase: Rows and columns of tile (0, 0) that lie before the grid's pixel (0, 0); whole cores.
    """
    if k < 1:
        raise ConfigError(f"tile {k}: a tile has at least 1 core a side")
    if window.is_empty:
        return
    side, (down, right) = core * k, phase
    for row in range((window.row + down) // side, -(-(window.stop_row + down) // side)):
        for col in range((window.col + right) // side, -(-(window.stop_col + right) // side)):
            yield Tile(row, col, Window(row * side - down, col * side - right, side, side))


def cores_of(tile: Tile, core: int) -> Iterator[Window]:
    """The cores of a tile, in row-major order."""
    w = tile.window
    for row in range(w.row, w.stop_row, core):
        for col in range(w.col, w.stop_col, core):
            yield Window(row, col, core, core)


def in_strips(places: Iterable[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Tile rows and columns in strips of `STRIP_CORES` cores, each from the top down, left and right in turns.

    Each tile then follows a neighbour, and all but those at a strip's sides find what they share with theirs decoded; what
    lies above the row of tiles that is worked on is not needed again.

    Args:
        places: Tile row and column, in any order.
        k: Cores on a side of a tile.
    """
    across = max(1, STRIP_CORES // k)

    def turn(at: tuple[int, int]) -> tuple[int, int, int]:
        row, col = at
        return col // across, row, -col if row % 2 else col

    return sorted(places, key=turn)


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


def aligned(window: Window, core: int) -> Window:
    """The smallest window of whole cores that holds a window."""
    row, col = window.row // core * core, window.col // core * core
    return Window(row, col, -(-window.stop_row // core) * core - row, -(-window.stop_col // core) * core - col)


def hull(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of these."""
    row, col = min(w.row for w in windows), min(w.col for w in windows)
    return Window(row, col, max(w.stop_row for w in windows) - row, max(w.stop_col for w in windows) - col)
