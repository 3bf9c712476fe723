"""Rasters over networks: the same pixels as local ones bit for bit, few requests, and no fault that ends in wrong pixels."""

from __future__ import annotations

import contextvars
import hashlib
import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from faultserver import Server, faulty
from hypothesis import given, settings
from rasterio.windows import Window as RasterioWindow
from rasters import at_place, pattern, write
from s3server import serve_s3
from test_blocks_cache import HEIGHT, LAYOUTS, WIDTH, hole, windows

from geoinfer.errors import RemoteError, SafetyError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery import blocks, open_raster, stored
from geoinfer.imagery.decode import decode
from geoinfer.imagery.meter import decoded
from geoinfer.imagery.overviews import best_overview
from geoinfer.imagery.raster import RasterFile, at_overview, close_handle, hash_file, inspect, verify_content
from geoinfer.imagery.reading import fetch_ahead, reckon
from geoinfer.imagery.scene import Expected, Header, Scene
from geoinfer.imagery.tiff import block_table, read_directories
from geoinfer.remote.access import Access

HASTY = Access(tries=2, stall_s=0.4, connect_s=1)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing decoded or fetched before, nothing left behind."""
    forget_all()
    yield
    forget_all()


def forget_all() -> None:
    blocks.set_capacity()
    for cache in (stored._PAGES, stored._HELD, stored._TABLES):
        cache.discard(lambda _: True)


def cog(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """A cloud-optimized GeoTIFF with overviews; `mask`, `nodata`, `transform` as in `rasters.write`."""
    writing = {name: options.pop(name) for name in ("mask", "nodata", "transform", "crs") if name in options}
    plain = write(path.with_suffix(".plain.tif"), pixels, tiled=True, blockxsize=256, blockysize=256, **writing)
    settled = {"compress": "deflate", "blocksize": 128, "overview_count": 3, "overview_resampling": "average", **options}
    rasterio.shutil.copy(plain, path, driver="COG", **settled)
    plain.unlink()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each layout by number, and a COG."""
    made = tmp_path_factory.mktemp("remote")
    for number, make in enumerate(LAYOUTS.values()):
        make(made / f"{number}.tif")
    cog(made / "cog.tif", pattern(HEIGHT, WIDTH), mask=hole())
    return made


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Server]:
    """A server without faults."""
    with faulty(folder) as server:
        yield server


@pytest.fixture
def served(folder: Path) -> Iterator[Server]:
    """A server for faults: `/cog.tif`."""
    with faulty({"/cog.tif": (folder / "cog.tif").read_bytes()}) as server:
        yield server


def assert_same(one: RasterFile, other: RasterFile, window: Window) -> None:
    pixels, valid = blocks.read_window(one, window)
    expected, known = blocks.read_window(other, window)
    np.testing.assert_array_equal(pixels, expected)
    assert (valid is None) == (known is None)
    assert valid is None or np.array_equal(valid, known)


def spans_asked(server: Server, after: int = 0) -> list[tuple[int, int]]:
    return [hit.span for hit in server.hits[after:] if hit.span is not None]


# Where a raster lies makes no difference


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
@settings(max_examples=6)
@given(window=windows())
def test_any_window_over_http_equals_the_local_one_and_takes_the_planned_requests(
    number: int, window: Window, folder: Path, shared: Server
) -> None:
    forget_all()
    bands = (1, 1, 1) if "thrice" in list(LAYOUTS)[number] else None
    local = inspect(folder / f"{number}.tif", bands)
    remote = inspect(shared.url(f"/{number}.tif"), bands)
    planned = blocks.planned_ranges(remote, window)
    before = len(shared.hits)
    blocks.read_window(remote, window)
    asked = spans_asked(shared, before)
    assert sorted(asked) == [(start, stop) for start, stop in planned]
    assert_same(remote, local, window)
    assert planned == blocks.planned_ranges(local, window)


def test_an_object_store_gives_the_same(folder: Path) -> None:
    with serve_s3({"a/cog.tif": (folder / "cog.tif").read_bytes()}):
        remote = inspect("s3://imagery/a/cog.tif")
        assert remote.name == "cog.tif"
        assert_same(remote, inspect(folder / "cog.tif"), remote.window)


def test_all_that_the_header_says_is_the_same(folder: Path, shared: Server) -> None:
    local, remote = inspect(folder / "cog.tif"), inspect(shared.url("/cog.tif"))
    places = {"path", "mtime_ns", "remote", "scene"}
    for name in set(RasterFile.__slots__) - places:
        assert getattr(local, name) == getattr(remote, name), name
    assert (local.name, remote.name) == ("cog.tif", "cog.tif")
    assert len(remote.overviews) == 3


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_the_tables_say_what_gdal_says(number: int, folder: Path) -> None:
    """Oracle: the names by which GDAL gives away offsets and sizes."""
    content = (folder / f"{number}.tif").read_bytes()
    image = read_directories(lambda spans: [content[start:stop] for start, stop in spans])[0]
    with rasterio.open(folder / f"{number}.tif") as dataset:
        height, width = dataset.block_shapes[0]
        down, across = -(-dataset.height // height), -(-dataset.width // width)
        planes = [1] if image.interleaved else list(dataset.indexes)
        expected = [
            [int(dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band)) for what in ("OFFSET", "SIZE")]
            for band in planes
            for row in range(down)
            for col in range(across)
        ]
    found = block_table(
        lambda spans: [content[a:b] for a, b in spans], image, Window(0, 0, image.height, image.width), planes
    )
    assert found is not None
    assert np.stack(found, 1).tolist() == expected


def test_a_raster_travels_to_another_process(folder: Path, shared: Server) -> None:
    remote = inspect(shared.url("/cog.tif"))
    before = len(shared.hits)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        digest = pool.apply(digest_of, (pickle.loads(pickle.dumps(remote)),))
    assert digest == digest_of(inspect(folder / "cog.tif"))
    asked = spans_asked(shared, before)
    assert sum(start == 0 for start, _ in asked) == 1


def digest_of(file: RasterFile) -> str:
    return hashlib.sha256(blocks.read_window(file, file.window)[0].tobytes()).hexdigest()


def test_a_raster_stays_open_from_task_to_task_of_one_thread(folder: Path, shared: Server) -> None:
    """Dask gives each task a context of its own, and rasterio keeps an opener's files in variables of the context."""
    remote, local = inspect(shared.url("/cog.tif")), inspect(folder / "cog.tif")
    windows = [Window(row, row, 90, 90) for row in (0, 100, 200)]
    expected = [decode(local, window)[0] for window in windows]
    close_handle(remote)
    before = decoded().headers
    for window, pixels in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(contextvars.Context().run(decode, remote, window)[0], pixels)
    assert decoded().headers - before == 1
    contextvars.Context().run(close_handle, remote)
    np.testing.assert_array_equal(decode(remote, windows[0])[0], expected[0])


def test_a_process_ends_well_while_a_remote_raster_is_open(folder: Path, shared: Server) -> None:
    """Datasets that ask Python for bytes must be closed before Python is gone."""
    process = multiprocessing.get_context("spawn").Process(target=leave_open, args=(shared.url("/cog.tif"),))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def leave_open(url: str) -> None:
    file = inspect(url)
    threads = [threading.Thread(target=blocks.read_window, args=(file, Window(0, 0, 300, 300))) for _ in range(3)]
    for thread in threads:
        thread.start()
    blocks.read_window(file, Window(200, 200, 300, 300))
    for thread in threads:
        thread.join()


def test_the_content_is_hashed_where_it_is(folder: Path, shared: Server) -> None:
    sha256 = hashlib.sha256((folder / "cog.tif").read_bytes()).hexdigest()
    good = inspect(Scene(shared.url("/cog.tif"), expected=Expected(sha256=sha256)))
    assert hash_file(good) == sha256
    verify_content(good)
    with pytest.raises(SourceError, match="changed since the snapshot"):
        verify_content(inspect(Scene(shared.url("/cog.tif"), expected=Expected(sha256="0" * 64))))


# Few requests


def test_a_header_is_read_once_however_many_threads_read(folder: Path, shared: Server) -> None:
    before = len(shared.hits)
    remote = inspect(shared.url("/cog.tif"))
    local = inspect(folder / "cog.tif")
    random = np.random.default_rng(0)
    asked = [Window(int(r), int(c), 90, 90) for r, c in random.integers(0, (HEIGHT - 90, WIDTH - 90), (64, 2))]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda window: blocks.read_window(remote, window)[0], asked))
    for window, pixels in zip(asked, found, strict=True):
        np.testing.assert_array_equal(pixels, blocks.read_window(local, window)[0])
    spans = spans_asked(shared, before)
    assert sum(start < 4096 for start, _ in spans) == 1
    total = sum(stop - start for start, stop in spans)
    assert total < remote.size + 70_000  # nothing twice


def test_a_window_is_fetched_at_once_and_not_again(shared: Server) -> None:
    remote = inspect(shared.url("/cog.tif"))
    before = len(shared.hits)
    blocks.prefetch(remote, [remote.window])
    fetched = len(shared.hits)
    assert fetched - before == len(blocks.planned_ranges(remote, remote.window))
    counted = decoded()
    for row in range(0, HEIGHT - 100, 100):
        blocks.read_window(remote, Window(row, 0, 100, WIDTH))
    assert len(shared.hits) == fetched
    assert decoded().requests == counted.requests
    assert decoded().pixels > counted.pixels


@pytest.mark.parametrize("gsd", [0.3, 0.5])
def test_a_row_of_chips_is_fetched_at_once_with_the_requests_of_the_plan(folder: Path, shared: Server, gsd: float) -> None:
    local, remote = open_raster(folder / "cog.tif", gsd=gsd), open_raster(shared.url("/cog.tif"), gsd=gsd)
    area = remote.grid.covering(remote.bounds)
    rows = [[Window(row, col, 150, 150) for col in range(area.col, area.stop_col, 120)]
            for row in range(area.row, area.stop_row, 120)]  # fmt: skip
    reckoned = reckon(remote, area, [(1.0, [window for row in rows for window in row])])
    blocks.set_capacity()
    before, counted = len(shared.hits), decoded()
    for row in rows:
        fetch_ahead(remote, row)
        after = len(shared.hits)
        for window in row:
            np.testing.assert_array_equal(remote.read(window).pixels, local.read(window).pixels)
        assert len(shared.hits) == after
    assert len(shared.hits) - before == reckoned.requests - reckoned.headers
    assert decoded().requests - counted.requests == len(shared.hits) - before
    assert sum(stop - start for start, stop in spans_asked(shared, before)) == reckoned.fetched_bytes - stored.HEAD_BYTES


def test_requests_and_bytes_are_counted_where_they_are_asked_for(served: Server) -> None:
    before = decoded()
    remote = inspect(served.url("/cog.tif"))
    blocks.read_window(remote, remote.window)
    after = decoded()
    assert after.requests - before.requests == len(served.hits)
    assert after.fetched_bytes - before.fetched_bytes == sum(
        min(stop, remote.size) - start for start, stop in spans_asked(served)
    )
    assert after.retries == before.retries


def test_tables_longer_than_the_head_are_read_in_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(2048, 2048, 1), tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    with faulty({"/a.tif": path.read_bytes()}) as server:
        remote, local = inspect(server.url("/a.tif"), (1, 1, 1)), inspect(path, (1, 1, 1))
        before = len(server.hits)
        assert_same(remote, local, Window(1000, 500, 300, 300))
        asked = spans_asked(server, before)
        assert sum(stop - start for start, stop in asked) < 0.45 * remote.size  # near runs are joined
        assert len(asked) < 12


def test_a_plan_of_a_vast_sparse_raster_reads_little(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", height=10**6, width=10**6, count=3, dtype="uint8", sparse_ok=True,
                       tiled=True, blockxsize=512, blockysize=512, crs="EPSG:32630", compress="deflate",
                       transform=at_place("EPSG:32630", (0.3, 0.3)), bigtiff=True,
                       interleave="pixel") as dataset:  # fmt: skip
        dataset.write(pattern(512, 512), window=RasterioWindow(512 * 100, 512 * 900, 512, 512))
    with faulty({"/a.tif": path.read_bytes()}) as server:
        remote = inspect(server.url("/a.tif"))
        began = time.monotonic()
        assert blocks.planned_ranges(remote, Window(0, 0, 20_000, 20_000)) == []
        [(start, stop)] = blocks.planned_ranges(remote, Window(512 * 900 - 3000, 512 * 100 - 3000, 6000, 6000))
        assert stop - start > 512 * 512
        assert time.monotonic() - began < 5
        assert sum(b - a for a, b in spans_asked(server)) < 20 * 2**20
        pixels, _ = blocks.read_window(remote, Window(512 * 900 - 100, 512 * 100 - 100, 200, 200))
        assert np.array_equal(pixels[:, 100:, 100:], pattern(512, 512)[:, :100, :100])
        assert not pixels[:, :100].any()


def test_what_is_held_is_bounded(folder: Path, shared: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    small = stored.Cache(100_000, stored._size_of_pieces)
    monkeypatch.setattr(stored, "_HELD", small)
    remote = inspect(shared.url("/cog.tif"))
    blocks.prefetch(remote, [remote.window])
    assert 0 < small.size <= 100_000
    assert_same(remote, inspect(folder / "cog.tif"), remote.window)
    assert small.size == 0


# Overviews


@pytest.mark.parametrize("kind", ["plain", "mask", "nodata", "uint16", "jpeg", "band"])
def test_an_overview_is_what_gdal_reads_of_it(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {
        "mask": {"mask": hole()}, "nodata": {"nodata": 0}, "jpeg": {"compress": "jpeg"}, "band": {"interleave": "band"},
    }.get(kind, {})  # fmt: skip
    pixels = pattern(HEIGHT, WIDTH)
    if kind == "uint16":
        pixels = pixels.astype(np.uint16) * 99
    if kind == "nodata":
        pixels = np.where(hole(), np.maximum(pixels, 1), 0).astype(np.uint8)
    path = cog(tmp_path / "a.tif", pixels, **options)
    with faulty({"/a.tif": path.read_bytes()}) as server:
        for file in (inspect(path), inspect(server.url("/a.tif"))):
            assert len(file.overviews) == 3
            for level in range(3):
                smaller = at_overview(file, level)
                with rasterio.open(path, overview_level=level) as dataset:
                    expected, known = dataset.read([1, 2, 3]), dataset.dataset_mask() > 0
                    assert (smaller.height, smaller.width) == dataset.shape == file.overviews[level]
                    assert smaller.block == dataset.block_shapes[0]
                    assert np.allclose(smaller.transform, dataset.transform, rtol=0, atol=1e-6)
                found, valid = blocks.read_window(smaller, smaller.window)
                np.testing.assert_array_equal(found, expected)
                assert np.array_equal(np.ones_like(known) if valid is None else valid, known)
                corner = Window(smaller.height // 3, smaller.width // 3, 20, 30)
                np.testing.assert_array_equal(
                    blocks.read_window(smaller, corner)[0], expected[:, *corner.slices_in(smaller.window)]
                )


@pytest.mark.parametrize(
    ("gsd", "level"), [(0.05, None), (0.2, None), (0.39, None), (0.4, 0), (0.7, 0), (0.8, 1), (1.7, 2), (50.0, 2)]
)
def test_the_coarsest_overview_that_is_twice_as_fine_as_the_model_is_read(
    tmp_path: Path, gsd: float, level: int | None
) -> None:
    path = cog(tmp_path / "a.tif", pattern(1024, 1024), transform=at_place("EPSG:32630", (0.1, 0.1)))
    with faulty({"/a.tif": path.read_bytes()}) as server:
        chosen = [best_overview(file, gsd) for file in (inspect(path), inspect(server.url("/a.tif")))]
    assert [file.overview for file in chosen] == [level, level]
    assert level is None or best_overview(chosen[0], 1000.0) == chosen[0]


def test_overviews_that_do_not_say_what_is_valid_are_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(HEIGHT, WIDTH), mask=hole(), tiled=True, blockxsize=128, blockysize=128)
    images = read_directories(lambda spans: [path.read_bytes()[a:b] for a, b in spans])
    assert [image.is_mask for image in images] == [False, True]
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.average)
    file = inspect(path)
    read = read_directories(lambda spans: [path.read_bytes()[a:b] for a, b in spans])
    assert (len(file.overviews) == 1) == any(image.is_mask and image.height == HEIGHT // 2 for image in read)
    with pytest.raises(SourceError, match="no overview 7"):
        at_overview(file, 7)


def test_overviews_beside_the_file_are_not_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(HEIGHT, WIDTH))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.average)
    assert (tmp_path / "a.tif.ovr").exists()
    assert inspect(path).overviews == ()


# Damage


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_only_windows_over_what_was_cut_off_fail_and_no_overview_stands_in(tmp_path: Path, share: float) -> None:
    path = cog(tmp_path / "whole.tif", pattern(HEIGHT, WIDTH))
    whole, content = inspect(path), path.read_bytes()
    cut = content[: int(len(content) * share)]
    (tmp_path / "cut.tif").write_bytes(cut)
    with faulty({"/cut.tif": cut}) as server:
        for file in (inspect(tmp_path / "cut.tif"), inspect(server.url("/cut.tif"))):
            failed = 0
            for row in range(0, HEIGHT, 128):
                for col in range(0, WIDTH, 128):
                    window = Window(row, col, 128, 128).intersection(whole.window)
                    lost = any(stop > len(cut) for _, stop in blocks_under(whole, window))
                    failed += lost
                    if lost:
                        with pytest.raises(SourceError, match=r"^cut\.tif: cannot read rows"):
                            blocks.read_window(file, window)
                    else:
                        assert_same(file, whole, window)
            assert failed > 0


def blocks_under(file: RasterFile, window: Window) -> list[tuple[int, int]]:
    from geoinfer.imagery.decode import ranges_under

    return ranges_under(file, window)


def test_bytes_garbled_on_the_way_are_fetched_again(folder: Path, served: Server) -> None:
    remote = inspect(served.url("/cog.tif"))
    requests = len(blocks.planned_ranges(remote, remote.window))
    served.fault("/cog.tif", corrupt=(remote.size // 2, remote.size), times=requests, at_least=4096)
    assert_same(remote, inspect(folder / "cog.tif"), remote.window)


def test_a_head_garbled_on_the_way_is_fetched_again(folder: Path, served: Server) -> None:
    served.fault("/cog.tif", corrupt=(0, 2000), times=1)
    remote = inspect(served.url("/cog.tif"))
    assert_same(remote, inspect(folder / "cog.tif"), remote.window)


def test_damage_that_stays_is_an_error_that_names_the_file(folder: Path, served: Server) -> None:
    remote, local = inspect(served.url("/cog.tif")), inspect(folder / "cog.tif")
    window = Window(HEIGHT - 128, WIDTH - 128, 128, 128)
    (first, last) = blocks_under(remote, window)[-1]
    served.fault("/cog.tif", corrupt=(first, last))
    before = len(served.hits)
    with pytest.raises(SourceError, match=r"^cog\.tif: cannot read rows \d+:\d+, cols \d+:\d+: \S"):
        blocks.read_window(remote, window)
    assert len(served.hits) - before < 12
    assert_same(remote, local, Window(0, 0, 300, 300))  # the rest is as good as ever
    served.heal()
    assert_same(remote, local, remote.window)


# Faults of servers


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"short": 1000},
        {"reset": 1000},
        {"stall": 10},
    ],
    ids=str,
)
def test_a_fault_that_passes_changes_no_pixel_and_is_counted(folder: Path, served: Server, fault: dict[str, Any]) -> None:
    access = Access(tries=4, stall_s=0.4, connect_s=1)
    remote = inspect(served.url("/cog.tif"), access=access)
    served.fault("/cog.tif", times=2, **fault)
    before = decoded()
    assert_same(remote, inspect(folder / "cog.tif"), remote.window)
    assert decoded().retries - before.retries == 2


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"hang": True}, {"short": 7}, {"drip_s": 0.05}], ids=str)
def test_a_fault_that_stays_ends_in_a_remote_error_in_time(served: Server, fault: dict[str, Any], when: str) -> None:
    began = time.monotonic()
    if when == "open":
        served.fault("/cog.tif", **fault)
        with pytest.raises(RemoteError, match=r"cog\.tif"):
            inspect(served.url("/cog.tif"), access=HASTY)
    else:
        remote = inspect(served.url("/cog.tif"), access=HASTY)
        served.fault("/cog.tif", **fault)
        with pytest.raises(RemoteError, match=r"cog\.tif"):
            blocks.read_window(remote, remote.window)
        served.heal()
        blocks.read_window(remote, remote.window)  # nothing is kept of the failure
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"status": 404}, "404"), ({"status": 403}, "403"), ({"no_range": True}, "needs range requests"),
     ({"body": b""}, "empty file"), ({"body": b"<!DOCTYPE html><html>"}, "web page"),
     ({"body": b"GIF89a" * 9}, "not a GeoTIFF"),
     ({"body": b"II*\0\x08\0\0\0\xff\0"}, "cut off or damaged")],
)  # fmt: skip
def test_what_is_no_raster_is_said_at_once(served: Server, fault: dict[str, Any], message: str) -> None:
    served.fault("/cog.tif", **fault)
    with pytest.raises(SourceError, match=message) as caught:
        inspect(served.url("/cog.tif"))
    assert "cog.tif" in str(caught.value)
    assert len(served.hits) <= 2


def test_a_missing_part_in_the_middle_of_a_run_is_permanent(served: Server) -> None:
    remote = inspect(served.url("/cog.tif"))
    served.fault("/cog.tif", status=404)
    with pytest.raises(SourceError, match="404"):
        blocks.read_window(remote, remote.window)
    assert len(served.hits) <= 1 + len(blocks.planned_ranges(remote, remote.window))


def test_a_file_replaced_while_it_is_read_is_noticed(folder: Path, tmp_path: Path, served: Server) -> None:
    remote = inspect(served.url("/cog.tif"))
    blocks.read_window(remote, Window(0, 0, 100, 100))
    served.files["/cog.tif"] = cog(tmp_path / "b.tif", pattern(HEIGHT, WIDTH, seed=9), mask=hole()).read_bytes()
    with pytest.raises(SourceError, match="changed"):
        blocks.read_window(remote, remote.window)
    again = inspect(served.url("/cog.tif"))
    assert_same(again, inspect(tmp_path / "b.tif"), again.window)


def test_another_file_than_the_snapshot_names_is_refused(folder: Path, served: Server) -> None:
    size = (folder / "cog.tif").stat().st_size
    right = inspect(served.url("/cog.tif")).remote
    assert right is not None
    inspect(Scene(served.url("/cog.tif"), expected=Expected(size=size, etag=right.etag)))
    inspect(Scene(str(folder / "cog.tif"), expected=Expected(size=size, etag=right.etag)))
    for address in (served.url("/cog.tif"), str(folder / "cog.tif")):
        with pytest.raises(SourceError, match="changed since the snapshot"):
            inspect(Scene(address, expected=Expected(size=size + 1)))
    with pytest.raises(SourceError, match="changed since the snapshot"):
        inspect(Scene(served.url("/cog.tif"), expected=Expected(etag="other")))


# Safety


def test_a_document_that_names_other_files_is_refused(served: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    write(secret, pattern(20, 20))
    served.files["/evil.tif"] = f"<VRTDataset><SourceFilename>{secret}</SourceFilename></VRTDataset>".encode()
    with pytest.raises(SafetyError, match="XML"):
        inspect(served.url("/evil.tif"))
    assert served.count("/evil.tif") == 1


def test_a_bomb_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    with rasterio.open(path, "w", driver="GTiff", height=16384, width=16384, count=3, dtype="uint16", tiled=True,
                       blockxsize=16384, blockysize=16384, compress="zstd", sparse_ok=True, crs="EPSG:32630",
                       transform=at_place("EPSG:32630", (0.3, 0.3)), interleave="pixel"):  # fmt: skip
        pass
    with faulty({"/bomb.tif": path.read_bytes()}) as server:
        with pytest.raises(SafetyError, match="exceeds the limit"):
            inspect(server.url("/bomb.tif"))
        assert len(server.hits) == 1


def test_an_address_out_of_a_document_leads_to_no_private_host(served: Server) -> None:
    with pytest.raises(SafetyError):
        inspect(Scene(served.url("/cog.tif"), is_typed=False))
    for address in ("file:///etc/passwd", "/vsicurl/http://127.0.0.1/a.tif", "gopher://127.0.0.1/a.tif"):
        with pytest.raises(SafetyError):
            inspect(Scene(address, is_typed=False))
    assert served.hits == []
    inspect(Scene(served.url("/cog.tif"), is_typed=False), access=Access(hosts=(served.host,)))


def test_a_signature_is_shown_nowhere(served: Server) -> None:
    secret = "sIgNaTuRe0123"
    url = served.url(f"/cog.tif?sig={secret}")
    remote = inspect(url, access=HASTY)
    texts = [repr(remote), str(remote), remote.shown, remote.name, repr(remote.stored)]
    window = Window(HEIGHT - 128, WIDTH - 128, 128, 128)
    for fault in ({"status": 404}, {"status": 503}, {"corrupt": blocks_under(remote, window)[-1]}, {"etag": '"new"'}):
        served.heal()
        served.fault("/cog.tif", **fault)
        with pytest.raises((SourceError, RemoteError)) as caught:
            blocks.read_window(remote, window)
        texts += [str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    assert all(secret not in text for text in texts)


# Without opening


def test_a_plan_without_opening_asks_nobody_and_guesses_by_share(folder: Path, served: Server) -> None:
    known = inspect(folder / "cog.tif")
    header = Header(known.crs, known.transform, known.height, known.width, "uint8", 3, known.size)
    assumed = inspect(Scene(served.url("/cog.tif"), header=header), open_header=False)
    assert served.hits == []
    assert assumed.is_assumed
    assert (assumed.height, assumed.width, assumed.bands) == (HEIGHT, WIDTH, (1, 2, 3))
    planned = blocks.planned_ranges(assumed, assumed.window)
    assert sum(stop - start for start, stop in planned) == pytest.approx(known.size, rel=0.01)
    opened = inspect(Scene(served.url("/cog.tif")), open_header=False)
    assert not opened.is_assumed


@pytest.mark.realdata
def test_real_imagery_over_http_equals_the_file(data_folder: Path) -> None:
    paths = sorted(data_folder.rglob("*.tif"), key=lambda path: path.stat().st_size)
    assert paths
    chosen = paths[len(paths) // 2]
    with faulty(chosen.parent) as server:
        remote, local = inspect(server.url(f"/{chosen.name}")), inspect(chosen)
        window = Window(local.height // 3, local.width // 3, min(600, local.height // 2), min(700, local.width // 2))
        assert_same(remote, local, window)
