"""A run as a user meets it: resumed, refused, stopped, short of luck, on one process or on workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from geoinfer import worker
from geoinfer.anywhere import detect
from geoinfer.cluster import CONFIG, connect
from geoinfer.detection import predict, threshold_to_u8
from geoinfer.errors import ConfigError, OutputError, RegionError, RemoteError, ResourceError, SourceError, TilesFailed
from geoinfer.estimate import plan
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import Interrupted, Progress, run
from geoinfer.store import RunDirectory, verify
from tests.standins import CHIPS, POISON, Deadly, Failing, StandIn, paint, spec_of, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("pipeline") / "scene.tif", paint(200, 231, 3))


@pytest.fixture(scope="module")
def golden(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """`footprints.parquet` of an undisturbed run."""
    done = run(make_job(scene, model=StandIn()), tmp_path_factory.mktemp("golden") / "run")
    return done.footprints.read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIG, "distributed.scheduler.allowed-failures", 0)  # each death costs seconds here
        with connect(2) as client:
            yield client


# ---------------------------------------------------------------- start, resume, refuse


def test_a_finished_run_is_returned_at_once(scene: Path, tmp_path: Path) -> None:
    job = make_job(scene, model=StandIn())
    first = run(job, tmp_path / "run", execution=Execution(tile=2))
    before = first.footprints.stat().st_mtime_ns
    model = StandIn()
    again = run(make_job(scene, model=model), tmp_path / "run", execution=Execution(tile=3))
    assert not model.calls
    assert again.manifest == first.manifest
    assert again.footprints.stat().st_mtime_ns == before
    assert again.resumed == first.manifest["tiles"]["total"]
    assert verify(first.directory) == []


def test_rows_and_bytes_do_not_depend_on_tile_or_run(scene: Path, golden: bytes, tmp_path: Path) -> None:
    for k in (1, 3):
        done = run(make_job(scene, model=StandIn()), tmp_path / f"run{k}", execution=Execution(tile=k))
        assert done.footprints.read_bytes() == golden


def test_detect_gives_the_rows_of_the_file(scene: Path, golden: bytes, tmp_path: Path) -> None:
    (tmp_path / "golden.parquet").write_bytes(golden)
    stored = gpd.read_parquet(tmp_path / "golden.parquet")
    found = detect(scene, StandIn())
    assert found.crs == stored.crs
    assert list(found.columns) == list(stored.columns)
    assert found.to_wkb().astype(object).fillna("").equals(stored.to_wkb().astype(object).fillna(""))


def test_the_directory_of_another_job_is_refused_with_the_difference(scene: Path, tmp_path: Path) -> None:
    run(make_job(scene, model=StandIn()), tmp_path / "run")
    other = make_job(scene, model=StandIn(), threshold=0.7)
    with pytest.raises(OutputError, match=r"config\.threshold: 0\.5 -> 0\.7") as caught:
        run(other, tmp_path / "run")
    assert caught.value.exit_code == 3
    done = run(other, tmp_path / "run", overwrite=True)
    assert done.manifest["job"]["config"]["threshold"] == 0.7


def test_a_stopped_run_keeps_its_tile_size(scene: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(Interrupted):
        run(
            make_job(scene, model=StandIn()),
            tmp_path / "run",
            execution=Execution(tile=2),
            progress=_stop_at(2, stop),
            stop=stop,
        )
    with pytest.raises(OutputError, match="--tile 2"):
        run(make_job(scene, model=StandIn()), tmp_path / "run", execution=Execution(tile=3))


def _stop_at(tiles: int, stop: threading.Event) -> Any:
    def progress(update: Progress) -> None:
        if update.done >= tiles:
            stop.set()

    return progress


def test_a_stopped_run_goes_on_where_it_was(scene: Path, golden: bytes, tmp_path: Path) -> None:
    stop, updates = threading.Event(), []
    job, execution = make_job(scene, model=StandIn()), Execution(tile=2)
    with pytest.raises(Interrupted, match="3 of") as caught:
        run(job, tmp_path / "run", execution=execution, progress=_stop_at(3, stop), stop=stop)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    model = StandIn()
    done = run(make_job(scene, model=model), tmp_path / "run", execution=execution, progress=updates.append)
    assert done.resumed == 3
    assert updates[0].done == 4
    assert updates[-1].done == updates[-1].total == done.manifest["tiles"]["total"]
    assert done.footprints.read_bytes() == golden


def test_ctrl_c_without_a_stop_event_keeps_what_is_committed(scene: Path, golden: bytes, tmp_path: Path) -> None:
    def interrupt(update: Progress) -> None:
        if update.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(make_job(scene, model=StandIn()), tmp_path / "run", progress=interrupt, execution=Execution(tile=2))
    done = run(make_job(scene, model=StandIn()), tmp_path / "run", execution=Execution(tile=2))
    assert done.resumed == 2
    assert done.footprints.read_bytes() == golden


def test_two_runs_on_one_directory_do_not_mix(scene: Path, tmp_path: Path) -> None:
    def second(update: Progress) -> None:
        with pytest.raises(OutputError, match=f"process {os.getpid()}"):
            run(make_job(scene, model=StandIn()), tmp_path / "run")

    run(make_job(scene, model=StandIn()), tmp_path / "run", progress=second)


def test_an_output_that_cannot_be_written_is_an_error_before_any_work(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = StandIn()
    with pytest.raises(OutputError):
        run(make_job(scene, model=model), tmp_path / "file")
    assert not model.calls


def test_paths_may_hold_spaces_and_any_letter_and_be_links(scene: Path, golden: bytes, tmp_path: Path) -> None:
    real = tmp_path / "Straße der Häuser"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    run(make_job(scene, model=StandIn()), tmp_path / "link" / "run 1")
    assert (real / "run 1" / "footprints.parquet").read_bytes() == golden


# ---------------------------------------------------------------- regions


def test_a_region_outside_is_an_error_and_one_without_buildings_an_empty_file(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(RegionError):
        make_job(scene, model=StandIn(), bbox=(10.0, 10.0, 10.1, 10.1))
    done = run(make_job(scene, model=StandIn(), threshold=1.0), tmp_path / "run")
    assert len(done.read()) == 0
    assert list(done.read().columns) == list(detect(scene, StandIn()).columns)
    assert done.read().crs == make_job(scene, model=StandIn()).crs


def test_a_region_smaller_than_a_pixel_is_an_empty_result(scene: Path, tmp_path: Path) -> None:
    bbox = (700_050.01, 619_950.01, 700_050.02, 619_950.02)
    done = run(make_job(scene, model=StandIn(), bbox=bbox, bbox_crs="EPSG:32630"), tmp_path / "run")
    assert done.manifest["tiles"]["total"] == 0
    assert len(done.read()) == 0


def test_the_output_may_be_in_another_crs(scene: Path) -> None:
    here, there = detect(scene, StandIn()), detect(scene, StandIn(), crs="EPSG:4326")
    assert there.crs.to_epsg() == 4326
    assert list(here["id"]) == list(there["id"])
    np.testing.assert_array_equal(here.area_in_meters, there.area_in_meters)


# ---------------------------------------------------------------- plan


def test_the_plan_is_what_the_run_does(scene: Path, tmp_path: Path) -> None:
    job, execution = make_job(scene, model=StandIn()), Execution(tile=2)
    planned, done = plan(job, execution), run(job, tmp_path / "run", execution=execution)
    assert planned.tiles == done.manifest["tiles"]["total"]
    assert planned.cores == done.manifest["chips"]
    assert planned.pixels == 200 * 231
    assert planned.area_km2 == pytest.approx(done.manifest["area_m2"]["asked"] / 1e6, rel=2e-3)


def test_the_plan_reads_no_pixel(scene: Path, tmp_path: Path) -> None:
    source = open_raster(scene, gsd=0.5, core=CHIPS.core)
    unreadable = Failing(source, Window(-10_000, -10_000, 40_000, 40_000), error=AssertionError)
    assert plan(make_job(unreadable, model=StandIn())).tiles > 0


def test_a_plan_of_a_million_by_a_million_pixels_is_made_for_a_small_region(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32630", "tiled": True, "SPARSE_OK": "TRUE"}
    transform = rasterio.Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
    side = 1_000_000
    with rasterio.open(
        path, "w", height=side, width=side, transform=transform, blockxsize=512, blockysize=512, BIGTIFF="YES", **profile
    ):
        pass
    job = make_job(path, model=StandIn(), bbox=(400_000, 4_900_000, 400_100, 4_900_100), bbox_crs="EPSG:32630")
    assert plan(job).pixels == 200 * 200


# ---------------------------------------------------------------- settings


def test_settings_that_cannot_work_say_so() -> None:
    for wrong in (
        {"tile": 0},
        {"batch_size": 0},
        {"in_flight": 0},
        {"retries": -1},
        {"max_failed": 1.5},
        {"on_error": "pray"},
    ):
        with pytest.raises(ConfigError):
            Execution(**wrong)  # type: ignore[arg-type]


def test_a_bbox_and_a_region_together_are_refused(scene: Path) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        make_job(scene, model=StandIn(), bbox=(0, 0, 1, 1), region="a.geojson")
    with pytest.raises(ConfigError, match="threshold"):
        make_job(scene, model=StandIn(), threshold=0.0)
    with pytest.raises(ConfigError, match="coordinate system"):
        make_job(scene, model=StandIn(), crs="EPSG:nonsense")


def test_the_integer_threshold_is_the_first_probability_not_below() -> None:
    for threshold in (1e-9, 0.2, 1 / 3, 0.5, 0.999, 1.0):
        u8 = threshold_to_u8(threshold)
        assert u8 / 255 >= threshold - 1e-9
        assert u8 == 1 or (u8 - 1) / 255 < threshold


def test_not_a_number_and_infinity_do_not_spread(tmp_path: Path) -> None:
    pixels = paint(160, 160, 5).astype(np.float32)
    clean = write_scene(tmp_path / "clean.tif", pixels)
    pixels[0, 80, 80], pixels[1, 20, 130] = np.nan, np.inf
    dirty = write_scene(tmp_path / "dirty.tif", pixels)
    first, second = (open_raster(p, gsd=0.5, core=CHIPS.core, stretch=(0, 255)) for p in (clean, dirty))
    model = StandIn()
    a, b = predict(first, first.grid.window, model), predict(second, second.grid.window, model)
    assert (a == b).mean() > 0.99


def test_a_collar_of_one_colour_is_nodata_and_is_not_inferred(tmp_path: Path) -> None:
    pixels = np.zeros((3, 320, 320), np.uint8)
    pixels[:, :64, :64] = paint(64, 64, 1)
    path = write_scene(tmp_path / "collar.tif", pixels, origin=(700_000.0, 620_000.0))
    model = StandIn()
    done = run(make_job(path, model=model), tmp_path / "run", execution=Execution(tile=2))
    assert sum(model.calls) < 20
    assert done.manifest["tiles"]["nodata"] > 0
    assert done.manifest["area_m2"]["nodata"] > 0.8 * done.manifest["area_m2"]["asked"]


# ---------------------------------------------------------------- faults


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One deflated block of the raster is garbage."""
    path = write_scene(
        tmp_path / "damaged.tif", paint(256, 256, 6), tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    with rasterio.open(path) as file:
        offset = int(
            file.tags(ns="TIFF", bidx=1).get("BLOCK_OFFSET_2_2") or file.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", bidx=1)
        )
    content = bytearray(path.read_bytes())
    content[offset : offset + 400] = bytes(b ^ 0xFF for b in content[offset : offset + 400])
    path.write_bytes(content)
    return path


def test_a_damaged_block_fails_its_tiles_and_no_other(damaged: Path, tmp_path: Path) -> None:
    job = make_job(damaged, model=StandIn(), min_area=0.0)
    with pytest.raises(TilesFailed, match=r"cannot read rows") as caught:
        run(job, tmp_path / "run", execution=Execution(tile=2))
    assert caught.value.exit_code == 5
    directory = RunDirectory(tmp_path / "run")
    assert not directory.success.exists()
    manifest, coverage = directory.read_manifest(), gpd.read_parquet(directory.coverage)
    assert manifest is not None
    area = manifest["area_m2"]
    assert 0 < area["failed"] < area["asked"]
    assert area["done"] + area["failed"] + area["nodata"] == pytest.approx(area["asked"], rel=1e-12)
    failed = coverage[coverage.status == "failed"]
    assert failed.reason.str.contains("damaged.tif: cannot read").all()
    found = gpd.read_parquet(directory.footprints)
    assert len(found) > 0
    assert not found.intersects(failed.union_all().buffer(-0.01)).any()
    assert found[found.touches(failed.union_all())].truncated.all()


def test_a_share_of_failed_tiles_may_be_allowed(damaged: Path, tmp_path: Path) -> None:
    done = run(make_job(damaged, model=StandIn()), tmp_path / "run", execution=Execution(tile=2, max_failed=0.9))
    assert done.manifest["tiles"]["failed"] > 0
    assert done.directory.success.exists()


def test_on_error_fail_stops_at_the_first(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(TilesFailed, match="on-error skip"):
        run(make_job(damaged, model=StandIn()), tmp_path / "run", execution=Execution(tile=1, on_error="fail"))
    with pytest.raises(SourceError, match="cannot read"):
        detect(damaged, StandIn())
    assert len(detect(damaged, StandIn(), on_error="skip")) > 0


def test_failed_tiles_alone_are_tried_again(scene: Path, golden: bytes, tmp_path: Path) -> None:
    source, where = open_raster(scene, gsd=0.5, core=CHIPS.core), Window(100, 100, 1, 1)
    broken = make_job(Failing(source, where, SourceError), model=StandIn())
    with pytest.raises(TilesFailed):
        run(broken, tmp_path / "run", execution=Execution(tile=2))
    failed = gpd.read_parquet(tmp_path / "run" / "coverage.parquet").status.eq("failed").sum()
    done = run(make_job(scene, model=StandIn()), tmp_path / "run", execution=Execution(tile=2))
    assert done.resumed == done.manifest["tiles"]["total"] - failed
    assert done.footprints.read_bytes() == golden


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(
    scene: Path, golden: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.time, "sleep", lambda _: None)
    source, where = open_raster(scene, gsd=0.5, core=CHIPS.core), Window(100, 100, 1, 1)
    flaky = Failing(source, where, RemoteError, times=3, counter=tmp_path / "flaky")
    done = run(make_job(flaky, model=StandIn()), tmp_path / "run", execution=Execution(tile=8, retries=3))
    assert done.footprints.read_bytes() == golden
    assert int((tmp_path / "flaky").read_text()) > 3  # three failures, then each chip that holds the pixel
    permanent = Failing(source, where, SourceError, times=3, counter=tmp_path / "permanent")
    with pytest.raises(TilesFailed):
        run(make_job(permanent, model=StandIn()), tmp_path / "run2", execution=Execution(tile=8, retries=3))
    assert (tmp_path / "permanent").read_text() == "1"


def test_a_full_disk_ends_the_run_with_its_own_status(scene: Path, golden: bytes, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from geoinfer.job import make_job\n"
        "from geoinfer.pipeline import run\n"
        "from tests.standins import StandIn\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "job = make_job(sys.argv[1], model=StandIn())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))\n"
        "try:\n"
        "    run(job, sys.argv[2])\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(scene), str(tmp_path / "run")], timeout=120, check=False)
    assert done.returncode == ResourceError.exit_code == 7
    assert not list((tmp_path / "run").glob("*.parquet"))
    assert run(make_job(scene, model=StandIn()), tmp_path / "run").footprints.read_bytes() == golden


def test_imagery_that_is_replaced_during_the_run_fails_its_tiles(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(200, 231, 3))
    job = make_job(path, model=StandIn())

    def replace(update: Progress) -> None:
        if update.done == 1:
            time.sleep(0.02)
            write_scene(path, paint(200, 231, 4))

    with pytest.raises(TilesFailed, match="changed since"):
        run(job, tmp_path / "run", execution=Execution(tile=2), progress=replace)


def test_a_damaged_tile_file_is_named_with_the_remedy(scene: Path, golden: bytes, tmp_path: Path) -> None:
    stop = threading.Event()
    job, execution = make_job(scene, model=StandIn()), Execution(tile=2)
    with pytest.raises(Interrupted):
        run(job, tmp_path / "run", execution=execution, progress=_stop_at(4, stop), stop=stop)
    victim = max((tmp_path / "run" / "tiles").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    with pytest.raises(OutputError, match="delete it and run the same command again"):
        run(job, tmp_path / "run", execution=execution)
    victim.unlink()
    assert run(job, tmp_path / "run", execution=execution).footprints.read_bytes() == golden


def test_a_run_leaves_nothing_behind_in_its_process(scene: Path, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    job = make_job(scene, model=StandIn())
    run(job, tmp_path / "warm")
    files, threads = open_files(), threading.active_count()
    for i in range(5):
        done = run(job, tmp_path / f"run{i}", execution=Execution(tile=1))
        assert not list(done.directory.scratch.iterdir())
    assert (open_files(), threading.active_count()) == (files, threads)


# ---------------------------------------------------------------- workers


def test_workers_change_no_byte(scene: Path, golden: bytes, tmp_path: Path, cluster: Any) -> None:
    done = run(make_job(scene, model=StandIn()), tmp_path / "run", execution=Execution(tile=2), client=cluster)
    assert done.footprints.read_bytes() == golden
    assert done.manifest["tiles"]["done"] == done.manifest["tiles"]["total"]


def test_workers_that_do_not_share_the_disk_send_their_tiles(
    scene: Path, golden: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectory, "is_held_with", lambda *_: False)
    done = run(make_job(scene, model=StandIn()), tmp_path / "run", executor=_Here(), execution=Execution(tile=2))
    assert done.footprints.read_bytes() == golden


class _Here:
    """An executor that works at once, in this thread."""

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  # what executors do
            future.set_exception(error)
        return future


def test_no_more_tiles_are_in_flight_than_asked_for(scene: Path, tmp_path: Path) -> None:
    late = _Late()
    run(make_job(scene, model=StandIn()), tmp_path / "run", executor=late, execution=Execution(tile=1, in_flight=3))
    assert late.most == 3


class _Late(_Here):
    """Finishes in threads of its own, and counts."""

    def __init__(self) -> None:
        self.flying, self.most, self._lock = 0, 0, threading.Lock()

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self.flying += 1
            self.most = max(self.most, self.flying)

        def work() -> None:
            result = function(*arguments)
            with self._lock:
                self.flying -= 1
            future.set_result(result)

        threading.Timer(0.01, work).start()
        return future


def test_a_tile_that_kills_its_workers_fails_alone(tmp_path: Path, cluster: Any) -> None:
    pixels = paint(200, 231, 3)
    pixels[0, 173:175, 192:194] = POISON  # in the middle of a tile: in no chip of another
    path = write_scene(tmp_path / "poison.tif", pixels)
    with pytest.raises(TilesFailed, match="poison"):
        run(make_job(path, model=Deadly()), tmp_path / "run", execution=Execution(tile=2), client=cluster)
    coverage = gpd.read_parquet(tmp_path / "run" / "coverage.parquet")
    failed = coverage[coverage.status == "failed"]
    assert len(failed) == 1  # the innocent are not blamed
    assert failed.contains(shapely.Point(700_013.5 + 193 * 0.5, 620_007.0 - 174 * 0.5)).all()
    assert (coverage[coverage.status != "failed"].status == "done").all()


def test_a_worker_killed_in_the_middle_changes_no_byte(scene: Path, golden: bytes, tmp_path: Path, cluster: Any) -> None:
    cluster.wait_for_workers(2, timeout=120)  # the test before killed some
    pids = list(cluster.run(os.getpid).values())

    def kill_one(update: Progress) -> None:
        if update.done == 3:
            os.kill(pids[0], signal.SIGKILL)

    job = make_job(scene, model=StandIn(seconds=0.02))
    done = run(job, tmp_path / "run", execution=Execution(tile=1), client=cluster, progress=kill_one)
    assert done.footprints.read_bytes() == golden
    assert done.manifest["tiles"]["failed"] == 0


def test_a_device_that_is_broken_ends_the_worker_not_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.is_device_broken(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not worker.is_device_broken(RuntimeError("shape mismatch"))


def test_a_scheduler_that_is_not_there_is_a_remote_error() -> None:
    with (
        pytest.raises(RemoteError, match="no Dask scheduler") as caught,
        connect(scheduler="tcp://127.0.0.1:9", timeout_s=1),
    ):
        pass
    assert caught.value.exit_code == 6


# ---------------------------------------------------------------- the package


def test_importing_the_package_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time\nsince = time.perf_counter()\nimport geoinfer\n"
        "assert not {'torch', 'rasterio', 'numba', 'distributed', 'geopandas'} & set(sys.modules)\n"
        "assert time.perf_counter() - since < 0.3\n"
        "assert geoinfer.ConfigError is __import__('geoinfer.errors').errors.ConfigError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_can_be_loaded() -> None:
    import geoinfer

    for name in geoinfer.__all__:
        assert getattr(geoinfer, name) is not None
    with pytest.raises(AttributeError):
        _ = geoinfer.nothing
    assert set(geoinfer.__all__) <= set(dir(geoinfer))


def test_the_real_predictor_gives_the_same_rows_for_every_tile_and_batch(scene: Path) -> None:
    first = detect(scene, "tiny", tile=1, batch_size=1, min_area=0.0)
    second = detect(scene, "tiny", tile=4, batch_size=3, min_area=0.0)
    assert len(first) > 0
    assert first.to_wkb().astype(object).fillna("").equals(second.to_wkb().astype(object).fillna(""))


def test_the_model_of_the_manifest_is_the_card(scene: Path, tmp_path: Path) -> None:
    done = run(make_job(scene, model=StandIn(spec_of(version="7"))), tmp_path / "run")
    assert done.manifest["job"]["model"]["weights_sha256"] == "0" * 64
    assert set(done.read()["model"]) == {"stand-in@7"}
    assert done.manifest["job"]["imagery"][0]["name"] == "scene.tif"
    assert str(tmp_path) not in done.directory.manifest.read_text()
