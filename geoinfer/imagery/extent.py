"""Where rasters lie on the globe, and how much of it they cover together: true areas on the ellipsoid, no pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from shapely import affinity

from geoinfer.imagery.ground import project

Points = NDArray[np.float64]
_SIDE_POINTS = 33
"""Points along a side of an outline: what is straight in one system bends in another."""
_A = 6378137.0
_E2 = 0.0066943799901413165
"""WGS 84: semi-major axis in metres, eccentricity squared."""


def outline_lonlat(crs: CRS, transform: Affine, height: int, width: int) -> Points:
    """(N, 2) longitude and latitude along a raster's edge in degrees, without a jump: beyond 180 across the antimeridian.

    Its middle lies in -180..180.
    """
    along = np.linspace(0.0, 1.0, _SIDE_POINTS)[:-1]
    cols = np.concatenate([along, np.ones_like(along), 1 - along, np.zeros_like(along)]) * width
    rows = np.concatenate([np.zeros_like(along), along, np.ones_like(along), 1 - along]) * height
    xs = transform.a * cols + transform.b * rows + transform.c
    ys = transform.d * cols + transform.e * rows + transform.f
    lon, lat = project(crs.srs, "EPSG:4326", xs, ys)
    lon = np.degrees(np.unwrap(np.radians(lon)))
    return np.column_stack([lon - 360.0 * np.round((lon.min() + lon.max()) / 720.0), lat])


def bounds_lonlat(crs: CRS, transform: Affine, height: int, width: int) -> tuple[float, float, float, float]:
    """west, south, east, north in degrees to a centimetre; west > east across the antimeridian."""
    points = outline_lonlat(crs, transform, height, width)
    (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
    west, east = ((lon + 180.0) % 360.0 - 180.0 if abs(lon) > 180.0 else lon for lon in (west, east))
    return round(float(west), 7), round(float(south), 7), round(float(east), 7), round(float(north), 7)


def extent_of(rasters: Sequence[tuple[CRS, Affine, int, int]]) -> tuple[float, float, float, float]:
    """west, south, east, north in degrees of rasters together, on whichever side of the globe that is the shorter way round.

    Args:
        rasters: Coordinate system, transform, height and width of each. Their order does not matter.

    Returns:
        West > east across the antimeridian; -180 to 180 where they leave no gap.
    """
    spans, lats = [], []
    for raster in rasters:
        points = outline_lonlat(*raster)
        (west, south), (east, north) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        if not all(map(math.isfinite, (west, south, east, north))):
            west, south, east, north = -180.0, -90.0, 180.0, 90.0
        spans.append((west % 360.0, west % 360.0 + (east - west)))
        lats += [south, north]
    spans.sort()
    gap, start, stop = -math.inf, 0.0, 0.0
    reached = max(east for _, east in spans) - 360.0
    for west, east in spans:
        if west - reached > gap:
            gap, start, stop = west - reached, west, reached + 360.0
        reached = max(reached, east)
    if gap <= 0:
        return -180.0, min(lats), 180.0, max(lats)
    west, east = ((lon + 180.0) % 360.0 - 180.0 if not -180.0 <= lon <= 180.0 else lon for lon in (start, stop))
    return west, min(lats), east, max(lats)


def covered_km2(outlines: Sequence[Points]) -> float:
    """Area of the union of outlines on the ellipsoid, square kilometres: what several cover counts once."""
    if not outlines:
        return 0.0
    shapes = [shapely.make_valid(shapely.Polygon(_equal_area(points))) for points in outlines]
    turn = 2.0 * math.pi * _A
    copies = [affinity.translate(shape, by) for shape in shapes for by in (-turn, 0.0, turn)]
    world = shapely.box(-turn / 2, -turn, turn / 2, turn)
    return float(shapely.union_all(shapely.intersection(copies, world)).area) / 1e6


def _equal_area(points: Points) -> Points:
    """Lambert's cylindrical equal-area projection of the ellipsoid (Snyder 1987, equations 10-14, 3-12), metres."""
    e = math.sqrt(_E2)
    sine = np.sin(np.radians(points[:, 1]))
    q = (1 - _E2) * (sine / (1 - _E2 * sine**2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
    return np.column_stack([_A * np.radians(points[:, 0]), _A * q / 2])
