"""Where footprints of any table can be measured: planes in which a metre is a metre on the ground, chosen for each alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer

from geoinfer.errors import ConfigError
from geoinfer.imagery.ground import label_of, utm_of
from geoinfer.masks.cover import Floats, Indices, Shapes
from geoinfer.vector.footprints import square_metres_per_unit

GROUND_TOLERANCE = 0.01
"""A coordinate system whose scale at a footprint is within this share of 1 is true to the ground there."""


def planes_of(shapes: Shapes, crs: CRS) -> Iterator[tuple[CRS, Indices]]:
    """Their own coordinate system for footprints where that is true to the ground, else the UTM zone of each centroid.

    Args:
        shapes: (N,) polygons; missing ones are in no plane.
        crs: Their coordinate system.

    Yields:
        A projected coordinate system and the footprints (n,) to measure in it; each at most once.

    Raises:
        ConfigError: Some lie nowhere on Earth.
    """
    if crs.geodetic_crs is None:
        raise ConfigError(f"{crs.name} has no relation to the earth; give footprints in a system that has one")
    rows = np.flatnonzero(~shapely.is_missing(shapes))
    if not len(rows):
        return
    x, y = shapely.get_coordinates(shapely.centroid(shapes[rows])).T
    lon, lat = (np.asarray(a) for a in Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y))
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        raise ConfigError(f"some footprints lie outside {label_of(crs)}; is their coordinate system right?")
    own = _is_true(crs, lon, lat)
    if own.any():
        yield crs, rows[own]
    zone = np.floor((lon + 180.0) % 360.0 / 6.0).astype(np.int64) * 4 + np.digitize(lat, (-80.0, 0.0, 84.0))
    for key in np.unique(zone[~own]).tolist():
        here = np.flatnonzero(~own & (zone == key))
        yield utm_of(crs, key // 4 * 6.0 - 177.0, float(lat[here[0]])), rows[here]


def measured(shapes: Shapes, source: CRS, target: CRS) -> tuple[Shapes, Floats]:
    """Valid shapes in a plane, repaired where they are not, and their areas on the ellipsoid, square metres."""
    moved = projected(shapes, source, target)
    bad = ~shapely.is_valid(moved)
    moved[bad] = shapely.make_valid(moved[bad], method="structure", keep_collapsed=False)
    return moved, areas_m2(moved, target)


def projected(shapes: Shapes, source: CRS, target: CRS) -> Shapes:
    """Shapes in another system, vertex by vertex: edges of a building are too short to bend.

    Raises:
        ConfigError: Some cannot be expressed in it.
    """
    if source == target:
        return shapes.copy()
    transformer = Transformer.from_crs(source, target, always_xy=True)
    moved: Shapes = shapely.transform(shapes, transformer.transform, interleaved=False)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise ConfigError(f"some footprints cannot be expressed in {label_of(target)}; is their coordinate system right?")
    return moved


def areas_m2(shapes: Shapes, crs: CRS) -> Floats:
    """(N,) areas on the ellipsoid, square metres; 0 for empty ones."""
    centres = shapely.centroid(shapes)
    area: Floats = np.zeros(len(shapes))
    real = np.flatnonzero(~shapely.is_empty(centres))
    points = shapely.get_coordinates(centres[real])
    area[real] = shapely.area(shapes[real]) * square_metres_per_unit(crs, points[:, 0], points[:, 1])
    return area


def _is_true(crs: CRS, lon: Floats, lat: Floats) -> NDArray[np.bool_]:
    """Where a unit of a coordinate system is a metre on the ground in both directions."""
    if not crs.is_projected or any(axis.unit_conversion_factor != 1.0 for axis in crs.axis_info[:2]):
        return np.zeros(len(lon), np.bool_)
    factors = Proj(crs).get_factors(lon, lat)
    errors = np.abs(np.array([factors.tissot_semimajor, factors.tissot_semiminor]) - 1.0).max(axis=0)
    true: NDArray[np.bool_] = errors <= GROUND_TOLERANCE
    return true
