"""The fault matrix from end to end: a real run meets each fault, and its status, coverage and areas say what happened.

`docs/faults.md` lists every row of the matrix with its test; here are those that no other file shows from end to end.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine

from geoinfer import dispatch, worker
from geoinfer.cli.main import main
from geoinfer.errors import GeoinferError, RemoteError, TilesFailed
from geoinfer.grid import Window
from geoinfer.imagery import blocks, decode
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.raster import inspect
from geoinfer.imagery.snapshot import Snapshot, read_snapshot
from geoinfer.job import Execution, make_job
from geoinfer.model.registry import find_model
from geoinfer.pipeline import Progress, Run, run
from geoinfer.remote import retry
from geoinfer.remote.access import Access
from tests.faultserver import Server, faulty
from tests.s3server import KEY, SECRET
from tests.standins import StandIn, paint, spec_of, write_scene
from tests.tileserver import capabilities

pytestmark = pytest.mark.fault

SIDE = 256
ORIGIN = (700_013.5, 620_007.0)
TINY = ("--model", "tiny", "--workers", "0", "--tile", "1")
HASTY = SourceOptions(access=Access(tries=2, stall_s=0.4, connect_s=2.0))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses before another try are short, and nothing is remembered of the test before."""
    monkeypatch.setattr(retry, "PAUSE_S", 0.001)
    monkeypatch.setattr(worker.time, "sleep", lambda _: None)
    blocks.set_capacity()
    yield
    blocks.set_capacity()


def cog(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """A cloud-optimized GeoTIFF with overviews, which come before the full resolution in the file."""
    plain = write_scene(path.with_suffix(".plain.tif"), pixels, ORIGIN)
    settled = {"compress": "deflate", "blocksize": 128, "overview_count": 2, "overview_resampling": "average", **options}
    rasterio.shutil.copy(plain, path, driver="COG", **settled)
    plain.unlink()
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cog(tmp_path_factory.mktemp("faults") / "scene.tif", paint(SIDE, SIDE, 3))


@pytest.fixture(scope="module")
def golden(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> gpd.GeoDataFrame:
    """Footprints of an undisturbed run of the command line, as it gives them."""
    out = tmp_path_factory.mktemp("golden") / "RUN"
    assert main(["run", str(scene), "-o", str(out), *TINY, "-q"]) == 0
    return accounted(out)[1]


@pytest.fixture
def served(scene: Path) -> Iterator[Server]:
    with faulty({"/scene.tif": scene.read_bytes()}) as server:
        yield server


@pytest.fixture
def trap() -> Iterator[Server]:
    """A server on a loopback port that nobody typed: it must not see a request."""
    with faulty({}) as server:
        yield server
    assert server.hits == []


Ended = Callable[..., str]


@pytest.fixture
def ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Ended:
    """Run `geoinfer run` into RUN; the status is as expected, an error is one line; what was said."""

    def go(*sources: str | Path, status: int, flags: tuple[str, ...] = (), verb: str = "run") -> str:
        capfd.readouterr()
        out = ("-o", str(tmp_path / "RUN")) if verb == "run" else ()
        found = main([verb, *map(str, sources), *out, *TINY, *flags])
        stdout, stderr = capfd.readouterr()
        assert found == status, stderr
        assert "Traceback" not in stderr
        errors = [line for line in stderr.splitlines() if line.startswith("geoinfer: error: ")]
        assert len(errors) == (status != 0), stderr
        return stdout + stderr

    return go


def accounted(out: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Coverage and footprints of a run, after checking that no pixel that was asked for is missing from the sums."""
    manifest = json.loads((out / "run.json").read_text())
    coverage, found = gpd.read_parquet(out / "coverage.parquet"), gpd.read_parquet(out / "footprints.parquet")
    rejected = gpd.read_parquet(out / "rejected.parquet")
    area = manifest["area_m2"]
    parts = ["done", "nodata", "masked", "failed"]
    assert sum(area[part] for part in parts) == pytest.approx(area["asked"], rel=1e-12)
    for part in parts:
        assert coverage[f"{part}_m2"].sum() == pytest.approx(area[part], rel=1e-9, abs=1e-9)
    assert coverage["area_m2"].sum() == pytest.approx(area["asked"], rel=1e-12)
    counts = manifest["footprints"]
    assert (counts["accepted"], sum(counts["rejected"].values())) == (len(found), len(rejected))
    assert counts["raw"] == len(found) + len(rejected)
    assert manifest["tiles"]["total"] == len(coverage)
    assert (out / "_SUCCESS").exists() == (manifest["state"] == "done")
    failed = coverage[coverage["status"] == "failed"]
    assert failed["reason"].notna().all()
    assert not found.intersects(failed.union_all().buffer(-0.01)).any()
    return coverage, found


def wkb(frame: gpd.GeoDataFrame) -> list[str]:
    return frame.geometry.to_wkb(hex=True).tolist()


def same(found: gpd.GeoDataFrame, golden: gpd.GeoDataFrame) -> bool:
    return wkb(found) == wkb(golden) and found["confidence"].equals(golden["confidence"])


def said(line: str, *words: str) -> None:
    for word in words:
        assert word in line, line


DOCUMENT = Path(__file__).parent.parent / "docs" / "faults.md"


def test_the_page_of_faults_has_every_row_and_names_tests_that_exist() -> None:
    text = DOCUMENT.read_text()
    rows = [
        int(line.split("|")[1])
        for line in text.splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    ]
    assert rows == [*range(1, 27), *range(50, 68)]
    named = re.findall(r"`(\w+)::([a-z]\w+)`", text)
    assert len(named) >= len(rows)
    for module, name in named:
        assert f"def test_{name}(" in (Path(__file__).parent / f"test_{module}.py").read_text(), name


# --- rows 1 to 15: imagery ----------------------------------------------------------------------------------------------


def test_row_1_a_file_that_is_none_is_named_and_the_others_go_on(
    scene: Path, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path
) -> None:
    page, empty = tmp_path / "page.tif", tmp_path / "empty.tif"
    page.write_bytes(b"<!DOCTYPE html><html>404</html>")
    empty.write_bytes(b"")
    said(ended(scene, page, empty, status=4), "page.tif", "web page", "DOCTYPE")
    told = ended(scene, page, empty, status=0, flags=("--on-error", "skip", "--prefer", "given"))
    said(told, "page.tif", "empty.tif")
    assert same(accounted(tmp_path / "RUN")[1], golden)
    remarks = json.dumps(json.loads((tmp_path / "RUN" / "run.json").read_text())["remarks"])
    said(remarks, "page.tif", "empty.tif")


@pytest.mark.parametrize("way", ["local", "http"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_row_2_tiles_over_what_was_cut_off_fail_and_the_others_do_not(
    scene: Path, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path, way: str, share: float
) -> None:
    content = scene.read_bytes()
    cut = tmp_path / "scene.tif"
    cut.write_bytes(content[: int(share * len(content))])
    with rasterio.open(cut, overview_level=0) as overview:
        assert overview.read().any()  # what could have stood in is whole
    with faulty({"/scene.tif": cut.read_bytes()}) as server:
        source = str(cut) if way == "local" else server.url("/scene.tif")
        said(ended(source, status=5), "tiles failed", "cannot read rows")
        coverage, found = accounted(tmp_path / "RUN")
        assert set(coverage["status"]) == {"done", "failed"}
        chips = [chip_of(shape) for shape in coverage.geometry]
        lost = [not readable(cut, chip) for chip in chips]
        assert list(coverage["status"] == "failed") == lost  # those and no other
        intact = coverage[coverage["status"] == "done"].union_all().buffer(-0.01)
        inside = golden[golden.within(intact)]
        assert set(wkb(inside)) <= set(wkb(found))
        assert len(inside) > 3
        ended(source, status=0, flags=("--max-failed", "100%"))  # allowed by the user: finished, and still accounted for
        assert "failed" in set(accounted(tmp_path / "RUN")[0]["status"])


def test_row_2_a_raster_below_does_not_stand_in_for_a_damaged_one(scene: Path, ended: Ended, tmp_path: Path) -> None:
    content = scene.read_bytes()
    cut, below = tmp_path / "cut.tif", cog(tmp_path / "below.tif", paint(SIDE, SIDE, 9))
    cut.write_bytes(content[: len(content) * 2 // 3])
    said(ended(cut, below, status=5), "cut.tif: cannot read rows")
    coverage, _ = accounted(tmp_path / "RUN")
    failed = coverage[coverage["status"] == "failed"]
    assert 0 < len(failed) < len(coverage)
    assert failed["reason"].str.contains("cut.tif").all()


def chip_of(core: shapely.Geometry) -> Window:
    """Pixels of the scene under a tile's chips: all that its probabilities depend on."""
    west, _, _, north = core.bounds
    side = 64 * 0.5  # of a tile: one core of `tiny`
    left, top = np.floor(west / side + 1e-6) * side, np.ceil(north / side - 1e-6) * side
    col, row = round((left - ORIGIN[0]) / 0.5) - 16, round((ORIGIN[1] - top) / 0.5) - 16
    return Window(row, col, 96, 96).intersection(Window(0, 0, SIDE, SIDE))


def readable(path: Path, window: Window) -> bool:
    with rasterio.open(path) as file:
        try:
            file.read(window=rasterio.windows.Window(window.col, window.row, window.width, window.height))
        except rasterio.errors.RasterioIOError:
            return False
    return True


@pytest.mark.parametrize("names", ["snapshot", "item"])
def test_row_4_a_flipped_byte_is_noticed_where_a_checksum_is_given(ended: Ended, tmp_path: Path, names: str) -> None:
    folder = tmp_path / "imagery"
    folder.mkdir()
    path = write_scene(folder / "raw.tif", paint(SIDE, SIDE, 3), ORIGIN)
    if names == "snapshot":
        document = folder / "s.json"
        assert main(["snapshot", str(path), "-o", str(document), "--strict"]) == 0
    else:
        document = folder / "item.json"
        document.write_text(json.dumps(item("raw.tif", sha256=hashlib.sha256(path.read_bytes()).hexdigest())))
    ended(document, status=0)
    shutil.rmtree(tmp_path / "RUN")
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time are what they were
    said(ended(document, status=4), "raw.tif", "changed since")
    assert not (tmp_path / "RUN" / "_SUCCESS").exists()
    ended(path, status=0)  # without a checksum nobody can know


def item(href: str, name: str = "a", sha256: str | None = None) -> dict[str, Any]:
    """A STAC item around the scenes of this file."""
    west, south, east, north = -1.2, 5.5, -1.1, 5.7
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    asset: dict[str, Any] = {"href": href, "type": "image/tiff; application=geotiff", "roles": ["visual"]}
    if sha256 is not None:
        asset["file:checksum"] = "1220" + sha256
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {"datetime": "2024-05-06T07:08:09Z"},
        "links": [],
        "assets": {"visual": asset},
    }


MEASURE = """
import json, resource, sys
from geoinfer.cli.main import main
warm, *commands = json.loads(sys.argv[1])
assert main(warm) == 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for command in commands:
    status = main(command)
    print("told", status, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def measured(*commands: list[str]) -> list[tuple[int, int]]:
    """In a process of their own, after the first: status of each, and how far the resident memory ever rose, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(commands)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("told ")]
    return [(int(status), int(rise)) for _, status, rise in told]


def vast(path: Path, side: int, block: int, dtype: str = "uint8", **options: Any) -> Path:
    """A raster of which nothing was ever written: small, whatever it says of itself."""
    profile = {"driver": "GTiff", "count": 3, "dtype": dtype, "crs": "EPSG:32630", "tiled": True, "sparse_ok": True}
    place = {"transform": Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000), "blockxsize": block, "blockysize": block}
    with rasterio.open(path, "w", height=side, width=side, **profile, **place, **options):
        pass
    return path


SPOT = ("--bbox", "400000,4900000,400100,4900100", "--bbox-crs", "EPSG:32630")


def test_rows_5_and_6_what_a_file_claims_costs_no_memory(scene: Path, tmp_path: Path) -> None:
    bomb = vast(tmp_path / "bomb.tif", 16384, 16384, "uint16", compress="zstd", interleave="pixel")
    huge = vast(tmp_path / "huge.tif", 1_000_000, 512, BIGTIFF="YES")
    with faulty({"/bomb.tif": bomb.read_bytes()}) as server:
        run_it, plan_it = ["run", *TINY, "-o", str(tmp_path / "RUN")], ["plan", *TINY, *SPOT]
        told = measured(
            ["info", str(scene)], [*run_it, str(bomb)], [*run_it, server.url("/bomb.tif")], [*plan_it, str(huge)]
        )
        assert [status for status, _ in told] == [8, 8, 0]
        assert max(rise for _, rise in told) < 100, told
        assert len(server.hits) == 1  # its header was enough


def test_row_6_a_raster_of_a_trillion_pixels_is_guarded_and_done_in_part(ended: Ended, tmp_path: Path) -> None:
    path = vast(tmp_path / "huge.tif", 1_000_000, 512, BIGTIFF="YES")
    said(ended(path, status=2, flags=("--max-pixels", "1000000000")), "1,000,000,000", "max_pixels")
    ended(path, status=2, flags=("--max-pixels", "39999", *SPOT), verb="plan")
    ended(path, status=0, flags=("--max-pixels", "40000", *SPOT))
    coverage, found = accounted(tmp_path / "RUN")
    assert set(coverage["status"]) == {"nodata"}  # never written, so of one colour
    assert len(found) == 0


def test_row_7_bands_that_nobody_can_use_are_named(ended: Ended, tmp_path: Path) -> None:
    many = write_scene(tmp_path / "many.tif", np.zeros((5000, 4, 4), np.uint8))
    said(ended(many, status=4), "many.tif", "5000 bands", "64")
    said(
        ended(write_scene(tmp_path / "two.tif", paint(64, 64, 1)[:2]), status=4), "expected 3 bands", "red, green, blue", "2"
    )


def test_row_7_bands_come_in_the_order_that_the_file_says(golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path) -> None:
    turned = write_scene(tmp_path / "scene.tif", paint(SIDE, SIDE, 3)[::-1], ORIGIN)
    with rasterio.open(turned, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    ended(turned, status=0)
    assert same(accounted(tmp_path / "RUN")[1], golden)


def test_row_10_nodata_alpha_mask_and_nan_give_the_footprints_of_what_is_valid(ended: Ended, tmp_path: Path) -> None:
    pixels = np.maximum(paint(SIDE, SIDE, 3), 1)
    hole = np.zeros((SIDE, SIDE), bool)
    hole[96:224, 120:200] = True
    rgba = ("red", "green", "blue", "alpha")
    frames = {}
    for kind in ("nodata", "alpha", "mask", "nan"):
        path, profile = tmp_path / f"{kind}.tif", {"nodata": 0} if kind == "nodata" else {}
        bright = np.where(hole, 230, pixels)  # a roof, if anybody looks
        if kind == "nodata":
            bright = np.where(hole, 0, pixels)
        elif kind == "alpha":
            bright = np.concatenate([bright, np.where(hole, 0, 255)[None]])
        bright = bright.astype(np.float32 if kind == "nan" else np.uint8)
        if kind == "nan":
            bright[:, hole] = np.nan
        write_scene(path, bright, ORIGIN, **profile)
        if kind in ("alpha", "mask"):
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
                if kind == "alpha":
                    file.colorinterp = [rasterio.enums.ColorInterp[name] for name in rgba]
                else:
                    file.write_mask(~hole)
        ended(path, status=0, flags=("--overwrite", *(("--stretch", "0,255") if kind == "nan" else ())))
        coverage, frames[kind] = accounted(tmp_path / "RUN")
        assert coverage["nodata_m2"].sum() == pytest.approx(hole.sum() * 0.25, rel=2e-3)
    west, north = ORIGIN[0] + 120 * 0.5, ORIGIN[1] - 96 * 0.5
    gone = shapely.box(west, north - 64, west + 40, north).buffer(-1.0)
    for frame in frames.values():
        assert same(frame, frames["nodata"])
        assert not frame.intersects(gone).any()


def test_row_11_one_pixel_that_is_no_number_is_one_pixel_of_nodata(ended: Ended, tmp_path: Path) -> None:
    pixels = paint(SIDE, SIDE, 3).astype(np.float32)
    flags = ("--stretch", "0,255", "--overwrite")
    ended(write_scene(tmp_path / "clean.tif", pixels, ORIGIN), status=0, flags=flags)
    clean = accounted(tmp_path / "RUN")[1]
    pixels[0, 150, 150], pixels[2, 40, 200] = np.nan, -np.inf
    ended(write_scene(tmp_path / "poked.tif", pixels, ORIGIN), status=0, flags=flags)
    coverage, poked = accounted(tmp_path / "RUN")
    assert coverage["nodata_m2"].sum() == pytest.approx(2 * 0.25, rel=2e-3)  # counted, to the pixel
    assert set(coverage["status"]) == {"done"}
    near = [shapely.Point(ORIGIN[0] + col / 2, ORIGIN[1] - row / 2).buffer(15) for row, col in ((150, 150), (40, 200))]
    away = [wkb(frame[~frame.intersects(shapely.union_all(near))]) for frame in (clean, poked)]
    assert away[0] == away[1]
    assert len(away[0]) > 0.9 * len(clean) - 5


@pytest.mark.parametrize("value", [0, 117])
def test_row_12_a_raster_of_one_colour_is_nodata_and_no_error(ended: Ended, tmp_path: Path, value: int) -> None:
    ended(write_scene(tmp_path / "flat.tif", np.full((3, 200, 200), value, np.uint8)), status=0)
    coverage, found = accounted(tmp_path / "RUN")
    assert set(coverage["status"]) == {"nodata"}
    assert json.loads((tmp_path / "RUN" / "run.json").read_text())["chips"] == 0
    assert len(found) == 0


def test_row_13_values_of_another_scale_are_scaled_or_warned_of(
    golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path
) -> None:
    pixels = paint(SIDE, SIDE, 3)
    reflectance = write_scene(tmp_path / "reflectance.tif", pixels.astype(np.uint16) * 40, ORIGIN)  # up to 10,000
    told = ended(reflectance, status=0, flags=("--stretch", "0,255"))
    said(told, "reflectance.tif", "black or white", "--stretch")
    said(ended(reflectance, status=4, flags=("--stretch", "0,255", "--strict-domain", "--overwrite")), "black or white")
    others = {
        "uint16": (pixels.astype(np.uint16) * 40, "0,10200"),
        "int16": (pixels.astype(np.int16) - 128, "-128,127"),
        "float": (pixels.astype(np.float32) / 255, "0,1"),
    }
    for name, (values, stretch) in others.items():
        path = write_scene(tmp_path / f"{name}.tif", values, ORIGIN)
        assert "black or white" not in ended(path, status=0, flags=(f"--stretch={stretch}", "--overwrite"))
        assert same(accounted(tmp_path / "RUN")[1], golden), name
    assert "black or white" not in ended(path, status=0, flags=("--overwrite",))  # by percentiles
    assert len(accounted(tmp_path / "RUN")[1]) > 20


@pytest.mark.parametrize("way", ["local", "http"])
def test_row_14_a_file_replaced_during_the_run_fails_the_tiles_after_it(scene: Path, tmp_path: Path, way: str) -> None:
    other = cog(tmp_path / "other.tif", paint(SIDE, SIDE, 4)).read_bytes()
    path = tmp_path / "scene.tif"
    path.write_bytes(scene.read_bytes())
    with faulty({"/scene.tif": path.read_bytes()}) as server:
        job = make_job(str(path) if way == "local" else server.url("/scene.tif"), model=StandIn(), min_area=0.0)
        undisturbed = run(job, tmp_path / "whole", execution=Execution(tile=1))
        blocks.set_capacity()

        def replace_it(update: Progress) -> None:
            if update.done == 20:
                path.write_bytes(other)
                server.files["/scene.tif"] = other
                blocks.set_capacity()

        with pytest.raises(TilesFailed, match="changed") as caught:
            run(job, tmp_path / "RUN", execution=Execution(tile=1), progress=replace_it)
        assert caught.value.exit_code == 5
    coverage, found = accounted(tmp_path / "RUN")
    assert (coverage["status"] == "done").sum() >= 20
    assert coverage.loc[coverage["status"] == "failed", "reason"].str.contains("changed").all()
    inside = found.within(coverage[coverage["status"] == "done"].union_all().buffer(-0.01))
    assert set(wkb(found[inside & ~found["truncated"]])) <= set(wkb(undisturbed.read()))  # nothing of the other file


def test_row_14_a_block_that_is_written_while_it_is_decoded_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(SIDE, SIDE, 3), ORIGIN)
    file, real = inspect(path), decode.handle

    def and_then_written(file: Any) -> Any:
        dataset = real(file)
        time.sleep(0.02)
        write_scene(path, paint(SIDE, SIDE, 4), ORIGIN)  # after the check, before the pixels are read
        return dataset

    monkeypatch.setattr(decode, "handle", and_then_written)
    with pytest.raises(GeoinferError, match="changed since it was opened"):
        blocks.read_window(file, Window(0, 0, 64, 64))
    assert blocks.remembered() == 0


def test_row_15_a_region_outside_touching_or_within_a_pixel(scene: Path, ended: Ended, tmp_path: Path) -> None:
    west, north = ORIGIN
    utm = ("--bbox-crs", "EPSG:32630", "--overwrite")
    ended(scene, status=0, flags=utm)
    usual = gpd.read_parquet(tmp_path / "RUN" / "footprints.parquet")
    outside = ended(scene, status=4, flags=(f"--bbox={west - 500},{north - 90},{west - 400},{north}", *utm))
    said(outside, f"{west - 500}, {north - 90}", f"{west}, {north - SIDE / 2}")  # both bounds
    said(ended(scene, status=4, flags=(f"--bbox={west - 100},{north - 90},{west},{north}", *utm)), "imagery")  # an edge
    ended(scene, status=0, flags=(f"--bbox={west + 50.01},{north - 50.04},{west + 50.02},{north - 50.03}", *utm))
    found = accounted(tmp_path / "RUN")[1]
    assert len(found) == 0
    assert list(found.columns) == list(usual.columns)
    assert found.crs == usual.crs
    schema = pd.read_parquet(tmp_path / "RUN" / "footprints.parquet").dtypes
    assert schema["confidence"].kind == "f"


# --- rows 16 to 26: remotes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"short": 1000},
        {"reset": 500},
    ],
    ids=["503", "500", "429", "short", "reset"],
)
def test_rows_16_and_20_what_passes_changes_nothing_and_is_counted(
    served: Server, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path, fault: dict[str, Any]
) -> None:
    served.fault("/scene.tif", **fault, times=2)  # while it is opened
    served.fault("/scene.tif", **fault, after=1, times=2)  # while it is read
    ended(served.url("/scene.tif"), status=0)
    assert same(accounted(tmp_path / "RUN")[1], golden)
    fetched = json.loads((tmp_path / "RUN" / "run.json").read_text())["fetched"]
    assert fetched["retries"] >= 2
    assert fetched["bytes"] > 0


def test_row_17_a_server_that_is_gone_from_the_start_is_a_remote_error(served: Server, ended: Ended) -> None:
    served.fault("/scene.tif", status=503)
    since = time.monotonic()
    line = ended(served.url("/scene.tif"), status=6)
    assert time.monotonic() - since < 10
    said(line, "scene.tif", "503", "no answer after 5 tries")
    assert "format" not in line
    assert served.count() == 5


@pytest.mark.parametrize("way", ["status", "stall"])
def test_rows_17_and_19_a_server_that_goes_away_ends_the_run_in_bounded_time(
    served: Server, golden: gpd.GeoDataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    fault = {"status": 503} if way == "status" else {"stall": 10}
    if way == "stall":
        monkeypatch.setattr(dispatch, "MOST_GIVEN_UP", 3)  # each takes its time
    job = make_job(served.url("/scene.tif"), model="tiny", imagery=HASTY)

    def go_away(update: Progress) -> None:
        if update.done == 3:
            served.fault("/scene.tif", **fault)
            blocks.set_capacity()

    since = time.monotonic()
    with pytest.raises(RemoteError, match="no answer after 2 tries") as caught:
        run(job, tmp_path / "RUN", execution=Execution(tile=1, retries=0, threads=1), progress=go_away)
    assert caught.value.exit_code == 6
    assert time.monotonic() - since < 10 + 8 * 2 * 0.4 * 2  # tiles x tries x time without a byte, and room for slow machines
    assert not (tmp_path / "RUN" / "_SUCCESS").exists()
    served.heal()
    done = run(job, tmp_path / "RUN", execution=Execution(tile=1))
    assert done.resumed >= 3  # what was committed is not done again
    assert same(accounted(tmp_path / "RUN")[1], golden)


def test_row_17_tiles_that_may_fail_do_not_end_the_run(served: Server, tmp_path: Path) -> None:
    content = cog(tmp_path / "large.tif", paint(400, 400, 3)).read_bytes()
    served.files["/large.tif"] = content
    job = make_job(served.url("/large.tif"), model=StandIn(), imagery=HASTY)
    served.fault("/large.tif", status=503, at_least=len(content) * 2 // 3)
    run(job, tmp_path / "RUN", execution=Execution(tile=1, retries=0, max_failed=1.0))
    coverage, _ = accounted(tmp_path / "RUN")
    failed = coverage[coverage["status"] == "failed"]
    assert set(coverage["status"]) == {"done", "failed"}
    assert failed["reason"].str.contains("503").all()
    assert len(failed) > dispatch.MOST_GIVEN_UP


def test_row_18_what_is_gone_for_good_is_asked_for_once(served: Server, ended: Ended, tmp_path: Path) -> None:
    said(ended(served.url("/none.tif"), status=4), "404")
    assert served.count("/none.tif") == 1
    served.fault("/scene.tif", status=404, after=1)  # in the middle of the run
    said(ended(served.url("/scene.tif"), status=5), "404")
    coverage, _ = accounted(tmp_path / "RUN")
    assert set(coverage["status"]) == {"failed"}
    asked = [(hit.path, hit.span) for hit in served.hits if hit.path == "/scene.tif"]
    assert len(asked) <= 1 + 2 * len(coverage)  # a chip's ranges, and no second try


CALLED: list[str] = []


def sign(url: str) -> str:
    """A user's signer: the n-th signature."""
    CALLED.append(url)
    return f"{url.partition('?')[0]}?sig={len(CALLED)}"


@pytest.mark.parametrize("helps", [True, False])
def test_row_18_an_expired_signature_is_renewed_once(
    scene: Path, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path, helps: bool
) -> None:
    CALLED.clear()
    with faulty({"/signed.tif": scene.read_bytes()}) as server:
        server.fault("/signed.tif", status=403, after=1, times=1 if helps else None)
        flags = ("--sign", f"{__name__}:sign")
        line = ended(server.url("/signed.tif"), status=0 if helps else 5, flags=flags)
        if helps:
            assert len(CALLED) == 2  # when it was opened, and when it had expired
            assert same(accounted(tmp_path / "RUN")[1], golden)
            assert server.hits[-1].query == "sig=2"
        else:
            said(line, "403", "renewed, in vain")
            coverage, _ = accounted(tmp_path / "RUN")
            refused = server.count() - 1
            assert len(CALLED) <= 1 + len(coverage) + refused // 2  # once for each refusal, which is final
    texts = [path.read_bytes() for path in (tmp_path / "RUN").rglob("*") if path.is_file()]
    assert not any(b"sig=" in text for text in texts)


def test_row_21_damage_that_stays_fails_its_tiles_and_damage_on_the_way_does_not(
    served: Server, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path
) -> None:
    size = len(served.files["/scene.tif"])
    garbled = (size * 3 // 4, size - 500)
    served.fault("/scene.tif", corrupt=garbled, after=1, times=2, at_least=4096)
    ended(served.url("/scene.tif"), status=0)
    assert same(accounted(tmp_path / "RUN")[1], golden)
    blocks.set_capacity()
    served.fault("/scene.tif", corrupt=garbled)
    said(ended(served.url("/scene.tif"), status=5, flags=("--overwrite",)), "scene.tif: cannot read rows")
    coverage, found = accounted(tmp_path / "RUN")
    assert set(coverage["status"]) == {"done", "failed"}
    assert len(found) > 3


def test_row_22_a_server_without_ranges_is_told(served: Server, ended: Ended) -> None:
    served.fault("/scene.tif", no_range=True)
    said(ended(served.url("/scene.tif"), status=4), "scene.tif", "needs range requests")
    assert served.count() == 1


def test_row_23_what_a_tile_server_does_not_have_is_nodata_and_never_black(ended: Ended, tmp_path: Path) -> None:
    import morecantile

    grid, zoom = morecantile.tms.get("WebMercatorQuad"), 18
    first = grid.tile(-1.0, 5.0, zoom)
    picture, black = paint(256, 256, 5), np.zeros((3, 256, 256), np.uint8)
    at = {(dx, dy): f"/{zoom}/{first.x + dx}/{first.y + dy}.png" for dx in (0, 1) for dy in (0, 1)}
    with faulty({at[0, 0]: png(picture), at[1, 0]: png(black), at[0, 1]: png(picture)}) as server:
        server.fault(at[0, 1], status=204, body=b"")
        corner, opposite = grid.bounds(first), grid.bounds(first.x + 1, first.y + 1, zoom)
        box = (corner.left + 1e-7, opposite.bottom + 1e-7, opposite.right - 1e-7, corner.top - 1e-7)
        flags = ("--bbox=" + ",".join(map(repr, box)), "--zoom", str(zoom), "--tile-cache", str(tmp_path / "cache"))
        ended(f"xyz:{server.address}/{{z}}/{{x}}/{{y}}.png", status=0, flags=flags)
        coverage, found = accounted(tmp_path / "RUN")
        share = coverage["nodata_m2"].sum() / coverage["area_m2"].sum()
        assert share == pytest.approx(0.75, abs=0.02)
        assert len(found) > 3
        assert found.to_crs(4326).within(shapely.box(*corner).buffer(1e-5)).all()
        assert {server.count(path) for path in at.values()} == {1}


def png(pixels: np.ndarray) -> bytes:
    with rasterio.MemoryFile() as memory:
        count, height, width = pixels.shape
        with rasterio.open(memory.name, "w", driver="PNG", count=count, height=height, width=width, dtype="uint8") as file:
            file.write(pixels)
        return bytes(memory.read())


BOX = "--bbox=-1.2,5.5,-1.1,5.7"


def api(address: str, pages: dict[str, dict[str, Any]], failing: dict[str, int]) -> Callable[..., tuple[int, Any]]:
    """A STAC API of a few pages: page -> document; page -> how often it answers 502 first."""

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
        links = [{"rel": "search", "href": f"{address}/search", "type": "application/geo+json", "method": "GET"}]
        if path != "/search":
            document = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "x"}
            return 200, {**document, "conformsTo": conforms, "links": links}
        number = query.get("page", "1")
        if failing.get(number, 0):
            failing[number] -= 1
            return 502, {}
        return 200, pages[number]

    return answer


def page(items: list[dict[str, Any]], following: str | None = None) -> dict[str, Any]:
    links = [{"rel": "next", "href": following, "type": "application/geo+json", "method": "GET"}] if following else []
    return {"type": "FeatureCollection", "features": items, "links": links}


def test_row_24_a_search_in_pages_with_faults_ends_in_the_run_of_its_items(
    served: Server, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path
) -> None:
    from tests.test_stac import answering

    pages: dict[str, dict[str, Any]] = {}
    failing = {"3": 2}
    with answering(lambda *_: (500, {})) as server:
        server.answer = api(server.address, pages, failing)
        source, flags = f"stac+{server.address}", (BOX, "--allow-host", served.host)
        pages["1"] = page([])
        said(ended(source, status=4, flags=flags), "0 items matched")
        one = item(served.url("/scene.tif"))
        for number in (1, 2, 3):
            pages[str(number)] = page([one], f"{server.address}/search?page={number + 1}")
        pages["4"] = page([])
        ended(source, status=0, flags=flags)
        _, found = accounted(tmp_path / "RUN")
        assert same(found, golden)
        manifest = json.loads((tmp_path / "RUN" / "run.json").read_text())
        assert len(manifest["job"]["imagery"]) == 1  # three times the same item
        assert failing == {"3": 0}
        assert set(found["imagery"]) == {"a"}
        pages["4"] = page([one], f"{server.address}/search?page=1")  # and round again
        line = ended(source, status=4, flags=(*flags, "--overwrite"))
        said(line, "page")
        assert len(server.hits) < 500


@pytest.mark.parametrize("kind", ["name", "port", "proxy"])
def test_row_25_no_way_to_a_server_is_a_remote_error(ended: Ended, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    host = {"name": "no-such-host.invalid", "port": "127.0.0.1:9", "proxy": "example.com"}[kind]
    if kind == "proxy":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "")
    since = time.monotonic()
    said(ended(f"http://{host}/scene.tif?sig=hidden", status=6), host.partition(":")[0], "no answer after 5 tries")
    assert time.monotonic() - since < 60  # most of it is a resolver's own time-out, where there is no network


def test_row_26_a_store_that_is_slow_is_asked_again_and_one_that_denies_is_not(
    scene: Path, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault_of(code: str) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>x</Message></Error>".encode()

    with faulty({"/imagery/scene.tif": scene.read_bytes()}) as store:
        names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
        for name, value in zip(names, (store.address, KEY, SECRET, "us-east-1"), strict=True):
            monkeypatch.setenv(name, value)
        store.fault(status=503, body=fault_of("SlowDown"), times=2)
        store.fault(status=503, body=fault_of("SlowDown"), after=1, times=2)
        told = ended("s3://imagery/scene.tif", status=0, flags=("-v",))
        assert same(accounted(tmp_path / "RUN")[1], golden)
        before = store.count()
        store.heal()
        store.fault(status=403, body=fault_of("AccessDenied"))
        told += ended("s3://imagery/other.tif", status=4)
        said(told, "AccessDenied")
        assert store.count() - before == 1
    texts = [told.encode(), *(path.read_bytes() for path in (tmp_path / "RUN").rglob("*") if path.is_file())]
    assert not any(secret.encode() in text for text in texts for secret in (KEY, SECRET))


# --- rows 50 to 57: geometry --------------------------------------------------------------------------------------------


def test_rows_50_and_52_bad_features_are_repaired_or_counted_and_a_run_goes_on(
    scene: Path, golden: gpd.GeoDataFrame, ended: Ended, tmp_path: Path
) -> None:
    west, north = ORIGIN
    x, y = west + 20, north - 20
    bow = shapely.Polygon([(x, y), (x + 40, y - 40), (x + 40, y), (x, y - 40)])
    mixed = shapely.GeometryCollection([shapely.box(x + 60, y - 30, x + 90, y), shapely.Point(x, y)])
    shapes = [bow, mixed, shapely.Polygon(), None]
    layer = tmp_path / "bad.gpkg"
    gpd.GeoDataFrame(geometry=shapes, crs="EPSG:32630").to_file(layer, engine="pyogrio")
    ended(scene, status=0, flags=("--mask", f"{layer}:action=drop,max_cover=0.5,negative=no"))
    _, found = accounted(tmp_path / "RUN")
    (entry,) = json.loads((tmp_path / "RUN" / "run.json").read_text())["masks"]
    assert entry["repaired"] >= 1
    assert entry["dropped"]
    assert entry["removed"] == len(golden) - len(found) > 0
    broken = tmp_path / "broken.gpkg"
    broken.write_bytes(layer.read_bytes()[: layer.stat().st_size // 3])
    said(ended(scene, status=4, flags=("--overwrite", "--mask", str(broken))), "broken.gpkg")
    nothing = tmp_path / "nothing.gpkg"
    gpd.GeoDataFrame(geometry=[], crs="EPSG:32630").to_file(nothing, engine="pyogrio", geometry_type="Polygon")
    told = ended(scene, status=0, flags=("--overwrite", "--mask", str(nothing)))
    said(told, "touches nothing in the region")
    assert same(accounted(tmp_path / "RUN")[1], golden)


@pytest.mark.parametrize("box", ["0,90,10,90", "0,91,10,92", "-541,0,-539,1", "10,89.9,20,95", "0,0,1,1e308"])
def test_row_54_a_box_that_is_not_on_earth_is_refused(scene: Path, ended: Ended, box: str) -> None:
    said(ended(scene, status=2, flags=(f"--bbox={box}",)), "bbox")


@pytest.mark.parametrize("box", ["-180,84,180,90", "-180,-90,180,-80", "170,80,-170,86"])
def test_row_54_the_ends_of_the_earth_are_boxes_as_any(scene: Path, ended: Ended, box: str) -> None:
    line = ended(scene, status=4, flags=(f"--bbox={box}",))
    said(line, "outside all imagery")
    assert not any(word in line.replace("geoinfer", "") for word in ("inf", "nan", "e+"))


def test_row_57_coordinates_keep_a_millionth_of_a_pixel_at_ten_million_metres(tmp_path: Path) -> None:
    origin = (499_999.5, 9_999_999.5)
    path = write_scene(tmp_path / "far.tif", paint(SIDE, SIDE, 3), origin, crs="EPSG:32730")
    spec = spec_of(simplify_m=0.0, min_area_m2=0.0)
    done: Run = run(make_job(path, model=StandIn(spec)), tmp_path / "RUN", execution=Execution(tile=2))
    corners = shapely.get_coordinates(accounted(tmp_path / "RUN")[1].geometry.to_numpy())
    assert corners.dtype == np.float64
    assert len(corners) > 100
    pixels = (corners - origin) / 0.5
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-6
    assert done.manifest["state"] == "done"


# --- rows 58 to 67: security --------------------------------------------------------------------------------------------


def test_rows_58_and_62_documents_and_archives_in_place_of_imagery_are_refused(
    scene: Path, ended: Ended, tmp_path: Path
) -> None:
    packed = tmp_path / "scene.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(scene, "scene.tif")
        archive.writestr("zeros", b"\0" * 50_000_000)
    said(ended(packed, status=4), "scene.zip")
    for text in (f"/vsizip/{packed}/scene.tif", f"zip://{packed}!scene.tif", "<GDAL_WMS/>", "vrt://x.tif", "MEM:::X"):
        ended(text, status=8)
    shutil.copy(packed, tmp_path / "disguised.tif")
    said(ended(tmp_path / "disguised.tif", status=4), "not a GeoTIFF")
    region = tmp_path / "region.zip"
    region.write_bytes(packed.read_bytes())
    virtual = f"/vsizip/{region}"
    for flag, text, status in (("region", region, 4), ("region", virtual, 4), ("mask", packed, 4), ("mask", virtual, 8)):
        said(ended(scene, status=status, flags=(f"--{flag}", str(text))), "/vsizip" if text is virtual else Path(text).name)


def vrt_of(path: Path, name: str) -> str:
    with rasterio.open(path) as file:
        transform = ", ".join(map(str, file.transform.to_gdal()))
        height, width = file.shape
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">{name}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    head = f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32630</SRS>'
    return f"{head}<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"


def test_row_59_a_vrt_that_leaves_its_folder_is_refused(scene: Path, ended: Ended, tmp_path: Path, trap: Server) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.tif").symlink_to(scene)
    shutil.copy(scene, tmp_path / "outside.tif")
    for name in ("../outside.tif", str(scene), "link.tif", f"/vsicurl/{trap.url('/a.tif')}", trap.url("/a.tif")):
        (inner / "all.vrt").write_text(vrt_of(scene, name))
        ended(inner / "all.vrt", status=8, flags=("--allow-vrt",))
        ended(inner / "all.vrt", status=8)


METADATA = "http://169.254.169.254/latest/meta-data/a.tif"


@pytest.mark.parametrize("kind", ["redirect", "item", "link", "index", "wmts", "xyz", "snapshot", "mask"])
def test_row_60_no_document_leads_to_a_host_that_nobody_named(
    scene: Path, served: Server, ended: Ended, trap: Server, tmp_path: Path, kind: str
) -> None:
    """The trap is on the same address as the server that was typed, on another port, and sees no request."""
    spellings = (
        f"127.0.0.1:{trap.port}",
        f"localhost:{trap.port}",
        f"[::ffff:127.0.0.1]:{trap.port}",
        f"2130706433:{trap.port}",
    )
    for target in (*(f"http://{host}/scene.tif" for host in spellings), METADATA):
        ended(*lure(kind, target, served, scene, tmp_path), status=8, flags=FLAGS.get(kind, ()))
    assert trap.hits == []


FLAGS: dict[str, tuple[str, ...]] = {
    "wmts": ("--bbox=-1.2,5.599,-1.199,5.6",),
    "xyz": ("--bbox=-1.2,5.599,-1.199,5.6",),
    "link": (BOX,),
}


def lure(kind: str, target: str, served: Server, scene: Path, folder: Path) -> list[str]:
    """What a user would type, and which leads to the target."""
    if kind == "redirect":
        served.heal()
        served.fault("/moved.tif", redirect=target)
        return [served.url("/moved.tif")]
    if kind == "item":
        served.files["/item.json"] = json.dumps(item(target)).encode()
        return [f"stac+{served.url('/item.json')}"]
    if kind == "link":
        catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "x"}
        links = [{"rel": "item", "href": target.replace(".tif", ".json"), "type": "application/geo+json"}]
        served.files["/catalog.json"] = json.dumps({**catalog, "links": links}).encode()
        return [f"stac+{served.url('/catalog.json')}"]
    if kind == "index":
        shape = shapely.box(-1.2, 5.5, -1.1, 5.7)
        gpd.GeoDataFrame({"location": [target]}, geometry=[shape], crs=4326).to_file(folder / "index.gpkg", engine="pyogrio")
        return [str(folder / "index.gpkg")]
    if kind == "snapshot":
        document = folder / "s.json"
        document.unlink(missing_ok=True)
        assert main(["snapshot", served.url("/scene.tif"), "-o", str(document)]) == 0
        known = read_snapshot(document)
        moved = Snapshot(tuple(replace(entry, address=target) for entry in known.entries), known.order, known.folder)
        document.write_text(moved.to_text())
        return [str(document)]
    if kind == "xyz":
        served.heal()
        served.fault(redirect=target)
        return [f"xyz:{served.address}/{{z}}/{{x}}/{{y}}.png", "--tile-cache", str(folder / "cache")]
    if kind == "mask":
        served.heal()
        served.fault("/mask.fgb", redirect=target)
        return [str(scene), "--mask", served.url("/mask.fgb")]
    text = capabilities("s", ("WebMercatorQuad",))
    start = text.index('template="/tiles/') + len('template="')
    stop = text.index('"', start)
    evil = target.replace("scene.tif", "{TileMatrix}/{TileCol}/{TileRow}.png").replace("a.tif", "{TileMatrix}.png")
    served.files["/wmts.xml"] = (text[:start] + evil + text[stop:]).encode()
    return [f"wmts:{served.url('/wmts.xml')}"]


class Payload:
    """Unpickling it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["pickle", "header"])
def test_row_61_weights_are_never_executed(scene: Path, ended: Ended, tmp_path: Path, kind: str) -> None:
    model, sentinel = tmp_path / "model", tmp_path / "sentinel"
    shutil.copytree(find_model("tiny").folder, model)
    weights = model / "weights.safetensors"
    huge = (2**60).to_bytes(8, "little") + weights.read_bytes()[8:]
    content = pickle.dumps(Payload(str(sentinel))) if kind == "pickle" else huge
    known = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(content)
    card = model / "item.json"
    card.write_text(card.read_text().replace(known, hashlib.sha256(content).hexdigest()))  # its sha256 is in order
    said(ended(scene, status=4, flags=("--model", str(model))), "weights.safetensors")
    assert not sentinel.exists()


def test_row_63_names_are_only_names(scene: Path, ended: Ended, tmp_path: Path) -> None:
    imagery = tmp_path / "a" / "b"
    imagery.mkdir(parents=True)
    shutil.copy(scene, imagery / "scene.tif")
    evil = "../../../escaped"
    (imagery / "item.json").write_text(json.dumps(item("scene.tif", evil)))
    layer = tmp_path / "layer.gpkg"
    corner = shapely.box(ORIGIN[0], ORIGIN[1] - 20, ORIGIN[0] + 20, ORIGIN[1])
    gpd.GeoDataFrame(geometry=[corner], crs="EPSG:32630").to_file(layer, engine="pyogrio")
    before = {path for path in tmp_path.rglob("*") if "RUN" not in path.parts}
    ended(imagery / "item.json", status=0, flags=("--mask", str(layer)))
    assert set(accounted(tmp_path / "RUN")[1]["imagery"]) == {evil}  # kept as text, led to nothing
    said(ended(imagery / "item.json", status=2, flags=("--overwrite", "--mask", f"{layer}:name={evil}")), "name")
    assert {path for path in tmp_path.rglob("*") if "RUN" not in path.parts} == before
    assert not list(tmp_path.parent.glob("escaped*"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model: !!python/object/apply:os.system ['touch sentinel']", "run.yaml"),
        ("threshold: 1e308", "threshold"),
        ("threshold: .nan", "threshold"),
        ("min_area: -.inf", "min_area"),
        ("in_flight: -1", "in_flight"),
        ("max_pixels: 1e999", "max_pixels"),
        ("retries: -3", "retries"),
        ("treshold: 0.5", "threshold"),
        ("[1, 2", "run.yaml"),
        ("a: &a [*a]", "run.yaml"),
    ],
)
def test_row_64_settings_that_play_tricks_are_refused(
    scene: Path, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    said(ended(scene, status=2, flags=("--config", "run.yaml")), word)
    assert not (tmp_path / "sentinel").exists()


def test_row_67_a_value_is_a_value_and_no_query(scene: Path, ended: Ended, tmp_path: Path) -> None:
    layer = tmp_path / "layer.gpkg"
    corner = shapely.box(ORIGIN[0], ORIGIN[1] - 60, ORIGIN[0] + 60, ORIGIN[1])
    frame = gpd.GeoDataFrame({"kind": ["lake"]}, geometry=[corner], crs="EPSG:32630")
    frame.to_file(layer, engine="pyogrio", layer="layer")
    ended(scene, status=0, flags=("--mask", f"{layer}:column=kind,classes=lake"))
    (entry,) = json.loads((tmp_path / "RUN" / "run.json").read_text())["masks"]
    assert entry["removed"] > 0
    for tried in ("x' OR '1'='1", "lake'; DROP TABLE layer; --", 'lake" OR 1=1'):
        told = ended(scene, status=0, flags=("--overwrite", "--mask", f"{layer}:column=kind,classes={tried}"))
        said(told, "touches nothing")
    said(ended(scene, status=4, flags=("--overwrite", "--mask", f"{layer}:column=kind OR 1=1,classes=lake")), "kind OR 1")
    assert len(gpd.read_file(layer)) == 1
