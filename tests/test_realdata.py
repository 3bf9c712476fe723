"""The bundled model on real imagery, read in place: same rows however it is run, and scores that do not slip.

Needs GEOINFER_DATA; `.ci/run` sets it where the data is. The floors are what the card's figures promise, less what another
processor's arithmetic may cost; they guard against a broken pipeline, they are not for tuning.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely

from benchmarks.regions import places, score_place
from geoinfer.anywhere import detect
from geoinfer.cluster import connect
from geoinfer.job import Execution, make_job
from geoinfer.model.predictor import Predictor, load_predictor
from geoinfer.pipeline import run

pytestmark = [pytest.mark.realdata, pytest.mark.timeout(900)]

FLOORS = {"Zanzibar south": 0.65, "Banepa south": 0.4, "Austin a": 0.4}
"""Least object F1 at IoU 0.5 on the small test places."""
CUT = """
import sys
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
run(make_job(sys.argv[1], model="buildings", device="cpu"), sys.argv[2], execution=Execution(tile=1))
"""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor("buildings", device="cpu", batch_size=1)


@pytest.fixture(scope="module")
def austin(data_folder: Path) -> Path:
    return data_folder / "austin_usa_inria" / "austin_a.tif"


@pytest.fixture(scope="module")
def golden(austin: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("golden") / "run"
    done = run(make_job(austin, model="buildings", device="cpu"), out, execution=Execution(tile=4))
    assert done.manifest["footprints"]["accepted"] > 20
    return done.footprints.read_bytes()


def test_small_tiles_give_the_same_rows(austin: Path, golden: bytes, tmp_path: Path) -> None:
    job = make_job(austin, model="buildings", device="cpu")
    assert run(job, tmp_path / "run", execution=Execution(tile=1)).footprints.read_bytes() == golden


def test_two_workers_give_the_same_rows(austin: Path, golden: bytes, tmp_path: Path) -> None:
    job = make_job(austin, model="buildings", device="cpu")
    with connect(2, device="cpu") as client:
        assert run(job, tmp_path / "run", execution=Execution(tile=1), client=client).footprints.read_bytes() == golden


def test_a_killed_run_goes_on_to_the_same_rows(austin: Path, golden: bytes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {**os.environ, "GEOINFER_FAILPOINT": "tile_replaced:2"}
    killed = subprocess.run([sys.executable, "-c", CUT, str(austin), str(out)], env=environment, timeout=600, check=False)
    assert killed.returncode == -9
    done = run(make_job(austin, model="buildings", device="cpu"), out, execution=Execution(tile=1))
    assert done.resumed == 2
    assert done.footprints.read_bytes() == golden


def test_a_smaller_region_finds_the_same_interior_footprints(austin: Path, predictor: Predictor) -> None:
    whole = detect(austin, predictor)
    minx, miny, maxx, maxy = whole.total_bounds
    box = (minx + 0.3 * (maxx - minx), miny + 0.2 * (maxy - miny), maxx - 0.2 * (maxx - minx), maxy - 0.3 * (maxy - miny))
    part = detect(austin, predictor, bbox=box, bbox_crs=whole.crs.to_string())
    inside = whole[~whole["truncated"] & shapely.within(whole.geometry.to_numpy(), shapely.box(*box).buffer(-2))]
    again = part.set_index("id").loc[inside["id"]]
    assert len(inside) > 5
    assert np.array_equal(again["confidence"], inside["confidence"])
    assert (again.geometry.to_wkb().to_numpy() == inside.geometry.to_wkb().to_numpy()).all()


def test_scores_of_unseen_places_hold(data_folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    found = {
        place.name: score_place(place, predictor, scratch=tmp_path).evaluation.f1
        for place in places(data_folder, ["test"])
        if place.name in FLOORS
    }
    assert {name for name, f1 in found.items() if f1 >= FLOORS[name]} == set(FLOORS), found
