"""Reading footprints of any origin: the four providers' own files, each format, and what is refused."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from shapely.geometry import Point, Polygon, box

from geoinfer.errors import ConfigError, SafetyError, SourceError
from geoinfer.evaluation.read import read_vector
from geoinfer.evaluation.schemas import SCHEMAS, detect_schema, read_footprints

SQUARES = [box(-0.2 + at / 1000, 5.58, -0.2 + at / 1000 + 1e-4, 5.5801) for at in range(3)]


def frame(**columns: object) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=SQUARES, crs="EPSG:4326")


def feature(shape: Polygon, **properties: object) -> str:
    return json.dumps({"type": "Feature", "properties": properties, "geometry": shapely.geometry.mapping(shape)})


# --- the four providers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compressed", [False, True])
def test_google_csv_has_confidence_area_and_plus_code(tmp_path: Path, is_compressed: bool) -> None:
    table = pd.DataFrame(
        {
            "latitude": 5.58,
            "longitude": -0.2,
            "area_in_meters": [121.5, 80.0, 40.25],
            "confidence": [0.91, 0.72, 0.65],
            "geometry": [shape.wkt for shape in SQUARES],
            "full_plus_code": ["6CQXHRJ2+AA", "6CQXHRJ2+BB", "6CQXHRJ2+CC"],
        }
    )
    path = tmp_path / ("tile.csv.gz" if is_compressed else "tile.csv")
    table.to_csv(path, index=False)
    found = read_footprints(path)
    assert found.schema == "google"
    assert found.frame["id"].tolist() == table["full_plus_code"].tolist()
    assert found.frame["confidence"].tolist() == [0.91, 0.72, 0.65]
    assert found.frame["area_in_meters"].tolist() == [121.5, 80.0, 40.25]
    assert found.frame.crs == "EPSG:4326"
    assert shapely.equals_exact(found.frame.geometry.to_numpy(), SQUARES, 1e-9).all()  # WKT rounds


def test_microsoft_lines_under_the_name_csv_gz_have_an_unknown_confidence_of_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "part.csv.gz"
    lines = [feature(shape, height=-1.0, confidence=score) for shape, score in zip(SQUARES, (0.8, -1.0, 0.6), strict=True)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_footprints(path)
    assert found.schema == "microsoft"
    np.testing.assert_array_equal(found.frame["confidence"], [0.8, np.nan, 0.6])
    assert found.frame.crs == "EPSG:4326"


def test_microsoft_of_the_united_states_has_no_confidence(tmp_path: Path) -> None:
    path = tmp_path / "Ohio.geojson"
    features = ",\n".join(feature(shape, release=1, capture_dates_range="") for shape in SQUARES)
    path.write_text('{"type": "FeatureCollection",\n"features": [\n' + features + "]}")
    found = read_footprints(path)
    assert found.schema == "microsoft"
    assert "confidence" not in found.frame
    assert len(found.frame) == 3


def test_overture_takes_the_confidence_of_its_first_source_that_has_one(tmp_path: Path) -> None:
    sources = [
        [{"property": "", "dataset": "Google Open Buildings", "record_id": None, "confidence": 0.7}],
        [{"property": "", "dataset": "OpenStreetMap", "record_id": "w1@1", "confidence": None}],
        [
            {"property": "", "dataset": "OpenStreetMap", "record_id": "w2@1", "confidence": None},
            {"property": "/properties/height", "dataset": "Microsoft ML Buildings", "record_id": None, "confidence": 0.5},
        ],
    ]
    path = tmp_path / "buildings.parquet"
    frame(id=["08b1", "08b2", "08b3"], version=[1, 1, 2], sources=sources, height=[3.0, None, 4.0]).to_parquet(path)
    found = read_footprints(path)
    assert found.schema == "overture"
    assert found.frame["id"].tolist() == ["08b1", "08b2", "08b3"]
    np.testing.assert_array_equal(found.frame["confidence"], [0.7, np.nan, 0.5])
    assert found.frame["height"].tolist()[0] == 3.0  # other columns stay, to slice by


def test_openstreetmap_keeps_buildings_only_and_says_what_it_left_out(tmp_path: Path) -> None:
    shapes = [*SQUARES, Point(-0.2, 5.58), SQUARES[0]]
    table = gpd.GeoDataFrame(
        {
            "osm_id": ["", None, "12", "13", "14"],
            "osm_way_id": ["7", "8", None, None, None],
            "building": ["yes", "no", "house", "yes", None],
        },
        geometry=shapes,
        crs="EPSG:4326",
    )
    path = tmp_path / "osm.parquet"
    table.to_parquet(path)
    found = read_footprints(path)
    assert found.schema == "osm"
    assert found.frame["id"].tolist() == ["7", "12"]
    assert found.dropped == {"not a polygon": 1, "not a building": 2}
    assert "confidence" not in found.frame


def test_our_own_columns_stay_and_a_schema_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "ours.parquet"
    frame(id=["a", "b", "c"], confidence=[0.5, 0.6, 0.7], area_in_meters=[1.0, 2, 3], truncated=False).to_parquet(path)
    assert read_footprints(path).schema == "geoinfer"
    assert read_footprints(path, "microsoft").frame["confidence"].tolist() == [0.5, 0.6, 0.7]
    with pytest.raises(ConfigError, match="schema 'bing' is unknown; use one of geoinfer, google"):
        read_footprints(path, "bing")


def test_unknown_columns_are_other_and_every_sign_leads_to_its_schema() -> None:
    assert detect_schema(["geometry", "name"]) == "other"
    for name, schema in SCHEMAS.items():
        for signs in schema.signs:
            assert detect_schema(signs) == name


# --- formats, and what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.shp", "a.geojson", "a.parquet"])
def test_every_format_gives_the_same_polygons(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = frame(name=["x", "y", "z"])
    table.to_parquet(path) if name.endswith("parquet") else table.to_file(path)
    found = read_vector(path)
    assert sorted(found["name"]) == ["x", "y", "z"]
    assert shapely.equals_exact(found.sort_values("name").normalize().to_numpy(), table.normalize().to_numpy(), 1e-9).all()


def test_a_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "misnamed.shp"
    frame().to_parquet(path)
    assert len(read_vector(path)) == 3


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", SourceError, "empty"),
        (b'<OGRVRTDataSource><OGRVRTLayer name="x"/></OGRVRTDataSource>', SafetyError, "XML"),
        (b"<!doctype html><p>not found", SourceError, "web page"),
        (b"SQLite format 3\x00" + b"\x00" * 200, SourceError, "no GeoPackage"),
        (b"PAR1 but no more", SourceError, "cannot be read"),
        (b'{"type": "FeatureCollection", "features": [', SourceError, "breaks off"),
        (b'{"type": "Topology"}\n', SourceError, "GeoJSON"),
        (b"\x1f\x8b\x08 cut", SourceError, "cannot be read"),
        (b"a,b\n1,2\n", SourceError, "none of GeoParquet"),
        (b'geometry,height\n"POINT (1 2)",3\n', SourceError, "CSV names no coordinate system"),
        (b"II*\x00", SourceError, "none of GeoParquet"),
    ],
)
def test_what_is_no_footprints_file_is_one_clear_line(
    tmp_path: Path, content: bytes, error: type[Exception], words: str
) -> None:
    path = tmp_path / "input.geojson"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        read_vector(path)
    assert "\n" not in str(raised.value)
    assert "input.geojson" in str(raised.value)


@pytest.mark.parametrize("text", ["/vsicurl/http://127.0.0.1/x.geojson", "http://127.0.0.1/x.gpkg", "<OGRVRTDataSource/>"])
def test_a_path_that_is_no_files_is_refused(text: str) -> None:
    with pytest.raises(SafetyError, match="refused"):
        read_vector(Path(text))


def test_a_missing_file_a_folder_and_a_file_without_a_coordinate_system_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_vector(tmp_path / "missing.gpkg")
    with pytest.raises(SourceError, match="a directory"):
        read_vector(tmp_path)
    path = tmp_path / "nowhere.parquet"
    gpd.GeoDataFrame(geometry=SQUARES).to_parquet(path)
    with pytest.raises(SourceError, match="names no coordinate system"):
        read_vector(path)


def test_a_geopackage_of_several_layers_asks_for_one(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    frame().to_file(path, layer="houses")
    frame().to_file(path, layer="roads")
    with pytest.raises(SourceError, match=r"it has 2 \(houses, roads\)"):
        read_vector(path)
    with sqlite3.connect(path) as database:
        assert database.execute("select count(*) from houses").fetchone() == (3,)  # nothing was written
