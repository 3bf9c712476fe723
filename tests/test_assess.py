"""The one assessment: equal to `evaluate`, ready for JSON, the same twice; and paired differences of two models."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

from geoinfer.errors import ConfigError
from geoinfer.evaluation import evaluate
from geoinfer.evaluation.assess import assess, compare_models, compare_slices
from geoinfer.evaluation.blocks import block_of, weights
from geoinfer.evaluation.objects import objects
from geoinfer.evaluation.rank_sums import average_precisions
from geoinfer.evaluation.ranking import average_precision

UTM = "EPSG:32630"
X, Y = 700_000, 620_000

boxes = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(2, 9), st.integers(2, 9)).map(
        lambda b: box(X + b[0], Y + b[1], X + b[0] + b[2], Y + b[1] + b[3])
    ),
    max_size=10,
)


def frame(shapes: list, crs: str = UTM) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=list(shapes), crs=crs)


@given(boxes, boxes, st.sampled_from([0.3, 0.5]), st.sampled_from(["optimal", "spacenet"]))
def test_totals_are_those_of_evaluate_exactly(pred: list, truth: list, iou: float, matching: str) -> None:
    guesses, facts = frame(pred), frame(truth)
    found = assess(guesses, facts, iou=iou, matching=matching, slices=["size"], replicates=100)  # type: ignore[arg-type]
    expected = evaluate(guesses, facts, iou=iou, matching=matching)  # type: ignore[arg-type]
    assert found.evaluation == expected
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    for figure in ("precision", "recall", "f1"):
        value = getattr(expected, figure)
        assert getattr(found, figure) == told[figure] == told["measures"][figure]["value"] == value
        assert told["slices"][0][figure] == value


def place(seed: int = 0, rows: int = 30) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """Houses 50 m apart, and the column of each."""
    rng = np.random.default_rng(seed)
    x, y = (axis.ravel() * 50.0 for axis in np.meshgrid(np.arange(rows), np.arange(rows)))
    size = rng.uniform(6, 14, len(x))
    truth = frame(shapely.box(X + x, Y + y, X + x + size, Y + y + size))
    truth["district"] = np.where(x < 500, "harbour", np.where(x < 1000, "market", "hill"))
    return truth, x


def model(truth: gpd.GeoDataFrame, found: np.ndarray, seed: int = 0) -> gpd.GeoDataFrame:
    """Predictions of some of the houses, a little off, and some false ones."""
    rng = np.random.default_rng(seed)
    there = rng.uniform(0, 1500, (80, 2))
    false = shapely.box(X + there[:, 0], Y + there[:, 1], X + there[:, 0] + 4, Y + there[:, 1] + 4)
    table = frame([*shapely.transform(np.asarray(truth.geometry)[found], lambda p: p + 0.3), *false])
    table["confidence"] = rng.uniform(0.4, 1, len(table))
    return table


def test_the_same_seed_gives_the_same_intervals_and_another_one_others() -> None:
    truth, x = place()
    pred = model(truth, np.random.default_rng(1).random(len(x)) < 0.8)
    one, again, other = (assess(pred, truth, replicates=200, seed=seed).measures["recall"] for seed in (3, 3, 4))
    assert one == again
    assert (one.low, one.high) != (other.low, other.high)
    assert one.low is not None
    assert one.high is not None
    assert one.low < float(one.value or 0) < one.high


def test_a_model_that_is_better_in_one_region_only_is_told_there_and_nowhere_else() -> None:
    truth, x = place(2)
    luck = np.random.default_rng(5).random(len(x))  # what is hard is hard for both
    old = luck < 0.7
    new = luck < np.where(x < 500, 0.85, 0.7)
    a, b = (assess(model(truth, found), truth, slices=["district"], replicates=500) for found in (old, new))
    table = compare_slices(a, b).set_index("value")
    assert "recall" in table.loc["harbour", "clear"]
    assert table.loc["harbour", "recall_difference"] == pytest.approx(0.15, abs=0.05)
    for district in ("market", "hill"):
        assert table.loc[district, "clear"] == ""
        assert table.loc[district, "recall_difference"] == 0
    whole = compare_models(a, b)
    assert whole["recall"].is_clear
    assert whole["recall"].value == table.loc["all", "recall_difference"] == b.recall - a.recall
    # Each on its own cannot be told apart in the harbour: the pairing is what tells.
    ends = [side.slices.set_index("value").loc["harbour"] for side in (a, b)]
    single = (ends[0]["recall_high"] - ends[0]["recall_low"]) / 2
    paired = (table.loc["harbour", "recall_high"] - table.loc["harbour", "recall_low"]) / 2
    assert paired < single


def test_slices_that_only_one_model_has_do_not_shift_the_others() -> None:
    truth, x = place(8, rows=15)
    rng = np.random.default_rng(3)
    clean = model(truth, rng.random(len(x)) < 0.8).iloc[:-80]  # without the false ones: nothing is in no district
    rough = model(truth, rng.random(len(x)) < 0.7)
    a, b = (assess(pred, truth, slices=["district", "size"], replicates=100) for pred in (clean, rough))
    assert len(a.slices) < len(b.slices)
    table = compare_slices(a, b).set_index(["slice", "value"])
    for tail, side in (("a", a), ("b", b)):
        single = side.slices.set_index(["slice", "value"])
        for row in single.index:
            for figure in ("precision", "recall", "f1"):
                assert table.loc[row, f"{figure}_{tail}"] == pytest.approx(single.loc[row, figure], nan_ok=True)


def test_swapping_two_models_turns_the_differences_round() -> None:
    truth, x = place(3)
    rng = np.random.default_rng(0)
    a, b = (assess(model(truth, rng.random(len(x)) < chance, 7), truth, replicates=200) for chance in (0.7, 0.75))
    there, back = compare_models(a, b), compare_models(b, a)
    for name, one in there.items():
        other = back[name]
        if one.value is None or one.low is None or one.high is None:
            continue
        assert (-one.value, -one.high, -one.low) == pytest.approx((other.value, other.low, other.high), abs=1e-9)


def test_models_with_other_settings_or_another_truth_are_not_compared() -> None:
    truth, x = place(4, rows=12)
    pred = model(truth, np.ones(len(x), bool))
    a = assess(pred, truth, replicates=100)
    with pytest.raises(ConfigError, match=r"iou 0\.5 and 0\.4"):
        compare_models(a, assess(pred, truth, iou=0.4, replicates=100))
    with pytest.raises(ConfigError, match="not of one truth"):
        compare_models(a, assess(pred, truth.iloc[1:], block_m=a.settings["block_m"], replicates=100))


@pytest.mark.parametrize(("n_pred", "n_truth"), [(0, 0), (0, 5), (5, 0)])
def test_empty_sides_have_figures_or_say_why_not(n_pred: int, n_truth: int) -> None:
    shapes = [box(X + 40 * at, Y, X + 40 * at + 10, Y + 10) for at in range(5)]
    found = assess(frame(shapes[:n_pred]), frame(shapes[:n_truth]), slices=["size", "density", "confidence"], replicates=100)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    for name, one in told["measures"].items():
        assert one["value"] is not None or (one["n"] == 0 and one["note"]), name
        assert one["low"] is None
    assert told["curves"]["note"]
    assert found.f1 == (1.0 if n_pred == n_truth else 0.0)


def test_without_confidences_there_are_no_curves_and_a_note_says_so() -> None:
    truth, x = place(5, rows=10)
    pred = model(truth, np.ones(len(x), bool)).drop(columns="confidence")
    found = assess(pred, truth, replicates=100)
    assert found.curves.precision_recall.empty
    assert found.curves.reliability.ece is None
    assert found.curves.note == "no curves: no prediction has a confidence"


def test_confidences_that_are_no_probabilities_have_no_reliability() -> None:
    truth, x = place(6, rows=10)
    pred = model(truth, np.ones(len(x), bool))
    pred["confidence"] *= 100
    found = assess(pred, truth, replicates=100)
    assert found.curves.reliability.n == 0
    assert "no probabilities" in str(found.curves.note)


def test_false_positives_per_area_have_an_interval_and_count_ground_without_buildings() -> None:
    truth, x = place(7)
    pred = model(truth, np.ones(len(x), bool))
    wide = frame([box(X - 2000, Y - 2000, X + 3500, Y + 3500)])
    one = assess(pred, truth, aoi=wide, block_m=150, replicates=300)
    squares = [(axis + 3500) // 150 - (axis - 2000) // 150 + 1 for axis in (X, Y)]
    assert one.settings["blocks"] == squares[0] * squares[1]  # with those that hold nothing
    density = one.measures["fp_per_km2"]
    assert density.low is not None
    assert density.high is not None
    assert density.low < float(density.value or 0) < density.high


def test_average_precision_has_an_interval_that_drawing_blocks_and_ranking_anew_gives() -> None:
    truth, x = place(9)
    rng = np.random.default_rng(2)
    pred = model(truth, rng.random(len(x)) < np.where(x < 700, 0.9, 0.6))
    pred["confidence"] = rng.uniform(0.2, 1, len(pred)) * np.where(np.arange(len(pred)) < len(pred) - 80, 1, 0.6)
    found = assess(pred, truth, replicates=200, block_m=250)
    one = found.measures["ap50"]
    ids = [block_of(side.geometry.centroid.x, side.geometry.centroid.y, 250) for side in (pred, truth)]
    squares, drawn = np.unique(np.concatenate(ids)), []
    for counts in np.concatenate([*weights(len(squares), 200, 0)]).astype(int):
        # Each drawn block goes where no other is, so that matching starts afresh.
        moved: tuple[list, list] = ([], [])
        for number, at in enumerate(np.repeat(np.arange(len(squares)), counts)):
            for side, ids_of, out in zip((pred, truth), ids, moved, strict=True):
                part = side[ids_of == squares[at]]
                out.append(part.set_geometry(part.geometry.translate(5000 * number)))
        tables = [gpd.GeoDataFrame(pd.concat(out, ignore_index=True), crs=UTM) for out in moved]
        average = average_precision(objects(*tables), [0.5])
        assert average is not None
        drawn.append(average[0])
        if len(drawn) == 40:
            break
    # A draw's precision-recall curve has 256 steps where the true one has one a prediction.
    quick = average_precisions(next(weights(len(squares), 200, 0))[:40] @ found.ranks.sums)[:, 1]  # type: ignore[union-attr]
    assert quick == pytest.approx(drawn, abs=0.01)
    assert one.low is not None
    assert one.high is not None
    assert one.low < float(one.value or 0) < one.high


def test_a_difference_of_average_precision_is_that_of_the_measures_and_has_an_interval() -> None:
    truth, x = place(10)
    luck = np.random.default_rng(5).random(len(x))
    a, b = (assess(model(truth, luck < share, 1), truth, replicates=200) for share in (0.6, 0.8))
    difference = compare_models(a, b)["ap"]
    assert difference.value == float(b.measures["ap"].value or 0) - float(a.measures["ap"].value or 0)
    assert difference.is_clear
