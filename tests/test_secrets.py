"""What is secret in an address or the environment is in nothing that a run prints or writes, whether it goes well or not."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import pytest
import shapely

from geoinfer.cli.main import main
from geoinfer.remote import retry
from tests.faultserver import faulty
from tests.s3server import KEY, SECRET, serve_s3

SIGNATURE = "sIgNaTuRe0123456789"
PASSWORD = "hUnTeR2pAsSwOrD"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated scene, and a mask layer over a corner of it."""
    import rasterio

    from geoinfer.model.registry import resolve_model
    from geoinfer.scenes import generate_scene, write_scene

    path = tmp_path_factory.mktemp("scene")
    write_scene(generate_scene(3, 200, gsd=resolve_model("tiny").gsd, water="none"), path / "scene.tif")
    with rasterio.open(path / "scene.tif") as scene:
        west, south, _, _ = scene.bounds
        corner = gpd.GeoDataFrame(geometry=[shapely.box(west, south, west + 10, south + 10)], crs=scene.crs)
    corner.to_file(path / "mask.fgb", engine="pyogrio")
    return path


def leaks(folder: Path, printed: str) -> list[str]:
    """Where a secret can be read."""
    texts = {"printed": printed.encode()}
    texts |= {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    secrets = (SIGNATURE, PASSWORD, KEY, SECRET)
    return [f"{name}: {secret[:4]}" for name, content in texts.items() for secret in secrets if secret.encode() in content]


@pytest.mark.fault
def test_no_run_by_http_tells_a_signature_or_a_password(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.001)
    with faulty(folder) as server:
        base = f"http://user:{PASSWORD}@{server.host}"
        source, mask = f"{base}/scene.tif?sig={SIGNATURE}&se=2030", f"{base}/mask.fgb?sig={SIGNATURE}"
        common = [source, "--model", "tiny", "--mask", mask, "--workers", "0", "--tile", "2"]
        assert main(["plan", *common, "--json"]) == 0
        assert main(["info", source]) == 0
        assert main(["snapshot", source, "-o", str(tmp_path / "s.json")]) == 0
        assert main(["run", *common, "-o", str(tmp_path / "RUN"), "-v"]) == 0
        faults = ({"status": 404}, {"status": 503}, {"short": 10}, {"redirect": f"ftp://x/?{SIGNATURE}"})
        for number, fault in enumerate(faults):  # each on a scene of its own, of which nothing is remembered
            name = f"scene{number}.tif"
            (folder / name).write_bytes((folder / "scene.tif").read_bytes())
            source = f"{base}/{name}?sig={SIGNATURE}"
            server.fault(f"/{name}", **fault, after=1)
            assert main(["run", source, *common[1:], "-o", str(tmp_path / f"FAILED{number}")]) != 0
            assert main(["--debug", "info", f"{source}&again"]) != 0
    manifest = json.loads((tmp_path / "RUN" / "run.json").read_text())
    assert "scene.tif" in json.dumps(manifest)
    assert not leaks(tmp_path, "".join(capfd.readouterr()))


@pytest.mark.fault
def test_no_run_from_an_object_store_tells_its_keys(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.001)
    with serve_s3({"scene.tif": (folder / "scene.tif").read_bytes()}) as store:
        common = ["--model", "tiny", "--workers", "0", "--tile", "2"]
        assert main(["run", "s3://imagery/scene.tif", *common, "-o", str(tmp_path / "RUN"), "-v"]) == 0
        assert main(["run", "s3://imagery/none.tif", *common, "-o", str(tmp_path / "NONE")]) == 4
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert main(["--debug", "info", "s3://imagery/scene.tif"]) == 6
        del store
    assert not leaks(tmp_path, "".join(capfd.readouterr()))
