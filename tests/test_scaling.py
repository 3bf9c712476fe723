"""Pixels made right for the model: any number type becomes the same 8 bits, whatever says what is valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasters import pattern, write

from geoinfer.errors import ConfigError, SourceError
from geoinfer.imagery import open_raster
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.raster import inspect
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.stretch import Stretch, stretch_of

pytestmark = pytest.mark.fast

DECLARED = SourceOptions(scaling="declared")
TYPES = ["uint16", "int16", "uint32", "int32", "float32", "float64"]


def values(kind: str, height: int = 60, width: int = 80, seed: int = 0) -> NDArray[Any]:
    """(3, H, W): negatives where the type has them, 0 to 1 for floats, 11 bits else."""
    base = pattern(height, width, seed=seed).astype(np.float64)
    if kind.startswith("float"):
        return (base / 255).astype(kind)
    return (base * 8 - (700 if kind.startswith("int") else 0)).astype(kind)


def limits_of(path: Path, options: SourceOptions = SourceOptions(), scene: Scene | None = None) -> list[tuple[float, float]]:  # noqa: B008
    file = inspect(replace(scene, address=str(path)) if scene is not None else path)
    (stretch,) = stretch_of([file], options)
    assert stretch is not None
    return list(stretch.limits)


@given(data=st.data(), kind=st.sampled_from([*TYPES, "uint8", "int8"]))
def test_a_stretch_is_the_straight_line_between_its_limits(data: st.DataObject, kind: str) -> None:
    info: Any = np.finfo(kind) if kind.startswith("float") else np.iinfo(kind)
    span = st.floats(-5e4, 5e4, width=32) if kind.startswith("float") else st.integers(int(info.min), int(info.max))
    pixels = np.array(data.draw(st.lists(span, min_size=6, max_size=6)), kind).reshape(1, 2, 3)
    low = data.draw(st.floats(-2e4, 2e4))
    high = low + data.draw(st.floats(0.5, 3e4))
    expected = [min(max(round((float(value) - low) * (255.0 / (high - low))), 0), 255) for value in pixels.ravel()]
    assert Stretch(((low, high),)).apply(pixels).ravel().tolist() == expected


@pytest.mark.parametrize("kind", TYPES)
def test_percentiles_of_a_band_become_black_and_white(tmp_path: Path, kind: str) -> None:
    pixels = values(kind)
    found = limits_of(write(tmp_path / "a.tif", pixels))
    expected = np.percentile(pixels.reshape(3, -1).astype(np.float64), (2, 98), axis=1).T
    assert np.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, way) for kind in TYPES for way in ("nodata", "alpha", "mask")), ("float32", "nan"), ("float64", "nan")],
)
def test_invalid_pixels_do_not_count_whatever_says_so(tmp_path: Path, kind: str, way: str) -> None:
    pixels, junk = values(kind), 9 if kind.startswith("float") else 30_000
    whole = write(tmp_path / "valid.tif", pixels)
    collar = np.full((3, 60, 120), junk, kind)  # more than half of it
    path, beside = tmp_path / "with.tif", np.concatenate([pixels, collar], axis=2)
    valid = np.zeros(beside.shape[1:], np.bool_)
    valid[:, :80] = True
    if way == "nodata":
        write(path, beside, nodata=junk)
    elif way == "alpha":
        four = np.concatenate([beside, valid[None].astype(kind)])
        write(path, four, colours=("red", "green", "blue", "alpha"), photometric="RGB")
    elif way == "mask":
        write(path, beside, mask=valid)
    else:
        beside[:, ~valid] = np.nan
        beside[1, ~valid] = np.inf
        write(path, beside)
    assert limits_of(path) == limits_of(whole)
    with_junk, plain = open_raster(path, gsd=0.3), open_raster(whole, gsd=0.3)
    a, b = with_junk.read(with_junk.placement.windows[0]), plain.read(plain.placement.windows[0])
    assert np.array_equal(a.pixels[:, :, :80], b.pixels)
    assert np.array_equal(a.valid, valid)


def test_eight_bits_stay_as_they_are_unless_told(tmp_path: Path) -> None:
    file = inspect(write(tmp_path / "a.tif", pattern(30, 30)))
    assert stretch_of([file], SourceOptions()) == [None]
    assert stretch_of([file], DECLARED) == [None]
    assert stretch_of([file], SourceOptions(stretch=(10, 90))) == [Stretch(((10, 90),) * 3)]


def test_types_do_not_mix_without_a_common_meaning(tmp_path: Path) -> None:
    small = inspect(write(tmp_path / "a.tif", pattern(30, 30)))
    large = inspect(write(tmp_path / "b.tif", values("uint16"), nbits=12))
    with pytest.raises(SourceError, match=r"different types.*--scaling declared"):
        stretch_of([small, large], SourceOptions())
    assert stretch_of([small, large], DECLARED) == [None, Stretch(((0.0, 4095.0),) * 3)]


def test_the_common_stretch_of_many_rasters_is_bounded_and_knows_no_order(tmp_path: Path) -> None:
    files = [inspect(write(tmp_path / f"{i:03}.tif", values("uint16", 16, 16, seed=i))) for i in range(70)]
    forth, back = stretch_of(files, SourceOptions()), stretch_of(files[::-1], SourceOptions())
    assert len(forth) == 70
    assert len({forth[0], *forth, *back}) == 1
    (tmp_path / "011.tif").unlink()  # not among the 64
    assert stretch_of(files, SourceOptions())[0] == forth[0]


def test_what_a_file_declares_scales_it(tmp_path: Path) -> None:
    pixels = values("uint16")
    assert limits_of(write(tmp_path / "bits.tif", pixels, nbits=11), DECLARED) == [(0.0, 2047.0)] * 3
    told = write(tmp_path / "told.tif", pixels)
    with rasterio.open(told, "r+") as file:
        for band in (1, 2, 3):
            file.update_tags(band, STATISTICS_MINIMUM=str(100 * band), STATISTICS_MAXIMUM="5000")
    assert limits_of(told, DECLARED) == [(100.0, 5000.0), (200.0, 5000.0), (300.0, 5000.0)]
    with rasterio.open(told, "r+") as file:
        for band in (1, 2, 3):
            file.update_tags(band, STATISTICS_MEAN="1000", STATISTICS_STDDEV="425")
    assert limits_of(told, DECLARED) == [(150.0, 1850.0), (200.0, 1850.0), (300.0, 1850.0)]  # glint does not decide
    reflectance = write(tmp_path / "reflectance.tif", pixels)
    with rasterio.open(reflectance, "r+") as file:
        file.scales, file.offsets = (0.0001,) * 3, (-0.1,) * 3
    assert np.allclose(limits_of(reflectance, DECLARED), [(1000, 4558)] * 3)
    assert limits_of(told) == limits_of(reflectance)  # without --scaling declared: percentiles


def test_a_document_comes_before_the_file_and_a_flag_before_both(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values("uint16"), nbits=11)
    declared = Scene("", limits=((0.0, 900.0), (0.0, 1000.0), (0.0, 1100.0)), scale=(0.0001,) * 3, offset=(0.0,) * 3)
    assert limits_of(path, DECLARED, declared) == [(0.0, 900.0), (0.0, 1000.0), (0.0, 1100.0)]
    assert np.allclose(limits_of(path, DECLARED, replace(declared, limits=None)), [(0, 3558)] * 3)
    assert limits_of(path, replace(DECLARED, stretch=(5.0, 6.0)), declared) == [(5.0, 6.0)] * 3


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (Scene(""), "nothing declares what its values mean.*--stretch"),
        (Scene("", limits=((0.0, 1.0),)), "1 limits declared for the 3 bands"),
        (Scene("", limits=((5.0, 5.0),) * 3), "declares values from 5.0 to 5.0"),
        (Scene("", limits=((0.0, float("nan")),) * 3), "declares values from 0.0 to nan"),
        (Scene("", scale=(0.05,) * 3, offset=(0.0,) * 3), "nothing declares"),  # radiance: no reflectance
        (Scene("", scale=(0.0,) * 3, offset=(5.0,) * 3), "nothing declares"),
    ],
)
def test_declared_means_declared(tmp_path: Path, scene: Scene, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        limits_of(write(tmp_path / "a.tif", values("uint16")), DECLARED, scene)
    with pytest.raises(ConfigError, match="lower one first"):
        limits_of(tmp_path / "a.tif", SourceOptions(stretch=(3.0, 3.0)))


def test_a_plan_reads_no_pixels_to_scale_them(tmp_path: Path) -> None:
    file = inspect(write(tmp_path / "a.tif", values("uint16")))
    (tmp_path / "a.tif").unlink()
    (stretch,) = stretch_of([file], SourceOptions(open_headers=False))
    assert stretch is not None
    assert len(stretch.limits) == 3


def test_declared_scaling_is_that_of_the_whole_file_at_an_overview(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values("uint16", 512, 512), nbits=11)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    from geoinfer.imagery.raster import at_overview

    assert stretch_of([at_overview(inspect(path), 1)], DECLARED) == [Stretch(((0.0, 2047.0),) * 3)]
