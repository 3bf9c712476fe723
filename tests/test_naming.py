"""Imagery that takes long to hash holds no tile up, and a run never goes on with tiles whose job nobody knows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from geoinfer.dispatch import Progress
from geoinfer.errors import Interrupted, SourceError
from geoinfer.grid import Window
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.job import Execution, Job, make_job
from geoinfer.pipeline import run
from geoinfer.store import RunDirectory
from tests.standins import StandIn, paint, write_scene

SLOWLY = """
import sys, time
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from tests.standins import StandIn
snapshot = RasterSource.snapshot
RasterSource.snapshot = lambda source, window=None: (time.sleep(30), snapshot(source, window))[1]
run(make_job(sys.argv[1], model=StandIn()), sys.argv[2], execution=Execution(tile=2))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("naming") / "scene.tif", paint(220, 231, 8))


@pytest.fixture(scope="module")
def golden(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return run(job_of(scene), tmp_path_factory.mktemp("golden") / "run").footprints.read_bytes()


def job_of(scene: Path) -> Job:
    return make_job(scene, model=StandIn())


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Imagery is hashed once this is set."""
    go, snapshot = threading.Event(), RasterSource.snapshot

    def wait_and_hash(source: RasterSource, window: Window | None = None) -> list[dict[str, object]]:
        assert go.wait(60)
        return snapshot(source, window)

    monkeypatch.setattr(RasterSource, "snapshot", wait_and_hash)
    return go


def test_tiles_are_done_while_the_imagery_is_hashed_and_the_run_ends_the_same(
    scene: Path, golden: bytes, tmp_path: Path, hashing: threading.Event
) -> None:
    directory = RunDirectory(tmp_path / "run")
    known: list[bool] = []

    def step(progress: Progress) -> None:
        known.append(directory.manifest.exists())
        if progress.done == 3:
            hashing.set()
            time.sleep(0.5)

    done = run(job_of(scene), directory.root, execution=Execution(tile=2), progress=step)
    assert known[:3] == [False] * 3
    assert known[-1]
    assert done.footprints.read_bytes() == golden


def test_who_stops_before_the_imagery_is_hashed_can_go_on(
    scene: Path, golden: bytes, tmp_path: Path, hashing: threading.Event
) -> None:
    stop = threading.Event()

    def step(progress: Progress) -> None:
        if progress.done == 4:
            stop.set()
            threading.Timer(0.3, hashing.set).start()

    with pytest.raises(Interrupted):
        run(job_of(scene), tmp_path / "run", execution=Execution(tile=2), progress=step, stop=stop)
    done = run(job_of(scene), tmp_path / "run", execution=Execution(tile=2))
    assert done.resumed == 4
    assert done.footprints.read_bytes() == golden


@pytest.mark.kill
def test_tiles_of_a_run_that_died_without_a_name_are_dropped(scene: Path, golden: bytes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {**os.environ, "GEOINFER_FAILPOINT": "tile_replaced:3"}
    killed = subprocess.run([sys.executable, "-c", SLOWLY, str(scene), str(out)], env=environment, timeout=120, check=False)
    assert killed.returncode == -9
    directory = RunDirectory(out)
    assert len(directory.committed()) == 3
    assert not directory.manifest.exists()
    other = run(
        make_job(scene, model=StandIn(), threshold=0.9), out, execution=Execution(tile=2)
    )  # whose tiles these are not
    assert other.resumed == 0
    assert other.footprints.read_bytes() != golden
    assert run(job_of(scene), out, overwrite=True).footprints.read_bytes() == golden


def test_imagery_that_cannot_be_hashed_ends_the_run_without_an_output(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: RasterSource, window: Window | None = None) -> list[dict[str, object]]:
        time.sleep(0.2)
        raise SourceError("scene.tif: changed since it was opened")

    monkeypatch.setattr(RasterSource, "snapshot", fail)
    with pytest.raises(SourceError, match="changed since"):
        run(job_of(scene), tmp_path / "run", execution=Execution(tile=2))
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "footprints.parquet").exists()
