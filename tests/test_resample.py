"""Resampling: against GDAL's warper, against the definitions of the kernels, and what must hold exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import resampled
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasters import at_place, pattern, write

from geoinfer.grid import Window
from geoinfer.imagery import FILL, Image, RasterSource, open_raster, resample, warp

DEGREE = 1 / 110_800
CASES: dict[str, tuple[str, tuple[float, float], float, str]] = {
    # coordinate system, pixel of the source, rotation, method
    "same system 0.25": ("EPSG:32630", (0.25, 0.25), 0, "bilinear"),
    "same system 0.4": ("EPSG:32630", (0.4, 0.4), 0, "bilinear"),
    "same system 0.2, anti-aliased": ("EPSG:32630", (0.2, 0.2), 0, "bilinear"),
    "same system 0.075, reduced": ("EPSG:32630", (0.075, 0.075), 0, "bilinear"),
    "same system 0.13, reduced": ("EPSG:32630", (0.13, 0.13), 0, "bilinear"),
    "oblong pixels": ("EPSG:32630", (0.28, 0.18), 0, "bilinear"),
    "degrees": ("EPSG:4326", (0.3 * DEGREE, 0.3 * DEGREE), 0, "bilinear"),
    "mercator": ("EPSG:3857", (0.33, 0.33), 0, "bilinear"),
    "rotated": ("EPSG:32630", (0.3, 0.3), 31, "bilinear"),
    "south-up": ("EPSG:32630", (0.27, -0.27), 0, "bilinear"),
    "cubic, same system": ("EPSG:32630", (0.35, 0.35), 0, "cubic"),
    "cubic, degrees": ("EPSG:4326", (0.3 * DEGREE, 0.3 * DEGREE), 0, "cubic"),
    "cubic, anti-aliased": ("EPSG:32630", (0.17, 0.17), 0, "cubic"),
    "average": ("EPSG:32630", (0.2, 0.2), 0, "average"),
    "average, larger pixels": ("EPSG:32630", (0.5, 0.5), 0, "average"),
    "nearest, degrees": ("EPSG:4326", (0.3 * DEGREE, 0.3 * DEGREE), 0, "nearest"),
    "nearest, rotated": ("EPSG:32630", (0.3, 0.3), 31, "nearest"),
}


def by_gdal(source: RasterSource, pixels: np.ndarray, transform: Affine, crs: str, method: str) -> np.ndarray:
    """The whole grid by GDAL, exact transformer; from the same reduced pixels and with the same width of the kernel."""
    kernel = source.rasters[0].kernel  # type: ignore[union-attr]
    rows, cols = kernel.reduce
    height, width = pixels.shape[1] // rows, pixels.shape[2] // cols
    cells = pixels[:, : height * rows, : width * cols].reshape(len(pixels), height, rows, width, cols)
    means = (cells.sum(axis=(2, 4)) + rows * cols // 2) // (rows * cols)
    result = np.zeros((len(pixels), source.grid.height, source.grid.width), np.uint8)
    scale = {"YSCALE": repr(1 / kernel.ratio[0]), "XSCALE": repr(1 / kernel.ratio[1])}
    reproject(
        means.astype(np.uint8), result, src_transform=transform * Affine.scale(cols, rows), src_crs=crs,
        dst_transform=source.grid.transform, dst_crs=source.grid.crs.to_wkt(), resampling=Resampling[method], tolerance=0,
        **({} if method == "average" else scale),
    )  # fmt: skip
    return result


@pytest.mark.parametrize("name", CASES)
def test_resampled_pixels_are_gdals(name: str, tmp_path: Path) -> None:
    crs, size, angle, method = CASES[name]
    pixels, transform = pattern(720, 660), at_place(crs, size, angle=angle)
    source = open_raster(write(tmp_path / "a.tif", pixels, crs, transform), gsd=0.3, core=64, resampling=method)
    assert not source.placement.native
    image = source.read(source.grid.window)
    expected = by_gdal(source, pixels, transform, crs, method)
    steps = np.mgrid[: source.grid.height, : source.grid.width] + 0.5
    x, y = (source.grid.transform.c + 0.3 * steps[1], source.grid.transform.f - 0.3 * steps[0])
    x, y = Transformer.from_crs(source.grid.crs, crs, always_xy=True).transform(x, y)
    col, row = (
        (~transform)[0] * x + (~transform)[1] * y + (~transform)[2],
        ((~transform)[3] * x + (~transform)[4] * y + (~transform)[5]),
    )
    inside = (row > 8) & (row < 712) & (col > 8) & (col < 652)  # at the rim GDAL's kernels differ
    assert inside.mean() > 0.1
    assert image.valid[inside].all()
    difference = image.pixels[:, inside].astype(int) - expected[:, inside]
    if method == "nearest":
        clear = np.maximum(np.abs(row - np.round(row)), np.abs(col - np.round(col)))[inside] > 0.01
        assert (difference[:, clear] == 0).mean() > 0.998
        return
    assert np.abs(difference).max() <= 2  # noise of 60 levels between neighbours, positions to 1/128 of a pixel
    assert np.abs(difference).mean() < 0.35  # both round
    assert abs(difference.mean()) < 0.05  # halves are common where an area covers few pixels: GDAL's go down, ours up


def nodes_of(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.rint(np.stack([rows, cols]) * 2.0**resample.POSITION_BITS).astype(np.int64)


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """8 x 8 cells at a random turn over 60 x 70 source pixels, some of which may be invalid; a method and its ratio."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bands, n = draw(st.integers(1, 5)), draw(st.sampled_from([2, 4]))
    corner = random.uniform(-20, 40, (2, 1, 1)) + np.array(np.meshgrid(range(9), range(9), indexing="ij")) * n
    turn = random.normal(0, 1, (2, 2))
    positions = 30 + np.einsum("ab,bij->aij", turn, corner - 20) + random.uniform(-0.2, 0.2, (2, 9, 9))
    valid = random.random((60, 70)) >= draw(st.sampled_from([0.0, 0.02, 0.4, 1.0]))
    methods = st.sampled_from(["bilinear", "cubic", "average"])
    return {
        "pixels": random.integers(0, 256, (bands, 60, 70)).astype(np.uint8), "valid": valid, "nodes": positions, "n": n,
        "method": draw(methods), "ratio": (draw(st.sampled_from([1.0, 1.3, 1.9])), draw(st.sampled_from([1.0, 1.3, 1.9]))),
    }  # fmt: skip


def make(block: dict[str, Any], reduce: tuple[int, int] = (1, 1)) -> Image:
    weights = tuple(
        resample.weights_of(block["method"], ratio, bits)
        for ratio, bits in zip(block["ratio"], (resample.DOWN_BITS, resample.ACROSS_BITS), strict=True)
    )
    image = Image.blank(len(block["pixels"]), 8 * block["n"], 8 * block["n"])
    is_plain = block["method"] == "bilinear" and block["ratio"] == (1.0, 1.0)
    nodes = nodes_of(*block["nodes"])
    resample.fill(block["pixels"], block["valid"], reduce, nodes, block["n"], weights, is_plain, image)
    return image


def positions_of(nodes: np.ndarray, n: int) -> np.ndarray:
    """(2, 8 n, 8 n) of pixel centres, interpolated between nodes."""
    at = (np.arange(8 * n) + 0.5) / n
    low = np.floor(at).astype(int)
    part = at - low
    rows = nodes[:, low] * (1 - part)[None, :, None] + nodes[:, low + 1] * part[None, :, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


@settings(max_examples=60)
@given(block=blocks())
def test_kernels_do_what_their_definitions_say(block: dict[str, Any]) -> None:
    image = make(block)
    rows, cols = positions_of(block["nodes"], block["n"])
    expected, known = resampled(block["pixels"], block["valid"], rows, cols, block["method"], block["ratio"])
    edge = np.minimum(np.abs(rows - np.round(rows)), np.abs(cols - np.round(cols))) < 1e-5
    assert np.array_equal(image.valid[~edge], known[~edge])
    assert (image.pixels[:, ~image.valid] == FILL).all()
    both = image.valid & known
    worst = np.abs(image.pixels[:, both] - expected[:, both])
    if block["valid"].all() or block["method"] != "cubic":  # cubic weights among holes may nearly cancel
        assert worst.max(initial=0) <= 4  # white noise of 255 levels, moved by half a phase each way
        assert worst.mean() < 0.6 if worst.size > 300 else True


@given(block=blocks(), value=st.integers(0, 255))
def test_a_constant_stays_constant(block: dict[str, Any], value: int) -> None:
    image = make({**block, "pixels": np.full_like(block["pixels"], value)})
    assert (image.pixels[:, image.valid] == value).all()


@settings(max_examples=60)
@given(block=blocks(), band=st.integers(0, 4))
def test_bands_do_not_mix(block: dict[str, Any], band: int) -> None:
    """Three bands share a word; each comes out as if it were alone."""
    band %= len(block["pixels"])
    together, alone = make(block), make({**block, "pixels": block["pixels"][band : band + 1]})
    assert np.array_equal(together.pixels[band], alone.pixels[0])


@given(block=blocks(), flip=st.booleans(), shear=st.sampled_from(["", "rows", "cols"]))
def test_upright_cells_come_out_as_turned_ones_do(block: dict[str, Any], flip: bool, shear: str) -> None:
    """The shortcut changes nothing: a tilt too small to move a position to another phase makes the same pixels."""
    rows, cols = np.meshgrid(np.linspace(11, 42, 9), np.linspace(13, 50, 9), indexing="ij")
    rows, cols = rows + 0.1 * cols * (shear == "rows"), cols + 0.1 * rows * (shear == "cols")  # not upright, but nearly
    upright = nodes_of(rows[::-1] if flip else rows, cols)
    tilted = upright.copy()
    tilted[:, 1::2, 1::2] += 1
    weights = resample.weights_of(block["method"], 1.3, 10), resample.weights_of(block["method"], 1.9, 12)
    images = [Image.blank(len(block["pixels"]), 32, 32) for _ in range(2)]
    for image, nodes in zip(images, (upright, tilted), strict=True):
        resample.fill(block["pixels"], None, (1, 1), nodes, 4, weights, False, image)
    same = images[0].pixels == images[1].pixels
    assert same.mean() > 0.98  # 2**-24 of a pixel: few positions lie so close to the next phase
    assert np.abs(images[0].pixels.astype(int) - images[1].pixels).max() <= 4


@pytest.mark.parametrize("extreme", [0, 255])
@pytest.mark.parametrize("method", ["bilinear", "cubic", "average"])
def test_lanes_hold_the_extremes(method: str, extreme: int) -> None:
    """Black and white checks under kernels with negative weights reach the lowest and highest sums there are."""
    rows, cols = np.mgrid[:60, :70]
    for ratio in (1.0, 1.3, 1.5, 1.999):
        for period in (2, 3, 4, 6):
            checks = np.where(((rows // (period / 2)) + (cols // (period / 2))) % 2 == 0, extreme, 255 - extreme)
            pixels = np.stack([checks, 255 - checks, checks]).astype(np.uint8)
            grid = np.array(np.meshgrid(np.linspace(15, 40, 9), np.linspace(15, 40, 9), indexing="ij"))
            block = {"pixels": pixels, "valid": np.ones((60, 70), bool), "nodes": grid, "n": 4, "method": method}
            image = make({**block, "ratio": (ratio, ratio)})
            at = positions_of(grid, 4)
            expected, _ = resampled(pixels, block["valid"], *at, method, (ratio, ratio))
            assert np.abs(image.pixels - expected).max() <= 4


@given(method=st.sampled_from(["bilinear", "cubic", "average"]), ratio=st.floats(0.05, 2.0), bits=st.sampled_from([10, 12]))
def test_weights_add_up_and_lanes_stay_positive(method: str, ratio: float, bits: int) -> None:
    ratio = ratio if method == "average" else max(1.0, ratio)
    weights = resample.weights_of(method, ratio, bits)
    assert (weights.sum(axis=1) == 2**bits).all()
    assert (np.minimum(weights, 0).sum(axis=1) >= -0.15 * 2**bits).all()
    half = resample.weights_of(method, ratio, bits)[64]
    assert np.abs(half - half[::-1]).max() <= 1


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 4))
def test_reducing_is_the_mean_of_what_is_valid(rows: int, cols: int, seed: int, holes: float, bands: int) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (bands, 6 * rows, 7 * cols)).astype(np.uint8)
    valid = random.random(pixels.shape[1:]) >= holes
    means, share = resample.reduce_valid(pixels, valid, rows, cols)
    cells = (pixels * valid).reshape(bands, 6, rows, 7, cols).astype(int).sum(axis=(2, 4))
    count = valid.reshape(6, rows, 7, cols).sum(axis=(1, 3))
    assert np.array_equal(share, count)
    assert np.array_equal(means, (cells + count // 2) // np.maximum(count, 1))
    if valid.all():
        assert np.array_equal(resample.reduce_whole(pixels, rows, cols), means)


def test_positions_are_interpolated_within_the_tolerance(tmp_path: Path) -> None:
    """Wide pixels in degrees near the pole bend most: cells become smaller until interpolation is good enough."""
    transform = at_place("EPSG:4326", (2.4e-3, 2.7e-4), (30.0, 83.5))
    source = open_raster(write(tmp_path / "a.tif", pattern(1200, 900), "EPSG:4326", transform), gsd=30.0, core=64)
    (raster,) = source.rasters
    assert isinstance(raster, warp.WarpedRaster)
    used = set()
    for *_, block in raster._blocks(source.grid.window):
        nodes, n = raster._positions(block)
        used.add(n)
        cells = block.height // n
        at = (np.arange(block.height) + 0.5) / n
        low = np.minimum(np.floor(at).astype(int), cells - 1)
        part = at - low
        rows = nodes[:, low] * (1 - part)[None, :, None] + nodes[:, low + 1] * part[None, :, None]
        found = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
        x = (block.col + np.arange(block.width) + 0.5) * source.grid.pixel_size + source.grid.transform.c
        y = source.grid.transform.f - (block.row + np.arange(block.height) + 0.5) * source.grid.pixel_size
        lon, lat = Transformer.from_crs(source.grid.crs, 4326, always_xy=True).transform(*np.meshgrid(x, y))
        exact = np.stack([(lat - transform.f) / transform.e, (lon - transform.c) / transform.a])
        reduce = np.array(raster.kernel.reduce)[:, None, None]
        assert np.abs(found - exact / reduce).max() <= 0.02
    assert min(used) < 64


def test_threads_make_each_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_raster(
        write(tmp_path / "a.tif", pattern(1200, 1200), transform=at_place("EPSG:32630", (0.4, 0.4))), gsd=0.3
    )
    made, original = [], warp.WarpedRaster._warp
    monkeypatch.setattr(warp.WarpedRaster, "_warp", lambda self, block: made.append(block) or original(self, block))
    windows = [Window(r, c, 600, 600) for r in range(0, 1600, 300) for c in range(0, 1600, 300)]
    threads = [threading.Thread(target=lambda i=i: [source.read(w) for w in windows[i::2]]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) > 9


def test_the_resampler_is_part_of_the_identity(tmp_path: Path) -> None:
    """Law 7: a run of other pixels must not be taken for this one."""
    path = write(tmp_path / "a.tif", pattern(60, 60))
    (native,), (warped,) = open_raster(path, gsd=0.3).snapshot(), open_raster(path, gsd=0.2).snapshot()
    assert native["resampling"] is None
    assert "resampler" not in native
    assert (warped["resampling"], warped["resampler"]) == ("bilinear", warp.RESAMPLER)


PLAIN = """
import sys, json, hashlib, numpy as np
from geoinfer.imagery import Image, resample
from geoinfer.imagery.resample import ACROSS_BITS, DOWN_BITS, POSITION_BITS, weights_of
random = np.random.default_rng(0)
pixels = random.integers(0, 256, (4, 24, 30)).astype(np.uint8)
valid = np.ones((24, 30), bool); valid[:9, :9] = random.random((9, 9)) > 0.3
grid = np.array(np.meshgrid([2.2, 8.1, 20.3], [2.7, 9.9, 26.4], indexing="ij"))
found = []
cases = (
    ("bilinear", 1.0, (1, 1), 0.0), ("bilinear", 1.0, (2, 3), 0.0), ("cubic", 1.0, (1, 1), 0.0), ("cubic", 1.6, (1, 1), 0.3),
)
for method, ratio, reduce, tilt in cases:
    nodes = np.rint((grid + tilt * grid[::-1]) / np.array(reduce)[:, None, None] * 2**POSITION_BITS).astype(np.int64)
    weights = weights_of(method, ratio, DOWN_BITS), weights_of(method, ratio, ACROSS_BITS)
    for known in (None, valid):
        image = Image.blank(4, 8, 8)
        inner = nodes if known is not None else (nodes + nodes[:, 1:2, 1:2] * 3) // 4
        resample.fill(pixels, known, reduce, inner, 4, weights, (method, ratio) == ("bilinear", 1.0), image)
        found.append(hashlib.sha256(image.pixels.tobytes() + image.valid.tobytes()).hexdigest())
image = Image.blank(4, 8, 8)
resample.pick_nearest(pixels, valid, np.rint(grid * 2**POSITION_BITS).astype(np.int64), 4, image.pixels, image.valid)
found.append(hashlib.sha256(image.pixels.tobytes() + image.valid.tobytes()).hexdigest())
print(json.dumps(found))
"""


def test_the_same_comes_out_without_the_compiler() -> None:
    results = []
    for disabled in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PLAIN], env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert results[0] == results[1]


def test_bilinear_is_what_it_is_by_hand() -> None:
    pixels = np.array([[[10, 20], [30, 40]]], np.uint8)
    nodes = nodes_of(*np.meshgrid([0.5, 1.0, 1.5], [0.5, 1.0, 1.5], indexing="ij"))
    weights = resample.weights_of("bilinear", 1.0, 10), resample.weights_of("bilinear", 1.0, 12)
    image = Image.blank(1, 4, 4)
    resample.fill(pixels, np.ones((2, 2), bool), (1, 1), nodes, 2, weights, True, image)
    exact = 10 + 20 * (np.arange(4) + 0.5)[:, None] / 4 + 10 * (np.arange(4) + 0.5)[None] / 4
    assert np.abs(image.pixels[0] - exact).max() <= 0.5
