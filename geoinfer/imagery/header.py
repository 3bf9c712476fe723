"""What a raster's header decides, asked of GDAL's dataset and judged: bands, type, coordinate system, place, time.

Each function takes the raster's name for messages, and raises SourceError where the raster cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, Interleaving
from rasterio.io import DatasetReader

from geoinfer.errors import ConfigError, SafetyError, SourceError
from geoinfer.imagery import tiff
from geoinfer.imagery.opener import reason_of
from geoinfer.imagery.safety import MAX_BANDS, MAX_BLOCK_BYTES
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.stored import Stored, directories

_RED_GREEN_BLUE = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def overview_sizes(stored: Stored, dataset: DatasetReader, band: int, has_mask: bool) -> tuple[tuple[int, int], ...]:
    """(height, width) of the overviews; none where GDAL sees others, or where one lacks the mask that the raster has."""
    images = directories(stored)
    found = tiff.overviews_of(images)
    if len(found) != len(dataset.overviews(band)) or (
        has_mask and any(tiff.mask_of(images, image) is None for image in found)
    ):
        return ()
    return tuple((image.height, image.width) for image in found)


def nodata_of(dataset: DatasetReader, chosen: tuple[int, ...], scene: Scene) -> tuple[float | None, ...]:
    """Per band: the file's own value, else what the scene declares."""
    own = tuple(dataset.nodatavals[band - 1] for band in chosen)
    return own if scene.nodata is None else tuple(scene.nodata if value is None else value for value in own)


def check_sizes(file: str, dataset: DatasetReader) -> None:
    """Refuse too many bands, and blocks too large to hold."""
    if dataset.count > MAX_BANDS:
        raise SourceError(f"{file}: {dataset.count} bands, more than the {MAX_BANDS} that imagery may have")
    sizes = [np.dtype(kind).itemsize for kind in dataset.dtypes]
    together = sum(sizes) if dataset.interleaving == Interleaving.pixel else max(sizes)
    for height, width in dataset.block_shapes:
        if height * width * together > MAX_BLOCK_BYTES:
            raise SafetyError(f"{file}: refused, blocks of {height}x{width} px exceed {MAX_BLOCK_BYTES // 2**20} MiB")


def choose_bands(file: str, dataset: DatasetReader, bands: Sequence[int] | None) -> tuple[int, ...]:
    """Those asked for, else red, green, blue by their colours, else the first three."""
    colours = [colour.name for colour in dataset.colorinterp]
    found = f"{dataset.count} band{'s' * (dataset.count != 1)} ({', '.join(colours[:8])}{', ...' * (len(colours) > 8)})"
    if bands is not None:
        chosen = tuple(int(band) for band in bands)
        if not chosen:
            raise ConfigError("bands: name at least one band, counted from 1")
        missing = [band for band in chosen if not 1 <= band <= dataset.count]
        if missing:
            raise SourceError(f"{file}: no band {missing[0]}, found {found}; bands= counts from 1")
        return chosen
    if all(colour in dataset.colorinterp for colour in _RED_GREEN_BLUE):
        return tuple(dataset.colorinterp.index(colour) + 1 for colour in _RED_GREEN_BLUE)
    if ColorInterp.palette not in dataset.colorinterp and sum(c != ColorInterp.alpha for c in dataset.colorinterp[:3]) >= 3:
        return 1, 2, 3
    raise SourceError(
        f"{file}: expected 3 bands (red, green, blue), found {found}; say which to use with bands=, like bands=(1, 1, 1)"
    )


def alpha_of(dataset: DatasetReader, chosen: tuple[int, ...]) -> int | None:
    """Number of the alpha band."""
    numbers = [number for number, colour in enumerate(dataset.colorinterp, 1) if colour == ColorInterp.alpha]
    return next((number for number in numbers if number not in chosen), None)


def dtype_of(file: str, dataset: DatasetReader, bands: tuple[int, ...]) -> str:
    """The one type of all bands read."""
    kinds = {dataset.dtypes[band - 1] for band in bands}
    if len(kinds) > 1:
        raise SourceError(f"{file}: bands of different types: {', '.join(sorted(kinds))}")
    kind = str(kinds.pop())
    if kind.startswith("complex"):
        raise SourceError(f"{file}: {kind} pixels cannot be shown to a model of images")
    return kind


def crs_of(file: str, dataset: DatasetReader, assume_crs: str | CRS | None) -> CRS:
    """The horizontal coordinate system, assumed where the file names none."""
    try:
        if dataset.gcps[0] and dataset.transform.is_identity:
            raise SourceError(f"{file}: only ground control points, no georeference; gdalwarp makes a raster of them")
        if dataset.crs is not None and dataset.crs.to_wkt():
            crs = CRS.from_wkt(dataset.crs.to_wkt())
        elif assume_crs is not None:
            crs = CRS.from_user_input(assume_crs)
        else:
            raise SourceError(
                f"{file}: no coordinate system in the file; if you know it, say so with assume_crs= (--assume-crs EPSG:...)"
            )
    except CRSError as error:
        raise ConfigError(f"assume_crs {assume_crs!r}: not a coordinate system: {reason_of(error)}") from error
    return horizontal(file, crs)


def horizontal(file: str, crs: CRS) -> CRS:
    """Without heights, and by its registered code where it has one."""
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    crs = crs.to_2d()
    if not (crs.is_projected or crs.is_geographic):
        raise SourceError(f"{file}: coordinate system {crs.name!r} ({crs.type_name}) is neither projected nor geographic")
    code = crs.to_epsg()
    return crs if code is None else CRS.from_epsg(code)


def transform_of(file: str, dataset: DatasetReader) -> Affine:
    """(col, row) -> (x, y)."""
    transform = Affine(*dataset.transform[:6])
    if transform == Affine.identity():
        raise SourceError(f"{file}: no georeference; set it with gdal_edit.py -a_ullr")
    if not all(map(math.isfinite, transform[:6])) or transform.is_degenerate:
        raise SourceError(f"{file}: its georeference {tuple(transform[:6])} maps pixels onto nothing")
    return transform


def datetime_of(dataset: DatasetReader) -> str | None:
    """ISO 8601, from TIFFTAG_DATETIME."""
    day, _, clock = str(dataset.tags().get("TIFFTAG_DATETIME", "")).strip().partition(" ")
    parts = day.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return "-".join(parts) + (f"T{clock}" if clock else "")
