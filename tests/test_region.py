"""Regions: which pixels a box or a polygon asks for, and what is not a region."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from geoinfer.errors import ConfigError, RegionError, SafetyError, SourceError
from geoinfer.grid import Grid, Window
from geoinfer.region import GridRegion, Region, region_on

UTM = CRS.from_epsg(32630)
GRID = Grid(UTM, Affine(1.0, 0, 700_000.0, 0, -1.0, 620_000.0), 100, 120)

coordinates = st.tuples(st.floats(-30, 150), st.floats(-30, 130))
corners = st.lists(coordinates, min_size=3, max_size=9)


def polygon(points: list[tuple[float, float]]) -> shapely.Geometry:
    """A valid polygon, maybe in parts, of any ring; pixel coordinates become metres."""
    ring = [(700_000.0 + x, 620_000.0 - y) for x, y in points]
    return shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)


def asked(region: GridRegion, window: Window) -> np.ndarray:
    mask = region.mask(window)
    return np.ones((window.height, window.width), bool) if mask is None else mask


@given(corners, st.integers(0, 90), st.integers(0, 110), st.integers(1, 40), st.integers(1, 40))
def test_a_mask_does_not_depend_on_the_window(points: list, row: int, col: int, height: int, width: int) -> None:
    shape = polygon(points)
    if shape.intersection(shapely.box(*GRID.bounds())).area <= 0:
        return
    region = region_on(Region(shape, UTM), GRID)
    big, small = Window(-10, -10, 150, 170), Window(row, col, height, width)
    whole = asked(region, big)
    part = asked(region, small)
    assert np.array_equal(part, whole[row + 10 : row + 10 + height, col + 10 : col + 10 + width])
    assert region.touches(small) == part.any()


@given(corners)
def test_a_mask_is_the_pixels_whose_centre_lies_inside(points: list) -> None:
    shape = polygon(points)
    if shape.intersection(shapely.box(*GRID.bounds())).area <= 0:
        return
    region = region_on(Region(shape, UTM), GRID)
    rows, cols = np.mgrid[0:100, 0:120]
    x, y = 700_000.5 + cols, 619_999.5 - rows
    mask = asked(region, GRID.window)
    clear = shapely.distance(shape.boundary, shapely.points(x, y)) > 1e-6
    assert np.array_equal(mask[clear], shapely.contains_xy(shape, x, y)[clear])
    outside = np.ones(mask.shape, bool)
    w = region.window
    outside[w.row : w.stop_row, w.col : w.stop_col] = False
    assert not (mask & outside).any()


@given(st.integers(1, 99), st.integers(1, 119))
def test_regions_that_share_an_edge_share_no_pixel_and_leave_none_out(row: int, col: int) -> None:
    """Edges through pixel centres, the hard case."""
    left, top, x, y = 700_000.0, 620_000.0, 700_000.5 + col, 619_999.5 - row
    boxes = [(left, y, x, top), (x, y, left + 120, top), (left, top - 100, x, y), (x, top - 100, left + 120, y)]
    masks = [asked(region_on(Region.from_bbox(box, UTM), GRID), GRID.window) for box in boxes]
    assert np.array_equal(sum(mask.astype(int) for mask in masks), np.ones((100, 120), int))


def test_holes_and_parts_are_kept() -> None:
    ring = shapely.box(700_010, 619_910, 700_050, 619_990).difference(shapely.box(700_020, 619_920, 700_030, 619_930))
    region = region_on(Region(shapely.union(ring, shapely.box(700_100, 619_901, 700_102, 619_903)), UTM), GRID)
    mask = asked(region, GRID.window)
    assert mask.sum() == 40 * 80 - 100 + 4
    assert not mask[75, 25]


def test_without_a_region_all_imagery_is_asked_for() -> None:
    region = region_on(None, GRID, (700_010.0, 619_950.0, 700_030.0, 619_980.0))
    assert region.window == Window(20, 10, 30, 20)
    assert region.covers == 1.0
    assert region.mask(region.window) is None
    assert region.touches(Window(0, 0, 21, 11))
    assert not region.touches(Window(0, 0, 20, 120))
    assert asked(region, GRID.window).sum() == 600
    same = region_on(Region.whole(GRID), GRID)
    assert same.window == GRID.window
    assert same.mask(GRID.window) is None


def test_a_box_in_degrees_follows_its_parallels() -> None:
    """Wide boxes bend: a straight line between projected corners would be off by many pixels."""
    grid = Grid(CRS.from_epsg(32630), Affine(10.0, 0, 300_000.0, 0, -10.0, 6_700_000.0), 5000, 40000)
    region = region_on(Region.from_bbox((-5.5, 60.0, -1.0, 60.3)), grid)
    lon, lat = np.meshgrid(np.linspace(-5.4, -1.1, 60), [59.9995, 60.0005, 60.2995, 60.3005])
    x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat)
    cols, rows = np.floor((x - 300_000) / 10).astype(int), np.floor((6_700_000 - y) / 10).astype(int)
    for i, inside in enumerate((False, True, True, False)):
        for row, col in zip(rows[i], cols[i], strict=True):
            assert region.touches(Window(int(row), int(col), 1, 1)) == inside
    assert pickle.loads(pickle.dumps(region)).window == region.window


def test_a_region_elsewhere_names_both_bounds() -> None:
    with pytest.raises(RegionError, match=r"\(10, 50, 11, 51\) lies outside all imagery \(-1\.19") as caught:
        region_on(Region.from_bbox((10, 50, 11, 51)), GRID)
    assert caught.value.exit_code == 4
    with pytest.raises(RegionError):  # touches only
        region_on(Region.from_bbox((699_900, 619_900, 700_000, 620_000), UTM), GRID)


def test_a_region_partly_outside_says_how_much_is_inside() -> None:
    region = region_on(Region.from_bbox((700_060, 619_900, 700_180, 620_000), UTM), GRID)
    assert region.covers == pytest.approx(0.5)
    assert region.window == Window(0, 60, 100, 60)
    assert region_on(Region.from_bbox((-180, -90, 180, 90)), GRID).window == GRID.window


def test_a_region_smaller_than_a_pixel_is_empty_or_one_pixel() -> None:
    empty = region_on(Region.from_bbox((700_010.6, 619_950.6, 700_010.9, 619_950.9), UTM), GRID)
    assert empty.window.is_empty
    assert not asked(empty, GRID.window).any()
    one = region_on(Region.from_bbox((700_010.4, 619_950.4, 700_010.6, 619_950.6), UTM), GRID)
    assert one.window == Window(49, 10, 1, 1)


@pytest.mark.parametrize(
    "bbox", [(179.99, -17.0, -179.99, -16.98), (179.99, -17.0, 180.01, -16.98), (-180.01, -17.0, -179.99, -16.98)]
)
@pytest.mark.parametrize("zone", [32760, 32701])
def test_a_box_across_the_antimeridian_has_both_sides(bbox: tuple[float, ...], zone: int) -> None:
    x, y = Transformer.from_crs("EPSG:4326", zone, always_xy=True).transform(180.0, -16.99)
    left, top = float(np.floor(x / 10) * 10 - 3000), float(np.floor(y / 10) * 10 + 3000)
    grid = Grid(CRS.from_epsg(zone), Affine(10.0, 0, left, 0, -10.0, top), 600, 600)
    region = region_on(Region.from_bbox(bbox), grid)
    area_m2 = asked(region, grid.window).sum() * 100.0
    geod = CRS.from_epsg(4326).get_geod()
    true_m2 = abs(geod.polygon_area_perimeter([179.99, 180.01, 180.01, 179.99], [-17.0, -17.0, -16.98, -16.98])[0])
    assert area_m2 == pytest.approx(true_m2, rel=5e-3)  # UTM's own scale and whole pixels
    assert region.covers == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bbox", "crs", "message"),
    [
        ((1, 5, 2, 4), "EPSG:4326", "miny 5 is not below maxy 4"),
        ((1, 4, 1, 5), "EPSG:4326", "no area"),
        ((1, 4, float("nan"), 5), "EPSG:4326", "finite"),
        ((1, 4, 2), "EPSG:4326", "four numbers"),
        ((1, 4, 2, "x"), "EPSG:4326", "four numbers"),
        ((5, 100, 6, 101), "EPSG:4326", "latitudes"),
        ((700_000, 1, 700_001, 2), "EPSG:4326", "longitudes"),
        ((10, 1, 5, 2), "EPSG:32630", "minx is above maxx"),
        ((1, 4, 2, 5), "EPSG:99999999", "not a coordinate system"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(bbox: tuple, crs: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Region.from_bbox(bbox, crs)


def test_polygon_files_of_all_kinds_ask_for_the_same(tmp_path: Path) -> None:
    x, y = Transformer.from_crs(32630, 4326, always_xy=True).transform(
        [700_020, 700_060, 700_040], [619_920, 619_940, 619_980]
    )
    frame = geopandas.GeoDataFrame(geometry=[shapely.Polygon(list(zip(x, y, strict=True)))], crs=4326)
    frame.to_file(tmp_path / "a.geojson", driver="GeoJSON")
    frame.to_file(tmp_path / "a.gpkg")
    frame.to_file(tmp_path / "a.fgb", driver="FlatGeobuf")
    frame.to_file(tmp_path / "a.shp")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_crs(3857).to_file(tmp_path / "mercator.gpkg")
    masks = [
        asked(region_on(Region.from_file(tmp_path / name), GRID), GRID.window)
        for name in ("a.geojson", "a.gpkg", "a.fgb", "a.shp", "a.parquet", "mercator.gpkg")
    ]
    assert masks[0].sum() == pytest.approx(1000, abs=15)
    assert all((mask != masks[0]).sum() <= 2 for mask in masks)  # GeoJSON has 7 decimals


def test_files_that_are_no_region_are_refused(tmp_path: Path) -> None:
    def refuse(name: str, content: str | bytes, error: type[Exception], message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(error, match=message):
            Region.from_file(path)

    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    refuse("points.geojson", json.dumps(point), SourceError, "no polygon")
    refuse("cut.geojson", '{"type": "FeatureColl', SourceError, "cannot be read|can be read")
    refuse("empty.geojson", "", SourceError, "first bytes")
    refuse("evil.geojson", "<OGRVRTDataSource><OGRVRTLayer/></OGRVRTDataSource>", SafetyError, "XML")
    refuse("cut.gpkg", b"SQLite format 3\x00" + bytes(50), SourceError, "cannot be read")
    refuse("list.geojson", "[1, 2]", SourceError, "can be read")
    with pytest.raises(SourceError, match="No such file"):
        Region.from_file(tmp_path / "missing.geojson")


def test_invalid_polygons_are_repaired(tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(0, 0), (0.001, 0.001), (0.001, 0), (0, 0.001)])
    path = tmp_path / "bow.geojson"
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(bow_tie)}))
    region = Region.from_file(path)
    assert region.geometry.is_valid
    assert region.geometry.area == pytest.approx(0.5e-6)
    assert Region.from_file(path).describe() == region.describe()
