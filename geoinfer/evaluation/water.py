"""False positives in water: where nothing true can stand, and what a mask layer would have kept out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.evaluation.matching import shared_area
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.sides import polygons_of
from geoinfer.evaluation.unions import dissolve
from geoinfer.masks.lattice import cut
from geoinfer.masks.meter import INSIDE
from geoinfer.masks.repair import polygonal

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries


def false_in_water(objects: Objects, water: GeoDataFrame | GeoSeries) -> tuple[NDArray[np.int64], float]:
    """The false positives that lie in water, by more than half as everywhere in geoinfer, and how much water there is.

    Args:
        objects: The comparison, with an area of interest.
        water: Polygons, any coordinate system; they may overlap.

    Returns:
        Positions in `Objects.pred`, and the area of the water within the area of interest, square metres.

    Raises:
        ConfigError: The water has no coordinate system, or is no polygons.
    """
    assert objects.aoi is not None
    if water.crs is None:
        raise ConfigError("water has no coordinate system; set it with set_crs()")
    shapes = polygons_of(water, objects.plane, "water").shapes
    near = shapes[shapely.intersects(shapes, objects.aoi)]
    inside = polygonal(shapely.intersection(near, objects.aoi))
    wet = dissolve(inside[shapely.area(inside) > 0])
    guesses = np.asarray(objects.pred.geometry.array, dtype=object)
    false = np.flatnonzero(objects.pred["outcome"].to_numpy() == "fp")
    _, pieces = cut(wet, np.array([objects.aoi.bounds]))  # a shore of 100 000 vertices would be walked for each footprint
    at, _, shared = shared_area(guesses[false], pieces)
    covered = np.bincount(at, shared, len(false)) > INSIDE * shapely.area(guesses[false])
    return false[covered], float(shapely.area(wet).sum() * objects.unit_m2)
