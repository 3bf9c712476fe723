"""Merging: whole footprints from committed tiles, the same ones however many threads draw them."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoinfer import merge
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from tests.standins import StandIn, paint, write_scene

pytestmark = pytest.mark.fast


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", paint(300, 280, seed=4, roofs=60))


def test_neither_threads_nor_portions_change_a_byte(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, written = make_job(scene, model=StandIn(), min_area=30.0), []
    for threads, portion in ((1, 4096), (4, 4096), (4, 5), (1, 1)):
        monkeypatch.setattr(merge, "MOST_THREADS", threads)
        monkeypatch.setattr(merge, "FINISH_POLYGONS", portion)
        done = run(job, tmp_path / f"{threads}_{portion}", execution=Execution(tile=2))
        written.append((done.manifest["outputs"], done.manifest["footprints"]))
    assert written[0][1]["accepted"] > 20
    assert written[0][1]["rejected"]
    assert all(other == written[0] for other in written[1:])


def test_an_outline_that_fails_ends_the_merge_with_its_error(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken outline")

    job = make_job(scene, model=StandIn())
    whole = merge.finish
    monkeypatch.setattr(merge, "finish", lambda polygons, *a, **k: (broken if len(polygons) else whole)(polygons, *a, **k))
    with pytest.raises(RuntimeError, match="broken outline"):
        run(job, tmp_path / "run", execution=Execution(tile=2))
    monkeypatch.undo()
    assert run(job, tmp_path / "run", execution=Execution(tile=2)).manifest["state"] == "done"


def test_merging_tells_its_stages(scene: Path, tmp_path: Path) -> None:
    done = run(make_job(scene, model=StandIn()), tmp_path / "run", trace=tmp_path / "trace.json")
    text = (tmp_path / "trace.json").read_text()
    assert all(f'"name":"{stage}"' in text for stage in ("stitch", "outlines", "finish", "write"))
    assert done.manifest["state"] == "done"
