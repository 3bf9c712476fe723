"""The tables of footprints and the metrics that follow: totals, reasons, areas, registration, densities, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from shapely.affinity import rotate, translate
from shapely.geometry import Point, Polygon, box
from sklearn.metrics import jaccard_score, precision_score, recall_score

from geoinfer.errors import ConfigError, RegionError
from geoinfer.evaluation import evaluate, match, matching, outcomes, pairs_of
from geoinfer.evaluation.measures import SPECS, Measure, measures, terms
from geoinfer.evaluation.objects import objects

UTM = "EPSG:32630"
X, Y = 500_000, 600_000
SCALE = 1 / 0.9996
"""Metres on the ground of a metre of UTM on its central meridian, by definition."""

corners = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 6), st.integers(1, 6))
some_boxes = st.lists(corners, max_size=8).map(lambda found: [at(*one) for one in found])


def at(x: float, y: float, width: float, height: float) -> Polygon:
    return box(X + x, Y + y, X + x + width, Y + y + height)


def frame(shapes: list, crs: str = UTM, **columns: object) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=crs)


AOI = frame([at(3, 3, 8, 8)])


@given(some_boxes, some_boxes, st.booleans(), st.sampled_from(["optimal", "spacenet"]), st.sampled_from([0.2, 0.5]))
def test_the_tables_say_what_evaluate_says(pred: list, truth: list, inside: bool, how: str, iou: float) -> None:
    settings = {"aoi": AOI if inside else None, "matching": how, "iou": iou}
    assume(not inside or not truth or shapely.union_all(truth).envelope.intersects(AOI.geometry[0]))
    found = objects(frame(pred), frame(truth), **settings)
    assert found.evaluation == evaluate(frame(pred), frame(truth), **settings)
    words = outcomes(frame(pred), frame(truth), **settings)
    for table, expected in ((found.pred, words[0]), (found.truth, words[1])):
        assert table["outcome"].tolist() == [expected[row] for row in table["row"]]
        paired = table["outcome"] == "tp"
        assert ((table["partner"] >= 0) == paired).all()
        assert ((table["iou"] > 0) == paired).all()
        assert (table["iou"] <= table["best_iou"]).all()
        assert (table.loc[paired, "reason"] == "").all()
        assert ((table["reason"] == "alone") <= (table["best_iou"] == 0)).all()
    total = found.evaluation
    assert found.pred["shared_m2"].sum() == pytest.approx(total.shared_area_m2, abs=1e-6)
    assert found.truth["shared_m2"].sum() == pytest.approx(total.shared_area_m2, abs=1e-6)
    assert (found.pred["union_m2"].sum(), found.truth["union_m2"].sum()) == (total.pred_area_m2, total.truth_area_m2)
    partners = dict(zip(found.truth["row"], found.truth["partner"], strict=True))
    for row, partner in zip(found.pred["row"], found.pred["partner"], strict=True):
        assert partner < 0 or partners[partner] == row


@given(some_boxes, some_boxes, st.booleans())
def test_every_metric_is_a_number_or_has_a_reason_and_is_made_of_its_terms(pred: list, truth: list, inside: bool) -> None:
    assume(not inside or not truth or shapely.union_all(truth).envelope.intersects(AOI.geometry[0]))
    found = objects(frame(pred, confidence=[0.5] * len(pred)), frame(truth), aoi=AOI if inside else None)
    water = frame([at(0, 0, 6, 20)])
    result, known = measures(found, water), terms(found, water)
    assert [*result] == [*SPECS]
    json.dumps({name: asdict(one) for name, one in result.items()}, allow_nan=False)
    for name, one in result.items():
        if one.value is None:
            assert one.n == 0
            assert one.note
        elif name in known and known[name].value is not None:
            assert math.isclose(one.value, known[name].value, abs_tol=1e-9)
    total = found.evaluation
    pixel = (result[name].value for name in ("pixel_iou", "pixel_precision", "pixel_recall"))
    assert tuple(pixel) == (total.pixel_iou, total.area_precision, total.area_recall)


def raster_of(shapes: list) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    for shape in shapes:
        x0, y0, x1, y1 = (np.array(shape.bounds) - [X, Y, X, Y]).astype(int)
        mask[y0:y1, x0:x1] = True
    return mask


@given(some_boxes, some_boxes)
def test_pixel_metrics_are_those_of_pixels_also_where_footprints_overlap(pred: list, truth: list) -> None:
    a, b = raster_of(pred), raster_of(truth)
    result = measures(objects(frame(pred), frame(truth)))
    if a.any() and b.any():  # scikit-learn warns about empty sides; these follow a stated rule
        theirs = {"pixel_iou": jaccard_score, "pixel_precision": precision_score, "pixel_recall": recall_score}
        assert {name: result[name].value for name in theirs} == pytest.approx(
            {name: score(b.ravel(), a.ravel()) for name, score in theirs.items()}, abs=1e-9
        )
    for name, part, whole in (
        ("pixel_iou", a & b, a | b),
        ("pixel_precision", a & b, a),
        ("pixel_recall", a & b, b),
    ):
        empty = not (a | b).any()
        assert result[name].value == pytest.approx(part.sum() / whole.sum() if whole.any() else float(empty), abs=1e-9)


@given(some_boxes, some_boxes, st.sampled_from([0.1, 0.3, 0.5]))
def test_optimal_matching_reaches_the_total_of_scipys_assignment(pred: list, truth: list, iou: float) -> None:
    weight = np.zeros((len(pred), len(truth)))
    for row, col in np.ndindex(weight.shape):
        weight[row, col] = pred[row].intersection(truth[col]).area / pred[row].union(truth[col]).area
    weight[weight < iou * (1 - 1e-9)] = 0
    rows, cols = linear_sum_assignment(weight, maximize=True)
    found = match(pairs_of(np.array(pred, object), np.array(truth, object)), iou)
    assert math.isclose(float(found.iou.sum()), float(weight[rows, cols].sum()), abs_tol=1e-9)


@given(some_boxes, some_boxes)
def test_partitions_and_the_way_areas_are_computed_change_nothing(pred: list, truth: list) -> None:
    a, b = np.array([*pred, None], object)[:-1], np.array([*truth, None], object)[:-1]
    whole = pairs_of(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PARTITION", 2)
        parts = pairs_of(a, b)
        patch.setattr(matching, "EDGE_PAIRS", 0)  # all by GEOS
        by_geos = pairs_of(a, b)
    for other in (parts, by_geos):
        assert (whole.pred.tolist(), whole.truth.tolist()) == (other.pred.tolist(), other.truth.tolist())
        np.testing.assert_allclose(whole.shared_m2, other.shared_m2, rtol=1e-9)


@given(some_boxes, some_boxes)
def test_swapping_sides_swaps_splits_and_merges_and_turns_offsets_round(pred: list, truth: list) -> None:
    one, other = (measures(objects(frame(a), frame(b), iou=0.3)) for a, b in ((pred, truth), (truth, pred)))
    pairs = [("split_rate", "merge_rate"), ("merge_rate", "split_rate"), ("precision", "recall")]
    for name, twin in pairs:
        if one[name].note is None and other[twin].note is None:
            assert one[name].value == other[twin].value


def test_reasons_of_a_worked_example() -> None:
    pred = [
        at(0, 0, 10, 10),  # the first house
        at(0.5, 0, 9, 10),  # the first house again
        at(50, 0, 25, 10),  # two houses in one
        at(100, 0, 5, 10),  # half of the fourth house
        at(105.2, 0, 4.8, 10),  # most of the other half
        at(200, 0, 5, 5),  # nothing is there
        at(304, 0, 9, 9),  # the last house, beside it by half
    ]
    truth = [at(0, 0, 10, 10), at(50, 0, 10, 10), at(62, 0, 10, 10), at(100, 0, 12, 10), at(300, 0, 9, 9), at(400, 0, 5, 5)]
    found = objects(frame(pred), frame(truth))
    assert found.pred["reason"].tolist() == ["", "duplicate", "merged", "split", "split", "alone", "low_iou"]
    assert found.truth["reason"].tolist() == ["", "merged", "merged", "split", "low_iou", "alone"]
    assert found.pred["is_merge"].tolist() == [False, False, True, False, False, False, False]
    assert found.truth["is_split"].tolist() == [False, False, False, True, False, False]
    result = measures(found)
    assert (result["split_rate"].value, result["split_rate"].n) == (1 / 6, 6)
    assert (result["merge_rate"].value, result["merge_rate"].n) == (1 / 7, 7)


def test_a_partner_with_a_fragment_beside_it_is_split_and_a_partner_found_three_times_is_not() -> None:
    house = at(0, 0, 10, 10)
    assert objects(frame([at(0, 0, 7, 10), at(7.5, 0, 2, 9)]), frame([house])).truth["is_split"].tolist() == [True]
    assert objects(frame([house, at(0, 0, 9, 10), at(1, 0, 9, 10)]), frame([house])).truth["is_split"].tolist() == [False]
    # fragments that cover a third are no split: the house was hardly found
    few = objects(frame([at(0, 0, 2, 10), at(5, 0, 1, 10)]), frame([house]))
    assert (few.truth["is_split"].tolist(), few.truth["reason"].tolist()) == ([False], ["low_iou"])


def test_a_registration_shift_is_reported_as_it_was_made_in_any_coordinate_system() -> None:
    truth = frame([at(40 * i, 0, 12, 8) for i in range(20)])
    pred = frame([translate(shape, 1.5, -0.8) for shape in truth.geometry])
    for guesses in (pred, pred.to_crs(4326)):
        result = measures(objects(guesses, truth))
        # 1e-4: reprojecting there and back moves a vertex by less than that
        assert result["offset_x_m"].value == pytest.approx(1.5 * SCALE, abs=1e-4)
        assert result["offset_y_m"].value == pytest.approx(-0.8 * SCALE, abs=1e-4)
        assert result["offset_m"].value == pytest.approx(1.7 * SCALE, abs=1e-4)
        # the corner that moved out of the other outline is as far from it as it moved
        assert result["hausdorff_m"].value == pytest.approx(1.7 * SCALE, abs=2e-3)
        assert result["area_bias"].value == pytest.approx(0, abs=1e-5)
        assert result["offset_x_m"].n == 20
    # five degrees north; its metres to the north and to the east differ by 0.7 %, since it takes the Earth for a sphere
    mercator = measures(objects(pred.to_crs(3857), truth.to_crs(3857)))
    assert mercator["offset_x_m"].value == pytest.approx(1.5 * SCALE, rel=4e-3)


def test_turned_grown_and_densified_outlines_are_measured() -> None:
    truth = frame([at(60 * i, 0, 20, 10) for i in range(5)])
    turned = frame([shapely.segmentize(rotate(shape, 10), 1) for shape in truth.geometry])
    result = measures(objects(turned, truth))
    assert result["rotation_error_deg"].value == pytest.approx(10, abs=1e-6)
    assert result["vertex_ratio"].value == 1
    grown = frame([shape.buffer(1, join_style="mitre") for shape in truth.geometry])
    result = measures(objects(grown, truth))
    assert result["area_bias"].value == pytest.approx(22 * 12 / 200 - 1)
    assert result["polis_m"].value == pytest.approx((1 + math.sqrt(2)) / 2 * SCALE)
    towers = frame([Point(X + 100 * i, Y).buffer(8) for i in range(3)])
    result = measures(objects(towers, towers))
    assert (result["rotation_error_deg"].value, result["rotation_error_deg"].n) == (None, 0)
    assert "dominant" in (result["rotation_error_deg"].note or "")


def test_shapes_are_compared_only_where_the_border_did_not_cut_them() -> None:
    aoi = frame([at(0, 0, 100, 100)])
    truth = frame([at(10, 10, 10, 10), at(-4, 50, 20, 10)])
    pred = frame([at(11, 10, 10, 10), at(-4, 52, 20, 10)])
    found = objects(pred, truth, aoi=aoi)
    assert found.pred["is_cut"].tolist() == [False, True]
    result = measures(found)
    assert (result["precision"].n, result["offset_x_m"].n, result["offset_y_m"].value) == (2, 1, 0)
    assert result["offset_x_m"].value == pytest.approx(SCALE)
    assert "1 pairs that the border" in (result["polis_m"].note or "")
    # one that only touches the border from inside is whole
    assert not objects(frame([at(0, 0, 5, 5)]), truth, aoi=aoi).pred["is_cut"].any()


def test_false_positives_per_km2_and_in_water_are_counts_over_areas() -> None:
    aoi = frame([at(0, 0, 1000, 500)])
    truth = frame([at(10, 10, 10, 10)])
    lake = frame([at(500, 0, 200, 400), at(600, 100, 900, 200)])  # they overlap, and reach beyond the area of interest
    boats = [at(520, 50, 4, 4), at(498, 300, 5, 5), at(497, 200, 5, 5), at(900, 200, 4, 4)]  # two fifths of the third
    pred = frame([at(10, 10, 10, 10), *boats, at(300, 300, 5, 5)])
    result = measures(objects(pred, truth, aoi=aoi), lake)
    assert result["fp_per_km2"].n == 5
    assert result["fp_per_km2"].value == pytest.approx(5 / (0.5 * SCALE**2))
    water_km2 = (200 * 400 + 400 * 200 - 100 * 200) / 1e6
    assert result["fp_per_km2_water"].n == 3
    assert result["fp_per_km2_water"].value == pytest.approx(3 / (water_km2 * SCALE**2))
    dry = measures(objects(pred, truth, aoi=aoi), frame([at(5000, 0, 10, 10)]))["fp_per_km2_water"]
    assert (dry.value, dry.note) == (None, "there is no water in the area of interest")
    assert measures(objects(pred, truth), lake)["fp_per_km2"].value is None
    with pytest.raises(ConfigError, match="water has no coordinate system"):
        measures(objects(pred, truth, aoi=aoi), gpd.GeoDataFrame(geometry=[at(0, 0, 1, 1)]))


def test_empty_sides_have_defined_results() -> None:
    some, none = frame([at(0, 0, 5, 5)]), frame([])
    for pred, truth, value in ((none, none, 1.0), (none, some, 0.0), (some, none, 0.0)):
        result = measures(objects(pred, truth))
        for name in ("precision", "recall", "f1", "pixel_iou", "pixel_precision", "pixel_recall"):
            assert result[name].value == value
        for name in ("ap", "polis_m", "boundary_iou", "offset_m", "vertex_ratio", "area_bias"):
            assert (result[name].value, result[name].n) == (None, 0)
            assert result[name].note
    assert "by rule" in (measures(objects(none, some))["precision"].note or "")
    assert isinstance(measures(objects(none, none))["f1"], Measure)


def test_overlapping_truth_is_matched_one_to_one_and_its_area_counts_once() -> None:
    house = at(0, 0, 10, 10)
    found = objects(frame([house]), frame([house, house, at(0, 0, 10, 9)]))
    assert found.truth["outcome"].tolist() == ["tp", "fn", "fn"]
    assert found.truth["reason"].tolist() == ["", "duplicate", "duplicate"]
    assert found.evaluation.recall == 1 / 3
    assert found.evaluation.pixel_iou == pytest.approx(1)
    assert found.truth["union_m2"].sum() == pytest.approx(100 * SCALE**2)


def test_what_was_repaired_and_left_out_is_said() -> None:
    bow = Polygon([(X, Y), (X + 10, Y + 10), (X + 10, Y), (X, Y + 10)])
    line = Polygon([(X, Y), (X + 5, Y), (X + 9, Y)])
    found = objects(frame([bow, None, Polygon(), line]), frame([bow]))
    assert found.pred["row"].tolist() == [0]
    assert found.notes == (
        "pred: 3 rows have no polygon and were left out",
        "pred: 1 invalid polygons were repaired",
        "truth: 1 invalid polygons were repaired",
    )
    assert found.evaluation.tp == 1
    assert measures(found)["boundary_iou"].value == pytest.approx(1)


def test_sides_without_anything_in_common_are_an_answer_and_a_far_area_of_interest_a_mistake() -> None:
    here, far = frame([at(0, 0, 5, 5)]), frame([at(90_000, 0, 5, 5)])
    result = measures(objects(far, here))
    assert (result["precision"].value, result["recall"].value, result["polis_m"].value) == (0, 0, None)
    with pytest.raises(RegionError, match="nothing in common"):
        objects(here, here, aoi=frame([at(90_000, 0, 5, 5)]))
    with pytest.raises(ConfigError, match="no coordinate system"):
        objects(here, gpd.GeoDataFrame(geometry=[at(0, 0, 1, 1)]))


def test_confidences_may_be_missing_and_must_be_numbers() -> None:
    truth = frame([at(0, 0, 5, 5)])
    missing = measures(objects(frame([at(0, 0, 5, 5)]), truth))["ap"]
    assert (missing.value, missing.n, missing.note) == (None, 0, "no prediction has a confidence")
    score = frame([at(0, 0, 5, 5), at(20, 0, 5, 5)], score=["0.5", None])
    part = measures(objects(score, truth, confidence="score"))["ap"]
    assert (part.value, part.note) == (1, "1 of 2 predictions have no confidence and come last")
    with pytest.raises(ConfigError, match="'kind' of pred holds no numbers"):
        objects(frame([at(0, 0, 5, 5)], kind=["house"]), truth, confidence="kind")


def test_the_tables_do_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    truth = frame([at(*rng.uniform(0, 200, 2), *rng.uniform(4, 14, 2)) for _ in range(150)])
    pred = frame([translate(shape, *rng.normal(0, 1.5, 2)) for shape in truth.geometry])
    order = rng.permutation(len(pred))
    one, other = objects(pred, truth), objects(pred.iloc[order], truth)
    back = other.pred.assign(row=order[other.pred["row"]]).sort_values("row").reset_index(drop=True)
    for column in ("outcome", "reason", "iou", "partner"):
        assert one.pred[column].tolist() == back[column].tolist()
    first, second = measures(one), measures(other)
    assert all(first[name].value == pytest.approx(second[name].value) for name in first)


@given(st.integers(0, 2**32 - 1))
def test_footprints_that_only_touch_are_no_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = np.array([[0, 0], [20, 20], [0, 20], [20, 0]])
    one, other, left, right = np.array([X, Y]) + corner + rng.uniform(0, 9, (4, 2))
    halves = Polygon([one, other, left]), Polygon([other, one, right])  # on both sides of a slanting edge
    assert len(pairs_of(np.array(halves[:1], object), np.array(halves[1:], object))) == 0
    found = objects(frame([halves[0]]), frame([halves[1]]))
    assert (found.pred["reason"].tolist(), found.truth["reason"].tolist()) == (["alone"], ["alone"])
