"""Windows, the grid and its lattice."""

from __future__ import annotations

import pickle

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geoinfer.errors import ConfigError
from geoinfer.grid import ChipSpec, Grid, Window, cores_of, nearest_pixel, tiles_of

windows = st.builds(Window, st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 60), st.integers(0, 60))


def cells(window: Window) -> set[tuple[int, int]]:
    return {(r, c) for r in range(window.row, window.stop_row) for c in range(window.col, window.stop_col)}


@given(windows, windows)
def test_an_intersection_holds_the_pixels_in_both(a: Window, b: Window) -> None:
    assert cells(a.intersection(b)) == cells(a) & cells(b)


@given(windows, st.integers(1, 20), st.integers(1, 4))
def test_tiles_cover_a_window_once_and_cores_cover_a_tile_once(window: Window, core: int, k: int) -> None:
    tiles = list(tiles_of(window, core, k))
    assert all(not tile.window.intersection(window).is_empty for tile in tiles)
    pieces = [cells(tile.window.intersection(window)) for tile in tiles]
    assert sum(map(len, pieces)) == len(set().union(*pieces)) == len(cells(window))
    for tile in tiles[:3]:
        cores = [cells(piece) for piece in cores_of(tile, core)]
        assert len(cores) == k * k
        assert set().union(*cores) == cells(tile.window)


@given(windows, st.integers(1, 20))
def test_cores_do_not_depend_on_the_size_of_a_tile(window: Window, core: int) -> None:
    def owners(k: int) -> set[Window]:
        return {c for tile in tiles_of(window, core, k) for c in cores_of(tile, core) if not c.intersection(window).is_empty}

    assert owners(1) == owners(2) == owners(3)


def test_negative_sizes_and_empty_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        Window(0, 0, -1, 4)
    with pytest.raises(ConfigError, match="at most 31"):
        ChipSpec(64, 32)
    with pytest.raises(ConfigError, match="stride 32"):
        ChipSpec(512, 30)
    with pytest.raises(ConfigError, match="at least 1"):
        list(tiles_of(Window(0, 0, 1, 1), 32, 0))


@given(st.integers(-(10**8), 10**8), st.floats(-1e-6, 1e-6))
def test_half_a_pixel_of_phase_does_not_flicker(k: int, noise: float) -> None:
    assert nearest_pixel(k + 0.5 + noise) == k
    assert nearest_pixel(k + noise) == k


def test_bounds_and_absolute_pixels() -> None:
    grid = Grid(CRS.from_epsg(32630), Affine(0.5, 0, 224.0, 0, -0.5, 448.0), 10, 20)
    assert grid.origin_pixel == (-896, 448)
    assert grid.bounds() == (224.0, 443.0, 234.0, 448.0)
    assert grid.bounds(Window(2, 4, 2, 2)) == (226.0, 446.0, 227.0, 447.0)
    assert grid.covering((226.0, 446.0, 227.0, 447.0)) == Window(2, 4, 2, 2)
    assert grid.covering((226.1, 446.1, 226.9, 446.9)) == Window(2, 4, 2, 2)
    assert pickle.loads(pickle.dumps(grid)) == grid
