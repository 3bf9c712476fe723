"""The cache of decoded blocks: the same pixels as rasterio's, each block decoded once, never more bytes than allowed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window as RasterioWindow
from rasters import pattern, write

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery import blocks, open_raster
from geoinfer.imagery.cache import Cache
from geoinfer.imagery.meter import decoded
from geoinfer.imagery.raster import RasterFile, inspect

HEIGHT, WIDTH = 700, 900


def tiles(side: int, **more: Any) -> dict[str, Any]:
    return {"tiled": True, "blockxsize": side, "blockysize": side, "compress": "deflate", **more}


def hole() -> np.ndarray:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    return (rows + 2 * cols > 300) & ((rows - 400) ** 2 + (cols - 500) ** 2 > 9000)


def with_hole(value: float, dtype: str = "uint8") -> np.ndarray:
    pixels = np.maximum(pattern(HEIGHT, WIDTH), 1).astype(dtype)
    return np.where(hole(), pixels, np.array(value, dtype))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "tiles of 16": lambda p: write(p, pattern(HEIGHT, WIDTH), **tiles(16)),
    "tiles of 64, band by band": lambda p: write(p, pattern(HEIGHT, WIDTH), **tiles(64, interleave="band")),
    "tiles of 512, with nodata": lambda p: write(p, with_hole(0), nodata=0, **tiles(512)),
    "tiles of 512, one band thrice": lambda p: write(p, pattern(HEIGHT, WIDTH, 1), **tiles(512)),
    "oblong tiles": lambda p: write(p, pattern(HEIGHT, WIDTH), tiled=True, blockxsize=48, blockysize=352),
    "one strip": lambda p: write(p, pattern(HEIGHT, WIDTH), blockysize=HEIGHT, compress="lzw"),
    "strips of a row, with a mask": lambda p: write(p, pattern(HEIGHT, WIDTH), blockysize=1, mask=hole()),
    "strips of 37 rows": lambda p: write(p, pattern(HEIGHT, WIDTH), blockysize=37, compress="deflate", interleave="pixel"),
    "alpha": lambda p: write(
        p,
        np.concatenate([pattern(HEIGHT, WIDTH), hole()[None].astype(np.uint8) * 200]),
        colours=("red", "green", "blue", "alpha"),
        **tiles(128),
    ),
    "uint16": lambda p: write(p, pattern(HEIGHT, WIDTH).astype(np.uint16) * 211, **tiles(128)),
    "int16 with nodata": lambda p: write(p, with_hole(-9999, "int16"), nodata=-9999, **tiles(128)),
    "float32 with NaN": lambda p: write(p, with_hole(np.nan, "float32"), **tiles(256)),
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Nothing decoded before, nothing left behind."""
    blocks.set_capacity()
    yield
    blocks.set_capacity()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RasterFile]:
    folder = tmp_path_factory.mktemp("layouts")
    return {
        name: inspect(make(folder / f"{i}.tif"), bands=(1, 1, 1) if "thrice" in name else None)
        for i, (name, make) in enumerate(LAYOUTS.items())
    }


def by_rasterio(file: RasterFile, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and validity as rasterio sees them."""
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    with rasterio.open(file.path) as dataset:
        pixels, valid = dataset.read(list(file.bands), window=area), dataset.dataset_mask(window=area) > 0
    return pixels, valid & np.isfinite(pixels).all(axis=0)


def assert_same(file: RasterFile, window: Window) -> None:
    pixels, valid = blocks.read_window(file, window)
    expected, known = by_rasterio(file, window)
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    if valid is None:
        assert known.all()
    else:
        assert np.array_equal(valid, known)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    row, col = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    return Window(row, col, draw(st.integers(1, HEIGHT - row)), draw(st.integers(1, WIDTH - col)))


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=10)
@given(window=windows())
def test_any_window_equals_rasterios(name: str, files: dict[str, RasterFile], window: Window) -> None:
    assert_same(files[name], window)


@pytest.mark.parametrize("name", LAYOUTS)
def test_granules_are_whole_blocks_and_neither_tiny_nor_huge(name: str, files: dict[str, RasterFile]) -> None:
    file = files[name]
    rows, cols = blocks.granule_of(file)
    assert rows % file.block[0] == cols % file.block[1] == 0
    assert min(rows, HEIGHT) >= 192 or rows * cols * 3 > 2**20
    assert min(cols, WIDTH) >= 192


@pytest.mark.parametrize("name", LAYOUTS)
def test_threads_read_the_same_and_decode_each_block_once(name: str, files: dict[str, RasterFile]) -> None:
    file, random = files[name], np.random.default_rng(0)
    corners = random.integers(0, (HEIGHT - 100, WIDTH - 100), (40, 2))
    asked = [Window(int(r), int(c), 100, 100) for r, c in corners] + [file.window] * 8
    results: list[tuple[np.ndarray, Any]] = []
    counts: list[tuple[int, int]] = []
    start = threading.Barrier(8)

    def work(share: list[Window]) -> None:
        before = decoded()
        start.wait()
        results.extend([(blocks.read_window(file, window)[0], window) for window in share])
        counts.append((decoded().pixels - before.pixels, decoded().bytes - before.bytes))

    threads = [threading.Thread(target=work, args=(asked[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole, _ = by_rasterio(file, file.window)
    assert len(results) == len(asked)
    for pixels, w in results:
        np.testing.assert_array_equal(pixels, whole[:, w.row : w.stop_row, w.col : w.stop_col])
    assert sum(pixels for pixels, _ in counts) == HEIGHT * WIDTH
    assert 0.8 * file.size < sum(size for _, size in counts) + (70_000 if file.has_mask else 0) <= file.size + 70_000


def test_memory_is_bounded_and_what_was_forgotten_is_read_again(files: dict[str, RasterFile]) -> None:
    file = files["tiles of 64, band by band"]
    rows, cols = blocks.granule_of(file)
    most = 3 * rows * cols * 3
    blocks.set_capacity(most)
    before = decoded().pixels
    for row in list(range(0, HEIGHT, 100)) * 2:
        assert_same(file, Window(row, 0, min(100, HEIGHT - row), WIDTH))
        assert 0 < blocks.remembered() <= most
    assert decoded().pixels - before > HEIGHT * WIDTH


def test_a_read_belongs_to_its_caller(files: dict[str, RasterFile]) -> None:
    file = files["tiles of 512, with nodata"]
    pixels, valid = blocks.read_window(file, file.window)
    assert valid is not None
    pixels[...], valid[...] = 1, True
    assert_same(file, file.window)


def test_validity_costs_nothing_where_all_is_valid(tmp_path: Path) -> None:
    source = open_raster(write(tmp_path / "a.tif", pattern(300, 300), **tiles(128)), gsd=0.3)
    inside = source.placement.windows[0]
    one, other = source.read(inside), source.read(inside)
    assert one.valid.all()
    assert one.valid is other.valid
    assert not one.valid.flags.writeable
    assert one.pixels is not other.pixels
    assert not source.read(inside.grow(1)).valid.all()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_a_south_up_raster_of_any_type_equals_its_north_up_twin(tmp_path: Path, kind: str) -> None:
    pixels = (pattern(HEIGHT, WIDTH) * (1 if kind == "uint8" else 37)).astype(kind)
    north = write(tmp_path / "n.tif", pixels, transform=rasterio.Affine(0.3, 0, 7e5, 0, -0.3, 6.2e5), mask=hole())
    upward = rasterio.Affine(0.3, 0, 7e5, 0, 0.3, 6.2e5 - 0.3 * HEIGHT)
    south = write(tmp_path / "s.tif", pixels[:, ::-1], transform=upward, mask=hole()[::-1])
    one, other = open_raster(north, gsd=0.3), open_raster(south, gsd=0.3)
    for window in (one.grid.window, Window(200, 300, 150, 250)):
        a, b = one.read(window), other.read(window)
        assert np.array_equal(a.pixels, b.pixels)
        assert np.array_equal(a.valid, b.valid)


# Damage and change


@pytest.mark.parametrize("layout", [{"blockysize": 4, "compress": "deflate", "interleave": "pixel"}, tiles(64)])
def test_only_windows_that_touch_a_damaged_block_fail(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = write(tmp_path / "a.tif", pattern(HEIGHT, WIDTH), **layout)
    truth = path.read_bytes()
    with rasterio.open(path) as dataset:
        (height, width), at = dataset.block_shapes[0], (400, 500)
        tag = f"{at[1] // width}_{at[0] // height}"
        offset, size = (int(dataset.get_tag_item(f"BLOCK_{what}_{tag}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    path.write_bytes(truth[:offset] + bytes(b ^ 0xFF for b in truth[offset : offset + size]) + truth[offset + size :])
    file = inspect(path)
    row, col = at[0] - at[0] % height, at[1] - at[1] % width
    beside = [Window(0, 0, row, WIDTH), Window(row + height, 0, HEIGHT - row - height, WIDTH)]
    if width < WIDTH:
        beside += [Window(row, 0, height, col), Window(row, col + width, height, WIDTH - col - width)]
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.tif").write_bytes(truth)
    good = inspect(tmp_path / "good" / "a.tif")
    for _ in range(2):
        for window in beside:
            assert np.array_equal(blocks.read_window(file, window)[0], blocks.read_window(good, window)[0])
        for window in (Window(at[0], at[1], 1, 1), file.window, Window(row - 1, col, 2, 1)):
            with pytest.raises(SourceError, match=r"^a\.tif: cannot read rows \d+:\d+, cols \d+:\d+: \S"):
                blocks.read_window(file, window)


def test_what_is_remembered_of_a_file_that_changed_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(60, 60))
    file = inspect(path)
    blocks.read_window(file, file.window)
    write(path, pattern(60, 60, seed=5))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since"):
        blocks.read_window(file, file.window)
    again = inspect(path)
    assert_same(again, again.window)


@pytest.mark.parametrize(
    ("dtype", "nodata", "count"),
    [("uint8", None, 3), ("uint8", 7, 3), ("int16", -9999, 3), ("float32", float("nan"), 3), ("uint8", None, 4)],
)
def test_blocks_never_written_are_neither_decoded_nor_kept(
    tmp_path: Path, dtype: str, nodata: float | None, count: int
) -> None:
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": count, "dtype": dtype, "nodata": nodata}
    with rasterio.open(path, "w", crs="EPSG:32630", transform=rasterio.Affine(0.3, 0, 7e5, 0, -0.3, 6e5), sparse_ok=True,
                       interleave="pixel", **profile, **tiles(256)) as dataset:  # fmt: skip
        if count == 4:
            dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
        dataset.write(np.full((count, 256, 256), 99, dtype), window=RasterioWindow(256, 0, 256, 256))
    file = inspect(path)
    assert_same(file, Window(300, 0, 400, 900))
    assert blocks.remembered() == 0
    before = decoded().pixels
    for window in (file.window, Window(100, 100, 300, 300), Window(0, 200, 1, 1)):
        assert_same(file, window)
    assert decoded().pixels - before == 256 * 256


# The cache itself


def size_of(value: bytes) -> int:
    return len(value)


def test_a_value_wanted_by_many_is_made_once() -> None:
    cache: Cache[int, bytes] = Cache(1000, size_of)
    made, barrier = [], threading.Barrier(8)

    def make() -> bytes:
        made.append(threading.get_ident())
        threading.Event().wait(0.05)
        return b"value"

    def work(_: int) -> bytes:
        barrier.wait()
        return cache.get(1, make)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(work, range(8)))
    assert values == [b"value"] * 8
    assert len(made) == 1


def test_a_failure_reaches_all_who_wait_and_is_forgotten() -> None:
    cache: Cache[int, bytes] = Cache(1000, size_of)
    calls, waiting = [], threading.Event()

    def fail() -> bytes:
        calls.append(1)
        waiting.wait()
        raise SourceError("a.tif: cannot read")

    def work(_: int) -> BaseException | None:
        try:
            cache.get(1, fail)
        except SourceError as error:
            return error
        return None

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, i) for i in range(4)]
        while not calls:
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        waiting.set()
        errors = [future.result() for future in futures]
    assert {str(error) for error in errors} == {"a.tif: cannot read"}
    assert len({id(error) for error in errors}) == 4
    assert len(calls) == 1
    assert cache.get(1, lambda: b"ok") == b"ok"


def test_an_interrupted_maker_leaves_the_work_to_who_waits() -> None:
    cache: Cache[int, bytes] = Cache(1000, size_of)
    begun, go = threading.Event(), threading.Event()

    def interrupted() -> bytes:
        begun.set()
        go.wait()
        raise KeyboardInterrupt

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            cache.get(1, interrupted)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        begun.wait()
        other = pool.submit(cache.get, 1, lambda: b"made by the other")
        threading.Event().wait(0.05)
        go.set()
        one.result()
        assert other.result() == b"made by the other"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60))
def test_a_cache_stays_within_its_bytes_and_travels_empty(steps: list[tuple[int, int]]) -> None:
    cache: Cache[int, bytes] = Cache(100, size_of)
    for key, size in steps:
        made = bytes([key]) * (size + 1)
        assert cache.get(key, lambda made=made: made)[0] == key
        assert cache.size <= 100
    assert pickle.loads(pickle.dumps(cache)).size == 0


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=2, max_size=6), st.sampled_from([1, 1000]))
@settings(max_examples=40)
def test_many_threads_that_want_many_values_never_wait_for_each_other(wanted: list[list[int]], capacity: int) -> None:
    """Sets that overlap in any way: each thread gets all of its own, and while there is room each value is made once."""
    cache: Cache[int, bytes] = Cache(capacity, size_of)
    made: list[int] = []

    def make(keys: list[int]) -> list[bytes]:
        made.extend(keys)
        return [bytes([key]) for key in keys]

    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(lambda keys: cache.get_all(keys, make), wanted, timeout=30))
    assert found == [[bytes([key]) for key in keys] for keys in wanted]
    if capacity == 1000:
        assert sorted(made) == sorted({key for keys in wanted for key in keys})
        assert cache.missing(range(13)) == [key for key in range(13) if key not in made]
        cache.discard(lambda key: key % 2 == 0)
        assert cache.size == sum(key % 2 for key in set(made))


def test_values_made_together_fail_together_and_are_made_again() -> None:
    cache: Cache[int, bytes] = Cache(1000, size_of)

    def fail(_: list[int]) -> list[bytes]:
        raise SourceError("a.tif: cannot read")

    for _ in range(2):
        with pytest.raises(SourceError, match="cannot read"):
            cache.get_all([1, 2], fail)
    assert cache.get_all([2, 1, 2], lambda keys: [bytes([key]) for key in keys]) == [b"\x02", b"\x01", b"\x02"]
