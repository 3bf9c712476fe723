"""Rasters as one source: the first valid pixel wins, in order of priority. The order moves neither grid nor lattice.

Any number of rasters: a read looks only at those that meet its window, and of one that lies beneath others only at what
these left open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import Grid, Window
from geoinfer.imagery.about import describe_source, snapshot_of
from geoinfer.imagery.blocks import Valid
from geoinfer.imagery.grids import Placement, place
from geoinfer.imagery.ground import label_of
from geoinfer.imagery.native import NativeRaster
from geoinfer.imagery.options import Prefer, SourceOptions
from geoinfer.imagery.order import LeftOut, open_headers, preferred, with_shared_crs
from geoinfer.imagery.overviews import best_overview
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.source import FILL, Image, Origin, all_valid
from geoinfer.imagery.stretch import stretch_of
from geoinfer.imagery.warp import RESAMPLING, WarpedRaster, block_cache, warp_onto

PathLike = str | os.PathLike[str]
NOWHERE = -1
"""Origin of a pixel that no raster covers."""


@dataclass(frozen=True, slots=True)
class RasterSource:
    """One or several rasters on a model's grid: a `Source`."""

    placement: Placement
    rasters: tuple[NativeRaster | WarpedRaster, ...]
    """In order of priority."""
    resampling: str
    prefer: Prefer = "given"
    """What put them in that order."""
    left_out: tuple[LeftOut, ...] = ()
    """Rasters that were named and could not be opened."""
    _edges: NDArray[np.int64] = field(init=False, compare=False, repr=False)
    """(N, 4) row, col, stop_row, stop_col of each raster's window."""
    remarks: tuple[str, ...] = ()
    """What a user should know of how it was found: items left out, rasters that changed since their snapshot. Enters no
    fingerprint."""

    def __post_init__(self) -> None:
        windows = [raster.window for raster in self.rasters]
        edges = np.array([(w.row, w.col, w.stop_row, w.stop_col) for w in windows], np.int64).reshape(-1, 4)
        object.__setattr__(self, "_edges", edges)

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
        row, col = self._edges[:, :2].min(axis=0).tolist()
        stop_row, stop_col = self._edges[:, 2:].max(axis=0).tolist()
        return self.grid.bounds(Window(row, col, stop_row - row, stop_col - col))

    def meeting(self, window: Window) -> list[int]:
        """Numbers of the rasters whose windows share a pixel with a window, in order of priority."""
        if window.is_empty:
            return []
        row, col, stop_row, stop_col = self._edges.T
        meets = (row < window.stop_row) & (stop_row > window.row) & (col < window.stop_col) & (stop_col > window.col)
        return [int(number) for number in np.flatnonzero(meets)]

    def read(self, window: Window, out: NDArray[np.uint8] | None = None) -> Image:
        """The pixels of any window; what no raster covers is invalid and holds `FILL`.

        Args:
            window: In the grid.
            out: (C, H, W) to write the pixels into instead of an array of their own.

        Raises:
            SourceError: Blocks under the window are damaged.
        """
        shape = window.height, window.width
        pixels = np.empty((self.bands, *shape), np.uint8) if out is None else out
        origin: NDArray[np.int32] | None = None
        valid: Valid = None
        for number in self.meeting(window):
            raster = self.rasters[number]
            part = window.intersection(raster.window)
            if valid is None:
                here = part.slices_in(window)
                found = raster.read_into(part, pixels[:, *here])
                if part == window and found is None:
                    return Image(pixels, all_valid(*shape), self._origin_everywhere(number, shape))
                _fill_around(pixels, *here)
                valid = np.zeros(shape, np.bool_)
                valid[here] = True if found is None else found
                origin = self._origins_of(valid, number)
                continue
            part = _open_part(part, window, valid)
            if part.is_empty:  # rasters before it cover all of it
                continue
            here = part.slices_in(window)
            layer = np.empty((self.bands, part.height, part.width), np.uint8)
            found = raster.read_into(part, layer)
            fresh = ~valid[here] if found is None else found & ~valid[here]
            np.copyto(pixels[:, *here], layer, where=fresh)
            valid[here] |= fresh
            if origin is not None:
                origin[here][fresh] = number
        if valid is None:
            pixels.fill(FILL)
            return Image(pixels, np.zeros(shape, np.bool_), self._origin_everywhere(NOWHERE, shape))
        return Image(pixels, valid, origin)

    def _origin_everywhere(self, number: int, shape: tuple[int, int]) -> NDArray[np.int32] | None:
        return None if len(self.rasters) == 1 else np.broadcast_to(np.int32(number), shape)

    def _origins_of(self, valid: NDArray[np.bool_], number: int) -> NDArray[np.int32] | None:
        return None if len(self.rasters) == 1 else np.where(valid, np.int32(number), np.int32(NOWHERE))

    def forget(self, window: Window) -> None:
        """Make room: what lies wholly inside a window will not be read again."""
        for number in self.meeting(window):
            raster = self.rasters[number]
            raster.forget(window.intersection(raster.window))

    def origins(self) -> list[Origin]:
        """What footprints say of each raster, in order of priority."""
        return [_origin_of(raster.file) for raster in self.rasters]

    def snapshot(self, window: Window | None = None) -> list[dict[str, object]]:
        """What identifies the pixels, per raster in order of priority: content, and how it is read.

        Args:
            window: In the grid: only the rasters that meet it; all where None.
        """
        numbers = range(len(self.rasters)) if window is None else self.meeting(window)
        resampling = None if self.placement.native else self.resampling
        return [snapshot_of(self.rasters[number], resampling) for number in numbers]

    def describe(self) -> dict[str, object]:
        """What a person wants to know: the first raster's facts, the whole extent, and the first of the files."""
        return describe_source(self)


def open_scenes(
    scenes: Sequence[Scene], options: SourceOptions, *, gsd: float, core: int, crs: CRS | None = None
) -> RasterSource:
    """Open scenes as one source on a model's grid. Reads headers, and a bounded sample where a stretch must be found.

    Args:
        scenes: In the order given; in any coordinate systems, with pixels of any size.
        options: Every setting of a source.
        gsd: The model's ground sample distance, metres.
        core: Step of the model's lattice, pixels.
        crs: Coordinate system of the grid, chosen by the imagery where None; rasters are cut to what it can show.

    Raises:
        ConfigError: A setting that cannot work.
        SourceError: A raster that cannot be used, or rasters that do not go together.
        SafetyError: A raster that could do harm, or that may not be reached.
        RemoteError: A remote gave up.
        TooWideError: No single grid can hold it.
    """
    _check(options, gsd, core)
    if not scenes:
        raise ConfigError("no imagery: name at least one GeoTIFF")
    files, left_out = open_headers(scenes, options)
    return open_files(files, options, gsd=gsd, core=core, crs=crs, left_out=left_out)


def open_files(
    files: Sequence[RasterFile],
    options: SourceOptions,
    *,
    gsd: float,
    core: int,
    crs: CRS | None = None,
    left_out: tuple[LeftOut, ...] = (),
) -> RasterSource:
    """Rasters whose headers are known as one source; arguments and errors as for `open_scenes`."""
    _check(options, gsd, core)
    ordered = preferred(with_shared_crs(files), options.prefer)
    if options.overviews:
        ordered = [best_overview(file, gsd) for file in ordered]
    _check_bands(ordered)
    placement = place(ordered, gsd, core, crs)
    stretches = stretch_of(ordered, options)
    resampling, prefer = options.resampling, options.prefer
    rasters: tuple[NativeRaster | WarpedRaster, ...]
    if placement.native:
        rasters = tuple(map(NativeRaster, ordered, stretches, placement.windows))
    else:
        cache = block_cache()
        shown = [part for part in zip(ordered, placement.windows, stretches, strict=True) if not part[1].is_empty]
        rasters = tuple(
            warp_onto(placement.grid, file, window, stretch, resampling, index, cache)
            for index, (file, window, stretch) in enumerate(shown)
        )
        placement = Placement(placement.grid, False, tuple(window for _, window, _ in shown))
    return RasterSource(placement, rasters, resampling, prefer, left_out)


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
    """Open local GeoTIFFs as a source on a model's grid: `open_scenes` for files.

    Args:
        path_or_paths: One local GeoTIFF or several in order of priority.
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
    options = SourceOptions(bands=bands, stretch=stretch, resampling=resampling, assume_crs=assume_crs)
    paths = [path_or_paths] if isinstance(path_or_paths, str | os.PathLike) else list(path_or_paths)
    return open_scenes([Scene(os.fspath(path)) for path in paths], options, gsd=gsd, core=core)


def _origin_of(file: RasterFile) -> Origin:
    item = file.scene.item if file.scene is not None else None
    return Origin(item or file.name, file.datetime)


def _check(options: SourceOptions, gsd: float, core: int) -> None:
    if not (np.isfinite(gsd) and gsd > 0):
        raise ConfigError(f"gsd {gsd}: must be a positive number of metres")
    if core < 1:
        raise ConfigError(f"core {core}: must be at least 1 px")
    if options.resampling not in RESAMPLING:
        raise ConfigError(f"resampling {options.resampling!r}: not one of {', '.join(RESAMPLING)}")


def _check_bands(files: Sequence[RasterFile]) -> None:
    counts = {len(file.bands): file.name for file in files}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count}" for count, name in counts.items())
        raise SourceError(f"rasters with different numbers of bands to read ({listed}): say which with bands= (--bands)")


def _open_part(part: Window, window: Window, valid: NDArray[np.bool_]) -> Window:
    """The smallest window that holds the pixels of a part that are not valid yet."""
    rows, cols = part.slices_in(window)
    is_open = ~valid[rows, cols]
    down, across = np.flatnonzero(is_open.any(axis=1)), np.flatnonzero(is_open.any(axis=0))
    if not len(down):
        return Window(part.row, part.col, 0, 0)
    return Window(
        part.row + int(down[0]),
        part.col + int(across[0]),
        int(down[-1] - down[0]) + 1,
        int(across[-1] - across[0]) + 1,
    )


def _fill_around(pixels: NDArray[np.uint8], rows: slice, cols: slice) -> None:
    """`FILL` outside a part of (C, H, W)."""
    pixels[:, : rows.start] = FILL
    pixels[:, rows.stop :] = FILL
    pixels[:, rows, : cols.start] = FILL
    pixels[:, rows, cols.stop :] = FILL
