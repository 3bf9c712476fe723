"""A plan is what the run then does: tiles, bytes and requests within a quarter, without a pixel read for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoinfer import estimate, rates
from geoinfer.cli.main import main
from geoinfer.estimate import Plan, plan
from geoinfer.imagery import blocks
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Header, Scene
from geoinfer.job import Execution, Job, make_job
from geoinfer.pipeline import Run, run
from tests.faultserver import faulty
from tests.standins import CHIPS, StandIn, paint, write_scene

EXECUTION = Execution(tile=2, threads=1)
COG = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}


def job_of(sources: Sequence[str | Path], **settings: object) -> Job:
    return make_job([str(source) for source in sources], model=StandIn(), **settings)  # type: ignore[arg-type]


def done(job: Job, folder: Path, execution: Execution = EXECUTION) -> Run:
    blocks.set_capacity()  # forgets what was decoded
    return run(job, folder, execution=execution)


def assert_near(planned: float, counted: float) -> None:
    assert counted > 0
    assert planned == pytest.approx(counted, rel=0.25)


# ---------------------------------------------------------------- plan and run


@pytest.mark.parametrize(
    "profile",
    [COG, {**COG, "interleave": "band"}, {"compress": "lzw"}, {}, {**COG, "compress": "none", "blockxsize": 128}],
    ids=["tiles", "planes", "strips", "plain", "large"],
)
def test_bytes_of_a_local_file_are_those_that_the_run_decodes(tmp_path: Path, profile: dict[str, object]) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(500, 480, 1), **profile)
    job = job_of([path])
    planned, finished = plan(job, EXECUTION), done(job, tmp_path / "run")
    assert planned.tiles == finished.manifest["tiles"]["total"]
    assert planned.cores == finished.manifest["chips"]
    assert_near(planned.stored_bytes, finished.manifest["decoded"]["bytes"])
    assert (planned.requests, planned.fetched_bytes) == (0, 0)
    assert finished.manifest["fetched"] == {"requests": 0, "bytes": 0, "retries": 0}


@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("has_region", [False, True])
def test_requests_over_http_are_those_that_the_server_sees(tmp_path: Path, tile: int, has_region: bool) -> None:
    write_scene(tmp_path / "scene.tif", paint(900, 800, 2), **COG)
    execution = replace(EXECUTION, tile=tile)
    region = {"bbox": (700_100, 619_700, 700_330, 619_960), "bbox_crs": "EPSG:32630"} if has_region else {}
    with faulty(tmp_path) as server:
        job = job_of([server.url("/scene.tif")], **region)
        opened = server.count("/scene.tif")
        planned = plan(job, execution)
        before = server.count("/scene.tif")
        finished = done(job, tmp_path / "run", execution)
        seen = opened + server.count("/scene.tif") - before
    fetched = finished.manifest["fetched"]
    assert_near(planned.requests, fetched["requests"])
    assert_near(planned.requests, seen)
    assert_near(planned.fetched_bytes, fetched["bytes"])
    assert_near(planned.stored_bytes, finished.manifest["decoded"]["bytes"])
    assert before - opened <= 1  # tables that lie beyond the first bytes


def test_imagery_that_is_resampled_is_planned_as_well(tmp_path: Path) -> None:
    write_scene(tmp_path / "fine.tif", paint(1200, 1000, 3), gsd=0.3, **COG)
    with faulty(tmp_path) as server:
        job = job_of([server.url("/fine.tif")])
        planned = plan(job, EXECUTION)
        finished = done(job, tmp_path / "run")
    assert not job.source.placement.native  # type: ignore[attr-defined]
    assert_near(planned.fetched_bytes, finished.manifest["fetched"]["bytes"])
    assert_near(planned.requests, finished.manifest["fetched"]["requests"])


def test_a_mosaic_reads_what_lies_on_top(tmp_path: Path) -> None:
    for n in range(3):
        write_scene(tmp_path / f"{n}.tif", paint(400, 400, n), (700_013.5 + 60 * n, 620_007.0), **COG)
    with faulty(tmp_path) as server:
        job = job_of([server.url(f"/{n}.tif") for n in range(3)])
        planned = plan(job, EXECUTION)
        finished = done(job, tmp_path / "run")
    assert planned.rasters == 3
    assert_near(planned.fetched_bytes, finished.manifest["fetched"]["bytes"])
    assert_near(planned.requests, finished.manifest["fetched"]["requests"])


def test_a_plan_fetches_no_block(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(900, 800, 2), **COG)
    with rasterio.open(path) as file:
        first = int(file.get_tag_item("BLOCK_OFFSET_5_5", "TIFF", bidx=1))
    with faulty(tmp_path) as server:
        job = job_of([server.url("/scene.tif")])
        plan(job, EXECUTION)
        spans = [hit.span for hit in server.hits]
    assert all(span is not None and (span[0] == 0 or span[1] - span[0] <= 2**16) for span in spans)
    assert not any(span is not None and span[0] == first for span in spans)


def test_items_that_declare_their_headers_are_planned_without_being_opened(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(500, 480, 1), **COG)
    with rasterio.open(path) as file:
        header = Header(
            job_of([path]).source.grid.crs, file.transform, file.height, file.width, "uint8", 3, path.stat().st_size
        )
    from geoinfer.imagery.mosaic import open_scenes

    scene = Scene("https://nowhere.invalid/scene.tif", header=header)
    source = open_scenes([scene], SourceOptions(open_headers=False), gsd=0.5, core=CHIPS.core)
    guessed, known = plan(make_job(source, model=StandIn()), EXECUTION), plan(job_of([path]), EXECUTION)
    assert guessed.tiles == known.tiles
    assert guessed.read_pixels == known.read_pixels
    assert_near(guessed.stored_bytes, known.stored_bytes)
    assert guessed.requests > 1
    assert guessed.fetched_bytes >= guessed.stored_bytes


def test_a_plan_of_a_sparse_million_by_a_million_costs_what_its_region_costs(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"crs": "EPSG:32630", "transform": Affine(0.5, 0, 300_000, 0, -0.5, 900_000), "dtype": "uint8", "count": 3}
    sparse = {"SPARSE_OK": True, "BIGTIFF": "YES", "tiled": True, "blockxsize": 1024, "blockysize": 1024}
    with rasterio.open(path, "w", driver="GTiff", height=10**6, width=10**6, **profile, **sparse) as file:
        file.write(np.full((3, 1024, 1024), 90, np.uint8), window=((0, 1024), (0, 1024)))
    region = (300_010.0, 899_000.0, 301_000.0, 899_990.0)
    planned = plan(job_of([path], bbox=region, bbox_crs="EPSG:32630"), Execution(tile=8))
    assert 0 < planned.tiles < 200
    assert 0 < planned.stored_bytes <= 3 * 1024**2  # one block was ever written


# ---------------------------------------------------------------- many tiles, money, time


def test_stretches_of_many_tiles_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(3000, 500, 2), **COG)
    execution = Execution(tile=4)
    exact = plan(job_of([path]), execution)
    monkeypatch.setattr(estimate, "EXACT_TILES", exact.tiles // 2 + 1)
    monkeypatch.setattr(estimate, "_STRETCH", 16)
    sampled = plan(job_of([path]), execution)
    assert (sampled.tiles, sampled.cores, sampled.read_pixels) == (exact.tiles, exact.cores, exact.read_pixels)
    assert sampled.stored_bytes == pytest.approx(exact.stored_bytes, rel=0.25)


def test_the_cost_is_the_device_s_time_at_its_price(tmp_path: Path) -> None:
    job = job_of([write_scene(tmp_path / "scene.tif", paint(500, 480, 1))])
    assert plan(job).cost is None
    planned = plan(job, price_gpu_hour=3600.0)
    assert planned.cost == pytest.approx(planned.device_s, rel=1e-3, abs=1e-3)
    assert planned.device_s == pytest.approx(planned.chip_pixels / planned.rate_mpx_s / 1e6, rel=1e-3, abs=1e-3)


def test_a_rate_is_remembered_by_model_device_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = replace(job_of([write_scene(tmp_path / "scene.tif", paint(220, 231, 1))]), model="named")
    assert plan(job).rate_from == "assumed"
    rates.remember(job, 15, 1.0)  # too few chips to tell
    assert plan(job).rate_from == "assumed"
    rates.remember(job, 1000, 2.0)
    planned = plan(job)
    assert (planned.rate_from, planned.rate_mpx_s) == ("measured", pytest.approx(500 * 64**2 / 1e6, abs=1e-4))
    assert plan(replace(job, precision="bf16")).rate_from == "assumed"
    rates.remember(replace(job, device="cuda"), 1000, 2.0, devices=4)
    assert plan(replace(job, device="cuda:1")).rate_mpx_s == pytest.approx(125 * 64**2 / 1e6, abs=1e-4)
    (tmp_path / "cache" / "geoinfer" / "rates.json").write_text('{"damaged')
    assert plan(job).rate_from == "assumed"


def test_a_run_measures_what_the_next_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scene = write_scene(tmp_path / "scene.tif", paint(300, 300, 1), gsd=0.5)
    job = make_job(scene, model="tiny", device="cpu")
    assert plan(job).rate_from == "assumed"
    finished = run(job, tmp_path / "run", execution=Execution(tile=2, threads=1))
    if finished.manifest["chips"] >= rates.LEAST_CHIPS:
        assert plan(job).rate_from == "measured"


def test_the_program_says_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_scene(tmp_path / "scene.tif", paint(220, 231, 1))
    assert main(["plan", str(scene), "--model", "tiny", "--tile", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= set(Plan.__slots__)
    assert told["rate_from"] in ("measured", "assumed")
