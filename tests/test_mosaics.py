"""Mosaics: which raster wins each pixel, in any systems and sizes; what footprints say of it; and lists of files."""

from __future__ import annotations

import itertools
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from geoinfer.anywhere import detect
from geoinfer.errors import ConfigError, SafetyError, SourceError, TooWideError
from geoinfer.grid import Window
from geoinfer.imagery import FILL, RasterSource
from geoinfer.imagery.grids import place
from geoinfer.imagery.index import scenes_of
from geoinfer.imagery.locate import find, open_source
from geoinfer.imagery.meter import decoded
from geoinfer.imagery.mosaic import open_scenes
from geoinfer.imagery.options import Prefer, Search, Service, SourceOptions
from geoinfer.imagery.raster import inspect
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.source import Image
from geoinfer.job import Execution, make_job
from geoinfer.pipeline import run
from geoinfer.vector.polygonize import polygonize
from geoinfer.vector.polygons import Polygons
from geoinfer.vector.stitch import TileResult, split, stitch
from tests.rasters import at_place, pattern, write
from tests.standins import StandIn, paint

CORE = 64
X0, Y0 = 700_000.0, 620_000.0
"""Upper left corner of most mosaics here, EPSG:32630: a corner of many pixels."""


def opened(scenes: Sequence[Scene], gsd: float = 0.5, crs: CRS | None = None, **options: Any) -> RasterSource:
    return open_scenes(scenes, SourceOptions(**options), gsd=gsd, core=CORE, crs=crs)


# ---------------------------------------------------------------- which raster wins


@dataclass(frozen=True)
class Sheet:
    """A raster of one grey, with holes, as a strategy draws it."""

    row: int
    col: int
    height: int
    width: int
    size: float
    """Side of a pixel, metres."""
    holes: int
    """Seed of what is invalid; 0: nothing."""
    day: int | None
    cloud: float | None

    @property
    def valid(self) -> np.ndarray:
        if not self.holes:
            return np.ones((self.height, self.width), bool)
        return np.random.default_rng(self.holes).random((self.height, self.width)) < 0.6

    def scene(self, folder: Path, number: int) -> Scene:
        pixels = np.full((3, self.height, self.width), 10 + number, np.uint8)
        transform = Affine(self.size, 0, X0 + self.col, 0, -self.size, Y0 - self.row)
        path = write(folder / f"{number}.tif", pixels, "EPSG:32630", transform, mask=self.valid if self.holes else None)
        taken = None if self.day is None else f"2024-03-{self.day:02}T10:00:00Z"
        return Scene(str(path), datetime=taken, cloud_cover=self.cloud)

    def key(self, prefer: Prefer) -> tuple[bool, float]:
        if prefer == "newest":
            return self.day is None, -float(self.day or 0)
        if prefer == "least-cloud":
            return self.cloud is None, self.cloud or 0.0
        return False, self.size if prefer == "finest" else 0.0


def sheets(sizes: Sequence[float]) -> st.SearchStrategy[list[Sheet]]:
    sheet = st.builds(
        Sheet,
        row=st.integers(0, 40),
        col=st.integers(0, 40),
        height=st.integers(3, 60),
        width=st.integers(3, 60),
        size=st.sampled_from(sizes),
        holes=st.integers(0, 3),
        day=st.none() | st.integers(1, 4),
        cloud=st.none() | st.sampled_from([0.0, 5.0, 80.0]),
    )
    return st.lists(sheet, min_size=1, max_size=6)


def winners(sheets: Sequence[Sheet], prefer: Prefer, source: RasterSource, window: Window) -> np.ndarray:
    """(H, W) number of the sheet that each pixel of a window shows, -1 for none: one pixel, one sheet after another."""
    order = sorted(range(len(sheets)), key=lambda number: (sheets[number].key(prefer), number))
    left, _, _, top = source.grid.bounds(window)
    found = np.full((window.height, window.width), -1)
    for row, col in np.ndindex(*found.shape):
        x, y = left + (col + 0.5) * source.grid.pixel_size - X0, Y0 - (top - (row + 0.5) * source.grid.pixel_size)
        for number in order:
            sheet = sheets[number]
            at = int(np.floor((y - sheet.row) / sheet.size)), int(np.floor((x - sheet.col) / sheet.size))
            if 0 <= at[0] < sheet.height and 0 <= at[1] < sheet.width and sheet.valid[at]:
                found[row, col] = number
                break
    return found


@pytest.mark.parametrize("sizes", [(0.5,), (0.5, 1.0, 1.5)], ids=["native", "resampled"])
@settings(max_examples=20)
@given(data=st.data())
def test_the_first_valid_pixel_in_order_of_preference_wins(
    sizes: tuple[float, ...], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    drawn = data.draw(sheets(sizes))
    prefer = data.draw(st.sampled_from(("given", "newest", "finest", "least-cloud")))
    folder = tmp_path_factory.mktemp("sheets")
    scenes = [sheet.scene(folder, number) for number, sheet in enumerate(drawn)]
    source = opened(scenes, prefer=prefer, resampling="nearest")
    origin = source.grid.origin_pixel
    row, col = -round(Y0 / 0.5) - origin[0], round(X0 / 0.5) - origin[1]
    window = Window(row + data.draw(st.integers(-5, 60)), col + data.draw(st.integers(-5, 60)), 37, 41)
    image, expected = source.read(window), winners(drawn, prefer, source, window)
    assert np.array_equal(image.valid, expected >= 0)
    assert np.array_equal(image.pixels[1], np.where(expected >= 0, expected + 10, FILL))
    if len(drawn) > 1:
        names = [int(name.name.removesuffix(".tif")) for name in source.origins() if name.name]
        assert image.origin is not None
        assert np.array_equal(np.where(image.origin < 0, -1, np.array(names)[image.origin]), expected)
    else:
        assert image.origin is None


def test_neither_grid_nor_pixels_depend_on_the_order_of_dated_rasters(tmp_path: Path) -> None:
    drawn = [Sheet(9 * n, 5 * n, 40, 50, (0.5, 1.0)[n % 2], n, n + 1, None) for n in range(3)]
    scenes = [sheet.scene(tmp_path, number) for number, sheet in enumerate(drawn)]
    first = opened(scenes, prefer="newest")
    for order in itertools.permutations(scenes):
        again = opened(order, prefer="newest")
        assert again.grid == first.grid
        assert np.array_equal(again.read(first.grid.window).pixels, first.read(first.grid.window).pixels)
        assert again.snapshot() == first.snapshot()
    assert first.describe()["order"] == "the newest wins, undated last, then the first named"


def test_a_read_asks_only_the_rasters_that_it_needs(tmp_path: Path) -> None:
    """One that lies wholly beneath others is not opened for pixels."""
    whole = Sheet(0, 0, 60, 60, 0.5, 0, None, None)
    scenes = [
        whole.scene(tmp_path, 0),
        whole.scene(tmp_path, 1),
        Sheet(0, 900, 60, 60, 0.5, 0, None, None).scene(tmp_path, 2),
    ]
    source = opened(scenes)
    os.unlink(scenes[1].address)
    os.unlink(scenes[2].address)
    image = source.read(source.placement.windows[0])
    assert image.valid.all()
    assert (image.pixels == 10).all()
    with pytest.raises(SourceError, match=r"2\.tif"):
        source.read(source.placement.windows[2])


def test_rasters_that_cannot_be_opened_are_left_out_where_asked(tmp_path: Path) -> None:
    good = Sheet(0, 0, 60, 60, 0.5, 0, None, None).scene(tmp_path, 0)
    (tmp_path / "bad.tif").write_bytes(b"<html>")
    scenes = [Scene(str(tmp_path / "bad.tif")), good]
    with pytest.raises(SourceError, match=r"bad\.tif"):
        opened(scenes)
    source = opened(scenes, on_error="skip")
    assert [origin.name for origin in source.origins()] == ["0.tif"]
    assert "bad.tif" in source.describe()["left_out"][0]  # type: ignore[index]
    with pytest.raises(SourceError, match=r"bad\.tif"):
        opened(scenes[:1], on_error="skip")
    (tmp_path / "evil.tif").write_text("<VRTDataset/>")
    with pytest.raises(SafetyError, match=r"evil\.tif"):
        opened([Scene(str(tmp_path / "evil.tif")), good], on_error="skip")


# ---------------------------------------------------------------- several coordinate systems


def town(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness of the ground at places in metres: large bright roofs on a dark ground."""
    is_roof = ((x % 60.0) > 22.0) & ((y % 50.0) > 18.0)
    return np.where(is_roof, 215.0, 40.0) + 9.0 * np.sin(x * 0.7) * np.cos(y * 0.9)  # a chip of one colour is a collar


def render(path: Path, crs: str, transform: Affine, side: tuple[int, int], home: str, **tags: str) -> Path:
    """A raster of the town, which `home` measures: each pixel is the mean of 4 x 4 points in it."""
    height, width = side
    cols, rows = np.meshgrid((np.arange(4 * width) + 0.5) / 4, (np.arange(4 * height) + 0.5) / 4)
    a, b, c, d, e, f = transform[:6]
    to_home = Transformer.from_crs(crs, home, always_xy=True)
    grey = town(*to_home.transform(a * cols + b * rows + c, d * cols + e * rows + f))
    grey = grey.reshape(height, 4, width, 4).mean(axis=(1, 3)).round().astype(np.uint8)
    return write(path, np.stack([grey] * 3), crs, transform, tags=tags or None)


def iou(a: gpd.GeoDataFrame, b: gpd.GeoDataFrame, where: shapely.Polygon) -> float:
    first, second = (shapely.intersection(frame.geometry.union_all(), where) for frame in (a, b))
    return float(shapely.intersection(first, second).area / shapely.union(first, second).area)


def test_a_seam_between_utm_zones_is_that_of_one_system(tmp_path: Path) -> None:
    """Row 9: what lies on the border of 32633 and 32634 comes out as where both rasters are in one of them."""
    home = "EPSG:32633"
    x, y = Transformer.from_crs(4326, home, always_xy=True).transform(18.0, 50.0)
    x, y = round(x / 64) * 64.0, round(y / 64) * 64.0
    west = render(tmp_path / "west.tif", home, Affine(0.5, 0, x - 192, 0, -0.5, y + 100), (400, 404), home)
    same = render(tmp_path / "same.tif", home, Affine(0.5, 0, x, 0, -0.5, y + 100), (400, 320), home)
    ex, ey = Transformer.from_crs(home, "EPSG:32634", always_xy=True).transform(x, y)
    other = render(tmp_path / "other.tif", "EPSG:32634", Affine(0.5, 0, ex - 5.13, 0, -0.5, ey + 103.21), (440, 340), home)
    one, mixed = detect([west, same], StandIn(), tile=3), detect([west, other], StandIn(), tile=3)
    assert one.crs == mixed.crs == CRS(home)
    seam = shapely.box(x - 80, y - 70, x + 80, y + 70)
    assert iou(one, mixed, seam) >= 0.99
    around = shapely.box(x - 40, y - 60, x + 60, y + 60)
    count = [len(frame[frame.geometry.intersects(around)]) for frame in (one, mixed)]
    assert count[0] == count[1] > 3  # none is cut in two or found twice
    assert set(mixed["imagery"]) == {"west.tif", "other.tif"}


def test_the_grid_of_rasters_in_several_systems(tmp_path: Path) -> None:
    def at(name: str, crs: str, lonlat: tuple[float, float], side: int = 20) -> Path:
        size = (3e-6, 3e-6) if crs in ("EPSG:4326", "EPSG:4269") else (0.3, 0.3)
        return write(tmp_path / name, pattern(side, side), crs, at_place(crs, size, lonlat))

    def grid_of(*paths: Path, crs: CRS | None = None) -> CRS:
        found = {place([inspect(path) for path in order], 0.3, CORE, crs).grid for order in itertools.permutations(paths)}
        assert len(found) == 1  # whatever the order
        return found.pop().crs

    degrees, mercator = at("d.tif", "EPSG:4326", (18.0, 50.0), 90), at("m.tif", "EPSG:3857", (18.001, 50.0), 90)
    east, west = at("e.tif", "EPSG:32634", (18.0, 50.001)), at("w.tif", "EPSG:32633", (17.999, 50.0), 40)
    assert grid_of(degrees, mercator) == CRS(32634)  # neither is true to the ground
    assert grid_of(degrees, mercator, east) == CRS(32634)
    assert grid_of(degrees, east, west) == CRS(32633)  # which holds more of the ground
    assert grid_of(degrees, west, crs=CRS(32634)) == CRS(32634)
    far = at("f.tif", "EPSG:32601", (-179.999, -16.0 + 66.0), 20)
    near = at("n.tif", "EPSG:32660", (179.999, 50.0), 30)
    assert grid_of(far, near) == CRS(32660)  # across the antimeridian they are neighbours
    with pytest.raises(TooWideError) as caught:
        place([inspect(path) for path in (near, east)], 0.3, CORE)
    assert caught.value.bounds == pytest.approx((18.0, 50.0, 179.999, 50.001), abs=1e-3)


def test_a_grid_that_was_asked_for_cuts_what_it_cannot_show(tmp_path: Path) -> None:
    world = write(tmp_path / "world.tif", pattern(180, 360), "EPSG:4326", Affine(1, 0, -180, 0, -1, 90))
    here = write(tmp_path / "here.tif", pattern(90, 90), "EPSG:32633", at_place("EPSG:32633", (0.5, 0.5), (17.0, 50.0)))
    away = write(tmp_path / "away.tif", pattern(90, 90), "EPSG:32655", at_place("EPSG:32655", (0.5, 0.5), (147.0, 50.0)))
    with pytest.raises(TooWideError):
        opened([Scene(str(here)), Scene(str(away))])
    source = opened([Scene(str(path)) for path in (away, here, world)], crs=CRS(32633))
    assert [origin.name for origin in source.origins()] == ["here.tif", "world.tif"]
    around = source.placement.windows[0].grow(20)
    image = source.read(around)
    assert image.valid.all()
    assert image.origin is not None
    assert set(np.unique(image.origin)) == {0, 1}
    with pytest.raises(ConfigError):
        opened([])


@pytest.mark.parametrize("twist", [0.0, 90.0, 31.0, "south-up"])
def test_rotated_and_south_up_rasters_give_the_footprints_of_the_normalised_one(twist: float | str, tmp_path: Path) -> None:
    """Row 8: the same pixels where the turn is a right angle, else edges to half a pixel (which a pixel more or less is)."""
    home, x, y = "EPSG:32630", 700_000.0, 620_000.0
    plain = render(tmp_path / "plain.tif", home, Affine(0.5, 0, x, 0, -0.5, y), (400, 420), home)
    if twist == "south-up":
        transform, side = Affine(0.5, 0, x, 0, 0.5, y - 200), (400, 420)
    else:
        turn = Affine.rotation(float(twist))
        middle = Affine.translation(x + 105, y - 100)
        transform, side = middle * turn * Affine.translation(-200, 200) * Affine(0.5, 0, 0, 0, -0.5, 0), (800, 800)
    turned = render(tmp_path / "turned.tif", home, transform, side, home)
    inner = shapely.box(x + 40, y - 160, x + 170, y - 40)
    frames = [detect(path, StandIn(), tile=3, simplify=0.0) for path in (plain, turned)]
    wanted, found = (frame[frame.within(inner)].geometry.reset_index(drop=True) for frame in frames)
    assert len(wanted) == len(found) > 1
    for shape in wanted:
        twin = min(found, key=lambda other: shape.centroid.distance(other.centroid))
        moved = shapely.symmetric_difference(shape, twin).area / shape.length  # metres, on average along the edge
        assert moved <= (0.25 if twist == 31.0 else 0.0)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> tuple[RasterSource, Window, Image]:
    """Rasters of three systems over one place, and one big read of them."""
    folder = tmp_path_factory.mktemp("mixed")
    rows, cols = np.mgrid[:300, :280]
    hole = (rows - 100) ** 2 + (cols - 150) ** 2 > 2500
    systems = {"EPSG:4326": (2.7e-6, 2.7e-6), "EPSG:32630": (0.3, 0.3), "EPSG:3857": (0.47, 0.47)}
    scenes = [
        Scene(str(write(folder / f"{seed}.tif", pattern(300, 280, seed=seed), crs, at_place(crs, size), mask=hole)))
        for seed, (crs, size) in enumerate(systems.items())
    ]
    source = opened(scenes, gsd=0.3)
    window = source.grid.window.grow(7)
    return source, window, source.read(window)


@settings(max_examples=15)
@given(data=st.data())
def test_a_pixel_of_a_mosaic_does_not_depend_on_the_window(
    patched: tuple[RasterSource, Window, Image], data: st.DataObject
) -> None:
    source, big, whole = patched
    height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    row, col = data.draw(st.integers(0, big.height - height)), data.draw(st.integers(0, big.width - width))
    image = pickle.loads(pickle.dumps(source)).read(Window(big.row + row, big.col + col, height, width))
    here = slice(row, row + height), slice(col, col + width)
    assert whole.origin is not None
    assert image.origin is not None
    assert set(np.unique(whole.origin)) == {-1, 0, 1, 2}
    assert np.array_equal(image.pixels, whole.pixels[:, *here])
    assert np.array_equal(image.valid, whole.valid[here])
    assert np.array_equal(image.origin, whole.origin[here])


def test_rasters_of_several_types_need_one_stretch(tmp_path: Path) -> None:
    """Without one nobody knows what is equally bright."""
    low = write(tmp_path / "8.tif", pattern(40, 40), transform=Affine(0.5, 0, X0, 0, -0.5, Y0))
    high = write(tmp_path / "16.tif", pattern(40, 40).astype(np.uint16), transform=Affine(0.5, 0, X0 + 20, 0, -0.5, Y0))
    scenes = [Scene(str(low)), Scene(str(high))]
    with pytest.raises(SourceError, match="different types"):
        opened(scenes)
    source = opened(scenes, stretch=(0, 255))
    left, right = (source.read(window).pixels for window in source.placement.windows)
    assert np.array_equal(left, right)
    assert np.array_equal(left, pattern(40, 40))


# ---------------------------------------------------------------- what footprints say


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_a_stitched_polygon_keeps_the_source_of_its_first_pixel(seed: int, down: int, across: int) -> None:
    """However it was cut."""
    rng = np.random.default_rng(seed)
    mask, origin = rng.random((24, 21)) < 0.6, rng.integers(0, 5, (24, 21)).astype(np.int32)
    results = []
    for row, col in itertools.product(range(0, 24, down), range(0, 21, across)):
        window = Window(row, col, down, across).intersection(Window(0, 0, 24, 21))
        result = split(mask[window.slices_in(Window(0, 0, 24, 21))], window)
        parts = [
            replace(polygons, source=origin[tuple(polygons.first.T)]) for polygons in (result.complete, result.fragments)
        ]
        results.append(TileResult.from_arrays(replace(result, complete=parts[0], fragments=parts[1]).to_arrays()))
    whole = stitch(results)
    assert np.array_equal(whole.source, origin[tuple(whole.first.T)])


def test_polygons_stored_without_sources_are_of_none() -> None:
    """Tiles that earlier versions wrote, and those of a single raster."""
    polygons = polygonize(np.eye(3, dtype=bool))
    assert "source" not in polygons.to_arrays()
    again = Polygons.from_arrays(polygons.to_arrays())
    assert again.source.tolist() == [-1, -1, -1]
    known = replace(polygons, source=np.array([4, -1, 0], np.int32))
    assert Polygons.from_arrays(known.to_arrays()).take(np.array([0, 2])).source.tolist() == [4, 0]
    assert Polygons.concat([known, polygons]).source.tolist() == [4, -1, 0, -1, -1, -1]


@pytest.fixture(scope="module")
def patchwork(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three overlapping rasters of one town with buildings across their seams."""
    folder = tmp_path_factory.mktemp("patchwork")
    pixels = paint(260, 300, 8, roofs=90)
    places = {"a": (0, 0, 150, 140), "b": (100, 90, 160, 150), "c": (20, 120, 190, 180)}
    days = {"a": "2020:01:02 03:04:05", "b": "2021:01:02 03:04:05"}
    paths = []
    for name, (row, col, height, width) in places.items():
        part = pixels[:, row : row + height, col : col + width]
        transform = Affine(0.5, 0, X0 + 13.5 + col / 2, 0, -0.5, Y0 + 7 - row / 2)
        tags = {"TIFFTAG_DATETIME": days[name]} if name in days else None
        paths.append(write(folder / f"{name}.tif", part, "EPSG:32630", transform, tags=tags))
    return paths


def test_a_footprint_names_the_raster_of_its_first_pixel_whatever_the_tile(patchwork: list[Path], tmp_path: Path) -> None:
    frames = {tile: detect(patchwork, StandIn(), tile=tile) for tile in (1, 2, 5)}
    for frame in frames.values():
        assert frame.equals(frames[1])
    done = run(make_job(patchwork, model=StandIn()), tmp_path / "run", execution=Execution(tile=2))
    stored = gpd.read_parquet(done.footprints)
    assert stored[["imagery", "datetime"]].equals(frames[1][["imagery", "datetime"]])
    source = make_job(patchwork, model=StandIn()).source
    row0, col0 = source.grid.origin_pixel
    for number, taken in zip(stored["id"], stored[["imagery", "datetime"]].itertuples(index=False), strict=True):
        row, col = int(number[:8], 16) - 2**31 - row0, int(number[8:], 16) - 2**31 - col0
        origin = source.read(Window(row, col, 1, 1)).origin
        assert origin is not None
        expected = source.origins()[int(origin[0, 0])]
        assert taken.imagery == expected.name
        assert taken.datetime == expected.datetime or (expected.datetime is None and taken.datetime != taken.datetime)
    assert set(stored["imagery"]) == {"a.tif", "b.tif", "c.tif"}
    assert set(stored["datetime"].dropna()) == {"2020-01-02T03:04:05", "2021-01-02T03:04:05"}


def test_low_trust_is_told_by_the_raster_of_a_footprint(patchwork: list[Path], tmp_path: Path) -> None:
    job = make_job(patchwork, model=StandIn())
    assert "low_trust" not in gpd.read_parquet(run(job, tmp_path / "plain").footprints)
    marked = gpd.read_parquet(run(replace(job, low_trust=(False, True, False)), tmp_path / "run").footprints)
    assert marked["low_trust"].dtype == bool
    assert (marked["low_trust"] == (marked["imagery"] == "b.tif")).all()
    assert marked["low_trust"].any()


def test_a_single_raster_gives_its_name_without_asking(patchwork: list[Path]) -> None:
    found = detect(patchwork[0], StandIn())
    assert set(found["imagery"]) == {"a.tif"}
    assert set(found["datetime"]) == {"2020-01-02T03:04:05"}


# ---------------------------------------------------------------- thousands


@pytest.mark.parametrize("across", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_thousands_of_rasters_are_one_source(across: int, tmp_path: Path) -> None:
    side = 16
    pixels = pattern(side, side)
    for number in range(across * across):
        row, col = divmod(number, across)
        transform = Affine(0.5, 0, X0 + col * side / 2, 0, -0.5, Y0 - row * side / 2)
        write(tmp_path / f"{number:05}.tif", pixels, "EPSG:32630", transform)
    source = opened(scenes_of(str(tmp_path), SourceOptions()))
    assert source.placement.native
    before, handles = decoded().headers, len(os.listdir("/proc/self/fd"))
    first = source.placement.windows[0]
    image = source.read(Window(first.row + 8, first.col + 8, side, side))
    assert image.valid.all()
    assert decoded().headers - before == 4  # the rasters under the window
    for row in range(0, across * side, 100):
        assert source.read(Window(first.row + row, first.col, 100, across * side)).valid.any()
    assert len(os.listdir("/proc/self/fd")) - handles < 100
    described = source.describe()
    assert described["rasters"] == across * across
    assert len(str(described)) < 20_000
    assert len(source.snapshot(Window(first.row, first.col, side + 1, side))) == 2


# ---------------------------------------------------------------- folders, patterns, tile indexes


def named(folder: Path, text: str, **options: Any) -> list[str]:
    return [os.path.relpath(scene.address, folder) for scene in scenes_of(text, SourceOptions(**options))]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "north").mkdir(parents=True)
    (folder / ".thumbs").mkdir()
    for name in ("b.tif", "a.TIFF", "north/c.tif", ".thumbs/x.tif", ".d.tif"):
        write(folder / name, pattern(20, 20))
    for name in ("a.tif.aux.xml", "b.tif.ovr", "notes.txt"):
        (folder / name).write_text("x")
    return folder


def test_a_folder_gives_its_geotiffs_and_a_pattern_what_it_matches(library: Path, tmp_path: Path) -> None:
    assert named(library, str(library)) == ["a.TIFF", "b.tif", "north/c.tif"]
    assert named(library, f"{library}/*.tif") == ["b.tif"]
    assert named(library, f"{library}/**/*.tif") == ["b.tif", "north/c.tif"]
    assert named(library, f"{library}/*") == ["a.TIFF", "b.tif"]
    for text in (str(library / ".thumbs" / "none*"), f"{library}/*.jp2"):
        with pytest.raises(SourceError, match="matches no GeoTIFF"):
            scenes_of(text, SourceOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no GeoTIFF in this folder"):
        scenes_of(str(tmp_path / "empty"), SourceOptions())


INDEXES = {"index.gpkg": "GPKG", "index.shp": "ESRI Shapefile", "index.fgb": "FlatGeobuf", "index.geojson": "GeoJSON"}
EXTRA = {".fgb": {"SPATIAL_INDEX": "NO"}}
"""An index would sort the rows."""


def write_index(path: Path, columns: dict[str, list[Any]]) -> Path:
    count = len(columns["location"]) if "location" in columns else 1
    frame = gpd.GeoDataFrame(columns, geometry=[shapely.box(0, 0, 1, 1)] * count, crs=4326)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a shapefile cuts names to ten letters
            frame.to_file(path, driver=INDEXES[path.name], engine="pyogrio", **EXTRA.get(path.suffix, {}))
    return path


@pytest.mark.parametrize("name", [*INDEXES, "index.parquet"])
def test_a_tile_index_is_a_list_of_rasters(name: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(library.parent)
    locations = ["b.tif", "north/c.tif", "library/a.TIFF", "https://example.com/x.tif?sig=1"]
    times = ["2024-05-01", "2024-06-01T10:00:00Z", None, None]
    path = write_index(library / name, {"location": locations, "datetime": times, "cloud_cover": [3.0, 40.5, None, None]})
    scenes = scenes_of(str(path), SourceOptions())
    assert [scene.address for scene in scenes[:3]] == [str(library / part) for part in ("b.tif", "north/c.tif", "a.TIFF")]
    assert scenes[3].address == locations[3]
    assert not any(scene.is_typed for scene in scenes)
    assert [scene.datetime and scene.datetime[:10] for scene in scenes] == ["2024-05-01", "2024-06-01", None, None]
    assert [scene.cloud_cover for scene in scenes] == [3.0, 40.5, None, None]
    assert open_scenes(scenes[:3], SourceOptions(prefer="newest"), gsd=0.3, core=CORE).origins()[0].name == "c.tif"


@pytest.mark.parametrize("name", [*INDEXES, "index.parquet"])
def test_a_tile_index_leads_nowhere_else(name: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(library)
    secret = write(tmp_path / "secret.tif", pattern(20, 20))
    (library / "link.tif").symlink_to(secret)
    for bad in (
        "../secret.tif",
        str(secret),
        "link.tif",
        "/vsicurl/http://127.0.0.1/x",
        "file:///etc/passwd",
        "<VRTDataset/>",
    ):
        path = write_index(library / name, {"location": ["b.tif", bad]})
        with pytest.raises(SafetyError, match="refused"):
            scenes_of(str(path), SourceOptions())
    for bad, why in (({"location": ["gone.tif"]}, "neither beside it"), ({"name": ["b.tif"]}, "location")):
        with pytest.raises(SourceError, match=why):
            scenes_of(str(write_index(library / name, bad)), SourceOptions())
    path = write_index(library / name, {"location": ["b.tif", "gone.tif"]})
    source = open_source([str(path)], SourceOptions(on_error="skip"), gsd=0.5, core=32)
    assert source.remarks == (f"left out: {library / 'gone.tif'}: no such file",)


def test_a_tile_index_that_is_none_gets_one_line(library: Path) -> None:
    for content, error, why in (
        (b"<GDALTileIndexDataset/>", SafetyError, "XML can point at other files"),
        (b"", SourceError, "not a tile index"),
        (b"SQLite format 3\x00garbage", SourceError, "GeoPackage"),
        (b"PAR1garbagePAR1", SourceError, "Parquet"),
        (b'{"type": "Feature"}', SourceError, "FeatureCollection"),
        (b'{"features": []}', SourceError, "without a raster"),
    ):
        path = library / "index.gpkg"
        path.write_bytes(content)
        with pytest.raises(error, match=why):
            scenes_of(str(path), SourceOptions())


# ---------------------------------------------------------------- VRT


def vrt(folder: Path, files: Sequence[str], change: Callable[[str], str] = lambda text: text, name: str = "all.vrt") -> Path:
    """What gdalbuildvrt writes for some files of a folder."""
    sizes = []
    for file in files:
        with rasterio.open(folder / file) as dataset:
            sizes.append((dataset.bounds, dataset.width, dataset.height))
    left, top = min(b.left for b, _, _ in sizes), max(b.top for b, _, _ in sizes)
    right, bottom = max(b.right for b, _, _ in sizes), min(b.bottom for b, _, _ in sizes)
    bands = ""
    for band, colour in enumerate(("Red", "Green", "Blue"), 1):
        sources = "".join(
            f"""
    <SimpleSource>
      <SourceFilename relativeToVRT="1">{file}</SourceFilename>
      <SourceBand>{band}</SourceBand>
      <SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="Byte" BlockXSize="{width}" BlockYSize="8" />
      <SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}" />
      <DstRect xOff="{(bounds.left - left) / 0.5:g}" yOff="{(top - bounds.top) / 0.5:g}" xSize="{width}" ySize="{height}" />
    </SimpleSource>"""
            for file, (bounds, width, height) in zip(files, sizes, strict=True)
        )
        bands += f"""
  <VRTRasterBand dataType="Byte" band="{band}">
    <ColorInterp>{colour}</ColorInterp>{sources}
  </VRTRasterBand>"""
    text = f"""<VRTDataset rasterXSize="{round((right - left) / 0.5)}" rasterYSize="{round((top - bottom) / 0.5)}">
  <SRS dataAxisToSRSAxisMapping="1,2">EPSG:32630</SRS>
  <GeoTransform> {left!r}, 0.5, 0.0, {top!r}, 0.0, -0.5</GeoTransform>{bands}
</VRTDataset>
"""
    (folder / name).write_text(change(text))
    return folder / name


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for number, (row, col) in enumerate(((0, 0), (10, 25), (30, 5))):
        transform = Affine(0.5, 0, X0 + col / 2, 0, -0.5, Y0 - row / 2)
        write(folder / f"{number}.tif", pattern(40, 50, seed=number), "EPSG:32630", transform)
    return folder


FILES = ("0.tif", "1.tif", "2.tif")


def test_a_vrt_is_read_as_gdal_reads_it(tiles: Path) -> None:
    path = vrt(tiles, FILES)
    with pytest.raises(SafetyError, match="--allow-vrt"):
        scenes_of(str(path), SourceOptions())
    source = opened(scenes_of(str(path), SourceOptions(allow_vrt=True)))
    with rasterio.open(path) as dataset:  # the oracle
        pixels, mask = dataset.read(), np.zeros((dataset.height, dataset.width), bool)
        for number in FILES:
            with rasterio.open(tiles / number) as part:
                row, col = dataset.index(part.bounds.left + 0.1, part.bounds.top - 0.1)
                mask[row : row + part.height, col : col + part.width] = True
        window = source.grid.covering(tuple(dataset.bounds))
    image = source.read(window)
    assert np.array_equal(image.valid, mask)
    assert np.array_equal(image.pixels[:, mask], pixels[:, mask])
    swapped = opened(scenes_of(str(vrt(tiles, FILES, lambda t: t.replace("<SourceBand>1<", "<SourceBand>3<"))), VRT))
    assert swapped.rasters[0].file.bands == (3, 2, 3)


VRT = SourceOptions(allow_vrt=True)
SENTINEL = "sentinel-7f3a"
BAD: dict[str, Callable[[str], str]] = {
    "parent": lambda t: t.replace("2.tif", "../outside.tif"),
    "parent and back": lambda t: t.replace("2.tif", "../tiles/2.tif"),
    "absolute": lambda t: t.replace('relativeToVRT="1">2.tif', 'relativeToVRT="0">/etc/passwd'),
    "absolute, said to be relative": lambda t: t.replace("2.tif", "/etc/passwd"),
    "link": lambda t: t.replace("2.tif", "link.tif"),
    "link of a folder": lambda t: t.replace("2.tif", "linked/outside.tif"),
    "curl": lambda t: t.replace("2.tif", "/vsicurl/http://127.0.0.1:1/x.tif"),
    "url": lambda t: t.replace("2.tif", "http://127.0.0.1:1/x.tif"),
    "driver": lambda t: t.replace("2.tif", "GTIFF_DIR:1:2.tif"),
    "inline": lambda t: t.replace("2.tif", "&lt;VRTDataset/&gt;"),
    "nested": lambda t: t.replace("2.tif", "inner.vrt"),
    "disguised": lambda t: t.replace("2.tif", "disguised.tif"),
    "lookup table": lambda t: t.replace("SimpleSource", "ComplexSource").replace(
        "<SourceBand>", "<LUT>0:255,255:0</LUT><SourceBand>"
    ),
    "scaled": lambda t: t.replace("SimpleSource", "ComplexSource").replace(
        "<SourceBand>", "<ScaleRatio>2</ScaleRatio><SourceBand>"
    ),
    "function": lambda t: t.replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"'),
    "python": lambda t: t.replace("<ColorInterp>", "<PixelFunctionCode>import os</PixelFunctionCode><ColorInterp>", 1),
    "warped": lambda t: t.replace("<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" '),
    "options": lambda t: t.replace("<SourceBand>", '<OpenOptions><OOI key="X">Y</OOI></OpenOptions><SourceBand>'),
    "raw": lambda t: t.replace('band="1"', 'band="1" subClass="VRTRawRasterBand"'),
    "entity": lambda t: '<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]>' + t,
    "another document": lambda _: "<GDAL_WMS/>",
    "tile index": lambda _: "<GDALTileIndexDataset/>",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_vrt_that_does_more_than_place_its_files_is_refused(kind: str, tiles: Path) -> None:
    """Rows 58 and 59; also where VRTs are allowed. Nothing of what it points at comes out."""
    outside = tiles.parent / "outside.tif"
    write(outside, pattern(40, 50), tags={"NOTE": SENTINEL})
    (tiles / "link.tif").symlink_to(outside)
    (tiles / "linked").symlink_to(tiles.parent)
    vrt(tiles, FILES, name="inner.vrt")
    vrt(tiles, FILES, name="disguised.tif")
    path = vrt(tiles, FILES, BAD[kind])
    with pytest.raises(SafetyError, match="refused") as caught:
        opened(scenes_of(str(path), VRT))
    assert SENTINEL not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda t: t.replace('xSize="50" ySize="40" />\n    </', 'xSize="25" ySize="20" />\n    </'),
            "changes the pixel size",
        ),
        (lambda t: t.replace('xOff="0" yOff="0" xSize="50"', 'xOff="5" yOff="0" xSize="45"'), "a part of"),
        (lambda t: t.replace("<GeoTransform> 7", "<GeoTransform> 6"), "georeference"),
        (lambda t: t.replace("EPSG:32630", "EPSG:32631"), "EPSG:32631"),
        (lambda t: t.replace("2.tif", "gone.tif"), "no such file"),
        (lambda t: t[:-20], "not a VRT that can be read"),
        (lambda _: "<VRTDataset/>", "without a file"),
    ],
)
def test_a_vrt_that_is_not_what_its_files_are_gets_one_line(change: Callable[[str], str], why: str, tiles: Path) -> None:
    with pytest.raises(SourceError, match=why):
        scenes_of(str(vrt(tiles, FILES, change)), VRT)


@pytest.mark.parametrize("text", ["<VRTDataset/>", "  \n<GDAL_WMS/>", "<GDALTileIndexDataset/>"])
def test_xml_named_tif_is_refused(text: str, tmp_path: Path) -> None:
    """Row 58: by content, not by name; and as the path itself."""
    (tmp_path / "scene.tif").write_text(text)
    for address in (str(tmp_path / "scene.tif"), text):
        with pytest.raises(SafetyError, match="refused"):
            opened([Scene(address)])


@pytest.mark.parametrize(
    "options", [SourceOptions(search=Search(assets=("visual",))), SourceOptions(service=Service(zoom=18))]
)
def test_settings_that_act_on_nothing_are_an_error(tmp_path: Path, options: SourceOptions) -> None:
    with pytest.raises(ConfigError, match=r"act on (STAC|map tiles)"):
        find([str(tmp_path / "a.tif")], options)
