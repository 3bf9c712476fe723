"""Every metric of one comparison, each with its unit, its source and the number of things it was computed from.

All but average precision are ratios of two sums over footprints (`Terms`), so that slices add up to the whole and blocks of
ground can be drawn anew. A pair counts where its true footprint is, a false positive and a miss where they are.

The shapes of a pair are compared only where neither outline was cut at the border of the area of interest: the cut would be
the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation import shapes
from geoinfer.evaluation.matching import PARTITION, Indices
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.outlines import Geometries, outlines_of
from geoinfer.evaluation.ranking import IOUS, average_precision
from geoinfer.evaluation.water import false_in_water

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

Floats = NDArray[np.float64]

BOUNDARY_M = 1.0
"""Width of the boundary in `boundary_iou`, metres: two or three pixels of imagery that shows houses."""

HOOVER = "Hoover et al. 1996, over- and under-segmentation at a tolerance of 0.5"
COCO = "Lin et al. 2014 (COCO), 101 recalls"
SPECS: dict[str, tuple[str, str]] = {
    "precision": ("", "tp / (tp + fp)"),
    "recall": ("", "tp / (tp + fn)"),
    "f1": ("", "2 tp / (2 tp + fp + fn), van Rijsbergen 1979"),
    "ap": ("", f"{COCO}, mean over IoU 0.5:0.05:0.95"),
    "ap50": ("", f"{COCO}, IoU 0.5"),
    "ap75": ("", f"{COCO}, IoU 0.75"),
    "pixel_iou": ("", "Jaccard 1912, exact areas of both unions"),
    "pixel_precision": ("", "shared area / predicted area"),
    "pixel_recall": ("", "shared area / true area"),
    "boundary_iou": ("", f"Cheng et al. 2021, d = {BOUNDARY_M:g} m, mean over pairs"),
    "polis_m": ("m", "Avbelj, Müller and Bamler 2015, mean over pairs"),
    "hausdorff_m": ("m", "Huttenlocher, Klanderman and Rucklidge 1993, mean over pairs"),
    "offset_x_m": ("m", "centroid of the prediction minus that of the truth, mean over pairs"),
    "offset_y_m": ("m", "centroid of the prediction minus that of the truth, mean over pairs"),
    "offset_m": ("m", "distance of the centroids, mean over pairs"),
    "rotation_error_deg": ("deg", "Mardia and Jupp 2000, circular mean of edges modulo 90 degrees; mean over pairs"),
    "area_bias": ("", "predicted area / true area of pairs - 1"),
    "vertex_ratio": ("", "Zorzi et al. 2022 (PolyWorld), N-ratio without vertices on straight edges, over pairs"),
    "split_rate": ("", f"{HOOVER}; share of true footprints"),
    "merge_rate": ("", f"{HOOVER}; share of predictions"),
    "fp_per_km2": ("1/km2", "false positives / area of interest"),
    "fp_per_km2_water": ("1/km2", "false positives that lie by more than half in water / water in the area of interest"),
}
"""Name -> unit and source, in order."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric."""

    value: float | None
    """None where it cannot be computed; `note` then says why."""
    n: int
    """Footprints or pairs that it was computed from; 0 where there are none."""
    unit: str
    """"", m, deg or 1/km2."""
    source: str
    """Where the formula is from."""
    low: float | None = None
    """Lower end of the interval, where one was computed."""
    high: float | None = None
    """Upper end."""
    note: str | None = None
    """What a reader must know, or why there is no value."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A metric as a ratio of two sums: value = sum(numerator) / sum(denominator) - less."""

    numerator: Floats
    """(P + T,) one a row of `Objects.pred`, then one a row of `Objects.truth`."""
    denominator: Floats | float
    """(P + T,), or a fixed amount (an area)."""
    n: int
    """What it rests on: footprints or pairs."""
    less: float = 0.0
    note: str | None = None

    @property
    def value(self) -> float | None:
        """The metric; None where there is nothing to divide by."""
        whole = float(np.sum(self.denominator))
        return float(self.numerator.sum()) / whole - self.less if whole else None


def measures(
    objects: Objects, water: GeoDataFrame | GeoSeries | None = None, *, known: dict[str, Terms] | None = None
) -> dict[str, Measure]:
    """All metrics by name, in the order of `SPECS`.

    precision, recall, f1: footprints with and without a partner. ap, ap50, ap75: see `ranking`. pixel_iou, pixel_precision,
    pixel_recall: areas of both unions. boundary_iou, polis_m, hausdorff_m, offset_x_m, offset_y_m, offset_m,
    rotation_error_deg, vertex_ratio: see `shapes`, over pairs that the border did not cut. area_bias: over the same pairs.
    split_rate, merge_rate: see `objects`. fp_per_km2, fp_per_km2_water: need an area of interest, and water.

    Where one side is empty, precision, recall, f1 and the pixel metrics follow the rule of `Evaluation` and say so in their
    note; all others are None.

    Args:
        objects: The comparison.
        water: Polygons of water, any coordinate system.
        known: What `terms` gave, where it was asked already.

    Raises:
        ConfigError: The water has no coordinate system, or is no polygons.
    """
    found = terms(objects, water) if known is None else known
    total, result = objects.evaluation, {}
    ruled = {
        "precision": total.precision, "recall": total.recall, "f1": total.f1, "pixel_iou": total.pixel_iou,
        "pixel_precision": total.area_precision, "pixel_recall": total.area_recall,
    }  # fmt: skip
    average = _average_precision(objects)
    for name, (unit, source) in SPECS.items():
        if name in average:
            value, n, note = average[name]
        else:
            one = found[name]
            value, n, note = one.value, one.n, one.note
        if value is None and name in ruled:
            value = ruled[name]
            note = "both sides are empty: 1 by rule" if value else "nothing to divide by: 0 by rule"
        elif name in ruled:
            value = ruled[name]  # to the last digit what `evaluate` says
        if value is None:
            n, note = 0, note or "no pairs to compare"
        result[name] = Measure(value, n, unit, source, note=note)
    return result


def terms(objects: Objects, water: GeoDataFrame | GeoSeries | None = None) -> dict[str, Terms]:
    """The metrics that are ratios of sums over footprints, by name; see `measures` for what each is.

    Args:
        objects: The comparison.
        water: Polygons of water, any coordinate system.

    Raises:
        ConfigError: The water has no coordinate system, or is no polygons.
    """
    return dict([*_counts(objects), *_areas(objects), *_shapes(objects), *_densities(objects, water)])


Named = Iterator[tuple[str, Terms]]


def _counts(objects: Objects) -> Named:
    pred, truth, pairs = objects.pred, objects.truth, objects.pairs
    before = len(pred)
    tp = np.zeros(before + len(truth))
    tp[before + pairs.truth] = 1.0
    fp = np.append(pred["outcome"] == "fp", np.zeros(len(truth))).astype(np.float64)
    fn = np.append(np.zeros(before), truth["outcome"] == "fn").astype(np.float64)
    n_pred, n_truth = objects.evaluation.n_pred, objects.evaluation.n_truth
    yield "precision", Terms(tp, tp + fp, n_pred)
    yield "recall", Terms(tp, tp + fn, n_truth)
    yield "f1", Terms(2 * tp, 2 * tp + fp + fn, n_pred + n_truth)
    split = np.append(np.zeros(before), truth["is_split"] & (truth["outcome"] != "ignored")).astype(np.float64)
    yield "split_rate", Terms(split, tp + fn, n_truth, note=None if n_truth else "no true footprints")
    merge = np.append(pred["is_merge"] & (pred["outcome"] == "fp"), np.zeros(len(truth))).astype(np.float64)
    merge[before + pairs.truth] = pred["is_merge"].to_numpy()[pairs.pred]
    yield "merge_rate", Terms(merge, tp + fp, n_pred, note=None if n_pred else "no predictions")


def _areas(objects: Objects) -> Named:
    pred, truth = objects.pred, objects.truth
    shared = np.append(pred["shared_m2"], np.zeros(len(truth)))
    guessed = np.append(pred["union_m2"], np.zeros(len(truth)))
    true = np.append(np.zeros(len(pred)), truth["union_m2"])
    yield "pixel_iou", Terms(shared, guessed + true - shared, len(pred) + len(truth))
    yield "pixel_precision", Terms(shared, guessed, len(pred))
    yield "pixel_recall", Terms(shared, true, len(truth))


def _shapes(objects: Objects) -> Named:
    """Over the pairs whose outlines are whole."""
    pairs, before = objects.pairs, len(objects.pred)
    whole = ~(objects.pred["is_cut"].to_numpy()[pairs.pred] | objects.truth["is_cut"].to_numpy()[pairs.truth])
    pairs = pairs.take(whole)
    guesses, facts = (np.asarray(side.geometry.array, dtype=object) for side in (objects.pred, objects.truth))
    found = compare_pairs(guesses[pairs.pred], facts[pairs.truth], float(np.sqrt(objects.unit_m2)))
    cut = int((~whole).sum())
    note = f"{cut} pairs that the border of the area of interest cuts are left out" if cut else None

    def at(values: Floats) -> Floats:
        spread = np.zeros(before + len(objects.truth))
        spread[before + pairs.truth] = values
        return spread

    over = {"area_bias": found["truth_m2"], "vertex_ratio": found["truth_corners"]}
    parts = {"area_bias": found["pred_m2"], "vertex_ratio": found["pred_corners"]}
    for name in ("boundary_iou", "polis_m", "hausdorff_m", "offset_x_m", "offset_y_m", "offset_m"):
        over[name], parts[name] = np.ones(len(pairs)), found[name]
    for name, numerator in parts.items():
        yield name, Terms(at(numerator), at(over[name]), len(pairs), float(name == "area_bias"), note)
    turned = found["rotation_error_deg"]
    clear = np.isfinite(turned)
    if not clear.all():
        unclear = f"{int((~clear).sum())} pairs without a dominant direction are left out"
        note = f"{note}; {unclear}" if note else unclear
    yield (
        "rotation_error_deg",
        Terms(at(np.where(clear, turned, 0.0)), at(clear.astype(np.float64)), int(clear.sum()), note=note),
    )


def compare_pairs(pred: Geometries, truth: Geometries, metre: float = 1.0) -> dict[str, Floats]:
    """How the outlines of pairs differ, one value a pair; a partition at a time, which bounds the memory.

    Args:
        pred: (N,) polygons in a plane.
        truth: (N,) their partners.
        metre: Metres on the ground of a unit of length in the plane.

    Returns:
        (N,) each: boundary_iou, polis_m, hausdorff_m, offset_x_m, offset_y_m, offset_m, rotation_error_deg (NaN where one of
        both has no dominant direction), pred_m2, truth_m2, pred_corners, truth_corners.
    """
    parts = [
        _compare(pred[start : start + PARTITION], truth[start : start + PARTITION], metre)
        for start in range(0, max(len(pred), 1), PARTITION)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _compare(pred: Geometries, truth: Geometries, metre: float) -> dict[str, Floats]:
    a, b = outlines_of(pred), outlines_of(truth)
    x, y = shapes.centroid_offset(pred, truth)
    return {
        "boundary_iou": shapes.boundary_iou(pred, truth, BOUNDARY_M / metre),
        "polis_m": shapes.polis(a, b) * metre,
        "hausdorff_m": shapes.hausdorff(a, b) * metre,
        "offset_x_m": x * metre,
        "offset_y_m": y * metre,
        "offset_m": np.hypot(x, y) * metre,
        "rotation_error_deg": shapes.rotation_error(a, b),
        "pred_m2": shapely.area(pred) * metre**2,
        "truth_m2": shapely.area(truth) * metre**2,
        "pred_corners": shapes.corners(a),
        "truth_corners": shapes.corners(b),
    }


def _densities(objects: Objects, water: GeoDataFrame | GeoSeries | None) -> Named:
    false: Indices = np.flatnonzero(objects.pred["outcome"].to_numpy() == "fp")
    rows = len(objects.pred) + len(objects.truth)

    def per_km2(which: Indices, area_m2: float | None, note: str | None) -> Terms:
        numerator = np.zeros(rows)
        numerator[which] = 1.0
        return Terms(numerator, (area_m2 or 0.0) / 1e6, len(which), note=note)

    area = objects.evaluation.aoi_area_m2
    unknown = "without an area of interest the area looked at is unknown"
    yield "fp_per_km2", per_km2(false, area, None if area else unknown)
    if water is None or objects.aoi is None:
        yield "fp_per_km2_water", per_km2(false[:0], None, "no water was given" if water is None else unknown)
        return
    inside, water_m2 = false_in_water(objects, water)
    note = None if water_m2 else "there is no water in the area of interest"
    yield "fp_per_km2_water", per_km2(inside, water_m2, note)


def _average_precision(objects: Objects) -> dict[str, tuple[float | None, int, str | None]]:
    """Value, n and note of each; n is the number of true footprints to be found."""
    found = average_precision(objects)
    unknown = int((~np.isfinite(objects.pred["confidence"].to_numpy())).sum())
    if found is None:
        none = "no true footprints" if objects.truth["is_border"].all() else "no prediction has a confidence"
        return dict.fromkeys(("ap", "ap50", "ap75"), (None, 0, none))
    note = f"{unknown} of {len(objects.pred)} predictions have no confidence and come last" if unknown else None
    n = int((~objects.truth["is_border"].to_numpy()).sum())
    values = {"ap": found.mean(), "ap50": found[IOUS.index(0.5)], "ap75": found[IOUS.index(0.75)]}
    return {name: (float(value), n, note) for name, value in values.items()}
