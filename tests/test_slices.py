"""Slices add up, small ones are not ranked, planted biases are found; layers against plain loops; what users get wrong."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

from geoinfer.errors import ConfigError, SourceError
from geoinfer.evaluation.assess import Assessment, assess
from geoinfer.evaluation.layers import distance_to, polygon_at, raster_at
from geoinfer.evaluation.slicing import NONE, SliceSpec, parse_slice, parse_slices

UTM = "EPSG:32630"
X, Y = 700_000, 620_000

boxes = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(3, 9), st.integers(3, 9)).map(
        lambda b: box(X + b[0], Y + b[1], X + b[0] + b[2], Y + b[1] + b[3])
    ),
    max_size=12,
)


def frame(shapes: list, **columns: object) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=UTM)


def town(seed: int, rows: int = 40, pitch: int = 50, *, missed: object = None, extra: int = 60) -> tuple:
    """rows x rows houses, and predictions that lack those for which `missed(x, y)` is a greater chance than luck."""
    rng = np.random.default_rng(seed)
    x, y = (axis.ravel() * pitch for axis in np.meshgrid(np.arange(rows), np.arange(rows)))
    size = rng.uniform(5, 12, len(x))
    truth = shapely.box(X + x, Y + y, X + x + size, Y + y + size)
    chance = np.full(len(x), 0.1) if missed is None else missed(x, y)  # type: ignore[operator]
    found = rng.random(len(x)) >= chance
    there = rng.uniform(0, rows * pitch, (extra, 2))
    false = shapely.box(X + there[:, 0], Y + there[:, 1], X + there[:, 0] + 3, Y + there[:, 1] + 3)
    pred = frame([*shapely.transform(truth[found], lambda p: p + 0.4), *false])
    pred["confidence"] = rng.uniform(0.3, 1, len(pred))
    return pred, frame(list(truth), x=x, y=y)


def whole_and_parts(found: Assessment, kind: str) -> tuple[pd.Series, pd.DataFrame]:
    columns = ["tp", "fp", "fn", "n_pred", "n_truth"]
    return found.slices.iloc[0][columns], found.slices.loc[found.slices["slice"] == kind, columns]


@given(boxes, boxes, st.booleans(), st.randoms(use_true_random=False))
def test_slices_of_every_kind_add_up_to_the_whole(pred: list, truth: list, clipped: bool, random: object) -> None:
    reached = any(shape.bounds[0] < X + 33 and shape.bounds[1] < Y + 40 for shape in truth)
    area = frame([box(X, Y, X + 33, Y + 40)]) if clipped and reached else None
    guesses, facts = frame(pred), frame(truth)
    guesses["confidence"] = [random.choice([0.2, 0.55, 0.9, np.nan]) for _ in pred]  # type: ignore[attr-defined]
    facts["roof"] = [random.choice(["tin", "tile", None]) for _ in truth]  # type: ignore[attr-defined]
    guesses["date"] = pd.to_datetime(["2024-05-01"] * len(pred))
    water = frame([box(X + 20, Y, X + 26, Y + 60)])
    regions = frame([box(X, Y, X + 30, Y + 30), box(X + 25, Y, X + 60, Y + 40)], name=["west", "east"])  # they overlap
    kinds = ["size", "density", "confidence", "water", "roof", SliceSpec("place", "polygons", regions), "date"]
    found = assess(guesses, facts, aoi=area, slices=kinds, water=water, replicates=100)
    total = found.evaluation
    for kind in ("size", "density", "confidence", "water", "roof", "place", "date"):
        whole, parts = whole_and_parts(found, kind)
        assert found.slices["value"].map(lambda value: isinstance(value, str)).all()
        assert parts.sum().tolist() == whole.tolist() == [total.tp, total.fp, total.fn, total.n_pred, total.n_truth]


def test_a_slice_of_everything_has_the_figures_and_the_intervals_of_the_whole() -> None:
    pred, truth = town(1)
    found = assess(pred, truth, slices=["size:edges=1"], replicates=200)
    whole, everything = found.slices.iloc[0], found.slices.iloc[2]
    assert everything["value"] == ">= 1 m²"
    for figure in ("precision", "recall", "f1"):
        for end in ("", "_low", "_high"):
            assert whole[figure + end] == everything[figure + end] == getattr(found.measures[figure], end[1:] or "value")
    assert (found.bias.loc[found.bias["value"] == ">= 1 m²", ["f1_gap", "f1_gap_low", "f1_gap_high"]] == 0).all(axis=None)


def test_small_slices_are_marked_and_not_ranked() -> None:
    pred, truth = town(2)
    truth["kind"] = np.where(np.arange(len(truth)) < 12, "rare", "common")
    truth.loc[12:60, "kind"] = "some"
    table = assess(pred, truth, slices=["kind"], replicates=100).slices.set_index("value")
    assert table.loc["rare", "is_small"]
    assert pd.isna(table.loc["rare", "rank"])
    assert "too few" in table.loc["rare", "note"]
    assert table.loc[["common", "some"], "rank"].notna().all()
    assert not table.loc[["common", "some"], "is_small"].any()
    assert pd.isna(table.loc[NONE, "rank"])  # false positives have no kind: not a slice of anything


def test_the_worst_slice_has_rank_1() -> None:
    pred, truth = town(3, missed=lambda x, _: np.where(x < 700, 0.5, 0.05))
    truth["side"] = np.where(truth["x"] < 700, "west", "east")
    table = assess(pred, truth, slices=["side"], replicates=100).slices.set_index("value")
    assert table.loc[["west", "east"], "rank"].tolist() == [1, 2]


def test_planted_under_representation_is_found_and_named_a_likely_cause() -> None:
    pred, truth = town(4, missed=lambda _, y: np.where(y < 600, 0.45, 0.05))
    roofs = np.where(truth["y"] < 600, "thatch", "tile")
    truth["roof"] = roofs
    share = (roofs == "thatch").mean()
    training = frame(list(truth.geometry)).assign(roof=np.where(np.arange(len(truth)) < 0.02 * len(truth), "thatch", "tile"))
    table = assess(pred, truth, slices=["roof"], training=training, replicates=300).bias.set_index("value")
    thatch, tile = table.loc["thatch"], table.loc["tile"]
    assert thatch["recall_gap_high"] < 0
    assert thatch["share_training"] == pytest.approx(0.02, abs=0.001)
    assert thatch["representation"] == pytest.approx(0.02 / share, rel=0.05)
    assert "under-represented" in thatch["finding"]
    assert "likely cause" in thatch["finding"]
    assert tile["finding"] == ""


def test_where_nothing_is_planted_gaps_hold_zero_about_as_often_as_they_say() -> None:
    clear = 0
    for seed in range(30):
        pred, truth = town(100 + seed, rows=25)
        truth["coin"] = np.random.default_rng(seed).choice(["heads", "tails"], len(truth))
        row = assess(pred, truth, slices=["coin"], replicates=200).bias.iloc[0]
        clear += not row["recall_gap_low"] <= 0 <= row["recall_gap_high"]
    assert clear <= 5  # 1.5 expected; more than 5 has a chance below 1 %


def test_a_slice_that_misses_cannot_have_is_not_judged_by_recall() -> None:
    pred, truth = town(5)
    table = assess(pred, truth, slices=["confidence"], replicates=100).slices
    by_confidence = table[table["slice"] == "confidence"]
    assert by_confidence["recall"].isna().all()
    assert by_confidence["note"].str.contains("no recall").all()
    assert by_confidence["precision"].notna().any()


def test_numbers_with_edges_and_columns_called_like_words() -> None:
    pred, truth = town(6)
    truth["size"] = np.arange(len(truth)) % 10
    table = assess(pred, truth, slices=["column:size:edges=3/7,name=storeys"], replicates=100).slices
    assert table.loc[table["slice"] == "storeys", "value"].tolist() == ["< 3", "3 to 7", ">= 7", NONE]


def test_times_are_sliced_by_month() -> None:
    pred, truth = town(7)
    truth["seen"] = pd.to_datetime(np.where(np.arange(len(truth)) % 2, "2024-11-30", "2025-01-02"))
    table = assess(pred, truth, slices=["seen"], replicates=100).slices
    assert table.loc[table["slice"] == "seen", "value"].tolist() == ["2024-11", "2025-01", NONE]


def test_a_raster_is_read_at_the_centroid_in_its_own_system(tmp_path: Path, write_raster: object) -> None:
    rng = np.random.default_rng(8)
    classes = rng.integers(1, 5, (1, 300, 300)).astype(np.uint8)
    classes[0, :20] = 0
    path = write_raster("cover.tif", classes, gsd=7.0, origin=(X - 10, Y + 2090), nodata=0)  # type: ignore[operator]
    x, y = X + rng.uniform(-50, 2150, 400), Y + rng.uniform(-50, 2150, 400)
    found = raster_at(shapely.points(x, y), gpd.GeoSeries([], crs=UTM).crs, path)
    for at in range(400):
        row, col = int((Y + 2090 - y[at]) // 7), int((x[at] - X + 10) // 7)
        inside = 0 <= row < 300 and 0 <= col < 300
        expected = int(classes[0, row, col]) if inside and classes[0, row, col] else None
        assert found[at] == expected


def test_raster_slices_add_up_in_another_system(tmp_path: Path, write_raster: object) -> None:
    pred, truth = town(9)
    west, south, _, north = truth.to_crs(4326).total_bounds
    classes = np.random.default_rng(0).integers(1, 4, (1, 50, 25)).astype(np.uint8)
    size = (north - south) / 50
    path = write_raster("cover.tif", classes, crs="EPSG:4326", gsd=size, origin=(west, north))  # type: ignore[operator]
    found = assess(pred, truth, slices=[f"{path}:name=cover"], replicates=100)
    whole, parts = whole_and_parts(found, "cover")
    assert parts.sum().tolist() == whole.tolist()
    assert found.slices.loc[found.slices["slice"] == "cover", "value"].tolist() == ["1", "2", "3", NONE]


def test_distance_to_a_layer_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(10)
    at = rng.uniform(0, 500, (80, 2))
    shapes = shapely.box(at[:, 0], at[:, 1], at[:, 0] + 10, at[:, 1] + 10)
    lakes = frame(
        [shapely.Point(*p).buffer(r) for p, r in zip(rng.uniform(0, 500, (6, 2)), rng.uniform(5, 60, 6), strict=True)]
    )
    found = distance_to(shapes, lakes, lakes.crs)
    assert found == pytest.approx([min(lake.distance(shape) for lake in lakes.geometry) for shape in shapes], abs=1e-9)
    assert (found == 0).any()
    assert np.isnan(distance_to(shapes, lakes.iloc[:0], lakes.crs)).all()


def test_of_polygons_that_overlap_the_first_decides() -> None:
    regions = frame([box(0, 0, 10, 10), box(5, 0, 20, 10)])
    assert polygon_at(shapely.points([[7, 5], [12, 5], [30, 5]]), regions, regions.crs).tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to slice by"),
        ("size:edge=3", "did you mean edges"),
        ("size:edges=a/b", "edges are numbers"),
        ("size:edges=9/3", "ascending"),
        ("cover.tif:band=0", "counted from 1"),
    ],
)
def test_a_specification_that_cannot_work_is_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_slice(text)


def test_slices_that_cannot_be_made_are_one_clear_line(tmp_path: Path) -> None:
    pred, truth = town(11, rows=8)
    truth["roof"] = "tin"
    truth["id"] = np.arange(len(truth))
    for text, words in (
        ("rof", "did you mean 'roof'"),
        ("water", "--water"),
        ("id", "give edges"),
        ("roof:edges=1/2", "need numbers"),
    ):
        with pytest.raises(ConfigError, match=words):
            assess(pred, truth, slices=[text], replicates=100)
    with pytest.raises(ConfigError, match="two are called so"):
        parse_slices(["size", "size:edges=5"])
    with pytest.raises(SourceError, match=r"gone\.gpkg"):
        assess(pred, truth, slices=[str(tmp_path / "gone.gpkg")], replicates=100)


def test_colons_in_a_path_are_the_paths() -> None:
    spec = parse_slice("/data/a:b/cover.tif:name=land cover,band=2")
    assert (str(spec.source), spec.name, spec.band, spec.kind) == ("/data/a:b/cover.tif", "land cover", 2, "raster")
