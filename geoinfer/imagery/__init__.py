"""Where pixels come from. `open_raster` turns GeoTIFFs into a `Source`: pixels on a model's grid, in true metres."""

from __future__ import annotations

from geoinfer.imagery.mosaic import RasterSource, open_raster
from geoinfer.imagery.source import FILL, Image, Source

__all__ = ["FILL", "Image", "RasterSource", "Source", "open_raster"]
