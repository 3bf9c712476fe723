"""What reading windows of a source takes of its files: fetched ahead of the reads, or reckoned from tables for a plan.

As a read goes: the rasters that meet a window in order of priority until one covers it, of each the blocks that were not
decoded before; of a row of windows together, neighbouring ones by one request. Which pixels are nodata is not known here: a
raster is taken to be whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from geoinfer.grid import Window
from geoinfer.imagery.blocks import granule_of, planned_ranges, prefetch
from geoinfer.imagery.decode import ranges_under
from geoinfer.imagery.ground import outline, project
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.imagery.native import NativeRaster
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.source import Source
from geoinfer.imagery.stored import HEAD_BYTES
from geoinfer.imagery.warp import WarpedRaster
from geoinfer.remote.address import is_remote
from geoinfer.remote.client import join_ranges

Range = tuple[int, int]
"""(start, stop) in bytes."""


@dataclass(slots=True)
class Reading:
    """What was reckoned; fractions where some of the windows stand for more."""

    rasters: int = 0
    """That the region meets."""
    headers: int = 0
    """Requests that open them: one a remote raster."""
    stored_bytes: float = 0.0
    """Of the blocks, in the files."""
    requests: float = 0.0
    """Over networks, headers included."""
    fetched_bytes: float = 0.0
    """Over networks, headers included."""


def fetch_ahead(source: Source, windows: Sequence[Window]) -> None:
    """Fetch what reading windows will need of remote rasters, all of it side by side, so that the reads need not wait.

    Raises:
        SourceError: A file changed, or is gone.
        RemoteError: A server gave up.
    """
    if not isinstance(source, RasterSource):
        return
    wanted: dict[int, list[Window]] = {}
    for window in windows:
        files = [source.rasters[number].file for number in source.meeting(window)]
        if any(file.remote is not None or file.service is not None for file in files):
            for number, stored in _reads(source, window):
                wanted.setdefault(number, []).append(stored)
    for number, parts in wanted.items():
        prefetch(source.rasters[number].file, parts)


def headers_of(source: Source, region: Window) -> tuple[int, int]:
    """Requests and bytes that opening the rasters took that a region meets: one request for each that is remote."""
    if not isinstance(source, RasterSource):
        return 0, 0
    files = [source.rasters[number].file for number in source.meeting(region)]
    sizes = [min(HEAD_BYTES, file.size) for file in files if _is_remote(file)]
    return len(sizes), sum(sizes)


def reckon(source: Source, region: Window, tiles: Iterable[tuple[float, Sequence[Window]]]) -> Reading:
    """What reading tiles of a source costs.

    Args:
        source: Imagery; nothing is known of one that is not made of rasters.
        region: All pixels that will be read, in the grid.
        tiles: In the order in which they are read: for how many tiles one stands, and the windows that are read for it.
    """
    if not isinstance(source, RasterSource):
        deque(tiles, maxlen=0)  # whoever counts them goes on
        return Reading()
    met = source.meeting(region)
    headers, header_bytes = headers_of(source, region)
    found = Reading(len(met), headers, 0.0, float(headers), float(header_bytes))
    seen: dict[int, set[tuple[int, int]]] = {}
    for weight, windows in tiles:
        for _, row in groupby(windows, key=lambda window: window.row):
            ranges: dict[int, list[Range]] = {}
            for window in row:
                for number, stored in _reads(source, window):
                    file = source.rasters[number].file
                    for granule in _fresh(file, stored, seen.setdefault(number, set())):
                        ranges.setdefault(number, []).extend(_ranges(file, granule))
            for number, spans in ranges.items():
                _add(found, source.rasters[number].file, spans, weight)
    return found


def _add(found: Reading, file: RasterFile, ranges: Sequence[Range], weight: float) -> None:
    """Count what a row of windows takes of a file."""
    count = sum(stop - start for start, stop in ranges)
    found.stored_bytes += weight * count
    if file.service is not None:
        found.requests += weight * len(ranges)
        found.fetched_bytes += weight * count
    elif _is_remote(file):
        joined = join_ranges(ranges)
        found.requests += weight * len(joined)
        found.fetched_bytes += weight * sum(stop - start for start, stop in joined)


def _is_remote(file: RasterFile) -> bool:
    """A run reads it over a network, though perhaps nobody has opened it yet."""
    return file.service is None and (file.remote is not None or (file.is_assumed and is_remote(file.path)))


def _ranges(file: RasterFile, granule: Window) -> list[Range]:
    """Where the blocks of a granule lie; guessed where the file's tables are not at hand."""
    if file.service is not None or file.is_assumed:
        return planned_ranges(file, granule)
    return [(start, min(stop, file.size)) for start, stop in ranges_under(file, granule) if start < file.size]


def _reads(source: RasterSource, window: Window) -> Iterator[tuple[int, Window]]:
    """Which rasters a read of a window asks, and for which of their own pixels."""
    for number in source.meeting(window):
        raster: NativeRaster | WarpedRaster = source.rasters[number]
        part = window.intersection(raster.window)
        stored = raster.stored_window(part)
        if not stored.is_empty:
            yield number, stored
        if part == window and _is_whole(raster, window):
            return


def _is_whole(raster: NativeRaster | WarpedRaster, window: Window) -> bool:
    """The raster has a pixel, valid or not, for every one of a window within its own: the window's corners lie in it."""
    if isinstance(raster, NativeRaster):
        return True
    file, grid = raster.file, raster.grid
    xs, ys = project(grid.crs.srs, file.crs.srs, *outline(grid.transform, window, 2))
    inverse = ~file.transform
    rows, cols = inverse.d * xs + inverse.e * ys + inverse.f, inverse.a * xs + inverse.b * ys + inverse.c
    return bool(((rows >= 0) & (rows <= file.height) & (cols >= 0) & (cols <= file.width)).all())


def _fresh(file: RasterFile, stored: Window, seen: set[tuple[int, int]]) -> Iterator[Window]:
    """The granules under a window that no earlier one needed."""
    rows, cols = granule_of(file)
    for row in range(stored.row // rows, -(-stored.stop_row // rows)):
        for col in range(stored.col // cols, -(-stored.stop_col // cols)):
            if (row, col) not in seen:
                seen.add((row, col))
                yield Window(row * rows, col * cols, rows, cols).intersection(file.window)
