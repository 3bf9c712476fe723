"""Shapes brought from one coordinate system to another, and what a round earth does to them. No pixels."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import RegionError

Bounds = tuple[float, float, float, float]
"""(minx, miny, maxx, maxy)."""
_MAX_STEPS = 4096
"""An edge is cut into at most this many pieces before it is projected."""
_STEP_M = 1000.0
"""Pieces no longer than this: a parallel bulges from its chord by 2 cm at 45 degrees."""
_M_PER_DEGREE = 111_320.0


def project(geometry: BaseGeometry, source: CRS, target: CRS) -> BaseGeometry:
    """A geometry in another system, its edges cut fine enough to follow the bend.

    Raises:
        RegionError: That system cannot show some of it.
    """
    if source == target:
        return geometry
    minx, miny, maxx, maxy = geometry.bounds
    unit = _M_PER_DEGREE if source.is_geographic else float(source.axis_info[0].unit_conversion_factor)
    step = max(_STEP_M / unit, max(maxx - minx, maxy - miny) / _MAX_STEPS)
    transformer = Transformer.from_crs(source, target, always_xy=True)

    def forward(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))

    projected = shapely.transform(shapely.segmentize(geometry, step), forward)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise RegionError(f"the region {bounds_text(geometry.bounds)} reaches beyond what {target.name!r} can show")
    return projected


def sphere_area(geometry: BaseGeometry) -> float:
    """Area of what is given in degrees on a sphere of radius 1: to weigh parts of a region, not to measure buildings."""

    def equal(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([np.radians(points[:, 0]), np.sin(np.radians(points[:, 1]))])

    return float(shapely.transform(shapely.segmentize(geometry, 0.5), equal).area)


def pole_in(bounds: Bounds, crs: CRS) -> int | None:
    """1 where the north pole lies in a box, -1 for the south pole, None for neither: in such a box longitudes go round."""
    geodetic = crs.geodetic_crs
    assert geodetic is not None
    forward = Transformer.from_crs(geodetic, crs, always_xy=True)
    quarter = math.pi / 2 / geodetic.axis_info[0].unit_conversion_factor
    for sign in (1, -1):
        x, y = forward.transform(0.0, sign * quarter)
        if bounds[0] < x < bounds[2] and bounds[1] < y < bounds[3]:  # never where it is infinite
            return sign
    return None


def bounds_text(bounds: Bounds) -> str:
    """For messages."""
    return "(" + ", ".join(f"{value:.7g}" if abs(value) < 1000 else f"{value:.1f}" for value in bounds) + ")"
