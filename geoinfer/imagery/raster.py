"""One GeoTIFF: its header as a value, and a handle on it for each thread. Knows no grid and no model.

Everything that the header decides is read once, by `inspect`; workers get the value and open the file again, one handle a
thread. Files beside the raster (.aux.xml, .msk, .ovr, .tfw) are ignored: no snapshot has them, so they may change nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from geoinfer.errors import ConfigError, SafetyError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery.hashes import remembered
from geoinfer.imagery.meter import count_decoded
from geoinfer.imagery.safety import MAX_BANDS, MAX_BLOCK_BYTES, check_file

_ENVIRONMENT: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 16 * 2**20,  # bytes; small, since `blocks` remembers what was decoded
    "GTIFF_POINT_GEO_IGNORE": "NO",
}
_MAX_HANDLES = 32
_RED_GREEN_BLUE = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True, slots=True)
class RasterFile:
    """The header of a GeoTIFF, as far as reading it goes. Holds no handle."""

    path: str
    """Absolute."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change: with `size`, how a file replaced during a run is noticed. Enters no fingerprint."""
    height: int
    width: int
    count: int
    """All bands of the file."""
    dtype: str
    crs: CRS
    """Horizontal."""
    transform: Affine
    """(col, row) -> (x, y)."""
    bands: tuple[int, ...]
    """Numbers of the bands to read, from 1, in the model's order."""
    alpha: int | None
    """Number of the alpha band."""
    nodata: tuple[float | None, ...]
    """Per band of `bands`."""
    has_mask: bool
    """It carries an internal mask."""
    datetime: str | None
    """ISO 8601, from TIFFTAG_DATETIME."""
    block: tuple[int, int]
    """(rows, cols) of the blocks, tiles or strips, that the file is stored in."""

    @property
    def name(self) -> str:
        """Base name."""
        return os.path.basename(self.path)

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def validity(self) -> str:
        """What says which pixels are valid, in words."""
        kinds = [
            ("alpha band", self.alpha is not None),
            ("internal mask", self.has_mask),
            ("nodata", any(v is not None for v in self.nodata)),
        ]
        return " and ".join(kind for kind, present in kinds if present) or "all valid"


class _Inside(threading.local):
    """This thread is inside `environment` already."""

    yes = False


_INSIDE = _Inside()


@contextmanager
def environment() -> Iterator[None]:
    """GDAL's options for every read of ours, whatever the process around us has set.

    Entering takes a quarter of a millisecond, so whoever reads many blocks enters once around them; within that it is free.
    """
    if _INSIDE.yes:
        yield
        return
    with rasterio.Env(**_ENVIRONMENT):
        _INSIDE.yes = True
        try:
            yield
        finally:
            _INSIDE.yes = False


def inspect(
    path: str | os.PathLike[str], bands: Sequence[int] | None = None, assume_crs: str | CRS | None = None
) -> RasterFile:
    """Read the header of a local GeoTIFF.

    Args:
        path: The file.
        bands: Numbers of the bands to read, from 1; default: red, green, blue by colour interpretation, else 1, 2, 3.
        assume_crs: Coordinate system of a file that names none.

    Raises:
        SourceError: Not a readable, georeferenced raster with these bands.
        SafetyError: Reading it could do harm.
    """
    file = check_file(path)
    status = file.stat()
    try:
        with environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(file, driver="GTiff", sharing=False) as dataset:
                _check_sizes(file, dataset)
                chosen = _choose_bands(file, dataset, bands)
                flags = dataset.mask_flag_enums[chosen[0] - 1]
                return RasterFile(
                    path=str(file),
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    height=dataset.height,
                    width=dataset.width,
                    count=dataset.count,
                    dtype=_dtype_of(file, dataset, chosen),
                    crs=_crs_of(file, dataset, assume_crs),
                    transform=_transform_of(file, dataset),
                    bands=chosen,
                    alpha=_alpha_of(dataset, chosen),
                    nodata=tuple(dataset.nodatavals[band - 1] for band in chosen),
                    has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
                    datetime=_datetime_of(dataset),
                    block=dataset.block_shapes[chosen[0] - 1],
                )
    except RasterioError as error:
        raise SourceError(f"{file}: cannot be opened as GeoTIFF: {reason_of(error)}") from error


def hash_file(file: RasterFile) -> str:
    """sha256 of the content, as it is remembered or read."""
    try:
        check_unchanged(file)
        found = remembered(file.path, lambda: _hash_content(file.path))
        check_unchanged(file)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{file.name}: cannot be read: {error.strerror or error}") from error
    return found


def _hash_content(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Handles(threading.local):
    """Open datasets of this thread, the longest unused first. GDAL handles must not cross threads."""

    def __init__(self) -> None:
        self.open: OrderedDict[tuple[str, int, int], DatasetReader] = OrderedDict()


_HANDLES = _Handles()


def handle(file: RasterFile) -> DatasetReader:
    """This thread's dataset of a file; closed when many others were used since.

    Raises:
        SourceError: The file changed.
    """
    check_unchanged(file)
    key, handles = (file.path, file.size, file.mtime_ns), _HANDLES.open
    if key in handles:
        handles.move_to_end(key)
        return handles[key]
    while len(handles) >= _MAX_HANDLES:
        handles.popitem(last=False)[1].close()
    handles[key] = rasterio.open(Path(file.path), driver="GTiff", sharing=False)
    count_decoded(headers=1)
    return handles[key]


def check_unchanged(file: RasterFile) -> None:
    """Raise SourceError where the file is no longer the one that was opened."""
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise SourceError(f"{file.path}: cannot be found any more: {error.strerror}") from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise SourceError(f"{file.path}: changed since it was opened; start again when it is complete")


def reason_of(error: BaseException) -> str:
    """The deepest cause that says something: rasterio's own messages often say only 'see context'."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return " ".join(str(error).split()) or type(error).__name__


def _check_sizes(file: Path, dataset: DatasetReader) -> None:
    if dataset.count > MAX_BANDS:
        raise SourceError(f"{file}: {dataset.count} bands, more than the {MAX_BANDS} that imagery may have")
    sizes = [np.dtype(kind).itemsize for kind in dataset.dtypes]
    together = sum(sizes) if dataset.interleaving == Interleaving.pixel else max(sizes)
    for height, width in dataset.block_shapes:
        if height * width * together > MAX_BLOCK_BYTES:
            raise SafetyError(f"{file}: refused, blocks of {height}x{width} px exceed {MAX_BLOCK_BYTES // 2**20} MiB")


def _choose_bands(file: Path, dataset: DatasetReader, bands: Sequence[int] | None) -> tuple[int, ...]:
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


def _alpha_of(dataset: DatasetReader, chosen: tuple[int, ...]) -> int | None:
    numbers = [number for number, colour in enumerate(dataset.colorinterp, 1) if colour == ColorInterp.alpha]
    return next((number for number in numbers if number not in chosen), None)


def _dtype_of(file: Path, dataset: DatasetReader, bands: tuple[int, ...]) -> str:
    kinds = {dataset.dtypes[band - 1] for band in bands}
    if len(kinds) > 1:
        raise SourceError(f"{file}: bands of different types: {', '.join(sorted(kinds))}")
    kind = str(kinds.pop())
    if kind.startswith("complex"):
        raise SourceError(f"{file}: {kind} pixels cannot be shown to a model of images")
    return kind


def _crs_of(file: Path, dataset: DatasetReader, assume_crs: str | CRS | None) -> CRS:
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
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    crs = crs.to_2d()
    if not (crs.is_projected or crs.is_geographic):
        raise SourceError(f"{file}: coordinate system {crs.name!r} ({crs.type_name}) is neither projected nor geographic")
    code = crs.to_epsg()
    return crs if code is None else CRS.from_epsg(code)


def _transform_of(file: Path, dataset: DatasetReader) -> Affine:
    transform = Affine(*dataset.transform[:6])
    if transform == Affine.identity():
        raise SourceError(f"{file}: no georeference; set it with gdal_edit.py -a_ullr")
    if not all(map(math.isfinite, transform[:6])) or transform.is_degenerate:
        raise SourceError(f"{file}: its georeference {tuple(transform[:6])} maps pixels onto nothing")
    return transform


def _datetime_of(dataset: DatasetReader) -> str | None:
    day, _, clock = str(dataset.tags().get("TIFFTAG_DATETIME", "")).strip().partition(" ")
    parts = day.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return "-".join(parts) + (f"T{clock}" if clock else "")
