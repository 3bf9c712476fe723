"""A model without a network: fast, exact, picklable, and as sensitive to the lattice as a real one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

from geoinfer.errors import RemoteError, SourceError
from geoinfer.grid import ChipSpec, Grid, Window
from geoinfer.imagery.source import Image, Origin, Source
from geoinfer.model.spec import ModelSpec

CHIPS = ChipSpec(chip=64, margin=16, stride=16)
POISON = 251
"""A red value that kills the process which infers it."""


def spec_of(**changes: Any) -> ModelSpec:
    spec = ModelSpec(
        name="stand-in",
        version="1",
        gsd=0.5,
        chips=CHIPS,
        bands=("red", "green", "blue"),
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        architecture="none",
        arguments={},
        probability="body",
        threshold=0.5,
        min_area_m2=2.0,
        simplify_m=0.6,
        grow_m=0.0,
        weights_sha256="0" * 64,
    )
    return replace(spec, **changes)


@dataclass(frozen=True)
class StandIn:
    """Probability = mean of a 5 x 5 neighbourhood, shaded by where in its chip a pixel lies.

    A real network pads at the chip's edge and works at a stride, so a pixel's probability depends on its place in the chip;
    the shade makes that loud. Whoever cuts chips off the lattice gets other numbers.
    """

    spec: ModelSpec = field(default_factory=spec_of)
    seconds: float = 0.0
    """A chip's pretended cost."""
    calls: list[int] = field(default_factory=list, compare=False)
    """Chips of each call in this process."""

    def predict(self, chips: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        self.calls.append(len(chips))
        if self.seconds:
            time.sleep(self.seconds * len(chips))
        padded = np.pad(chips.mean(axis=1), ((0, 0), (2, 2), (2, 2)))  # (N, S + 4, S + 4)
        sums = padded.cumsum(axis=1).cumsum(axis=2)
        sums = np.pad(sums, ((0, 0), (1, 0), (1, 0)))
        mean = (sums[:, 5:, 5:] - sums[:, :-5, 5:] - sums[:, 5:, :-5] + sums[:, :-5, :-5]) / 25
        row, col = np.mgrid[0 : chips.shape[2], 0 : chips.shape[3]]
        prob = np.clip(mean + (row * 7 + col * 3) % 16 - 8, 0, 255).astype(np.uint8)
        if valid is not None:
            prob[~valid] = 0
        return prob


@dataclass(frozen=True)
class Deadly(StandIn):
    """Kills its process at the sight of `POISON`."""

    def predict(self, chips: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        if (chips[:, 0] == POISON).any():
            os._exit(3)
        return super().predict(chips, valid)


@dataclass(frozen=True)
class Failing:
    """A source that fails in a window: for ever, or the first times it is asked, counted in a file that processes share."""

    source: Source
    where: Window
    error: type[Exception] = RemoteError
    times: int | None = None
    counter: Path | None = None

    @property
    def grid(self) -> Grid:
        return self.source.grid

    @property
    def bands(self) -> int:
        return self.source.bands

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        return self.source.bounds

    def origins(self) -> list[Origin]:
        return self.source.origins()

    def snapshot(self, window: Window | None = None) -> list[dict[str, object]]:
        return self.source.snapshot(window)

    def describe(self) -> dict[str, object]:
        return self.source.describe()

    def read(self, window: Window, out: np.ndarray | None = None) -> Image:
        if not window.intersection(self.where).is_empty and self._fails():
            raise self.error("scene.tif: injected")
        return self.source.read(window, out)

    def forget(self, window: Window) -> None:
        self.source.forget(window)

    def _fails(self) -> bool:
        if self.times is None or self.counter is None:
            return True
        seen = int(self.counter.read_text()) if self.counter.exists() else 0
        self.counter.write_text(str(seen + 1))
        return seen < self.times


def paint(height: int, width: int, seed: int, roofs: int = 40) -> np.ndarray:
    """(3, H, W) uint8: bright rectangles, some touching, on a dark noisy ground."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 90, (3, height, width)).astype(np.uint8)
    for _ in range(roofs):
        row, col = rng.integers(0, height), rng.integers(0, width)
        tall, wide = rng.integers(4, 40, 2)
        shape = pixels[:, row : row + tall, col : col + wide].shape
        pixels[:, row : row + tall, col : col + wide] = rng.integers(170, 245, shape)
    return pixels


def write_scene(
    path: Path, pixels: np.ndarray, origin: tuple[float, float] = (700_013.5, 620_007.0), gsd: float = 0.5, **profile: Any
) -> Path:
    """A GeoTIFF whose first pixel is no corner of the lattice."""
    count, height, width = pixels.shape
    transform = Affine(gsd, 0, origin[0], 0, -gsd, origin[1])
    settled = {"crs": "EPSG:32630", "transform": transform, "count": count, "height": height, "width": width, **profile}
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **settled) as file:
        file.write(pixels)
    return path


__all__ = [
    "CHIPS",
    "POISON",
    "Deadly",
    "Failing",
    "RemoteError",
    "SourceError",
    "StandIn",
    "paint",
    "spec_of",
    "write_scene",
]
