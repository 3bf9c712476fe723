"""Precision, recall and area agreement of footprints against true ones, in any coordinate system.

Rule for the border of the area of interest: both sides are clipped to it, and what is compared is what lies inside. A
footprint of which less than half lies inside counts when it finds a partner, and is ignored when it does not: its larger
part, which might have decided, was not looked at. The same on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoinfer.errors import ConfigError, RegionError
from geoinfer.evaluation.matching import Geometries, Pairs, match, pairs_of, shared_area

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

Matching = Literal["optimal", "spacenet"]

BORDER_SHARE = 0.5
"""Least share of a footprint inside the area of interest for it to count without a partner."""
SCALE_TOLERANCE = 0.01
"""How far a coordinate system's metre may be from a metre on the ground for areas to be measured in it."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How predicted footprints agree with true ones. A ratio of nothing to nothing is 1 if both sides are empty, else 0."""

    precision: float
    """tp / n_pred."""
    recall: float
    """tp / n_truth."""
    f1: float
    """2 tp / (n_pred + n_truth)."""
    tp: int
    """Pairs."""
    fp: int
    """Predictions without a partner."""
    fn: int
    """True footprints without a partner."""
    n_pred: int
    """tp + fp."""
    n_truth: int
    """tp + fn."""
    ignored_pred: int
    """Predictions at the border that were ignored."""
    ignored_truth: int
    """True footprints at the border that were ignored."""
    mean_iou: float
    """Mean IoU of the pairs; 0 where there are none."""
    pixel_iou: float
    """Area of both unions' intersection over the area of their union."""
    area_precision: float
    """Share of the predicted area that is true."""
    area_recall: float
    """Share of the true area that is predicted."""
    shared_area_m2: float
    """Area of both unions' intersection, square metres."""
    pred_area_m2: float
    """Area of the union of predictions, square metres."""
    truth_area_m2: float
    """Area of the union of true footprints, square metres."""
    aoi_area_m2: float | None
    """Area of the area of interest, square metres; None where none was given."""
    iou: float
    """The threshold."""
    matching: str
    """optimal or spacenet."""

    def to_dict(self) -> dict[str, float | int | str | None]:
        """All fields, ready for JSON."""
        return asdict(self)


def evaluate(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
) -> Evaluation:
    """Compare predicted footprints with true ones.

    Everything is computed in the truth's own coordinate system where its metre is a metre on the ground within 1 %, else in
    a Lambert azimuthal equal-area projection about the middle of the area of interest (or of the truth).

    Args:
        pred: Predicted polygons, with a coordinate system. Missing and empty geometries are no footprints.
        truth: True polygons, with a coordinate system, the same or another.
        aoi: Where the truth is complete. Without it everything counts.
        iou: Least intersection over union of a pair, above 0 and at most 1.
        matching: `optimal` (one to one, greatest total IoU, at or above `iou`) or `spacenet` (greedy in file order,
            strictly above `iou`).

    Raises:
        ConfigError: No coordinate system, a geometry that is no polygon, a threshold outside 0..1, an unknown matching.
        RegionError: The area of interest is empty, or lies outside the bounds of the truth.
    """
    sides = _match(pred, truth, aoi, iou, matching)
    guesses, facts, pairs = sides.pred, sides.truth, sides.pairs
    tp, n_pred, n_truth = len(pairs), int(guesses.counts.sum()), int(facts.counts.sum())
    pred_parts, truth_parts = dissolve(guesses.shapes), dissolve(facts.shapes)
    unit_m2 = sides.unit_m2
    pred_area, truth_area = (float(shapely.area(parts).sum() * unit_m2) for parts in (pred_parts, truth_parts))
    disjoint = pred_parts is guesses.shapes and truth_parts is facts.shapes  # the usual case: what is known already adds up
    shared = float((sides.overlap.shared_m2 if disjoint else shared_area(pred_parts, truth_parts)[2]).sum() * unit_m2)
    return _evaluation(
        tp, n_pred, n_truth,
        ignored=(int((~guesses.counts).sum()), int((~facts.counts).sum())),
        iou_sum=float(pairs.iou.sum()),
        areas_m2=(shared, pred_area, truth_area, sides.aoi_area_m2),
        iou=iou, matching=matching,
    )  # fmt: skip


def combine(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of several places together: counts and areas add up, ratios follow from them.

    Raises:
        ConfigError: There are none, or they were made with different settings.
    """
    if not parts or len({(part.iou, part.matching) for part in parts}) > 1:
        raise ConfigError("only evaluations of one threshold and one matching can be combined, and at least one")
    areas = [part.aoi_area_m2 for part in parts if part.aoi_area_m2 is not None]
    return _evaluation(
        sum(part.tp for part in parts), sum(part.n_pred for part in parts), sum(part.n_truth for part in parts),
        ignored=(sum(part.ignored_pred for part in parts), sum(part.ignored_truth for part in parts)),
        iou_sum=sum(part.mean_iou * part.tp for part in parts),
        areas_m2=(
            sum(part.shared_area_m2 for part in parts),
            sum(part.pred_area_m2 for part in parts),
            sum(part.truth_area_m2 for part in parts),
            sum(areas) if len(areas) == len(parts) else None,
        ),
        iou=parts[0].iou, matching=parts[0].matching,
    )  # fmt: skip


def _evaluation(
    tp: int,
    n_pred: int,
    n_truth: int,
    *,
    ignored: tuple[int, int],
    iou_sum: float,
    areas_m2: tuple[float, float, float, float | None],
    iou: float,
    matching: str,
) -> Evaluation:
    """Ratios from counts and areas."""
    shared, pred_area, truth_area, aoi_area = areas_m2
    both_empty, no_area = not n_pred + n_truth, not pred_area + truth_area
    return Evaluation(
        precision=_ratio(tp, n_pred, both_empty),
        recall=_ratio(tp, n_truth, both_empty),
        f1=_ratio(2 * tp, n_pred + n_truth, both_empty),
        tp=tp,
        fp=n_pred - tp,
        fn=n_truth - tp,
        n_pred=n_pred,
        n_truth=n_truth,
        ignored_pred=ignored[0],
        ignored_truth=ignored[1],
        mean_iou=iou_sum / tp if tp else 0.0,
        pixel_iou=_ratio(shared, pred_area + truth_area - shared, no_area),
        area_precision=_ratio(shared, pred_area, no_area),
        area_recall=_ratio(shared, truth_area, no_area),
        shared_area_m2=shared,
        pred_area_m2=pred_area,
        truth_area_m2=truth_area,
        aoi_area_m2=aoi_area,
        iou=iou,
        matching=matching,
    )


def outcomes(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
) -> tuple[list[str], list[str]]:
    """What `evaluate` made of each row.

    Returns:
        For each row of `pred` tp, fp or ignored; for each row of `truth` tp, fn or ignored. Rows outside the area of
        interest and rows without a polygon are ignored.
    """
    sides = _match(pred, truth, aoi, iou, matching)
    return sides.pred.names(len(pred), sides.pairs.pred, "fp"), sides.truth.names(len(truth), sides.pairs.truth, "fn")


@dataclass(frozen=True, slots=True)
class _Side:
    """The footprints of one side that take part."""

    shapes: Geometries
    """(N,) valid polygons in the common plane, clipped to the area of interest."""
    rows: NDArray[np.int64]
    """(N,) the row each came from."""
    counts: NDArray[np.bool_]
    """(N,) it counts: more than half of it is inside, or it has a partner."""

    def names(self, rows: int, partnered: NDArray[np.int64], alone: str) -> list[str]:
        """One word for each row of the table."""
        words = np.full(rows, "ignored", dtype=object)
        words[self.rows[self.counts]] = alone
        words[self.rows[partnered]] = "tp"
        return [str(word) for word in words]


@dataclass(frozen=True, slots=True)
class _Match:
    """Both sides in one plane, and who is whose partner."""

    pred: _Side
    truth: _Side
    overlap: Pairs
    """All that share area."""
    pairs: Pairs
    """Partners."""
    aoi_area_m2: float | None
    unit_m2: float
    """Square metres on the ground of a unit of area in the plane."""


def _match(
    pred: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries,
    aoi: GeoDataFrame | GeoSeries | None,
    iou: float,
    matching: Matching,
) -> _Match:
    if not 0 < iou <= 1:
        raise ConfigError(f"iou {iou}: must be above 0 and at most 1")
    if matching not in ("optimal", "spacenet"):
        raise ConfigError(f"matching {matching!r} is unknown; use optimal or spacenet")
    for name, table in (("pred", pred), ("truth", truth), ("aoi", aoi)):
        if table is not None and table.crs is None:
            raise ConfigError(f"{name} has no coordinate system; set it with set_crs()")
    crs, unit_m2 = plane_of(
        next((table for table in (aoi, truth, pred) if table is not None and len(table)), truth), truth.crs
    )
    guesses, facts = _polygons(pred, crs, "pred"), _polygons(truth, crs, "truth")
    aoi_area = None
    if aoi is not None:
        area = shapely.union_all(_polygons(aoi, crs, "aoi").shapes)
        if area.is_empty:
            raise RegionError("the area of interest is empty; give at least one polygon")
        # An area without a building is an answer; one far from all the truth is a mistake.
        if len(facts.shapes) and not shapely.box(*shapely.total_bounds(facts.shapes)).intersects(shapely.box(*area.bounds)):
            raise RegionError(
                f"the area of interest {_box(aoi)} has nothing in common with the true footprints {_box(truth)}"
            )
        guesses, facts = _clip(guesses, area), _clip(facts, area)
        aoi_area = float(area.area * unit_m2)
    overlap = pairs_of(guesses.shapes, facts.shapes)
    pairs = match(overlap, iou, matching)
    guesses.counts[pairs.pred] = True
    facts.counts[pairs.truth] = True
    return _Match(guesses, facts, overlap, pairs, aoi_area, unit_m2)


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


def dissolve(polygons: Geometries) -> Geometries:
    """Polygons of the same union of which no two share area: overlapping ones become one.

    Far cheaper than one union of everything, and partners need only meet their neighbours afterwards.
    """
    first, second, _ = shared_area(polygons, polygons, ordered=True)
    if not len(first):
        return polygons
    group = np.arange(len(polygons))
    while True:  # the smallest index spreads over each overlapping group
        before = group.copy()
        smaller = np.minimum(group[first], group[second])
        np.minimum.at(group, first, smaller)
        np.minimum.at(group, second, smaller)
        group = group[group]
        if (group == before).all():
            break
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    merged = [
        polygons[part[0]] if len(part) == 1 else shapely.union_all(polygons[part]) for part in np.split(order, starts[1:])
    ]
    return np.array(merged, dtype=object)


def _polygons(table: GeoDataFrame | GeoSeries, crs: CRS, name: str) -> _Side:
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
    real = shapely.area(shapes) > 0
    return _Side(shapes[real], rows[real], np.ones(int(real.sum()), bool))


def _clip(side: _Side, area: shapely.Geometry) -> _Side:
    """What lies inside an area, and of which footprints that is at least half."""
    shapely.prepare(area)
    near = shapely.intersects(side.shapes, area)
    shapes = side.shapes[near]
    across = ~shapely.contains_properly(area, shapes)
    inside = shapes.copy()
    inside[across] = shapely.intersection(shapes[across], area)
    share = shapely.area(inside) / shapely.area(shapes)
    kept = share > 0
    return _Side(inside[kept], side.rows[near][kept], share[kept] >= BORDER_SHARE)


def _ratio(part: float, whole: float, both_empty: bool) -> float:
    return float(part / whole) if whole else float(both_empty)


def _box(table: GeoDataFrame | GeoSeries) -> str:
    west, south, east, north = table.total_bounds
    return f"[{west:.6g}, {south:.6g}, {east:.6g}, {north:.6g}] ({table.crs})"
