"""The polygonizer finds what GDAL finds, counts what NumPy counts, and has one form for each mask."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import ConfigError
from geoinfer.grid import Window
from geoinfer.vector import Polygons, bits, kernels, polygonize, split
from tests import oracles

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parents[1]
seeds = st.integers(0, 2**32 - 1)


@given(oracles.masks())
def test_polygons_are_those_of_gdal(mask: np.ndarray) -> None:
    assert oracles.as_set(polygonize(mask).to_shapely()) == oracles.as_set(oracles.outlines(mask))


@given(oracles.masks())
def test_polygons_are_valid_and_cover_their_pixels_exactly(mask: np.ndarray) -> None:
    polygons = polygonize(mask)
    geometries = polygons.to_shapely()
    assert shapely.is_valid(geometries).all()
    assert shapely.area(geometries).tolist() == polygons.pixels.tolist()
    assert oracles.is_drawn_back(polygons, mask)


@given(oracles.masks(16), seeds, st.sampled_from([0.0, 0.01, 0.3]))
def test_counts_sums_first_pixels_and_truncation_are_those_of_numpy(mask: np.ndarray, seed: int, unknown: float) -> None:
    random = np.random.default_rng(seed)
    prob = random.integers(0, 256, mask.shape, np.uint8)
    valid = random.random(mask.shape) >= unknown
    assert oracles.columns(polygonize(mask, prob=prob, valid=valid)) == oracles.components(mask, prob, valid)


@given(oracles.masks(), seeds, st.integers(0, 255), st.integers(1, 400))
def test_bits_are_those_of_the_mask_however_it_is_cut_into_strips(
    mask: np.ndarray, seed: int, least: int, strip: int
) -> None:
    prob = np.random.default_rng(seed).integers(0, 256, mask.shape, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "_STRIP_BYTES", strip)
        np.testing.assert_array_equal(bits.at_least(prob, least).words, oracles.words(prob >= least))
        for given_mask in (mask, np.asfortranarray(mask), mask.astype(np.int32) * 256):
            np.testing.assert_array_equal(bits.pack(given_mask).words, oracles.words(mask))
            assert bits.pack(given_mask).shape == mask.shape


@given(oracles.masks())
def test_crossings_are_where_a_row_changes(mask: np.ndarray) -> None:
    xs, row_offsets = kernels.find_crossings(bits.pack(mask).words)
    expected = oracles.crossings(mask)
    assert xs.tolist() == expected[0].tolist()
    assert row_offsets.tolist() == expected[1].tolist()


@given(st.integers(0, 2**32 - 1))
def test_bits_are_counted(word: int) -> None:
    assert kernels.count_bits(np.int64(word)) == word.bit_count()


@given(oracles.masks(), seeds, st.sampled_from([0.0, 0.01, 0.3]))
def test_bits_give_the_polygons_of_their_mask(mask: np.ndarray, seed: int, unknown: float) -> None:
    random = np.random.default_rng(seed)
    prob = np.where(mask, random.integers(128, 256, mask.shape), random.integers(0, 128, mask.shape)).astype(np.uint8)
    valid = random.random(mask.shape) >= unknown
    packed, window = bits.at_least(prob, 128), Window(3, 5, *mask.shape)
    for looked in (valid, None):
        whole = polygonize(mask, prob=prob, valid=looked)
        assert oracles.bytes_of(polygonize(packed, prob=prob, valid=looked)) == oracles.bytes_of(whole)
        tile, same = (split(given_mask, window, prob, looked).to_arrays() for given_mask in (mask, packed))
        assert all(tile[name].tobytes() == same[name].tobytes() for name in tile)


@given(oracles.masks())
def test_rings_have_the_documented_form(mask: np.ndarray) -> None:
    polygons = polygonize(mask)
    ring_polygon = np.repeat(np.arange(len(polygons)), np.diff(polygons.polygon_offsets))
    starts = []
    for ring, polygon in enumerate(ring_polygon):
        coords = polygons.coords[polygons.ring_offsets[ring] : polygons.ring_offsets[ring + 1]].astype(int)
        steps = np.diff(coords, axis=0)
        assert (coords[0] == coords[-1]).all()
        assert len(np.unique(coords[:-1], axis=0)) == len(coords) - 1  # no ring touches itself
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert ((steps[:-1] == 0) != (steps[1:] == 0)).all()  # a turn at each vertex
        assert tuple(coords[0, ::-1]) == min(map(tuple, coords[:, ::-1]))
        is_outer = ring == polygons.polygon_offsets[polygon]
        doubled_area = (coords[:-1, 0] * coords[1:, 1] - coords[1:, 0] * coords[:-1, 1]).sum()
        assert (doubled_area < 0) == is_outer  # clockwise with y down is anticlockwise on the map
        starts.append((polygon, not is_outer, coords[0, 1], coords[0, 0]))
        if is_outer:
            assert coords[0].tolist() == polygons.first[polygon, ::-1].tolist()
    assert starts == sorted(starts)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.uint16])
def test_any_integer_dtype_and_layout_gives_the_same(dtype: type) -> None:
    mask = np.random.default_rng(0).random((40, 70)) < 0.6
    given_mask = np.asfortranarray(mask.astype(dtype) * (1 if dtype is np.bool_ else 3))
    assert oracles.bytes_of(polygonize(given_mask)) == oracles.bytes_of(polygonize(mask))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 31), (3, 32), (3, 33), (1, 64)])
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_of_any_shape(shape: tuple[int, int], value: int) -> None:
    polygons = polygonize(np.full(shape, value, np.uint8))
    assert len(polygons) == (1 if value and min(shape) else 0)
    assert polygons.coords.shape[1:] == (2,)
    if len(polygons):
        height, width = shape
        assert polygons.coords.tolist() == [[0, 0], [0, height], [width, height], [width, 0], [0, 0]]
        assert polygons.truncated.all()


def test_pixels_of_one_component_that_meet_only_at_a_corner_leave_a_hole_that_touches_the_outer_ring() -> None:
    ring = np.ones((3, 3), bool)
    ring[0, 0] = ring[1, 1] = False
    (polygon,) = polygonize(ring).to_shapely()
    assert polygon.is_valid
    assert len(polygon.interiors) == 1
    assert polygon.exterior.intersection(polygon.interiors[0]) == shapely.Point(1, 1)


def test_a_checkerboard_is_one_square_a_pixel() -> None:
    mask = np.indices((64, 64)).sum(axis=0) % 2 == 0
    polygons = polygonize(mask)
    assert len(polygons) == 2048
    assert (polygons.pixels == 1).all()


def test_a_hundred_thousand_holes_stay_in_one_polygon() -> None:
    mask = np.ones((633, 633), np.uint8)
    mask[1::2, 1::2] = 0
    polygons = polygonize(mask)
    assert len(polygons) == 1
    assert len(polygons.ring_offsets) - 2 == 316**2
    assert polygons.to_shapely()[0].area == mask.sum()


def test_offset_and_transform_move_the_polygons() -> None:
    mask = np.ones((2, 3), np.uint8)
    polygons = polygonize(mask, Affine(0.5, 0, 100, 0, -0.5, 200), offset=(10, 20))
    assert polygons.first.tolist() == [[10, 20]]
    assert polygons.to_shapely()[0].bounds == (110, 194, 111.5, 195)
    assert polygons.to_shapely()[0].exterior.is_ccw
    table = polygons.to_geopandas("EPSG:32630")
    assert table.crs.to_epsg() == 32630
    assert table.pixels.tolist() == [6]


@given(oracles.masks(), seeds)
def test_taking_and_joining_polygons_loses_nothing(mask: np.ndarray, seed: int) -> None:
    polygons = polygonize(mask)
    order = np.random.default_rng(seed).permutation(len(polygons))
    cut = len(order) // 3
    shuffled = Polygons.concat([polygons.take(order[:cut]), Polygons.empty(), polygons.take(order[cut:])])
    assert oracles.bytes_of(shuffled.in_order()) == oracles.bytes_of(polygons)
    assert oracles.bytes_of(pickle.loads(pickle.dumps(polygons))) == oracles.bytes_of(polygons)
    assert oracles.bytes_of(Polygons.from_arrays(polygons.to_arrays("a_"), "a_")) == oracles.bytes_of(polygons)


@pytest.mark.parametrize(
    ("mask", "more"),
    [
        (np.zeros((2, 2)), {}),
        (np.zeros(4, bool), {}),
        (np.zeros((2, 2), bool), {"prob": np.zeros((2, 3), np.uint8)}),
        (np.zeros((2, 2), bool), {"prob": np.zeros((2, 2))}),
        (np.zeros((2, 2), bool), {"valid": np.zeros((3, 2), bool)}),
        (bits.pack(np.zeros((2, 2), bool)), {"prob": np.zeros((2, 33), np.uint8)}),
    ],
)
def test_what_does_not_fit_is_refused(mask: np.ndarray, more: dict[str, np.ndarray]) -> None:
    with pytest.raises(ConfigError):
        polygonize(mask, **more)


def test_only_probabilities_have_a_threshold() -> None:
    with pytest.raises(ConfigError, match="uint8"):
        bits.at_least(np.zeros((2, 2)), 128)  # type: ignore[arg-type]


WITHOUT_COMPILER = """
import numpy as np
from geoinfer.grid import Window
from geoinfer.vector import bits, kernels, polygonize, split, stitch, warm_up
from tests import oracles

assert not hasattr(kernels.link_edges, "py_func")
warm_up()
random = np.random.default_rng(3)
for density in (0.3, 0.6, 0.9):
    mask = random.random((20, 70)) < density
    prob = random.integers(0, 256, mask.shape, np.uint8)
    valid = random.random(mask.shape) < 0.98
    whole = polygonize(mask, prob=prob, valid=valid)
    assert oracles.as_set(whole.to_shapely()) == oracles.as_set(oracles.outlines(mask & valid))
    xs, row_offsets = kernels.find_crossings(bits.pack(mask).words)
    assert (xs.tolist(), row_offsets.tolist()) == tuple(a.tolist() for a in oracles.crossings(mask))
    windows = [Window(row, col, 10, 35) for row in (0, 10) for col in (0, 35)]
    parts = [split(*(oracles.crop(mask, w), w), oracles.crop(prob, w), oracles.crop(valid, w)) for w in windows]
    assert oracles.bytes_of(stitch(parts)) == oracles.bytes_of(whole)
print("same")
"""


def test_kernels_do_the_same_as_plain_python() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "same\n", done.stderr
