"""Which grid a model sees imagery on (law 1): the source's own pixels where they fit, else a snapped grid in true metres.

Native: north-up or south-up square pixels within 2 % of the model's size, in a projected coordinate system that is true to
the ground. The grid then has the source's pixel size and phase, and its pixels are the source's, untouched. Everything
else is resampled to pixels of the model's size at absolute multiples of it: in the source's coordinate system where that
is true to the ground at the source's centre, in a UTM zone on the source's own datum where not (EPSG:4326, EPSG:3857).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import UTMConversion
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import ProjError

from geoinfer.errors import SourceError
from geoinfer.grid import Grid, Window, nearest_pixel
from geoinfer.imagery.raster import RasterFile

_GSD_TOLERANCE = 0.02
"""Pixels within this share of the model's size are the model's size."""
_GROUND_TOLERANCE = 0.01
"""A coordinate system whose scale is within this share of 1 is true to the ground."""
_EDGE_TOLERANCE = 0.05
"""Largest scale error at the edge of a grid; a source that needs more is too wide for one grid."""
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


def place(files: Sequence[RasterFile], gsd: float, core: int) -> Placement:
    """The grid for rasters that share a coordinate system; the same for any order of them.

    Args:
        files: At least one.
        gsd: Metres a pixel of the model.
        core: Step of the model's lattice, pixels.

    Raises:
        SourceError: Rasters of different coordinate systems, or imagery too wide for one grid.
    """
    crs = _shared_crs(files)
    native = _place_native(files, crs, gsd, core)
    if native is not None:
        return native
    bounds = _union([bounds_of(file) for file in files])
    target = crs if _is_true_to_ground(crs, _centre_lonlat(crs, bounds)) else utm_of(crs, *_centre_lonlat(crs, bounds))
    size = gsd / _unit_factor(target)
    boxes = [_project_bounds(file, target) for file in files]
    left, bottom, right, top = _union(boxes)
    row, col = math.floor(-top / size / core) * core, math.floor(left / size / core) * core
    grid = Grid(
        target,
        Affine(size, 0.0, col * size, 0.0, -size, -row * size),
        math.ceil(-bottom / size - 1e-3) - row,
        math.ceil(right / size - 1e-3) - col,
    )
    _check_width(grid, (left, bottom, right, top))
    return Placement(grid, False, tuple(grid.covering(box) for box in boxes))


def bounds_of(file: RasterFile) -> tuple[float, float, float, float]:
    """(minx, miny, maxx, maxy) of a raster, in its own coordinate system, whatever its rotation."""
    xs, ys = outline(file.transform, file.window, 2)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def ground_pixel_size(file: RasterFile) -> float:
    """Metres on the ground of a pixel at the raster's centre: the root of its area."""
    lon, lat = _centre_lonlat(file.crs, bounds_of(file))
    area = abs(file.transform.determinant)
    if file.crs.is_geographic:
        unit = _degrees(file.crs)
        return math.sqrt(area * unit**2 * _square_degree_m2(file.crs, lat))
    scale = abs(Proj(file.crs).get_factors(lon, lat).areal_scale)
    return math.sqrt(area * _unit_factor(file.crs) ** 2 / float(scale))


def utm_of(crs: CRS, lon: float, lat: float) -> CRS:
    """The UTM zone of a place on the datum of `crs`, so that no datum shift enters; UPS beyond 84 N and 80 S.

    A registered code where there is one, else the zone's projection over the same geodetic system.
    """
    lon = (lon + 180.0) % 360.0 - 180.0
    geodetic = crs.geodetic_crs or CRS.from_epsg(4326)
    if lat > 84.0 or lat < -80.0:
        return CRS.from_epsg(32661 if lat > 0 else 32761)
    zone = min(int((lon + 180.0) // 6.0) + 1, 60)
    if geodetic.to_2d().to_epsg() == 4326:
        return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)
    datum = geodetic.datum.name if geodetic.datum is not None else None
    if datum is not None:
        spot = AreaOfInterest(lon, lat, lon, lat)
        wanted = f"UTM zone {zone}{'N' if lat >= 0 else 'S'}"
        for info in query_utm_crs_info(datum_name=datum, area_of_interest=spot, contains=True):
            found = CRS.from_authority(info.auth_name, info.code)
            if info.name.endswith(wanted) and found.geodetic_crs == geodetic.to_2d():
                return found
    hemisphere = "N" if lat >= 0 else "S"
    conversion = UTMConversion(str(zone), hemisphere=hemisphere)
    name = f"{geodetic.name} / UTM zone {zone}{hemisphere}"
    return CRS.from_wkt(ProjectedCRS(conversion, name, geodetic_crs=geodetic.to_2d()).to_wkt())


def _shared_crs(files: Sequence[RasterFile]) -> CRS:
    first = files[0]
    for other in files[1:]:
        if other.crs != first.crs:
            raise SourceError(
                f"{first.name} is in {label_of(first.crs)}, {other.name} in {label_of(other.crs)}: rasters of one run share "
                "a coordinate system; warp one of them (gdalwarp -t_srs), or run them apart"
            )
    return first.crs


def _place_native(files: Sequence[RasterFile], crs: CRS, gsd: float, core: int) -> Placement | None:
    """The source's own grid, or None when a raster does not fit it."""
    if not crs.is_projected:
        return None
    bounds = _union([bounds_of(file) for file in files])
    anchor = min(files, key=lambda f: (f.transform.c, -f.transform.f, f.width, f.height, f.path))
    size = anchor.transform.a
    if size <= 0 or abs(size * _unit_factor(crs) / gsd - 1.0) > _GSD_TOLERANCE:
        return None
    if not _is_true_to_ground(crs, _centre_lonlat(crs, bounds)):
        return None
    origins = []
    for file in files:
        a, b, _, d, e, _ = file.transform[:6]
        drift = max(abs(a - size), abs(abs(e) - size)) / size * max(file.height, file.width)
        left, _, _, top = bounds_of(file)
        row = (bounds_of(anchor)[3] - top) / size
        col = (left - anchor.transform.c) / size
        if b or d or a <= 0 or drift > _PIXEL_NOISE or max(abs(row - round(row)), abs(col - round(col))) > _PIXEL_NOISE:
            return None
        origins.append((round(row), round(col)))
    top, left = bounds_of(anchor)[3], anchor.transform.c
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


def label_of(crs: CRS) -> str:
    """`EPSG:code` where there is one, else the name."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code is not None else repr(crs.name)


def _unit_factor(crs: CRS) -> float:
    """Metres a unit of a projected coordinate system."""
    return float(crs.axis_info[0].unit_conversion_factor)


def _degrees(crs: CRS) -> float:
    """Degrees a unit of a geographic coordinate system."""
    return math.degrees(crs.axis_info[0].unit_conversion_factor)


def _square_degree_m2(crs: CRS, lat: float) -> float:
    """Area on the ellipsoid of a square degree around a latitude, from its radii of curvature there."""
    geod = crs.get_geod()
    assert geod is not None
    sine, per_degree = math.sin(math.radians(lat)), math.radians(1.0)
    meridional = geod.a * (1.0 - geod.es) / (1.0 - geod.es * sine**2) ** 1.5
    transverse = geod.a / math.sqrt(1.0 - geod.es * sine**2)
    return float(meridional * transverse * math.cos(math.radians(lat)) * per_degree**2)


def _centre_lonlat(crs: CRS, bounds: tuple[float, float, float, float]) -> tuple[float, float]:
    """Degrees, on the datum of `crs`."""
    x, y = (bounds[0] + bounds[2]) / 2.0, (bounds[1] + bounds[3]) / 2.0
    if crs.is_geographic:
        lon, lat = x * _degrees(crs), y * _degrees(crs)
    else:
        lon, lat = Proj(crs)(x, y, inverse=True)
    if not (math.isfinite(lon) and abs(lat) <= 90.0 and abs(lon) <= 540.0):
        raise SourceError(
            f"the imagery's centre ({x:.10g}, {y:.10g}) lies outside {label_of(crs)}: its georeference is wrong"
        )
    return lon, lat


def _is_true_to_ground(crs: CRS, lonlat: tuple[float, float]) -> bool:
    """A unit of the coordinate system, times its factor, is a metre on the ground, in both directions."""
    if not crs.is_projected:
        return False
    return _scale_error(crs, *lonlat) <= _GROUND_TOLERANCE


def _scale_error(crs: CRS, lon: float, lat: float) -> float:
    """Largest departure from 1 of the scale in any direction (Tissot's axes)."""
    try:
        factors = Proj(crs).get_factors(lon, lat, errcheck=True)
    except ProjError:
        return math.inf
    error = max(abs(factors.tissot_semimajor - 1.0), abs(factors.tissot_semiminor - 1.0))
    return error if math.isfinite(error) else math.inf


def _project_bounds(file: RasterFile, crs: CRS) -> tuple[float, float, float, float]:
    """Bounds of a raster in another system: along all its edges, which may bulge."""
    if file.crs == crs:
        return bounds_of(file)
    xs, ys = Transformer.from_crs(file.crs, crs, always_xy=True).transform(*outline(file.transform, file.window, 65))
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise SourceError(f"{file.name}: reaches beyond what {label_of(crs)} can show; cut it into narrower rasters")
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def outline(transform: Affine, window: Window, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of a lattice of points x points over a window, edges and inside."""
    cols, rows = np.meshgrid(
        np.linspace(window.col, window.stop_col, points), np.linspace(window.row, window.stop_row, points)
    )
    return (
        transform.a * cols + transform.b * rows + transform.c,
        transform.d * cols + transform.e * rows + transform.f,
    )


def _check_width(grid: Grid, bounds: tuple[float, float, float, float]) -> None:
    """Metres must be metres at the edges as well."""
    left, bottom, right, top = bounds
    for x, y in ((left, bottom), (left, top), (right, bottom), (right, top)):
        lon, lat = Proj(grid.crs)(x, y, inverse=True)
        if _scale_error(grid.crs, lon, lat) > _EDGE_TOLERANCE:
            raise SourceError(
                f"the imagery is too wide for one grid: metres of {label_of(grid.crs)} are off by more than "
                f"{_EDGE_TOLERANCE:.0%} at its edge; cut it into narrower rasters"
            )
