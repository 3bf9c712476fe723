"""An existing Dask cluster: real processes on this machine, the same rows, and a clear end where it has no workers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import geoinfer.dispatch
import geoinfer.pipeline
from geoinfer.cli.main import main
from geoinfer.cluster import connect
from geoinfer.errors import ConfigError, Interrupted, RemoteError
from geoinfer.job import make_job
from geoinfer.pipeline import run
from geoinfer.scenes import generate_scene, write_scene
from tests.faultserver import faulty
from tests.standins import StandIn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Address of `dask scheduler`, without workers."""
    file = tmp_path / "scheduler.json"
    command = [
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--no-show",
        "--scheduler-file",
        str(file),
    ]
    with _dask(command, tmp_path):
        yield _address(file)


def _dask(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A process that ends with the block it is opened for."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        return _Ended([sys.executable, "-m", "dask", *arguments], env=environment, stdout=log, stderr=log, cwd=folder)


class _Ended(subprocess.Popen[bytes]):
    def __exit__(self, *_: object) -> None:
        self.terminate()
        try:
            self.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()


def _address(file: Path) -> str:
    for _ in range(300):
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError, KeyError):  # not there, or half written
            time.sleep(0.1)
    raise TimeoutError(f"{file}: no scheduler")


@pytest.mark.kill
def test_an_existing_scheduler_gives_the_same_rows(scheduler: str, tmp_path: Path) -> None:
    scene, here, there = tmp_path / "scene.tif", tmp_path / "here", tmp_path / "there"
    write_scene(generate_scene(3, 320, gsd=0.5, water="none"), scene)
    worker = ["worker", scheduler, "--host", "127.0.0.1", "--nworkers", "1", "--nthreads", "2", "--no-dashboard"]
    common = ["run", str(scene), "--model", "tiny", "--tile", "2", "-q"]
    assert main([*common, "-o", str(here), "--workers", "0"]) == 0
    with _dask(worker, tmp_path):
        # the number of local workers means nothing to a cluster
        assert main([*common, "-o", str(there), "--scheduler", scheduler, "--workers", "0"]) == 0
    assert (here / "footprints.parquet").read_bytes() == (there / "footprints.parquet").read_bytes()


@pytest.mark.kill
def test_workers_read_a_remote_raster_as_this_process_does(tmp_path: Path) -> None:
    scene, here, there = tmp_path / "scene.tif", tmp_path / "here", tmp_path / "there"
    write_scene(generate_scene(3, 320, gsd=0.5, water="none"), scene)
    with faulty({"/scene.tif": scene.read_bytes()}) as server:
        common = ["run", server.url("/scene.tif"), "--model", "tiny", "--tile", "2", "-q"]
        assert main([*common, "-o", str(here), "--workers", "0"]) == 0
        assert main([*common, "-o", str(there), "--workers", "1"]) == 0  # several tiles, one after the other
    assert (here / "footprints.parquet").read_bytes() == (there / "footprints.parquet").read_bytes()


@pytest.mark.kill
def test_another_program_on_dasks_usual_port_is_not_told_of(tmp_path: Path) -> None:
    with socket.socket() as taken:
        with suppress(OSError):  # by somebody else: as good
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with connect(1):
                pass


@pytest.mark.kill
def test_a_scheduler_without_workers_is_told_and_not_waited_for(scheduler: str) -> None:
    with (
        pytest.raises(RemoteError, match=r"no workers there after 1 s; start some"),
        connect(scheduler=scheduler, timeout_s=1),
    ):
        pass


@pytest.mark.fast
@pytest.mark.parametrize(("address", "error"), [("tcp://127.0.0.1:1", RemoteError), ("not an address", ConfigError)])
def test_no_scheduler_there(address: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="Dask scheduler"), connect(scheduler=address, timeout_s=2):
        pass


class _Deserted:
    """A client of a cluster whose workers have left: tasks are taken, and never done."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit = lambda *_, **__: Future()  # type: ignore[method-assign]

    def get_executor(self, **_: object) -> ThreadPoolExecutor:
        return self.pool

    def nthreads(self) -> dict[str, int]:
        return {}


@pytest.mark.fast
def test_a_cluster_that_lost_all_workers_does_not_hang_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geoinfer.dispatch, "POLL_S", 0.05)
    monkeypatch.setattr(geoinfer.dispatch, "NO_WORKERS_S", 0.2)
    scene = tmp_path / "scene.tif"
    write_scene(generate_scene(3, 128, gsd=0.5, water="none"), scene)
    job = make_job(scene, model=StandIn())
    with pytest.raises(RemoteError, match="no workers; start some"):
        run(job, tmp_path / "run", client=_Deserted())
    monkeypatch.setattr(geoinfer.dispatch, "NO_WORKERS_S", 60.0)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Interrupted, match="0 of"):
        run(job, tmp_path / "run", client=_Deserted(), stop=stop)
