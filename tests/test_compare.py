"""Two sets of footprints against each other: counts, the offset that was put in, distributions, files and labels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from geoinfer.errors import ConfigError, OutputError
from geoinfer.evaluation.compare import PARTNER_IOU, Distribution, compare, imagery_differences
from geoinfer.evaluation.report import write_comparison

UTM = "EPSG:32630"
ORIGIN = (500_000.0, 600_000.0)
GROUND = 1 / 0.9996
"""Metres on the ground of a metre of UTM on its central meridian, where the scale is 0.9996 by definition."""


def houses(count: int = 60, seed: int = 0, side: float = 12.0) -> gpd.GeoDataFrame:
    """Squares in a yard each, so that a small shift leads to no other house."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(side * 0.8, side * 1.2, count)
    shapes = [
        box(ORIGIN[0] + 40 * (at % 10), ORIGIN[1] + 40 * (at // 10), ORIGIN[0] + 40 * (at % 10) + size,
            ORIGIN[1] + 40 * (at // 10) + size)
        for at, size in enumerate(sizes)
    ]  # fmt: skip
    return gpd.GeoDataFrame(geometry=shapes, crs=UTM)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_offset_reported_is_the_shift_put_in(east: float, north: float) -> None:
    a = houses()
    found = compare(a, gpd.GeoDataFrame(geometry=a.translate(east, north)))
    if found.offset_m.n < len(a):  # shifted so far that some no longer overlap enough to be told
        return
    for distribution, shift in ((found.offset_x_m, east), (found.offset_y_m, north)):
        assert distribution.median == pytest.approx(shift * GROUND, abs=1e-6)  # coordinates of millions, as doubles
        assert distribution.mean == pytest.approx(shift * GROUND, abs=1e-6)
    assert found.offset_m.median == pytest.approx(math.hypot(east, north) * GROUND, abs=1e-6)


def test_a_shift_too_far_for_a_match_is_still_measured() -> None:
    a = houses()
    found = compare(a, gpd.GeoDataFrame(geometry=a.translate(4.0, 4.0)))
    assert found.both == 0  # IoU of 12 m squares shifted by (4, 4): 64 / 224, below 0.5
    assert found.offset_m.n == len(a)
    assert found.offset_x_m.median == pytest.approx(4.0 * GROUND, abs=1e-6)


def test_the_shift_is_measured_in_degrees_too() -> None:
    a = houses()
    b = gpd.GeoDataFrame(geometry=a.translate(1.5, -2.0)).to_crs(4326)
    found = compare(a.to_crs(4326), b)
    # Both go through an equal-area plane, whose metre differs by about 0.04 % from that of UTM there.
    assert found.offset_x_m.median == pytest.approx(1.5 * GROUND, abs=0.01)
    assert found.offset_y_m.median == pytest.approx(-2.0 * GROUND, abs=0.01)


def test_only_a_only_b_and_both_are_counted() -> None:
    a = houses()
    found = compare(a.iloc[:50], a.iloc[20:], names=("old", "new"))
    assert (found.only_a, found.both, found.only_b) == (20, 30, 10)
    told = found.to_json()
    assert (told["only_a"], told["both"], told["only_b"]) == (20, 30, 10)
    assert told["share_of_a_in_b"] == pytest.approx(30 / 50)
    assert told["iou"]["median"] == pytest.approx(1.0)
    assert told["area_ratio"]["median"] == pytest.approx(1.0)


def test_swapping_the_sides_swaps_the_counts_and_turns_the_offset() -> None:
    a = houses()
    b = gpd.GeoDataFrame(geometry=a.iloc[5:].translate(1.0, 0.5))
    one, other = compare(a, b), compare(b, a)
    assert (one.only_a, one.only_b, one.both) == (other.only_b, other.only_a, other.both)
    assert one.offset_x_m.mean == pytest.approx(-other.offset_x_m.mean)
    assert one.iou == other.iou


def test_footprints_cut_by_the_border_do_not_move_the_offset() -> None:
    a = houses()
    west = gpd.GeoDataFrame(geometry=[box(ORIGIN[0] - 9, ORIGIN[1] - 9, ORIGIN[0] + 206, ORIGIN[1] + 400)], crs=UTM)
    found = compare(a, gpd.GeoDataFrame(geometry=a.translate(2.0, 0.0)), aoi=west)  # cuts the sixth column
    assert found.offset_x_m.n == 5 * 6
    assert found.offset_x_m.p95 == pytest.approx(2.0 * GROUND, abs=1e-6)


@pytest.mark.parametrize("a_is_empty", [True, False])
@pytest.mark.parametrize("b_is_empty", [True, False])
def test_an_empty_side_is_a_result(a_is_empty: bool, b_is_empty: bool, tmp_path: Path) -> None:
    a = houses()
    found = compare(a.iloc[:0] if a_is_empty else a, a.iloc[:0] if b_is_empty else a)
    assert (found.only_a, found.only_b) == (
        0 if a_is_empty or not b_is_empty else 60,
        0 if b_is_empty or not a_is_empty else 60,
    )
    if a_is_empty or b_is_empty:
        assert found.offset_m == Distribution(0, *[None] * 6, found.offset_m.edges, found.offset_m.counts)
    files = write_comparison(found, tmp_path)
    assert "NaN" not in files[0].read_text()
    assert len(gpd.read_parquet(files[1])) == len(found.objects.pred) + len(found.objects.truth)


def test_quantiles_and_bins_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.4, 500)
    found = Distribution.of(values, 0.0, 1.0)
    assert [found.p05, found.p25, found.median, found.p75, found.p95] == np.quantile(
        values, [0.05, 0.25, 0.5, 0.75, 0.95]
    ).tolist()
    assert sum(found.counts) == 500  # those beyond the ends stand in the outermost bins
    assert len(found.edges) == len(found.counts) + 1


def test_files_hold_every_footprint_with_its_outcome(tmp_path: Path) -> None:
    a = houses()
    found = compare(a.iloc[:50], a.iloc[20:], labels=("mind <this>",))
    files = write_comparison(found, tmp_path, inputs={"Truth": "none"})
    assert [path.name for path in files] == ["comparison.json", "objects.parquet", "report.html"]
    table = gpd.read_parquet(files[1])
    assert table.crs == UTM
    counted = table.groupby(["side", "outcome"]).size().to_dict()
    assert counted == {("a", "both"): 30, ("a", "only_a"): 20, ("b", "both"): 30, ("b", "only_b"): 10}
    assert json.loads(files[0].read_text())["labels"] == ["mind <this>"]
    assert set(table["labels"]) == {"mind <this>"}
    assert "mind &lt;this&gt;" in files[2].read_text()
    with pytest.raises(OutputError, match="exists; replace it with --overwrite"):
        write_comparison(found, tmp_path)
    write_comparison(found, tmp_path, overwrite=True)


def test_overlaps_below_the_least_iou_are_not_taken_for_the_same_building() -> None:
    a = gpd.GeoDataFrame(geometry=[box(0, 0, 10, 10)], crs=UTM)
    b = gpd.GeoDataFrame(geometry=[Polygon([(9, 0), (30, 0), (30, 10), (9, 10)])], crs=UTM)
    found = compare(a, b)
    assert 0 < found.objects.pred["best_iou"].iloc[0] < PARTNER_IOU
    assert found.offset_m.n == 0


def test_a_side_without_a_coordinate_system_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no coordinate system"):
        compare(gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)]), houses())


def run_with(folder: Path, *images: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"job": {"imagery": list(images), "region": None}}))
    return folder


def test_imagery_is_the_same_by_content_not_by_name(tmp_path: Path) -> None:
    one = {"name": "a.tif", "size": 3, "sha256": "1" * 64, "bands": [1, 2, 3]}
    base = run_with(tmp_path / "base", one)
    assert imagery_differences(base, run_with(tmp_path / "renamed", {**one, "name": "b.tif"})) == []
    other = imagery_differences(base, run_with(tmp_path / "other", {**one, "sha256": "2" * 64}))
    assert other == ["only in base: a.tif (sha256 111111111111)", "only in other: a.tif (sha256 222222222222)"]
    assert imagery_differences(base, run_with(tmp_path / "bands", {**one, "bands": [3, 2, 1]}))
    assert len(imagery_differences(base, run_with(tmp_path / "more", one, {**one, "sha256": "3" * 64}))) == 1
