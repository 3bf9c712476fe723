"""Which overview of a raster serves a model: decided by sizes in the header alone, never by what can be read."""

from __future__ import annotations

from geoinfer.imagery.ground import ground_pixel_size
from geoinfer.imagery.raster import RasterFile, at_overview

_SLACK = 1.02
"""Pixels that are larger than the model's by no more are not too coarse: as a raster's own pixels are the grid's."""


def best_overview(file: RasterFile, gsd: float) -> RasterFile:
    """The raster, read from its coarsest overview whose pixels on the ground are no larger than a model's.

    The same for a local and a remote file, and whatever is damaged: damaged pixels are an error where they are read.

    Args:
        file: At full resolution, or already at an overview: then it stays as it is.
        gsd: The model's ground sample distance, metres.
    """
    if file.overview is not None or file.service is not None:
        return file
    levels = [at_overview(file, level) for level in range(len(file.overviews))]
    fine = [level for level in levels if ground_pixel_size(level) <= gsd * _SLACK]
    coarsest = min(fine, key=lambda level: level.height * level.width, default=file)
    return coarsest if coarsest.height * coarsest.width < file.height * file.width else file
