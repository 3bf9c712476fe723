"""A bounded look at the imagery that a region asks for, as the network will see it. Knows no model, and judges nothing.

At most `MOST_RASTERS` rasters are looked at, in `MOST_WINDOWS` windows each: what it costs does not grow with the region.
Which windows depends on the raster and the region alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.region import GridRegion

MOST_RASTERS = 64
MOST_WINDOWS = 16
SIDE = 256
"""Of a window, pixels of the grid: the same ground whatever the raster."""
_LATTICES = (4, 8, 16, 32)
"""Windows on a side that are tried, until enough of them meet the region."""


def surveyed(source: RasterSource, region: GridRegion) -> list[int]:
    """Numbers of the rasters to look at: those that the region meets, or `MOST_RASTERS` spread evenly over them."""
    meeting = source.meeting(region.window)
    if len(meeting) <= MOST_RASTERS:
        return meeting
    return [meeting[i * len(meeting) // MOST_RASTERS] for i in range(MOST_RASTERS)]


def survey(source: RasterSource, number: int, region: GridRegion) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Pixels of one raster under a region, whatever other rasters cover there.

    Args:
        source: Imagery on a model's grid.
        number: Of the raster, in order of priority.
        region: What is asked for, on that grid.

    Returns:
        (C, H, W) pixels and (H, W) which are valid, a window each. Windows that are damaged, or hold nothing valid, are left
        out: a run reports these.

    Raises:
        RemoteError: A server gave up.
    """
    raster = source.rasters[number]
    found = []
    for window in windows_of(region, raster.window):
        pixels = np.empty((source.bands, window.height, window.width), np.uint8)
        try:
            valid = raster.read_into(window, pixels)
        except SourceError:
            continue
        mask = np.ones(pixels.shape[1:], np.bool_) if valid is None else valid
        if mask.any():
            found.append((pixels, mask))
    return found


def windows_of(region: GridRegion, within: Window) -> list[Window]:
    """Up to `MOST_WINDOWS` windows, spread evenly, that meet a region within a window of the grid."""
    area = region.window.intersection(within)
    if area.is_empty:
        return []
    meeting: list[Window] = []
    for lattice in _LATTICES:  # a region may be thin, or in many parts
        rows, cols = _starts(area.row, area.height, lattice), _starts(area.col, area.width, lattice)
        height, width = min(SIDE, area.height), min(SIDE, area.width)
        meeting = [window for row in rows for col in cols if region.touches(window := Window(row, col, height, width))]
        if 2 * len(meeting) >= MOST_WINDOWS:
            break
    count = min(MOST_WINDOWS, len(meeting))
    return [meeting[i * len(meeting) // count] for i in range(count)]


def _starts(start: int, length: int, most: int) -> list[int]:
    """Where windows begin along one side: as many as fit, at most `most`, from one end to the other."""
    count, room = max(1, min(most, length // SIDE)), max(0, length - SIDE)
    return [start + room // 2] if count == 1 else [start + room * i // (count - 1) for i in range(count)]
