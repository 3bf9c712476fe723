"""A raster layer as polygons: exact pixel outlines of the chosen classes, window by window on a lattice of the raster.

Pixels of the classes are outlined within squares of the raster's own lattice, so an outline depends on the raster alone
and has a bounded extent. With a buffer, each square is outlined together with as many pixels around it as the buffer
reaches: the raster then acts as one feature, and a negative buffer does not eat into it along the squares.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geoinfer.errors import ConfigError, RemoteError, SafetyError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery.opener import environment, open_dataset, reason_of, serving
from geoinfer.imagery.safety import MAX_BLOCK_BYTES
from geoinfer.imagery.stored import Stored
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.project import Projection
from geoinfer.masks.read import horizontal
from geoinfer.masks.repair import valid
from geoinfer.masks.source import Source
from geoinfer.region import Bounds, parse_crs
from geoinfer.vector.polygonize import polygonize
from geoinfer.vector.polygons import apply_affine

WINDOW = 1024
"""Side of a window that is read at once, pixels; windows begin at multiples of it."""
_SMALLEST = 64
_SQUARE_M = 512.0
_PARTS = 2**20
"""More polygons than a square can hold."""


@dataclass(frozen=True, slots=True)
class RasterHeader:
    """What a raster layer says of itself."""

    crs: CRS
    transform: Affine
    """(col, row) -> (x, y)."""
    height: int
    width: int

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def bounds(self) -> Bounds:
        """In `crs`."""
        corners = np.array([[0, 0], [self.width, 0], [0, self.height], [self.width, self.height]], np.float64)
        x, y = apply_affine(self.transform, corners).T
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Pieces of the classes, of one window."""

    feature: NDArray[np.int64]
    """(N,) by square of the lattice, row-major, and polygon within it."""
    shapes: NDArray[np.object_]
    """(N,) valid polygons: in the raster's system, or, buffered, in the target's."""


def inspect(source: Source, layer: MaskLayer) -> RasterHeader:
    """Read a raster's header.

    Raises:
        SourceError: Not a raster of one band with a place on the earth.
        SafetyError: Blocks too large to hold.
        ConfigError: Classes that are no numbers.
    """
    class_values(layer)
    with ExitStack() as stack:
        return _header(source, layer, _open(source, stack))


def class_values(layer: MaskLayer) -> NDArray[np.float64] | None:
    """The classes as numbers."""
    if layer.classes is None:
        return None
    try:
        values = np.array([float(text) for text in layer.classes])
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise ConfigError(f"mask {layer.name}: classes {'+'.join(layer.classes)} of a raster must be numbers, like 80")
    return values


def outline(source: Source, layer: MaskLayer, header: RasterHeader, projection: Projection) -> Iterator[Outlines]:
    """Outlines of all windows that may meet the projection's boxes.

    Raises:
        SourceError: Damaged blocks.
    """
    wanted = _windows(header, projection.boxes)
    if not wanted:
        return
    classes = class_values(layer)
    outline_window = _Buffered(header, projection) if projection.buffer else _Plain(header, projection)
    with ExitStack() as stack:
        dataset = _open(source, stack)
        for window in wanted:
            around = window.grow(outline_window.margin(window)).intersection(header.window)
            mask = _read(source, dataset, around, classes)
            if mask.any():
                yield outline_window(mask, around, window)


class _Plain:
    """Without a buffer: the pixels of each square by themselves."""

    def __init__(self, header: RasterHeader, projection: Projection) -> None:
        self._header = header
        self._side = _side_of(header, projection)

    def margin(self, _window: Window) -> int:
        return 0

    def __call__(self, mask: NDArray[np.bool_], _around: Window, window: Window) -> Outlines:
        side = self._side
        polygons = polygonize(_spread(mask, side))
        corners = polygons.coords.astype(np.float64)
        corners -= polygons.coords // (side + 1)  # each gap took one pixel
        corners += (window.col, window.row)
        offsets = (polygons.ring_offsets, polygons.polygon_offsets)
        points = apply_affine(self._header.transform, corners)
        shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
        square = polygons.first.astype(np.int64) // (side + 1) + (window.row // side, window.col // side)
        number = square[:, 0] * -(-self._header.width // side) + square[:, 1]
        order = np.argsort(number, kind="stable")
        number = number[order]
        starts = np.searchsorted(number, number)  # first of its square
        return Outlines(number * _PARTS + np.arange(len(number)) - starts, valid(shapes[order]))


class _Buffered:
    """With a buffer: each square with what lies around it, already in the target's system."""

    def __init__(self, header: RasterHeader, projection: Projection) -> None:
        self._header, self._projection = header, projection
        self._side = max(_side_of(header, projection), 256)

    def margin(self, window: Window) -> int:
        return int(self._margins([window])[0])

    def __call__(self, mask: NDArray[np.bool_], around: Window, window: Window) -> Outlines:
        side = self._side
        squares = [
            Window(row, col, side, side).intersection(self._header.window)
            for row in range(window.row, window.stop_row, side)
            for col in range(window.col, window.stop_col, side)
        ]
        found: list[tuple[int, object, object]] = []
        for square, margin in zip(squares, self._margins(squares).tolist(), strict=True):
            near = square.grow(margin).intersection(around)
            row, col = near.row - around.row, near.col - around.col
            part = mask[row : row + near.height, col : col + near.width]
            if not part.any():
                continue
            polygons = polygonize(part, offset=(near.row, near.col)).to_shapely()
            shape = shapely.transform(shapely.MultiPolygon(list(polygons)), self._to_map)
            number = square.row // side * -(-self._header.width // side) + square.col // side
            found.append((number, shape, self._outline(square)))
        if not found:
            return Outlines(np.zeros(0, np.int64), np.zeros(0, object))
        neighbourhoods = np.array([shape for _, shape, _ in found], object)
        parts, _ = self._projection.place_cells(valid(neighbourhoods), np.array([cell for *_, cell in found], object))
        some = ~shapely.is_empty(parts)
        return Outlines(np.array([number for number, *_ in found], np.int64)[some], parts[some])

    def _outline(self, square: Window) -> object:
        """A square with a vertex at every eighth pixel, counted from the raster's corner."""
        frame = shapely.segmentize(shapely.box(square.col, square.row, square.stop_col, square.stop_row), 8)
        return shapely.transform(frame, lambda points: self._to_map(np.rint(points)))

    def _to_map(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return apply_affine(self._header.transform, points)

    def _margins(self, windows: list[Window]) -> NDArray[np.int64]:
        """Pixels that the buffer reaches beyond each window."""
        boxes = []
        for window in windows:
            corners = np.array([[window.col, window.row], [window.stop_col, window.stop_row]], np.float64)
            (x0, y0), (x1, y1) = apply_affine(self._header.transform, corners)
            boxes.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        reach = self._projection.reach_of(np.array(boxes))
        return np.ceil(reach / _pixel(self._header)).astype(np.int64) + 1


def _open(source: Source, stack: ExitStack) -> DatasetReader:
    """The dataset: a URL's bytes come through our own reader, GDAL sees no network."""
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    stack.enter_context(environment())
    try:
        return stack.enter_context(open_dataset(_stored(source)))
    except RasterioError as error:
        fault = f"{source.shown}: cannot be opened as GeoTIFF: {reason_of(error)}"
    raise SourceError(fault)


def _stored(source: Source) -> Stored:
    size = os.path.getsize(source.location) if source.remote is None else source.remote.size
    return Stored(source.location, size, 0, source.remote)


def _header(source: Source, layer: MaskLayer, dataset: DatasetReader) -> RasterHeader:
    if dataset.count != 1:
        raise SourceError(f"{source.shown}: {dataset.count} bands; a mask raster has one, of classes")
    kind = np.dtype(dataset.dtypes[0])
    if kind.kind not in "iuf":
        raise SourceError(f"{source.shown}: pixels of type {kind}; a mask raster has numbers")
    block_height, block_width = dataset.block_shapes[0]
    if block_height * block_width * kind.itemsize > MAX_BLOCK_BYTES:
        raise SafetyError(f"{source.shown}: refused, blocks of {block_height}x{block_width} px are too large to hold")
    transform = Affine(*dataset.transform[:6])
    if transform == Affine.identity() or transform.is_degenerate or not all(map(math.isfinite, transform[:6])):
        raise SourceError(f"{source.shown}: no georeference; set it with gdal_edit.py -a_ullr")
    if layer.crs is not None:
        crs = horizontal(parse_crs(layer.crs))
    elif dataset.crs is None or not dataset.crs.to_wkt():
        raise SourceError(f"{source.shown}: names no coordinate system; if you know it, say crs=EPSG:...")
    else:
        crs = horizontal(CRS.from_wkt(dataset.crs.to_wkt()))
    if not (crs.is_projected or crs.is_geographic):
        raise SourceError(f"{source.shown}: its coordinate system {crs.name!r} has no place on the ground; say crs=EPSG:...")
    return RasterHeader(crs, transform, dataset.height, dataset.width)


def _read(source: Source, dataset: DatasetReader, window: Window, classes: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """(height, width) pixels that belong to the layer."""
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    try:
        with serving(_stored(source)):
            pixels = dataset.read(1, window=area)
            is_valid = dataset.read_masks(1, window=area) != 0
    except (RemoteError, SafetyError, SourceError):
        raise
    except (RasterioError, OSError) as error:
        rows, cols = f"{window.row}:{window.stop_row}", f"{window.col}:{window.stop_col}"
        fault = f"{source.shown}: cannot read rows {rows}, cols {cols}: {reason_of(error)}"
    else:
        if pixels.dtype.kind == "f":
            is_valid &= np.isfinite(pixels)
        if classes is None:
            mask: NDArray[np.bool_] = is_valid & (pixels != 0)
        elif pixels.dtype.kind == "f":
            mask = is_valid & np.isin(pixels, classes)
        else:
            mask = is_valid & np.isin(pixels, classes[classes == np.floor(classes)].astype(np.int64))
        return mask
    raise SourceError(fault)


def _windows(header: RasterHeader, boxes: NDArray[np.float64]) -> list[Window]:
    """Windows of the lattice that meet a box, row-major, cut to the raster."""
    found: set[tuple[int, int]] = set()
    inverse = ~header.transform
    for west, south, east, north in boxes.tolist():
        corners = np.array([[west, south], [east, south], [west, north], [east, north]])
        cols, rows = apply_affine(inverse, corners).T
        first_row, first_col = max(0, math.floor(rows.min())) // WINDOW, max(0, math.floor(cols.min())) // WINDOW
        stop_row, stop_col = min(header.height, math.ceil(rows.max())), min(header.width, math.ceil(cols.max()))
        found |= {
            (row, col)
            for row in range(first_row, -(-stop_row // WINDOW))
            for col in range(first_col, -(-stop_col // WINDOW))
        }
    whole = header.window
    return [Window(row * WINDOW, col * WINDOW, WINDOW, WINDOW).intersection(whole) for row, col in sorted(found)]


def _side_of(header: RasterHeader, projection: Projection) -> int:
    """Side of a square, pixels: a power of two, about `_SQUARE_M` on the ground at the raster's middle."""
    west, south, east, north = header.bounds
    middle = np.array([[(west + east) / 2, (south + north) / 2]])
    step = _pixel(header)
    image = projection.forward(middle + np.array([[0, 0], [step, 0], [0, step]]))
    pixel_m = float(np.hypot(*(image[1:] - image[0]).T).max()) * projection.unit_m
    if not math.isfinite(pixel_m) or pixel_m <= 0:
        return _SMALLEST
    return int(min(WINDOW, max(_SMALLEST, 2 ** math.ceil(math.log2(_SQUARE_M / pixel_m)))))


def _pixel(header: RasterHeader) -> float:
    """Shorter side of a pixel, units of the raster."""
    t = header.transform
    return min(math.hypot(t.a, t.d), math.hypot(t.b, t.e))


def _spread(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The mask with an empty row and column after each square, so that nothing is joined across."""
    rows, cols = (np.arange(length) + np.arange(length) // side for length in mask.shape)
    wide = np.zeros((int(rows[-1]) + 2, int(cols[-1]) + 2), np.bool_)
    wide[np.ix_(rows, cols)] = mask
    return wide
