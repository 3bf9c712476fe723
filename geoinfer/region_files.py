"""Polygons out of files and GeoJSON documents, with the names they carry. What is not plain data reaches no driver.

Knows formats; knows nothing of grids, or of what a region is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import SafetyError, SourceError

NAME = "name"
"""Property that names a place where nothing else is said; upper and lower case are one."""


@dataclass(frozen=True, slots=True)
class Features:
    """The geometries of a file and what is known of each."""

    geometries: tuple[BaseGeometry | None, ...]
    properties: tuple[Mapping[str, Any], ...]
    """Of each geometry."""
    crs: CRS


def read_features(file: Path) -> Features:
    """All features of a GeoJSON, GeoPackage, FlatGeobuf, Shapefile or GeoParquet file.

    Raises:
        SourceError: Unreadable, or no coordinate system.
        SafetyError: A file that can point at others.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise SourceError(f"{file}: region cannot be read: {error.strerror or error}") from error
    return _read_geojson(file) if _is_json(head) else _read_table(file, head)


def join(geometries: Iterable[BaseGeometry | None], name: str) -> BaseGeometry:
    """One valid polygon or multipolygon of all that has an area.

    Args:
        name: Of the file, for messages.

    Raises:
        SourceError: No polygon, or one that is no number.
    """
    polygons: list[BaseGeometry] = []
    for geometry in geometries:
        if geometry is None or geometry.is_empty:
            continue
        flat = shapely.force_2d(geometry)
        if not np.isfinite(shapely.get_coordinates(flat)).all():
            raise SourceError(f"{name}: a polygon with coordinates that are not finite")
        parts = shapely.get_parts(shapely.get_parts(flat))
        polygons += [part for part in parts if part.geom_type == "Polygon"]
    if not polygons:
        raise SourceError(f"{name}: no polygon in it")
    joined = shapely.union_all(shapely.make_valid(polygons, method="structure", keep_collapsed=False))
    if joined.area <= 0:
        raise SourceError(f"{name}: its polygons have no area")
    return joined


def by_name(features: Features, key: str | None, name: str) -> dict[str, list[BaseGeometry | None]]:
    """Geometries by the name they carry, in the order of the file; features of one name belong together.

    Args:
        key: Property that holds it; None: `name`, whatever its case.
        name: Of the file, for messages.

    Raises:
        SourceError: No feature has that property.
    """
    wanted = (key or NAME).casefold()
    found: dict[str, list[BaseGeometry | None]] = {}
    seen: dict[str, None] = {}
    for geometry, properties in zip(features.geometries, features.properties, strict=True):
        seen |= dict.fromkeys(properties)
        exact = [label for label in properties if label == key] or [
            label for label in properties if label.casefold() == wanted
        ]
        value = properties[exact[0]] if exact else None
        if value is not None and value == value:  # NaN, in a table, is a name that is missing
            found.setdefault(str(value), []).append(geometry)
    if not found:
        has = f"it has {', '.join(list(seen)[:8])}" if seen else "its polygons have no properties"
        raise SourceError(f"{name}: no polygon has a property {key or NAME!r} that names it; {has}")
    return found


def parse_geojson(document: Any, name: str) -> Features:
    """What a GeoJSON document holds: RFC 7946, and the `crs` member of its predecessor.

    Raises:
        SourceError: It is none.
    """
    try:
        named = document.get("crs") if isinstance(document, Mapping) else None
        crs = CRS.from_user_input(named["properties"]["name"]) if named else CRS.from_epsg(4326)
        pairs = [(shapely.geometry.shape(geometry), properties) for geometry, properties in _members(document, {})]
    except (ValueError, KeyError, TypeError, AttributeError, CRSError, RecursionError, shapely.errors.ShapelyError) as error:
        raise SourceError(f"{name}: not a GeoJSON that can be read: {error}") from error
    return Features(tuple(geometry for geometry, _ in pairs), tuple(properties for _, properties in pairs), crs)


def _is_json(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _read_geojson(file: Path) -> Features:
    """Read here, since OGR's drivers for JSON can follow links."""
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not a GeoJSON that can be read: {error}") from error
    return parse_geojson(document, str(file))


def _members(document: Any, properties: Mapping[str, Any]) -> Sequence[tuple[Any, Mapping[str, Any]]]:
    """The geometry objects of a GeoJSON document, each with the properties of its feature."""
    kind = document["type"]
    if kind == "FeatureCollection":
        return [member for feature in document["features"] for member in _members(feature, {})]
    if kind == "Feature":
        own = document.get("properties")
        own = own if isinstance(own, Mapping) else {}
        return [] if document["geometry"] is None else _members(document["geometry"], own)
    if kind == "GeometryCollection":
        return [member for geometry in document["geometries"] for member in _members(geometry, properties)]
    return [(document, properties)]


def _read_table(file: Path, head: bytes) -> Features:
    """Formats that geopandas reads, told by their first bytes: nothing else reaches a driver."""
    import geopandas

    parquet = head.startswith(b"PAR1")
    if not (parquet or head.startswith((b"SQLite format 3\x00", b"fgb\x03", b"\x00\x00\x27\x0a"))):
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise SafetyError(f"{file}: refused, XML can point at other files; give the region as GeoJSON or GeoPackage")
        kinds = "GeoJSON, GeoPackage, FlatGeobuf, Shapefile or GeoParquet"
        raise SourceError(f"{file}: not a {kinds} (first bytes {head[:8]!r})")
    try:
        frame = geopandas.read_parquet(file) if parquet else geopandas.read_file(file, engine="pyogrio")
    except (ValueError, RuntimeError, OSError) as error:
        raise SourceError(f"{file}: region cannot be read: {error}") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise SourceError(f"{file}: no geometry in it")
    if frame.crs is None:
        raise SourceError(f"{file}: no coordinate system in the region file; write it as GeoJSON in EPSG:4326, or set one")
    columns = frame.drop(columns=frame.geometry.name)
    rows = [dict(zip(columns.columns, row, strict=True)) for row in columns.itertuples(index=False, name=None)]
    return Features(tuple(frame.geometry), tuple(rows), CRS.from_user_input(frame.crs))
