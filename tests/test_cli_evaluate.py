"""`geoinfer evaluate` and `geoinfer compare`: the same numbers as Python, files, labels and exit statuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from shapely.geometry import box

import geoinfer as gi
from geoinfer.cli.evaluate import split_slices
from geoinfer.cli.main import main

UTM = "EPSG:32630"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with predictions, their truth, an area, water, imagery, and inputs that cannot be."""
    folder = tmp_path_factory.mktemp("inputs")
    at = [(700_000.0 + 30 * (k % 10), 619_700.0 + 30 * (k // 10)) for k in range(100)]
    district = ["west" if x < 700_150 else "east" for x, _ in at]
    truth = gpd.GeoDataFrame({"district": district}, geometry=[box(x, y, x + 10, y + 12) for x, y in at], crs=UTM)
    moved = truth.geometry.translate(1.0, 0.5)
    pred = gpd.GeoDataFrame({"confidence": np.linspace(0.4, 1.0, 90)}, geometry=moved.iloc[:90], crs=UTM)
    truth.to_file(folder / "truth.gpkg")
    pred.to_parquet(folder / "pred.parquet")
    pred.iloc[10:].to_crs(4326).to_file(folder / "other.geojson")
    gpd.GeoDataFrame(geometry=[box(699_990, 619_690, 700_400, 620_020)], crs=UTM).to_file(folder / "aoi.fgb")
    gpd.GeoDataFrame(geometry=[box(699_990, 619_690, 700_050, 620_020)], crs=UTM).to_file(folder / "water.gpkg")
    gpd.GeoDataFrame(geometry=truth.geometry.to_numpy()).to_parquet(folder / "nowhere.parquet")
    pred.iloc[:0].to_parquet(folder / "empty.parquet")
    (folder / "trap.vrt").write_text('<OGRVRTDataSource><OGRVRTLayer name="x"/></OGRVRTDataSource>')
    transform = rasterio.Affine(0.5, 0, 699_990, 0, -0.5, 620_020)
    settings = {"driver": "GTiff", "dtype": "uint8", "crs": UTM, "transform": transform}
    with rasterio.open(folder / "scene.tif", "w", count=3, height=660, width=660, **settings) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 660, 660), np.uint8))
    return folder


def run_with(folder: Path, table: Path, sha256: str, region: object = None) -> Path:
    """What `compare` looks at in a run directory."""
    folder.mkdir(parents=True)
    shutil.copy(table, folder / "footprints.parquet")
    imagery = {"name": f"{sha256}.tif", "size": 1, "sha256": sha256 * 64, "crs": UTM, "bands": [1, 2, 3]}
    (folder / "run.json").write_text(json.dumps({"job": {"imagery": [imagery], "region": region}}))
    return folder


def status(*words: object) -> int:
    return main([str(word) for word in words])


# --- evaluate ----------------------------------------------------------------------------------------------------------


def test_json_has_the_figures_of_python_at_the_top(files: Path, capsys: Capture) -> None:
    assert status("evaluate", files / "pred.parquet", files / "truth.gpkg", "--aoi", files / "aoi.fgb", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    pred, truth, aoi = (
        gpd.read_parquet(files / "pred.parquet"),
        gpd.read_file(files / "truth.gpkg"),
        gpd.read_file(files / "aoi.fgb"),
    )
    expected = gi.evaluate(pred, truth, aoi=aoi).to_dict()
    assert {key: told[key] for key in expected} == expected
    assert told["files"] == []
    assert told["measures"]["offset_x_m"]["value"] == pytest.approx(1.0, rel=1e-3)  # the scale of UTM there is 1.0001
    assert told["measures"]["fp_per_km2"]["n"] is not None


def test_the_report_has_slices_water_and_pictures(files: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report"
    words = [
        "evaluate",
        files / "pred.parquet",
        files / "truth.gpkg",
        "--aoi",
        files / "aoi.fgb",
        "--water",
        files / "water.gpkg",
    ]
    words += ["--slices", "size:edges=50/100,district", "--slices", "water", "--imagery", files / "scene.tif", "-o", out]
    assert status(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["files"]] == ["evaluation.json", "objects.parquet", "report.html"]
    assert {row["slice"] for row in told["slices"]} == {"whole", "size", "district", "water"}
    written = json.loads((out / "evaluation.json").read_text())
    assert written["f1"] == told["f1"]
    assert written["inputs"]["Truth"] == f"{files.name}/truth.gpkg"  # no path of this machine
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10  # the ten misses; nothing is false
    assert str(files) not in page
    assert status(*words) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert status(*words, "--overwrite") == 0
    shown = capsys.readouterr()
    assert "precision" in shown.out
    assert "written: " in shown.err


def test_a_run_directory_is_evaluated_by_its_footprints(files: Path, tmp_path: Path, capsys: Capture) -> None:
    run = run_with(tmp_path / "RUN", files / "pred.parquet", "1")
    assert status("evaluate", run, files / "truth.gpkg", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tp"] == 90


@pytest.mark.parametrize(
    ("pred", "truth"), [("empty.parquet", "truth.gpkg"), ("pred.parquet", "empty.parquet"), ("empty.parquet",) * 2]
)
def test_empty_inputs_are_results(files: Path, tmp_path: Path, pred: str, truth: str, capsys: Capture) -> None:
    assert status("evaluate", files / pred, files / truth, "-o", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["tp"] == 0
    assert told["f1"] == float(pred == truth)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["missing.gpkg", "truth.gpkg"], 4, "no such file"),
        (["pred.parquet", "nowhere.parquet"], 4, "names no coordinate system"),
        (["trap.vrt", "truth.gpkg"], 8, "refused, XML"),
        (["pred.parquet", "truth.gpkg", "--aoi", "trap.vrt"], 8, "refused, XML"),
        (["pred.parquet", "truth.gpkg", "--water", "missing.gpkg"], 4, "no such file"),
        (["pred.parquet", "scene.tif"], 4, "none of GeoParquet"),
        (["pred.parquet", "truth.gpkg", "--matching", "best"], 2, "use optimal or spacenet"),
        (["pred.parquet", "truth.gpkg", "--iou", "1.5"], 2, "at most 1"),
        (["pred.parquet", "truth.gpkg", "--slices", "colour"], 2, "no column"),
        (["pred.parquet", "truth.gpkg", "--imagery", "scene.tif"], 2, "-o DIR"),
        (["pred.parquet", "truth.gpkg", "--imagery", "missing.tif", "-o", "OUT"], 4, "no such file"),
        (["pred.parquet", "truth.gpkg", "--replicates", "3"], 2, "at least 100"),
        (["pred.parquet", "truth.gpkg", "-o", "pred.parquet"], 3, "is a file"),
    ],
)
def test_a_mistake_is_one_line_and_its_status(
    files: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str, capsys: Capture
) -> None:
    monkeypatch.chdir(files)
    assert status("evaluate", *words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert not (files / "OUT").exists()


def test_commas_separate_slices_except_within_one() -> None:
    assert split_slices(["size,density", "a.tif:name=cover,band=2, roof"]) == (
        "size",
        "density",
        "a.tif:name=cover,band=2",
        "roof",
    )
    assert split_slices(["zones.gpkg:column=name,edges=1/2,size:edges=3/4"]) == (
        "zones.gpkg:column=name,edges=1/2",
        "size:edges=3/4",
    )


# --- compare -----------------------------------------------------------------------------------------------------------


def test_compare_counts_what_each_has_alone(files: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["compare", files / "pred.parquet", files / "other.geojson", "-o", tmp_path]
    assert status(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (told["only_a"], told["both"], told["only_b"]) == (10, 80, 0)
    assert told["labels"] == []
    assert "truth" not in told
    assert len(gpd.read_parquet(tmp_path / "objects.parquet")) == 90 + 80
    assert status(*words) == 3


def test_compare_against_the_truth_tells_who_is_closer(files: Path, capsys: Capture) -> None:
    assert status("compare", files / "pred.parquet", files / "other.geojson", "--truth", files / "truth.gpkg", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differences"]["recall"]["value"] == pytest.approx(0.8 - 0.9)
    assert told["truth"]["a"]["recall"] == 0.9
    assert status("compare", files / "pred.parquet", files / "other.geojson", "--truth", files / "truth.gpkg") == 0
    assert "against the truth" in capsys.readouterr().out


def test_a_schema_can_be_named_and_must_be_known(files: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = gpd.read_parquet(files / "pred.parquet").to_crs(4326).assign(height=-1.0, confidence=-1.0)
    path = tmp_path / "ms.geojsonl"
    path.write_text("\n".join(json.dumps(feature) for feature in lines.iterfeatures()))
    assert status("compare", files / "pred.parquet", path, "--schema-b", "microsoft", "--json") == 0
    assert json.loads(capsys.readouterr().out)["both"] == 90
    assert status("compare", files / "pred.parquet", path, "--schema-b", "bing") == 2
    assert "use one of geoinfer, google" in capsys.readouterr().err


def test_runs_on_different_imagery_need_force_and_every_output_says_so(files: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = (run_with(tmp_path / name, files / "pred.parquet", name) for name in "12")
    out = tmp_path / "out"
    assert status("compare", a, b, "-o", out) == 2
    shown = capsys.readouterr()
    assert "different imagery: only in 1: 1.tif (sha256 111111111111); only in 2: 2.tif (sha256 222222222222)" in shown.err
    assert "--force" in shown.err
    assert not out.exists()
    assert status("compare", a, b, "-o", out, "--force", "--json") == 0
    shown = capsys.readouterr()
    label = "Different imagery (--force): only in 1: 1.tif"
    assert label in json.loads(shown.out)["labels"][0]
    assert label in shown.err
    assert label in json.loads((out / "comparison.json").read_text())["labels"][0]
    assert gpd.read_parquet(out / "objects.parquet")["labels"].str.contains(label, regex=False).all()
    assert label in (out / "report.html").read_text()
    assert status("compare", a, b, "--force") == 0
    assert label in capsys.readouterr().out  # also where only a person reads


def test_runs_on_one_imagery_need_no_force_and_differing_regions_are_told(
    files: Path, tmp_path: Path, capsys: Capture
) -> None:
    a, b = (run_with(tmp_path / name, files / "pred.parquet", "1", {"wkb": name}) for name in ("old", "new"))
    assert status("compare", a, a, "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == []
    assert status("compare", a, b, "--json") == 0
    assert "different regions" in json.loads(capsys.readouterr().out)["labels"][0]
    assert status("compare", a, files / "pred.parquet", "--json") == 0  # of a file nothing is known
    assert json.loads(capsys.readouterr().out)["labels"] == []


def test_a_run_without_a_manifest_says_what_to_do(files: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = (run_with(tmp_path / name, files / "pred.parquet", "1") for name in ("old", "new"))
    (b / "run.json").unlink()
    assert status("compare", a, b) == 4
    assert "compare its footprints.parquet as a file" in capsys.readouterr().err
