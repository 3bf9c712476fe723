"""A run whose imagery changed: exactly the tiles that meet what changed are done again, and the result is a full run's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import OutputError
from geoinfer.grid import Tile, Window
from geoinfer.job import Execution, Job, make_job
from geoinfer.pipeline import Run, run
from geoinfer.store import RunDirectory, verify
from tests.standins import StandIn, paint, write_scene

GSD, LEFT, TOP = 0.5, 700_013.5, 620_007.0
TILE = Execution(tile=1, threads=1)


def part(
    folder: Path, name: str, row: int, col: int, seed: int, height: int = 90, width: int = 100, gsd: float = GSD
) -> Path:
    """A raster whose first pixel lies at a row and column of pixels of `GSD` from the corner of all."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_scene(folder / name, paint(height, width, seed), (LEFT + col * GSD, TOP - row * GSD), gsd)


def job_of(paths: Iterable[Path], **settings: object) -> Job:
    return make_job([str(path) for path in paths], model=StandIn(), **settings)  # type: ignore[arg-type]


def tiles_meeting(job: Job, numbers: Sequence[int], k: int = 1) -> set[Window]:
    """By brute force: windows in absolute pixels of tiles of which a chip of any core meets rasters of these numbers."""
    spec, found = job.spec.chips, set()
    row, col = job.source.grid.origin_pixel
    for tile, window in job.tiles(k):
        for core in cores(tile, spec.core):
            chip = core.grow(spec.margin)
            if not core.intersection(window).is_empty and any(
                not chip.intersection(job.source.rasters[number].window).is_empty  # type: ignore[attr-defined]
                for number in numbers
            ):
                found.add(Window(window.row + row, window.col + col, window.height, window.width))
    return found


def cores(tile: Tile, core: int) -> list[Window]:
    w = tile.window
    return [Window(r, c, core, core) for r in range(w.row, w.stop_row, core) for c in range(w.col, w.stop_col, core)]


def total(done: Run) -> int:
    return int(done.manifest["tiles"]["total"])


def assert_is_a_full_run(updated: Run, job: Job, folder: Path, execution: Execution = TILE) -> None:
    full = run(job, folder, execution=execution)
    assert updated.footprints.read_bytes() == full.footprints.read_bytes()
    assert updated.directory.rejected.read_bytes() == full.directory.rejected.read_bytes()
    assert updated.manifest["footprints"] == full.manifest["footprints"]
    assert updated.manifest["chips"] == full.manifest["chips"]
    assert updated.manifest["fingerprint"] == full.manifest["fingerprint"]
    assert verify(updated.directory) == []
    assert not updated.directory.coming.exists()


def test_a_raster_that_changed_has_its_tiles_done_again_and_no_other(tmp_path: Path) -> None:
    paths = [part(tmp_path, f"{n}.tif", 0, 100 * n, n) for n in range(4)]
    first = run(job_of(paths), tmp_path / "run", execution=TILE)
    part(tmp_path, "2.tif", 0, 200, 77)
    job = job_of(paths)
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    affected = tiles_meeting(job, [2])
    assert 0 < len(affected) < total(done)
    assert done.manifest["updated"] == {"from": first.manifest["fingerprint"], "kept": total(done) - len(affected)}
    assert done.resumed == total(done) - len(affected)
    assert_is_a_full_run(done, job, tmp_path / "full")


@pytest.mark.parametrize("where", ["left", "above", "right"])
def test_a_raster_that_comes_keeps_the_tiles_it_does_not_meet_though_the_grid_moves(tmp_path: Path, where: str) -> None:
    old = [part(tmp_path, f"{n}.tif", 150, 150 + 100 * n, n) for n in range(2)]
    row, col = {"left": (150, 13), "above": (11, 160), "right": (150, 377)}[where]
    new = part(tmp_path, "new.tif", row, col, 9)
    run(job_of(old), tmp_path / "run", execution=TILE)
    job = job_of([new, *old])
    if where != "right":
        assert job.source.grid.origin_pixel != job_of(old).source.grid.origin_pixel
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    met = tiles_meeting(job, [1, 2]) - tiles_meeting(job, [0])
    same = met & tiles_meeting(job_of(old), [0, 1])  # at the old edge, a tile now has more pixels
    assert 0 < len(same) == done.resumed
    assert_is_a_full_run(done, job, tmp_path / "full")


def test_a_raster_that_goes_gives_its_tiles_to_those_beneath(tmp_path: Path) -> None:
    paths = [part(tmp_path, f"{n}.tif", 10 * n, 60 * n, n) for n in range(4)]  # each overlaps the next
    run(job_of(paths), tmp_path / "run", execution=TILE)
    before = job_of(paths)
    job = job_of(paths[1:])
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    same = (tiles_meeting(before, [1, 2, 3]) - tiles_meeting(before, [0])) & tiles_meeting(job, [0, 1, 2])
    assert 0 < len(same) == done.resumed
    assert_is_a_full_run(done, job, tmp_path / "full")


def test_a_single_raster_becomes_a_mosaic_and_one_again_and_footprints_name_theirs(tmp_path: Path) -> None:
    one, other = part(tmp_path, "one.tif", 0, 0, 1), part(tmp_path, "other.tif", 0, 170, 2)
    run(job_of([one]), tmp_path / "run", execution=TILE)
    for paths in ([other, one], [one, other], [one], [other]):
        job = job_of(paths)
        done = run(job, tmp_path / "run", execution=TILE, update=True)
        assert_is_a_full_run(done, job, tmp_path / "_".join(["full", *(path.stem for path in paths)]))
        assert set(done.read()["imagery"]) == {path.name for path in paths}


def test_another_order_has_only_the_tiles_done_again_where_rasters_overlap(tmp_path: Path) -> None:
    paths = [part(tmp_path, f"{n}.tif", 0, 80 * n, n) for n in range(3)]
    run(job_of(paths), tmp_path / "run", execution=TILE)
    job = job_of(paths[::-1])
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    overlap = (tiles_meeting(job, [0]) & tiles_meeting(job, [1])) | (tiles_meeting(job, [1]) & tiles_meeting(job, [2]))
    assert done.resumed == total(done) - len(overlap)
    assert_is_a_full_run(done, job, tmp_path / "full")


def test_imagery_that_is_resampled_keeps_its_tiles_too(tmp_path: Path) -> None:
    coarse = [part(tmp_path, f"{n}.tif", 0, 130 * n, n, 60, 60, gsd=1.0) for n in range(2)]
    run(job_of(coarse), tmp_path / "run", execution=TILE)
    new = part(tmp_path, "new.tif", 0, -140, 8, 60, 60, gsd=1.0)
    job = job_of([*coarse, new])
    assert not job.source.placement.native  # type: ignore[attr-defined]
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    assert 0 < done.resumed < total(done)
    assert_is_a_full_run(done, job, tmp_path / "full")


changes = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["drop", "repaint", "shift", "front"])), min_size=1, max_size=2
)


@settings(max_examples=6)
@given(changes, st.integers(1, 2), st.booleans())
def test_whatever_happens_to_a_mosaic_an_update_equals_a_full_run(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]], k: int, in_region: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    places = {n: (17 * n % 40, 60 * n) for n in range(4)}
    paths = {n: part(folder, f"{n}.tif", *at, n) for n, at in places.items()}
    region = {"bbox": (LEFT + 25, TOP - 38, LEFT + 120, TOP - 4), "bbox_crs": "EPSG:32630"} if in_region else {}
    execution = Execution(tile=k, threads=1)
    run(job_of(paths.values(), **region), folder / "run", execution=execution)
    for number, what in changes:
        if number not in paths:
            continue
        row, col = places[number]
        if what == "drop" and len(paths) > 2:
            del paths[number]
        elif what == "repaint":
            part(folder, f"{number}.tif", row, col, 50 + number)
        elif what == "shift":
            part(folder, f"{number}.tif", row - 33, col - 71, number)
        elif what == "front":
            paths = {number: paths[number], **paths}
    job = job_of(paths.values(), **region)
    done = run(job, folder / "run", execution=execution, update=True)
    assert_is_a_full_run(done, job, folder / "full", execution)


def test_an_update_of_equal_imagery_is_the_run_that_is_there(tmp_path: Path) -> None:
    path = part(tmp_path, "a.tif", 0, 0, 1)
    run(job_of([path]), tmp_path / "run", execution=TILE)
    model = StandIn()
    done = run(make_job(path, model=model), tmp_path / "run", execution=TILE, update=True)
    assert model.calls == []
    assert done.resumed == total(done)


def test_an_update_is_of_imagery_alone(tmp_path: Path) -> None:
    path = part(tmp_path, "a.tif", 0, 0, 1)
    run(job_of([path]), tmp_path / "run", execution=TILE)
    part(tmp_path, "a.tif", 0, 0, 2)
    with pytest.raises(OutputError, match=r"another job[^$]*config\.threshold: 0\.5 -> 0\.7"):
        run(job_of([path], threshold=0.7), tmp_path / "run", execution=TILE, update=True)
    with pytest.raises(OutputError, match="tiles of 1 cores a side, not 2"):
        run(job_of([path]), tmp_path / "run", execution=Execution(tile=2), update=True)
    with pytest.raises(OutputError, match=r"another job; use --update"):
        run(job_of([path]), tmp_path / "run", execution=TILE)


def test_a_mask_layer_that_skips_is_obeyed_as_in_a_full_run(tmp_path: Path) -> None:
    import geopandas as gpd
    import shapely

    box = shapely.box(LEFT + 20, TOP - 44, LEFT + 95, TOP - 2)
    gpd.GeoDataFrame(geometry=[box], crs="EPSG:32630").to_file(tmp_path / "water.geojson")
    settings: dict[str, object] = {"masks": [f"{tmp_path / 'water.geojson'}:action=skip"]}
    paths = [part(tmp_path, f"{n}.tif", 0, 90 * n, n) for n in range(3)]
    run(job_of(paths, **settings), tmp_path / "run", execution=TILE)
    for seed in (21, 22):
        part(tmp_path, "1.tif", 0, 90, seed)
        paths[0] = part(tmp_path, f"left{seed}.tif", 0, -20, seed)
        job = job_of(paths, **settings)
        done = run(job, tmp_path / "run", execution=TILE, update=True)
        assert_is_a_full_run(done, job, tmp_path / f"full{seed}")


UPDATE = """
import sys
from geoinfer.job import Execution
from geoinfer.pipeline import run
from tests.test_update import job_of
run(job_of(sys.argv[2:]), sys.argv[1], execution=Execution(tile=1, threads=1), update=True)
"""


@pytest.mark.kill
@pytest.mark.parametrize(
    "point",
    ["update_kept", "manifest_replaced:1", "update_dropped", "tile_replaced:2"],
)
def test_an_update_that_is_killed_is_the_old_run_or_goes_on_as_the_new_one(tmp_path: Path, point: str) -> None:
    paths = [part(tmp_path, f"{n}.tif", 100, 100 * n, n) for n in range(3)]
    old = job_of(paths)
    first = run(old, tmp_path / "run", execution=TILE)
    golden = first.footprints.read_bytes()
    new = part(tmp_path, "new.tif", 0, 0, 9)
    environment = {**os.environ, "GEOINFER_FAILPOINT": point}
    command = [sys.executable, "-c", UPDATE, str(tmp_path / "run"), str(new), *map(str, paths)]
    killed = subprocess.run(command, env=environment, timeout=120, check=False)
    assert killed.returncode == -9
    job = job_of([new, *paths])
    if point == "update_kept":
        back = run(old, tmp_path / "run", execution=TILE)  # nothing was decided: the old job's directory
        assert back.resumed == total(back)
        assert back.footprints.read_bytes() == golden
    else:
        with pytest.raises(OutputError, match="another job"):
            run(old, tmp_path / "run", execution=TILE)
    done = run(job, tmp_path / "run", execution=TILE, update=True)
    assert done.resumed >= len((tiles_meeting(job, [1, 2, 3]) - tiles_meeting(job, [0])) & tiles_meeting(old, [0, 1, 2]))
    assert_is_a_full_run(done, job, tmp_path / "full")


def test_a_run_of_an_earlier_version_without_placement_is_done_again_wholly(tmp_path: Path) -> None:
    path = part(tmp_path, "a.tif", 0, 0, 1)
    run(job_of([path]), tmp_path / "run", execution=TILE)
    directory = RunDirectory(tmp_path / "run")
    held = directory.read_manifest()
    assert held is not None
    del held["placement"]
    directory.write_manifest(held)
    part(tmp_path, "a.tif", 0, 0, 2)
    done = run(job_of([path]), tmp_path / "run", execution=TILE, update=True)
    assert done.resumed == 0
    assert_is_a_full_run(done, job_of([path]), tmp_path / "full")


def test_areas_of_kept_tiles_are_a_full_runs(tmp_path: Path) -> None:
    old = [part(tmp_path, f"{n}.tif", 150, 150 + 100 * n, n) for n in range(2)]
    run(job_of(old), tmp_path / "run", execution=TILE)
    job = job_of([part(tmp_path, "new.tif", 0, 0, 9), *old])
    done, full = (run(job, tmp_path / name, execution=TILE, update=True) for name in ("run", "full"))
    areas = [[done.manifest["area_m2"][key], full.manifest["area_m2"][key]] for key in ("asked", "done", "nodata")]
    assert np.allclose(*np.array(areas).T, rtol=1e-12)
