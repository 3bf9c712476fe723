"""Coordinate systems against the ground: how large a pixel truly is, where metres are metres, which UTM zone a place is in.

Knows rasters' headers, and nothing of grids or models.
"""

from __future__ import annotations

import math
import threading

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
from geoinfer.grid import Window
from geoinfer.imagery.raster import RasterFile

_GROUND_TOLERANCE = 0.01
"""A coordinate system whose scale is within this share of 1 is true to the ground."""


def bounds_of(file: RasterFile) -> tuple[float, float, float, float]:
    """(minx, miny, maxx, maxy) of a raster, in its own coordinate system, whatever its rotation."""
    xs, ys = outline(file.transform, file.window, 2)
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


def ground_pixel_size(file: RasterFile) -> float:
    """Metres on the ground of a pixel at the raster's centre: the root of its area."""
    lon, lat = centre_lonlat(file.crs, bounds_of(file))
    area = abs(file.transform.determinant)
    if file.crs.is_geographic:
        unit = degrees_of(file.crs)
        return math.sqrt(area * unit**2 * _square_degree_m2(file.crs, lat))
    scale = abs(projection_of(file.crs).get_factors(lon, lat).areal_scale)
    return math.sqrt(area * unit_factor(file.crs) ** 2 / float(scale))


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


def label_of(crs: CRS) -> str:
    """`EPSG:code` where there is one, else the name."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code is not None else repr(crs.name)


def unit_factor(crs: CRS) -> float:
    """Metres a unit of a projected coordinate system."""
    return float(crs.axis_info[0].unit_conversion_factor)


def degrees_of(crs: CRS) -> float:
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


def centre_lonlat(crs: CRS, bounds: tuple[float, float, float, float]) -> tuple[float, float]:
    """Degrees, on the datum of `crs`."""
    x, y = (bounds[0] + bounds[2]) / 2.0, (bounds[1] + bounds[3]) / 2.0
    if crs.is_geographic:
        lon, lat = x * degrees_of(crs), y * degrees_of(crs)
    else:
        lon, lat = projection_of(crs)(x, y, inverse=True)
    if not (math.isfinite(lon) and abs(lat) <= 90.0 and abs(lon) <= 540.0):
        raise SourceError(
            f"the imagery's centre ({x:.10g}, {y:.10g}) lies outside {label_of(crs)}: its georeference is wrong"
        )
    return lon, lat


def is_true_to_ground(crs: CRS, lonlat: tuple[float, float]) -> bool:
    """A unit of the coordinate system, times its factor, is a metre on the ground, in both directions."""
    if not crs.is_projected:
        return False
    return scale_error(crs, *lonlat) <= _GROUND_TOLERANCE


def scale_error(crs: CRS, lon: float, lat: float) -> float:
    """Largest departure from 1 of the scale in any direction (Tissot's axes)."""
    try:
        factors = projection_of(crs).get_factors(lon, lat, errcheck=True)
    except ProjError:
        return math.inf
    error = max(abs(factors.tissot_semimajor - 1.0), abs(factors.tissot_semiminor - 1.0))
    return error if math.isfinite(error) else math.inf


class _Projections(threading.local):
    """pyproj's objects of this thread: they must not be shared."""

    def __init__(self) -> None:
        self.transformers: dict[tuple[str, str], Transformer] = {}
        self.projections: dict[str, Proj] = {}


_PROJECTIONS = _Projections()


def project(
    source: str, target: str, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates from one system to another, both as their `srs`."""
    if source == target:
        return xs, ys
    known = _PROJECTIONS.transformers
    if (source, target) not in known:
        known[source, target] = Transformer.from_crs(source, target, always_xy=True)
    xs, ys = known[source, target].transform(xs, ys)
    return xs, ys


def projection_of(crs: CRS) -> Proj:
    """This thread's projection of a system: degrees to its coordinates, and back."""
    known = _PROJECTIONS.projections
    if crs.srs not in known:
        known[crs.srs] = Proj(crs)
    return known[crs.srs]
