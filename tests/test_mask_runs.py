"""Mask layers in runs: what they remove is accounted for, and what `skip` spares is nothing that anyone would have kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer import job, skipping
from geoinfer.anywhere import detect
from geoinfer.cluster import connect
from geoinfer.detection import TileRecord
from geoinfer.errors import ConfigError, MaskAlarm, MaskWarning, SourceError
from geoinfer.estimate import plan
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.job import Execution, fingerprint, make_job
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.meter import density_interval
from geoinfer.pipeline import Run, run
from geoinfer.store import RunDirectory, verify
from tests.standins import CHIPS, Failing, StandIn, paint, spec_of, write_scene

LEFT, TOP, GSD = 700_013.5, 620_007.0, 0.5
HEIGHT, WIDTH = 200, 231
DARK, BRIGHT = 10, 240


def box(row: float, col: float, stop_row: float, stop_col: float) -> shapely.Polygon:
    """A rectangle between pixels of the scene, on its map."""
    return shapely.box(LEFT + col * GSD, TOP - stop_row * GSD, LEFT + stop_col * GSD, TOP - row * GSD)


def write_layer(path: Path, *shapes: shapely.Geometry, crs: str = "EPSG:32630") -> Path:
    gpd.GeoDataFrame(geometry=list(shapes), crs="EPSG:32630").to_crs(crs).to_file(path)
    return path


def blank(*roofs: tuple[int, int, int, int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(3, H, W) dark ground with bright rectangles row, col, stop_row, stop_col."""
    pixels = np.full((3, height, width), DARK, np.uint8)
    pixels[:, ::7, ::5] += 1  # no chip is of one colour, which would count as nodata
    for row, col, stop_row, stop_col in roofs:
        pixels[:, row:stop_row, col:stop_col] = BRIGHT
    return pixels


def rows_of(frame: gpd.GeoDataFrame) -> set[tuple[object, ...]]:
    plain = frame.to_wkb().astype(object).where(frame.to_wkb().notna(), None)
    return set(plain.itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    """Roofs everywhere, a corner without imagery, off the lattice."""
    pixels = np.concatenate([paint(HEIGHT, WIDTH, 3, roofs=25), np.full((1, HEIGHT, WIDTH), 255, np.uint8)])
    pixels[3, :50, :70] = 0
    return write_scene(folder / "scene.tif", pixels, photometric="RGB", alpha="YES")


@pytest.fixture(scope="module")
def water(folder: Path) -> Path:
    return write_layer(folder / "water.gpkg", box(20, 60, 190, 200))


@pytest.fixture(scope="module")
def every_action(scene: Path, folder: Path) -> list[str]:
    """A layer of each action, in other shapes and systems; each of them finds something to do."""
    layers = {
        "clip": write_layer(folder / "road.gpkg", box(0, 0, 200, 12), box(100, 20, 110, 231), crs="EPSG:4326"),
        "flag": write_layer(folder / "park.gpkg", shapely.Point(LEFT + 60, TOP - 50).buffer(40), crs="EPSG:3857"),
        "skip": write_layer(folder / "sea.gpkg", box(15, 70, 195, 175)),
        "drop": write_layer(folder / "marsh.gpkg", box(140, 150, 300, 300), crs="EPSG:32631"),
        "keep": write_layer(folder / "town.gpkg", box(-50, -50, 300, 205)),
    }
    return [f"{path}:action={action}" for action, path in layers.items()]


# ---------------------------------------------------------------- what a layer removes, and what it does not


def test_waves_are_removed_and_nothing_outside_the_water_changes(tmp_path: Path) -> None:
    waves = [(row, 120, row + 6, 220) for row in range(8, 190, 14)]
    path = write_scene(tmp_path / "scene.tif", blank((30, 20, 60, 60), (100, 30, 140, 70), *waves))
    lake = box(0, 110, 200, 231)
    masks = [f"{write_layer(tmp_path / 'lake.gpkg', lake)}:negative=yes"]
    without = detect(path, StandIn())
    wet = without.intersects(lake)
    assert wet.sum() == len(waves)
    found = detect(path, StandIn(), masks=masks, mask_alarm=1.0)
    assert not found.intersects(lake).any()
    assert (found.pop("lake_cover") == 0).all()
    assert rows_of(found) == rows_of(without[~wet])
    done = run(make_job(path, model=StandIn(), masks=masks), tmp_path / "run")
    (entry,), (meter,) = done.manifest["masks"], done.manifest["false_positive_meter"]
    assert (entry["tested"], entry["removed"], entry["flagged"]) == (len(waves) + 2, len(waves), 0)
    assert entry["removed_area_m2"] == pytest.approx(without.area_in_meters[wet].sum(), abs=0.1)
    assert entry["area_m2"] == pytest.approx(200 * 121 * 0.25, rel=2e-3)
    assert (meter["inside"]["raw"], meter["outside"]["raw"]) == (len(waves), 2)
    assert meter["inside"]["area_km2"] * 1e6 == pytest.approx(entry["area_m2"])
    assert meter["inside"]["interval_95"][0] < meter["inside"]["kept_per_km2"] < meter["inside"]["interval_95"][1]


def test_a_building_over_a_misplaced_shore_survives_and_shows_it(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", blank((80, 60, 120, 140)))
    shore = write_layer(tmp_path / "water.gpkg", box(-10, 108, 300, 300))  # covers 32 of the building's 80 columns
    found = detect(path, StandIn(), masks=[str(shore)])
    assert found.water_cover.tolist() == [pytest.approx(0.4, abs=0.005)]
    share = found.intersection(box(-10, 108, 300, 300)).area / found.area
    assert found.water_cover.tolist() == [pytest.approx(share[0], abs=1e-9)]
    with pytest.warns(MaskWarning, match="removes 1 of 1 footprints, 100% where more than 20% is an alarm"):
        assert not len(detect(path, StandIn(), masks=[f"{shore}:max_cover=0.3"]))


def test_what_is_found_in_water_tells_how_much_is_false_on_land(tmp_path: Path) -> None:
    """Worlds with more and more false candidates, water and land alike: the meter, which sees no label, follows."""
    shore = write_layer(tmp_path / "water.gpkg", box(0, 300, 600, 600))
    measured, true_rate = [], []
    for world, count in enumerate((4, 12, 25, 50, 90, 140)):
        rng = np.random.default_rng(world)
        roofs = [(row, col, row + 20, col + 24) for row in range(30, 560, 60) for col in range(20, 270, 70)]
        spots = [(row, col, row + 6, col + 6) for row, col in rng.integers(0, 594, (count, 2))]
        path = write_scene(tmp_path / f"{world}.tif", blank(*roofs, *spots, height=600, width=600))
        done = run(make_job(path, model=StandIn(), masks=[str(shore)]), tmp_path / f"run{world}")
        (meter,) = done.manifest["false_positive_meter"]
        measured.append(meter["inside"]["kept_per_km2"])
        dry = done.read()
        is_true = dry.intersects(shapely.union_all([box(*roof) for roof in roofs]))
        true_rate.append((~is_true).sum() / meter["outside"]["area_km2"])
        assert meter["inside"]["interval_95"] == pytest.approx(_interval_by_hand(done), rel=1e-3)
    assert np.corrcoef(measured, true_rate)[0, 1] > 0.95
    assert measured == sorted(measured)


def _interval_by_hand(done: Run) -> tuple[float, float]:
    """Of the density in the water (columns from 300 on), from the file and the lattice."""
    rejected = gpd.read_parquet(done.directory.rejected)
    first = np.array([[int(text[:8], 16), int(text[8:], 16)] for text in rejected["id"]]) - 2**31
    row, col = np.mgrid[0:600, 300:600]
    cores, pixels = np.unique(_core_of(row, col).reshape(-1, 2), axis=0, return_counts=True)
    origin = np.array([-round(TOP / GSD), round(LEFT / GSD)])
    found = _core_of(*(first - origin).T)
    counts = (found[None] == cores[:, None]).all(axis=2).sum(axis=1)
    assert counts.sum() == len(rejected)
    return density_interval(counts.astype(float), pixels * GSD**2 / 1e6)


def _core_of(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """(..., 2) lattice core of pixels of the scene."""
    at = np.stack([row - round(TOP / GSD), col + round(LEFT / GSD)], axis=-1)  # absolute, and so is the lattice
    return at // CHIPS.core


# ---------------------------------------------------------------- law 8: skip equals drop


def run_with(job_masks: list[str], scene: Path, out: Path, k: int = 2, **options: Any) -> Run:
    return run(make_job(scene, model=StandIn(), masks=job_masks), out, execution=Execution(tile=k), **options)


@pytest.mark.parametrize("k", [1, 2, 3, 16])
def test_skipping_finds_the_same_footprints_byte_for_byte(scene: Path, water: Path, tmp_path: Path, k: int) -> None:
    dropped, skipped = (run_with([f"{water}:action={a}"], scene, tmp_path / a, k) for a in ("drop", "skip"))
    assert skipped.footprints.read_bytes() == dropped.footprints.read_bytes()
    (entry,) = skipped.manifest["masks"]
    assert entry["skipped_cores"] > 0 < entry["opened_cores"]
    assert skipped.manifest["chips"] == dropped.manifest["chips"] - entry["skipped_cores"]
    area = skipped.manifest["area_m2"]
    assert area["masked"] == pytest.approx(entry["skipped_m2"], rel=1e-6)
    assert area["done"] + area["masked"] + area["nodata"] == pytest.approx(area["asked"], rel=1e-12)
    assert skipped.manifest["false_positive_meter"][0]["skipped_km2"] == entry["skipped_m2"] / 1e6
    coverage = gpd.read_parquet(skipped.directory.coverage)
    assert coverage.masked_m2.sum() == pytest.approx(area["masked"], rel=1e-12)
    assert (coverage.status == "masked").sum() == skipped.manifest["tiles"]["masked"]
    assert (coverage.done_m2[coverage.status == "masked"] == 0).all()


rectangles = st.tuples(st.integers(-20, 150), st.integers(-20, 180), st.integers(30, 220), st.integers(30, 220))
shapes_of_a_layer = st.lists(rectangles, min_size=1, max_size=3)


bars = st.one_of(
    st.tuples(st.integers(0, 190), st.integers(0, 170), st.integers(6, 14), st.integers(20, 200)),
    st.tuples(st.integers(0, 150), st.integers(0, 220), st.integers(20, 190), st.integers(6, 14)),
)
"""Long buildings: row, column, height, width."""


@given(
    buildings=st.lists(bars, min_size=3, max_size=8),
    seas=st.lists(rectangles, min_size=1, max_size=2),
    other=shapes_of_a_layer,
    cover=st.sampled_from([0.0, 0.4, 0.7, 0.9, 0.99]),
    region=st.sampled_from([None, box(30.2, 20.7, 170.1, 200.3), shapely.Point(LEFT + 50, TOP - 50).buffer(45)]),
    k=st.integers(1, 4),
)
@settings(max_examples=20)
def test_skipping_is_dropping_whatever_the_world_and_the_layers(
    tmp_path_factory: pytest.TempPathFactory, buildings: Any, seas: Any, other: Any, cover: float, region: Any, k: int
) -> None:
    folder = tmp_path_factory.mktemp("law8")
    roofs = [(row, col, row + tall, col + wide) for row, col, tall, wide in buildings]
    path = write_scene(folder / "scene.tif", blank(*roofs))
    beyond = [(-40, -40, 240, 100 + wide // 2) for _, _, _, wide in seas]  # from the left as far as that
    layers = {
        "one": [box(*bounds) for bounds in beyond],
        "two": [box(row, col, row + tall, col + wide) for row, col, tall, wide in other],
    }
    paths = [write_layer(folder / f"{name}.gpkg", *shapes) for name, shapes in layers.items()]
    written = []
    for action, tile in (("drop", 3), ("skip", k)):
        masks = [f"{layer}:action={action},max_cover={cover}" for layer in paths]
        job = make_job(path, model=StandIn(), masks=masks, region=region, bbox_crs="EPSG:32630")
        written.append(run(job, folder / action, execution=Execution(tile=tile)).footprints.read_bytes())
    assert written[0] == written[1]


LATTICE = 101
"""A column of the scene where a core begins."""


@pytest.fixture
def two_seas(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A building across the border of two layers that overlap a little, and neither covers enough of it to remove it."""
    path = write_scene(tmp_path / "scene.tif", blank((70, LATTICE - 26, 100, LATTICE + 26)))
    halves = {"west": box(-50, -50, 300, LATTICE + 5), "east": box(-50, LATTICE - 5, 300, 300)}
    return path, [write_layer(tmp_path / f"{name}.gpkg", half) for name, half in halves.items()]


def test_a_building_between_two_layers_is_not_lost(two_seas: tuple[Path, list[Path]]) -> None:
    path, layers = two_seas
    found = detect(path, StandIn(), masks=[f"{layer}:action=skip,max_cover=0.65" for layer in layers])
    assert len(found) == 1


def test_layers_that_are_not_kept_apart_would_be_noticed(
    two_seas: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipping, "_keep_apart", lambda cores: cores)
    with pytest.raises(AssertionError):
        test_a_building_between_two_layers_is_not_lost(two_seas)


def test_an_outline_that_grows_out_of_its_layer_is_not_lost(tmp_path: Path) -> None:
    """All its pixels lie in cores inside the layer; the grown outline does not."""
    path = write_scene(tmp_path / "scene.tif", blank((70, LATTICE + 1, 90, LATTICE + 20)))
    layer = write_layer(tmp_path / "sea.gpkg", box(-50, LATTICE, 300, 300))
    found = detect(path, StandIn(spec_of(grow_m=2.0)), masks=[f"{layer}:action=skip,max_cover=0.95"])
    assert len(found) == 1


def test_cores_without_slack_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "overshoot_m", lambda *_: 0.0)
    with pytest.raises(AssertionError):
        test_an_outline_that_grows_out_of_its_layer_is_not_lost(tmp_path)


@pytest.fixture(scope="module")
def pier(folder: Path) -> tuple[Path, str]:
    """A building that goes far out over water, up and to the left, into tiles that were done before anyone knew of it."""
    roofs = [(180, 20, 199, 225), (20, 190, 199, 206), (20, 40, 36, 206), (20, 40, 120, 56), (100, 100, 120, 120)]
    path = write_scene(folder / "pier.tif", blank(*roofs))
    sea = write_layer(folder / "harbour.gpkg", box(-60, -60, 178, 300))
    return path, f"{sea}:negative=yes,max_cover=0.7"


def test_a_pier_is_followed_through_all_tiles(pier: tuple[Path, str], tmp_path: Path) -> None:
    path, sea = pier
    dropped = run_with([sea], path, tmp_path / "drop")
    assert len(dropped.read()) == 1
    figures = set()
    for k in (1, 2, 5):
        done = run_with([f"{sea},action=skip"], path, tmp_path / f"skip{k}", k)
        assert done.footprints.read_bytes() == dropped.footprints.read_bytes()
        (entry,) = done.manifest["masks"]
        assert entry["skipped_cores"] > 10 < entry["opened_cores"]
        figures.add(_figures(done))
    assert len(figures) == 1


def test_without_opening_the_pier_would_be_lost(
    pier: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipping.Openings, "lacking", lambda *_: [])
    with pytest.raises(AssertionError):
        test_a_pier_is_followed_through_all_tiles(pier, tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with connect(2) as client:
        yield client


def test_workers_skip_as_one_process_does(pier: tuple[Path, str], tmp_path: Path, cluster: Any) -> None:
    path, sea = pier
    alone = run_with([f"{sea},action=skip"], path, tmp_path / "alone")
    dask = run_with([f"{sea},action=skip"], path, tmp_path / "dask", client=cluster)
    with ThreadPoolExecutor(2) as pool:
        threads = run_with([f"{sea},action=skip"], path, tmp_path / "threads", executor=pool)
    for other in (dask, threads):
        assert other.footprints.read_bytes() == alone.footprints.read_bytes()
        assert other.directory.coverage.read_bytes() == alone.directory.coverage.read_bytes()
        assert _figures(other) == _figures(alone)


def test_a_stopped_run_goes_on_with_what_its_tiles_know(pier: tuple[Path, str], tmp_path: Path) -> None:
    path, sea = pier
    golden = run_with([f"{sea},action=skip"], path, tmp_path / "golden")
    again: list[int] = []

    def interrupt(update: Any) -> None:
        again.append(update.done)
        if again.count(update.total) == 3:  # two tiles were done again by now
            raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="interrupted"):
        run_with([f"{sea},action=skip"], path, tmp_path / "run", progress=interrupt)
    done = run_with([f"{sea},action=skip"], path, tmp_path / "run")
    assert done.resumed == done.manifest["tiles"]["total"]
    assert done.footprints.read_bytes() == golden.footprints.read_bytes()
    assert _figures(done) == _figures(golden)


CODE = """
import sys
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from tests.standins import StandIn
run(make_job(sys.argv[1], model=StandIn(), masks=[sys.argv[2]]), sys.argv[3], execution=Execution(tile=2))
"""
TILES = 20
"""Of the pier, at two cores a side."""


@pytest.mark.kill
@pytest.mark.parametrize(
    "points",
    [
        ["masks_begun"],
        ["masks_prepared"],
        ["tile_replaced:5"],
        [f"tile_started:{TILES + 1}"],  # the first tile that is done again
        [f"tile_written:{TILES + 1}"],
        [f"tile_replaced:{TILES + 1}"],
        ["tile_written:7", "tile_written:13", "tile_replaced:3", "tile_written:1", "tile_replaced:1", "tiles_done"],
    ],
    ids="-".join,
)
def test_a_run_killed_while_it_follows_a_pier_resumes_to_the_same_bytes(
    pier: tuple[Path, str], tmp_path: Path, points: list[str]
) -> None:
    path, sea = pier
    golden, out = run_with([f"{sea},action=skip"], path, tmp_path / "golden"), tmp_path / "run"
    assert golden.manifest["tiles"]["total"] == TILES
    for point in points:
        environment = {**os.environ, "GEOINFER_FAILPOINT": point}
        command = [sys.executable, "-c", CODE, str(path), f"{sea},action=skip", str(out)]
        killed = subprocess.run(command, env=environment, timeout=120, check=False)
        assert killed.returncode == -9
    done = run_with([f"{sea},action=skip"], path, out)
    for name in ("footprints", "rejected", "coverage"):
        assert getattr(done.directory, name).read_bytes() == getattr(golden.directory, name).read_bytes()
    assert _figures(done) == _figures(golden)
    assert verify(done.directory) == []
    assert not list(done.directory.scratch.iterdir())


def test_skipped_cores_are_not_even_read(folder: Path, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", blank((150, 20, 190, 60)))
    sea = write_layer(tmp_path / "sea.gpkg", box(-60, -60, 130, 300))
    source = open_raster(path, gsd=GSD, core=CHIPS.core)
    start = make_job(source, model=StandIn()).region.window
    deep = Window(start.row, start.col, 60, WIDTH)
    broken = Failing(source, deep, error=AssertionError)
    model = StandIn()
    done = run(make_job(broken, model=model, masks=[f"{sea}:action=skip"]), tmp_path / "run", execution=Execution(tile=8))
    assert done.manifest["tiles"]["failed"] == 0
    assert len(done.read()) == 1
    assert sum(model.calls) == done.manifest["chips"] < 40


def test_the_plan_leaves_masked_cores_out_and_reads_no_pixel(scene: Path, water: Path) -> None:
    source = open_raster(scene, gsd=GSD, core=CHIPS.core)
    unreadable = Failing(source, Window(-10_000, -10_000, 40_000, 40_000), error=AssertionError)
    every, spared = (
        plan(make_job(unreadable, model=StandIn(), masks=[f"{water}:action={action}"])) for action in ("drop", "skip")
    )
    assert (every.masked_cores, spared.masked_cores > 0) == (0, True)
    assert every.cores == spared.cores + spared.masked_cores
    assert spared.chip_pixels == spared.cores * CHIPS.chip**2


# ---------------------------------------------------------------- law 4: every footprint, once


def _figures(done: Run) -> str:
    """All that `run.json` says of layers, but for times."""
    told = {name: done.manifest[name] for name in ("masks", "false_positive_meter", "footprints", "chips")}
    for entry in told["masks"]:
        entry.pop("device_s_saved", None)
    return json.dumps(told)


def test_no_figure_and_no_byte_depends_on_the_tile_size(scene: Path, every_action: list[str], tmp_path: Path) -> None:
    runs = [run_with(every_action, scene, tmp_path / f"{k}", k) for k in (1, 4)]
    for name in ("footprints", "rejected"):
        assert len({getattr(done.directory, name).read_bytes() for done in runs}) == 1
    assert len({_figures(done) for done in runs}) == 1
    acted = {e["action"]: e for e in runs[0].manifest["masks"]}
    assert acted["clip"]["clipped"] > 0
    assert acted["flag"]["flagged"] > 0
    assert all(acted[action]["removed"] > 0 for action in ("skip", "drop", "keep"))
    assert acted["skip"]["skipped_cores"] > 0


def test_detect_gives_the_rows_of_the_file_with_layers_too(scene: Path, every_action: list[str], tmp_path: Path) -> None:
    for crs in (None, "EPSG:4326"):
        job = make_job(scene, model=StandIn(), masks=every_action, crs=crs)
        stored = run(job, tmp_path / f"run{crs}").read()
        found = detect(scene, StandIn(), masks=every_action, mask_alarm=1.0, crs=crs, tile=2)
        assert list(found.columns) == list(stored.columns)
        assert found.crs == stored.crs == job.crs
        assert found.to_wkb().astype(object).fillna("").equals(stored.to_wkb().astype(object).fillna(""))


def test_the_output_may_be_in_degrees_and_the_layers_in_anything(scene: Path, folder: Path) -> None:
    shape = shapely.Point(LEFT + 70, TOP - 50).buffer(35)
    here = detect(scene, StandIn(), masks=[str(write_layer(folder / "lake.gpkg", shape))], mask_alarm=1.0)
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:32631", "EPSG:2391"):
        name = f"{crs[5:]}.gpkg"
        masks = [f"{write_layer(folder / name, shape, crs=crs)}:name=lake"]
        there = detect(scene, StandIn(), masks=masks, mask_alarm=1.0, crs="EPSG:4326")
        assert list(there["id"]) == list(here["id"])
        assert there.crs.to_epsg() == 4326
        np.testing.assert_allclose(there.lake_cover, here.lake_cover, atol=1e-3)
        assert 0 < (there.lake_cover > 0).sum() < len(there)


actions = st.sampled_from(["drop", "keep", "clip", "flag", "skip"])


@given(chosen=st.lists(st.tuples(actions, shapes_of_a_layer, st.sampled_from([0.0, 0.5, 0.9])), min_size=1, max_size=3))
@settings(max_examples=10)
def test_accepted_and_rejected_are_all_that_was_found(
    scene: Path, tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, Any, float]]
) -> None:
    folder, masks = tmp_path_factory.mktemp("law4"), []
    for number, (action, shapes, cover) in enumerate(chosen):
        boxes = [box(row, col, row + tall, col + wide) for row, col, tall, wide in shapes]
        path = write_layer(folder / f"layer{number}.gpkg", *boxes)
        masks.append(f"{path}:action={action},max_cover={cover}")
    job = make_job(scene, model=StandIn(), masks=masks, min_area=20.0, min_confidence=0.75)
    done = run(job, folder / "run", execution=Execution(tile=3))
    accepted, rejected, counts = done.read(), gpd.read_parquet(done.directory.rejected), done.manifest["footprints"]
    assert counts["raw"] == counts["accepted"] + sum(counts["rejected"].values()) > 0
    assert (len(accepted), len(rejected)) == (counts["accepted"], sum(counts["rejected"].values()))
    assert not set(accepted["id"]) & set(rejected["id"])
    everything = set(detect(scene, StandIn(), min_area=0.0)["id"])
    found = set(accepted["id"]) | set(rejected["id"])
    assert found == everything if all(action != "skip" for action, *_ in chosen) else found <= everything
    masked = rejected[rejected.layer.notna()]
    assert masked.layer.value_counts().to_dict() == {n: c for n, c in counts["rejected_by_layer"].items() if c}
    assert set(rejected[rejected.layer.isna()].reason) <= {"min_area", "min_confidence"}
    assert rejected[rejected.layer.isna()].covered_share.isna().all()
    remaining = counts["raw"] - sum(counts["rejected"].get(reason, 0) for reason in ("min_area", "min_confidence"))
    for (action, *_), entry in zip(chosen, done.manifest["masks"], strict=True):
        mine = masked[masked.layer == entry["name"]]
        assert (entry["tested"], entry["removed"]) == (remaining, len(mine))
        assert set(mine.reason) <= {f"mask_{action}"}
        assert set(mine.layer_version) <= {entry["version"]}
        assert mine.covered_share.between(0, 1).all()
        assert (accepted[f"{entry['name']}_cover"] > 0).sum() <= entry["flagged"]
        remaining -= len(mine)
    assert remaining == len(accepted)


def test_a_clipped_building_stays_one_row_and_is_measured_again(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", blank((80, 40, 120, 140)))
    road = write_layer(tmp_path / "road.gpkg", box(-10, 80, 300, 100))
    whole = detect(path, StandIn())
    cut = detect(path, StandIn(), masks=[f"{road}:action=clip"], crs="EPSG:4326")
    assert list(cut["id"]) == list(whole["id"])
    assert cut.geom_type.tolist() == ["MultiPolygon"]
    assert cut.area_in_meters[0] == pytest.approx(whole.area_in_meters[0] * (1 - cut.road_cover[0]), rel=1e-6)


def test_a_raster_of_classes_is_a_layer_too(scene: Path, tmp_path: Path) -> None:
    classes = np.full((50, 60), 10, np.uint8)
    classes[10:40, 20:50] = 80
    transform = Affine(2.0, 0, LEFT, 0, -2.0, TOP)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32630", "transform": transform}
    with rasterio.open(tmp_path / "cover.tif", "w", height=50, width=60, **profile) as file:
        file.write(classes, 1)
    as_vector = write_layer(tmp_path / "cover.gpkg", box(40, 80, 160, 200))
    frames = [
        detect(scene, StandIn(), masks=[mask], mask_alarm=1.0)
        for mask in (f"{tmp_path / 'cover.tif'}:classes=80,action=skip", f"{as_vector}:action=skip")
    ]
    assert list(frames[0]["id"]) == list(frames[1]["id"])
    np.testing.assert_allclose(frames[0].cover_cover, frames[1].cover_cover, atol=1e-9)


# ---------------------------------------------------------------- law 7, alarms and faults


def test_every_key_and_byte_of_a_layer_is_in_the_fingerprint(scene: Path, water: Path, tmp_path: Path) -> None:
    plain = make_job(scene, model=StandIn())
    assert "masks" not in plain.describe()  # runs from before there were layers are known again
    other = write_layer(tmp_path / "water.gpkg", box(20, 60, 190, 201))
    copy = tmp_path / "copy" / "water.gpkg"
    copy.parent.mkdir()
    shutil.copy(water, copy)
    layer = MaskLayer.open(water)
    changed = {
        "none": [],
        "base": [layer],
        "action": [f"{water}:action=flag"],
        "max_cover": [f"{water}:max_cover=0.4"],
        "buffer": [f"{water}:buffer=1"],
        "name": [f"{water}:name=lake"],
        "crs": [f"{water}:crs=EPSG:32630"],
        "negative": [f"{water}:negative=no"],
        "bytes": [str(other)],
        "order": [layer, f"{water}:name=lake"],
        "other order": [f"{water}:name=lake", layer],
    }
    marks = {name: fingerprint(make_job(scene, model=StandIn(), masks=m).describe()) for name, m in changed.items()}
    assert len(set(marks.values())) == len(marks)
    assert fingerprint(make_job(scene, model=StandIn(), masks=[str(copy)]).describe()) == marks["base"]
    assert make_job(scene, model=StandIn(), masks=str(water)).masks == (layer,)
    assert {field.name for field in dataclasses.fields(layer)} - {"source"} <= set(layer.describe())


@pytest.fixture
def far_away(tmp_path: Path) -> Path:
    return write_layer(tmp_path / "water.gpkg", box(10_000, 10_000, 10_100, 10_100))


def test_a_layer_that_touches_nothing_is_said_loudly(scene: Path, far_away: Path, tmp_path: Path) -> None:
    told: list[str] = []
    done = run(make_job(scene, model=StandIn(), masks=[str(far_away)]), tmp_path / "run", warn=told.append)
    (text,) = told
    assert "water touches nothing in the region: it lies in 705013.5,614957,705063.5,615007" in text
    assert "the region is 700013.5,619907,700129,620007 in EPSG:32630" in text
    assert done.manifest["masks"][0]["alarms"] == told
    assert done.directory.success.exists()
    with pytest.warns(MaskWarning, match="touches nothing"):
        assert len(detect(scene, StandIn(), masks=[str(far_away)])) == len(done.read())


def test_strict_masks_stop_before_inference_where_a_layer_touches_nothing(
    scene: Path, far_away: Path, tmp_path: Path
) -> None:
    model, execution = StandIn(), Execution(strict_masks=True)
    with pytest.raises(MaskAlarm, match="touches nothing") as caught:
        run(make_job(scene, model=model, masks=[str(far_away)]), tmp_path / "run", execution=execution)
    assert caught.value.exit_code == 5
    with pytest.raises(MaskAlarm, match="touches nothing"):
        detect(scene, model, masks=[str(far_away)], strict_masks=True)
    assert not model.calls
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert run(make_job(scene, model=StandIn()), tmp_path / "run").directory.success.exists()  # the place is free


def test_strict_masks_fail_after_the_outputs_where_too_much_is_removed(scene: Path, water: Path, tmp_path: Path) -> None:
    told: list[str] = []
    strict, job = Execution(strict_masks=True), make_job(scene, model=StandIn(), masks=[str(water)])
    with pytest.raises(MaskAlarm, match=r"water removes \d+ of \d+ footprints") as caught:
        run(job, tmp_path / "run", execution=strict, warn=told.append)
    assert (caught.value.exit_code, len(told)) == (5, 1)
    directory = RunDirectory(tmp_path / "run")
    manifest = directory.read_manifest()
    assert manifest is not None
    assert manifest["state"] == "failed"
    assert manifest["masks"][0]["alarms"] == told
    assert not directory.success.exists()
    assert len(gpd.read_parquet(directory.footprints)) > 0
    with pytest.raises(MaskAlarm):
        detect(scene, StandIn(), masks=[str(water)], strict_masks=True)

    model = StandIn()
    done = run(make_job(scene, model=model, masks=[str(water)]), tmp_path / "run")
    assert not model.calls
    assert verify(done.directory) == []
    with pytest.raises(MaskAlarm):  # a finished run is not judged more mildly
        run(job, tmp_path / "run", execution=strict)
    mild = Execution(strict_masks=True, mask_alarm=1.0)
    run(make_job(scene, model=StandIn(), masks=[str(water)]), tmp_path / "mild", execution=mild)


def test_what_keep_removes_counts_for_the_alarm(scene: Path, folder: Path) -> None:
    town = write_layer(folder / "small_town.gpkg", box(0, 0, 60, 231))
    with pytest.warns(MaskWarning, match="small_town removes"):
        detect(scene, StandIn(), masks=[f"{town}:action=keep"])


def test_an_alarm_is_a_share() -> None:
    with pytest.raises(ConfigError, match="mask alarm"):
        Execution(mask_alarm=20)


def test_a_layer_that_breaks_later_fails_before_any_inference(scene: Path, water: Path, tmp_path: Path) -> None:
    model, path = StandIn(), tmp_path / "water.gpkg"
    shutil.copy(water, path)
    job = make_job(scene, model=model, masks=[str(path)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"water\.gpkg") as caught:
        run(job, tmp_path / "run")
    assert caught.value.exit_code == 4
    assert not model.calls
    path.write_bytes(content)
    assert run(job, tmp_path / "run").directory.success.exists()


def test_prepared_layers_are_the_runs_own_and_go_with_it(scene: Path, water: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(make_job(scene, model=StandIn(), masks=[str(water)]), out)
    assert sorted(p.name for p in first.directory.masks.iterdir()) == ["water.fgb", "water.json"]
    (out / "masks" / ".old.123.fgb").write_bytes(b"half written")
    run(make_job(scene, model=StandIn(), masks=[f"{water}:name=lake"]), out, overwrite=True)
    assert sorted(p.name for p in first.directory.masks.iterdir()) == ["lake.fgb", "lake.json"]
    run(make_job(scene, model=StandIn()), out, overwrite=True)
    assert not first.directory.masks.exists()


def test_a_record_survives_json_and_old_ones_are_read() -> None:
    record = TileRecord(1, 2, (0, 0, 4, 4), "done", None, 1.0, skipped=((3, 4, 0),), opened=((3, 5, 0),), knocks=((6, 7),))
    assert TileRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    old = {name: value for name, value in record.to_json().items() if name not in ("skipped", "opened", "knocks")}
    assert TileRecord.from_json(old).knocks == ()
