"""Average precision and curves over the confidence, against a plain evaluator of COCO's rules and `evaluate` itself."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from shapely.geometry import box

from geoinfer.evaluation import evaluate
from geoinfer.evaluation.matching import ROUNDING
from geoinfer.evaluation.objects import Objects, objects
from geoinfer.evaluation.ranking import IOUS, average_precision, f1_by_threshold, precision_recall_curve, rank

UTM = "EPSG:32630"
X, Y = 500_000, 600_000

corners = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 6), st.integers(1, 6))
some_boxes = st.lists(corners, min_size=1, max_size=8)
confidences = st.lists(st.integers(0, 5).map(lambda tenths: tenths / 5), min_size=8, max_size=8)


def frame(boxes: list[tuple[int, int, int, int]], **columns: object) -> gpd.GeoDataFrame:
    shapes = [box(X + x, Y + y, X + x + w, Y + y + h) for x, y, w, h in boxes]
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=UTM)


AOI = frame([(3, 3, 8, 8)])


def meets_aoi(truth: list) -> None:
    """Leave out truth that is all beyond the area of interest: that is an error, and tested elsewhere."""
    low, high = np.array(truth)[:, :2], np.array(truth)[:, :2] + np.array(truth)[:, 2:]
    assume((low.min(axis=0) <= 11).all() and (high.max(axis=0) >= 3).all())


def compared(pred: list, truth: list, confidence: list[float], *, inside: bool = False) -> Objects:
    if inside:
        meets_aoi(truth)
    return objects(frame(pred, confidence=confidence[: len(pred)]), frame(truth), aoi=AOI if inside else None)


def coco(found: Objects, iou: float) -> float | None:
    """COCO's evaluation of one category and one image, one prediction at a time: 101 recalls."""
    pred, truth = found.pred, found.truth
    needed = [not border for border in truth["is_border"]]
    if not any(needed):
        return None
    taken: set[int] = set()
    hits = []
    for guess in pred.sort_values("confidence", ascending=False, kind="stable").index:
        best, best_iou = None, iou * (1 - ROUNDING)
        for fact in sorted(truth.index, key=lambda at: not needed[at]):  # ignored ones last
            if fact in taken or (best is not None and needed[best] and not needed[fact]):
                continue
            a, b = pred.geometry[guess], truth.geometry[fact]
            value = a.intersection(b).area / a.union(b).area
            if value >= best_iou and (best is None or value > best_iou + 1e-12):
                best, best_iou = fact, value
        if best is None:
            if not pred["is_border"][guess]:
                hits.append(False)
            continue
        taken.add(best)
        if needed[best]:
            hits.append(True)
    tp = np.cumsum(hits) if hits else np.zeros(0)
    recall, precision = tp / sum(needed), tp / np.arange(1, len(hits) + 1)
    total = 0.0
    for wanted in np.linspace(0, 1, 101):
        reached = precision[recall >= wanted]
        total += reached.max() if len(reached) else 0.0
    return float(total / 101)


@given(some_boxes, some_boxes, confidences, st.booleans(), st.sampled_from(IOUS))
def test_average_precision_is_that_of_a_plain_coco_evaluator(
    pred: list, truth: list, confidence: list[float], inside: bool, iou: float
) -> None:
    found = compared(pred, truth, confidence, inside=inside)
    if not len(found.pred):
        assert average_precision(found, [iou]) is None
        return
    expected, values = coco(found, iou), average_precision(found, [iou])
    assert (values is None) == (expected is None)
    if values is not None:
        assert values[0] == pytest.approx(expected)
        (area,) = average_precision(found, [iou], method="area")
        assert abs(area - expected) <= 0.01 + 1e-12


def test_average_precision_of_a_worked_example() -> None:
    # In order: found, false, found, false; one of three is missed. Precision at recalls up to 1/3 is 1, up to 2/3 it is 2/3.
    truth = [(0, 0, 5, 5), (10, 0, 5, 5), (20, 0, 5, 5)]
    pred = [(10, 0, 5, 5), (40, 0, 5, 5), (0, 0, 5, 5), (50, 0, 5, 5)]
    found = compared(pred, truth, [0.7, 0.8, 0.9, 0.1])
    values = average_precision(found)
    assert values == pytest.approx([(34 * 1 + 33 * 2 / 3) / 101] * 10)
    assert average_precision(found, [0.5], method="area") == pytest.approx([(1 + 2 / 3) / 3])
    curve = precision_recall_curve(found)
    assert curve["confidence"].tolist() == [0.9, 0.8, 0.7, 0.1]
    assert curve["precision"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert curve["recall"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])


@given(
    some_boxes, some_boxes, confidences, st.booleans(), st.sampled_from(["optimal", "spacenet"]), st.sampled_from([0.2, 0.5])
)
def test_f1_at_a_threshold_is_what_evaluate_says_of_the_confident_ones(
    pred: list, truth: list, confidence: list[float], inside: bool, matching: str, iou: float
) -> None:
    if inside:
        meets_aoi(truth)
    guesses, aoi = frame(pred, confidence=confidence[: len(pred)]), AOI if inside else None
    table = f1_by_threshold(objects(guesses, frame(truth), aoi=aoi, matching=matching, iou=iou), [0, 0.4, 0.8, 1])
    for row in table.itertuples():
        kept = guesses[guesses["confidence"] >= row.threshold]
        expected = evaluate(kept, frame(truth), aoi=aoi, matching=matching, iou=iou)
        assert (row.tp, row.n_pred, row.n_truth) == (expected.tp, expected.n_pred, expected.n_truth)
        assert (row.precision, row.recall, row.f1) == (expected.precision, expected.recall, expected.f1)


@given(some_boxes, some_boxes, st.randoms())
def test_the_order_of_the_rows_plays_no_part_where_confidences_differ(pred: list, truth: list, random: object) -> None:
    confidence = [(at + 1) / 10 for at in range(len(pred))]
    order = list(range(len(pred)))
    random.shuffle(order)
    guesses = frame(pred, confidence=confidence)
    values = [average_precision(objects(table, frame(truth))) for table in (guesses, guesses.iloc[order])]
    assert values[0] == pytest.approx(values[1])


def test_predictions_without_a_confidence_come_last_and_without_any_there_is_no_ranking() -> None:
    truth = frame([(0, 0, 5, 5), (10, 0, 5, 5)])
    some = frame([(0, 0, 5, 5), (10, 0, 5, 5)], confidence=[None, 0.1])
    ranked = rank(objects(some, truth))
    assert ranked.confidence.tolist() == [0.1, 0.0]
    assert average_precision(objects(some, truth)) == pytest.approx([1.0] * 10)
    for none in (frame([(0, 0, 5, 5)]), frame([(0, 0, 5, 5)], confidence=[float("nan")])):
        found = objects(none, truth)
        assert average_precision(found) is None
        assert precision_recall_curve(found).empty
        assert f1_by_threshold(found).empty


def test_what_lies_mostly_outside_is_neither_needed_nor_false() -> None:
    aoi = frame([(0, 0, 100, 100)])
    truth = frame([(10, 10, 5, 5), (-4, 50, 5, 5)])  # the second by a fifth inside
    pred = frame([(-4, 50, 5, 5), (-4, 80, 5, 5), (10, 10, 5, 5)], confidence=[0.9, 0.8, 0.7])
    found = objects(pred, truth, aoi=aoi)
    ranked = rank(found)
    assert (ranked.n_truth, ranked.is_true.tolist()) == (1, [True])
    assert average_precision(found) == pytest.approx([1.0] * 10)


def test_a_needed_footprint_is_taken_before_a_better_one_at_the_border() -> None:
    aoi = frame([(0, 0, 100, 100)])
    truth = frame([(-6, 0, 10, 10), (0, 0, 8, 10)])  # two fifths inside, where its IoU is 0.8; whole, with 0.625
    found = objects(frame([(0, 0, 5, 10)], confidence=[0.9]), truth, aoi=aoi)
    assert average_precision(found, [0.5]) == pytest.approx([1.0])


def test_a_partner_at_the_border_counts_at_every_threshold_that_it_passes() -> None:
    aoi = frame([(0, 0, 100, 100)])
    pred = frame([(-6, 0, 10, 10), (-7, 0, 11, 10)], confidence=[0.6, 0.8])  # both are the same 4 m inside
    table = f1_by_threshold(objects(pred, frame([(0, 0, 4, 10)]), aoi=aoi), [0, 0.7, 0.9])
    assert table[["tp", "n_pred", "n_truth"]].to_numpy().tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
