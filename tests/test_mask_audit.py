"""The audit of mask layers: the numbers of `evaluate` after the removal, exactly, whatever layer, threshold and buffer."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from geopandas import GeoDataFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from geoinfer.errors import ConfigError, MaskWarning, SourceError
from geoinfer.evaluation import evaluate
from geoinfer.evaluation.mask_audit import COUNTS, audit_masks, combine_audits, plot_audit, unmasked
from geoinfer.masks.apply import mask_footprints
from geoinfer.masks.layer import MaskLayer

CRS = "EPSG:32630"
EAST, NORTH = 700_000.0, 620_000.0


def rectangle(west: float, south: float, east: float, north: float) -> Polygon:
    """Metres from a corner on the map."""
    return box(EAST + west, NORTH + south, EAST + east, NORTH + north)


def square(x: float, y: float, side: float = 10.0) -> Polygon:
    return rectangle(x, y, x + side, y + side)


def frame(shapes: list[Any]) -> GeoDataFrame:
    return GeoDataFrame(geometry=geopandas.GeoSeries(shapes, crs=CRS))


def layer(folder: Path, shapes: list[Any], **settings: Any) -> MaskLayer:
    path = folder / f"{settings.get('name', 'water')}.fgb"
    frame(shapes).to_file(path)
    return MaskLayer.open(path, **settings)


SQUARES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(5, 25)).map(lambda t: square(*map(float, t))), max_size=8
)


@pytest.mark.filterwarnings("ignore::geoinfer.errors.MaskWarning")  # some layers touch nothing, which is an answer too
@given(pred=SQUARES, truth=SQUARES, water=SQUARES, data=st.data())
@settings(max_examples=30)
def test_each_row_is_what_evaluate_says_after_the_removal(
    tmp_path_factory: pytest.TempPathFactory, pred: list[Any], truth: list[Any], water: list[Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    action = data.draw(st.sampled_from(["drop", "keep", "flag", "skip"]))
    iou = data.draw(st.sampled_from([0.2, 0.5]))
    aoi = data.draw(st.sampled_from([None, frame([square(0, 0, 45)])]))
    if aoi is not None and (not truth or not shapely.box(*frame(truth).total_bounds).intersects(aoi.geometry[0])):
        aoi = None
    known = layer(folder, [square(500, 500), *water], action=action)
    found = frame(pred)
    audited = audit_masks(found, frame(truth), [known], aoi=aoi, max_covers=(0, 0.3), buffers=(-2, 0, 3), iou=iou)
    assert len(audited) == 3 * 3  # its own threshold of 0.5 as well
    for row in audited.to_dict("records"):
        area = shapely.buffer(shapely.union_all(water), row["buffer_m"], quad_segs=64) if water else Polygon()
        share = shapely.area(shapely.intersection(found.geometry.array, area)) / shapely.area(found.geometry.array)
        near = np.abs(share - row["max_cover"]) < 0.01
        if row["buffer_m"] and near.any():
            continue  # how an arc is drawn may decide
        if row["buffer_m"] < 0:
            continue  # shrunk one by one or all together: the layer's affair
        removed = share <= row["max_cover"] + 1e-9 if action == "keep" else share > row["max_cover"] + 1e-9
        expected = evaluate(found[~removed], frame(truth), aoi=aoi, iou=iou)
        assert row["removed"] == removed.sum()
        assert (row["tp"], row["fp"], row["fn"]) == (expected.tp, expected.fp, expected.fn)
        assert (row["precision"], row["recall"], row["f1"]) == (expected.precision, expected.recall, expected.f1)
        before = evaluate(found, frame(truth), aoi=aoi, iou=iou)
        assert (row["precision_before"], row["recall_before"]) == (before.precision, before.recall)
        assert row["tp_before"] - row["tp"] <= row["removed_true"]


def test_its_own_settings_give_what_mask_footprints_leaves(tmp_path: Path) -> None:
    found = frame([square(20 * x, 0) for x in range(10)])
    truth = frame([square(20 * x, 1) for x in range(0, 10, 2)])
    known = layer(tmp_path, [rectangle(-5, -5, 66, 20)], max_cover=0.6, buffer=3)
    own = audit_masks(found, truth, [known]).query("own").to_dict("records")
    assert len(own) == 1
    kept, rejected = mask_footprints(found, [known])
    expected = evaluate(kept, truth)
    assert own[0]["removed"] == len(rejected) == 4
    assert (own[0]["removed_true"], own[0]["removed_false"]) == (2, 2)
    assert (own[0]["tp"], own[0]["precision"], own[0]["recall"]) == (expected.tp, expected.precision, expected.recall)


def test_a_partner_that_a_removal_frees_is_found_again(tmp_path: Path) -> None:
    better, worse = square(0, 0), square(4, 0)
    truth = frame([square(1, 0)])
    known = layer(tmp_path, [rectangle(-1, -1, 4, 11)])
    row = audit_masks(frame([better, worse]), truth, [known], max_covers=(0.3,), buffers=(0,), iou=0.3).iloc[0]
    assert (row["removed"], row["removed_true"]) == (1, 1)
    assert (row["tp_before"], row["tp"]) == (1, 1)
    assert row["recall_cost"] == 0
    assert row["precision_gain"] == 0.5


def test_a_layer_that_is_off_costs_recall_and_a_smaller_buffer_gives_it_back(tmp_path: Path) -> None:
    houses = [square(20 * x, 0) for x in range(10)]  # on land, which begins at x = 0
    waves = [square(-20 * x, 0) for x in range(1, 11)]
    off = layer(tmp_path, [rectangle(-900, -500, 55, 500)], name="sea")  # 55 m too far in
    audited = audit_masks(frame(houses + waves), frame(houses), [off], max_covers=(0.5,), buffers=(-60, 0))
    near, far = audited.to_dict("records")
    assert (far["removed_true"], far["removed_false"], far["recall_cost"]) == (3, 10, pytest.approx(0.3))
    assert (near["removed_true"], near["removed_false"], near["recall_cost"]) == (0, 10, 0.0)
    assert near["precision_gain"] == 0.5


def test_coordinate_systems_may_differ(tmp_path: Path) -> None:
    found, truth = frame([square(20 * x, 0) for x in range(10)]), frame([square(0, 0), square(60, 0)])
    known = layer(tmp_path, [rectangle(-5, -5, 95, 20)])
    here = audit_masks(found, truth, [known], buffers=(0, 20))
    there = audit_masks(found.to_crs(4326), truth.to_crs(3857), [known], buffers=(0, 20))
    pd.testing.assert_frame_equal(here, there)


def test_places_together_add_their_counts(tmp_path: Path) -> None:
    found, truth = frame([square(0, 0), square(30, 0)]), frame([square(0, 0)])
    known = layer(tmp_path, [square(29, -1, 20)])
    part = audit_masks(found, truth, [known])
    both = combine_audits([part, part])
    assert (both[[*COUNTS]] == 2 * part[[*COUNTS]]).all(axis=None)
    pd.testing.assert_series_equal(both["precision_gain"], part["precision_gain"])


def test_missing_and_empty_outlines_are_not_tested(tmp_path: Path) -> None:
    known = layer(tmp_path, [square(-5, -5, 40)])
    row = audit_masks(frame([None, Polygon(), square(0, 0)]), frame([square(0, 0)]), [known], buffers=(0,)).iloc[0]
    assert (row["tested"], row["removed"]) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_covers": (1.5,)}, "max cover 1.5"),
        ({"buffers": (float("nan"),)}, "buffer nan"),
        ({"iou": 0}, "iou 0"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    known = layer(tmp_path, [square(0, 0)])
    with pytest.raises(ConfigError, match=told):
        audit_masks(frame([square(0, 0)]), frame([square(0, 0)]), [known], **settings)


def test_no_layer_and_no_coordinate_system_are_errors(tmp_path: Path) -> None:
    known = layer(tmp_path, [square(0, 0)])
    with pytest.raises(ConfigError, match="no layer given"):
        audit_masks(frame([square(0, 0)]), frame([square(0, 0)]), [])
    with pytest.raises(ConfigError, match="coordinate system"):
        audit_masks(GeoDataFrame(geometry=[square(0, 0)]), frame([square(0, 0)]), [known])


def test_a_layer_that_touches_nothing_warns_once(tmp_path: Path) -> None:
    known = layer(tmp_path, [square(5000, 5000)])
    with pytest.warns(MaskWarning, match="touches none of the footprints") as caught:
        audited = audit_masks(frame([square(0, 0)]), frame([square(0, 0)]), [known])
    assert len(caught) == 1
    assert not audited["removed"].any()


def test_the_curve_is_a_picture_and_its_library_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer(tmp_path, [square(-5, -5, 40)]), layer(tmp_path, [square(25, -5, 40)], name="built", action="keep")]
    audited = audit_masks(frame([square(0, 0), square(30, 0)]), frame([square(0, 0)]), layers)
    plot_audit(audited, tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"geoinfer\[viz\]"):
        plot_audit(audited, tmp_path / "audit.png")


def test_the_raw_footprints_of_a_run_are_the_accepted_and_those_that_layers_rejected(tmp_path: Path) -> None:
    found = frame([square(20 * x, 0) for x in range(4)])
    found["id"] = list("abcd")
    accepted, rejected = mask_footprints(found, [layer(tmp_path, [square(-5, -5, 20)])])
    small = rejected.assign(id="e", reason="min_area", layer=None)
    accepted.to_parquet(tmp_path / "footprints.parquet")
    pd.concat([rejected, small]).to_parquet(tmp_path / "rejected.parquet")
    assert sorted(unmasked(tmp_path)["id"]) == list("abcd")
    with pytest.raises(SourceError, match="not a finished run"):
        unmasked(tmp_path / "nothing")
