"""Predicted and true footprints brought together: one plane, one area of interest, and who is whose partner.

Rule for the border of the area of interest: both sides are clipped to it, and what is compared is what lies inside. A
footprint of which less than half lies inside counts when it finds a partner, and is ignored when it does not: its larger
part, which might have decided, was not looked at. The same on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, RegionError
from geoinfer.evaluation.matching import ROUNDING, Pairs, match, pairs_of
from geoinfer.evaluation.outlines import Geometries
from geoinfer.masks.repair import polygonal

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

Matching = Literal["optimal", "spacenet"]

BORDER_SHARE = 0.5
"""Least share of a footprint inside the area of interest for it to count without a partner."""
SCALE_TOLERANCE = 0.01
"""How far a coordinate system's metre may be from a metre on the ground for areas to be measured in it."""


@dataclass(frozen=True, slots=True)
class Side:
    """The footprints of one side that take part."""

    shapes: Geometries
    """(N,) valid polygons in the common plane, clipped to the area of interest."""
    rows: NDArray[np.int64]
    """(N,) the row each came from."""
    counts: NDArray[np.bool_]
    """(N,) it counts: at least half of it is inside or, once partners are found, it has one."""
    area: NDArray[np.float64]
    """(N,) in units of the plane."""
    cut: NDArray[np.bool_]
    """(N,) the border of the area of interest cut its outline."""
    left_out: int
    """Rows without a polygon: missing, empty or of no area."""
    repaired: int
    """Polygons that were invalid."""

    def names(self, rows: int, partnered: NDArray[np.int64], alone: str) -> list[str]:
        """One word for each row of the table."""
        words = np.full(rows, "ignored", dtype=object)
        words[self.rows[self.counts]] = alone
        words[self.rows[partnered]] = "tp"
        return [str(word) for word in words]

    def notes(self, name: str) -> list[str]:
        """What was left out or repaired, in words."""
        left_out = [f"{name}: {self.left_out} rows have no polygon and were left out"] if self.left_out else []
        repaired = [f"{name}: {self.repaired} invalid polygons were repaired"] if self.repaired else []
        return left_out + repaired

    def with_partners(self, partnered: NDArray[np.int64], among: NDArray[np.bool_] | None = None) -> Side:
        """The same side when some have a partner, and only those `among` (N,) take part."""
        counts = self.counts.copy() if among is None else self.counts & among
        counts[partnered] = True
        return replace(self, counts=counts)


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides in one plane, before partners are found."""

    pred: Side
    truth: Side
    overlap: Pairs
    """All that share area."""
    aoi: BaseGeometry | None
    """The area of interest; None where none was given."""
    plane: CRS
    unit_m2: float
    """Square metres on the ground of a unit of area in the plane."""

    @property
    def aoi_area_m2(self) -> float | None:
        """Of the area of interest, on the ground."""
        return None if self.aoi is None else float(self.aoi.area * self.unit_m2)


@dataclass(frozen=True, slots=True)
class Partners:
    """Who is whose partner, and who counts then."""

    pred: Side
    truth: Side
    pairs: Pairs

    @property
    def numbers(self) -> tuple[int, int, int]:
        """tp, n_pred, n_truth of an `Evaluation`."""
        return len(self.pairs), int(self.pred.counts.sum()), int(self.truth.counts.sum())


def sides_of(pred: GeoDataFrame | GeoSeries, truth: GeoDataFrame | GeoSeries, aoi: GeoDataFrame | GeoSeries | None) -> Sides:
    """Bring both sides into one plane, inside the area of interest, and intersect them; raises what `evaluate` raises."""
    for name, table in (("pred", pred), ("truth", truth), ("aoi", aoi)):
        if table is not None and table.crs is None:
            raise ConfigError(f"{name} has no coordinate system; set it with set_crs()")
    crs, unit_m2 = plane_of(
        next((table for table in (aoi, truth, pred) if table is not None and len(table)), truth), truth.crs
    )
    guesses, facts = polygons_of(pred, crs, "pred"), polygons_of(truth, crs, "truth")
    area = None
    if aoi is not None:
        area = shapely.union_all(polygons_of(aoi, crs, "aoi").shapes)
        if area.is_empty:
            raise RegionError("the area of interest is empty; give at least one polygon")
        # An area without a building is an answer; one far from all the truth is a mistake.
        if len(facts.shapes) and not shapely.box(*shapely.total_bounds(facts.shapes)).intersects(shapely.box(*area.bounds)):
            raise RegionError(
                f"the area of interest {_box(aoi)} has nothing in common with the true footprints {_box(truth)}"
            )
        guesses, facts = _clip(guesses, area), _clip(facts, area)
    return Sides(guesses, facts, pairs_of(guesses.shapes, facts.shapes), area, crs, unit_m2)


def find_partners(sides: Sides, iou: float, matching: Matching, kept: NDArray[np.bool_] | None = None) -> Partners:
    """Match both sides: what `evaluate` does when only some of the predicted rows were there.

    Args:
        sides: All of both.
        iou: Threshold.
        matching: As for `evaluate`.
        kept: Which rows of the predicted table take part; all where None.

    Raises:
        ConfigError: A threshold outside 0..1, an unknown matching.
    """
    check_matching(iou, matching)
    overlap, among = sides.overlap, None
    if kept is not None:
        among = kept[sides.pred.rows]
        overlap = overlap.take(among[overlap.pred])
    pairs = match(overlap, iou, matching)
    return Partners(sides.pred.with_partners(pairs.pred, among), sides.truth.with_partners(pairs.truth), pairs)


def check_matching(iou: float, matching: str) -> None:
    """Both are what they may be.

    Raises:
        ConfigError: A threshold outside 0..1, an unknown matching.
    """
    if not 0 < iou <= 1:
        raise ConfigError(f"iou {iou}: must be above 0 and at most 1")
    if matching not in ("optimal", "spacenet"):
        raise ConfigError(f"matching {matching!r} is unknown; use optimal or spacenet")


def plane_of(where: GeoDataFrame | GeoSeries, wanted: CRS) -> tuple[CRS, float]:
    """The plane to measure areas in: `wanted` if its metre is one on the ground about there, else an equal-area one.

    An IoU is a ratio of areas next to each other, so staying in the truth's own plane keeps exact what is exact there.

    Returns:
        The plane, and how many square metres on the ground its unit of area is about there.
    """
    wanted = CRS(wanted)
    bounds = where.total_bounds
    if not np.isfinite(bounds).all():
        return CRS.from_epsg(6933), 1.0  # nothing to measure: any equal-area plane will do
    middle = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    if wanted.is_projected:
        x, y = Transformer.from_crs(where.crs, wanted, always_xy=True).transform(*middle)
        unit_m2 = _ground_area(wanted, x, y)
        if np.isfinite(unit_m2) and abs(unit_m2 - 1) <= 2 * SCALE_TOLERANCE:
            return wanted, unit_m2
    lon, lat = Transformer.from_crs(where.crs, "EPSG:4326", always_xy=True).transform(*middle)
    return CRS.from_proj4(f"+proj=laea +lat_0={lat:.6f} +lon_0={lon:.6f} +datum=WGS84 +units=m"), 1.0


def _ground_area(crs: CRS, x: float, y: float) -> float:
    """Square metres on the ellipsoid of a unit of area at a point of a plane.

    By the ellipsoidal area of a small square: PROJ's own factors take the ellipsoid of EPSG:3857 for a sphere.
    """
    half = 50.0
    geod = crs.get_geod()
    if geod is None or crs.geodetic_crs is None:
        return float("nan")  # a plane that is nowhere on Earth
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform([x - half, x + half, x + half, x - half], [y - half, y - half, y + half, y + half])
    area, _ = geod.polygon_area_perimeter(lon, lat)
    return abs(float(area)) / (2 * half) ** 2


def polygons_of(table: GeoDataFrame | GeoSeries, crs: CRS, name: str) -> Side:
    """The valid polygons of a table, in a plane."""
    every: Geometries = np.asarray(table.geometry.to_crs(crs).array, dtype=object)
    rows = np.flatnonzero(~(shapely.is_missing(every) | shapely.is_empty(every)))
    shapes = every[rows]
    wrong = np.flatnonzero(~np.isin(shapely.get_type_id(shapes), (3, 6)))
    if len(wrong):
        raise ConfigError(f"{name}: {shapes[wrong[0]].geom_type} is no footprint; only polygons can be compared")
    if not np.isfinite(shapely.bounds(shapes)).all():
        raise ConfigError(f"{name}: some coordinates cannot be projected about there; is its coordinate system right?")
    bad = ~shapely.is_valid(shapes)
    if bad.any():
        shapes[bad] = shapely.make_valid(shapes[bad], method="structure", keep_collapsed=False)
    area = shapely.area(shapes)
    real = area > 0
    count = int(real.sum())
    return Side(
        shapes[real], rows[real], np.ones(count, bool), area[real], np.zeros(count, bool),
        left_out=len(every) - count, repaired=int((bad & real).sum()),
    )  # fmt: skip


def _clip(side: Side, area: shapely.Geometry) -> Side:
    """What lies inside an area, and of which footprints that is at least half."""
    shapely.prepare(area)
    near = shapely.intersects(side.shapes, area)
    shapes = side.shapes[near]
    across = ~shapely.contains_properly(area, shapes)
    inside = shapes.copy()
    inside[across] = polygonal(shapely.intersection(shapes[across], area))  # no lines where outlines run along each other
    size, whole = shapely.area(inside), side.area[near]
    kept = size > 0
    return Side(
        inside[kept], side.rows[near][kept], (size / whole >= BORDER_SHARE)[kept], size[kept],
        # one that touches the border from inside keeps its outline
        cut=(across & (size < whole * (1 - ROUNDING)))[kept],
        left_out=side.left_out, repaired=side.repaired,
    )  # fmt: skip


def _box(table: GeoDataFrame | GeoSeries) -> str:
    west, south, east, north = table.total_bounds
    return f"[{west:.6g}, {south:.6g}, {east:.6g}, {north:.6g}] ({table.crs})"
