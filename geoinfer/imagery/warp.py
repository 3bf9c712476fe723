"""Resampling that does not depend on the window: always whole blocks of a fixed lattice, then cut.

GDAL's warper is position dependent: its transformer interpolates between exact points of whatever it is asked for, it cuts
large requests into chunks, and it derives the anti-aliasing kernel from the size of the chunk. So one block, fixed in
absolute pixels of the grid's coordinate system, is always made the same way: the same source pixels, the same calls, the
same kernel. A read is put together from blocks. A block depends on the raster, the grid and the model, not on other rasters.

Source pixels at most half as large as the grid's are averaged by a whole factor first, on the raster's own lattice; GDAL
resamples the rest. Nodata does not bleed: where a block has some, values and weights are resampled with the same kernel and
divided (normalised convolution, Knutsson and Westin 1993). A pixel is valid where its centre falls on a valid source pixel.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import rasterio.crs
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from geoinfer.errors import SourceError
from geoinfer.grid import Grid, Window
from geoinfer.imagery.grids import bounds_of, outline
from geoinfer.imagery.raster import RasterFile, environment, read_pixels, reason_of
from geoinfer.imagery.source import FILL, Image
from geoinfer.imagery.stretch import Stretch

RESAMPLING = ("nearest", "bilinear", "cubic", "average")
"""Kernels on offer. All but nearest widen with the grid's pixels when those are larger than the source's (anti-aliasing)."""
_BLOCK = 512
"""Side of a block, grid pixels."""
_SMALLEST_BLOCK = 128
"""Blocks with some nodata are cut down to this: most parts are then wholly valid, which is four times as fast."""
_MAX_SOURCE_SIDE = 4096
"""Blocks are made smaller until their source pixels fit in a square of this side."""
_PLAIN_RATIO = 1.25
"""Up to this many source pixels a grid pixel the plain kernel serves: it averages enough, and is three times as fast."""
_TOLERANCE = 0.02
"""Largest error of GDAL's interpolating transformer, source pixels."""
_CACHE_BYTES = 128 * 2**20

BlockKey: TypeAlias = tuple[int, int, int]
"""(raster, block row, block col)."""


class BlockCache:
    """The blocks used last, shared by the threads of a process; travels empty."""

    def __init__(self, capacity: int = _CACHE_BYTES) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[BlockKey, Image] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BlockCache], tuple[int]]:
        return BlockCache, (self._capacity,)

    def get(self, key: BlockKey, make: Callable[[], Image]) -> Image:
        """The block, made outside the lock: two threads may make the same one, and get equal ones."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = make()
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._bytes += _size_of(block)
            while self._bytes > self._capacity and len(self._blocks) > 1:
                self._bytes -= _size_of(self._blocks.popitem(last=False)[1])
        return block


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a raster's pixels become the grid's: one answer for the whole raster, so that blocks agree."""

    method: str
    """One of `RESAMPLING`."""
    reduce: tuple[int, int]
    """(rows, cols) of source pixels that are averaged first."""
    scale: tuple[float, float]
    """(rows, cols) of grid pixels a reduced source pixel, at most 1: GDAL's YSCALE and XSCALE."""


@dataclass(frozen=True, slots=True)
class _Patch:
    """Source pixels around a block, on the raster's lattice of reduced pixels."""

    area: Window
    """In reduced pixels."""
    pixels: NDArray[np.uint8]
    """(C, h, w) of `area`: the mean of what is valid."""
    weights: NDArray[np.float32]
    """(h, w): which share of a reduced pixel is valid."""
    valid: NDArray[np.bool_]
    """(h * reduce, w * reduce): per pixel of the source."""

    def cut(self, area: Window, reduce: tuple[int, int]) -> _Patch:
        """The patch of a smaller area within this one."""
        rows, cols = area.slices_in(self.area)
        fine = tuple(slice(s.start * n, s.stop * n) for s, n in zip((rows, cols), reduce, strict=True))
        return _Patch(area, self.pixels[:, rows, cols], self.weights[rows, cols], self.valid[fine])


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
    cache: BlockCache = field(compare=False, repr=False)

    def read(self, window: Window) -> Image:
        """The pixels of a window within `self.window`."""
        row0, col0 = self.grid.origin_pixel
        side = self.side
        image = Image.blank(len(self.file.bands), window.height, window.width)
        for block_row in range((window.row + row0) // side, -(-(window.stop_row + row0) // side)):
            for block_col in range((window.col + col0) // side, -(-(window.stop_col + col0) // side)):
                frame = Window(block_row * side - row0, block_col * side - col0, side, side)
                block = self.cache.get((self.index, block_row, block_col), partial(self._warp, frame))
                part = window.intersection(frame)
                there, here = part.slices_in(window), part.slices_in(frame)
                image.pixels[:, *there] = block.pixels[:, *here]
                image.valid[there] = block.valid[here]
        return image

    def _warp(self, block: Window) -> Image:
        """One block of the lattice, whole."""
        image = Image.blank(len(self.file.bands), block.height, block.width)
        patch = self._read_patch(self._source_window(block).grow(2))
        if patch is not None:
            self._fill(image, block, block, patch)
        return image

    def _read_patch(self, wanted: Window) -> _Patch | None:
        """Source pixels of an area in reduced pixels, as far as the raster goes; None where nothing is valid."""
        rows, cols = self.kernel.reduce
        reduced = Window(0, 0, -(-self.file.height // rows), -(-self.file.width // cols))
        area = wanted.intersection(reduced)
        fine = Window(area.row * rows, area.col * cols, area.height * rows, area.width * cols)
        stored = fine.intersection(self.file.window)
        if stored.is_empty:
            return None
        pixels, valid = read_pixels(self.file, stored)
        if not valid.any():
            return None
        pixels = pixels if self.stretch is None else self.stretch.apply(pixels)
        if stored != fine:  # the last reduced pixel sticks out of the raster
            padding = ((0, fine.height - stored.height), (0, fine.width - stored.width))
            pixels, valid = np.pad(pixels, ((0, 0), *padding)), np.pad(valid, padding)
        return _Patch(area, *_reduce(pixels, valid, rows, cols), valid)

    def _fill(self, image: Image, frame: Window, block: Window, around: _Patch) -> None:
        """Write a block into the image of its frame, in quarters where only a part of its source is valid."""
        wanted = self._source_window(block)
        area = wanted.intersection(around.area)
        if area.is_empty:
            return
        patch = around.cut(area, self.kernel.reduce)
        if not patch.valid.any():
            return
        here = block.slices_in(frame)
        if area == wanted and patch.valid.all():
            image.pixels[:, *here] = self._resample(patch.pixels, patch.area, block)
            image.valid[here] = True
        elif block.height > _SMALLEST_BLOCK:
            for quarter in _quarters(block):
                self._fill(image, frame, quarter, patch)
        else:
            stack = np.concatenate([patch.pixels * patch.weights, patch.weights[None]])  # (C + 1, h, w) float32
            summed = self._resample(stack, patch.area, block)  # (C + 1, H, W) float32
            inside = self._nearest(patch, block) & (summed[-1] > 1e-3)  # (H, W)
            mean = np.floor(summed[:-1] / np.where(inside, summed[-1], 1.0) + 0.5).clip(0, 255)
            image.pixels[:, *here] = np.where(inside, mean, FILL).astype(np.uint8)
            image.valid[here] = inside

    def _resample(self, pixels: NDArray[Any], area: Window, block: Window) -> NDArray[Any]:
        """(C, h, w) of an area in reduced pixels -> (C, H, W) of a block of the grid."""
        rows, cols = self.kernel.reduce
        fine = Window(area.row * rows, area.col * cols, area.height * rows, area.width * cols)
        return self._reproject(pixels, fine, (rows, cols), block, self.kernel.method, self.kernel.scale)

    def _nearest(self, patch: _Patch, block: Window) -> NDArray[np.bool_]:
        """(H, W): whether the pixel of the source under each centre is valid."""
        rows, cols = self.kernel.reduce
        fine = Window(patch.area.row * rows, patch.area.col * cols, *patch.valid.shape)
        result = self._reproject(patch.valid[None].astype(np.uint8), fine, (1, 1), block, "nearest", (1.0, 1.0))
        inside: NDArray[np.bool_] = result[0] != 0
        return inside

    def _reproject(
        self,
        pixels: NDArray[Any],
        area: Window,
        step: tuple[int, int],
        block: Window,
        method: str,
        scale: tuple[float, float],
    ) -> NDArray[Any]:
        """One call of GDAL's warper; 0 where the source does not reach."""
        result = np.zeros((pixels.shape[0], block.height, block.width), pixels.dtype)
        try:
            with environment():
                reproject(
                    np.ascontiguousarray(pixels),
                    result,
                    src_transform=_coarser(self.file.transform, area, step),
                    src_crs=_gdal_crs(self.file.crs),
                    dst_transform=_absolute_transform(self.grid, block),
                    dst_crs=_gdal_crs(self.grid.crs),
                    resampling=Resampling[method],
                    num_threads=1,
                    warp_mem_limit=1024,
                    tolerance=_TOLERANCE,
                    XSCALE=repr(scale[1]),
                    YSCALE=repr(scale[0]),
                )
        except RasterioError as error:
            rows, cols = f"{area.row}:{area.stop_row}", f"{area.col}:{area.stop_col}"
            fault = f"{self.file.name}: cannot resample rows {rows}, cols {cols}: {reason_of(error)}"
        else:
            return result
        raise SourceError(fault)  # out here: GDAL's own errors cannot be unpickled, and would travel along as the context

    def _source_window(self, block: Window) -> Window:
        """Reduced pixels of the raster that the kernel reaches from a block, not clipped to the raster."""
        rows, cols = _source_pixels(self.file, self.grid, _absolute_transform(self.grid, block), block)
        if not (np.isfinite(cols).all() and np.isfinite(rows).all()):
            return Window(0, 0, 0, 0)
        spans = []
        for positions, count, scale in zip((rows, cols), self.kernel.reduce, self.kernel.scale, strict=True):
            reach = math.ceil(2.0 / scale) + 2
            spans.append((math.floor(positions.min() / count) - reach, math.ceil(positions.max() / count) + reach))
        (top, bottom), (left, right) = spans
        return Window(top, left, bottom - top, right - left)


def warp_onto(
    grid: Grid, file: RasterFile, window: Window, stretch: Stretch | None, method: str, index: int, cache: BlockCache
) -> WarpedRaster:
    """A raster resampled to a grid. Blocks are smaller where a block of the usual size would need too many source pixels."""
    ratios = _ratios(file, grid)
    side = _BLOCK
    while side > _SMALLEST_BLOCK and side * max(ratios) > _MAX_SOURCE_SIDE:
        side //= 2
    return WarpedRaster(index, file, stretch, grid, window, _kernel(method, ratios), side, cache)


def _kernel(method: str, ratios: tuple[float, float]) -> Kernel:
    if method == "nearest":
        return Kernel(method, (1, 1), (1.0, 1.0))
    rows, cols = (max(1, math.floor(ratio)) for ratio in ratios)
    left = ratios[0] / rows, ratios[1] / cols
    plain = method != "average"
    scale_y, scale_x = (1.0 if plain and ratio <= _PLAIN_RATIO else round(min(1.0, 1.0 / ratio), 6) for ratio in left)
    return Kernel(method, (rows, cols), (scale_y, scale_x))


def _ratios(file: RasterFile, grid: Grid) -> tuple[float, float]:
    """(rows, cols) of source pixels a grid pixel, in the middle of the raster."""
    xs, ys = outline(file.transform, file.window, 3)
    middle_x, middle_y = _project(file.crs, grid.crs, xs[1, 1:2], ys[1, 1:2])
    size = grid.pixel_size
    corner = Affine(size, 0.0, float(middle_x[0]), 0.0, -size, float(middle_y[0]))
    rows, cols = _source_pixels(file, grid, corner, Window(0, 0, 1, 1))
    down, right = (rows[-1, 0] - rows[0, 0], cols[-1, 0] - cols[0, 0]), (rows[0, -1] - rows[0, 0], cols[0, -1] - cols[0, 0])
    return math.hypot(down[0], right[0]), math.hypot(down[1], right[1])


def _source_pixels(
    file: RasterFile, grid: Grid, transform: Affine, window: Window
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, cols) in the raster of 9 x 9 points over a window whose corner `transform` places in the grid's system."""
    xs, ys = _project(grid.crs, file.crs, *outline(transform, Window(0, 0, window.height, window.width), 9))
    xs = _on_its_turn(file, xs)
    inverse = ~file.transform
    return inverse.d * xs + inverse.e * ys + inverse.f, inverse.a * xs + inverse.b * ys + inverse.c


def _on_its_turn(file: RasterFile, xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes as a raster in degrees counts them that reaches beyond the antimeridian: PROJ's end at 180.

    GDAL does the same by itself for the pixels (CENTER_LONG).
    """
    if not file.crs.is_geographic:
        return xs
    half_turn = math.pi / float(file.crs.axis_info[0].unit_conversion_factor)
    west, _, east, _ = bounds_of(file)
    if -half_turn <= west and east <= half_turn:
        return xs
    middle = (west + east) / 2.0
    return (xs - middle + half_turn) % (2.0 * half_turn) - half_turn + middle


def _reduce(
    pixels: NDArray[np.uint8], valid: NDArray[np.bool_], rows: int, cols: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mean of what is valid in each cell of rows x cols pixels, and the share that is."""
    if rows == cols == 1:
        return pixels, valid.astype(np.float32)
    shape = valid.shape[0] // rows, valid.shape[1] // cols
    total, count = np.zeros((len(pixels), *shape), np.uint32), np.zeros(shape, np.uint32)
    everything = bool(valid.all())
    for cell, mask in zip(_cells(pixels, rows, cols), _cells(valid[None], rows, cols), strict=True):
        total += cell if everything else cell * mask
        count += mask[0]
    mean = (total + count // 2) // np.maximum(count, 1)
    return mean.astype(np.uint8), (count / np.float32(rows * cols)).astype(np.float32)


def _cells(array: NDArray[Any], rows: int, cols: int) -> Iterator[NDArray[Any]]:
    """The pixels at each place of a cell: rows * cols views of (C, h / rows, w / cols)."""
    return (array[:, row::rows, col::cols] for row in range(rows) for col in range(cols))


def _quarters(block: Window) -> Iterator[Window]:
    height, width = block.height // 2, block.width // 2
    for row in (block.row, block.row + height):
        for col in (block.col, block.col + width):
            yield Window(row, col, height, width)


def _size_of(image: Image) -> int:
    return image.pixels.nbytes + image.valid.nbytes


def _coarser(transform: Affine, area: Window, step: tuple[int, int]) -> Affine:
    """The transform of an area of the raster in pixels of step rows x step cols."""
    a, b, c, d, e, f = transform[:6]
    c, f = a * area.col + b * area.row + c, d * area.col + e * area.row + f
    return Affine(a * step[1], b * step[0], c, d * step[1], e * step[0], f)


def _absolute_transform(grid: Grid, block: Window) -> Affine:
    """From absolute pixels, so that the last bit does not depend on where the grid begins."""
    row0, col0 = grid.origin_pixel
    size = grid.pixel_size
    return Affine(size, 0.0, (block.col + col0) * size, 0.0, -size, -(block.row + row0) * size)


@lru_cache(maxsize=64)
def _gdal_crs(crs: CRS) -> rasterio.crs.CRS:
    return rasterio.crs.CRS.from_wkt(crs.to_wkt())


class _Transformers(threading.local):
    """pyproj's transformers of this thread: they must not be shared."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Transformer] = {}


_TRANSFORMERS = _Transformers()


def _project(
    source: CRS, target: CRS, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates from one system to another."""
    key = source.srs, target.srs
    if key[0] == key[1]:
        return xs, ys
    if key not in _TRANSFORMERS.known:
        _TRANSFORMERS.known[key] = Transformer.from_crs(source, target, always_xy=True)
    xs, ys = _TRANSFORMERS.known[key].transform(xs, ys)
    return xs, ys
