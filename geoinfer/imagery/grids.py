"""Which grid a model sees imagery on (law 1): the source's own pixels where they fit, else a snapped grid in true metres.

Native: north-up or south-up square pixels within 2 % of the model's size, in a projected coordinate system that is true to
the ground. The grid then has the source's pixel size and phase, and its pixels are the source's, untouched. Everything
else is resampled to pixels of the model's size at absolute multiples of it: in the source's coordinate system where that
is true to the ground at the source's centre, in a UTM zone on the source's own datum where not (EPSG:4326, EPSG:3857).
Rasters in several systems go onto a grid in the one that holds most of their ground, if that is true to the ground at the
centre of all of them; else in the UTM zone of that centre, on WGS 84. Neither their order nor a region enters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from pyproj import CRS

from geoinfer.errors import RegionError, TooWideError
from geoinfer.grid import Grid, Window, nearest_pixel
from geoinfer.imagery.extent import extent_of
from geoinfer.imagery.ground import (
    bounds_of,
    centre_lonlat,
    ground_pixel_size,
    is_true_to_ground,
    label_of,
    outline,
    project,
    projection_of,
    scale_error,
    unit_factor,
    utm_of,
)
from geoinfer.imagery.raster import RasterFile

_GSD_TOLERANCE = 0.02
"""Pixels within this share of the model's size are the model's size."""
_EDGE_TOLERANCE = 0.05
"""Largest scale error at the edge of a grid; a source that needs more is too wide for one grid."""
_BEYOND = 3.0
"""How far past its area of use a coordinate system that was asked for is used, degrees."""
_PIXEL_NOISE = 0.05
"""Largest disagreement between two pixel lattices that count as one, in pixels over the whole source."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the imagery lies on its grid."""

    grid: Grid
    native: bool
    """The grid's pixels are the source's: reading copies them."""
    windows: tuple[Window, ...]
    """Per raster, the pixels of the grid that it can reach; exact when native, its bounding box when not."""


def place(files: Sequence[RasterFile], gsd: float, core: int, crs: CRS | None = None) -> Placement:
    """The grid for rasters; the same for any order of them.

    Args:
        files: At least one.
        gsd: Metres a pixel of the model.
        core: Step of the model's lattice, pixels.
        crs: Coordinate system of the grid, which the imagery decides where None. Rasters are then cut to what it can show:
            the window of one that lies beyond is empty.

    Raises:
        SourceError: A georeference that is wrong.
        RegionError: `crs` can show nothing of the imagery.
        TooWideError: Imagery too wide for one grid.
    """
    shared = shared_crs(files)
    if shared is not None and (crs is None or crs == shared):
        native = _place_native(files, shared, gsd, core)
        if native is not None:
            return native
    if crs is not None:
        target, boxes = crs, [_cut_bounds(file, crs) for file in files]
    else:
        target = _common_crs(files) if shared is None else _own_crs(files, shared)
        boxes = [_project_bounds(file, target) for file in files]
    size = gsd / unit_factor(target)
    left, bottom, right, top = _union([box for box in boxes if box is not None] or _nothing_in(target))
    row, col = math.floor(-top / size / core) * core, math.floor(left / size / core) * core
    grid = Grid(
        target,
        Affine(size, 0.0, col * size, 0.0, -size, -row * size),
        math.ceil(-bottom / size - 1e-3) - row,
        math.ceil(right / size - 1e-3) - col,
    )
    if crs is None:
        _check_width(grid, (left, bottom, right, top), files)
    return Placement(grid, False, tuple(Window(0, 0, 0, 0) if box is None else grid.covering(box) for box in boxes))


def shared_crs(files: Sequence[RasterFile]) -> CRS | None:
    """The coordinate system of all rasters, None where they have several."""
    first = files[0].crs
    return first if all(file.crs is first or file.crs == first for file in files) else None


def _own_crs(files: Sequence[RasterFile], crs: CRS) -> CRS:
    """The system that rasters share, or the UTM zone at their centre where that is not true to the ground."""
    lonlat = centre_lonlat(crs, _union([bounds_of(file) for file in files]))
    return crs if is_true_to_ground(crs, lonlat) else utm_of(crs, *lonlat)


def _common_crs(files: Sequence[RasterFile]) -> CRS:
    """The system for rasters that share none. Sums are exact, so no order of the rasters can change it."""
    ground: dict[CRS, list[float]] = {}
    for file in files:
        area = file.height * file.width * ground_pixel_size(file) ** 2
        ground.setdefault(file.crs, []).append(area)
    west, south, east, north = _extent(files)
    turn = 360.0 if east < west else 0.0
    centre = (west + east + turn) / 2.0, (south + north) / 2.0
    for crs in sorted(ground, key=lambda crs: (-math.fsum(ground[crs]), label_of(crs), crs.to_wkt())):
        if is_true_to_ground(crs, centre):
            return crs
    return utm_of(CRS.from_epsg(4326), *centre)


def _extent(files: Sequence[RasterFile]) -> tuple[float, float, float, float]:
    """West, south, east, north of all rasters in degrees; west > east across the antimeridian."""
    return extent_of([(file.crs, file.transform, file.height, file.width) for file in files])


def _nothing_in(crs: CRS) -> list[tuple[float, float, float, float]]:
    raise RegionError(f"no imagery within what {label_of(crs)} can show")


def _place_native(files: Sequence[RasterFile], crs: CRS, gsd: float, core: int) -> Placement | None:
    """The source's own grid, or None when a raster does not fit it."""
    if not crs.is_projected:
        return None
    bounds = _union([bounds_of(file) for file in files])
    anchor = min(files, key=lambda f: (f.transform.c, -f.transform.f, f.width, f.height, f.path))
    size = anchor.transform.a
    if size <= 0 or abs(size * unit_factor(crs) / gsd - 1.0) > _GSD_TOLERANCE:
        return None
    if not is_true_to_ground(crs, centre_lonlat(crs, bounds)):
        return None
    origins = []
    top_of_anchor = bounds_of(anchor)[3]
    for file in files:
        a, b, _, d, e, _ = file.transform[:6]
        drift = max(abs(a - size), abs(abs(e) - size)) / size * max(file.height, file.width)
        left, _, _, top = bounds_of(file)
        row = (top_of_anchor - top) / size
        col = (left - anchor.transform.c) / size
        if b or d or a <= 0 or drift > _PIXEL_NOISE or max(abs(row - round(row)), abs(col - round(col))) > _PIXEL_NOISE:
            return None
        origins.append((round(row), round(col)))
    top, left = top_of_anchor, anchor.transform.c
    row0, col0 = min(row for row, _ in origins), min(col for _, col in origins)
    row0 -= (nearest_pixel(-top / size) + row0) % core  # back from the first pixel to its lattice corner
    col0 -= (nearest_pixel(left / size) + col0) % core
    windows = tuple(Window(r - row0, c - col0, f.height, f.width) for (r, c), f in zip(origins, files, strict=True))
    grid = Grid(
        crs,
        Affine(size, 0.0, left + col0 * size, 0.0, -size, top - row0 * size),
        max(window.stop_row for window in windows),
        max(window.stop_col for window in windows),
    )
    return Placement(grid, True, windows)


def _union(boxes: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    left, bottom, right, top = zip(*boxes, strict=True)
    return min(left), min(bottom), max(right), max(top)


def _project_bounds(file: RasterFile, crs: CRS) -> tuple[float, float, float, float]:
    """Bounds of a raster in another system: along all its edges, which may bulge."""
    if file.crs is crs or file.crs == crs:
        return bounds_of(file)
    xs, ys = project(file.crs.srs, crs.srs, *outline(file.transform, file.window, 65))
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise TooWideError(
            f"{file.name}: reaches beyond what {label_of(crs)} can show; cut it into narrower rasters", _extent([file])
        )
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _cut_bounds(file: RasterFile, crs: CRS) -> tuple[float, float, float, float] | None:
    """Bounds, in a system that was asked for, of what it can show of a raster; None where that is nothing.

    A system can show its area of use and `_BEYOND` degrees more.
    """
    west, south, east, north = _shown_by(crs)
    lons, lats = project(file.crs.srs, "EPSG:4326", *outline(file.transform, file.window, 65))
    middle = (west + east) / 2.0
    lons = middle + (lons - middle + 180.0) % 360.0 - 180.0
    with np.errstate(invalid="ignore"):
        inside = (lons >= west) & (lons <= east) & (lats >= south) & (lats <= north)
    if inside.all():
        return _project_bounds(file, crs)
    if not inside.any():
        return None
    known = np.isfinite(lons) & np.isfinite(lats)
    box = (
        max(west, float(lons[known].min())),
        max(south, float(lats[known].min())),
        min(east, float(lons[known].max())),
        min(north, float(lats[known].max())),
    )
    xs, ys = np.meshgrid(np.linspace(box[0], box[2], 65), np.linspace(box[1], box[3], 65))
    xs, ys = project("EPSG:4326", crs.srs, xs, ys)
    known = np.isfinite(xs) & np.isfinite(ys)
    return float(xs[known].min()), float(ys[known].min()), float(xs[known].max()), float(ys[known].max())


def _shown_by(crs: CRS) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees; west > east nowhere: east may pass 180."""
    area = crs.area_of_use
    if area is None:
        return -180.0, -90.0, 180.0, 90.0
    east = area.east if area.east >= area.west else area.east + 360.0
    if east - area.west >= 360.0 - 2 * _BEYOND:
        west, east = -180.0, 180.0
    else:
        west, east = area.west - _BEYOND, east + _BEYOND
    return west, max(area.south - _BEYOND, -90.0), east, min(area.north + _BEYOND, 90.0)


def _check_width(grid: Grid, bounds: tuple[float, float, float, float], files: Sequence[RasterFile]) -> None:
    """Metres must be metres at the edges as well."""
    left, bottom, right, top = bounds
    for x, y in ((left, bottom), (left, top), (right, bottom), (right, top)):
        lon, lat = projection_of(grid.crs)(x, y, inverse=True)
        if scale_error(grid.crs, lon, lat) > _EDGE_TOLERANCE:
            raise TooWideError(
                f"the imagery is too wide for one grid: metres of {label_of(grid.crs)} are off by more than "
                f"{_EDGE_TOLERANCE:.0%} at its edge; cut it into narrower rasters",
                _extent(files),
            )
