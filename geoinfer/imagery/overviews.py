"""Which overview of a raster serves a model: decided by sizes in the header alone, never by what can be read."""

from __future__ import annotations

from geoinfer.imagery.ground import ground_pixel_size
from geoinfer.imagery.raster import RasterFile, at_overview

_SHARE = 0.5
"""An overview's pixels are at most so large, of a model's: at least four of them are then averaged by us to one. Who made an
overview is not known, nor how: read at the model's own size, Zanzibar has F1 0.70 instead of 0.76 on its training part."""
_SLACK = 1.02
"""Pixels that are larger by no more are not too large."""


def best_overview(file: RasterFile, gsd: float) -> RasterFile:
    """The raster, read from its coarsest overview whose pixels on the ground are at most half as large as a model's.

    The same for a local and a remote file, and whatever is damaged: damaged pixels are an error where they are read.

    Args:
        file: At full resolution, or already at an overview: then it stays as it is.
        gsd: The model's ground sample distance, metres.
    """
    if file.overview is not None or file.service is not None:
        return file
    levels = [at_overview(file, level) for level in range(len(file.overviews))]
    fine = [level for level in levels if ground_pixel_size(level) <= gsd * _SHARE * _SLACK]
    coarsest = min(fine, key=lambda level: level.height * level.width, default=file)
    return coarsest if coarsest.height * coarsest.width < file.height * file.width else file
