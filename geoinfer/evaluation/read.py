"""Polygons from vector files of any origin, for comparing: which format it is, told by content, and what each one needs.

Neither a path's words nor a file's name chooses a driver: a path must be a file of this machine, its format is told by its
first bytes, and documents about other files (XML, VRT) are refused. GeoJSON and its form with one feature a line reach no
driver at all. What the columns mean is the affair of `schemas`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import shapely

from geoinfer.errors import SafetyError, SourceError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

KINDS = "GeoParquet, GeoPackage, GeoJSON, FlatGeobuf, shapefile, or a provider's CSV or GeoJSON lines (also .gz)"
_VIRTUAL = re.compile(r"\s*<|/vsi|[a-z][a-z0-9+.\-]*://", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11", b"GP12")
_LONGEST_LINE = 2**24
"""Characters of a first line that can be a feature."""
_WKT_COLUMNS = ("geometry", "wkt")
_PLACED_COLUMNS = {"full_plus_code", "area_in_meters"}
"""Columns of a CSV whose coordinates are known to be EPSG:4326, though it cannot say so."""


def read_vector(path: Path) -> GeoDataFrame:
    """The features of a vector file.

    Raises:
        SourceError: Missing, damaged, of no format that is read here, without geometry or without a coordinate system.
        SafetyError: A path that is not a file's, or a document about other files.
    """
    _check_path(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(128)
        table = _read(path, head)
    except (SourceError, SafetyError):
        raise
    except Exception as error:  # pyogrio, pyarrow, pandas and zlib raise a dozen kinds for one fact
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(f"{path}: cannot be read as vector data: {reason}") from error
    if table.crs is None:
        raise SourceError(
            f"{path}: names no coordinate system; write it with one (ogr2ogr -a_srs EPSG:... OUT.gpkg {path.name})"
        )
    return table


def _check_path(path: Path) -> None:
    text = str(path)
    if _VIRTUAL.match(text) or ":/" in text or str(path.absolute()).lower().startswith("/vsi"):
        raise SafetyError(f"{text[:80]!r}: refused, footprints are a local file (no URL, no GDAL virtual path)")
    if path.is_dir():
        raise SourceError(f"{path}: a directory, not a file of footprints; name the file in it")
    if not path.exists():
        raise SourceError(f"{path}: no such file")


def _read(path: Path, head: bytes) -> GeoDataFrame:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise SourceError(f"{path}: empty file (0 bytes)")
    if text.startswith(b"<"):
        if text.lower().startswith((b"<!doctype html", b"<html")):
            raise SourceError(f"{path}: a web page, not footprints; download it again")
        raise SafetyError(f"{path}: refused, XML can point at other files; give one of {KINDS}")
    if head.startswith(b"PAR1"):
        return _read_parquet(path)
    if head.startswith(b"SQLite format 3\x00"):
        if head[68:72] not in _GEOPACKAGE_IDS:
            raise SourceError(f"{path}: a SQLite file, but no GeoPackage; convert it with ogr2ogr")
        return _read_ogr(path)
    if head.startswith((b"fgb\x03", b"\x00\x00\x27\x0a")):
        return _read_ogr(path)
    if head.startswith(_GZIP) or text.startswith(b"{"):
        return _read_text(path)
    return _read_csv(path)


def _read_parquet(path: Path) -> GeoDataFrame:
    import geopandas
    import pyarrow.parquet as pq

    if b"geo" not in (pq.read_schema(path).metadata or {}):
        raise SourceError(f"{path}: a Parquet file without `geo` metadata; write it as GeoParquet (geopandas, ogr2ogr)")
    return geopandas.read_parquet(path)


def _read_ogr(path: Path) -> GeoDataFrame:
    """The one layer with geometries of a file that OGR reads."""
    import geopandas
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if len(layers) != 1:
        names = ", ".join(layers) or "none"
        raise SourceError(f"{path}: needs one layer with geometries, it has {len(layers)} ({names}); write that one alone")
    return geopandas.read_file(path, layer=layers[0], engine="pyogrio")


def _read_text(path: Path) -> GeoDataFrame:
    """GeoJSON, one feature a line, or CSV; also compressed."""
    with _open(path) as stream:
        line = stream.readline(_LONGEST_LINE).decode("utf-8-sig").strip()
    if not line.startswith("{"):
        return _read_csv(path)
    try:
        first = json.loads(line)
    except ValueError:  # a document over several lines
        return _read_geojson(path)
    return _read_lines(path) if first.get("type") == "Feature" else _read_geojson(path)


def _read_geojson(path: Path) -> GeoDataFrame:
    import geopandas

    from geoinfer.masks import geojson

    with _open(path) as stream:
        head = geojson.read_head(cast(Any, stream), str(path))
    with _open(path) as stream:
        features = list(geojson.read_features(cast(Any, stream), str(path)))
    shapes = shapely.from_geojson([feature.text if feature.has_geometry else None for feature in features])
    return geopandas.GeoDataFrame([dict(feature.properties) for feature in features], geometry=shapes, crs=head.crs)


def _read_lines(path: Path) -> GeoDataFrame:
    """One GeoJSON feature a line, as Microsoft publishes its footprints; EPSG:4326, as RFC 7946 wants."""
    import geopandas

    texts, properties = [], []
    for text, feature in _features(path):
        texts.append(text if feature.get("geometry") is not None else None)
        properties.append(feature.get("properties") or {})
    return geopandas.GeoDataFrame(properties, geometry=shapely.from_geojson(texts), crs="EPSG:4326")


def _features(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            text = raw.decode("utf-8-sig").strip()
            if not text:
                continue
            feature = json.loads(text)
            if not isinstance(feature, dict) or feature.get("type") != "Feature":
                raise SourceError(f"{path}: line {number} is no GeoJSON feature, though the first is")
            yield text, feature


def _read_csv(path: Path) -> GeoDataFrame:
    """Well-known text in a column of a CSV, as Google publishes its footprints."""
    import geopandas
    import pandas as pd

    with _open(path) as stream:
        names = [name.strip().strip('"') for name in stream.readline(2**16).decode("utf-8-sig", "replace").split(",")]
    column = next((name for name in names if name.lower() in _WKT_COLUMNS), None)
    if column is None:
        raise SourceError(f"{path}: none of {KINDS}")
    if not _PLACED_COLUMNS & set(names):
        raise SourceError(f"{path}: a CSV names no coordinate system; convert it with ogr2ogr -a_srs EPSG:... to GeoPackage")
    with _open(path) as stream:
        table = pd.read_csv(stream, encoding="utf-8-sig")
    shapes = shapely.from_wkt(table.pop(column).to_numpy(object))
    return geopandas.GeoDataFrame(table, geometry=shapes, crs="EPSG:4326")


def _open(path: Path) -> BinaryIO:
    """All bytes in order, decompressed where they are compressed."""
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == _GZIP
    return cast(BinaryIO, gzip.open(path, "rb")) if is_compressed else path.open("rb")
