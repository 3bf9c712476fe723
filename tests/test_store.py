"""The run directory and the files in it: whole or not at all, held by one run, in one order."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geoinfer import formats, store
from geoinfer.errors import ConfigError, OutputError, ResourceError
from geoinfer.formats import SortedRows, export, hilbert, write_geoparquet
from geoinfer.store import RunDirectory, differences


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def frame_of(rows: np.ndarray, cols: np.ndarray) -> gpd.GeoDataFrame:
    boxes = shapely.box(cols, rows, cols + 1, rows + 1)
    ids = [f"{r}_{c}" for r, c in zip(rows, cols, strict=True)]
    text = {"id": pd.Series(ids, dtype=object), "note": pd.Series([None] * len(ids), dtype=object)}
    return gpd.GeoDataFrame(text, geometry=gpd.GeoSeries(boxes, crs=32630))


# ---------------------------------------------------------------- committing


def test_a_committed_tile_comes_back_as_it_was(run: RunDirectory) -> None:
    arrays = {"coords": np.arange(6, dtype=np.int32).reshape(3, 2), "empty": np.zeros(0, np.int64)}
    run.commit_tile(-3, 12, arrays, {"status": "done", "reason": None})
    assert run.committed() == {(-3, 12)}
    stored, record = run.read_tile(-3, 12)
    assert record == {"status": "done", "reason": None} == run.read_record(-3, 12)
    assert set(stored) == set(arrays)
    for name, array in arrays.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)


def test_no_flipped_bit_gives_another_error_or_other_numbers(run: RunDirectory) -> None:
    arrays = {"a": np.arange(9, dtype=np.int32), "b": np.ones((2, 3))}
    run.commit_tile(0, 0, arrays, {"status": "done"})
    path = run.tile_path(0, 0)
    content, noticed = bytearray(path.read_bytes()), 0
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            found, record = run.read_tile(0, 0)
        except OutputError:
            noticed += 1
        else:
            assert record == {"status": "done"}
            for name in arrays.keys() & found.keys():  # a name that changed is missed by who asks for it
                np.testing.assert_array_equal(found[name], arrays[name])
        content[bit // 8] ^= 1 << bit % 8
    assert noticed > 8 * sum(array.nbytes for array in arrays.values())


def test_a_write_that_fails_leaves_the_old_file_and_no_scratch(run: RunDirectory) -> None:
    run.write_manifest({"state": "old"})
    with contextlib.suppress(RuntimeError), run.replacing(run.manifest, "manifest") as file:
        file.write(b'{"state": "ne')
        raise RuntimeError
    assert run.read_manifest() == {"state": "old"}
    assert not list(run.scratch.iterdir())


def test_a_flipped_bit_in_a_tile_is_an_error_that_names_the_file(run: RunDirectory) -> None:
    run.commit_tile(0, 0, {"values": np.arange(1000, dtype=np.int64)}, {"status": "done"})
    path = run.tile_path(0, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"0_0\.npz: damaged tile"):
        run.read_tile(0, 0)


def test_two_processes_that_commit_one_tile_leave_one_whole_file(run: RunDirectory) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_commit_many, args=(run, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert run.committed() == {(0, 0)}
    np.testing.assert_array_equal(run.read_tile(0, 0)[0]["values"], np.arange(1000))
    assert not list(run.scratch.iterdir())


def _commit_many(run: RunDirectory, barrier: object) -> None:
    barrier.wait(30)  # type: ignore[attr-defined]
    for _ in range(50):
        run.commit_tile(0, 0, {"values": np.arange(1000)}, {"status": "done"})


def test_a_full_disk_is_a_resource_error(run: RunDirectory) -> None:
    with pytest.raises(ResourceError, match="no space left") as caught, run.replacing(run.footprints, "footprints"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 7
    assert not run.footprints.exists()


def test_a_real_file_size_limit_leaves_no_partial_file(run: RunDirectory) -> None:
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from geoinfer.store import RunDirectory\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    RunDirectory(Path(sys.argv[1])).commit_tile(0, 0, {'a': np.zeros(10_000)}, {})\n"
        "except Exception as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.root)], timeout=60, check=False)
    assert done.returncode == 7
    assert run.committed() == set()
    assert not list(run.scratch.iterdir())


def test_a_directory_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        RunDirectory(tmp_path / "file" / "run").create()


def test_a_directory_of_something_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"not a run directory.*thesis\.tex"):
        RunDirectory(tmp_path).create()


def test_clearing_removes_what_a_run_wrote_and_nothing_else(run: RunDirectory) -> None:
    run.write_manifest({})
    run.commit_tile(0, 0, {}, {})
    run.succeed("mark")
    (run.root / "notes.txt").write_text("mine")
    run.clear()
    assert sorted(p.name for p in run.root.iterdir()) == ["notes.txt", "tiles", "tmp"]
    assert run.committed() == set()


# ---------------------------------------------------------------- the lock


def test_a_second_run_is_refused_and_told_who_holds_the_directory(run: RunDirectory) -> None:
    with run.lock() as token:
        assert run.is_held_with(token)
        with pytest.raises(OutputError, match=f"process {os.getpid()}") as caught, run.lock():
            pass
        assert caught.value.exit_code == 3
    with run.lock():
        pass
    assert not run.is_held_with(token)


def test_the_lock_of_a_killed_process_is_taken_over(run: RunDirectory) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom geoinfer.store import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).lock():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.root)], timeout=60, check=False)
    assert done.returncode == -9
    assert (run.root / "run.lock").exists()
    with run.lock():
        pass


def test_a_lock_of_another_host_is_respected_even_if_the_kernel_grants_it(run: RunDirectory) -> None:
    (run.root / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(OutputError, match=r"elsewhere.*delete run\.lock"), run.lock():
        pass


# ---------------------------------------------------------------- differences


def test_a_difference_is_told_key_by_key() -> None:
    old = {"config": {"threshold": 0.5, "crs": "A"}, "imagery": [{"sha256": "a"}], "gone": 1}
    new = {"config": {"threshold": 0.6, "crs": "A"}, "imagery": [{"sha256": "b"}], "new": 2}
    assert differences(old, new) == [
        "config.threshold: 0.5 -> 0.6",
        'imagery[0].sha256: "a" -> "b"',
        "gone: 1 -> null",
        "new: null -> 2",
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(json_values, json_values)
def test_equal_values_have_no_difference_and_unequal_ones_have(old: object, new: object) -> None:
    assert differences(old, old) == []
    if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True) and not _differ_in_nulls_alone(old, new):
        assert differences(old, new)


def _differ_in_nulls_alone(old: object, new: object) -> bool:
    """{"a": null} against {}, or false against 0: equal to Python, or to `get`."""
    return old == new or "null" in json.dumps([old, new])


# ---------------------------------------------------------------- order


def test_the_hilbert_curve_visits_neighbours_and_every_pixel_once() -> None:
    row, col = (a.ravel() for a in np.mgrid[0:64, 0:64])
    distance = hilbert(row, col)
    assert len(np.unique(distance)) == 64 * 64
    order = np.argsort(distance)
    steps = np.abs(np.diff(row[order])) + np.abs(np.diff(col[order]))
    assert (steps == 1).all()


def test_the_hilbert_curve_covers_the_whole_of_int32() -> None:
    edge = np.array([-(2**31), -1, 0, 2**31 - 1])
    row, col = (a.ravel() for a in np.meshgrid(edge, edge))
    assert len(np.unique(hilbert(row, col))) == 16


pixels = st.lists(st.tuples(st.integers(-500, 500), st.integers(-500, 500)), unique=True, max_size=60)


@given(points=pixels, cuts=st.lists(st.integers(0, 60), max_size=4), spill=st.integers(1, 40), data=st.data())
def test_bytes_do_not_depend_on_the_order_in_which_rows_come_nor_on_spills(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[int, int]], cuts: list[int], spill: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(points))
    folder = tmp_path_factory.mktemp("sort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "ROW_GROUP", 16)
        whole = _written(folder / "whole.parquet", points, [])
        patch.setattr(formats, "SPILL_ROWS", spill)
        pieces = _written(folder / "pieces.parquet", shuffled, sorted(cuts))
    assert whole == pieces
    assert not list(folder.glob("*.spill"))


def _written(path: Path, points: list[tuple[int, int]], cuts: list[int]) -> bytes:
    rows = np.array([p[0] for p in points], np.int64)
    cols = np.array([p[1] for p in points], np.int64)
    sorter = SortedRows(path.parent, path.stem, frame_of(rows[:0], cols[:0]))
    for start, stop in zip([0, *cuts], [*cuts, len(points)], strict=True):
        part = slice(start, max(start, stop))
        sorter.add(frame_of(rows[part], cols[part]), hilbert(rows[part], cols[part]))
    with path.open("wb") as file:
        write_geoparquet(file, sorter, CRS.from_epsg(32630))
    return path.read_bytes()


def test_the_file_is_geoparquet_with_a_covering_that_readers_use(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, cols = rng.permutation(1000)[:300], rng.permutation(1000)[:300]
    sorter = SortedRows(tmp_path, "x", frame_of(rows[:0], cols[:0]))
    sorter.add(frame_of(rows, cols), hilbert(rows, cols))
    path = tmp_path / "x.parquet"
    with path.open("wb") as file:
        write_geoparquet(file, sorter, CRS.from_epsg(32630))
    meta = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert meta["version"] == "1.1.0"
    assert meta["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    read = gpd.read_parquet(path)
    assert read.crs == CRS.from_epsg(32630)
    assert len(read) == 300
    inside = gpd.read_parquet(path, bbox=(0, 0, 200, 200))
    expected = read[(read.bounds.minx <= 200) & (read.bounds.miny <= 200)]
    assert set(inside["id"]) == set(expected["id"])
    assert 0 < len(inside) < 300


def test_a_file_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    path.write_bytes(_written(path, [], []))
    read = gpd.read_parquet(path)
    assert list(read.columns) == ["id", "note", "geometry"]
    assert len(read) == 0
    assert read.crs == CRS.from_epsg(32630)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
def test_export_keeps_every_row(tmp_path: Path, suffix: str) -> None:
    points = [(620_000, 700_000), (620_003, 700_001)]
    source = tmp_path / "found.parquet"
    _written(source, points, [])
    target = tmp_path / f"out{suffix}"
    export(source, target)
    assert sorted(gpd.read_file(target)["id"]) == sorted(f"{r}_{c}" for r, c in points)
    assert not list(tmp_path.glob(".out*"))


def test_export_names_the_formats_it_knows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.gpkg"):
        export(tmp_path / "a.parquet", tmp_path / "a.shp")


def test_verify_tells_what_changed(run: RunDirectory) -> None:
    run.coverage.write_bytes(b"as written")
    outputs = {"coverage.parquet": {"sha256": store.digest(run.coverage)}, "rejected.parquet": {"sha256": ""}}
    run.write_manifest({"outputs": outputs})
    run.succeed("mark")
    assert store.verify(run) == [f"{run.rejected}: missing"]
    run.coverage.write_bytes(b"as edited")
    assert store.verify(run) == [f"{run.coverage}: changed since the run wrote it", f"{run.rejected}: missing"]


def test_pandas_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    _written(path, [(1, 2)], [])
    assert b"pandas" not in (pq.read_metadata(path).metadata or {})
    assert isinstance(pd.read_parquet(path), pd.DataFrame)
