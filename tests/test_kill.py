"""Law 6: a run that is killed anywhere and resumed equals one that was left alone. The kills are real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import pytest

from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from geoinfer.store import RunDirectory, verify
from tests.standins import StandIn, paint, write_scene

CODE = """
import sys
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from tests.standins import StandIn
run(make_job(sys.argv[1], model=StandIn()), sys.argv[2], execution=Execution(tile=2))
"""

TILES = 25
"""Of the scene, at two cores a side."""
POINTS = {
    "run_opened": 0,
    "tile_started:4": 3,
    "tile_detected:3": 2,
    "tile_written:5": 4,
    "tile_replaced:2": 2,
    "tiles_done": TILES,
    "spilled": TILES,
    "rejected_written": TILES,
    "coverage_replaced": TILES,
    "footprints_written": TILES,
    "footprints_replaced": TILES,
    "manifest_written:2": TILES,
    "manifest_replaced:2": TILES,
    "success_written": TILES,
}
"""Where the process dies -> tiles that are committed then."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("kill") / "scene.tif", paint(220, 231, 8))


@pytest.fixture(scope="module")
def golden(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(
        make_job(scene, model=StandIn()), tmp_path_factory.mktemp("golden") / "run", execution=Execution(tile=2)
    ).directory


@pytest.mark.kill
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_resumes_to_the_same_bytes(scene: Path, golden: RunDirectory, tmp_path: Path, point: str) -> None:
    out = tmp_path / "run"
    code = CODE
    if point == "spilled":
        code = "import geoinfer.formats\ngeoinfer.formats.SPILL_ROWS = 5\n" + CODE
    environment = {**os.environ, "GEOINFER_FAILPOINT": point}
    killed = subprocess.run([sys.executable, "-c", code, str(scene), str(out)], env=environment, timeout=120, check=False)
    assert killed.returncode == -9
    directory = RunDirectory(out)
    assert not directory.success.exists()
    for path in (directory.footprints, directory.rejected, directory.coverage):
        if path.exists():
            gpd.read_parquet(path)  # what stands under its final name is whole
    assert len(directory.committed()) == POINTS[point]

    model = StandIn()
    done = run(make_job(scene, model=model), out, execution=Execution(tile=2))
    assert done.resumed == POINTS[point]  # nothing committed is done again
    assert done.footprints.read_bytes() == golden.footprints.read_bytes()
    assert done.directory.rejected.read_bytes() == golden.rejected.read_bytes()
    assert done.directory.coverage.read_bytes() == golden.coverage.read_bytes()
    assert verify(directory) == []
    assert not list(directory.scratch.iterdir())


@pytest.mark.kill
def test_a_run_killed_again_and_again_still_ends_the_same(scene: Path, golden: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for point in ("tile_written:2", "tile_started:6", "tile_replaced:1"):
        environment = {**os.environ, "GEOINFER_FAILPOINT": point}
        killed = subprocess.run(
            [sys.executable, "-c", CODE, str(scene), str(out)], env=environment, timeout=120, check=False
        )
        assert killed.returncode == -9
    done = run(make_job(scene, model=StandIn()), out, execution=Execution(tile=2))
    assert done.footprints.read_bytes() == golden.footprints.read_bytes()


@pytest.mark.kill
def test_overwriting_that_is_killed_never_shows_the_old_run_as_finished(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(make_job(scene, model=StandIn(), threshold=0.7), out)
    code = CODE.replace("execution=Execution(tile=2)", "overwrite=True")
    environment = {**os.environ, "GEOINFER_FAILPOINT": "tile_replaced:1"}
    killed = subprocess.run([sys.executable, "-c", code, str(scene), str(out)], env=environment, timeout=120, check=False)
    assert killed.returncode == -9
    assert not RunDirectory(out).success.exists()
    assert not RunDirectory(out).footprints.exists()
