"""The last step: from whole polygons in pixels to footprints on the map, with the columns that users see.

Every polygon comes out exactly once, accepted or rejected with a reason (law 4). One of the two modules that turn
(row, col) into (x, y). Each row depends on its own polygon and the arguments only, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoinfer import meridian
from geoinfer.errors import ConfigError
from geoinfer.grid import Grid
from geoinfer.vector.polygons import Polygons, apply_affine
from geoinfer.vector.regularize import STAIRS, grow, overshoot, simplify

Texts: TypeAlias = str | Sequence[str | None] | None
"""One for all rows, or one for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Raw candidates = accepted + rejected."""

    accepted: gpd.GeoDataFrame
    """Columns id, geometry, confidence, area_in_meters, truncated, regularized, model, imagery, datetime; and low_trust
    where the imagery was compared with the model's domain."""
    rejected: gpd.GeoDataFrame
    """The same columns, and `reason` (a code: min_area, min_confidence), `detail` (the numbers, for a person), and `layer`,
    `layer_version` and `covered_share`, which are empty here: mask layers fill them."""


def finish(
    polygons: Polygons,
    grid: Grid,
    *,
    min_area_m2: float,
    simplify_m: float,
    grow_m: float = 0.0,
    min_confidence: float = 0.0,
    crs: CRS | None = None,
    model: str = "",
    imagery: Texts = None,
    datetime: Texts = None,
    low_trust: NDArray[np.bool_] | None = None,
) -> Finished:
    """Simplify, grow, place on the map, measure and judge whole polygons.

    Args:
        polygons: Whole polygons in the pixel frame of the grid; their own transform is not looked at.
        grid: Where pixels lie on the map.
        min_area_m2: Smaller footprints are rejected; square metres on the ellipsoid, of the final outline.
        simplify_m: Largest distance of a dropped vertex, metres.
        grow_m: Outward move of the outline, metres, for models that predict the eroded inside of buildings. A footprint
            that grows loses its pixel stairs first (a tolerance of at least 1.5 pixels): see `regularize.grow`.
        min_confidence: Smaller mean probabilities (0..1) are rejected.
        crs: Coordinate system of the result; default: the grid's.
        model: Same value in all rows.
        imagery, datetime: The same value in all rows, or (N,) one for each.
        low_trust: (N,) found in imagery outside the model's domain: a column of its own. None: no such column.
    """
    tolerance, distance = _in_pixels(grid, simplify_m, grow_m)
    outlines = grow(simplify(polygons, tolerance), distance)
    geometries: NDArray[np.object_] = shapely.transform(outlines, lambda points: apply_affine(grid.transform, points))
    centroids = shapely.get_coordinates(shapely.centroid(geometries))
    area_m2 = shapely.area(geometries) * square_metres_per_unit(grid.crs, centroids[:, 0], centroids[:, 1])
    confidence = polygons.prob_sum / (255.0 * polygons.pixels)
    count = len(polygons)
    table = gpd.GeoDataFrame(
        {
            "id": text_column(identifiers(polygons.first, grid.origin_pixel)),
            "geometry": geometries,
            "confidence": confidence,
            "area_in_meters": area_m2,
            "truncated": polygons.truncated,
            "regularized": np.zeros(count, np.bool_),
            "model": text_column([model] * count),
            "imagery": text_column(_each(imagery, count)),
            "datetime": text_column(_each(datetime, count)),
            **({} if low_trust is None else {"low_trust": low_trust}),
        },
        geometry="geometry",
        crs=grid.crs,
    )
    table = table if crs is None else reproject(table, CRS.from_user_input(crs))
    too_small, too_weak = area_m2 < min_area_m2, confidence < min_confidence
    is_rejected = too_small | too_weak
    rejected = table[is_rejected].reset_index(drop=True)
    reasons = np.where(too_small, "min_area", "min_confidence")[is_rejected]
    details = [
        f"area {_below(area, 2)} m2 < {min_area_m2:g} m2" if small else f"confidence {_below(sure, 4)} < {min_confidence:g}"
        for small, area, sure in zip(
            too_small[is_rejected].tolist(), area_m2[is_rejected].tolist(), confidence[is_rejected].tolist(), strict=True
        )
    ]
    rejected["reason"], rejected["detail"] = text_column(reasons.tolist()), text_column(details)
    rejected["layer"], rejected["layer_version"] = text_column([None] * len(rejected)), text_column([None] * len(rejected))
    rejected["covered_share"] = np.full(len(rejected), np.nan)
    return Finished(table[~is_rejected].reset_index(drop=True), rejected)


def overshoot_m(grid: Grid, simplify_m: float, grow_m: float) -> float:
    """How far, in metres, `finish` may place a footprint's outline beyond its pixels, with a pixel more for rounding."""
    return (overshoot(*_in_pixels(grid, simplify_m, grow_m)) + 1.0) * grid.pixel_m


def _in_pixels(grid: Grid, simplify_m: float, grow_m: float) -> tuple[float, float]:
    """The tolerance and the distance, in pixels, that outlines are simplified with and grown by."""
    pixel_m = grid.pixel_size * _metres_per_unit(grid.crs)
    tolerance = simplify_m / pixel_m
    return max(tolerance, STAIRS) if grow_m > 0 else tolerance, grow_m / pixel_m


def reproject(frame: gpd.GeoDataFrame, crs: CRS) -> gpd.GeoDataFrame:
    """Footprints in another coordinate system, vertex by vertex.

    Raises:
        ConfigError: That system cannot express some of them.
    """
    if frame.crs == crs:
        return frame
    transformer = Transformer.from_crs(frame.crs, crs, always_xy=True)
    moved = shapely.transform(np.asarray(frame.geometry.values), transformer.transform, interleaved=False)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise ConfigError(f"some footprints cannot be expressed in {crs.name}: choose a system that covers them")
    moved = meridian.split(moved) if crs.is_geographic else moved
    return frame.set_geometry(gpd.GeoSeries(moved, index=frame.index, crs=crs))


def identifiers(first: NDArray[np.int32], origin_pixel: tuple[int, int]) -> list[str]:
    """Identifiers (N,) from absolute first pixels: 8 hexadecimal digits of the row and 8 of the column, each plus 2**31.

    Counted from the origin of the coordinate system, so neither region nor raster nor tile enters, and text order is
    row-major order. Unique within one grid.

    Args:
        first: (N, 2) row, col in the grid's frame.
        origin_pixel: Absolute row, col of the grid's pixel (0, 0).
    """
    absolute = first.astype(np.int64) + np.array(origin_pixel, np.int64) + 2**31
    digits = np.ascontiguousarray(absolute, dtype=">u4").tobytes().hex()
    return [digits[at : at + 16] for at in range(0, len(digits), 16)]


def square_metres_per_unit(crs: CRS, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """True square metres on the ellipsoid per squared unit of a coordinate system, at points.

    The determinant of the projection's derivative, times the ellipsoid's area element M N cos(lat) (Snyder 1987, section
    4). The derivative is taken with the transformation itself: PROJ's own scale factors treat EPSG:3857 as a sphere.
    Area times this factor at the centroid is the ellipsoidal area to better than 1e-6 for anything of a building's size.

    Args:
        crs: Projected or geographic.
        x, y: (N,) points in `crs`, in (x, y) order.
    """
    geodetic = crs.geodetic_crs
    if geodetic is None or crs.ellipsoid is None:
        raise ConfigError(f"{crs.name} has no relation to the earth: areas cannot be measured in it")
    unit = geodetic.axis_info[0].unit_conversion_factor  # radians
    step = 1e-6 / unit if crs.is_geographic else 10.0 / _metres_per_unit(crs)
    to_geodetic = Transformer.from_crs(crs, geodetic, always_xy=True)
    longitudes, latitudes = to_geodetic.transform(
        np.concatenate([x - step, x + step, x, x]), np.concatenate([y, y, y - step, y + step])
    )
    lon, lat = np.asarray(longitudes).reshape(2, 2, -1) * unit, np.asarray(latitudes).reshape(2, 2, -1) * unit
    turn = (lon[:, 1] - lon[:, 0] + np.pi) % (2 * np.pi) - np.pi  # (2, N): along x, along y
    climb = lat[:, 1] - lat[:, 0]
    determinant = np.abs(turn[0] * climb[1] - turn[1] * climb[0]) / (2 * step) ** 2
    middle = lat.mean(axis=(0, 1))
    a, b = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
    flat = 1 - (1 - (b / a) ** 2) * np.sin(middle) ** 2
    result: NDArray[np.float64] = determinant * b**2 * np.cos(middle) / flat**2
    return result


def _metres_per_unit(crs: CRS) -> float:
    if not crs.is_projected:
        raise ConfigError(f"{crs.name} is not projected: a grid needs metres on the ground; choose a projected system")
    return float(crs.axis_info[0].unit_conversion_factor)


def text_column(values: list[Any]) -> Any:
    """A text column that stays one with no rows and with nothing known."""
    return pd.array(values, dtype=pd.StringDtype(na_value=np.nan))


def _each(texts: Texts, count: int) -> list[str | None]:
    return [texts] * count if texts is None or isinstance(texts, str) else list(texts)


def _below(value: float, digits: int) -> float:
    """Cut, not rounded: a value below a limit never reads as the limit."""
    return float(np.floor(value * 10**digits) / 10**digits)
