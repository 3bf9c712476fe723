"""From any geometries to valid flat polygons: each for itself, repaired or counted by the reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

_LARGEST = 1e9
"""Coordinates beyond it are no place on the earth in any unit, and products of them lose all digits."""
_POLYGONAL = (3, 6)
_COLLECTION = 7


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """Polygons and MultiPolygons, valid, without Z and M."""

    shapes: NDArray[np.object_]
    """(N,) none empty, none without area."""
    index: NDArray[np.int64]
    """(N,) which of the geometries given each one is."""
    repaired: int
    """Of these were not valid, or held more than polygons."""
    dropped: Counter[str]
    """Reason (empty, not_polygon, not_finite, no_area) -> geometries."""


def repair(shapes: NDArray[np.object_]) -> Repaired:
    """Make geometries valid by the structure of their rings (shells joined, holes cut out), and keep what has an area.

    A bow-tie becomes two triangles, a hole outside its shell a polygon of its own. A coordinate that is no number cannot be
    guessed: such a feature is dropped.

    Args:
        shapes: (N,) geometries of any kind, none of them None.
    """
    index = np.arange(len(shapes))
    dropped: Counter[str] = Counter()

    def leave(bad: NDArray[np.bool_], reason: str) -> None:
        nonlocal shapes, index
        if bad.any():
            dropped[reason] += int(bad.sum())
            shapes, index = shapes[~bad], index[~bad]

    leave(shapely.is_empty(shapes), "empty")
    kinds = shapely.get_type_id(shapes)
    leave(~np.isin(kinds, (*_POLYGONAL, _COLLECTION)), "not_polygon")
    leave(_has_wild_coordinates(shapes), "not_finite")
    if (shapely.has_z(shapes) | shapely.has_m(shapes)).any():
        shapes = shapely.force_2d(shapes)
    mixed = shapely.get_type_id(shapes) == _COLLECTION
    if mixed.any():
        shapes = shapes.copy()
        shapes[mixed] = [_polygons_in(shape) for shape in shapes[mixed]]
        bad = shapely.is_empty(shapes)
        mixed = mixed[~bad]
        leave(bad, "not_polygon")
    broken = ~shapely.is_valid(shapes)
    if broken.any():
        shapes = shapes.copy()
        shapes[broken] = [_polygons_in(shape) for shape in each(_make_valid, shapes[broken])]
    bad = ~(shapely.area(shapes) > 0)
    repaired = int(((broken | mixed) & ~bad).sum())
    leave(bad, "no_area")
    return Repaired(shapes, index, repaired, dropped)


def polygonal(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """(N,) the polygons of each: the points and lines where two shapes only touch fall away."""
    other = ~np.isin(shapely.get_type_id(shapes), _POLYGONAL)
    if other.any():
        shapes = shapes.copy()
        shapes[other] = [_polygons_in(shape) for shape in shapes[other]]
    return shapes


def valid(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """(N,) polygons made valid again, where rounding or a projection let rings touch."""
    broken = ~shapely.is_valid(shapes)
    if broken.any():
        shapes = shapes.copy()
        shapes[broken] = [_polygons_in(shape) for shape in each(_make_valid, shapes[broken])]
    return shapes


def each(function: Callable[..., Any], *arguments: NDArray[np.object_]) -> NDArray[np.object_]:
    """A GEOS function on arrays; where GEOS gives up on one geometry, that one alone becomes an empty polygon."""
    try:
        result: NDArray[np.object_] = function(*arguments)
        return result
    except shapely.errors.GEOSException:
        result = np.empty(len(arguments[0]), object)
        for place, values in enumerate(zip(*arguments, strict=True)):
            try:
                result[place] = function(*values)
            except shapely.errors.GEOSException:
                result[place] = shapely.Polygon()
        return result


def _make_valid(shapes: Any) -> Any:
    return shapely.make_valid(shapes, method="structure", keep_collapsed=False)


def _has_wild_coordinates(shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
    coords, owner = shapely.get_coordinates(shapes, return_index=True)
    wild = ~(np.abs(coords) < _LARGEST).all(axis=1)  # NaN compares as false
    result = np.zeros(len(shapes), np.bool_)
    result[owner[wild]] = True
    return result


def _polygons_in(shape: Any) -> Any:
    """The polygons of a geometry, joined where they are several of a collection."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = shapely.get_parts(shape)
    while any(part.geom_type not in ("Polygon", "Point", "LineString", "LinearRing") for part in parts):
        parts = shapely.get_parts(parts)
    polygons = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    if not polygons:
        return shapely.Polygon()
    return polygons[0] if len(polygons) == 1 else shapely.union_all(_make_valid(np.array(polygons, object)))
