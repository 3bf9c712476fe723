"""Longitudes that run over the antimeridian, and rings around a pole, as polygons between -180 and 180 degrees.

RFC 7946, section 3.1.9: what crosses the antimeridian is cut there. A ring whose corners jump by more than half a turn went
the short way; unrolled it is a plain ring, or it ends a turn away from where it began, and then a pole lies inside. Knows
degrees of longitude and latitude, and nothing about coordinate systems or files.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
import shapely.affinity
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

TURN = 360.0


def split(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """(N,) geometries in degrees, x before y; those whose edges jump across the antimeridian are cut there.

    All others stay as they are, the very objects. No edge may truly be longer than half a turn, which holds for whatever was
    projected with its edges cut fine enough. Polygons and multipolygons only; others stay.
    """
    bounds = shapely.bounds(geometries).reshape(-1, 4)
    wide = np.flatnonzero(bounds[:, 2] - bounds[:, 0] > TURN / 2)  # nothing narrower can jump by half a turn
    crossing = [at for at in wide.tolist() if _jumps(geometries[at])]
    if not crossing:
        return geometries
    cut = geometries.copy()
    for at in crossing:
        cut[at] = _cut(geometries[at])
    return cut


def near(geometry: BaseGeometry, centre: float) -> BaseGeometry:
    """What of a geometry lies within half a turn of a longitude, with its longitudes around that one.

    Copies of it turns to the west and to the east are looked at, so 170..190 and 170..-170 are one.
    """
    window = shapely.box(centre - TURN / 2, -90.0, centre + TURN / 2, 90.0)
    minx, _, maxx, _ = geometry.bounds
    first, last = np.ceil((centre - TURN / 2 - maxx) / TURN), np.floor((centre + TURN / 2 - minx) / TURN)
    turns = np.arange(first, last + 1) * TURN
    copies = [shapely.affinity.translate(geometry, xoff=turn) if turn else geometry for turn in turns.tolist()]
    return shapely.union_all([shapely.intersection(copy, window) for copy in copies])


def wrap(x: NDArray[np.float64], centre: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes within half a turn of a centre, or each of its own."""
    return (x - centre + TURN / 2) % TURN - TURN / 2 + centre


def _jumps(geometry: BaseGeometry) -> bool:
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        return False
    rings = shapely.get_rings(shapely.get_parts(geometry))
    return any(bool((np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])) > TURN / 2).any()) for ring in rings)


def _cut(geometry: BaseGeometry) -> BaseGeometry:
    parts = []
    for part in shapely.get_parts(geometry):
        outer, *holes = (_filled(ring) for ring in shapely.get_rings(part))
        parts.append(shapely.difference(outer, shapely.union_all(holes)) if holes else outer)
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]


def _filled(ring: BaseGeometry) -> BaseGeometry:
    """The inside of one ring, within -180..180."""
    x, y = shapely.get_coordinates(ring).T
    steps = wrap(np.diff(x), 0.0)
    x = x[0] + np.concatenate([[0.0], np.cumsum(steps)])
    if abs(x[-1] - x[0]) < TURN / 2:
        return near(_valid(x, y), 0.0)
    pole = 90.0 if y.mean() > 0 else -90.0  # around the nearer one: closed along its parallel, far outside what is looked at
    turn = math.copysign(TURN, x[-1] - x[0])
    x = wrap(x[0], 0.0) - x[0] + x
    x, y = np.concatenate([x[:-1] - turn, x[:-1], x + turn]), np.concatenate([y[:-1], y[:-1], y])
    around = _valid(np.append(x, [x[-1], x[0]]), np.append(y, [pole, pole]))
    return shapely.intersection(around, shapely.box(-TURN / 2, -90.0, TURN / 2, 90.0))


def _valid(x: NDArray[np.float64], y: NDArray[np.float64]) -> BaseGeometry:
    return shapely.make_valid(shapely.Polygon(np.column_stack([x, y])), method="structure", keep_collapsed=False)
