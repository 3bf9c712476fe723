"""Rasters to measure on: generated, natural in what costs time, and the same ones on every machine.

What matters of imagery here is how well it compresses (decoding takes as long as there are bytes) and how many roofs a model
finds in it. A scene of `geoinfer.scenes` has the gradients of real 0.3 m imagery and deflates by about 1.2, as the deflated
files among our real imagery do (1.04 to 1.8). A large raster is such a scene and its mirror images side by side, which meet
without a seam.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

BLOCK = 512
SCENE = 2048
"""Side of the scene that is repeated, pixels."""
CRS = "EPSG:32630"
ON_LATTICE = (0.0, 0.0)
"""A corner of a core of every model: a large region's edges weigh nothing, and these rasters are small."""
ANYWHERE = (500_123.1, 5_000_456.6)
"""A corner as imagery has it."""


@lru_cache(maxsize=1)
def scene(side: int = SCENE, gsd: float = 0.3) -> NDArray[np.uint8]:
    """(3, side, side) a generated town."""
    from geoinfer.scenes import generate_scene

    return generate_scene(3, side, gsd).image


def write_raster(path: Path, side: int, gsd: float = 0.3, corner: tuple[float, float] = ON_LATTICE) -> float:
    """A square GeoTIFF laid out as a COG's full resolution is: pixel-interleaved deflate blocks of 512 x 512.

    Returns:
        How many times smaller the file is than its pixels.
    """
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": CRS, "compress": "deflate", "interleave": "pixel"}
    tiling = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "YES", "NUM_THREADS": "ALL_CPUS"}
    transform = Affine(gsd, 0, corner[0], 0, -gsd, corner[1])
    pixels = scene(gsd=gsd)
    with rasterio.open(path, "w", height=side, width=side, transform=transform, **profile, **tiling) as file:
        for i, top in enumerate(range(0, side, SCENE)):
            for j, left in enumerate(range(0, side, SCENE)):
                part = pixels[:, :: -1 if i % 2 else 1, :: -1 if j % 2 else 1][:, : side - top, : side - left]
                file.write(part, window=Window(left, top, part.shape[2], part.shape[1]))
    return 3 * side * side / path.stat().st_size
