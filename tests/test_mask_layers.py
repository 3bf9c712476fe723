"""Mask layers: what they are, which files they come from, and that preparing them depends on each feature alone."""

from __future__ import annotations

import json
import pickle
import re
import socket
import sqlite3
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, RemoteError, SafetyError, SourceError
from geoinfer.masks import read
from geoinfer.masks.lattice import MAX_EXTENT, MAX_VERTICES
from geoinfer.masks.layer import MaskLayer, open_masks, parse_mask
from geoinfer.masks.prepare import PreparedLayer, prepare
from geoinfer.masks.source import look
from geoinfer.remote import retry
from tests.faultserver import faulty
from tests.s3server import serve_s3

UTM = CRS.from_epsg(32631)
X, Y = 590_000.0, 5_751_000.0
"""Rotterdam, UTM 31 N: upper left of most tests."""
REGION = (X, Y - 4000, X + 4000, Y)
FORMATS = ("gpkg", "geojson", "fgb", "parquet", "shp")


def write(path: Path, shapes: list[Any], crs: Any = UTM, **columns: Any) -> Path:
    """A vector file of the format that its name says."""
    frame = gpd.GeoDataFrame({"kind": ["water"] * len(shapes), **columns}, geometry=shapes, crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path, write_covering_bbox=True)
    elif path.suffix == ".geojson":
        name = None if crs is None else f"urn:ogc:def:crs:EPSG::{CRS.from_user_input(crs).to_epsg()}"
        document = {
            "type": "FeatureCollection",
            "crs": {"type": "name", "properties": {"name": name}},
            **json.loads(frame.to_json()),
        }
        path.write_text(json.dumps(document))
    else:
        frame.to_file(path, engine="pyogrio")
    return path


def ponds(count: int = 40, seed: int = 0) -> list[BaseGeometry]:
    """Small polygons in the region, some with a hole."""
    rng = np.random.default_rng(seed)
    found = []
    for x, y, size in zip(
        rng.uniform(X, X + 3900, count), rng.uniform(Y - 3900, Y, count), rng.uniform(5, 60, count), strict=True
    ):
        pond = shapely.Point(round(x, 2), round(y, 2)).buffer(size, quad_segs=3)
        found.append(pond.difference(shapely.Point(x, y).buffer(size / 3)) if size > 40 else pond)
    return found


def coast(vertices: int = 5000, radius: float = 3000.0, seed: int = 1) -> BaseGeometry:
    """One large polygon with islands as holes."""
    rng = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    reach = radius * (1 + 0.2 * np.sin(5 * turn) + 0.05 * np.sin(41 * turn)) + rng.uniform(-2, 2, vertices)
    shell = np.column_stack([X + 2000 + reach * np.cos(turn), Y - 2000 + reach * np.sin(turn)])
    islands = [
        shapely.Point(X + 2000 + dx, Y - 2000 + dy).buffer(90, quad_segs=20) for dx in (-800, 0, 950) for dy in (-700, 60)
    ]
    return shapely.Polygon(shell).difference(shapely.union_all(islands))


def ready(
    path: Path | str, folder: Path, bounds: tuple[float, ...] = REGION, crs: CRS = UTM, **options: Any
) -> PreparedLayer:
    return prepare(MaskLayer.open(path, name="layer", **options), crs, bounds, folder)  # type: ignore[arg-type]


def everything(layer: PreparedLayer) -> BaseGeometry:
    return shapely.union_all(layer.read((-1e9, -1e9, 1e9, 1e9)).shapes)


def difference_m2(a: BaseGeometry, b: BaseGeometry, within: tuple[float, ...] = REGION) -> float:
    box = shapely.box(*within)
    return float(a.intersection(box).symmetric_difference(b.intersection(box)).area)


# --- a layer as a value -----------------------------------------------------------------------------------------------


def test_a_mask_is_parsed_from_one_text() -> None:
    text = (
        "data/a.gpkg:name=water,action=drop,max_cover=0.4,buffer=2,classes=80+90,column=natural,negative=yes,crs=EPSG:4326"
    )
    assert parse_mask(text) == {
        "path": "data/a.gpkg", "name": "water", "action": "drop", "max_cover": 0.4, "buffer": 2.0, "classes": "80+90",
        "column": "natural", "negative": True, "crs": "EPSG:4326",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("water.gpkg", "water.gpkg", {}),
        ("C:\\maps\\water.gpkg:name=w", "C:\\maps\\water.gpkg", {"name": "w"}),
        ("http://host:8080/a.gpkg", "http://host:8080/a.gpkg", {}),
        ("http://host:8080/a.gpkg:negative=no", "http://host:8080/a.gpkg", {"negative": False}),
        ("https://h/a.gpkg?x=1,y=2:name=w", "https://h/a.gpkg?x=1,y=2", {"name": "w"}),
        ("https://h/a.gpkg?token=a:sig=b:name=w", "https://h/a.gpkg?token=a:sig=b", {"name": "w"}),
        ("a:b.tif:classes=80,crs=EPSG:4326", "a:b.tif", {"classes": "80", "crs": "EPSG:4326"}),
    ],
)
def test_colons_in_paths_and_addresses_are_no_options(text: str, path: str, options: dict[str, object]) -> None:
    assert parse_mask(text) == {"path": path, **options}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.gpkg:nmae=w", "did you mean name"),
        ("a.gpkg:max_cover=lots", "not a number"),
        ("a.gpkg:negative=perhaps", "yes or no"),
        ("a.gpkg:name=w,name=v", "twice"),
        ("a.gpkg:name=", "no value"),
        (":name=w", "no file"),
    ],
)
def test_a_mistake_in_a_mask_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_mask(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Water 1"}, "like 'water_1'"),
        ({"name": "../../x"}, "lower-case"),
        ({"action": "remove"}, "choose of drop"),
        ({"max_cover": 1.5}, "0..1"),
        ({"max_cover": float("nan")}, "finite"),
        ({"action": "skip", "max_cover": 1.0}, "0.99"),
        ({"action": "keep", "max_cover": 1.0}, "everything"),
        ({"buffer": 1e6}, "wider than"),
        ({"crs": "EPSG:0"}, "PROJ"),
        ({"column": "kind"}, "without classes"),
        ({"classes": "water"}, "column="),
        ({"column": "kind", "classes": ""}, "at least one"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "water.gpkg", ponds(2))
    with pytest.raises(ConfigError, match=message):
        MaskLayer.open(path, **options)


@pytest.mark.parametrize(
    ("file", "name", "negative"),
    [
        ("water", "water", True),
        ("sea_10m", "sea_10m", True),
        ("OSM-Water", "osm_water", True),
        ("seaside", "seaside", False),
        ("2020 built up", "layer_2020_built_up", False),
        ("_", "layer", False),
        ("x" * 60, "x" * 31, False),
    ],
)  # fmt: skip
def test_a_layer_is_named_after_its_file(tmp_path: Path, file: str, name: str, negative: bool) -> None:
    layer = MaskLayer.open(write(tmp_path / f"{file}.geojson", ponds(1)))
    assert (layer.name, layer.negative) == (name, negative)


def test_a_layer_is_a_value_and_its_version_is_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "water.fgb", ponds(3))
    layer = MaskLayer.open(path, buffer=2, column="kind", classes=["water", "lake"])
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert hash(layer) == hash(MaskLayer.open(path, buffer=2, column="kind", classes="lake+water"))
    about = layer.describe()
    assert about["file"] == "water.fgb"
    assert str(tmp_path) not in json.dumps(about)
    assert set(about) == {*MaskLayer.__slots__, "file"} - {"source"}
    write(path, ponds(4))
    assert MaskLayer.open(path).version != layer.version


def test_masks_open_from_texts_mappings_and_layers_in_order(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.gpkg", ponds(2)), write(tmp_path / "b.geojson", ponds(2))
    first = MaskLayer.open(a)
    layers = open_masks(
        [first, f"{b}:action=keep", {"file": b, "name": "c", "negative": "yes", "column": "kind", "classes": "x"}]
    )
    assert [layer.name for layer in layers] == ["a", "b", "c"]
    assert layers[2].negative
    with pytest.raises(ConfigError, match="two layers have this name"):
        open_masks([first, str(a)])
    with pytest.raises(ConfigError, match="did you mean action"):
        open_masks([{"file": b, "acton": "drop"}])
    with pytest.raises(ConfigError, match="needs file"):
        open_masks([{"name": "x"}])


# --- formats and systems ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:28992", "EPSG:3857"])
def test_every_format_gives_the_same_pieces(tmp_path: Path, crs: str) -> None:
    shapes = list(gpd.GeoSeries([*ponds(), coast(800)], crs=UTM).to_crs(crs))
    found = {suffix: ready(write(tmp_path / f"w.{suffix}", shapes, crs), tmp_path / suffix) for suffix in FORMATS}
    first = found["gpkg"]
    assert first.features == 41
    for layer in found.values():
        mine, theirs = first.read(REGION), layer.read(REGION)
        assert len(mine.shapes) == len(theirs.shapes)
        # a FlatGeobuf has its features in another order
        mine, theirs = (shapely.normalize(p.shapes[np.lexsort(shapely.bounds(p.shapes).round(3).T)]) for p in (mine, theirs))
        assert shapely.equals_exact(mine, theirs, 1e-6).all()  # GeoJSON is decimal
        assert (layer.features, layer.dropped, layer.pieces) == (first.features, {}, first.pieces)


def test_a_layer_in_another_system_lies_where_it_should(tmp_path: Path) -> None:
    """Against pyproj on densely cut edges; 1 cm for the bulge of edges cut to 200 m."""
    square = shapely.box(4.30, 51.88, 4.36, 51.92)
    layer = ready(write(tmp_path / "w.gpkg", [square], "EPSG:4326"), tmp_path / "out")
    exact = gpd.GeoSeries([shapely.segmentize(square, 1e-5)], crs="EPSG:4326").to_crs(UTM)[0]
    assert everything(layer).intersection(shapely.box(*REGION)).area > 1e6
    assert difference_m2(everything(layer), exact) < 0.01 * 4 * 4000


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_layer_without_a_system_is_an_error_unless_told(tmp_path: Path) -> None:
    for suffix in ("gpkg", "fgb", "parquet", "shp"):
        path = write(tmp_path / f"w.{suffix}", ponds(3), None)
        with pytest.raises(SourceError, match="crs="):
            MaskLayer.open(path)
        layer = prepare(MaskLayer.open(path, crs="EPSG:32631"), UTM, REGION, tmp_path / f"out_{suffix}")
        assert layer.features == 3
    path = tmp_path / "null.geojson"
    path.write_text('{"type": "FeatureCollection", "crs": null, "features": []}')
    with pytest.raises(SourceError, match="crs="):
        MaskLayer.open(path)


def test_a_layer_elsewhere_has_no_pieces_and_says_where_it_is(tmp_path: Path) -> None:
    for suffix in FORMATS:
        path = write(tmp_path / f"w.{suffix}", [shapely.box(30, 10, 31, 11)], "EPSG:4326")
        layer = ready(path, tmp_path / suffix)
        assert (layer.features, layer.pieces, layer.bounds) == (0, 0, None)
        assert layer.source_bounds == pytest.approx((30, 10, 31, 11))
        assert len(layer.read(REGION).shapes) == 0


def test_a_layer_whose_system_cannot_show_the_region_has_no_pieces(tmp_path: Path) -> None:
    north = CRS.from_proj4("+proj=gnom +lat_0=-90 +lon_0=0 +datum=WGS84")
    layer = ready(write(tmp_path / "w.gpkg", [shapely.box(0, 0, 1000, 1000)], north), tmp_path / "out")
    assert layer.pieces == 0


def test_swapped_axes_are_another_place(tmp_path: Path) -> None:
    shapes = list(gpd.GeoSeries(ponds(), crs=UTM).to_crs(4326))
    swapped = [shapely.transform(shape, lambda points: points[:, ::-1]) for shape in shapes]
    layer = ready(write(tmp_path / "w.gpkg", swapped, "EPSG:4326"), tmp_path / "out")
    assert layer.features == 0
    assert layer.source_bounds is not None
    assert layer.source_bounds[0] > 50


def test_several_layers_in_one_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.gpkg"
    frame = gpd.GeoDataFrame(geometry=ponds(2), crs=UTM)
    frame.to_file(path, layer="lakes", engine="pyogrio")
    frame.to_file(path, layer="rivers", engine="pyogrio", mode="a")
    with pytest.raises(SourceError, match=r"2 layers.*lakes, rivers"):
        MaskLayer.open(path)
    gpd.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=UTM).to_file(tmp_path / "p.gpkg", layer="points", engine="pyogrio")
    frame.to_file(tmp_path / "p.gpkg", layer="lakes", engine="pyogrio", mode="a")
    assert ready(tmp_path / "p.gpkg", tmp_path / "out").features == 2


def test_points_and_lines_are_no_layer(tmp_path: Path) -> None:
    for suffix in ("gpkg", "parquet", "shp", "fgb"):
        with pytest.raises(SourceError, match="polygons"):
            MaskLayer.open(write(tmp_path / f"p.{suffix}", [shapely.Point(X, Y)]))


@pytest.mark.parametrize("suffix", FORMATS)
def test_classes_select_by_text(tmp_path: Path, suffix: str) -> None:
    shapes = ponds(6)
    path = write(
        tmp_path / f"w.{suffix}", shapes, code=[80, 90, 80, 10, 80, 1], name=["a", "b", "c' OR 1=1", None, "b", "b"]
    )
    assert ready(path, tmp_path / "1", column="code", classes=80).features == 3
    assert ready(path, tmp_path / "2", column="code", classes="80+90").features == 4
    assert ready(path, tmp_path / "3", column="name", classes=["c' OR 1=1"]).features == 1
    assert ready(path, tmp_path / "4", column="name", classes=["x' OR '1'='1"]).features == 0
    with pytest.raises(SourceError, match="colour"):
        ready(path, tmp_path / "5", column="colour", classes="80")


def test_a_large_file_is_read_by_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "READ_WHOLE", 10)
    shapes = [*ponds(300), *[shapely.affinity.translate(p, 2e5, 2e5) for p in ponds(300, 5)]]
    for suffix in FORMATS:
        path = write(tmp_path / f"w.{suffix}", shapes)
        layer = ready(path, tmp_path / suffix)
        assert (layer.features, layer.pieces) == (300, 300)
        assert difference_m2(everything(layer), shapely.union_all(ponds(300))) < 1e-3


def test_row_groups_far_away_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "READ_WHOLE", 10)
    far = [shapely.affinity.translate(p, 2e5, 2e5) for p in ponds(64, 5)]
    path = tmp_path / "w.parquet"
    gpd.GeoDataFrame(geometry=[*far, *ponds(64)], crs=UTM).to_parquet(path, write_covering_bbox=True, row_group_size=64)
    groups: list[int] = []
    original = read.pq.ParquetFile.iter_batches

    def iterate(self: Any, *args: Any, row_groups: list[int], **options: Any) -> Any:
        groups.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **options)

    monkeypatch.setattr(read.pq.ParquetFile, "iter_batches", iterate)
    layer = ready(path, tmp_path / "out")
    assert groups == [1]
    assert layer.read(REGION).feature.min() >= 64


# --- what a piece is --------------------------------------------------------------------------------------------------


def seas() -> list[BaseGeometry]:
    """In degrees: the world with the town cut out, a bay, ponds."""
    town = shapely.Point(4.33, 51.90).buffer(0.011)
    bay = gpd.GeoSeries([coast(3000)], crs=UTM).to_crs(4326)[0]
    return [shapely.box(-180, -90, 180, 90).difference(town), bay, *gpd.GeoSeries(ponds(), crs=UTM).to_crs(4326)]


@pytest.fixture(scope="module")
def prepared_seas(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, PreparedLayer]:
    folder = tmp_path_factory.mktemp("seas")
    paths = {
        "degrees": write(folder / "seas.gpkg", seas(), "EPSG:4326"),
        "metres": write(folder / "lakes.fgb", [*ponds(200), coast(800)]),
    }
    return {
        (name, buffer): ready(path, folder / f"{name}{buffer}", buffer=buffer)
        for name, path in paths.items()
        for buffer in (0.0, 15.0, 150.0, -15.0)
    }


@given(
    st.floats(0, 3500), st.floats(0, 3500), st.floats(10, 500), st.just(0.0) | st.floats(0, 2000),
    st.just(0.0) | st.floats(0, 2000), st.sampled_from([0.0, 15.0, 150.0, -15.0]), st.sampled_from(["degrees", "metres"]),
)  # fmt: skip
def test_pieces_do_not_depend_on_the_region(
    tmp_path_factory: pytest.TempPathFactory,
    prepared_seas: dict[Any, PreparedLayer],
    x: float, y: float, side: float, left: float, up: float, buffer: float, name: str,
) -> None:  # fmt: skip
    """Bit for bit, and in the same order."""
    whole = prepared_seas[name, buffer]
    box = (X + x, Y - y - side, X + x + side, Y - y)
    bounds = (box[0] - left, box[1] - left / 2, box[2] + up / 3, box[3] + up)
    part = ready(whole.layer.source, tmp_path_factory.mktemp("part"), bounds, buffer=buffer)
    a, b = part.read(box), whole.read(box)
    assert np.array_equal(a.feature, b.feature)
    assert shapely.to_wkb(a.shapes).tolist() == shapely.to_wkb(b.shapes).tolist()


@pytest.mark.parametrize(("crs", "buffer", "away"), [("EPSG:32631", 50.0, 45.0), ("EPSG:4326", 3000.0, 2900.0)])
def test_what_lies_outside_reaches_into_the_region_by_its_buffer(
    tmp_path: Path, crs: str, buffer: float, away: float
) -> None:
    pond = shapely.box(X - away - 50, Y - 900, X - away, Y - 300)
    layer = ready(
        write(tmp_path / "w.fgb", list(gpd.GeoSeries([pond], crs=UTM).to_crs(crs)), crs), tmp_path / "out", buffer=buffer
    )
    exact = pond.buffer(buffer, quad_segs=4)
    assert exact.intersection(shapely.box(*REGION)).area > 600 * (buffer - away) / 2
    assert difference_m2(everything(layer), exact) < 1.0
    assert layer.features == 1


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("buffer", [0.0, 25.0, -25.0])
def test_the_pieces_of_a_feature_are_the_feature(tmp_path: Path, crs: str, buffer: float) -> None:
    """Small, valid, one beside another, and together what buffering the whole would give."""
    whole, bounds = coast(3000), (X - 2500, Y - 6500, X + 6500, Y + 2500)
    path = write(tmp_path / "w.gpkg", list(gpd.GeoSeries([whole], crs=UTM).to_crs(crs)), crs)
    layer = ready(path, tmp_path / "out", bounds, buffer=buffer)
    pieces = layer.read(bounds).shapes
    exact = whole.buffer(buffer, quad_segs=4) if buffer else whole
    assert shapely.is_valid(pieces).all()
    assert shapely.get_num_coordinates(pieces).max() <= MAX_VERTICES
    extent = shapely.bounds(pieces)
    assert (extent[:, 2:] - extent[:, :2]).max() <= MAX_EXTENT
    # there and back through another system moves points by a micrometre
    assert shapely.union_all(pieces).symmetric_difference(exact).area < 1e-6 * exact.area
    assert shapely.area(pieces).sum() == pytest.approx(exact.area, rel=1e-6)


@pytest.mark.parametrize("buffer", [0.0, 30.0, 180.0, -180.0])
def test_a_feature_cut_by_squares_of_its_own_system_is_whole(tmp_path: Path, buffer: float) -> None:
    """Wider than a square of the layer's lattice: neighbourhoods, squares and their seams."""
    lake = shapely.Polygon([(4.10, 51.80), (4.62, 51.83), (4.55, 52.10), (4.31, 51.93), (4.15, 52.05)], [])
    lake = lake.difference(shapely.Point(4.375, 51.875).buffer(0.01))  # an island where four squares meet
    bounds = (560_000.0, 5_735_000.0, 620_000.0, 5_775_000.0)
    layer = ready(write(tmp_path / "w.fgb", [lake], "EPSG:4326"), tmp_path / "out", bounds, buffer=buffer)
    exact = gpd.GeoSeries([shapely.segmentize(lake, 1e-4)], crs="EPSG:4326").to_crs(UTM)[0].buffer(buffer, quad_segs=4)
    pieces = layer.read(bounds).shapes
    assert len(pieces) > 30
    # no gap along the squares but of rounding: the island is the only hole
    holes = [shapely.Polygon(ring) for part in shapely.get_parts(shapely.union_all(pieces)) for ring in part.interiors]
    assert sum(hole.area > 1e-3 for hole in holes) == shapely.get_num_interior_rings(exact)
    # edges are cut to about 200 m: up to 2 mm along 120 km of shore
    assert shapely.union_all(pieces).symmetric_difference(exact).area < 0.002 * exact.length
    assert shapely.area(pieces).sum() - shapely.union_all(pieces).area < 1e-3


def test_the_world_but_for_a_town_is_a_layer(tmp_path: Path) -> None:
    town = shapely.Point(4.33, 51.90).buffer(0.011)
    layer = ready(write(tmp_path / "w.geojson", [seas()[0]], "EPSG:4326"), tmp_path / "out")
    outline = gpd.GeoSeries([shapely.segmentize(town, 1e-5)], crs="EPSG:4326").to_crs(UTM)[0]
    dry = shapely.box(*REGION).difference(everything(layer))
    assert difference_m2(dry, outline) < 1.0
    assert layer.dropped == {}


@pytest.mark.parametrize(("zone", "lon"), [(32701, -179.9), (32760, 179.9)])
def test_a_layer_goes_across_the_antimeridian(tmp_path: Path, zone: int, lon: float) -> None:
    """Written in two halves, with longitudes beyond 180, and beyond -180."""
    crs = CRS.from_epsg(zone)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, -17.0)
    bounds = (x - 30_000, y - 5000, x + 30_000, y + 5000)
    halves = shapely.MultiPolygon([shapely.box(179.8, -17.02, 180, -16.98), shapely.box(-180, -17.02, -179.8, -16.98)])
    east, west = shapely.box(179.8, -17.02, 180.2, -16.98), shapely.box(-180.2, -17.02, -179.8, -16.98)
    area = [
        everything(ready(write(tmp_path / f"{name}.gpkg", [shape], "EPSG:4326"), tmp_path / name, bounds, crs)).area
        for name, shape in (("halves", halves), ("east", east), ("west", west))
    ]
    assert area[0] > 1.8e8
    assert area == pytest.approx([area[0]] * 3, rel=1e-6)


def test_a_sea_that_meets_the_region_on_both_sides_of_the_world_is_one_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "READ_WHOLE", 0)
    crs = CRS.from_epsg(32701)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(180.0, -17.0)
    bounds = (x - 30_000, y - 5000, x + 30_000, y + 5000)
    layer = ready(write(tmp_path / "w.fgb", [shapely.box(-180, -80, 180, 80)], "EPSG:4326"), tmp_path / "out", bounds, crs)
    pieces = layer.read(bounds).shapes
    assert layer.features == 1
    assert shapely.area(pieces).sum() == pytest.approx(shapely.union_all(pieces).area)
    assert shapely.union_all(pieces).intersection(shapely.box(*bounds)).area == pytest.approx(6e8)


def test_read_gives_what_meets_a_box_from_many_threads(tmp_path: Path) -> None:
    layer = ready(write(tmp_path / "w.gpkg", [*ponds(200), coast(4000)]), tmp_path / "out")
    pieces = layer.read(REGION)
    assert (np.diff(pieces.feature) >= 0).all()
    boxes = [(X + 37.0 * i, Y - 90.0 * i - 200, X + 37.0 * i + 150, Y - 90.0 * i) for i in range(40)]
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, layer.read(boxes[i]))) for i in range(len(boxes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, box in enumerate(boxes):
        expected = pieces.shapes[shapely.intersects(pieces.shapes, shapely.box(*box))]
        assert shapely.to_wkb(found[i].shapes).tolist() == shapely.to_wkb(expected).tolist()


# --- prepared once ----------------------------------------------------------------------------------------------------


def test_a_prepared_layer_is_used_again_and_made_anew_when_anything_differs(tmp_path: Path) -> None:
    path, out = write(tmp_path / "w.gpkg", ponds()), tmp_path / "out"
    first = ready(path, out)
    stamp = first.path.stat().st_mtime_ns
    again = ready(path, out, action="flag")
    assert again.path.stat().st_mtime_ns == stamp
    assert (again.pieces, again.bounds, again.source_bounds, again.dropped) == (
        first.pieces, first.bounds, first.source_bounds, first.dropped,
    )  # fmt: skip
    assert again.layer.action == "flag"
    assert pickle.loads(pickle.dumps(again)) == again
    for change in ({"buffer": 1.0}, {"bounds": (X, Y - 4000, X + 4001, Y)}, {"crs": CRS.from_epsg(32632)}):
        stamp = first.path.stat().st_mtime_ns
        ready(path, out, **change)  # type: ignore[arg-type]
        assert first.path.stat().st_mtime_ns != stamp
    write(path, ponds(41))
    assert ready(path, out).features == 41
    first.path.write_bytes(first.path.read_bytes()[:-100])
    assert len(ready(path, out).read(REGION).shapes) == 41


def test_a_failed_preparation_leaves_nothing_that_looks_ready(tmp_path: Path) -> None:
    path, out = write(tmp_path / "w.geojson", ponds()), tmp_path / "out"
    ready(path, out)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(SourceError, match="breaks off"):
        ready(path, out)
    assert not (out / "layer.json").exists()
    assert sorted(p.name for p in out.iterdir()) == ["layer.fgb"]


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    layer = MaskLayer.open(write(tmp_path / "w.gpkg", ponds(3)))
    write(tmp_path / "w.gpkg", ponds(4))
    with pytest.raises(SourceError, match="changed since"):
        prepare(layer, UTM, REGION, tmp_path / "out")


# --- bad features -----------------------------------------------------------------------------------------------------


def bad_features() -> dict[str, Any]:
    def ring(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(X + x, Y - y) for x, y in points]

    square = ring((100, 100), (200, 100), (200, 200), (100, 200), (100, 100))
    return {
        "good": shapely.Polygon(square),
        "height": shapely.force_3d(shapely.Polygon(square), 7.0),
        "repeated": shapely.Polygon([p for p in square for _ in range(3)]),
        "bow-tie": shapely.Polygon(ring((300, 300), (400, 400), (400, 300), (300, 400), (300, 300))),
        "hole outside": shapely.Polygon(square, [ring((500, 500), (510, 500), (510, 510), (500, 500))]),
        "mixed": shapely.GeometryCollection([shapely.Point(X, Y), shapely.Polygon(square), shapely.LineString(square)]),
        "overlapping parts": shapely.MultiPolygon([shapely.Polygon(square), shapely.Polygon(square).buffer(5)]),
        "null": None,
        "empty": shapely.Polygon(),
        "point": shapely.Point(X + 5, Y - 5),
        "line": shapely.LineString(square),
        "no number": shapely.Polygon([(X, Y), (X + 9, Y), (np.nan, Y - 9), (X, Y)]),
        "flat": shapely.Polygon(ring((600, 600), (700, 700), (600, 600))),
    }


@pytest.mark.parametrize("suffix", ["gpkg", "parquet", "fgb"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*geometry types:UserWarning")
def test_bad_features_are_repaired_or_counted(tmp_path: Path, suffix: str) -> None:
    features = bad_features()
    path = tmp_path / f"w.{suffix}"
    frame = gpd.GeoDataFrame({"k": list(features)}, geometry=list(features.values()), crs=UTM)
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        table = pa.table(
            {"k": pa.array(frame["k"]), "geometry": pa.array([None if g is None else g.wkb for g in frame.geometry])}
        )
        pyogrio.write_arrow(
            table, path, driver={"gpkg": "GPKG", "fgb": "FlatGeobuf"}[suffix], geometry_name="geometry",
            geometry_type="Unknown", crs="EPSG:32631", layer_options={"SPATIAL_INDEX": "NO"},
        )  # fmt: skip
    layer = ready(path, tmp_path / "out")
    # FlatGeobuf and GeoPackage may write an empty geometry as a null one
    assert sum(layer.dropped.get(reason, 0) for reason in ("null", "empty")) == 2
    assert {reason: count for reason, count in layer.dropped.items() if reason not in ("null", "empty")} == {
        "not_polygon": 2, "not_finite": 1, "no_area": 1,
    }  # fmt: skip
    assert layer.repaired == 4
    pieces = layer.read(REGION)
    assert shapely.is_valid(pieces.shapes).all()
    names = list(features)
    first = 1 if suffix == "gpkg" else 0
    areas = {name: shapely.area(pieces.shapes[pieces.feature == names.index(name) + first]).sum() for name in names}
    assert areas["good"] == areas["height"] == areas["repeated"] == areas["mixed"] == 10_000
    assert areas["hole outside"] == pytest.approx(10_050)
    assert areas["bow-tie"] == pytest.approx(5000)
    assert areas["overlapping parts"] == pytest.approx(features["overlapping parts"].geoms[1].area)


def test_curves_are_counted(tmp_path: Path) -> None:
    points = [(X, Y), (X + 10, Y - 10), (X + 20, Y), (X + 10, Y + 10), (X, Y)]
    arc = struct.pack("<BII", 1, 8, 5) + b"".join(struct.pack("<dd", *p) for p in points)
    disc = struct.pack("<BII", 1, 10, 1) + arc
    hidden = struct.pack("<BII", 1, 7, 1) + disc
    table = pa.table({"geometry": pa.array([disc, ponds(1)[0].wkb, hidden], pa.binary())})
    path = tmp_path / "w.gpkg"
    pyogrio.write_arrow(table, path, driver="GPKG", geometry_name="geometry", geometry_type="Unknown", crs="EPSG:32631")
    layer = ready(path, tmp_path / "out")
    assert layer.dropped == {"curved": 2}
    assert layer.pieces == 1


def test_bad_features_of_a_geojson_are_counted(tmp_path: Path) -> None:
    square = "[[[4.33, 51.89], [4.34, 51.89], [4.34, 51.895], [4.33, 51.89]]]"
    geometries = [
        f'{{"type": "Polygon", "coordinates": {square}}}',
        "null",
        '{"type": "Polygon", "coordinates": []}',
        '{"type": "Polygon", "coordinates": [[[4.33, 51.89], [4.34, 51.89], [4.34, 51.895], [4.33, 51.895]]]}',  # not closed
        '{"type": "Polygon", "coordinates": [[[4.33, 51.89], [4.34, null], [4.34, 51.895], [4.33, 51.89]]]}',
        '{"type": "Polygon", "coordinates": [[[4.33, 51.89], [4.34, NaN], [4.34, 51.895], [4.33, 51.89]]]}',
        '{"type": "Point", "coordinates": [4.33, 51.89]}',
        '{"type": "Nothing", "coordinates": [4.33, 51.89]}',
    ]
    features = ", ".join(f'{{"type": "Feature", "properties": null, "geometry": {geometry}}}' for geometry in geometries)
    path = tmp_path / "w.geojson"
    path.write_text(f'{{"features": [{features}], "type": "FeatureCollection"}}')
    layer = ready(path, tmp_path / "out")
    assert layer.dropped == {"null": 1, "empty": 1, "malformed": 4, "not_polygon": 1}
    assert layer.pieces == 1


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.99, 0.9999])
def test_a_file_that_is_cut_off_is_said_before_any_inference(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path / f"w.{suffix}", ponds(2000))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SourceError) as caught:
        ready(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault
@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet", "shp"])
def test_a_file_that_is_cut_off_elsewhere_is_said_too(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only a corner of the file is read, its driver may not notice."""
    monkeypatch.setattr(read, "READ_WHOLE", 10)
    path = write(tmp_path / f"w.{suffix}", ponds(2000))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.95)])
    with pytest.raises(SourceError):
        ready(path, tmp_path / "out", (X, Y - 100, X + 100, Y))


@pytest.mark.fault
@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet"])
def test_a_hole_in_a_file_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"w.{suffix}", ponds(5000))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    path.write_bytes(content)
    with pytest.raises(SourceError):
        ready(path, tmp_path / "out")


@pytest.mark.fault
def test_an_unfinished_geopackage_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.gpkg", ponds(3))
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE note (text)")
    database.commit()
    assert Path(f"{path}-wal").stat().st_size
    with pytest.raises(SourceError, match="still writing"):
        MaskLayer.open(path)
    database.close()


def test_a_file_without_features_is_a_layer_without_pieces(tmp_path: Path) -> None:
    for suffix in ("gpkg", "fgb", "parquet", "geojson"):
        path = tmp_path / f"w.{suffix}"
        frame = gpd.GeoDataFrame({"k": np.zeros(0)}, geometry=gpd.GeoSeries([], crs=UTM))
        if suffix == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_file(path, engine="pyogrio", geometry_type="Polygon")
        layer = ready(path, tmp_path / suffix)
        assert (layer.features, layer.pieces) == (0, 0)
        assert len(layer.read(REGION).shapes) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "Topology", "objects": {}}', "Topology"),
        ('{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline"}', "gdal_streamed_alg"),
        ('{"type": "FeatureCollection"}', "FeatureCollection"),
        ('{"features": []}', "None"),
        ('{"type": "FeatureCollection", "features": [{"type": "Polygon", "coordinates": []}]}', "no Feature"),
        ('{"type": "Feature", "geometry": null}\n{"type": "Feature", "geometry": null}', "one JSON text a line"),
        (
            '{"type": "FeatureCollection", "features": [], "crs": {"type": "name", "properties": {"name": "EPSG:3857"}}}',
            "before",
        ),
        (
            '{"type": "FeatureCollection", "crs": {"type": "link", "properties": {"href": "http://x"}}, "features": []}',
            "link",
        ),
        ('{"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": "EPSG:0"}}, "features": []}', "PROJ"),
        ('{"type": "FeatureCollection", "features": [' + "[" * 100_000, "GeoJSON"),
    ],
)
def test_what_is_not_geojson_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.geojson"
    path.write_text(text)
    with pytest.raises(SourceError, match=re.escape(message)):
        ready(path, tmp_path / "out")


@given(st.integers(1, 200), st.booleans())
def test_geojson_is_read_whatever_the_pieces_it_comes_in(chunk: int, bom: bool) -> None:
    import io

    from geoinfer.masks import geojson

    text = (
        '{"name": "è€𝄞", "count": 1234567, "features": [ {"type": "Feature", "properties": {"a": "}]é\\"𝄞"}, "geometry": {'
    )
    text += '"type": "Point", "coordinates": [1.5, 2]}} , {"type":"Feature","properties":{"a":12345},"geometry":null}\n], '
    text += '"type": "FeatureCollection"}'
    content = text.encode("utf-8-sig" if bom else "utf-8")

    class Slow(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(chunk, count or chunk))

    found = list(geojson.read_features(Slow(content), "x"))
    assert [feature.properties["a"] for feature in found] == ['}]é"𝄞', 12345]
    assert [feature.has_geometry for feature in found] == [True, False]


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.gpkg", "w.fgb", "w.geojson", "w.shp", "w.parquet", "w.tif"])
def test_xml_under_any_name_is_refused(tmp_path: Path, name: str) -> None:
    secret = write(tmp_path / "secret.gpkg", ponds(1))
    path = tmp_path / name
    path.write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    )
    with pytest.raises(SafetyError, match="XML"):
        MaskLayer.open(path)


@pytest.mark.parametrize(
    "text",
    ["/vsicurl/http://x/a.gpkg", "/vsizip/a.zip/a.gpkg", "<OGRVRTDataSource/>", "file:///etc/passwd", "ftp://x/a.gpkg",
     "PG:dbname=x", "GPKG:a.gpkg:b", "MEM:", "ftp://host/a.gpkg"],
)  # fmt: skip
def test_driver_prefixes_and_virtual_paths_are_refused(text: str) -> None:
    with pytest.raises(SafetyError):
        MaskLayer.open(text)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    for content, message in (
        (b"", "0 bytes"),
        (b"<!DOCTYPE html>", "web page"),
        (b"PK\x03\x04", "archive"),
        (b"x,y\n1,2\n", "first bytes"),
        (b"[1, 2]", "first bytes"),
    ):
        path = tmp_path / "w.gpkg"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=message):
            MaskLayer.open(path)
    with pytest.raises(SourceError, match="no such file"):
        MaskLayer.open(tmp_path / "none.gpkg")
    with pytest.raises(SourceError, match="directory"):
        MaskLayer.open(tmp_path)
    path = tmp_path / "s.gpkg"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE a (b)")
    database.close()
    with pytest.raises(SourceError, match="no GeoPackage"):
        MaskLayer.open(path)


def test_a_bomb_of_a_raster_is_refused(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    path = write_raster("w.tif", np.zeros((1, 64, 20_000), np.uint8), compress="deflate", blockysize=64)
    content = path.read_bytes()
    tag = struct.pack("<HHI", 257, 3, 1)
    place = content.index(tag) + 8
    rows = content.index(struct.pack("<HHI", 278, 3, 1)) + 8
    patched = bytearray(content)
    patched[place : place + 2] = patched[rows : rows + 2] = struct.pack("<H", 60_000)
    path.write_bytes(patched)
    with pytest.raises(SafetyError, match="block"):
        MaskLayer.open(path)


# --- rasters ----------------------------------------------------------------------------------------------------------


def landcover(height: int = 700, width: int = 900, seed: int = 3) -> np.ndarray:
    """Classes 10, 50, 80 and 0, in patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 10, 50, 80, 80], (-(-height // 23), -(-width // 23)))
    fine = np.kron(coarse, np.ones((23, 23), int))[:height, :width]
    spots = rng.random((height, width)) < 0.01
    return np.where(spots, 80, fine).astype(np.uint8)


def write_classes(
    path: Path, pixels: np.ndarray, crs: str = "EPSG:32631", transform: Affine | None = None, **options: Any
) -> Path:
    transform = transform or Affine(10, 0, X, 0, -10, Y)
    height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=height,
        width=width,
        dtype=pixels.dtype,
        crs=crs,
        transform=transform,
        **options,
    ) as file:
        file.write(pixels, 1)
    return path


def outlines(mask: np.ndarray, transform: Affine) -> BaseGeometry:
    """GDAL's own polygons of a mask: the oracle."""
    import rasterio.features

    shapes = [
        shapely.geometry.shape(shape)
        for shape, value in rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=transform)
        if value
    ]
    return shapely.union_all(shapely.make_valid(shapes))


@pytest.mark.parametrize("gsd", [10.0, 1.0])
@pytest.mark.parametrize(("classes", "values"), [("80", (80,)), ("80+50", (50, 80)), (None, (10, 50, 80))])
def test_a_raster_layer_equals_its_polygons(
    tmp_path: Path, classes: str | None, values: tuple[int, ...], gsd: float
) -> None:
    pixels, transform = landcover(), Affine(gsd, 0, X, 0, -gsd, Y)
    path = write_classes(tmp_path / "cover.tif", pixels, transform=transform)
    bounds = (X, Y - 700 * gsd, X + 900 * gsd, Y)
    layer = ready(path, tmp_path / "out", bounds, classes=classes)
    exact = outlines(np.isin(pixels, values), transform)
    assert difference_m2(everything(layer), exact, bounds) < 1e-3
    pieces = layer.read(bounds).shapes
    assert shapely.is_valid(pieces).all()
    assert shapely.area(pieces).sum() == pytest.approx(np.isin(pixels, values).sum() * gsd**2, rel=1e-9)
    assert layer.layer.kind == "raster"
    assert layer.source_bounds == bounds


@pytest.mark.parametrize("buffer", [25.0, -12.0])
def test_a_buffered_raster_layer_is_buffered_as_one(tmp_path: Path, buffer: float) -> None:
    pixels, transform = landcover(400, 1200), Affine(10, 0, X, 0, -10, Y)
    pixels[100:370, 150:1100] = 80  # wider than a square and a window: a negative buffer must not open their seams
    within = (X, Y - 4000, X + 12000, Y)
    path = write_classes(tmp_path / "cover.tif", pixels)
    layer = ready(path, tmp_path / "out", within, classes=80, buffer=buffer)
    exact = outlines(pixels == 80, transform).buffer(buffer, quad_segs=4)
    assert difference_m2(everything(layer), exact, within) < 1e-6 * exact.area
    pieces = layer.read(within).shapes
    assert shapely.area(pieces).sum() - shapely.union_all(pieces).area < 1e-3


@given(
    st.floats(0, 8000),
    st.floats(0, 6000),
    st.floats(0, 900),
    st.sampled_from([0.0, 20.0]),
    st.sampled_from(["cover", "degrees"]),
)
def test_a_raster_layer_does_not_depend_on_the_region(
    tmp_path_factory: pytest.TempPathFactory, raster_layers: dict[Any, PreparedLayer], x: float, y: float, more: float,
    buffer: float, name: str,
) -> None:  # fmt: skip
    whole = raster_layers[name, buffer]
    box = (X + x, Y - y - 300, X + x + 300, Y - y)
    bounds = (box[0] - more, box[1] - more / 3, box[2] + more / 2, box[3] + 1)
    part = ready(whole.layer.source, tmp_path_factory.mktemp("part"), bounds, classes=80, buffer=buffer)
    a, b = part.read(box), whole.read(box)
    assert np.array_equal(a.feature, b.feature)
    assert shapely.to_wkb(a.shapes).tolist() == shapely.to_wkb(b.shapes).tolist()


@pytest.fixture(scope="module")
def raster_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, PreparedLayer]:
    folder = tmp_path_factory.mktemp("cover")
    lon, lat = Transformer.from_crs(UTM, 4326, always_xy=True).transform(X, Y)
    paths = {
        "cover": write_classes(folder / "cover.tif", landcover()),
        "degrees": write_classes(folder / "degrees.tif", landcover(), "EPSG:4326", Affine(0.00015, 0, lon, 0, -0.0001, lat)),
    }
    bounds = (X - 1000, Y - 8000, X + 10_000, Y + 100)
    return {
        (name, buffer): ready(path, folder / f"{name}{buffer}", bounds, classes=80, buffer=buffer)
        for name, path in paths.items()
        for buffer in (0.0, 20.0)
    }


def test_nodata_and_zero_are_no_class(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 255], [2, 0, 7]], np.uint8)
    layer = ready(write_classes(tmp_path / "a.tif", pixels, nodata=255), tmp_path / "out")
    assert everything(layer).area == 300
    floats = np.array([[0, 1, np.nan], [2, 0, 7]], np.float32)
    assert everything(ready(write_classes(tmp_path / "b.tif", floats), tmp_path / "out2")).area == 300
    assert everything(ready(write_classes(tmp_path / "b.tif", floats), tmp_path / "out3", classes="0+7")).area == 300


def test_a_raster_that_cannot_be_a_layer_is_refused(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="3 bands"):
        MaskLayer.open(write_raster("rgb.tif"))
    with pytest.raises(SourceError, match="georeference"):
        MaskLayer.open(write_raster("plain.tif", np.ones((1, 9, 9), np.uint8), crs=None))
    path = write_raster("cover.tif", np.ones((1, 9, 9), np.uint8))
    with pytest.raises(ConfigError, match="numbers"):
        MaskLayer.open(path, classes="water")
    with pytest.raises(ConfigError, match="column"):
        MaskLayer.open(path, column="kind", classes="80")
    content = write_classes(tmp_path / "cut.tif", landcover(), compress="deflate").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SourceError, match=r"cut\.tif"):
        ready(tmp_path / "cut.tif", tmp_path / "out", (X, Y - 7000, X + 9000, Y))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*FORMATS, "tif"])
def test_a_layer_from_an_address_equals_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "tif":
        write_classes(path, landcover(), tiled=True, blockxsize=128, blockysize=128)
    else:
        write(path, [*ponds(), coast(500)], "EPSG:32631")
    local = ready(path, tmp_path / "local")
    with faulty(tmp_path) as server:
        for file in tmp_path.iterdir():
            server.fault(f"/moved/{file.name}", redirect=f"/{file.name}")
        layer = ready(server.url(f"/moved/w.{suffix}?sig=secret"), tmp_path / "remote")
    assert layer.layer.version.startswith("etag:")
    assert "secret" not in json.dumps(layer.layer.describe()) + (tmp_path / "remote" / "layer.json").read_text()
    a, b = local.read(REGION), layer.read(REGION)
    assert shapely.to_wkb(a.shapes).tolist() == shapely.to_wkb(b.shapes).tolist()
    assert len(a.shapes)


def test_only_parts_of_a_large_remote_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "READ_WHOLE", 10)
    shapes = [
        shapely.affinity.translate(p, dx * 5000.0, dy * 5000.0)
        for dx in range(10)
        for dy in range(10)
        for p in ponds(300, dx)
    ]
    path = write(tmp_path / "w.fgb", shapes)
    with faulty(tmp_path) as server:
        layer = ready(server.url("/w.fgb"), tmp_path / "out")
        spans = [hit.span for hit in server.hits]
    assert layer.features == 300
    assert all(spans)
    assert sum(span[1] - span[0] for span in spans if span) < path.stat().st_size / 2


def test_a_server_that_is_gone_or_busy_is_worth_another_try_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match="no answer") as caught:
        MaskLayer.open(f"http://127.0.0.1:{port}/w.gpkg?sig=secret")
    assert caught.value.exit_code == 6
    assert "secret" not in str(caught.value)
    with faulty(tmp_path) as server:
        server.fault(status=503)
        with pytest.raises(RemoteError, match="503"):
            MaskLayer.open(server.url("/busy.gpkg"))
        assert len(server.hits) == 3
    write(tmp_path / "w.fgb", ponds(3))
    with faulty(tmp_path) as server:
        layer = MaskLayer.open(server.url("/w.fgb"))
    with pytest.raises(RemoteError):
        prepare(layer, UTM, REGION, tmp_path / "out")


def test_what_a_server_cannot_give_is_said(tmp_path: Path) -> None:
    write(tmp_path / "w.geojson", ponds(2))
    write(tmp_path / "w.fgb", ponds(2))
    with faulty(tmp_path) as server:
        with pytest.raises(SourceError, match="404"):
            MaskLayer.open(server.url("/none.gpkg"))
        server.fault("/to-file.geojson", redirect=f"file://{tmp_path}/w.geojson")
        with pytest.raises(SafetyError, match="no http"):
            MaskLayer.open(server.url("/to-file.geojson"))
        server.fault(no_range=True)
        assert ready(server.url("/w.geojson"), tmp_path / "out").features == 2
        with pytest.raises(SourceError, match="download it first"):
            MaskLayer.open(server.url("/w.fgb"))
        server.heal()
        server.fault(no_etag=True, no_date=True)
        with pytest.raises(SourceError, match="neither ETag"):
            MaskLayer.open(server.url("/w.geojson"))


def test_a_remote_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.parquet", ponds(2))
    with faulty(tmp_path) as server:
        layer = MaskLayer.open(server.url("/w.parquet"))
        write(path, ponds(3))
        with pytest.raises(SourceError, match="changed since"):
            prepare(layer, UTM, REGION, tmp_path / "out")


@settings(max_examples=25, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.floats(-5000, 55_000), st.floats(-5000, 55_000), st.floats(0, 20_000), st.floats(0, 20_000)), max_size=4
    )
)
def test_what_is_fetched_of_a_remote_index_is_enough_for_any_boxes(boxes: list[tuple[float, ...]], grid_file: Path) -> None:
    wanted = np.array([(X + x, Y - 50_000 + y, X + x + w, Y - 50_000 + y + h) for x, y, w, h in boxes]).reshape(-1, 4)
    layer = MaskLayer.open(grid_file)
    local = look(str(grid_file))
    header = read.open_header(local, layer)
    with pytest.MonkeyPatch.context() as patch, faulty(grid_file.parent) as server:
        patch.setattr(read, "READ_WHOLE", 10)
        distant = look(server.url("/" + grid_file.name))
        here, there = ([b for batch in read.read_batches(s, layer, header, wanted) for b in batch.feature.tolist()]
                       for s in (local, distant))  # fmt: skip
    assert here == there
    assert read.open_header(local, layer) == header


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 squares, so that the index has three levels."""
    shapes = [
        shapely.box(X + x * 1500, Y - 50_000 + y * 1500, X + x * 1500 + 500, Y - 50_000 + y * 1500 + 500 + 20 * x)
        for x in range(30)
        for y in range(30)
    ]
    return write(tmp_path_factory.mktemp("grid") / "grid.fgb", shapes)


def test_what_is_fetched_whole_is_fetched_once(tmp_path: Path) -> None:
    path = write(tmp_path / "w.gpkg", ponds(5))
    with faulty(tmp_path) as server:
        layer = ready(server.url("/w.gpkg"), tmp_path / "out")
        assert layer.features == 5
        assert sum(hit.span is not None and hit.span[1] == path.stat().st_size for hit in server.hits) == 1


def test_a_layer_from_an_object_store_equals_the_file(tmp_path: Path) -> None:
    local = ready(write(tmp_path / "w.parquet", ponds(5)), tmp_path / "local")
    with serve_s3({"w.parquet": (tmp_path / "w.parquet").read_bytes()}):
        layer = ready("s3://imagery/w.parquet", tmp_path / "remote")
    assert shapely.to_wkb(local.read(REGION).shapes).tolist() == shapely.to_wkb(layer.read(REGION).shapes).tolist()


@pytest.mark.fault
@pytest.mark.parametrize("suffix", ["tif", "fgb", "parquet", "geojson"])
def test_a_layer_whose_server_stops_half_way_is_a_remote_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.001)
    path = tmp_path / f"w.{suffix}"
    if suffix == "tif":
        write_classes(path, landcover(), tiled=True, blockxsize=128, blockysize=128)
    else:
        write(path, ponds(3))
    with faulty(tmp_path) as server:
        layer = MaskLayer.open(server.url(f"/w.{suffix}"))
        server.fault(status=503, after=1)
        with pytest.raises(RemoteError):
            prepare(layer, UTM, REGION, tmp_path / "out")


# --- real layers ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("place", "zone", "lonlat"),
    [("boston", 32619, (-71.0, 42.35)), ("dubai", 32640, (55.15, 25.1)), ("manila", 32651, (120.95, 14.58)),
     ("zanzibar", 32737, (39.2, -6.15)), ("rotterdam", 32631, (4.05, 51.98))],
)  # fmt: skip
def test_real_seas_are_prepared(
    data_folder: Path, tmp_path: Path, place: str, zone: int, lonlat: tuple[float, float]
) -> None:
    path = data_folder / "water_layers" / f"osm_seas_{place}.geojson"
    crs = CRS.from_epsg(zone)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(*lonlat)
    bounds = (x - 20_000, y - 20_000, x + 20_000, y + 20_000)
    layer = ready(path, tmp_path, bounds, crs)
    frame = gpd.read_file(path, engine="pyogrio")
    exact = shapely.union_all(shapely.segmentize(shapely.make_valid(frame.geometry.to_numpy()), 1e-3))
    exact = gpd.GeoSeries([exact], crs=4326).to_crs(crs)[0]
    assert layer.dropped == {}
    assert difference_m2(everything(layer), exact, bounds) < 1e-6 * shapely.box(*bounds).area
