"""A raster whose pixels are the grid's own: reading is copying, flipped where it lies south-up. `warp` does the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoinfer.grid import Window
from geoinfer.imagery.blocks import Valid, forget, read_into, read_window
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.source import FILL
from geoinfer.imagery.stretch import Stretch


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

    def stored_window(self, window: Window) -> Window:
        """The file's own pixels that reading a window of the grid needs, within the file."""
        part = window.intersection(self.window)
        return Window(0, 0, 0, 0) if part.is_empty else self._stored(part)

    def _stored(self, window: Window) -> Window:
        """The same pixels in the file."""
        row, col = window.row - self.window.row, window.col - self.window.col
        if self.file.transform.e > 0:  # south up
            row = self.file.height - row - window.height
        return Window(row, col, window.height, window.width)
