"""Evaluation against brute force, SciPy's assignment and rasters; its rules for borders, empty sides and bad input."""

from __future__ import annotations

import itertools
import json
import math

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from shapely.geometry import Point, Polygon, box

from geoinfer.errors import ConfigError, RegionError
from geoinfer.evaluation import Evaluation, combine, evaluate, match, outcomes, pairs_of
from geoinfer.evaluation.matching import assign
from geoinfer.evaluation.unions import dissolve

UTM = "EPSG:32630"
ORIGIN = (500_000, 600_000)
UNIT_M2 = 1 / 0.9996**2
"""Square metres on the ground of a square metre of UTM on its central meridian, where the scale is 0.9996 by definition."""

boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: box(ORIGIN[0] + b[0], ORIGIN[1] + b[1], ORIGIN[0] + b[0] + b[2], ORIGIN[1] + b[1] + b[3])
)
some_boxes = st.lists(boxes, max_size=6)


def frame(shapes: list, crs: str = UTM) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=shapes, crs=crs)


def array(shapes: list) -> np.ndarray:
    return np.array(shapes, dtype=object).reshape(-1)


def iou_of(a: Polygon, b: Polygon) -> float:
    return a.intersection(b).area / a.union(b).area


def best_total(pred: list, truth: list, iou: float) -> float:
    """Greatest total IoU over every one-to-one choice of pairs: all permutations."""
    short, long = sorted((pred, truth), key=len)
    scores = [
        sum(value for a, b in zip(short, chosen, strict=True) if (value := iou_of(a, b)) >= iou)
        for chosen in itertools.permutations(long, len(short))
    ]
    return max(scores, default=0.0)


@given(some_boxes, some_boxes, st.sampled_from([0.1, 0.25, 0.5, 0.75]))
def test_optimal_matching_has_the_greatest_total_iou_of_all_choices(pred: list, truth: list, iou: float) -> None:
    pairs = match(pairs_of(array(pred), array(truth)), iou)
    assert len(set(pairs.pred.tolist())) == len(set(pairs.truth.tolist())) == len(pairs)
    assert all(value >= iou for value in pairs.iou)
    assert math.isclose(float(pairs.iou.sum()), best_total(pred, truth, iou), abs_tol=1e-9)


@given(some_boxes, some_boxes, st.sampled_from([0.2, 0.5]))
def test_spacenet_matching_is_the_plain_loop(pred: list, truth: list, iou: float) -> None:
    free = list(range(len(truth)))
    expected = []
    for index, guess in enumerate(pred):
        best = max(free, key=lambda at: iou_of(guess, truth[at]), default=None)
        if best is not None and iou_of(guess, truth[best]) > iou:
            expected.append((index, best))
            free.remove(best)
    pairs = match(pairs_of(array(pred), array(truth)), iou, "spacenet")
    assert list(zip(pairs.pred.tolist(), pairs.truth.tolist(), strict=True)) == expected


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_assignment_reaches_the_total_that_scipy_reaches(seed: int, rows: int, cols: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 3, (rows, cols)).astype(float) if ties else rng.random((rows, cols))
    cells = assign(weight)
    assert len({row for row, _ in cells}) == len({col for _, col in cells}) == len(cells) == min(rows, cols)
    assert math.isclose(sum(weight[cell] for cell in cells), weight[linear_sum_assignment(weight, maximize=True)].sum())


def raster_of(shapes: list) -> np.ndarray:
    """(16, 16) bool of the unit squares that integer boxes cover."""
    mask = np.zeros((16, 16), bool)
    for shape in shapes:
        x0, y0, x1, y1 = (np.array(shape.bounds) - [*ORIGIN, *ORIGIN]).astype(int)
        mask[y0:y1, x0:x1] = True
    return mask


@given(some_boxes, some_boxes)
def test_pixel_metrics_are_those_of_rasters_also_where_polygons_overlap(pred: list, truth: list) -> None:
    found = evaluate(frame(pred), frame(truth))
    a, b = raster_of(pred), raster_of(truth)
    areas = (found.shared_area_m2, found.pred_area_m2, found.truth_area_m2)
    assert areas == pytest.approx([mask.sum() * UNIT_M2 for mask in (a & b, a, b)], rel=1e-6)
    if (a | b).any():
        assert math.isclose(found.pixel_iou, (a & b).sum() / (a | b).sum(), abs_tol=1e-9)


@given(some_boxes)
def test_dissolved_polygons_share_no_area_and_keep_the_union(shapes: list) -> None:
    parts = dissolve(array(shapes))
    assert math.isclose(shapely.area(parts).sum(), shapely.union_all(array(shapes)).area, abs_tol=1e-6)


@given(some_boxes, some_boxes)
def test_swapping_sides_swaps_precision_and_recall(pred: list, truth: list) -> None:
    one, other = evaluate(frame(pred), frame(truth), iou=0.3), evaluate(frame(truth), frame(pred), iou=0.3)
    assert (one.n_pred, one.n_truth) == (other.n_truth, other.n_pred)
    assert math.isclose(one.mean_iou * one.tp, other.mean_iou * other.tp, abs_tol=1e-9)
    assert math.isclose(one.area_precision, other.area_recall, abs_tol=1e-9)


def blocks(n: int, dx: float = 0, dy: float = 0) -> list:
    """Rectangles of 8 x 6 m, far apart, shifted."""
    x, y = ORIGIN
    return [box(x + 20 * i + dx, y + dy, x + 20 * i + 8 + dx, y + 6 + dy) for i in range(n)]


def test_a_shift_that_halves_the_iou_decides_at_the_threshold() -> None:
    # Shifted by 8/3 m of 8 m: IoU is (16/3) / (32/3) = 0.5, up to rounding.
    shifted = blocks(4, dx=8 / 3)
    assert evaluate(frame(shifted), frame(blocks(4))).tp == 4
    assert evaluate(frame(shifted), frame(blocks(4)), matching="spacenet").tp == 0
    assert evaluate(frame(blocks(4, dx=2.7)), frame(blocks(4))).tp == 0


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32631", "EPSG:2136"])
def test_coordinate_systems_may_differ_and_do_not_change_the_result(crs: str) -> None:
    pred, truth = frame(blocks(6, dx=1)), frame(blocks(8))
    expected = evaluate(pred, truth)
    for found in (
        evaluate(pred.to_crs(crs), truth),
        evaluate(pred, truth.to_crs(crs)),
        evaluate(pred.to_crs(crs), truth.to_crs(crs)),
    ):
        assert (found.tp, found.fp, found.fn) == (expected.tp, expected.fp, expected.fn) == (6, 0, 2)
        assert math.isclose(found.pixel_iou, expected.pixel_iou, rel_tol=1e-3)  # a datum shift repeats to a millimetre
        assert math.isclose(found.truth_area_m2, expected.truth_area_m2, rel_tol=1e-4)


def test_area_in_web_mercator_is_measured_on_the_ground() -> None:
    x, y = 1_000_000, 8_400_000  # 60 degrees north, where a metre of EPSG:3857 is half a metre
    found = evaluate(frame([box(x, y, x + 20, y + 20)], "EPSG:3857"), frame([box(x, y, x + 20, y + 20)], "EPSG:3857"))
    ground = frame([box(x, y, x + 20, y + 20)], "EPSG:3857").to_crs("EPSG:32632").area.iloc[0]
    assert found.truth_area_m2 == pytest.approx(ground, rel=2e-3)  # the zone's own scale
    assert found.f1 == 1


def test_both_sides_are_clipped_and_lone_slivers_at_the_border_are_ignored() -> None:
    x, y = ORIGIN
    aoi = frame([box(x, y, x + 100, y + 100)])
    inside = box(x + 20, y + 20, x + 30, y + 30)
    sliver = box(x - 8, y + 50, x + 2, y + 60)  # a fifth inside
    mostly = box(x + 94, y + 50, x + 104, y + 60)  # three fifths inside
    outside = box(x + 200, y, x + 210, y + 10)
    alone = evaluate(frame([inside, sliver, outside]), frame([inside]), aoi=aoi)
    assert (alone.tp, alone.fp, alone.fn, alone.ignored_pred) == (1, 0, 0, 1)
    assert (missed := evaluate(frame([inside]), frame([inside, sliver]), aoi=aoi)).recall == 1
    assert missed.ignored_truth == 1
    assert evaluate(frame([inside, mostly]), frame([inside]), aoi=aoi).fp == 1
    # Truth that was clipped beforehand is whole; the sliver of a prediction is its partner all the same.
    clipped = sliver.intersection(aoi.geometry.iloc[0])
    assert evaluate(frame([inside, sliver]), frame([inside, clipped]), aoi=aoi).tp == 2
    assert outcomes(frame([outside, sliver, inside]), frame([inside, mostly]), aoi=aoi) == (
        ["ignored", "ignored", "tp"],
        ["tp", "fn"],
    )


def test_an_area_of_interest_of_touching_parts_has_no_border_between_them() -> None:
    x, y = ORIGIN
    halves = frame([box(x, y, x + 50, y + 100), box(x + 50, y, x + 100, y + 100)])
    across = frame([box(x + 40, y + 40, x + 60, y + 60)])
    found = evaluate(across, across, aoi=halves)
    assert (found.tp, found.n_truth, found.pixel_iou) == (1, 1, 1.0)
    assert found.aoi_area_m2 == pytest.approx(10_000 * UNIT_M2, rel=1e-6)


def test_empty_sides_have_defined_results() -> None:
    some, none = frame(blocks(3)), frame([])
    nothing = evaluate(none, none)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.pixel_iou) == (1, 1, 1, 1)
    for found in (evaluate(none, some), evaluate(some, none)):
        assert (found.precision, found.recall, found.f1, found.pixel_iou) == (0, 0, 0, 0)
    assert evaluate(frame([None, Polygon()]), some).n_pred == 0
    json.dumps(nothing.to_dict(), allow_nan=False)


def test_an_invalid_polygon_is_repaired_before_it_is_compared() -> None:
    x, y = ORIGIN
    bow = Polygon([(x, y), (x + 10, y + 10), (x + 10, y), (x, y + 10)])
    found = evaluate(frame([bow]), frame([bow]))
    assert (found.tp, found.pixel_iou) == (1, 1.0)
    assert found.pred_area_m2 == pytest.approx(50 * UNIT_M2, rel=1e-6)


def test_places_combine_to_what_they_give_together() -> None:
    far = [shapely.transform(shape, lambda xy: xy + 5000) for shape in blocks(5, dx=1)]
    far_truth = [shapely.transform(shape, lambda xy: xy + 5000) for shape in blocks(7)]
    parts = [evaluate(frame(blocks(4, dx=3)), frame(blocks(6))), evaluate(frame(far), frame(far_truth))]
    whole = evaluate(frame(blocks(4, dx=3) + far), frame(blocks(6) + far_truth))
    together = combine(parts)  # 1e-6: five kilometres further on, a metre of the plane is another one on the ground
    for key, value in whole.to_dict().items():
        assert together.to_dict()[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    with pytest.raises(ConfigError, match="one threshold"):
        combine([])


def test_an_area_without_a_building_is_an_answer() -> None:
    empty = evaluate(frame(blocks(2)), frame([]), aoi=frame([box(*ORIGIN, *(xy + 5 for xy in ORIGIN)).buffer(500)]))
    assert (empty.n_truth, empty.tp, empty.recall) == (0, 0, 0.0)


def test_bad_input_says_what_is_wrong() -> None:
    some = frame(blocks(2))
    with pytest.raises(ConfigError, match="truth has no coordinate system"):
        evaluate(some, gpd.GeoDataFrame(geometry=blocks(1)))
    with pytest.raises(ConfigError, match="Point is no footprint"):
        evaluate(frame([Point(ORIGIN)]), some)
    with pytest.raises(ConfigError, match="above 0"):
        evaluate(some, some, iou=0)
    with pytest.raises(ConfigError, match="matching 'nearest' is unknown"):
        evaluate(some, some, matching="nearest")  # type: ignore[arg-type]
    with pytest.raises(RegionError, match="nothing in common"):
        evaluate(some, some, aoi=frame([box(0, 0, 1, 1)]))
    with pytest.raises(RegionError, match="is empty"):
        evaluate(some, some, aoi=frame([]))


def test_an_evaluation_does_not_change_its_input() -> None:
    pred, truth = frame(blocks(3)), frame(blocks(3), UTM).to_crs(4326)
    before = (pred.copy(), truth.copy())
    assert isinstance(evaluate(pred, truth, aoi=pred), Evaluation)
    assert pred.geom_equals_exact(before[0], 0).all()
    assert truth.geom_equals_exact(before[1], 0).all()
