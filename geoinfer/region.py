"""Where to look: a box or a polygon in any coordinate system, and which pixels of a grid it asks for.

A pixel is asked for when its centre lies in the region. The rule is even-odd along rows and half open (a centre on an edge
belongs to one side only), computed from the edges in the grid's pixels and the absolute row: so neither the window that asks
nor the tiles can change an answer, and regions that share an edge share no pixel.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from geoinfer.earth import Bounds as Bounds
from geoinfer.earth import bounds_text, pole_in, project, sphere_area
from geoinfer.errors import ConfigError, RegionError
from geoinfer.grid import Grid, Window
from geoinfer.meridian import near, wrap
from geoinfer.region_files import by_name, join, parse_geojson, read_features


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
    def from_file(cls, path: str | os.PathLike[str], places: Sequence[str] = (), key: str | None = None) -> Region:
        """All polygons of a GeoJSON, GeoPackage, FlatGeobuf, Shapefile or GeoParquet file, joined.

        Args:
            path: The file.
            places: Only the polygons of these names; see `named_regions`.
            key: The property that holds the names.

        Raises:
            SourceError: Unreadable, no polygon in it, or no coordinate system.
            ConfigError: It has no place of that name.
            SafetyError: A file that can point at others.
        """
        file = Path(path).absolute()
        if not places:
            features = read_features(file)
            return cls(join(features.geometries, str(file)), features.crs)
        chosen = named_regions(file, places, key)
        return cls(join([region.geometry for _, region in chosen], str(file)), chosen[0][1].crs)

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
            return cls(join([shape], "region"), parse_crs(crs))
        if isinstance(shape, Mapping):
            features = parse_geojson(shape, "region")
            return cls(join(features.geometries, "region"), features.crs)
        if not (hasattr(shape, "geometry") and hasattr(shape, "crs")):
            raise ConfigError(f"region of type {type(shape).__name__}: give a file, a GeoDataFrame, a geometry or a Region")
        if shape.crs is None:
            raise ConfigError("region: its table names no coordinate system; set one with set_crs")
        return cls(join(shape.geometry, "region"), parse_crs(shape.crs))

    @property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude, degrees on WGS 84, in the middle of its bounds; across the antimeridian as well."""
        minx, miny, maxx, maxy = self.geometry.bounds
        if self.crs.is_geographic and maxx - minx > 180.0:  # parts on both sides of the antimeridian, or most of the earth
            west, _, east, _ = shapely.bounds(shapely.get_parts(self.geometry)).T  # (N,) of its parts
            east += west % 360.0 - west
            west %= 360.0
            minx, maxx = (west.min(), east.max()) if east.max() - west.min() < maxx - minx else (minx, maxx)
        middle = (minx + maxx) / 2, (miny + maxy) / 2
        lon, lat = Transformer.from_crs(self.crs, 4326, always_xy=True).transform(*middle)
        return float(wrap(np.array([lon]), 0.0)[0]), float(lat)

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


def named_regions(
    path: str | os.PathLike[str], places: Sequence[str] = (), key: str | None = None
) -> list[tuple[str, Region]]:
    """The places of a file by name, in the order of the file; polygons of one name are one place.

    Args:
        path: As for `Region.from_file`.
        places: Only these, in this order; all where empty.
        key: The property that holds the names; None: `name`, whatever its case.

    Raises:
        ConfigError: No place of a name that is asked for.
        SourceError: Unreadable, or no polygon in it is named.
    """
    file = Path(path).absolute()
    features = read_features(file)
    named = by_name(features, key, str(file))
    for place in places:
        if place not in named:
            close = difflib.get_close_matches(place, named, 3, 0.5) or list(named)[:5]
            raise ConfigError(
                f"place {place!r}: none of the {len(named)} places of {file.name}; did you mean {', '.join(close)}?"
            )
    return [(name, Region(join(named[name], f"{file}: {name}"), features.crs)) for name in (places or named)]


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
    common, covers = _common(region, grid, bounds)
    if covers <= 0:
        box = project(shapely.box(*bounds), grid.crs, region.crs)
        raise RegionError(
            f"the region {_parts_text(region.geometry)} lies outside all imagery {_parts_text(box)} "
            f"({region.crs.to_string() if region.crs.to_epsg() else region.crs.name}; minx,miny,maxx,maxy)"
        )
    edges = _edges(join([common], "region"), grid)
    row, col = math.ceil(edges[:, 1].min() - 0.5), math.ceil(edges[:, [0, 2]].min() - 0.5)
    stop_row, stop_col = math.ceil(edges[:, 3].max() - 0.5), math.ceil(edges[:, [0, 2]].max() - 0.5)
    window = Window(row, col, max(0, stop_row - row), max(0, stop_col - col)).intersection(extent)
    return GridRegion(window, min(1.0, covers), edges)


def _common(region: Region, grid: Grid, bounds: Bounds) -> tuple[BaseGeometry, float]:
    """What of a region lies near the imagery, on the grid's map, and the share of its area that lies within."""
    box = shapely.box(*bounds)
    pole = pole_in(bounds, grid.crs) if region.crs.is_geographic else None
    if pole is not None:  # degrees mean little there: all of it is done on the grid's map
        degrees = shapely.get_coordinates(project(box, grid.crs, region.crs))[:, 1]
        limit = max(float(np.abs(degrees).min()) - 1.0, 0.0)
        cap = shapely.box(-180.0, limit, 180.0, 90.0) if pole > 0 else shapely.box(-180.0, -90.0, 180.0, -limit)
        asked = shapely.intersection(near(region.geometry, 0.0), cap)
        if asked.area <= 0:
            return asked, 0.0
        common = join([project(asked, region.crs, grid.crs)], "region")
        share = shapely.intersection(common, box).area / common.area
        return common, share * sphere_area(asked) / sphere_area(region.geometry)
    imagery, asked = project(box, grid.crs, region.crs), region.geometry
    if region.crs.is_geographic:
        centre = _centre_of(imagery)
        imagery, asked = (
            shapely.transform(imagery, lambda p: np.column_stack([wrap(p[:, 0], centre), p[:, 1]])),
            near(asked, centre),
        )
    shared = shapely.intersection(asked, imagery).area
    if shared <= 0:
        return shapely.Polygon(), 0.0
    return project(shapely.intersection(asked, _padded_box(imagery)), region.crs, grid.crs), shared / region.geometry.area


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


def _centre_of(geometry: BaseGeometry) -> float:
    """A longitude within the imagery, whichever side of the antimeridian its corners are on."""
    x = shapely.get_coordinates(geometry)[:, 0]
    first = float(x[0])
    return first + float((((x - first + 180.0) % 360.0) - 180.0).mean())


def _padded_box(geometry: BaseGeometry) -> BaseGeometry:
    """Its bounds and some more: what is far from the imagery need not survive a projection."""
    minx, miny, maxx, maxy = geometry.bounds
    pad = 0.05 * max(maxx - minx, maxy - miny)
    return shapely.box(minx - pad, miny - pad, maxx + pad, maxy + pad)


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
    return " and ".join(bounds_text(part.bounds) for part in parts) if len(parts) == 2 else bounds_text(geometry.bounds)
