"""The model's domain: what imagery it was made for, and how far other imagery is from that.

A sample of pixels becomes a few dozen *measures* of brightness, colour and detail. The card holds those of each training
place, and linear *tests*, each taught to tell training imagery from the same imagery altered in one way (brightened,
inverted, bands swapped, ...). Limits were set where no training or validation place is beyond them although its source was
left out (`benchmarks/domain.py`). Knows measures only: neither files nor regions.
Plain histogram distances, at a limit that no left-out place crosses, notice next to nothing: places differ more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import SourceError
from geoinfer.model.spec import DOMAIN

Patch: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""(3, H, W) pixels as the network would see them, and (H, W) which are imagery."""
MEASURES = (
    "p2", "p15", "p50", "p85", "p98", "spread", "skew",
    "warmth", "green", "warmth_spread", "green_spread", "saturation", "warmth_skew", "green_skew",
    "red_green", "green_blue", "red_blue",
    "warmth_dark", "warmth_bright", "green_dark", "green_bright",
    "warmth_spread_dark", "warmth_spread_bright", "green_spread_dark", "green_spread_bright",
    "light_warmth", "light_green", "light_saturation", "light_vividness",
    "detail_skew", "contrast_by_light", "contrast_bright_dark",
    "gradient", "edge_gradient", "gradient_1_2", "gradient_2_4", "edge_1_2", "edge_2_4",
)  # fmt: skip
"""What `measure` gives, in order."""
LEAST_PIXELS = 128 * 128
"""Fewer valid pixels say nothing about a raster."""
MOST_SATURATED = 0.2
"""Share of pixels at 0 or 255 in one band from which values are lost."""
FAR = 4.0
"""Without an entry in the card: pixels this many times finer or coarser than the model's are outside."""
_STEP = 4
"""Each so many-th pixel a side is looked at for its colour: neighbours are alike."""
_BLOCK = 8
"""Side of the blocks whose contrast is looked at, pixels."""
_CLIP = 8.0
"""Standardised measures are cut here: beyond, more says nothing."""
_SHRINK = 0.2
"""Share of the unit matrix in the covariance of the places: there are fewer sources than measures."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which a raster is not what the model was made for."""

    code: str
    """`pixel_size`, `bands`, `saturated`, `grey`, `unlike`, or the code of a test of the card."""
    text: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A linear test: how much a sample looks like imagery altered in one way."""

    code: str
    text: str
    weights: NDArray[np.float64]
    """(M,) for standardised measures."""
    bias: float
    limit: float
    """Scores above it are findings."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What of its training imagery a card tells."""

    gsd: tuple[float, float]
    """Finest and coarsest pixels, metres."""
    mean: NDArray[np.float64]
    """(M,) of the measures."""
    std: NDArray[np.float64]
    """(M,) of the measures."""
    places: NDArray[np.float64]
    """(P, M) standardised measures of the training places."""
    sources: tuple[str, ...]
    """Where each place is from; places of one source count less, so that no source decides alone."""
    limit: float
    """Greatest distance to the nearest place."""
    trials: tuple[Trial, ...]

    def standardise(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., M) in units of the training places."""
        return np.clip((measures - self.mean) / self.std, -_CLIP, _CLIP)

    def distance(self, measures: NDArray[np.float64], without: str | None = None) -> float:
        """To the nearest training place, in units of what places differ by (Mahalanobis).

        Args:
            measures: (M,).
            without: A source that is left out.
        """
        near = self.places[[source != without for source in self.sources]]
        ways = (near - self.standardise(measures)) @ whitening(self.places, self.sources)
        return float(np.sqrt((ways**2).sum(axis=1).min()))

    def scores(self, measures: NDArray[np.float64]) -> list[float]:
        """Of each test."""
        z = self.standardise(measures)
        return [float(z @ trial.weights + trial.bias) for trial in self.trials]


def shares(sources: Sequence[str]) -> NDArray[np.float64]:
    """(P,) weights of places that add up to 1: a source with n places counts as the root of n."""
    counts = {source: sources.count(source) for source in sources}
    weights = np.array([counts[source] ** -0.5 for source in sources])
    total: float = weights.sum()
    return np.asarray(weights / total)


def whitening(places: NDArray[np.float64], sources: Sequence[str]) -> NDArray[np.float64]:
    """(M, M): differences of standardised measures times this have unit covariance among the places, nearly."""
    covariance = (shares(sources)[:, None] * places).T @ places
    covariance = (1.0 - _SHRINK) * covariance + _SHRINK * np.eye(places.shape[1])
    ways: NDArray[np.float64] = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return ways


_LEAST_SATURATION = 2.0
"""Mean difference of the largest and the smallest band: training places have 10 to 56."""


def check_domain(
    domain: Domain | None,
    *,
    model_gsd: float,
    model_bands: int,
    gsd: float,
    bands: Sequence[int],
    measures: NDArray[np.float64] | None,
    saturated: float,
) -> list[Finding]:
    """What of a raster is outside a model's domain.

    Args:
        domain: Of the card; None: only pixel size, bands and saturation are judged.
        model_gsd: Metres a pixel that imagery is resampled to.
        model_bands: Bands that the model reads.
        gsd: Ground pixel size of the raster, metres.
        bands: Numbers of the raster's bands that are read.
        measures: Of a sample of it, by `measure`; None: too few pixels.
        saturated: Share of its pixels that scaling puts at 0 or 255, in the worst band; 0 where nothing was scaled.

    Returns:
        At most one finding on brightness, colour and detail: the clearest.
    """
    found = []
    low, high = domain.gsd if domain is not None else (model_gsd / FAR, model_gsd * FAR)
    if not low <= gsd <= high:
        limit = high if gsd > high else low
        found.append(Finding("pixel_size", f"pixels of {gsd:.3g} m where the model knows {low:g} to {high:g} m", gsd, limit))
    if len(bands) != model_bands or len(set(bands)) < len(bands):
        told = ", ".join(map(str, bands))
        found.append(Finding("bands", f"bands {told} for the model's {model_bands} colours", len(set(bands)), model_bands))
    if saturated > MOST_SATURATED:
        told = (
            f"{saturated:.0%} of the pixels are black or white in a band; nodata that is not declared, or --stretch LOW,HIGH"
        )
        found.append(Finding("saturated", told, saturated, MOST_SATURATED))
    if domain is None or measures is None:
        return found
    vividness = float(np.exp(measures[MEASURES.index("saturation")]))
    if vividness < _LEAST_SATURATION:
        return [*found, Finding("grey", "no colour: all bands are nearly the same", vividness, _LEAST_SATURATION)]
    beyond = [
        (score - trial.limit, score, trial) for trial, score in zip(domain.trials, domain.scores(measures), strict=True)
    ]
    excess, score, worst = max(beyond, key=lambda entry: entry[0])
    if excess > 0.0:  # what one alteration does may look a little like another: the clearest is named
        return [*found, Finding(worst.code, worst.text, score, worst.limit)]
    distance = domain.distance(measures)
    if distance > domain.limit:
        text = "brightness, colour and detail are unlike those of every training place"
        found.append(Finding("unlike", text, distance, domain.limit))
    return found


def parse_domain(item: Mapping[str, Any], where: str) -> Domain | None:
    """The domain of a card; None where it tells none.

    Numbers of a place, or of a test, stand in one text with spaces between, so that a card stays readable.

    Raises:
        SourceError: An entry that does not fit.
    """
    entry = item["properties"].get(DOMAIN)
    if entry is None:
        return None
    try:
        if tuple(entry["measures"]["names"].split()) != MEASURES:
            raise ValueError("measures are not those of this version of geoinfer")
        places = {name: _vector(text) for name, text in entry["places"].items()}
        low, high = (float(value) for value in entry["gsd"])
        domain = Domain(
            gsd=(low, high),
            mean=_vector(entry["measures"]["mean"]),
            std=_vector(entry["measures"]["std"]),
            places=np.stack(list(places.values())),
            sources=tuple(name.partition(" ")[0] for name in places),
            limit=float(entry["limit"]),
            trials=tuple(
                Trial(str(code), str(t["text"]), _vector(t["weights"]), float(t["bias"]), float(t["limit"]))
                for code, t in entry["tests"].items()
            ),
        )
        if not (0 < low < high and domain.limit > 0 and (domain.std > 0).all()):
            raise ValueError("gsd must be two positive numbers, the lower one first; limit and std above 0")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__} {error}"
        raise SourceError(f"{where}: {DOMAIN} does not fit: {fault}; remove it, or install the model again") from error
    return domain


def _vector(text: str) -> NDArray[np.float64]:
    values = np.array([float(part) for part in text.split()])
    if values.shape != (len(MEASURES),) or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} numbers where {len(MEASURES)} finite ones are needed")
    return values


def saturation(patches: Sequence[Patch]) -> float:
    """Share of the valid pixels that are 0 or 255, in the band where they are most."""
    valid = sum(int(mask.sum()) for _, mask in patches)
    if not valid:
        return 0.0
    ends = [[np.count_nonzero(((band == 0) | (band == 255)) & mask) for band in pixels] for pixels, mask in patches]
    return float(np.sum(ends, axis=0).max()) / valid


def measure(patches: Sequence[Patch]) -> NDArray[np.float64] | None:
    """The measures of a sample; None where it has fewer than `LEAST_PIXELS` valid pixels, or no detail to look at.

    Args:
        patches: Of three bands: red, green, blue.

    Returns:
        (M,) in the order of `MEASURES`.
    """
    if sum(int(mask.sum()) for _, mask in patches) < LEAST_PIXELS:
        return None
    some = [p[:, ::_STEP, ::_STEP][:, mask[::_STEP, ::_STEP]] for p, mask in patches]
    colours = np.concatenate(some, axis=1).astype(np.float64)  # (3, n)
    lights = [((p[0].astype(np.float64) + 2.0 * p[1] + p[2]) / 4.0, mask) for p, mask in patches]
    blocks = np.concatenate([_blocks(light, mask) for light, mask in lights], axis=0)  # (b, 64)
    if len(blocks) < 9:
        return None
    found = np.array([*_colour_measures(colours), *_detail_measures(blocks, lights, float(_brightness(colours).std()))])
    return found if np.isfinite(found).all() else None


def _brightness(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, n) -> (n,) brightness."""
    brightness: NDArray[np.float64] = (colours[0] + 2.0 * colours[1] + colours[2]) / 4.0
    return brightness


def _colour_measures(colours: NDArray[np.float64]) -> list[float]:
    """Of brightness and colour, pixel by pixel: the first 29."""
    red, green, blue = colours
    light, warmth, greenness = _brightness(colours), red - blue, green - (red + blue) / 2.0
    top = colours.max(axis=0)
    vivid = top - colours.min(axis=0)
    levels = np.percentile(light, (2, 15, 50, 85, 98))
    dark, bright = light <= levels[1], light >= levels[3]
    return [
        *levels.tolist(), _log(light.std()), _skewness(light),
        warmth.mean(), greenness.mean(), _log(warmth.std()), _log(greenness.std()),
        _log(vivid.mean()), _skewness(warmth), _skewness(greenness),
        _unlikeness(red, green), _unlikeness(green, blue), _unlikeness(red, blue),
        warmth[dark].mean(), warmth[bright].mean(), greenness[dark].mean(), greenness[bright].mean(),
        _log(warmth[dark].std()), _log(warmth[bright].std()), _log(greenness[dark].std()), _log(greenness[bright].std()),
        _correlation(light, warmth), _correlation(light, greenness), _correlation(light, vivid),
        _correlation(light, vivid / np.maximum(top, 8.0)),
    ]  # fmt: skip


def _detail_measures(
    blocks: NDArray[np.float64], lights: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], spread: float
) -> list[float]:
    """Of contrast within blocks, and of how detail falls off over three sizes: the last 9."""
    means, contrasts = blocks.mean(axis=1), blocks.std(axis=1)
    third = len(means) // 3
    order = np.argsort(means, kind="stable")
    gradients, edges = np.array([_details(light, mask) for light, mask in lights]).mean(axis=0)  # (3,) each
    return [
        _skewness((blocks - means[:, None]).ravel()),
        _correlation(means, np.log(contrasts + 1.0)),
        _log((contrasts[order[-third:]].mean() + 0.5) / (contrasts[order[:third]].mean() + 0.5)),
        _log(gradients[0]) - _log(spread),
        _log(edges[0]) - _log(gradients[0]),
        _log(gradients[0]) - _log(gradients[1]),
        _log(gradients[1]) - _log(gradients[2]),
        _log(edges[0]) - _log(edges[1]),
        _log(edges[1]) - _log(edges[2]),
    ]


def _blocks(light: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(b, 64) the blocks that are valid throughout."""
    rows, cols = (side // _BLOCK for side in light.shape)
    cut = slice(0, rows * _BLOCK), slice(0, cols * _BLOCK)
    tiled = light[cut].reshape(rows, _BLOCK, cols, _BLOCK).swapaxes(1, 2)
    known = mask[cut].reshape(rows, _BLOCK, cols, _BLOCK).all(axis=(1, 3))
    return tiled[known].reshape(-1, _BLOCK * _BLOCK)


def _details(light: NDArray[np.float64], mask: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Mean absolute gradient and Laplacian at full, half and quarter size."""
    gradients, edges = [], []
    for _ in range(3):
        steps = np.abs(np.diff(light, axis=1))[mask[:, 1:] & mask[:, :-1]]
        middle = light[1:-1, 1:-1]
        bends = np.abs(4.0 * middle - light[:-2, 1:-1] - light[2:, 1:-1] - light[1:-1, :-2] - light[1:-1, 2:])
        bends = bends[mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]]
        gradients.append(float(steps.mean()) if steps.size else 0.0)
        edges.append(float(bends.mean()) if bends.size else 0.0)
        rows, cols = light.shape[0] // 2, light.shape[1] // 2
        cut = slice(0, 2 * rows), slice(0, 2 * cols)
        light = light[cut].reshape(rows, 2, cols, 2).mean(axis=(1, 3))
        mask = np.asarray(mask[cut].reshape(rows, 2, cols, 2).all(axis=(1, 3)))
    return gradients, edges


def _log(value: float) -> float:
    return float(np.log(max(value, 0.1)))


def _skewness(values: NDArray[np.float64]) -> float:
    away = values - values.mean()
    squares = away * away
    return float((squares * away).mean()) / max(float(np.sqrt(squares.mean())), 0.5) ** 3  # `away**3` is ten times slower


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(((a - a.mean()) * (b - b.mean())).mean()) / max(float(a.std() * b.std()), 0.01)


def _unlikeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.log(1.001 - _correlation(a, b)))
