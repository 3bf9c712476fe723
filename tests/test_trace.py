"""Where the time goes: stages that add up, a trace that shows them, and tiles that are worked on side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from geoinfer.cli.main import main
from geoinfer.cluster import connect
from geoinfer.errors import OutputError
from geoinfer.grid import STRIP_CORES, in_strips
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from geoinfer.trace import Stages, TraceFile, collect, span
from tests.standins import StandIn, paint, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_scene(tmp_path_factory.mktemp("trace") / "scene.tif", paint(330, 340, 8))
    run_slowly(path, path.parent / "first", 1)  # libraries are loaded and kernels compiled
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with connect(2) as client:
        yield client


def run_slowly(scene: Path, out: Path, threads: int, trace: Path | None = None) -> dict[str, Any]:
    """A run of 16 tiles of nine chips, each worth 10 ms of a network that is asked by as many threads as there are."""
    job = make_job(scene, model=StandIn(seconds=0.01))
    return run(job, out, execution=Execution(tile=3, threads=threads, in_flight=threads), trace=trace).manifest


def events_of(trace: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(trace.read_text()) if event["ph"] == "X"]


@pytest.mark.parametrize("threads", [1, 3])
def test_stages_add_up_to_the_wall_clock(scene: Path, tmp_path: Path, threads: int) -> None:
    manifest = run_slowly(scene, tmp_path / "run", threads)
    stages, total = manifest["stages_s"], manifest["timings_s"]["total"]
    assert sum(stages.values()) == pytest.approx(total, rel=0.05, abs=0.05)  # 0.05 s: start and end of the directory
    if threads == 1:  # nobody to wait for
        assert stages["wait"] < 0.1 * total
    assert stages["predict"] > 0.01 * manifest["chips"] / threads * 0.9


def test_tiles_are_read_while_the_network_works_for_another(scene: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    run_slowly(scene, tmp_path / "run", 3, trace)
    events = events_of(trace)
    reads = [e for e in events if e["name"] in ("read", "polygonize", "commit")]
    assert any(
        e["args"]["tile"] != other["args"]["tile"]
        and other["ts"] < e["ts"]
        and e["ts"] + e["dur"] < other["ts"] + other["dur"]
        for e in reads
        for other in events
        if other["name"] == "predict"
    )


def test_the_trace_tells_each_stage_of_each_tile_once_and_threads_do_one_thing_at_a_time(
    scene: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    manifest = run_slowly(scene, tmp_path / "run", 3, trace)
    events = events_of(trace)
    commits = [e["args"]["tile"] for e in events if e["name"] == "commit"]
    assert len(commits) == len(set(commits)) == manifest["tiles"]["total"]
    assert {"snapshot", "load", "read", "predict", "polygonize", "commit", "stitch", "finish", "write"} <= {
        e["name"] for e in events
    }
    by_thread = sorted(events, key=lambda e: (e["pid"], e["tid"], e["ts"]))
    for _, one in groupby(by_thread, key=lambda e: (e["pid"], e["tid"])):
        for first, second in pairwise(e for e in one if e["name"] != "forward"):
            assert second["ts"] >= first["ts"] + first["dur"] - 200  # microseconds: two clocks


def test_threads_change_no_byte(scene: Path, tmp_path: Path) -> None:
    runs = [
        run(make_job(scene, model="tiny"), tmp_path / str(threads), execution=Execution(tile=1, threads=threads))
        for threads in (1, 2, 5)
    ]
    assert len({done.footprints.read_bytes() for done in runs}) == 1
    device = runs[1].manifest["device"]
    assert device["at_once"] <= 2
    assert 0 < device["busy_share"] <= 1.001


def test_workers_send_what_they_did(scene: Path, tmp_path: Path, cluster: Any) -> None:
    trace = tmp_path / "trace.json"
    manifest = run(
        make_job(scene, model=StandIn(seconds=0.01)),
        tmp_path / "run",
        execution=Execution(tile=3),
        client=cluster,
        trace=trace,
    ).manifest
    commits = [e for e in events_of(trace) if e["name"] == "commit"]
    assert len(commits) == manifest["tiles"]["total"]
    assert len({e["pid"] for e in commits}) == 2
    assert sum(manifest["stages_s"].values()) == pytest.approx(manifest["timings_s"]["total"], rel=0.05, abs=0.05)


def test_the_command_line_writes_a_trace_or_says_why_not(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    flags = ["run", str(scene), "--model", "tiny", "-q", "--threads", "2", "--trace"]
    assert main([*flags, str(trace), "-o", str(tmp_path / "run")]) == 0
    assert events_of(trace)
    assert main([*flags, str(tmp_path / "no" / "trace.json"), "-o", str(tmp_path / "other")]) == 3
    assert "trace cannot be written" in capsys.readouterr().err
    assert main([*flags[:-3], "--threads", "0", "-o", str(tmp_path / "third")]) == 2


def test_a_trace_that_was_cut_off_still_names_what_was_done(tmp_path: Path) -> None:
    collect()
    with span("read", "0_0"), pytest.raises(KeyError):
        raise KeyError
    path = tmp_path / "trace.json"
    Stages(TraceFile(path)).add(collect())
    (event,) = (e for e in json.loads(path.read_text() + "]") if e["ph"] == "X")  # what viewers do as well
    assert (event["name"], event["args"]) == ("read", {"tile": "0_0"})
    with pytest.raises(OutputError):
        TraceFile(tmp_path)


def test_a_trace_replaces_an_older_one_and_nothing_else(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for _ in range(2):
        TraceFile(path).close()
    assert json.loads(path.read_text())
    before = scene.read_bytes()
    with pytest.raises(OutputError, match="is no trace; choose another file"):
        TraceFile(scene)
    assert scene.read_bytes() == before


def test_strips_visit_every_tile_once_from_the_top_down_and_each_follows_a_neighbour() -> None:
    places = [(row, col) for row in range(7) for col in range(11)]
    order = in_strips(places, 4)
    assert sorted(order) == places
    across = STRIP_CORES // 4
    assert [col // across for _, col in order] == sorted(col // across for _, col in order)
    for (row, col), (next_row, next_col) in pairwise(order):
        assert abs(row - next_row) + abs(col - next_col) == 1 or (row, next_row) == (6, 0)
