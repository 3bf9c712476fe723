"""Imagery: which grid it lands on, that a pixel does not depend on the window, what is valid, and what is refused."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasters import PLACE, at_place, pattern, write

from geoinfer.errors import ConfigError, SafetyError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery import FILL, RasterSource, open_raster

CORE = 64


def hole(height: int, width: int) -> np.ndarray:
    """(H, W) bool, False in a slanted corner and a small disc."""
    rows, cols = np.mgrid[:height, :width]
    return (rows + 2 * cols > 60) & ((rows - height // 2) ** 2 + (cols - width // 2) ** 2 > 400)


def geographic_pixel(metres: float) -> tuple[float, float]:
    return metres / 111_320 / math.cos(math.radians(PLACE[1])), metres / 110_574


SOURCES: dict[str, Callable[[Path], RasterSource]] = {
    "native": lambda d: open_raster(write(d / "n.tif", pattern(700, 650), mask=hole(700, 650)), gsd=0.3, core=CORE),
    "mercator 60 N": lambda d: open_raster(
        write(
            d / "m.tif", pattern(700, 650), "EPSG:3857", at_place("EPSG:3857", (0.6, 0.6), (24.9, 60.2)), mask=hole(700, 650)
        ),
        gsd=0.3,
        core=CORE,
    ),
    "degrees": lambda d: open_raster(
        write(d / "d.tif", pattern(700, 650), "EPSG:4326", at_place("EPSG:4326", geographic_pixel(0.3)), nodata=7),
        gsd=0.3,
        core=CORE,
    ),
    "rotated": lambda d: open_raster(
        write(d / "r.tif", pattern(700, 650), transform=at_place("EPSG:32630", (0.3, 0.3), angle=31)), gsd=0.3, core=CORE
    ),
    "south-up": lambda d: open_raster(
        write(d / "s.tif", pattern(700, 650), transform=at_place("EPSG:32630", (0.3, -0.3))), gsd=0.3, core=CORE
    ),
    "upsampled 1.0 to 0.3": lambda d: open_raster(
        write(d / "u.tif", pattern(220, 200), transform=at_place("EPSG:32630", (1.0, 1.0)), mask=hole(220, 200)),
        gsd=0.3,
        core=CORE,
    ),
    "downsampled 0.13 to 0.3": lambda d: open_raster(
        write(d / "w.tif", pattern(1501, 1403), transform=at_place("EPSG:32630", (0.13, 0.13)), mask=hole(1501, 1403)),
        gsd=0.3,
        core=CORE,
    ),
    "downsampled 0.2 to 0.3": lambda d: open_raster(
        write(d / "x.tif", pattern(1000, 903), transform=at_place("EPSG:32630", (0.2, 0.2)), mask=hole(1000, 903)),
        gsd=0.3,
        core=CORE,
        resampling="cubic",
    ),
    "uint16": lambda d: open_raster(
        write(
            d / "i.tif", pattern(400, 400).astype(np.uint16) * 40, "EPSG:4326", at_place("EPSG:4326", geographic_pixel(0.5))
        ),
        gsd=0.3,
        core=CORE,
    ),
    "mosaic": lambda d: open_raster(
        [
            write(d / "1.tif", pattern(300, 300), transform=at_place("EPSG:32630", (0.5, 0.5)), mask=hole(300, 300)),
            write(d / "2.tif", pattern(300, 300, seed=1), transform=at_place("EPSG:32630", (0.5, 0.5), (-0.1998, 5.5799))),
        ],
        gsd=0.3,
        core=CORE,
    ),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RasterSource, Window, np.ndarray, np.ndarray]]:
    """Each kind of source with one big read of it."""
    opened = {}
    for name, make in SOURCES.items():
        source = make(tmp_path_factory.mktemp("raster"))
        big = source.grid.window.grow(9)
        image = source.read(big)
        assert 0.2 < image.valid.mean() < 1.0, name
        opened[name] = source, big, image.pixels, image.valid
    return opened


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=15)
@given(data=st.data())
def test_a_pixel_does_not_depend_on_the_window_it_is_read_with(name: str, sources: dict, data: st.DataObject) -> None:
    source, big, pixels, valid = sources[name]
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    row, col = data.draw(st.integers(0, big.height - height)), data.draw(st.integers(0, big.width - width))
    fresh = pickle.loads(pickle.dumps(source))  # nothing cached
    image = fresh.read(Window(big.row + row, big.col + col, height, width))
    assert np.array_equal(image.valid, valid[row : row + height, col : col + width])
    assert np.array_equal(image.pixels, pixels[:, row : row + height, col : col + width])
    assert (image.pixels[:, ~image.valid] == FILL).all()


@pytest.mark.parametrize("name", SOURCES)
def test_threads_read_the_same(name: str, sources: dict) -> None:
    source, big, pixels, _ = sources[name]
    fresh = pickle.loads(pickle.dumps(source))
    windows = [Window(big.row + r, big.col, 97, big.width) for r in range(0, big.height - 97, 97)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(fresh.read, windows))
    for window, image in zip(windows, images, strict=True):
        assert np.array_equal(image.pixels, pixels[:, window.row - big.row : window.stop_row - big.row])


# Grid


def test_a_raster_of_the_models_pixel_size_is_read_untouched(tmp_path: Path) -> None:
    pixels = pattern(120, 140)
    path = write(tmp_path / "a.tif", pixels, transform=Affine(0.304, 0, 700_000.07, 0, -0.304, 620_000.11))
    source = open_raster(path, gsd=0.3, core=CORE)
    grid = source.grid
    assert source.placement.native
    assert grid.crs.to_epsg() == 32630
    assert grid.pixel_size == 0.304
    assert grid.origin_pixel[0] % CORE == 0
    assert grid.origin_pixel[1] % CORE == 0
    assert source.bounds == pytest.approx(
        (700_000.07, 620_000.11 - 120 * 0.304, 700_000.07 + 140 * 0.304, 620_000.11), abs=1e-6
    )
    row, col = grid.height - 120, grid.width - 140
    assert 0 <= row < CORE
    image = source.read(Window(row, col, 120, 140))
    assert image.valid.all()
    assert np.array_equal(image.pixels, pixels)


def test_a_south_up_raster_equals_its_north_up_twin(tmp_path: Path) -> None:
    pixels, mask = pattern(120, 140), hole(120, 140)
    north = open_raster(write(tmp_path / "n.tif", pixels, transform=Affine(0.3, 0, 7e5, 0, -0.3, 6.2e5), mask=mask), gsd=0.3)
    flipped = Affine(0.3, 0, 7e5, 0, 0.3, 6.2e5 - 36)
    south = open_raster(write(tmp_path / "s.tif", pixels[:, ::-1], transform=flipped, mask=mask[::-1]), gsd=0.3)
    assert south.placement.native
    assert north.grid == south.grid
    a, b = north.read(north.grid.window), south.read(north.grid.window)
    assert np.array_equal(a.pixels, b.pixels)
    assert np.array_equal(a.valid, b.valid)


@pytest.mark.parametrize(
    ("crs", "lonlat"), [("EPSG:3857", (24.9, 60.2)), ("EPSG:4326", (-70.6, -33.4)), ("EPSG:4269", (-71.1, 42.4))]
)
def test_metres_are_metres_on_the_ground(tmp_path: Path, crs: str, lonlat: tuple[float, float]) -> None:
    """A white square drawn with 60 m sides on the ellipsoid is 200 pixels of 0.3 m wide and high."""
    geod = Geod(ellps="WGS84")
    east, north = geod.fwd(*lonlat, 90, 60)[0], geod.fwd(*lonlat, 180, 60)[1]
    transformer = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    (x0, x1), (y0, y1) = transformer.transform([lonlat[0], east], [lonlat[1], north])
    pixels = np.zeros((3, 400, 400), np.uint8)
    pixels[:, 100:300, 100:300] = 255
    size = (x1 - x0) / 200, (y0 - y1) / 200
    transform = Affine(size[0], 0, x0 - 100 * size[0], 0, -size[1], y0 + 100 * size[1])
    source = open_raster(write(tmp_path / "a.tif", pixels, crs, transform), gsd=0.3, core=CORE)
    assert not source.placement.native
    assert source.grid.crs.is_projected
    assert source.grid.pixel_size == 0.3
    area_m2 = (source.read(source.grid.window).pixels[0] > 190).sum() * 0.09
    assert area_m2 == pytest.approx(3600, rel=0.01)  # UTM's scale 0.9996 and the rim of one pixel
    assert source.describe()["gsd"] == pytest.approx(0.3, rel=0.002)


def test_the_utm_zone_keeps_the_datum(tmp_path: Path) -> None:
    transform = at_place("EPSG:4269", (3e-6, 3e-6), (-71.1, 42.4))
    assert (
        open_raster(write(tmp_path / "a.tif", pattern(50, 50), "EPSG:4269", transform), gsd=0.3).grid.crs.to_epsg() == 26919
    )
    other = CRS.from_proj4("+proj=longlat +ellps=bessel +no_defs").to_wkt()
    crs = open_raster(write(tmp_path / "b.tif", pattern(50, 50), other, transform), gsd=0.3).grid.crs
    assert crs.is_projected
    assert crs.ellipsoid.name == "Bessel 1841"


def test_feet_are_not_metres(tmp_path: Path) -> None:
    path = write(tmp_path / "ft.tif", pattern(50, 50), "EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000))
    native = open_raster(path, gsd=0.3048, core=CORE)
    assert native.placement.native
    assert native.grid.pixel_size == 1.0
    snapped = open_raster(path, gsd=0.5, core=CORE).grid
    assert snapped.crs.to_epsg() == 2263
    assert snapped.pixel_size == pytest.approx(0.5 / 0.3048006, rel=1e-6)


def test_a_rotated_raster_shows_the_same_as_the_raster_it_was_turned_from(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:400, :400]
    north = at_place("EPSG:32630", (0.3, 0.3))
    turned = at_place("EPSG:32630", (0.3, 0.3), angle=30)

    def smooth(transform: Affine) -> np.ndarray:
        x = transform.a * (cols + 0.5) + transform.b * (rows + 0.5) + transform.c
        y = transform.d * (cols + 0.5) + transform.e * (rows + 0.5) + transform.f
        return np.stack([128 + 100 * np.sin((x + k * y) / 7) for k in (-1, 0.3, 1)]).round().astype(np.uint8)

    a = open_raster(write(tmp_path / "a.tif", smooth(north), transform=north), gsd=0.5, core=CORE)
    b = open_raster(write(tmp_path / "b.tif", smooth(turned), transform=turned), gsd=0.5, core=CORE)
    centre = Transformer.from_crs(4326, 32630, always_xy=True).transform(*PLACE)
    images = []
    for source in (a, b):
        row, col = (
            round((source.grid.transform.f - centre[1]) / 0.5) + 10,
            round((centre[0] - source.grid.transform.c) / 0.5) + 10,
        )
        row0, col0 = source.grid.origin_pixel
        images.append((row0 + row, col0 + col, source.read(Window(row, col, 40, 40))))
    assert images[0][:2] == images[1][:2]
    both = images[0][2].valid & images[1][2].valid
    assert both.mean() > 0.4
    difference = np.abs(images[0][2].pixels.astype(int) - images[1][2].pixels)[:, both]
    assert difference.max() <= 4  # two interpolations of waves 22 px long


def test_more_rasters_move_no_pixel_and_order_moves_no_grid(tmp_path: Path) -> None:
    first = write(tmp_path / "1.tif", pattern(200, 200), transform=Affine(0.5, 0, 7e5, 0, -0.5, 6.2e5))
    second = write(tmp_path / "2.tif", pattern(200, 200, seed=1), transform=Affine(0.5, 0, 7e5 - 60, 0, -0.5, 6.2e5 + 70))
    alone = open_raster(first, gsd=0.3, core=CORE)
    forth, back = open_raster([first, second], gsd=0.3, core=CORE), open_raster([second, first], gsd=0.3, core=CORE)
    assert forth.grid == back.grid
    shift = tuple(a - b for a, b in zip(alone.grid.origin_pixel, forth.grid.origin_pixel, strict=True))
    assert shift[0] % CORE == shift[1] % CORE == 0
    window = alone.grid.window
    moved = Window(window.row + shift[0], window.col + shift[1], window.height, window.width)
    a, b, c = alone.read(window), forth.read(moved), back.read(moved)
    assert np.array_equal(a.pixels[:, a.valid], b.pixels[:, a.valid])
    other = c.valid & (c.pixels != b.pixels).any(axis=0)
    assert other.any()  # where both are, the first one named wins
    assert np.array_equal(b.valid, c.valid)


def test_rasters_that_share_a_phase_are_read_untouched_together(tmp_path: Path) -> None:
    left = pattern(100, 100)
    right = pattern(100, 80, seed=1)
    paths = [
        write(tmp_path / "l.tif", left, transform=Affine(0.3, 0, 7e5 + 0.15, 0, -0.3, 6.2e5 + 0.15)),
        write(tmp_path / "r.tif", right, transform=Affine(0.3, 0, 7e5 + 0.15 + 30, 0, -0.3, 6.2e5 + 0.15 - 3)),
    ]
    both, swapped = open_raster(paths, gsd=0.3, core=CORE), open_raster(paths[::-1], gsd=0.3, core=CORE)
    assert both.placement.native
    assert both.grid == swapped.grid
    for path, expected in zip(paths, (left, right), strict=True):
        window = both.placement.windows[paths.index(path)]
        assert np.array_equal(both.read(window).pixels, expected)
    alone = open_raster(paths[1], gsd=0.3, core=CORE).grid.origin_pixel
    assert all((a - b) % CORE == 0 for a, b in zip(alone, both.grid.origin_pixel, strict=True))
    off = write(tmp_path / "o.tif", right, transform=Affine(0.3, 0, 7e5 + 0.25 + 30, 0, -0.3, 6.2e5))
    assert not open_raster([paths[0], off], gsd=0.3, core=CORE).placement.native


def test_a_source_too_wide_or_beyond_the_projection_is_refused(tmp_path: Path) -> None:
    world = Affine(3.6, 0, -180, 0, -1.8, 90)
    with pytest.raises(SourceError, match=r"too wide|reaches beyond"):
        open_raster(write(tmp_path / "w.tif", pattern(100, 100), "EPSG:4326", world), gsd=0.3)
    polar = at_place("EPSG:4326", (3e-5, 3e-6), (30, 86))
    assert open_raster(write(tmp_path / "p.tif", pattern(50, 50), "EPSG:4326", polar), gsd=0.3).grid.crs.to_epsg() == 32661
    wrong = Affine(0.3, 0, 5e9, 0, -0.3, 5e9)
    with pytest.raises(SourceError, match=r"georeference is wrong|outside"):
        open_raster(write(tmp_path / "x.tif", pattern(50, 50), transform=wrong), gsd=0.3)


# Resampling


def test_downsampling_averages_and_keeps_the_mean(tmp_path: Path) -> None:
    """A checkerboard of single pixels turns grey; picking every n-th pixel would show moire."""
    rows, cols = np.mgrid[:800, :800]
    board = np.broadcast_to(((rows + cols) % 2 * 255).astype(np.uint8), (3, 800, 800))
    for size in (0.1, 0.13, 0.17, 0.2):
        path = write(tmp_path / f"{size}.tif", board, transform=at_place("EPSG:32630", (size, size)))
        source = open_raster(path, gsd=0.3, core=CORE)
        image = source.read(source.grid.window)
        inner = image.pixels[0][image.valid].astype(float)
        assert inner.mean() == pytest.approx(127.5, abs=2), size
        assert inner.std() < 30, size  # 127 without averaging


def test_edges_of_nodata_do_not_bleed(tmp_path: Path) -> None:
    for value, size in ((200, 1.0), (200, 0.13), (200, 0.24)):
        pixels = np.full((3, 400, 400), value, np.uint8)
        valid = hole(400, 400)
        pixels[:, ~valid] = 0
        path = write(tmp_path / f"{size}.tif", pixels, transform=at_place("EPSG:32630", (size, size)), mask=valid)
        source = open_raster(path, gsd=0.3, core=CORE)
        image = source.read(source.grid.window)
        assert (image.pixels[:, image.valid] == value).all()
        area = image.valid.sum() * 0.09
        assert area == pytest.approx(valid.sum() * size**2, rel=0.01)


def test_a_pixel_is_valid_where_its_centre_falls_on_a_valid_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    valid = rng.random((60, 60)) > 0.3
    transform = Affine(1.0, 0, 700_000.0, 0, -1.0, 620_000.0)
    source = open_raster(write(tmp_path / "a.tif", pattern(60, 60), transform=transform, mask=valid), gsd=0.3, core=CORE)
    image = source.read(source.grid.window)
    rows, cols = np.mgrid[: source.grid.height, : source.grid.width]
    t = source.grid.transform
    x, y = t.c + 0.3 * (cols + 0.5) - 700_000.0, 620_000.0 - (t.f - 0.3 * (rows + 0.5))
    inside = (x > 0) & (x < 60) & (y > 0) & (y < 60)
    expected = np.zeros(image.valid.shape, bool)
    expected[inside] = valid[np.floor(y[inside]).astype(int), np.floor(x[inside]).astype(int)]
    clear = (np.abs(x - np.round(x)) > 0.03) & (np.abs(y - np.round(y)) > 0.03)  # centres on an edge: either side
    assert np.array_equal(image.valid[clear], expected[clear])


# Bands, types and validity


def test_bands_follow_their_colours(tmp_path: Path) -> None:
    pixels = pattern(40, 40, 4)
    path = write(tmp_path / "a.tif", pixels, colours=("blue", "green", "red", "undefined"), photometric="MINISBLACK")
    source = open_raster(path, gsd=0.3)
    window = source.placement.windows[0]
    assert np.array_equal(source.read(window).pixels, pixels[[2, 1, 0]])
    chosen = open_raster(path, gsd=0.3, bands=(4, 1))
    assert chosen.bands == 2
    assert np.array_equal(chosen.read(window).pixels, pixels[[3, 0]])
    grey = write(tmp_path / "g.tif", pixels[:1])
    with pytest.raises(SourceError, match=r"expected 3 bands \(red, green, blue\), found 1 band \(gray\).*bands="):
        open_raster(grey, gsd=0.3)
    assert open_raster(grey, gsd=0.3, bands=(1, 1, 1)).bands == 3
    with pytest.raises(SourceError, match="no band 5, found 4 bands"):
        open_raster(path, gsd=0.3, bands=(5, 1, 1))
    with pytest.raises(SourceError, match="70 bands"):
        open_raster(write(tmp_path / "many.tif", np.zeros((70, 8, 8), np.uint8)), gsd=0.3)


def test_nodata_alpha_mask_and_nan_say_the_same(tmp_path: Path) -> None:
    pixels = np.maximum(pattern(80, 80), 1)
    valid = hole(80, 80)
    zeroed = np.where(valid, pixels, 0).astype(np.uint8)
    alpha = np.concatenate([pixels, np.where(valid, 255, 0)[None].astype(np.uint8)])
    floats = np.where(valid, pixels, np.nan).astype(np.float32)
    infinite = pixels.astype(np.float32)
    infinite[1, ~valid] = np.inf
    paths = [
        write(tmp_path / "nodata.tif", zeroed, nodata=0),
        write(tmp_path / "alpha.tif", alpha, colours=("red", "green", "blue", "alpha")),
        write(tmp_path / "mask.tif", pixels, mask=valid),
        write(tmp_path / "nan.tif", floats, nodata=float("nan")),
        write(tmp_path / "inf.tif", infinite),
        write(tmp_path / "minus.tif", np.where(valid, pixels.astype(np.int16), np.int16(-9999)), nodata=-9999),
    ]
    images = [open_raster(path, gsd=0.3, stretch=(0, 255) if i > 2 else None) for i, path in enumerate(paths)]
    reads = [source.read(source.placement.windows[0]) for source in images]
    for path, read in zip(paths, reads, strict=True):
        assert np.array_equal(read.valid, valid), path.name
        assert np.array_equal(read.pixels, reads[0].pixels), path.name
        assert (read.pixels[:, ~valid] == FILL).all()
    black = write(tmp_path / "black.tif", np.where(np.arange(3)[:, None, None] == 0, 0, pixels).astype(np.uint8), nodata=0)
    source = open_raster(black, gsd=0.3)
    assert source.read(source.placement.windows[0]).valid.all()  # one dark band is no nodata


def test_other_types_are_stretched_by_the_whole_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1000, 3000, (3, 300, 300)).astype(np.uint16)
    pixels[:, :3] = 60000  # 1 % of glint
    source = open_raster(write(tmp_path / "a.tif", pixels), gsd=0.3)
    (low, high), *_ = source.describe()["stretch"]  # type: ignore[misc]
    assert low == pytest.approx(1030, abs=30)
    assert high == pytest.approx(2985, abs=30)
    image = source.read(source.placement.windows[0])
    expected = np.rint((pixels[0] - low) * (255 / (high - low))).clip(0, 255)
    assert np.array_equal(image.pixels[0], expected)
    assert pickle.loads(pickle.dumps(source)).describe() == source.describe()
    small = source.read(Window(source.placement.windows[0].row + 100, source.placement.windows[0].col, 5, 5))
    assert np.array_equal(small.pixels, image.pixels[:, 100:105, :5])
    floats = (pixels.astype(np.float32) - 1000) / 2000
    close = open_raster(write(tmp_path / "f.tif", floats), gsd=0.3)
    assert np.abs(close.read(close.placement.windows[0]).pixels.astype(int) - image.pixels).max() <= 1
    fixed = open_raster(write(tmp_path / "b.tif", pixels), gsd=0.3, stretch=(0, 10000))
    assert fixed.describe()["stretch"] == [[0, 10000]] * 3
    constant = open_raster(write(tmp_path / "c.tif", np.full((3, 20, 20), 5, np.int16)), gsd=0.3)
    assert len(np.unique(constant.read(constant.placement.windows[0]).pixels)) == 1
    nothing = open_raster(write(tmp_path / "n.tif", np.full((3, 20, 20), np.nan, np.float32)), gsd=0.3)
    assert not nothing.read(nothing.placement.windows[0]).valid.any()
    with pytest.raises(ConfigError, match="lower one first"):
        open_raster(tmp_path / "b.tif", gsd=0.3, stretch=(5, 5))
    with pytest.raises(SourceError, match="different types"):
        open_raster([tmp_path / "b.tif", write(tmp_path / "u8.tif", pattern(20, 20))], gsd=0.3)


# What is refused, and how


def test_files_that_are_no_rasters_get_one_clear_line(tmp_path: Path) -> None:
    def refuse(name: str, content: bytes, error: type[Exception], message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=message) as caught:
            open_raster(tmp_path / name, gsd=0.3)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    refuse("empty.tif", b"", SourceError, "empty file")
    refuse("page.tif", b"<!DOCTYPE html><html><body>404", SourceError, "web page.*<!DOCTYPE html>")
    refuse("noise.tif", b"\x01\x02\x03\x04hello", SourceError, "not a GeoTIFF .first bytes b'.x01")
    refuse("photo.tif", b"\x89PNG\r\n\x1a\n" + bytes(40), SourceError, "first bytes b'.x89PNG")
    refuse("evil.tif", b"<VRTDataset rasterXSize='1'></VRTDataset>", SafetyError, "XML")
    refuse("evil2.tif", b"\n <GDAL_WMS></GDAL_WMS>", SafetyError, "XML")
    good = write(tmp_path / "good.tif", pattern(300, 300), tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    content = good.read_bytes()
    refuse("head.tif", content[:6], SourceError, "header is cut off")
    refuse("head2.tif", content[:40], SourceError, "header is cut off|cannot be opened")
    with pytest.raises(SourceError, match="no such file"):
        open_raster(tmp_path / "missing.tif", gsd=0.3)
    with pytest.raises(SourceError, match="a directory"):
        open_raster(tmp_path, gsd=0.3)
    for virtual in (
        "/vsicurl/http://127.0.0.1/a.tif",
        "vrt://a.tif",
        "<VRTDataset/>",
        "MEM:::DATAPOINTER=1",
    ):
        with pytest.raises(SafetyError, match="refused"):
            open_raster(virtual, gsd=0.3)
    with pytest.raises(ConfigError, match="at least one"):
        open_raster([], gsd=0.3)
    with pytest.raises(ConfigError, match="gsd"):
        open_raster(good, gsd=0)
    with pytest.raises(ConfigError, match="bilinear"):
        open_raster(good, gsd=0.3, resampling="sinc")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(20, 20))
    path.chmod(0)
    with pytest.raises(SourceError, match="no permission"):
        open_raster(path, gsd=0.3)


def test_a_raster_without_a_place_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(20, 20), crs=None, transform=at_place("EPSG:32630", (0.3, 0.3)))
    with pytest.raises(SourceError, match=r"no coordinate system.*assume_crs.*--assume-crs"):
        open_raster(path, gsd=0.3)
    assert open_raster(path, gsd=0.3, assume_crs="EPSG:32630").grid.crs.to_epsg() == 32630
    with pytest.raises(ConfigError, match="not a coordinate system"):
        open_raster(path, gsd=0.3, assume_crs="EPSG:banana")
    with pytest.warns(NotGeoreferencedWarning):
        nowhere = write(tmp_path / "b.tif", pattern(20, 20), transform=Affine.identity())
    with pytest.raises(SourceError, match="no georeference"):
        open_raster(nowhere, gsd=0.3)


def test_rasters_in_different_systems_share_a_grid(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", pattern(20, 20))
    b = write(tmp_path / "b.tif", pattern(20, 20), "EPSG:32631", at_place("EPSG:32631", (0.3, 0.3)))
    source = open_raster([b, a], gsd=0.3)
    assert (source.grid.crs, source.placement.native) == (CRS("EPSG:32630"), False)  # true to the ground there; 32631 is not
    assert source.describe()["crs"] == ["EPSG:32630", "EPSG:32631"]


@pytest.mark.parametrize("gsd", [0.3, 0.5])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_blocks_fail_where_they_are_and_nowhere_else(tmp_path: Path, gsd: float, damage: str) -> None:
    profile = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    good = write(tmp_path / "good.tif", pattern(2048, 2048), transform=at_place("EPSG:32630", (0.3, 0.3)), **profile)
    bad = tmp_path / "bad.tif"
    content = bytearray(good.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        middle = len(content) * 3 // 4
        content[middle : middle + 4096] = bytes(b ^ 0xFF for b in content[middle : middle + 4096])
    bad.write_bytes(content)
    source, truth = open_raster(bad, gsd=gsd, core=CORE), open_raster(good, gsd=gsd, core=CORE)
    window = truth.placement.windows[0]
    top = Window(window.row, window.col, 100, 100)
    assert np.array_equal(source.read(top).pixels, truth.read(top).pixels)
    with pytest.raises(SourceError, match=r"bad\.tif: cannot read rows \d+:\d+, cols \d+:\d+: \S") as caught:
        source.read(window)
    from tblib import pickling_support  # what distributed installs: exceptions then carry their causes along

    pickling_support.install(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_file_replaced_during_a_run_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(60, 60))
    source = open_raster(path, gsd=0.3)
    source.read(source.grid.window)
    write(path, pattern(60, 60, seed=5))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since"):
        source.read(source.grid.window)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be found any more"):
        source.snapshot()


BOMB = """
import resource, sys
from geoinfer.imagery import open_raster
from geoinfer.errors import SafetyError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_raster(sys.argv[1], gsd=0.3)
except SafetyError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def test_a_block_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    profile = {"tiled": True, "blockxsize": 16384, "blockysize": 16384, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(
        path, "w", driver="GTiff", width=16384, height=16384, count=3, dtype="uint16", crs="EPSG:32630",
        transform=at_place("EPSG:32630", (0.3, 0.3)), **profile,
    ):  # fmt: skip
        pass
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True, timeout=120)
    grown_kib, message = done.stdout.split(" ", 1)
    assert int(grown_kib) < 100 * 1024
    assert "1,536 MiB exceeds the limit of 256 MiB" in message


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_sparse_raster_of_a_trillion_pixels_opens_at_once(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=10**6, height=10**6, count=3, dtype=dtype, crs="EPSG:32630", tiled=True,
        transform=Affine(0.3, 0, 4e5, 0, -0.3, 6e5), sparse_ok=True, compress="deflate", BIGTIFF="YES",
    ):  # fmt: skip
        pass
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    source = open_raster(path, gsd=0.3)
    image = source.read(Window(500_000, 500_000, 300, 300))
    assert image.valid.all()
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024


# Identity and description


def test_a_snapshot_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(60, 60), tags={"TIFFTAG_DATETIME": "2021:03:04 05:06:07"})
    source = open_raster(path, gsd=0.3)
    (entry,) = source.snapshot()
    assert entry["name"] == "a.tif"
    assert entry["size"] == path.stat().st_size
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(tmp_path) not in str(entry)
    (tmp_path / "b").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "b" / "a.tif"))
    assert open_raster(copy, gsd=0.3).snapshot() == [entry]
    assert open_raster(path, gsd=0.3, bands=(3, 2, 1)).snapshot() != [entry]
    about = source.describe()
    assert about["datetime"] == "2021-03-04T05:06:07"
    assert about["crs"] == "EPSG:32630"
    assert about["gsd"] == pytest.approx(0.3, rel=1e-3)
    assert about["bands"] == 3
    assert about["dtype"] == "uint8"
    west, south, east, north = about["bounds_lonlat"]  # type: ignore[misc]
    assert (west, north) == pytest.approx(PLACE, abs=1e-6)
    assert west < east
    assert south < north


@pytest.mark.parametrize("name", ["with space.tif", "ünïcode.tif", "a#b?c=d&e.tif", "x!y.tif", "100%.tif", "zip+file.tif"])
def test_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "plain.tif", pattern(20, 20)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    source = open_raster(name, gsd=0.3)
    assert source.read(source.placement.windows[0]).valid.all()


def test_files_beside_the_raster_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pattern(20, 20))
    before = open_raster(path, gsd=0.3).describe()
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform></PAMDataset>"
    )
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    shutil.copy(write(tmp_path / "m.tif", np.zeros((1, 20, 20), np.uint8)), tmp_path / "a.tif.msk")
    source = open_raster(path, gsd=0.3)
    assert source.describe() == before
    assert source.read(source.placement.windows[0]).valid.all()


@pytest.mark.parametrize("west", [179.9996, 190.0])
def test_a_raster_in_degrees_beyond_the_antimeridian_is_read_whole(tmp_path: Path, west: float) -> None:
    step = 0.3 / 111_320
    there, back = (
        open_raster(
            write(tmp_path / f"{lon}.tif", pattern(300, 400), "EPSG:4326", Affine(step, 0, lon, 0, -step, 1.0)), gsd=0.3
        )
        for lon in (west, west - 360.0)  # the same place, counted from the other side
    )
    assert there.grid == back.grid
    a, b = there.read(there.grid.window), back.read(back.grid.window)
    assert a.valid.sum() == pytest.approx(300 * 400, rel=0.02)
    assert np.array_equal(a.valid, b.valid)
    assert (a.pixels != b.pixels).mean() < 1e-3  # longitudes round differently
    assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
