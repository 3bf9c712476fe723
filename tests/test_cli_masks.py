"""Mask layers at the command line: settings, exit statuses, what a run says of them, and the verbs of `geoinfer masks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from geopandas import GeoDataFrame
from shapely.geometry import box

from geoinfer.cli.main import main
from geoinfer.cli.options import resolve
from geoinfer.cli.report import layer_line, meter_line
from geoinfer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "geoinfer.cli.main"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from geoinfer.model.registry import resolve_model
    from geoinfer.scenes import generate_scene, write_scene

    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_scene(generate_scene(3, 320, gsd=resolve_model("tiny").gsd, water="none"), path)
    return path


@pytest.fixture(scope="module")
def bare(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without layers."""
    out = tmp_path_factory.mktemp("bare") / "RUN"
    assert main([*run_of(scene, out), "-q"]) == 0
    return out


@pytest.fixture(scope="module")
def layers(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of layers: the western half, a place far away, and some that cannot be."""
    folder = tmp_path_factory.mktemp("layers")
    with rasterio.open(scene) as file:
        west, south, east, north = file.bounds
        crs, transform = file.crs, file.transform
        half = np.zeros((1, file.height, file.width), np.uint8)
    middle = (west + east) / 2
    GeoDataFrame(geometry=[box(west - 50, south - 50, middle, north + 50)], crs=crs).to_file(folder / "water.gpkg")
    GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=4326).to_file(folder / "far.geojson")
    GeoDataFrame(geometry=[box(west, south, middle, north)]).to_parquet(folder / "nowhere.parquet")
    (folder / "corrupt.gpkg").write_bytes((folder / "water.gpkg").read_bytes()[:5000])
    (folder / "trap.vrt").write_text('<OGRVRTDataSource><OGRVRTLayer name="x"/></OGRVRTDataSource>')
    half[:, :, : half.shape[2] // 2] = 80
    with rasterio.open(
        folder / "classes.tif", "w", driver="GTiff", dtype="uint8", crs=crs, transform=transform,
        count=1, height=half.shape[1], width=half.shape[2],
    ) as file:  # fmt: skip
        file.write(half)
    return folder


def run_of(scene: Path, out: Path, *flags: str) -> list[str]:
    return ["run", str(scene), "--model", "tiny", "-o", str(out), "--workers", "0", "--tile", "2", *flags]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return loaded


# --- settings --------------------------------------------------------------------------------------------------------


def test_layers_come_from_flags_the_environment_or_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"mask": ["a.gpkg", {"file": "b.tif", "classes": 80}], "mask-alarm": "5%"}))
    given = {"source": ["s.tif"]}
    assert resolve(given, {}, config).mask == ("a.gpkg", {"file": "b.tif", "classes": 80})
    assert resolve(given, {}, config).mask_alarm == pytest.approx(0.05)
    assert resolve(given, {"GEOINFER_MASK": "c.fgb:name=c; d.fgb"}, config).mask == ("c.fgb:name=c", "d.fgb")
    assert resolve({**given, "mask": ["e.fgb"]}, {"GEOINFER_MASK": "c.fgb"}, config).mask == ("e.fgb",)
    assert resolve(given, {}).mask == ()


def test_one_layer_in_the_file_needs_no_list(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("mask: {file: a.gpkg, action: flag}\n")
    assert resolve({"source": ["s.tif"]}, {}, config).mask == ({"file": "a.gpkg", "action": "flag"},)
    config.write_text("mask: 3\n")
    with pytest.raises(ConfigError, match="FILE:key=value"):
        resolve({"source": ["s.tif"]}, {}, config)


@pytest.mark.parametrize("value", ["120%", "-1", "nan", "x"])
def test_an_alarm_is_a_share(value: str) -> None:
    with pytest.raises(ConfigError, match=f"--mask-alarm {value}: expected a share of the footprints"):
        resolve({"source": ["s.tif"], "mask_alarm": value}, {})


def test_flags_and_file_make_the_same_job(
    scene: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        f"{layers / 'water.gpkg'}:name=lake,max_cover=0.4,buffer=1.5,negative=yes",
        f"{layers / 'classes.tif'}:classes=80",
    ]
    masks = [arg for flag in flags for arg in ("--mask", flag)]
    assert main([*run_of(scene, tmp_path / "A", *masks), "--json"]) == 0
    by_flags = told(capsys)
    config = tmp_path / "run.yaml"
    water = {"file": str(layers / "water.gpkg"), "name": "lake", "max_cover": 0.4, "buffer": 1.5, "negative": True}
    config.write_text(yaml.safe_dump({"mask": [water, {"file": str(layers / "classes.tif"), "classes": [80]}]}))
    assert main([*run_of(scene, tmp_path / "B", "--config", str(config)), "--json"]) == 0
    by_file = told(capsys)
    assert by_flags["fingerprint"] == by_file["fingerprint"]
    assert (tmp_path / "A" / "footprints.parquet").read_bytes() == (tmp_path / "B" / "footprints.parquet").read_bytes()
    assert [layer["name"] for layer in by_flags["masks"]] == ["lake", "classes"]


# --- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "status", "words"),
    [
        ("missing.gpkg", 4, ("missing.gpkg",)),
        ("water.gpkg:max_cove=0.5", 2, ("max_cove", "max_cover")),
        ("water.gpkg:action=erase", 2, ("erase", "drop")),
        ("water.gpkg:max_cover=2", 2, ("2",)),
        ("water.gpkg:action=skip,max_cover=1", 2, ("max_cover",)),
        ("nowhere.parquet", 4, ("nowhere.parquet", "crs=")),
        ("corrupt.gpkg", 4, ("corrupt.gpkg",)),
        ("trap.vrt", 8, ("trap.vrt",)),
    ],
)
def test_a_layer_that_cannot_be_ends_the_run_before_it_begins(
    scene: Path,
    layers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mask: str,
    status: int,
    words: tuple[str, ...],
) -> None:
    out = tmp_path / "RUN"
    assert main(run_of(scene, out, "--mask", f"{layers}/{mask}")) == status
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("geoinfer: error: ")
    assert "tiles" not in err  # no progress: nothing was inferred
    assert not list(out.glob("tiles/*"))
    for word in words:
        assert word in err


def test_a_layer_that_touches_nothing_is_loud_and_with_strict_masks_an_error(
    scene: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = ["--mask", str(layers / "far.geojson")]
    assert main(run_of(scene, tmp_path / "A", *far, "-q")) == 0
    err = capsys.readouterr().err
    assert err.startswith("geoinfer: warning: mask layer far touches nothing in the region")
    assert err.count("geoinfer: warning:") == 1
    assert main([*run_of(scene, tmp_path / "B", *far), "--strict-masks"]) == 5
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("geoinfer: error: ")
    assert "touches nothing in the region" in err


def test_a_layer_that_removes_too_much_is_loud(
    scene: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    water = ["--mask", str(layers / "water.gpkg")]
    assert main([*run_of(scene, tmp_path / "RUN", *water), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert len(report["alarms"]) == 1
    assert "more than 20%" in report["alarms"][0]
    assert "geoinfer: warning: mask layer water removes" in err
    assert main([*run_of(scene, tmp_path / "RUN2", *water, "--mask-alarm", "90%"), "--json"]) == 0
    assert told(capsys)["alarms"] == []
    done = subprocess.run(
        [*PROGRAM, *run_of(scene, tmp_path / "RUN3", *water, "--strict-masks")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stdout == ""


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_run_accounts_for_every_footprint(
    scene: Path, bare: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "RUN"
    assert main([*run_of(scene, out, "--mask", f"{layers / 'water.gpkg'}:max_cover=0.5"), "--json"]) == 0
    report = told(capsys)
    accepted, rejected = geopandas.read_parquet(out / "footprints.parquet"), geopandas.read_parquet(out / "rejected.parquet")
    before = geopandas.read_parquet(bare / "footprints.parquet")
    removed = rejected[rejected["layer"] == "water"]
    assert sorted([*accepted["id"], *removed["id"]]) == sorted(before["id"])
    (layer,) = report["masks"]
    assert (layer["tested"], layer["removed"]) == (len(before), len(removed))
    assert 0 < len(removed) < len(before)
    (meter,) = report["false_positive_meter"]
    assert meter["layer"] == "water"
    assert meter["inside"]["kept"] + meter["outside"]["kept"] == len(before)
    assert main(run_of(scene, out, "--mask", str(layers / "water.gpkg"))) == 0  # found finished: says the same
    err = capsys.readouterr().err
    assert f"mask layer water (drop): {layer['features']} features, " in err
    assert f" km² of the region; {len(before)} footprints tested, {len(removed)} removed" in err
    assert "false positives by water: inside it " in err


def test_the_lines_of_the_report_read_as_they_should() -> None:
    layer = {
        "name": "sea", "action": "skip", "tested": 812, "removed": 15, "share_removed": 15 / 812, "removed_area_m2": 2160.2,
        "flagged": 4, "clipped": 0, "clipped_area_m2": 0.0, "skipped_cores": 40, "device_s_saved": 75.0,
        "features": 7, "area_m2": 390_000.0,
    }  # fmt: skip
    assert layer_line(layer) == (
        "mask layer sea (skip): 7 features, 0.39 km² of the region; 812 footprints tested, "
        "15 removed (1.85 %, 2160 m²), 4 flagged, 40 cores skipped, which saved the device 1:15 min"
    )
    side = {"area_km2": 0.5, "kept_per_km2": 30.0, "interval_95": [17.0, 50.0], "raw_per_km2": 44.0}
    assert meter_line({"layer": "sea", "inside": side, "outside": {**side, "area_km2": 0.0}}) == (
        "false positives by sea: inside it 30 kept a km² (17 to 50 with 95 %) of 44 raw, on 0.5 km²; "
        "nothing looked at outside it"
    )


def test_plan_takes_layers_and_writes_nothing(scene: Path, layers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(scene), "--model", "tiny", "--tile", "2", "--json"]
    assert main(arguments) == 0
    without = told(capsys)
    assert main([*arguments, "--mask", f"{layers / 'water.gpkg'}:action=skip"]) == 0
    assert told(capsys)["cores"] < without["cores"]


# --- geoinfer masks --------------------------------------------------------------------------------------------------


def test_masks_show_says_what_a_layer_is(layers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["masks", "show", str(layers / "water.gpkg"), f"{layers / 'classes.tif'}:classes=80", "--json"]) == 0
    vector, raster = told(capsys)["layers"]
    assert (vector["kind"], vector["name"], vector["features"]) == ("vector", "water", 1)
    assert raster["kind"] == "raster"
    assert "32637" in vector["crs"]
    assert vector["version"].startswith("sha256:")
    assert main(["masks", "show", str(layers / "water.gpkg")]) == 0
    assert "bounds" in capsys.readouterr().out


def test_masks_apply_writes_what_stays_and_what_goes(bare: Path, layers: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.parquet"
    arguments = ["masks", "apply", str(bare), "--mask", str(layers / "water.gpkg"), "-o", str(out)]
    assert main(arguments) == 0
    kept, gone = geopandas.read_parquet(out), geopandas.read_parquet(tmp_path / "kept_rejected.parquet")
    before = geopandas.read_parquet(bare / "footprints.parquet")
    assert sorted([*kept["id"], *gone["id"]]) == sorted(before["id"])
    assert set(gone["reason"]) == {"mask_drop"}
    assert main(arguments) == 3
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments[:-1], str(tmp_path / "kept.gpkg")]) == 2


def test_masks_apply_is_loud_about_a_layer_that_touches_nothing(
    bare: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = str(layers / "far.geojson")
    assert main(["masks", "apply", str(bare), "--mask", far, "-o", str(tmp_path / "kept.parquet")]) == 0
    err = capsys.readouterr().err
    assert err.startswith("geoinfer: warning: mask layer far: touches none of the footprints")
    assert err.count("\n") == 1


def test_masks_audit_prints_and_writes(
    scene: Path, bare: Path, layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = tmp_path / "RUN"
    water = f"{layers / 'water.gpkg'}:buffer=2"
    assert main(run_of(scene, masked, "--mask", water, "-q")) == 0
    truth = str(bare / "footprints.parquet")
    tried = ["--max-covers", "0.1,0.9", "--buffers=-20,0"]
    arguments = ["masks", "audit", str(masked), truth, "--mask", water, *tried, "--json"]
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "AUDIT")]) == 0
    report = told(capsys)
    assert len(report["rows"]) == 3 * 3  # -20, 0 and its own 2 m; 0.1, 0.9 and its own 0.5
    assert {row["recall_before"] for row in report["rows"]} == {1.0}  # what the layer removed is raw again
    assert json.loads((tmp_path / "AUDIT" / "audit.json").read_text())["rows"] == report["rows"]
    assert len((tmp_path / "AUDIT" / "audit.csv").read_text().splitlines()) == 10
    assert (tmp_path / "AUDIT" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "-o", str(tmp_path / "AUDIT")]) == 3
    capsys.readouterr()
    assert main(arguments[:-1]) == 0
    assert capsys.readouterr().out.startswith("layer")
    assert main(["masks", "audit", str(masked), truth, "--mask", water, "--buffers", "x"]) == 2


def test_an_audit_without_matplotlib_still_writes_its_numbers(
    bare: Path, layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise ConfigError("the curve needs matplotlib; install it with `pip install geoinfer[viz]`")

    monkeypatch.setattr("geoinfer.evaluation.mask_audit.plot_audit", missing)
    truth, water = str(bare / "footprints.parquet"), str(layers / "water.gpkg")
    assert main(["masks", "audit", str(bare), truth, "--mask", water, "-o", str(tmp_path / "AUDIT")]) == 0
    assert "geoinfer: warning: audit.png was not drawn: the curve needs matplotlib" in capsys.readouterr().err
    assert (tmp_path / "AUDIT" / "audit.csv").exists()
