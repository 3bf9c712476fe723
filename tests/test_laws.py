"""The laws of the design, on the whole pipeline: laws 1, 3, 4, 5, 7 and 8 here, law 2 in test_stitch, law 6 in test_kill.

With mask layers, laws 4 to 8 are shown in test_mask_runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer import detection
from geoinfer.anywhere import detect
from geoinfer.detection import detect_tile, predict
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.imagery.source import Origin, Source
from geoinfer.job import Execution, Job, fingerprint, make_job
from geoinfer.merge import finish_polygons
from geoinfer.pipeline import run
from geoinfer.region import Region
from geoinfer.vector.polygonize import polygonize
from tests.standins import CHIPS, StandIn, paint, spec_of, write_scene

HEIGHT, WIDTH = 200, 231


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roofs everywhere, a corner without imagery, off the lattice."""
    pixels = np.concatenate([paint(HEIGHT, WIDTH, 3), np.full((1, HEIGHT, WIDTH), 255, np.uint8)])
    pixels[3, :50, :70] = 0
    return write_scene(tmp_path_factory.mktemp("laws") / "scene.tif", pixels, photometric="RGB", alpha="YES")


@pytest.fixture(scope="module")
def source(scene: Path) -> Source:
    return open_raster(scene, gsd=0.5, core=CHIPS.core)


@pytest.fixture(scope="module")
def whole(source: Source) -> np.ndarray:
    """Probabilities of the whole grid."""
    return predict(source, source.grid.window, StandIn())


@pytest.fixture(scope="module")
def everything(scene: Path) -> gpd.GeoDataFrame:
    return detect(scene, StandIn(), tile=16)


windows = st.builds(Window, st.integers(-40, 230), st.integers(-40, 260), st.integers(1, 90), st.integers(1, 90))


def check_window(source: Source, whole: np.ndarray, window: Window) -> None:
    prob = predict(source, window, StandIn())
    inside = window.intersection(source.grid.window)
    expected = np.zeros((window.height, window.width), np.uint8)
    row, col = inside.row - window.row, inside.col - window.col
    expected[row : row + inside.height, col : col + inside.width] = whole[
        inside.row : inside.stop_row, inside.col : inside.stop_col
    ]
    np.testing.assert_array_equal(prob, expected)


# ---------------------------------------------------------------- law 1


@given(window=windows)
def test_the_probability_of_a_pixel_is_the_same_in_every_window(source: Source, whole: np.ndarray, window: Window) -> None:
    check_window(source, whole, window)


def test_a_lattice_that_began_at_the_window_would_be_noticed(
    source: Source, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tied_to_the_window(window: Window, core: int) -> list[Window]:
        rows, cols = range(window.row, window.stop_row, core), range(window.col, window.stop_col, core)
        return [Window(row, col, core, core) for row in rows for col in cols]

    monkeypatch.setattr(detection, "_cores", tied_to_the_window)
    with pytest.raises(AssertionError):
        check_window(source, whole, Window(61, 83, 60, 60))


def test_chips_without_their_context_would_be_noticed(source: Source, whole: np.ndarray) -> None:
    bare = StandIn(spec_of(chips=dataclasses.replace(CHIPS, chip=32, margin=0)))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(predict(source, source.grid.window, bare), whole)


@given(k=st.integers(1, 9))
@settings(max_examples=6)
def test_the_tile_size_changes_no_row(scene: Path, everything: gpd.GeoDataFrame, k: int) -> None:
    assert rows_of(detect(scene, StandIn(), tile=k)) == rows_of(everything)


@given(at_once=st.integers(1, 20))
@settings(max_examples=5)
def test_the_batch_changes_no_row(scene: Path, everything: gpd.GeoDataFrame, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "CHIPS_AT_ONCE", at_once)
        assert rows_of(detect(scene, StandIn())) == rows_of(everything)


boxes = st.tuples(st.integers(0, 150), st.integers(0, 150), st.integers(20, 120), st.integers(20, 120))


@given(box=boxes, k=st.integers(1, 4))
@settings(max_examples=12)
def test_a_smaller_region_finds_the_same_interior_footprints(
    scene: Path, everything: gpd.GeoDataFrame, box: tuple[int, int, int, int], k: int
) -> None:
    left, top = 700_013.5 + box[1] * 0.5 + 0.1, 620_007.0 - box[0] * 0.5 - 0.1
    bbox = (left, top - box[2] * 0.5, left + box[3] * 0.5, top)
    if bbox[0] > 700_013.5 + WIDTH * 0.5 or bbox[3] < 620_007.0 - HEIGHT * 0.5:
        return
    part = detect(scene, StandIn(), bbox=bbox, bbox_crs="EPSG:32630", tile=k)
    interior = part[~part.truncated]
    assert rows_of(interior) <= rows_of(everything[~everything.truncated])
    inside = everything[~everything.truncated & everything.buffer(1.0).within(shapely.box(*bbox))]
    assert set(inside["id"]) <= set(interior["id"])


def rows_of(frame: gpd.GeoDataFrame) -> set[tuple[object, ...]]:
    plain = frame.to_wkb().astype(object).where(frame.to_wkb().notna(), None)
    return set(plain.itertuples(index=False, name=None))


# ---------------------------------------------------------------- law 3


def test_decisions_are_made_on_whole_footprints(scene: Path, source: Source, whole: np.ndarray) -> None:
    """What the tiles give is what one polygonization of the whole gives; a decision before stitching would show."""
    job = make_job(scene, model=StandIn(), min_area=30.0, simplify=2.0)
    prob = whole[source_window(source)]
    polygons = polygonize(
        prob >= 128, prob=prob, valid=prob_valid(source), offset=(job.region.window.row, job.region.window.col)
    )
    expected = finish_polygons(polygons, job, [Origin("scene.tif", None)]).accepted
    found = detect(scene, StandIn(), min_area=30.0, simplify=2.0, tile=1)
    assert len(found) > 3
    assert rows_of(found) == rows_of(expected)


def source_window(source: Source) -> tuple[slice, slice]:
    window = make_job(source, model=StandIn()).region.window
    return slice(window.row, window.stop_row), slice(window.col, window.stop_col)


def prob_valid(source: Source) -> np.ndarray:
    return source.read(source.grid.window).valid[source_window(source)]


# ---------------------------------------------------------------- law 4


@given(min_area=st.sampled_from([0.0, 3.0, 50.0, 1e6]), min_confidence=st.sampled_from([0.0, 0.75, 1.0]))
@settings(max_examples=6)
def test_accepted_and_rejected_are_all_candidates(
    scene: Path, tmp_path_factory: pytest.TempPathFactory, min_area: float, min_confidence: float
) -> None:
    job = make_job(scene, model=StandIn(), min_area=min_area, min_confidence=min_confidence)
    done = run(job, tmp_path_factory.mktemp("law4") / "run")
    counts = done.manifest["footprints"]
    accepted, rejected = done.read(), gpd.read_parquet(done.directory.rejected)
    assert counts["raw"] == counts["accepted"] + sum(counts["rejected"].values()) > 0
    assert (len(accepted), len(rejected)) == (counts["accepted"], sum(counts["rejected"].values()))
    assert not set(accepted["id"]) & set(rejected["id"])
    assert rejected["reason"].notna().all()
    everything = detect(scene, StandIn(), min_area=0.0)
    assert set(accepted["id"]) | set(rejected["id"]) == set(everything["id"])


# ---------------------------------------------------------------- law 5


@given(k=st.integers(1, 5), whole_scene=st.booleans())
@settings(max_examples=6)
def test_every_pixel_asked_for_is_accounted_for(
    scene: Path, tmp_path_factory: pytest.TempPathFactory, k: int, whole_scene: bool
) -> None:
    bbox = None if whole_scene else (700_020.0, 619_930.0, 700_090.0, 620_000.0)
    job = make_job(scene, model=StandIn(), bbox=bbox, bbox_crs="EPSG:32630")
    done = run(job, tmp_path_factory.mktemp("law5") / "run", execution=Execution(tile=k))
    area = done.manifest["area_m2"]
    statuses = ("done", "nodata", "masked", "failed")
    coverage = gpd.read_parquet(done.directory.coverage)
    assert sum(area[s] for s in statuses) == pytest.approx(area["asked"], rel=1e-12)
    assert coverage.area_m2.sum() == pytest.approx(area["asked"], rel=1e-12)
    for status in statuses:
        assert coverage[f"{status}_m2"].sum() == pytest.approx(area[status], rel=1e-12)
    pixels = HEIGHT * WIDTH if bbox is None else 140 * 140
    nodata = 50 * 70 if bbox is None else 36 * 57
    ground = area["asked"] / pixels  # m2 a pixel, true to the projection's scale here
    assert ground == pytest.approx(0.25, rel=2e-3)
    assert area["nodata"] == pytest.approx(nodata * ground, rel=1e-6)
    assert shapely.union_all(coverage.geometry).area == pytest.approx(pixels * 0.25, rel=1e-9)


# ---------------------------------------------------------------- law 7


def test_everything_that_can_change_the_output_changes_the_fingerprint(scene: Path, tmp_path: Path) -> None:
    base = make_job(scene, model=StandIn())
    other = write_scene(tmp_path / "scene.tif", paint(HEIGHT, WIDTH, 4))
    changed = {
        "threshold": make_job(scene, model=StandIn(), threshold=0.6),
        "min_area": make_job(scene, model=StandIn(), min_area=9.0),
        "simplify": make_job(scene, model=StandIn(), simplify=0.0),
        "min_confidence": make_job(scene, model=StandIn(), min_confidence=0.1),
        "crs": make_job(scene, model=StandIn(), crs="EPSG:4326"),
        "bands": make_job(scene, model=StandIn(), bands=(3, 2, 1)),
        "bbox": make_job(scene, model=StandIn(), bbox=(700_020.0, 619_930.0, 700_090.0, 620_000.0), bbox_crs="EPSG:32630"),
        "weights": make_job(scene, model=StandIn(spec_of(weights_sha256="1" * 64))),
        "grow": make_job(scene, model=StandIn(spec_of(grow_m=0.3))),
        "chips": make_job(scene, model=StandIn(spec_of(chips=dataclasses.replace(CHIPS, chip=96, margin=32)))),
        "imagery": make_job(other, model=StandIn()),
        "precision": dataclasses.replace(base, precision="bf16"),
        "device": dataclasses.replace(base, device="cuda:0"),
    }
    marks = {name: fingerprint(job.describe()) for name, job in changed.items()} | {"base": fingerprint(base.describe())}
    assert len(set(marks.values())) == len(marks)
    second = dataclasses.replace(base, device="cuda:1")
    assert fingerprint(second.describe()) == marks["device"]  # which GPU cannot matter
    assert fingerprint(make_job(scene, model=StandIn()).describe()) == marks["base"]


def test_every_field_of_a_job_is_in_its_description(scene: Path) -> None:
    """A field that is added and forgotten in `describe` fails here."""
    accounted = {"source", "region", "spec", "model", "asked", "masks"}  # live objects, described by what identifies them
    told = {"domain"}  # what was found of the imagery; what follows from it is `low_trust`
    job = make_job(scene, model=StandIn())
    square = Region.from_bbox((700_000.0, 619_990.0, 700_010.0, 620_000.0), "EPSG:32630")
    marked = dataclasses.replace(job, low_trust=(True,), places=(("square", square),))
    described = set(marked.describe()["config"])
    assert {field.name for field in dataclasses.fields(Job)} == accounted | described | told
    assert set(job.describe()["config"]) == described - {"low_trust", "places"}  # a job without them is what it was before


# ---------------------------------------------------------------- law 8


def test_a_core_without_a_pixel_to_compute_is_not_inferred(scene: Path, source: Source, whole: np.ndarray) -> None:
    model = StandIn()
    job = make_job(scene, model=model, bbox=(700_020.0, 619_990.0, 700_030.0, 620_000.0), bbox_crs="EPSG:32630")
    chips = 0
    for tile, window in job.tiles(4):
        _, record = detect_tile(tile, window, job.detection(model))
        chips += record.chips
    assert sum(model.calls) == chips <= 4


def test_skipped_cores_change_nothing(scene: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inferring every core and masking afterwards gives the same probabilities."""
    model, window = StandIn(), source.grid.window
    skipped = predict(source, window, model)
    image = source.read(window)
    full = np.zeros_like(skipped)
    for core in detection._cores(window, CHIPS.core):
        chip = source.read(core.grow(CHIPS.margin))
        prob = model.predict(chip.pixels[None], chip.valid[None])[0, 16:48, 16:48]
        inside = core.intersection(window)
        full[inside.row : inside.stop_row, inside.col : inside.stop_col] = prob[: inside.height, : inside.width]
    full[~image.valid] = 0
    np.testing.assert_array_equal(skipped, full)
