"""What all tests share: few threads, hypothesis without a clock, and small rasters written on the spot."""

from __future__ import annotations

import os

# Before numpy, torch and numba are imported: two cores are shared with the workers that tests start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
for _name in [name for name in os.environ if name.startswith("GEOINFER_") and name != "GEOINFER_DATA"]:
    del os.environ[_name]  # a developer's own settings must not decide a test

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

WriteRaster = Callable[..., Path]


@pytest.fixture
def write_raster(tmp_path: Path) -> WriteRaster:
    """Write a GeoTIFF under the test's folder and return its path.

    Arguments: name; pixels (C, H, W), or None for a smooth pattern of 3 x 256 x 256; crs (None writes none); gsd and upper
    left corner in metres; the rest goes to rasterio.
    """

    def write(
        name: str = "scene.tif",
        pixels: np.ndarray | None = None,
        *,
        crs: str | None = "EPSG:32630",
        gsd: float = 0.5,
        origin: tuple[float, float] = (700_000.0, 620_000.0),
        **profile: Any,
    ) -> Path:
        if pixels is None:
            row, col = np.mgrid[0:256, 0:256]
            pixels = np.stack([row, col, (row + col) // 2]).astype(np.uint8)  # (3, 256, 256)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        settled = {"driver": "GTiff", "crs": crs, "transform": Affine(gsd, 0, origin[0], 0, -gsd, origin[1]), **profile}
        if crs is None:
            del settled["transform"]
        count, height, width = pixels.shape
        with rasterio.open(path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **settled) as file:
            file.write(pixels)
        return path

    return write


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real imagery and labels that GEOINFER_DATA names."""
    folder = os.environ.get("GEOINFER_DATA")
    if not folder:
        pytest.skip("GEOINFER_DATA is not set")
    return Path(folder)
