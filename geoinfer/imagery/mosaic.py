"""Rasters as one source: the first valid pixel wins, in the order given. The order moves neither grid nor lattice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import Grid, Window
from geoinfer.imagery.blocks import Valid, forget, read_into, read_window
from geoinfer.imagery.grids import Placement, bounds_of, ground_pixel_size, label_of, place
from geoinfer.imagery.raster import RasterFile, hash_file, inspect
from geoinfer.imagery.source import FILL, Image, all_valid
from geoinfer.imagery.stretch import Stretch, estimate_stretch
from geoinfer.imagery.warp import RESAMPLER, RESAMPLING, WarpedRaster, block_cache, warp_onto

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class NativeRaster:
    """A raster whose pixels are the grid's: reading is copying."""

    file: RasterFile
    stretch: Stretch | None
    """None for uint8 as it is."""
    window: Window
    """Its pixels, in the grid."""

    def read_into(self, window: Window, pixels: NDArray[np.uint8]) -> Valid:
        """Write the pixels of a window within `self.window`, `FILL` where invalid; which are valid, None where all are."""
        stored, south_up = self._stored(window), self.file.transform.e > 0
        target = pixels[:, ::-1] if south_up else pixels
        if self.stretch is None:
            valid = read_into(self.file, stored, target)
        else:
            values, valid = read_window(self.file, stored)
            self.stretch.apply(values, target)
        if valid is not None:
            np.copyto(target, FILL, where=~valid)
        return valid[::-1] if valid is not None and south_up else valid

    def forget(self, window: Window) -> None:
        """Drop the decoded blocks wholly inside a window within `self.window`."""
        if not window.is_empty:
            forget(self.file, self._stored(window))

    def _stored(self, window: Window) -> Window:
        """The same pixels in the file."""
        row, col = window.row - self.window.row, window.col - self.window.col
        if self.file.transform.e > 0:  # south up
            row = self.file.height - row - window.height
        return Window(row, col, window.height, window.width)


@dataclass(frozen=True, slots=True)
class RasterSource:
    """One or several GeoTIFFs on a model's grid: a `Source`."""

    placement: Placement
    rasters: tuple[NativeRaster | WarpedRaster, ...]
    """In order of priority."""
    resampling: str

    def __repr__(self) -> str:
        names = ", ".join(raster.file.name for raster in self.rasters[:3]) + ", ..." * (len(self.rasters) > 3)
        grid = self.grid
        how = "native" if self.placement.native else self.resampling
        return (
            f"<RasterSource {names}: {grid.height} x {grid.width} px of {grid.pixel_size:g} in {label_of(grid.crs)}, {how}>"
        )

    @property
    def grid(self) -> Grid:
        """The compute grid."""
        return self.placement.grid

    @property
    def bands(self) -> int:
        """C of `read`."""
        return len(self.rasters[0].file.bands)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy) of the imagery, in whole pixels, in the grid's coordinate system."""
        windows = self.placement.windows
        row, col = min(w.row for w in windows), min(w.col for w in windows)
        stop_row, stop_col = max(w.stop_row for w in windows), max(w.stop_col for w in windows)
        return self.grid.bounds(Window(row, col, stop_row - row, stop_col - col))

    def read(self, window: Window, out: NDArray[np.uint8] | None = None) -> Image:
        """The pixels of any window; what no raster covers is invalid and holds `FILL`.

        Args:
            window: In the grid.
            out: (C, H, W) to write the pixels into instead of an array of their own.

        Raises:
            SourceError: Blocks under the window are damaged.
        """
        pixels = np.empty((self.bands, window.height, window.width), np.uint8) if out is None else out
        valid: Valid = None
        for raster in self.rasters:
            part = window.intersection(raster.window)
            if part.is_empty:
                continue
            here = part.slices_in(window)
            if valid is None:
                found = raster.read_into(part, pixels[:, *here])
                if part == window and found is None:
                    return Image(pixels, all_valid(window.height, window.width))
                _fill_around(pixels, *here)
                valid = np.zeros(pixels.shape[1:], np.bool_)
                valid[here] = True if found is None else found
            elif not valid[here].all():  # a raster named earlier comes first
                layer = np.empty((self.bands, part.height, part.width), np.uint8)
                found = raster.read_into(part, layer)
                fresh = ~valid[here] if found is None else found & ~valid[here]
                np.copyto(pixels[:, *here], layer, where=fresh)
                valid[here] |= fresh
        if valid is None:
            pixels.fill(FILL)
            valid = np.zeros(pixels.shape[1:], np.bool_)
        return Image(pixels, valid)

    def forget(self, window: Window) -> None:
        """Make room: what lies wholly inside a window will not be read again."""
        for raster in self.rasters:
            raster.forget(window.intersection(raster.window))

    def snapshot(self) -> list[dict[str, object]]:
        """What identifies the pixels, per file in order of priority: content, and how it is read."""
        return [
            {
                "name": raster.file.name,
                "size": raster.file.size,
                "sha256": hash_file(raster.file),
                "crs": _crs_text(raster.file.crs),
                "bands": list(raster.file.bands),
                "stretch": None if raster.stretch is None else [list(pair) for pair in raster.stretch.limits],
                "resampling": None if self.placement.native else self.resampling,
                **({} if self.placement.native else {"resampler": RESAMPLER}),
            }
            for raster in self.rasters
        ]

    def describe(self) -> dict[str, object]:
        """What a person wants to know: the first raster's facts, the whole extent, and each file."""
        first = self.rasters[0]
        return {
            "path": [raster.file.path for raster in self.rasters],
            "crs": _crs_text(first.file.crs),
            "gsd": min(ground_pixel_size(raster.file) for raster in self.rasters),
            "bands": self.bands,
            "dtype": first.file.dtype,
            "nodata": first.file.nodata[0],
            "bounds": _union_bounds(self.rasters),
            "bounds_lonlat": self._bounds_lonlat(),
            "datetime": min((r.file.datetime for r in self.rasters if r.file.datetime is not None), default=None),
            "stretch": None if first.stretch is None else [list(pair) for pair in first.stretch.limits],
            "native": self.placement.native,
            "resampling": None if self.placement.native else self.resampling,
            "grid": {
                "crs": _crs_text(self.grid.crs),
                "pixel_size": self.grid.pixel_size,
                "height": self.grid.height,
                "width": self.grid.width,
                "bounds": self.bounds,
            },
            "files": [_describe_file(raster.file) for raster in self.rasters],
        }

    def _bounds_lonlat(self) -> tuple[float, float, float, float]:
        """West > east across the antimeridian."""
        west, south, east, north = Transformer.from_crs(self.grid.crs, 4326, always_xy=True).transform_bounds(*self.bounds)
        return west, south, east, north


def open_raster(
    path_or_paths: PathLike | Sequence[PathLike],
    *,
    gsd: float,
    core: int = 448,
    bands: tuple[int, ...] | None = None,
    stretch: tuple[float, float] | None = None,
    resampling: str = "bilinear",
    assume_crs: str | CRS | None = None,
) -> RasterSource:
    """Open GeoTIFFs as a source on a model's grid. Reads headers, and a bounded sample where a stretch must be found.

    Args:
        path_or_paths: One local GeoTIFF or several in order of priority, which share a coordinate system.
        gsd: The model's ground sample distance, metres.
        core: Step of the model's lattice, pixels.
        bands: Which bands to read, counted from 1; default red, green, blue by colour interpretation, else 1, 2, 3.
        stretch: Values that become 0 and 255 in every band. Default: uint8 stays as it is, other types are stretched between
            the 2nd and 98th percentile of each band, over all rasters.
        resampling: One of `RESAMPLING`, for rasters that are not on the model's grid.
        assume_crs: Coordinate system of files that name none.

    Raises:
        SourceError: A file that cannot be used, or files that do not go together.
        SafetyError: A file that could do harm.
        ConfigError: A setting that cannot work.
    """
    if not (np.isfinite(gsd) and gsd > 0):
        raise ConfigError(f"gsd {gsd}: must be a positive number of metres")
    if core < 1:
        raise ConfigError(f"core {core}: must be at least 1 px")
    if resampling not in RESAMPLING:
        raise ConfigError(f"resampling {resampling!r}: not one of {', '.join(RESAMPLING)}")
    paths = [path_or_paths] if isinstance(path_or_paths, str | os.PathLike) else list(path_or_paths)
    if not paths:
        raise ConfigError("no imagery: name at least one GeoTIFF")
    files = [inspect(path, bands, assume_crs) for path in paths]
    placement = place(files, gsd, core)
    limits = _stretch_of(files, stretch)
    if placement.native:
        return RasterSource(placement, tuple(map(NativeRaster, files, [limits] * len(files), placement.windows)), resampling)
    cache = block_cache()
    rasters = tuple(
        warp_onto(placement.grid, file, window, limits, resampling, index, cache)
        for index, (file, window) in enumerate(zip(files, placement.windows, strict=True))
    )
    return RasterSource(placement, rasters, resampling)


def _fill_around(pixels: NDArray[np.uint8], rows: slice, cols: slice) -> None:
    """`FILL` outside a part of (C, H, W)."""
    pixels[:, : rows.start] = FILL
    pixels[:, rows.stop :] = FILL
    pixels[:, rows, : cols.start] = FILL
    pixels[:, rows, cols.stop :] = FILL


def _stretch_of(files: Sequence[RasterFile], stretch: tuple[float, float] | None) -> Stretch | None:
    """One stretch for all rasters: neighbours must not differ in brightness."""
    kinds = {file.dtype: file.name for file in files}
    if stretch is not None:
        return Stretch((stretch,) * len(files[0].bands))
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {kind}" for kind, name in kinds.items())
        raise SourceError(f"rasters of different types ({listed}) have no common stretch; give one with stretch=")
    return None if "uint8" in kinds else estimate_stretch(files)


def _union_bounds(rasters: Sequence[NativeRaster | WarpedRaster]) -> tuple[float, float, float, float]:
    left, bottom, right, top = zip(*(bounds_of(raster.file) for raster in rasters), strict=True)
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


def _crs_text(crs: CRS) -> str:
    """`EPSG:code` where there is one, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code is not None else crs.to_wkt()
