"""One zoom level of a tiled map in numbers: where tiles lie, how large pixels are, how it is cut into cells.

Rows count downwards from the top, as in XYZ and WMTS. A level is cut into *cells*, squares of a power of two of tiles, about
150 km a side, fixed in the level; each is a raster of its own. A region chooses which cells are looked at and nothing else,
so that no pixel depends on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
import shapely.affinity
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, RegionError
from geoinfer.grid import Window
from geoinfer.region import Region

MERCATOR = CRS.from_epsg(3857)
_HALF_WORLD = 20037508.342789244
"""Half the width of EPSG:3857: pi times the radius of its sphere, metres."""
MAX_ZOOM = 30
_CELL_M = 160_000.0
_REACH_M = 2_000.0
"""Cells so close to a region count too: chips and footprints reach a little beyond it."""
_M_PER_DEGREE = 111_320.0
_GSD_SLACK = 1.02
"""Pixels within 2 % of the model's count as the model's."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A zoom level."""

    name: str
    """How requests name it: `19`, or a WMTS identifier."""
    crs: CRS
    left: float
    """x of the upper left corner of tile (0, 0)."""
    top: float
    """y of the same."""
    pixel: float
    """Side of a pixel, units of `crs`."""
    side: int
    """Of a tile, pixels."""
    rows: int
    cols: int
    """Tiles of the whole level."""
    limits: tuple[int, int, int, int] | None = None
    """first row, first col, stop row, stop col: the tiles that exist, where the service says so."""

    @property
    def extent(self) -> Window:
        """The tiles that may exist, in tiles."""
        row, col, stop_row, stop_col = self.limits or (0, 0, self.rows, self.cols)
        return Window(row, col, max(0, stop_row - row), max(0, stop_col - col)).intersection(
            Window(0, 0, self.rows, self.cols)
        )

    @property
    def cell(self) -> int:
        """Side of a cell, tiles."""
        metres = self.side * self.pixel * (_M_PER_DEGREE if self.crs.is_geographic else 1.0)
        return int(2 ** max(0, math.floor(math.log2(_CELL_M / metres))))

    def transform(self, row: int, col: int) -> Affine:
        """(col, row) -> (x, y) of the pixels from a tile on."""
        step = self.side * self.pixel
        return Affine(self.pixel, 0.0, self.left + col * step, 0.0, -self.pixel, self.top - row * step)

    def tiles(self, bounds: tuple[float, float, float, float]) -> Window:
        """The tiles under (minx, miny, maxx, maxy) in `crs`, those of `extent` alone."""
        step = self.side * self.pixel
        first_col, first_row = (bounds[0] - self.left) / step, (self.top - bounds[3]) / step
        stop_col, stop_row = (bounds[2] - self.left) / step, (self.top - bounds[1]) / step
        row, col = math.floor(first_row + 1e-6), math.floor(first_col + 1e-6)
        height, width = math.ceil(stop_row - 1e-6) - row, math.ceil(stop_col - 1e-6) - col
        return Window(row, col, max(height, 0), max(width, 0)).intersection(self.extent)


def mercator_grid(zoom: int, side: int = 256) -> TileGrid:
    """A level of the world in EPSG:3857, as XYZ and TMS have it."""
    count = 2**zoom
    return TileGrid(str(zoom), MERCATOR, -_HALF_WORLD, _HALF_WORLD, 2 * _HALF_WORLD / (count * side), side, count, count)


def exact(grid: TileGrid) -> TileGrid:
    """A level of the well-known scale set in EPSG:3857 without a document's rounding, which would add up to many pixels."""
    if grid.crs != MERCATOR:
        return grid
    zoom = round(math.log2(2 * _HALF_WORLD / (grid.pixel * grid.side)))
    if not 0 <= zoom <= MAX_ZOOM:
        return grid
    known = mercator_grid(zoom, grid.side)
    is_same = (
        abs(grid.pixel / known.pixel - 1.0) < 1e-4 and max(abs(grid.left - known.left), abs(grid.top - known.top)) < 1.0
    )
    return replace(grid, left=known.left, top=known.top, pixel=known.pixel) if is_same else grid


def lonlat_of(region: Region) -> BaseGeometry:
    """A region in EPSG:4326, longitudes as they come.

    Raises:
        RegionError: It reaches beyond what has longitudes and latitudes.
    """
    geometry = region.geometry
    if region.crs.is_geographic:
        return geometry
    forward = Transformer.from_crs(region.crs, 4326, always_xy=True)
    minx, miny, maxx, maxy = geometry.bounds
    fine = shapely.segmentize(geometry, max(maxx - minx, maxy - miny) / 64)
    try:
        return shapely.transform(fine, lambda points: _columns(forward, points))
    except ValueError as error:
        raise RegionError(
            f"the region {geometry.bounds} reaches beyond its coordinate system {region.crs.name!r}"
        ) from error


def parts_on(grid: TileGrid, lonlat: BaseGeometry, reach_m: float = 0.0) -> list[BaseGeometry]:
    """A geometry in a level's coordinate system, cut to what this can show; several parts where it crosses the antimeridian.

    Args:
        grid: The level.
        lonlat: In EPSG:4326.
        reach_m: Take the boxes around its parts, and so much more on each side.
    """
    area = grid.crs.area_of_use
    world = (
        shapely.box(-180.0, -90.0, 180.0, 90.0) if area is None else _box_of(area.west, area.south, area.east, area.north)
    )
    if grid.crs == MERCATOR:
        world = shapely.box(-180.0, -85.0511287, 180.0, 85.0511287)
    pieces = []
    for part in shapely.get_parts(lonlat):
        whole = part
        if reach_m:
            west, south, east, north = part.bounds
            steep = max(0.02, math.cos(math.radians(min(max(abs(south), abs(north)), 89.0))))
            up, across = reach_m / _M_PER_DEGREE, reach_m / _M_PER_DEGREE / steep
            whole = shapely.box(west - across, south - up, east + across, north + up)
        for turn in (-360.0, 0.0, 360.0):
            pieces += list(shapely.get_parts(shapely.intersection(shapely.affinity.translate(whole, xoff=turn), world)))
    forward = Transformer.from_crs(4326, grid.crs, always_xy=True)
    found = []
    for piece in pieces:
        if piece.area > 0:
            minx, miny, maxx, maxy = piece.bounds
            fine = shapely.segmentize(piece, max(maxx - minx, maxy - miny) / 64)
            found.append(shapely.transform(fine, lambda points: _columns(forward, points)))
    return found


def cells_near(grid: TileGrid, lonlat: BaseGeometry) -> Iterator[Window]:
    """The cells, in tiles, that lie in or near a region; row-major, each once, clipped to the level's extent."""
    side = grid.cell
    wanted = set()
    for part in parts_on(grid, lonlat, _REACH_M):
        tiles = grid.tiles(part.bounds)
        if not tiles.is_empty:
            rows = range(tiles.row // side, -(-tiles.stop_row // side))
            wanted |= {(row, col) for row in rows for col in range(tiles.col // side, -(-tiles.stop_col // side))}
    for row, col in sorted(wanted):
        cell = Window(row * side, col * side, side, side).intersection(Window(0, 0, grid.rows, grid.cols))
        if not cell.intersection(grid.extent).is_empty:
            yield cell


def coarsest(grids: Sequence[TileGrid], gsd: float, lonlat: BaseGeometry) -> TileGrid:
    """The coarsest level whose pixels are at most `gsd` metres, within 2 %, in all of a region; the finest where none is.

    Args:
        grids: Coarse to fine.
        gsd: The model's, metres.
        lonlat: The region, in EPSG:4326.
    """
    return next((grid for grid in grids if pixel_m(grid, lonlat) <= gsd * _GSD_SLACK), grids[-1])


def choose_level(grids: Sequence[TileGrid], zoom: int, name: str) -> TileGrid:
    """The level that a number names: by its identifier, else by its place from the coarsest.

    Raises:
        ConfigError: There is none.
    """
    for grid in grids:
        if re.search(rf"(^|\D)0*{zoom}$", grid.name):
            return grid
    if 0 <= zoom < len(grids):
        return grids[zoom]
    raise ConfigError(f"{name}: no zoom {zoom}; it has {grids[0].name} to {grids[-1].name}")


def pixel_m(grid: TileGrid, lonlat: BaseGeometry) -> float:
    """Metres on the ground of a level's pixels where they are largest in a region: nearest to the equator in EPSG:3857.

    The root of a pixel's sides, both measured on the ellipsoid. 0 outside what the level can show.
    """
    back, geod = Transformer.from_crs(grid.crs, 4326, always_xy=True), Geod(ellps="WGS84")
    sizes = [0.0]
    for part in parts_on(grid, lonlat):
        minx, miny, maxx, maxy = part.bounds
        x = (minx + maxx) / 2.0
        for y in {miny, maxy, min(max(0.0, miny), maxy)}:
            lons, lats = back.transform([x, x + grid.pixel, x], [y, y, y + grid.pixel])
            _, _, (across, up) = geod.inv([lons[0]] * 2, [lats[0]] * 2, lons[1:], lats[1:])
            sizes.append(math.sqrt(across * up))
    return max(sizes)


def count_tiles(grid: TileGrid, lonlat: BaseGeometry) -> int:
    """About how many tiles a region needs."""
    step = grid.side * grid.pixel
    return math.ceil(float(sum(part.area / step**2 + part.length / step for part in parts_on(grid, lonlat))))


def _box_of(west: float, south: float, east: float, north: float) -> BaseGeometry:
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union_all([shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east, north)])


def _columns(transformer: Transformer, points: NDArray[np.float64]) -> NDArray[np.float64]:
    projected = np.column_stack(transformer.transform(points[:, 0], points[:, 1]))
    if not np.isfinite(projected).all():
        raise ValueError("not finite")
    return projected
