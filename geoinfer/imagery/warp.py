"""Resampling that does not depend on the window: always whole blocks of a fixed lattice, then cut.

A block, fixed in absolute pixels of the grid's coordinate system, is always made the same way: the same source pixels, the
same positions, the same kernel. A read is put together from blocks, each made once while it is remembered. A block depends
on the raster, the grid and the model, not on other rasters. (GDAL's warper depends on what it is asked for: its transformer
interpolates between exact points of the request, and it cuts large requests into chunks.)

Source pixels at most half as large as the grid's are averaged by a whole factor first, on the raster's own lattice, and
`resample` does the rest. Nodata does not bleed: where a cell of a block has some, pixels are weighed by validity. A pixel is
valid where its centre falls on a valid source pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoinfer.grid import Grid, Window, hull
from geoinfer.imagery.blocks import Valid, read_into, read_window
from geoinfer.imagery.cache import Cache
from geoinfer.imagery.ground import bounds_of, outline, project
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.source import Image, all_valid
from geoinfer.imagery.stretch import Stretch

RESAMPLING = ("nearest", "bilinear", "cubic", "average")
"""Kernels on offer. All but nearest widen with the grid's pixels when those are larger than the source's (anti-aliasing)."""
RESAMPLER = 2
"""Which pixels come out: grows when any could change, for it is part of a snapshot. 1 was GDAL's warper."""
_BLOCK = 512
"""Side of a block, grid pixels."""
_SMALLEST_BLOCK = 128
_MAX_SOURCE_SIDE = 4096
"""Blocks are made smaller until their source pixels fit in a square of this side."""
_PLAIN_RATIO = 1.25
"""Up to this many source pixels a grid pixel the plain kernel serves: it averages enough, up to three times as fast."""
_TOLERANCE = 0.02
"""Largest error of interpolated positions, source pixels."""
_HALF_MERCATOR = 20037508.342789244
"""Half of what EPSG:3857 is wide, metres: pi times the radius of its sphere."""
_CACHE_BYTES = 128 * 2**20

BlockKey: TypeAlias = tuple[int, int, int]
"""(raster, block row, block col)."""


def _size_of(image: Image) -> int:
    return image.pixels.nbytes + image.valid.nbytes


def block_cache() -> Cache[BlockKey, Image]:
    """For the blocks of all rasters of a source."""
    return Cache(_CACHE_BYTES, _size_of)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a raster's pixels become the grid's: one answer for the whole raster, so that blocks agree."""

    method: str
    """One of `RESAMPLING`."""
    reduce: tuple[int, int]
    """(rows, cols) of source pixels that are averaged first."""
    ratio: tuple[float, float]
    """(rows, cols) of reduced source pixels that the kernel is scaled to; 1 for the plain one."""

    @property
    def taps(self) -> tuple[int, int]:
        """(rows, cols) of reduced source pixels that a grid pixel is made of."""
        if self.method == "nearest":
            return 1, 1
        down, across = _weights(self)
        return down.shape[1], across.shape[1]


@dataclass(frozen=True, slots=True)
class _Patch:
    """Source pixels around a block, on the raster's lattice of reduced pixels; not valid outside the raster."""

    area: Window
    """In reduced pixels."""
    pixels: NDArray[np.uint8]
    """(C, h * reduce, w * reduce) of `area`, not reduced yet."""
    valid: Valid
    """(h * reduce, w * reduce), None where all are."""


@dataclass(frozen=True, slots=True)
class WarpedRaster:
    """A raster on a grid that is not its own."""

    index: int
    """Its place among the rasters of the source: whose blocks are whose in the shared cache."""
    file: RasterFile
    stretch: Stretch | None
    """None for uint8 as it is."""
    grid: Grid
    window: Window
    """Pixels of the grid that it can reach."""
    kernel: Kernel
    side: int
    """Side of a block, grid pixels."""
    cache: Cache[BlockKey, Image] = field(compare=False, repr=False)

    def read_into(self, window: Window, pixels: NDArray[np.uint8]) -> Valid:
        """Write the pixels of a window within `self.window`, `FILL` where invalid; which are valid, None where all are."""
        valid: Valid = None
        for block_row, block_col, frame in self._blocks(window):
            block = self.cache.get((self.index, block_row, block_col), partial(self._warp, frame))
            part = window.intersection(frame)
            there, here = part.slices_in(window), part.slices_in(frame)
            pixels[:, *there] = block.pixels[:, *here]
            if not block.valid[here].all():
                if valid is None:
                    valid = np.ones((window.height, window.width), np.bool_)
                valid[there] = block.valid[here]
        return valid

    def forget(self, window: Window) -> None:
        """Drop the blocks wholly inside a window within `self.window`."""
        if not window.is_empty:
            blocks = self._blocks(window)
            self.cache.drop((self.index, row, col) for row, col, frame in blocks if frame.intersection(window) == frame)

    def _blocks(self, window: Window) -> Iterator[tuple[int, int, Window]]:
        """Row and column in absolute blocks, and window in the grid, of each block that a window touches."""
        row0, col0 = self.grid.origin_pixel
        side = self.side
        for row in range((window.row + row0) // side, -(-(window.stop_row + row0) // side)):
            for col in range((window.col + col0) // side, -(-(window.stop_col + col0) // side)):
                yield row, col, Window(row * side - row0, col * side - col0, side, side)

    def _warp(self, block: Window) -> Image:
        """One block of the lattice, whole."""
        from geoinfer.imagery import resample  # not above: numba costs a third of a second, and native imagery needs none

        blank = Image.blank(len(self.file.bands), block.height, block.width)
        positions, n = self._positions(block)
        patch = self._read_patch(positions)
        if patch is None:
            return blank
        origin = np.array([patch.area.row, patch.area.col], np.int64)[:, None, None] << resample.POSITION_BITS
        nodes = np.rint(positions * 2.0**resample.POSITION_BITS).astype(np.int64) - origin
        if self.kernel.method == "nearest":
            known = np.ones(patch.pixels.shape[1:], np.bool_) if patch.valid is None else patch.valid
            resample.pick_nearest(patch.pixels, known, nodes, n, blank.pixels, blank.valid)
        else:
            weights = _weights(self.kernel)
            is_plain = self.kernel.method == "bilinear" and self.kernel.ratio == (1.0, 1.0)
            resample.fill(patch.pixels, patch.valid, self.kernel.reduce, nodes, n, weights, is_plain, blank)
        return Image(blank.pixels, all_valid(block.height, block.width)) if blank.valid.all() else blank

    def _positions(self, block: Window) -> tuple[NDArray[np.float64], int]:
        """Where the corners of a block's cells lie in the raster, and the side of cells: small enough to interpolate.

        The side is halved until positions halfway between known ones are within the tolerance of where interpolation puts
        them; then these halves serve, at about a quarter of the error.

        Returns:
            (2, m + 1, m + 1) row and column in reduced source pixels; n, grid pixels.
        """
        transform, n = _absolute_transform(self.grid, block), block.height // 4
        coarse = _source_pixels(self.file, self.grid, transform, block, block.height // n + 1)
        while True:
            n //= 2
            known = _source_pixels(self.file, self.grid, transform, block, block.height // n + 1)
            with np.errstate(invalid="ignore"):  # inf - inf, beyond the projection
                error = np.abs(known - _doubled(coarse)).max()
            if n == 1 or not error > _TOLERANCE:
                return known / np.array(self.kernel.reduce, np.float64)[:, None, None], n
            coarse = known

    def _read_patch(self, positions: NDArray[np.float64]) -> _Patch | None:
        """Source pixels around positions; None where nothing is valid."""
        area = self._area(positions)
        if area is None:
            return None
        rows, cols = self.kernel.reduce
        fine = Window(area.row * rows, area.col * cols, area.height * rows, area.width * cols)
        stored = fine.intersection(self.file.window)
        here = stored.slices_in(fine)
        is_inside = stored == fine
        make = np.empty if is_inside else np.zeros
        pixels = make((len(self.file.bands), fine.height, fine.width), np.uint8)
        if self.stretch is None:
            found = read_into(self.file, stored, pixels[:, *here])
        else:
            values, found = read_window(self.file, stored)
            self.stretch.apply(values, pixels[:, *here])
        if found is not None and not found.any():
            return None
        if is_inside:
            return _Patch(area, pixels, found)
        valid = np.zeros(pixels.shape[1:], np.bool_)
        valid[here] = True if found is None else found
        return _Patch(area, pixels, valid)

    def _area(self, positions: NDArray[np.float64]) -> Window | None:
        """The reduced pixels that positions, and all between them, need; None where they lie outside the raster."""
        if not np.isfinite(positions).all():
            return None
        rows, cols = self.kernel.reduce
        reach = max(self.kernel.taps) // 2 + 2
        reduced = Window(0, 0, -(-self.file.height // rows), -(-self.file.width // cols))
        top, left = np.floor(positions.min(axis=(1, 2))).clip(-1e9, 1e9).astype(int).tolist()
        bottom, right = np.floor(positions.max(axis=(1, 2))).clip(-1e9, 1e9).astype(int).tolist()
        wanted = Window(top, left, bottom - top + 1, right - left + 1)
        if wanted.intersection(reduced).is_empty:
            return None
        return wanted.grow(reach).intersection(reduced.grow(reach))

    def stored_window(self, window: Window) -> Window:
        """The file's own pixels that reading a window of the grid needs, within the file: a rectangle around all of them."""
        rows, cols = self.kernel.reduce
        needed = []
        for _, _, frame in self._blocks(window.intersection(self.window)):
            area = self._area(self._positions(frame)[0])
            if area is not None:
                fine = Window(area.row * rows, area.col * cols, area.height * rows, area.width * cols)
                needed.append(fine.intersection(self.file.window))
        return hull(needed) if needed else Window(0, 0, 0, 0)


def warp_onto(
    grid: Grid,
    file: RasterFile,
    window: Window,
    stretch: Stretch | None,
    method: str,
    index: int,
    cache: Cache[BlockKey, Image],
) -> WarpedRaster:
    """A raster resampled to a grid. Blocks are smaller where a block of the usual size would need too many source pixels."""
    ratios = _ratios(file, grid, window)
    side = _BLOCK
    while side > _SMALLEST_BLOCK and side * max(ratios) > _MAX_SOURCE_SIDE:
        side //= 2
    return WarpedRaster(index, file, stretch, grid, window, _kernel(method, ratios), side, cache)


def _kernel(method: str, ratios: tuple[float, float]) -> Kernel:
    if method == "nearest":
        return Kernel(method, (1, 1), (1.0, 1.0))
    rows, cols = (max(1, math.floor(ratio)) for ratio in ratios)
    left = ratios[0] / rows, ratios[1] / cols
    if method == "average":
        return Kernel(method, (rows, cols), (round(left[0], 6), round(left[1], 6)))
    down, across = (1.0 if ratio <= _PLAIN_RATIO else round(ratio, 6) for ratio in left)
    return Kernel(method, (rows, cols), (down, across))


@lru_cache(maxsize=64)
def _weights(kernel: Kernel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Down and across."""
    from geoinfer.imagery import resample

    down, across = kernel.ratio
    return (
        resample.weights_of(kernel.method, down, resample.DOWN_BITS),
        resample.weights_of(kernel.method, across, resample.ACROSS_BITS),
    )


def _doubled(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, m + 1, m + 1) -> (2, 2 m + 1, 2 m + 1): halfway points are means of their neighbours."""
    cells = nodes.shape[1] - 1
    result = np.empty((2, 2 * cells + 1, 2 * cells + 1))
    result[:, ::2, ::2] = nodes
    result[:, 1::2, ::2] = (nodes[:, :-1] + nodes[:, 1:]) / 2.0
    result[:, :, 1::2] = (result[:, :, :-1:2] + result[:, :, 2::2]) / 2.0
    return result


def _ratios(file: RasterFile, grid: Grid, window: Window) -> tuple[float, float]:
    """(rows, cols) of source pixels a grid pixel, in the middle of the raster; of its window where that lies elsewhere."""
    xs, ys = outline(file.transform, file.window, 3)
    xs, ys = project(file.crs.srs, grid.crs.srs, xs[1, 1:2], ys[1, 1:2])
    middle_x, middle_y = float(xs[0]), float(ys[0])
    left, bottom, right, top = grid.bounds(window.grow(1))
    if not (left <= middle_x <= right and bottom <= middle_y <= top):  # the raster was cut
        middle_x, middle_y = (left + right) / 2.0, (bottom + top) / 2.0
    size = grid.pixel_size
    corner = Affine(size, 0.0, middle_x, 0.0, -size, middle_y)
    rows, cols = _source_pixels(file, grid, corner, Window(0, 0, 1, 1), 2)
    down = rows[-1, 0] - rows[0, 0], cols[-1, 0] - cols[0, 0]
    across = rows[0, -1] - rows[0, 0], cols[0, -1] - cols[0, 0]
    return math.hypot(down[0], across[0]), math.hypot(down[1], across[1])


def _source_pixels(file: RasterFile, grid: Grid, transform: Affine, window: Window, points: int) -> NDArray[np.float64]:
    """(2, points, points) row and column in the raster of points over a window whose corner `transform` places."""
    xs, ys = project(grid.crs.srs, file.crs.srs, *outline(transform, Window(0, 0, window.height, window.width), points))
    xs = _on_its_turn(file, xs)
    inverse = ~file.transform
    return np.stack([inverse.d * xs + inverse.e * ys + inverse.f, inverse.a * xs + inverse.b * ys + inverse.c])


def _on_its_turn(file: RasterFile, xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eastings as a raster in degrees or Web Mercator counts them: PROJ's end at 180, and jump where a block lies across."""
    if file.crs.is_geographic:
        half_turn = math.pi / float(file.crs.axis_info[0].unit_conversion_factor)
    elif file.crs.srs == "EPSG:3857":
        half_turn = _HALF_MERCATOR
    else:
        return xs
    west, _, east, _ = bounds_of(file)
    middle = (west + east) / 2.0
    near = (xs - middle + half_turn) % (2.0 * half_turn) - half_turn + middle
    return np.where(np.abs(xs - middle) > half_turn, near, xs)


def _absolute_transform(grid: Grid, block: Window) -> Affine:
    """From absolute pixels, so that the last bit does not depend on where the grid begins."""
    row0, col0 = grid.origin_pixel
    size = grid.pixel_size
    return Affine(size, 0.0, (block.col + col0) * size, 0.0, -size, -(block.row + row0) * size)
