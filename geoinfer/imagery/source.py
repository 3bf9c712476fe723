"""What every kind of imagery offers to the rest: pixels on a grid, an identity, a description. Opens nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geoinfer.grid import Grid, Window

FILL = 127
"""What pixels without imagery hold: mid grey, so that a network sees nothing there."""

_SHARED_PIXELS = 2**22
"""Larger windows are rare and their validity is not kept, pixels."""


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels of a window, and which of them are imagery."""

    pixels: NDArray[np.uint8]
    """(C, H, W); invalid pixels hold `FILL`."""
    valid: NDArray[np.bool_]
    """(H, W); read only, images may share it."""
    origin: NDArray[np.int32] | None = None
    """(H, W) which raster of the source each pixel came from, as counted by `Source.origins`, -1 where invalid; read only.
    None for a source of one raster."""

    @classmethod
    def blank(cls, bands: int, height: int, width: int) -> Image:
        """An image without a valid pixel."""
        return cls(np.full((bands, height, width), FILL, np.uint8), np.zeros((height, width), np.bool_))


@dataclass(frozen=True, slots=True)
class Origin:
    """What a footprint says of the raster that it was found in."""

    name: str | None
    """The item's identifier, or the file's name."""
    datetime: str | None
    """When it was taken, ISO 8601."""


def all_valid(height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) of True, read only; the same array again for windows of one size, so that it costs nothing."""
    return _all_valid(height, width) if height * width <= _SHARED_PIXELS else np.ones((height, width), np.bool_)


@lru_cache(maxsize=8)
def _all_valid(height: int, width: int) -> NDArray[np.bool_]:
    valid = np.ones((height, width), np.bool_)
    valid.flags.writeable = False
    return valid


class Source(Protocol):
    """Imagery on a model's grid. Picklable: handles are opened lazily, per thread, and never pickled.

    Law: a pixel's value does not depend on the window that it is read with, bit for bit.
    """

    @property
    def grid(self) -> Grid:
        """The compute grid; its pixel (0, 0) is a lattice corner, which may lie before the first pixel of imagery."""
        ...

    @property
    def bands(self) -> int:
        """C of `read`."""
        ...

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy) of the imagery, in the grid's coordinate system."""
        ...

    def read(self, window: Window, out: NDArray[np.uint8] | None = None) -> Image:
        """The pixels of any window, also partly or wholly outside the grid (invalid there).

        Args:
            window: In the grid.
            out: (C, H, W) to write the pixels into instead of an array of their own.
        """
        ...

    def forget(self, window: Window) -> None:
        """A hint: what was kept for a window to be read again is not needed any more."""
        ...

    def origins(self) -> list[Origin]:
        """Its rasters, in order of priority: the first valid pixel wins."""
        ...

    def snapshot(self, window: Window | None = None) -> list[dict[str, object]]:
        """What identifies the pixels: per file name, size, content and how it is read. No path.

        Args:
            window: In the grid: only the rasters that meet it; all where None.
        """
        ...

    def describe(self) -> dict[str, object]:
        """What a person wants to know about it."""
        ...
