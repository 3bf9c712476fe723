"""What a source says of itself: the snapshot that names its pixels, and the facts that a person wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyproj import CRS, Transformer

from geoinfer.imagery.grids import shared_crs
from geoinfer.imagery.ground import bounds_of, ground_pixel_size, label_of
from geoinfer.imagery.native import NativeRaster
from geoinfer.imagery.order import RULES
from geoinfer.imagery.raster import RasterFile, version_of
from geoinfer.imagery.warp import RESAMPLER, WarpedRaster

if TYPE_CHECKING:
    from geoinfer.imagery.mosaic import RasterSource

MOST_FILES = 20
"""Files that a description lists; of the others it gives the number."""


def snapshot_of(raster: NativeRaster | WarpedRaster, resampling: str | None) -> dict[str, object]:
    """What identifies the pixels of one raster: content, and how it is read.

    Args:
        raster: On its grid.
        resampling: None where the grid's pixels are its own.
    """
    file, scene = raster.file, raster.file.scene
    told: dict[str, object] = {"overview": file.overview}
    if scene is not None:  # what a document says, and the file does not: footprints carry it, or pixels follow from it
        told |= {"item": scene.item, "datetime": scene.datetime, "nodata": scene.nodata}
    return {
        "name": file.name,
        "size": file.size,
        **(version_of(file) if file.service is None else file.service.snapshot()),
        "crs": crs_text(file.crs),
        "bands": list(file.bands),
        "stretch": None if raster.stretch is None else [list(pair) for pair in raster.stretch.limits],
        "resampling": resampling,
        **({} if resampling is None else {"resampler": RESAMPLER}),
        **{name: value for name, value in told.items() if value is not None},
    }


def describe_source(source: RasterSource) -> dict[str, object]:
    """The first raster's facts, the whole extent, and the first `MOST_FILES` files."""
    rasters, grid = source.rasters, source.grid
    files = [raster.file for raster in rasters]
    first, shared = rasters[0], shared_crs(files)
    placement = source.placement
    several: dict[str, object] = {}
    if len(files) > 1:
        several = {"rasters": len(files), "order": RULES[source.prefer]}
    if source.left_out:
        several["left_out"] = [f"{part.name}: {part.reason}" for part in source.left_out]
    return {
        "path": [file.shown for file in files[:MOST_FILES]],
        **several,
        "crs": crs_text(first.file.crs) if shared is not None else sorted({label_of(file.crs) for file in files}),
        "gsd": min(ground_pixel_size(file) for file in files),
        "bands": source.bands,
        "dtype": first.file.dtype,
        "nodata": first.file.nodata[0],
        "bounds": _union_bounds(files) if shared is not None else source.bounds,
        "bounds_lonlat": _bounds_lonlat(source),
        "datetime": min((taken for taken in (file.datetime for file in files) if taken is not None), default=None),
        "stretch": None if first.stretch is None else [list(pair) for pair in first.stretch.limits],
        "native": placement.native,
        "resampling": None if placement.native else source.resampling,
        "grid": {
            "crs": crs_text(grid.crs),
            "pixel_size": grid.pixel_size,
            "height": grid.height,
            "width": grid.width,
            "bounds": source.bounds,
        },
        "files": [_describe_file(file) for file in files[:MOST_FILES]],
    }


def crs_text(crs: CRS) -> str:
    """`EPSG:code` where there is one, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code is not None else crs.to_wkt()


def _bounds_lonlat(source: RasterSource) -> tuple[float, float, float, float]:
    """West > east across the antimeridian."""
    to_lonlat = Transformer.from_crs(source.grid.crs, 4326, always_xy=True)
    west, south, east, north = to_lonlat.transform_bounds(*source.bounds)
    return west, south, east, north


def _union_bounds(files: Sequence[RasterFile]) -> tuple[float, float, float, float]:
    left, bottom, right, top = zip(*map(bounds_of, files), strict=True)
    return min(left), min(bottom), max(right), max(top)


def _describe_file(file: RasterFile) -> dict[str, object]:
    return {
        "name": file.name,
        "size": file.size,
        "height": file.height,
        "width": file.width,
        "count": file.count,
        "bands": list(file.bands),
        "dtype": file.dtype,
        "validity": file.validity,
        "nodata": list(file.nodata),
        "transform": list(file.transform[:6]),
        "gsd": ground_pixel_size(file),
        "bounds": bounds_of(file),
        "datetime": file.datetime,
    }
