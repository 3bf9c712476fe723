"""Law 2: stitch(split(mask)) == polygonize(mask), byte for byte, for every split."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import ConfigError
from geoinfer.grid import Window
from geoinfer.vector import Polygons, Stitcher, TileResult, polygonize, split, stitch
from tests import oracles

pytestmark = pytest.mark.fast


def tiles_of_side(mask: np.ndarray, side: int) -> list[TileResult]:
    height, width = mask.shape
    windows = [Window(row, col, side, side) for row in range(0, height, side) for col in range(0, width, side)]
    windows = [w.intersection(Window(0, 0, height, width)) for w in windows]
    return [split(oracles.crop(mask, w), w) for w in windows]


@given(st.data(), oracles.masks(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.3]))
def test_stitched_pieces_equal_the_whole_byte_for_byte(
    data: st.DataObject, mask: np.ndarray, seed: int, unknown: float
) -> None:
    random = np.random.default_rng(seed)
    prob = random.integers(0, 256, mask.shape, np.uint8)
    valid = random.random(mask.shape) >= unknown
    windows = data.draw(oracles.partitions(*mask.shape))
    pieces = [split(oracles.crop(mask, w), w, oracles.crop(prob, w), oracles.crop(valid, w)) for w in windows]
    assert oracles.bytes_of(stitch(pieces)) == oracles.bytes_of(polygonize(mask, prob=prob, valid=valid))


@given(st.data(), oracles.masks(), st.integers(0, 2**32 - 1))
def test_a_skipped_tile_equals_one_where_nothing_was_computed(data: st.DataObject, mask: np.ndarray, seed: int) -> None:
    windows = data.draw(oracles.partitions(*mask.shape))
    random = np.random.default_rng(seed)
    skipped = random.random(len(windows)) < 0.3
    valid = np.ones(mask.shape, bool)
    stitcher = Stitcher(windows)
    found = []
    for w, is_skipped in zip(windows, skipped, strict=True):
        if is_skipped:
            oracles.crop(valid, w)[:] = False
            found.append(stitcher.skip(w))
        else:
            found.append(stitcher.add(split(oracles.crop(mask, w), w)))
    assert stitcher.outstanding == stitcher.open_fragments == 0
    assert oracles.bytes_of(Polygons.concat(found).in_order()) == oracles.bytes_of(polygonize(mask, valid=valid))


@given(st.data(), oracles.masks())
def test_where_no_tile_is_nobody_looked(data: st.DataObject, mask: np.ndarray) -> None:
    windows = data.draw(oracles.partitions(*mask.shape))
    valid = np.ones(mask.shape, bool)
    for w in windows[::3]:
        oracles.crop(valid, w)[:] = False
    kept = [w for number, w in enumerate(windows) if number % 3]
    stitched = stitch(split(oracles.crop(mask, w), w) for w in kept)
    assert oracles.bytes_of(stitched) == oracles.bytes_of(polygonize(mask, valid=valid))


@given(st.data(), oracles.masks())
def test_a_polygon_comes_out_as_soon_as_no_outstanding_tile_could_add_to_it(data: st.DataObject, mask: np.ndarray) -> None:
    windows = data.draw(oracles.partitions(*mask.shape))
    whole = polygonize(mask)
    owner = np.zeros(np.add(mask.shape, 2), int) - 1  # tile of each pixel, with a frame that belongs to none
    for number, w in enumerate(windows):
        oracles.crop(owner[1:-1, 1:-1], w)[:] = number
    label, _ = oracles.scipy.ndimage.label(mask, oracles.CROSS)
    expected: dict[int, int] = dict.fromkeys(range(len(windows)), 0)
    for row, col in whole.first:
        around = oracles.scipy.ndimage.binary_dilation(np.pad(label == label[row, col], 1), oracles.CROSS)
        inside = set(owner[1:-1, 1:-1][label == label[row, col]].tolist())
        # Tiles that hold a part, or that lie beside a part which comes before them: the last of these closes it.
        expected[max(inside | set(owner[around].tolist()))] += 1
    stitcher = Stitcher(windows)
    assert {n: len(stitcher.add(split(oracles.crop(mask, w), w))) for n, w in enumerate(windows)} == expected


def test_open_fragments_are_those_along_one_row_of_tiles() -> None:
    random = np.random.default_rng(0)
    mask = np.zeros((512, 512), bool)
    for row, col in random.integers(0, 505, (1500, 2)):
        mask[row : row + 5, col : col + 5] = True
    most = {}
    for height in (128, 512):
        tiles = tiles_of_side(mask[:height], 32)
        stitcher = Stitcher([tile.window for tile in tiles])
        counts = []
        for tile in tiles:
            stitcher.add(tile)
            counts.append(stitcher.open_fragments)
        most[height] = max(counts)
        assert counts[-1] == 0
    assert most[512] <= 1.5 * most[128]  # four times the rows; random buildings, hence not exactly equal


def test_a_spiral_through_all_tiles_is_one_polygon() -> None:
    mask = np.zeros((63, 63), bool)
    row, col, step = 0, 0, (0, 1)
    mask[0, 0] = True
    for length in [62, *(n for n in range(62, 0, -2) for _ in range(2))]:
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            mask[row, col] = True
        step = (step[1], -step[0])
    whole = polygonize(mask)
    assert len(whole) == 1
    for side in (1, 2, 7, 20):
        assert oracles.bytes_of(stitch(tiles_of_side(mask, side))) == oracles.bytes_of(whole)


def test_one_broken_label_is_noticed() -> None:
    """The property above can fail: an edge that forgets one of its fragments tears a building apart."""
    mask = np.ones((8, 8), bool)
    tiles = tiles_of_side(mask, 4)
    for tile in tiles[1:]:
        for edge in tile.edges:
            edge[:] = -1
    assert oracles.bytes_of(stitch(tiles)) != oracles.bytes_of(polygonize(mask))


@given(oracles.masks())
def test_a_tile_survives_a_file_and_a_process(mask: np.ndarray) -> None:
    result = split(mask, Window(7, 9, *mask.shape))
    file = io.BytesIO()
    np.savez(file, **result.to_arrays())
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(result)), TileResult.from_arrays(np.load(file))):
        assert copy.window == result.window
        mine, other = result.to_arrays(), copy.to_arrays()
        assert mine.keys() == other.keys()
        assert all(mine[name].tobytes() == other[name].tobytes() for name in mine)


def test_no_tiles_make_no_polygons() -> None:
    assert len(stitch([])) == 0
    assert len(stitch([split(np.zeros((0, 4), bool), Window(3, 3, 0, 4))])) == 0


def test_a_tile_counts_once_and_must_be_known() -> None:
    window = Window(0, 0, 2, 2)
    tile = split(np.ones((2, 2), bool), window)
    stitcher = Stitcher([window])
    stitcher.add(tile)
    with pytest.raises(ConfigError, match="once"):
        stitcher.skip(window)
    with pytest.raises(ConfigError, match="none of the tiles"):
        stitcher.skip(Window(0, 2, 2, 2))
    with pytest.raises(ConfigError, match="twice"):
        Stitcher([window, window])
    with pytest.raises(ConfigError, match="does not fit"):
        split(np.ones((2, 3), bool), window)
