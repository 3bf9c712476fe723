"""From any number type to uint8: one linear stretch a band, fixed when a source is opened.

The limits come from the whole source, never from a window or a region: a pixel's value must not depend on what is asked for.
They are given, or declared by the file or the document that named it, or found in a sample. Knows nothing of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery.blocks import read_window
from geoinfer.imagery.opener import environment, open_dataset
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.raster import RasterFile

_PERCENTILES = (2.0, 98.0)
_MOST_SAMPLED = 64
"""Rasters that a common stretch is found from; of more, so many spread evenly over the order of their names."""
_WHITE_REFLECTANCE = 0.3558
"""What becomes 255 where pixels are declared as reflectance: the white of ESA's true colour images of Sentinel-2."""
_MOST_DEVIATIONS = 2.0
"""Declared least and greatest values are narrowed to so many declared standard deviations around the declared mean."""
_SAMPLE_SIDE = 1024
"""A source is judged by about this many pixels squared."""
_SMALL_PIXELS = 4096 * 4096
"""Up to this a raster is read whole; above, on a lattice of spots."""
_SPOTS, _SPOT_SIDE = 16, 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Per band, the value that becomes 0 and the value that becomes 255."""

    limits: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for low, high in self.limits:
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ConfigError(f"stretch {low}, {high}: needs two finite numbers, the lower one first")

    def apply(self, pixels: NDArray[Any], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """(C, H, W) of any real type -> (C, H, W) uint8, in `out` if given; NaN becomes 0, and is for the caller to mask."""
        result = np.empty(pixels.shape, np.uint8) if out is None else out
        if pixels.dtype.itemsize <= 2 and pixels.dtype.kind in "iu":
            self._look_up(pixels, result)
            return result
        for band, limits, target in zip(pixels, self.limits, result, strict=True):
            target[...] = _scale(band, *limits)
        return result

    def _look_up(self, pixels: NDArray[Any], result: NDArray[np.uint8]) -> None:
        """The same through a table of all values that the type has: 10 times faster than arithmetic a pixel."""
        unsigned = pixels.view(pixels.dtype.str.replace("i", "u"))
        for band, limits, target in zip(unsigned, self.limits, result, strict=True):
            np.take(_table(pixels.dtype.str, *limits), band, out=target, mode="clip")  # none is out of range; spares a copy


@lru_cache(maxsize=64)
def _table(kind: str, low: float, high: float) -> NDArray[np.uint8]:
    """What each value of an integer type becomes; negative ones come last, where their bits as unsigned numbers say."""
    values = np.arange(2 ** (8 * np.dtype(kind).itemsize)).astype(kind.replace("i", "u"))
    return _scale(values.view(kind), low, high)


def stretch_of(files: Sequence[RasterFile], options: SourceOptions) -> list[Stretch | None]:
    """How each raster's values become uint8; None where they are that already.

    A given stretch acts on all. With `scaling="declared"` each raster is scaled by what it, or the document that named it,
    declares: limits; else scale and offset to reflectance; else statistics; else the number of bits. Else types other than
    uint8 share one stretch by percentiles, since neighbours must not differ in brightness.

    Args:
        files: The rasters of a source.
        options: `stretch`, `scaling`; without `open_headers` nothing is read, and limits that would be found are 0 to 1.

    Raises:
        SourceError: Different types without a stretch that fits all; a raster that declares nothing, or nonsense.
    """
    if options.stretch is not None:
        return [Stretch((options.stretch,) * len(file.bands)) for file in files]
    if not options.open_headers:
        return [None if file.dtype == "uint8" else Stretch(((0.0, 1.0),) * len(file.bands)) for file in files]
    if options.scaling == "declared":
        return [_declared_stretch(file) for file in files]
    kinds = {file.dtype: file.name for file in files}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {kind}" for kind, name in kinds.items())
        raise SourceError(
            f"rasters of different types ({listed}) have no common stretch; give one with stretch= (--stretch LOW,HIGH), "
            "or --scaling declared where the files say what their values mean"
        )
    return [None if "uint8" in kinds else estimate_stretch(files)] * len(files)


def is_far(file: RasterFile) -> bool:
    """Its pixels come over a network."""
    return file.remote is not None or file.service is not None


def estimate_stretch(files: Sequence[RasterFile]) -> Stretch:
    """The 2nd and the 98th percentile of each band, over a bounded sample of all rasters, or of 64 spread over them.

    The sample is exact pixels on a fixed lattice: every n-th pixel of a small raster, 16 x 16 spots of a large one, so that
    opening a raster of 10^12 pixels reads at most a few hundred blocks. Spots that cannot be read do not count.
    """
    samples = [_sample(file) for file in _spread(files)]
    pooled = np.concatenate(samples, axis=1)  # (C, n)
    if not pooled.shape[1]:
        return Stretch(((0.0, 1.0),) * pooled.shape[0])
    low, high = np.percentile(pooled, _PERCENTILES, axis=1)
    high = np.where(high > low, high, low + np.maximum(1.0, np.abs(low) * 1e-6))  # a constant raster
    return Stretch(tuple((float(a), float(b)) for a, b in zip(low, high, strict=True)))


def _spread(files: Sequence[RasterFile]) -> list[RasterFile]:
    """All rasters, or `_MOST_SAMPLED` of them that do not depend on the order given."""
    if len(files) <= _MOST_SAMPLED:
        return list(files)
    ordered = sorted(files, key=lambda file: (file.name, file.path))
    return [ordered[i * len(ordered) // _MOST_SAMPLED] for i in range(_MOST_SAMPLED)]


def _sample(file: RasterFile) -> NDArray[np.float64]:
    """(C, n) valid values of a raster."""
    whole = file.height * file.width <= _SMALL_PIXELS
    windows = _stripes(file) if whole else _spots(file)
    step = max(1, -(-max(file.height, file.width) // _SAMPLE_SIDE)) if whole else 1
    failures: list[SourceError] = []

    def values(window: Window) -> NDArray[np.float64] | None:
        try:
            pixels, valid = read_window(file, window)
        except SourceError as error:
            failures.append(error)
            return None
        first = -window.row % step
        pixels = pixels[:, first::step, ::step]
        sample = pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid[first::step, ::step]]
        return sample.astype(np.float64)

    if is_far(file):  # it answers late: ask for several windows at a time
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(values, windows))
    else:
        found = [values(window) for window in windows]
    parts = [part for part in found if part is not None]
    if not parts and failures:
        raise failures[-1]
    return np.concatenate(parts, axis=1)


def _stripes(file: RasterFile) -> list[Window]:
    return [Window(row, 0, min(512, file.height - row), file.width) for row in range(0, file.height, 512)]


def _spots(file: RasterFile) -> list[Window]:
    height, width = min(_SPOT_SIDE, file.height), min(_SPOT_SIDE, file.width)
    rows = sorted({round(i * (file.height - height) / (_SPOTS - 1)) for i in range(_SPOTS)})
    cols = sorted({round(i * (file.width - width) / (_SPOTS - 1)) for i in range(_SPOTS)})
    return [Window(row, col, height, width) for row in rows for col in cols]


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.nan_to_num(np.rint(scaled), nan=0.0, posinf=255.0, neginf=0.0).clip(0.0, 255.0).astype(np.uint8)


def _declared_stretch(file: RasterFile) -> Stretch | None:
    """The stretch that a raster declares, or the document that named it."""
    if file.service is not None:
        return None
    scene, tags = file.scene, _Tags.of(file)
    if file.dtype == "uint8" and (tags.bits is None or tags.bits >= 8):
        return None
    scales, offsets = tags.scales, tags.offsets
    limits: tuple[tuple[float, float], ...] | None = None
    if scene is not None:
        limits, scales, offsets = scene.limits, scene.scale or scales, scene.offset or offsets
    for told, values in (("limits", limits), ("scales", scales), ("offsets", offsets)):
        if values is not None and len(values) != len(file.bands):
            raise SourceError(
                f"{file.name}: {len(values)} {told} declared for the {len(file.bands)} bands that are read; give --stretch"
            )
    if limits is None:
        limits = (
            _reflectance_limits(file.dtype, scales, offsets)
            or _statistics_limits(tags)
            or _bits_limits(tags, len(file.bands))
        )
    if limits is None:
        raise SourceError(
            f"{file.name}: {file.dtype}, and nothing declares what its values mean (limits, statistics, number of bits, or "
            "scale and offset to reflectance); give --stretch LOW,HIGH, or leave --scaling at percentile"
        )
    for low, high in limits:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SourceError(
                f"{file.name}: declares values from {low} to {high}, which is no range; give --stretch LOW,HIGH"
            )
    return Stretch(tuple((float(low), float(high)) for low, high in limits))


@dataclass(frozen=True, slots=True)
class _Tags:
    """What a file declares of the values of the bands that are read."""

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    statistics: tuple[Mapping[str, float], ...]
    """Per band, in small letters without the prefix: minimum, maximum, mean, stddev, as far as declared."""
    bits: int | None

    @classmethod
    def of(cls, file: RasterFile) -> _Tags:
        with environment(), open_dataset(file.stored) as dataset:  # at full resolution: overviews carry no tags
            bits = dataset.tags(file.bands[0], ns="IMAGE_STRUCTURE").get("NBITS")
            return cls(
                scales=tuple(dataset.scales[band - 1] for band in file.bands),
                offsets=tuple(dataset.offsets[band - 1] for band in file.bands),
                statistics=tuple(dict(_numbers(dataset.tags(band))) for band in file.bands),
                bits=int(bits) if bits is not None and bits.isdigit() else None,
            )


def _numbers(tags: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    for name in ("minimum", "maximum", "mean", "stddev"):
        try:
            yield name, float(tags[f"STATISTICS_{name.upper()}"])
        except (KeyError, ValueError):
            continue


def _reflectance_limits(
    dtype: str, scales: Sequence[float], offsets: Sequence[float]
) -> tuple[tuple[float, float], ...] | None:
    """Stored values of reflectance 0 and white; None where scale and offset do not make reflectance of integers.

    They do where the greatest value of a type of 16 bits stands for 1 to 10, as in every product that stores surface
    reflectance so (Sentinel-2, Landsat Collection 2, Planet).
    """
    if dtype not in ("uint16", "int16") or not all(scale > 0.0 for scale in scales):
        return None
    if not all(1.0 <= np.iinfo(dtype).max * scale + offset <= 10.0 for scale, offset in zip(scales, offsets, strict=True)):
        return None
    return tuple(
        (-offset / scale, (_WHITE_REFLECTANCE - offset) / scale) for scale, offset in zip(scales, offsets, strict=True)
    )


def _statistics_limits(tags: _Tags) -> tuple[tuple[float, float], ...] | None:
    """Least and greatest, narrowed by mean and deviation where these are declared too: extremes are often glint."""
    if not all("minimum" in band and "maximum" in band for band in tags.statistics):
        return None
    limits = []
    for band in tags.statistics:
        low, high = band["minimum"], band["maximum"]
        if band.get("stddev", 0.0) > 0.0 and "mean" in band:
            reach = _MOST_DEVIATIONS * band["stddev"]
            low, high = max(low, band["mean"] - reach), min(high, band["mean"] + reach)
        limits.append((low, high))
    return tuple(limits)


def _bits_limits(tags: _Tags, bands: int) -> tuple[tuple[float, float], ...] | None:
    return None if tags.bits is None else ((0.0, 2.0**tags.bits - 1.0),) * bands
