"""Bad input: the exit status of each kind, and one clear line that names the thing, the value and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoinfer.cli.main import main
from geoinfer.model.registry import find_model

pytestmark = pytest.mark.fault

WriteRaster = Callable[..., Path]
CACHE_FAILS = 9_001
"""Bytes a file may have where the first that is too long is one of numba's."""
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `geoinfer run` on a source, check the status and that the user gets one line, and return that line."""

    def check(source: Path | str, *flags: str, status: int, out: Path | None = None) -> str:
        out = tmp_path / "RUN" if out is None else out
        flags = flags if "--model" in flags else (*flags, "--model", "tiny")
        capsys.readouterr()
        found = main(["run", str(source), "-o", str(out), "--workers", "0", *flags])
        stdout, stderr = capsys.readouterr()
        assert found == status, stderr
        assert stdout == ""
        lines = [line for line in stderr.splitlines() if line.startswith("geoinfer: error: ")]
        assert len(lines) == 1, stderr
        assert stderr.splitlines()[-1] == lines[0]
        assert "Traceback" not in stderr
        return lines[0]

    return check


def test_missing_file(tmp_path: Path, refused: Refused) -> None:
    line = refused(tmp_path / "nowhere.tif", status=4)
    assert "nowhere.tif" in line
    assert "no such file" in line


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (bytes(range(256)) * 8, "not a GeoTIFF"),
        (b"II*\x00\xff\xff", "cut off or damaged"),
    ],
)
def test_a_file_that_is_no_raster_is_named_with_what_it_is(
    tmp_path: Path, refused: Refused, content: bytes, told: str
) -> None:
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    line = refused(path, status=4)
    assert "scene.tif" in line
    assert told in line


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.0005])
def test_truncated_cog(write_raster: WriteRaster, tmp_path: Path, refused: Refused, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 512, 512), np.uint8)
    whole = write_raster("whole.tif", noise, driver="COG", compress="deflate", blocksize=128)
    path = tmp_path / "cut.tif"
    path.write_bytes(whole.read_bytes()[: max(1, int(share * whole.stat().st_size))])
    # Header intact: tiles over missing bytes fail and are more than allowed. Header cut: not a raster.
    status = main(
        ["run", str(path), "-o", str(tmp_path / "RUN"), "--model", "tiny", "--workers", "0", "--on-error", "skip", "-q"]
    )
    assert status == (5 if share >= 0.1 else 4)
    line = refused(path, "--overwrite", "--on-error", "skip", status=status)
    assert "cut.tif" in line or "tiles failed" in line


def test_a_truncated_cog_keeps_what_is_intact(write_raster: WriteRaster, tmp_path: Path) -> None:
    import pandas as pd

    noise = np.random.default_rng(0).integers(0, 255, (3, 512, 512), np.uint8)
    whole = write_raster("whole.tif", noise, driver="COG", compress="deflate", blocksize=128)
    path = tmp_path / "cut.tif"
    path.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    out = tmp_path / "RUN"
    arguments = ["run", str(path), "-o", str(out), "--model", "tiny", "--workers", "0", "--tile", "1", "-q"]
    assert main([*arguments, "--on-error", "skip", "--max-failed", "100%"]) == 0
    coverage = pd.read_parquet(out / "coverage.parquet", columns=["status", "reason"])
    assert set(coverage["status"]) == {"done", "failed"}
    assert coverage.loc[coverage["status"] == "failed", "reason"].str.contains("cannot read").all()


def test_no_crs(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(crs=None), status=4)
    assert "scene.tif" in line
    assert "--assume-crs" in line


@pytest.mark.parametrize("count", [1, 2])
def test_wrong_band_count(write_raster: WriteRaster, refused: Refused, count: int) -> None:
    line = refused(write_raster(pixels=np.zeros((count, 64, 64), np.uint8)), status=4)
    assert "expected 3 bands" in line
    assert f"found {count} band" in line


def test_a_band_that_is_not_there(write_raster: WriteRaster, refused: Refused) -> None:
    assert "7" in refused(write_raster(), "--bands", "7,2,1", status=4)


def test_bbox_in_the_wrong_order(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(), "--bbox", "-1.2", "5.65", "-1.1", "5.55", status=2)
    assert "5.65" in line
    assert "5.55" in line


def test_bbox_in_the_wrong_order_of_a_projected_system(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(), "--bbox", "700100,619900,700000,620000", "--bbox-crs", "EPSG:32630", status=2)
    assert "700100" in line


def test_bbox_elsewhere_names_both_bounds(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(), "--bbox", "10,50,10.1,50.1", status=4)
    assert "10" in line
    assert "50.1" in line
    assert "5.6" in line  # where the imagery is, in the box's own coordinate system or
    assert "-1.1" in line or "700000" in line


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "nan,0,1,1", "1,2,3,4,5", ""])
def test_a_bbox_that_is_none(write_raster: WriteRaster, refused: Refused, box: str) -> None:
    assert "--bbox" in refused(write_raster(), f"--bbox={box}", status=2)


def test_a_coordinate_system_that_is_none(write_raster: WriteRaster, refused: Refused) -> None:
    scene = write_raster()
    assert "EPSG:999999" in refused(scene, "--crs", "EPSG:999999", status=2)
    assert "EPSG:999999" in refused(scene, "--bbox=0,0,1,1", "--bbox-crs", "EPSG:999999", status=2)


def test_a_region_file_that_is_not_there(write_raster: WriteRaster, refused: Refused, tmp_path: Path) -> None:
    assert "aoi.geojson" in refused(write_raster(), "--region", str(tmp_path / "aoi.geojson"), status=4)


def test_unknown_model_lists_the_known(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(), "--model", "tinny", status=2)
    assert "tinny" in line
    assert "tiny" in line.replace("tinny", "")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_corrupted_weights(write_raster: WriteRaster, refused: Refused, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model("tiny").folder, model)
    weights = model / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(content if damage == "flip" else content[:100])
    line = refused(write_raster(), "--model", str(model), status=4)
    assert "weights.safetensors" in line
    assert damage == "gone" or "sha256" in line


def test_a_damaged_model_card(write_raster: WriteRaster, refused: Refused, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model("tiny").folder, model)
    (model / "item.json").write_text('{"type": "Feature"')
    assert "item.json" in refused(write_raster(), "--model", str(model), status=4)


def test_unwritable_output(write_raster: WriteRaster, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # permissions would not stop root
    line = refused(write_raster(), status=3, out=tmp_path / "file" / "RUN")
    assert "RUN" in line
    line = refused(write_raster(), status=3, out=tmp_path / "file")
    assert str(tmp_path / "file") in line


def test_a_directory_that_is_no_run_is_not_touched(write_raster: WriteRaster, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"precious")
    assert "holiday.jpg" in refused(write_raster(), "--overwrite", status=3, out=out)
    assert (out / "holiday.jpg").read_bytes() == b"precious"


def test_existing_run_of_another_job_is_refused_with_the_difference(
    write_raster: WriteRaster, refused: Refused, tmp_path: Path
) -> None:
    scene = write_raster()
    out = tmp_path / "RUN"
    arguments = ["run", str(scene), "-o", str(out), "--model", "tiny", "--workers", "0", "-q"]
    assert main([*arguments, "--threshold", "0.5"]) == 0
    line = refused(scene, "--threshold", "0.6", status=3)
    assert "threshold: 0.5 -> 0.6" in line
    assert "--overwrite" in line
    assert main([*arguments, "--threshold", "0.6", "--overwrite"]) == 0
    assert json.loads((out / "run.json").read_text())["job"]["config"]["threshold"] == 0.6


def test_a_vrt_in_disguise_reads_no_other_file(tmp_path: Path, write_raster: WriteRaster, refused: Refused) -> None:
    secret = write_raster("secret.tif")
    text = (
        '<VRTDataset rasterXSize="256" rasterYSize="256"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    path = tmp_path / "scene.tif"
    path.write_text(text)
    assert "scene.tif" in refused(path, status=8)
    assert "secret.tif" not in refused(path, status=8)
    refused(text, status=8)  # as the "path" itself
    refused(f"/vsicurl/http://127.0.0.1:9/{secret.name}", status=8)


def test_unknown_key_in_a_settings_file(tmp_path: Path, write_raster: WriteRaster, refused: Refused) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("treshold: 0.5\n")
    line = refused(write_raster(), "--config", str(config), status=2)
    assert "run.yaml" in line
    assert "did you mean 'threshold'" in line


def test_a_settings_file_that_is_not_there(tmp_path: Path, write_raster: WriteRaster, refused: Refused) -> None:
    assert "none.yaml" in refused(write_raster(), "--config", str(tmp_path / "none.yaml"), status=2)


def test_no_source_and_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-o", "RUN"]) == 2
    assert "SOURCE" in capsys.readouterr().err
    assert main(["run", "scene.tif"]) == 2
    assert "-o RUN" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--workers", "-1"], ["--tile", "x"], ["--stretch", "1"], ["--precision", "fp8"]])
def test_settings_that_cannot_work(write_raster: WriteRaster, refused: Refused, flags: list[Any]) -> None:
    assert flags[0] in refused(write_raster(), *flags, status=2)


@pytest.mark.parametrize("crs", ["EPSG:5773", "EPSG:4978"])
def test_heights_and_the_earths_centre_are_no_coordinates_of_maps(
    write_raster: WriteRaster, refused: Refused, crs: str
) -> None:
    scene = write_raster()
    assert crs in refused(scene, "--crs", crs, status=2)
    assert crs in refused(scene, "--bbox=0,0,1,1", "--bbox-crs", crs, status=2)


def test_a_region_nested_without_end(write_raster: WriteRaster, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "deep.geojson"
    path.write_text("[" * 100_000)
    assert "deep.geojson" in refused(write_raster(), "--region", str(path), status=4)


def test_a_box_across_the_antimeridian_is_named_as_its_two_halves(write_raster: WriteRaster, refused: Refused) -> None:
    line = refused(write_raster(), "--bbox=179,-18,-179,-17", status=4)
    assert "(179, -18, 180, -17) and (-180, -18, -179, -17)" in line


def test_ground_control_points_alone(tmp_path: Path, refused: Refused) -> None:
    import rasterio
    from rasterio.control import GroundControlPoint

    corners = [(0, 0), (0, 32), (32, 0), (32, 32)]
    points = [GroundControlPoint(row, col, 700_000 + col, 620_000 - row) for row, col in corners]
    path = tmp_path / "gcp.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 32, "width": 32, "dtype": "uint8"}
    with rasterio.open(path, "w", gcps=points, crs="EPSG:32630", **profile) as file:
        file.write(np.ones((3, 32, 32), np.uint8))
    assert "gdalwarp" in refused(path, status=4)


@pytest.mark.parametrize("bands", ["1", "1,2"])
def test_bands_that_do_not_fit_the_model(write_raster: WriteRaster, refused: Refused, bands: str) -> None:
    assert "expects 3 bands" in refused(write_raster(), "--bands", bands, status=2)


@pytest.mark.parametrize("limit", [9_000, CACHE_FAILS])
def test_a_full_disk_leaves_nothing_half_written(write_raster: WriteRaster, tmp_path: Path, limit: int) -> None:
    scene = write_raster(pixels=np.random.default_rng(0).integers(0, 256, (3, 256, 256), np.uint8))
    out = tmp_path / "RUN"
    arguments = ["run", str(scene), "-o", str(out), "--model", "tiny", "--workers", "0", "--tile", "1", "-q"]
    code = (
        "import resource, signal, sys\n"
        "from geoinfer.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")} if limit == CACHE_FAILS else None
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert "no space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (out / "_SUCCESS").exists()
    assert not list((out / "tmp").iterdir())
    assert main(arguments) == 0  # with space again it goes on


def test_a_region_partly_outside_is_reported(
    write_raster: WriteRaster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "RUN"
    box = "700064,619872,700192,620000"  # half of it beyond the right edge
    arguments = [str(write_raster()), "--model", "tiny", "--bbox", box, "--bbox-crs", "EPSG:32630"]
    assert main(["run", *arguments, "--workers", "0", "-o", str(out)]) == 0
    assert "50 % of the region lies within the imagery" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["region_covers"] == pytest.approx(0.5)
    assert main(["plan", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["covers"] == pytest.approx(0.5)


def test_imagery_too_coarse_for_the_model_is_reported(
    write_raster: WriteRaster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_raster(pixels=np.zeros((3, 8, 8), np.uint8), gsd=10.0)
    assert main(["run", str(scene), "--model", "tiny", "--workers", "0", "-o", str(tmp_path / "RUN")]) == 0
    assert "pixels of 10 m where the model knows 0.125 to 2 m" in capsys.readouterr().err
