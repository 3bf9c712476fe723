"""Where to look: a box or a polygon in any coordinate system, and which pixels of a grid it asks for.

A pixel is asked for when its centre lies in the region. The rule is even-odd along rows and half open (a centre on an edge
belongs to one side only), computed from the edges in the grid's pixels and the absolute row: so neither the window that asks
nor the tiles can change an answer, and regions that share an edge share no pixel.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, RegionError, SafetyError, SourceError
from geoinfer.grid import Grid, Window

Bounds = tuple[float, float, float, float]
"""(minx, miny, maxx, maxy)."""
_MAX_STEPS = 4096
"""An edge is cut into at most this many pieces before it is projected."""
_STEP_M = 1000.0
"""Pieces no longer than this: a parallel bulges from its chord by 2 cm at 45 degrees."""
_M_PER_DEGREE = 111_320.0


@dataclass(frozen=True, slots=True)
class Region:
    """The area asked for."""

    geometry: BaseGeometry
    """Polygon or MultiPolygon, valid, in `crs`, x before y."""
    crs: CRS

    @classmethod
    def whole(cls, grid: Grid, bounds: Bounds | None = None) -> Region:
        """All of a grid, or a box in its coordinate system. Where no region is given, `region_on(None, ...)` is cheaper."""
        return cls(shapely.box(*(grid.bounds() if bounds is None else bounds)), grid.crs)

    @classmethod
    def from_bbox(cls, bbox: Sequence[float] | str, crs: str | CRS = "EPSG:4326") -> Region:
        """A box minx, miny, maxx, maxy, also as text with commas. In degrees west > east crosses the antimeridian, and
        becomes two boxes.

        Raises:
            ConfigError: Not four finite numbers in the right order.
        """
        system = parse_crs(crs)
        try:
            west, south, east, north = (float(value) for value in (bbox.split(",") if isinstance(bbox, str) else bbox))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"bbox {bbox!r}: needs four numbers minx,miny,maxx,maxy") from error
        text = f"bbox {west:.10g},{south:.10g},{east:.10g},{north:.10g}"
        if not all(map(math.isfinite, (west, south, east, north))):
            raise ConfigError(f"{text}: every number must be finite")
        if south >= north:
            raise ConfigError(f"{text}: miny {south:.10g} is not below maxy {north:.10g}; the order is minx,miny,maxx,maxy")
        if west == east:
            raise ConfigError(f"{text}: minx equals maxx, so it has no area")
        if not system.is_geographic:
            if west > east:
                raise ConfigError(f"{text}: minx is above maxx; only boxes in degrees may cross the antimeridian")
            return cls(shapely.box(west, south, east, north), system)
        if south < -90 or north > 90:
            raise ConfigError(f"{text}: latitudes lie within -90..90; another system (--bbox-crs), or lat before lon?")
        if not (-360 <= west <= 360 and -360 <= east <= 360 and east - west <= 360):
            raise ConfigError(f"{text}: longitudes lie within -180..180; another system (--bbox-crs)?")
        if west > east:
            halves = [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]
            return cls(shapely.MultiPolygon(halves), system)
        return cls(shapely.box(west, south, east, north), system)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Region:
        """All polygons of a GeoJSON, GeoPackage, FlatGeobuf, Shapefile or GeoParquet file, joined.

        Raises:
            SourceError: Unreadable, no polygon in it, or no coordinate system.
            SafetyError: A file that can point at others.
        """
        file = Path(path).absolute()
        try:
            with file.open("rb") as stream:
                head = stream.read(64)
        except OSError as error:
            raise SourceError(f"{file}: region cannot be read: {error.strerror or error}") from error
        geometries, crs = _read_geojson(file) if _is_json(head) else _read_features(file, head)
        return cls(_join(geometries, str(file)), crs)

    @classmethod
    def from_geometry(cls, shape: Any, crs: str | CRS = "EPSG:4326") -> Region:
        """All polygons of what a notebook holds, joined: a GeoDataFrame, a GeoSeries, a shapely geometry or a GeoJSON dict.

        Args:
            shape: The polygons.
            crs: Of a shapely geometry; the others bring their own.

        Raises:
            ConfigError: Something else, or a table without a coordinate system.
            SourceError: No polygon in it.
        """
        if isinstance(shape, BaseGeometry):
            return cls(_join([shape], "region"), parse_crs(crs))
        if isinstance(shape, Mapping):
            geometries, system = _parse_geojson(shape, "region")
            return cls(_join(geometries, "region"), system)
        if not (hasattr(shape, "geometry") and hasattr(shape, "crs")):
            raise ConfigError(f"region of type {type(shape).__name__}: give a file, a GeoDataFrame, a geometry or a Region")
        if shape.crs is None:
            raise ConfigError("region: its table names no coordinate system; set one with set_crs")
        return cls(_join(shape.geometry, "region"), parse_crs(shape.crs))

    def describe(self) -> dict[str, object]:
        """What identifies it: coordinate system and exact shape (hexadecimal WKB)."""
        code = self.crs.to_epsg()
        crs = f"EPSG:{code}" if code is not None else self.crs.to_wkt()
        wkb = shapely.to_wkb(shapely.normalize(self.geometry), hex=True)
        return {"crs": crs, "bounds": list(self.geometry.bounds), "wkb": wkb}


@dataclass(frozen=True, slots=True, eq=False)
class GridRegion:
    """The pixels of one grid that a region asks for. Picklable."""

    window: Window
    """All of them lie in it; within the imagery. Empty when the region is too small to hold a pixel's centre."""
    covers: float
    """Share of the region's area that lies within the bounds of the imagery, 0..1."""
    edges: NDArray[np.float64] | None
    """(E, 4) x0, y0, x1, y1 in pixels of the grid, y0 < y1; None when all of `window` is asked for."""

    def mask(self, window: Window) -> NDArray[np.bool_] | None:
        """(height, width) of a window: whose centre lies in the region. None when all do."""
        spans = self._spans(window)
        full = (spans[:, 1] == window.col) & (spans[:, 2] == window.stop_col)
        if np.count_nonzero(full) == window.height:
            return None
        flips = np.zeros((window.height, window.width + 1), np.uint8)
        for column in (1, 2):
            np.bitwise_xor.at(flips, (spans[:, 0] - window.row, spans[:, column] - window.col), 1)
        inside: NDArray[np.bool_] = np.bitwise_xor.accumulate(flips[:, :-1], axis=1).astype(np.bool_)
        return inside

    def touches(self, window: Window) -> bool:
        """A pixel of the window is asked for."""
        return bool(len(self._spans(window)))

    def _spans(self, window: Window) -> NDArray[np.int64]:
        """(n, 3) row, first col, stop col: what is asked for in a window; no span is empty, two of a row are disjoint."""
        if self.edges is None:
            part = window.intersection(self.window)
            rows = np.arange(part.row, part.stop_row if part.width else part.row)
            return np.stack([rows, np.full_like(rows, part.col), np.full_like(rows, part.stop_col)], axis=1)
        near = (self.edges[:, 3] > window.row) & (self.edges[:, 1] < window.stop_row)
        x0, y0, x1, y1 = self.edges[near].T
        first = np.ceil(y0 - 0.5).astype(np.int64).clip(window.row, window.stop_row)
        count = np.ceil(y1 - 0.5).astype(np.int64).clip(window.row, window.stop_row) - first
        edge = np.repeat(np.arange(len(count)), count)
        rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        x = x0[edge] + (rows + 0.5 - y0[edge]) * ((x1 - x0) / (y1 - y0))[edge]
        cols = np.ceil(x - 0.5).clip(window.col, window.stop_col).astype(np.int64)
        order = np.lexsort((cols, rows))  # a closed ring crosses each row an even number of times
        pairs = cols[order].reshape(-1, 2)
        spans = np.column_stack([rows[order][::2], pairs])
        wide: NDArray[np.int64] = spans[pairs[:, 0] < pairs[:, 1]]
        return wide


def region_on(region: Region | None, grid: Grid, source_bounds: Bounds | None = None) -> GridRegion:
    """Bring a region onto a grid.

    Args:
        region: What is asked for; None for all imagery.
        grid: The compute grid.
        source_bounds: Bounds of the imagery in the grid's coordinate system; default: of the grid.

    Raises:
        RegionError: They have no area in common.
    """
    bounds = grid.bounds() if source_bounds is None else source_bounds
    extent = grid.covering(bounds).intersection(grid.window)
    if region is None:
        return GridRegion(extent, 1.0, None)
    imagery = _project(shapely.box(*bounds), grid.crs, region.crs)
    asked, centre = region.geometry, _centre_of(imagery)
    if region.crs.is_geographic:
        imagery, asked = _unwrap_points(imagery, centre), _unwrap_copies(asked, centre)
    common = shapely.intersection(asked, _padded_box(imagery))
    shared = shapely.intersection(asked, imagery).area
    if shared <= 0:
        raise RegionError(
            f"the region {_parts_text(region.geometry)} lies outside all imagery {_text(imagery.bounds)} "
            f"({region.crs.to_string() if region.crs.to_epsg() else region.crs.name}; minx,miny,maxx,maxy)"
        )
    edges = _edges(_join([_project(common, region.crs, grid.crs)], "region"), grid)
    row, col = math.ceil(edges[:, 1].min() - 0.5), math.ceil(edges[:, [0, 2]].min() - 0.5)
    stop_row, stop_col = math.ceil(edges[:, 3].max() - 0.5), math.ceil(edges[:, [0, 2]].max() - 0.5)
    window = Window(row, col, max(0, stop_row - row), max(0, stop_col - col)).intersection(extent)
    return GridRegion(window, min(1.0, shared / region.geometry.area), edges)


def _edges(geometry: BaseGeometry, grid: Grid) -> NDArray[np.float64]:
    """(E, 4) edges of all rings in pixels of the grid, downwards; level ones cross no row."""
    found = [np.empty((0, 4))]
    for ring in shapely.get_rings(shapely.get_parts(geometry)):
        x, y = shapely.get_coordinates(ring).T
        cols, rows = (x - grid.transform.c) / grid.pixel_size, (grid.transform.f - y) / grid.pixel_size
        edges = np.column_stack([cols[:-1], rows[:-1], cols[1:], rows[1:]])
        upwards = edges[:, 1] > edges[:, 3]
        edges[upwards] = edges[upwards][:, [2, 3, 0, 1]]
        found.append(edges[edges[:, 1] < edges[:, 3]])
    return np.concatenate(found)


def _project(geometry: BaseGeometry, source: CRS, target: CRS) -> BaseGeometry:
    """A geometry in another system, its edges cut fine enough to follow the bend."""
    if source == target:
        return geometry
    minx, miny, maxx, maxy = geometry.bounds
    unit = _M_PER_DEGREE if source.is_geographic else float(source.axis_info[0].unit_conversion_factor)
    step = max(_STEP_M / unit, max(maxx - minx, maxy - miny) / _MAX_STEPS)
    transformer = Transformer.from_crs(source, target, always_xy=True)

    def forward(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))

    projected = shapely.transform(shapely.segmentize(geometry, step), forward)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise RegionError(f"the region {_text(geometry.bounds)} reaches beyond what {target.name!r} can show")
    return projected


def _centre_of(geometry: BaseGeometry) -> float:
    """A longitude within the imagery, whichever side of the antimeridian its corners are on."""
    x = shapely.get_coordinates(geometry)[:, 0]
    first = float(x[0])
    return first + float((((x - first + 180.0) % 360.0) - 180.0).mean())


def _unwrap_points(geometry: BaseGeometry, centre: float) -> BaseGeometry:
    """Every longitude within half a turn of the centre."""

    def near(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([(points[:, 0] - centre + 180.0) % 360.0 - 180.0 + centre, points[:, 1]])

    return shapely.transform(geometry, near)


def _unwrap_copies(geometry: BaseGeometry, centre: float) -> BaseGeometry:
    """The geometry one turn to the west, as it is, and one to the east; what lies near the centre counts."""
    window = shapely.box(centre - 180.0, -90.0, centre + 180.0, 90.0)
    shifts = (-720.0, -360.0, 0.0, 360.0, 720.0)
    copies = [shapely.affinity.translate(geometry, xoff=shift) for shift in shifts]
    return shapely.union_all([shapely.intersection(copy, window) for copy in copies])


def _padded_box(geometry: BaseGeometry) -> BaseGeometry:
    """Its bounds and some more: what is far from the imagery need not survive a projection."""
    minx, miny, maxx, maxy = geometry.bounds
    pad = 0.05 * max(maxx - minx, maxy - miny)
    return shapely.box(minx - pad, miny - pad, maxx + pad, maxy + pad)


def _join(geometries: Iterable[BaseGeometry], name: str) -> BaseGeometry:
    """One valid polygon or multipolygon of all that has an area."""
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


def _is_json(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _read_geojson(file: Path) -> tuple[list[BaseGeometry], CRS]:
    """RFC 7946, and the `crs` member of its predecessor. Read here, since OGR's drivers for JSON can follow links."""
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not a GeoJSON that can be read: {error}") from error
    return _parse_geojson(document, str(file))


def _parse_geojson(document: Any, name: str) -> tuple[list[BaseGeometry], CRS]:
    try:
        named = document.get("crs") if isinstance(document, Mapping) else None
        crs = CRS.from_user_input(named["properties"]["name"]) if named else CRS.from_epsg(4326)
        return [shapely.geometry.shape(geometry) for geometry in _geometries(document)], crs
    except (ValueError, KeyError, TypeError, AttributeError, CRSError, RecursionError, shapely.errors.ShapelyError) as error:
        raise SourceError(f"{name}: not a GeoJSON that can be read: {error}") from error


def _geometries(document: Any) -> list[Any]:
    """The geometry objects of a GeoJSON document."""
    kind = document["type"]
    if kind == "FeatureCollection":
        return [geometry for feature in document["features"] for geometry in _geometries(feature)]
    if kind == "Feature":
        return [] if document["geometry"] is None else _geometries(document["geometry"])
    if kind == "GeometryCollection":
        return [geometry for member in document["geometries"] for geometry in _geometries(member)]
    return [document]


def _read_features(file: Path, head: bytes) -> tuple[list[BaseGeometry], CRS]:
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
    return list(frame.geometry), frame.crs


def parse_crs(crs: str | CRS) -> CRS:
    """A coordinate system with x and y on the ground.

    Raises:
        ConfigError: Not one that PROJ knows, or one of heights or of the earth's centre.
    """
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise ConfigError(f"{crs!r}: not a coordinate system that PROJ knows; name it like EPSG:4326") from error
    if not (system.is_projected or system.is_geographic):
        raise ConfigError(f"{crs!r}: {system.name} ({system.type_name}) has no x and y on the ground; try EPSG:4326")
    return system


def _parts_text(geometry: BaseGeometry) -> str:
    """Bounds; of both parts where a box crosses the antimeridian: together they would span the world."""
    parts = shapely.get_parts(geometry)
    return " and ".join(_text(part.bounds) for part in parts) if len(parts) == 2 else _text(geometry.bounds)


def _text(bounds: Bounds) -> str:
    return "(" + ", ".join(f"{value:.7g}" if abs(value) < 1000 else f"{value:.1f}" for value in bounds) + ")"
