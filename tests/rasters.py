"""Small GeoTIFFs of every kind that imagery comes in: any system, type, mask, rotation, south-up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

PLACE = (-0.20, 5.58)
"""Longitude and latitude of most test rasters: Accra, UTM 30 N."""


def pattern(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """(C, H, W): noise over slow waves, so that a shift of one pixel or a twist shows."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    waves = [90 + 60 * np.sin(rows / (7 + 3 * i)) * np.cos(cols / (11 - 2 * i)) for i in range(bands)]
    return (np.stack(waves) + rng.integers(0, 60, (bands, height, width))).clip(0, 255).astype(np.uint8)


def at_place(crs: str, pixel: tuple[float, float], lonlat: tuple[float, float] = PLACE, angle: float = 0.0) -> Affine:
    """A transform whose upper left corner is a place; pixels (x, y) in units, rotation in degrees; y < 0 is south-up."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*lonlat)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return Affine(cosine * pixel[0], sine * pixel[1], x, sine * pixel[0], -cosine * pixel[1], y)


def write(
    path: Path,
    pixels: NDArray[Any],
    crs: str | None = "EPSG:32630",
    transform: Affine | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    colours: tuple[str, ...] | None = None,
    tags: dict[str, str] | None = None,
    **profile: Any,
) -> Path:
    """Write (C, H, W); `mask` (H, W) becomes an internal mask; the rest goes to rasterio."""
    count, height, width = pixels.shape
    transform = transform or at_place(crs or "EPSG:32630", (0.3, 0.3))
    settled = {"driver": "GTiff", "crs": crs, "transform": transform, "dtype": pixels.dtype.name, **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=count, height=height, width=width, **settled) as file,
    ):
        if colours is not None:
            file.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        if tags is not None:
            file.update_tags(**tags)
    return path
