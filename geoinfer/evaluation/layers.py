"""What lies where a footprint is: the polygon, the raster's pixel, and how far water is. Knows nothing of slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio.windows import Window

from geoinfer.errors import ConfigError, SourceError
from geoinfer.imagery.raster import environment
from geoinfer.imagery.safety import check_file

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

Geometries = NDArray[np.object_]
READ_PX = 1024
"""Side of the squares that a raster is read in: only those that hold a centroid."""


def distance_to(shapes: Geometries, layer: GeoDataFrame | GeoSeries, plane: CRS) -> NDArray[np.float64]:
    """Distance of each polygon to the nearest polygon of a layer.

    Args:
        shapes: (N,) polygons in the plane.
        layer: Polygons, any coordinate system.
        plane: Metres.

    Returns:
        (N,) metres; 0 where they touch or overlap, NaN where the layer is empty.

    Raises:
        ConfigError: The layer has no coordinate system.
    """
    polygons = in_plane(layer, plane, "water")
    if not len(polygons):
        return np.full(len(shapes), np.nan)
    # Nearest among short stretches of outline: a lake's outline of 100 000 vertices would be walked for every footprint.
    lines = shapely.get_parts(shapely.boundary(polygons))
    points, of_line = shapely.get_coordinates(lines, return_index=True)
    inner = of_line[1:] == of_line[:-1]
    stretches = shapely.linestrings(np.stack([points[:-1][inner], points[1:][inner]], axis=1))
    distance = np.full(len(shapes), np.nan)
    (at, _), found = shapely.STRtree(stretches).query_nearest(shapes, return_distance=True, all_matches=False)
    distance[at] = found
    # The polygons of the layer ask, since it is they that a query prepares.
    distance[shapely.STRtree(shapes).query(polygons, predicate="intersects")[1]] = 0.0
    return distance


def polygon_at(points: Geometries, layer: GeoDataFrame | GeoSeries, plane: CRS) -> NDArray[np.int64]:
    """The polygon that each point lies in; the first in the layer's order where several do, so that parts add up.

    Args:
        points: (N,) points in the plane.
        layer: Polygons, any coordinate system.
        plane: Metres.

    Returns:
        (N,) row of the layer, -1 where there is none.

    Raises:
        ConfigError: The layer has no coordinate system.
    """
    polygons = in_plane(layer, plane, "the layer to slice by", drop=False)
    found = np.full(len(points), len(polygons), np.int64)
    rows, at = shapely.STRtree(points).query(polygons, predicate="intersects")
    np.minimum.at(found, at, rows)
    return np.where(found < len(polygons), found, -1)


def raster_at(points: Geometries, plane: CRS, path: Path, band: int = 1) -> NDArray[Any]:
    """The value of the pixel that each point lies in, in the raster's own coordinate system.

    Args:
        points: (N,) points in the plane.
        plane: Metres.
        path: A GeoTIFF.
        band: From 1.

    Returns:
        (N,) of objects: an int where the raster holds integers, else a float; None outside, in nodata and for NaN.

    Raises:
        SourceError: It cannot be read, has no coordinate system or not that band.
        SafetyError: What `imagery.safety` refuses.
    """
    values = np.full(len(points), None, dtype=object)
    file = check_file(path)
    try:
        with environment(), rasterio.open(file, driver="GTiff") as raster:
            if raster.crs is None:
                raise SourceError(f"{file.name}: has no coordinate system; slices cannot say where its pixels are")
            if band > raster.count:
                raise SourceError(f"{file.name}: has {raster.count} bands, not {band}; say band=1 to {raster.count}")
            to_raster = Transformer.from_crs(plane, CRS.from_user_input(raster.crs), always_xy=True)
            x, y = to_raster.transform(shapely.get_x(points), shapely.get_y(points))
            col, row = ~raster.transform * (np.asarray(x), np.asarray(y))
            inside = (col >= 0) & (col < raster.width) & (row >= 0) & (row < raster.height)  # not where it is infinite
            at = np.flatnonzero(inside)
            rows, cols = np.floor(row[at]).astype(np.int64), np.floor(col[at]).astype(np.int64)
            squares, of_square = np.unique(np.stack([rows // READ_PX, cols // READ_PX], axis=1), axis=0, return_inverse=True)
            of_square = of_square.reshape(-1)
            for number, (top, left) in enumerate((squares * READ_PX).tolist()):
                window = Window(left, top, min(READ_PX, raster.width - left), min(READ_PX, raster.height - top))
                pixels = raster.read(band, window=window, masked=True)
                here = of_square == number
                chosen = pixels[rows[here] - top, cols[here] - left]
                known = ~np.ma.getmaskarray(chosen)
                if chosen.dtype.kind == "f":
                    known &= np.isfinite(chosen.data)
                values[at[here][known]] = chosen.data[known].tolist()
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{file.name}: cannot be read to slice by: {error}") from error
    return values


def in_plane(layer: GeoDataFrame | GeoSeries, plane: CRS, name: str, *, drop: bool = True) -> Geometries:
    """The valid polygons of a layer in the plane; without `drop` as many as it has rows."""
    if layer.crs is None:
        raise ConfigError(f"{name} has no coordinate system; set it with set_crs()")
    shapes: Geometries = np.asarray(layer.geometry.to_crs(plane).array, dtype=object).copy()
    bad = ~shapely.is_valid(shapes) & ~shapely.is_missing(shapes)
    shapes[bad] = shapely.make_valid(shapes[bad], method="structure", keep_collapsed=False)
    return shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))] if drop else shapes
