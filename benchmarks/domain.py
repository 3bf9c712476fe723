"""What imagery a model was made for: fills `geoinfer:domain` of its card from the training places, and says how good it is.

    GEOINFER_DATA=../shared/data python -m benchmarks.domain --model models/buildings [--write]

Measures of each `train` place, and tests that tell it from itself altered, are learned from the `train` rows of the recipe's
own sources. Each limit lies above what any `train` place scores while its whole source is left out, and above every place of
their `val` rows, by a fifth of the way from the median to that greatest score. `test` rows, and sources that the recipe does
not have, are reported and decide nothing. Small chips of one source are put together, 16 at a time, as one place.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.regions import Place, bbox_of, prepare
from geoinfer.imagery import open_raster
from geoinfer.imagery.survey import MOST_WINDOWS, survey
from geoinfer.model.domain import MEASURES, Domain, Patch, Trial, check_domain, measure, shares
from geoinfer.model.registry import CARD, find_model
from geoinfer.model.spec import DOMAIN
from geoinfer.region import Region, region_on

SOURCES = {
    "boston_massachusetts": "boston", "boston_suburbs_nrcan": "boston", "accra_ghana_opencities": "accra",
    "banepa_nepal_oam": "banepa", "zanzibar_tanzania_fair1": "zanzibar", "austin_usa_inria": "austin",
    "newzealand_whu_linz": "christchurch", "estonia_tallinn_maaamet": "tallinn", "rotterdam_spacenet6_50cm": "rotterdam",
    "vegas_spacenet2_60cm": "vegas", "vegas_spacenet2_1m": "vegas", "vegas_spacenet2_30cm": "vegas",
}  # fmt: skip
"""Folders that the model was trained on -> what is left out together: imagery of one sensor or one town."""
CHIPS = ("estonia", "rotterdam", "vegas_spacenet2_1m", "vegas_spacenet2_60cm", "inria", "dubai")
"""Folders of small chips begin so."""
GSD = (0.1, 1.25)
"""Finest and coarsest pixels, metres: training imagery has 0.13 to 1.0 m."""
PENALTY, STRENGTH, HEADROOM = 3.0, 20.0, 0.2
"""Of the square of weights; of each source; and how far limits lie beyond the greatest score, of its way from the median."""

Alter = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


def _curve(function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Alter:
    table = np.rint(255 * function(np.arange(256) / 255.0)).clip(0, 255).astype(np.uint8)
    return lambda pixels, _: table[pixels]


def _noise(sigma: float) -> Alter:
    return lambda pixels, rng: np.rint(pixels + rng.normal(0, sigma, pixels.shape)).clip(0, 255).astype(np.uint8)


def _coarse(times: int) -> Alter:
    """As from pixels so many times larger."""

    def alter(pixels: NDArray[np.uint8], _: np.random.Generator) -> NDArray[np.uint8]:
        _, height, width = pixels.shape
        small = (max(1, width // times), max(1, height // times))
        bands = [cv2.resize(cv2.resize(band, small, interpolation=cv2.INTER_AREA), (width, height)) for band in pixels]
        return np.stack(bands)

    return alter


def _magnified(times: int) -> Alter:
    """As from pixels that are said to be so many times larger than they are."""

    def alter(pixels: NDArray[np.uint8], _: np.random.Generator) -> NDArray[np.uint8]:
        _, height, width = pixels.shape
        corner = pixels[:, : max(1, height // times), : max(1, width // times)]
        return np.stack([cv2.resize(band, (width, height), interpolation=cv2.INTER_CUBIC) for band in corner])

    return alter


ALTERATIONS: dict[str, Alter] = {
    "none": lambda pixels, _: pixels,
    "gamma 0.4": _curve(lambda x: x**0.4),
    "gamma 0.6": _curve(lambda x: x**0.6),
    "gamma 1.7": _curve(lambda x: x**1.7),
    "gamma 2.5": _curve(lambda x: x**2.5),
    "inverted": lambda pixels, _: 255 - pixels,
    "grey": lambda pixels, _: np.repeat(pixels.mean(axis=0, keepdims=True).astype(np.uint8), 3, axis=0),
    "haze 0.6 + 0.3 x": _curve(lambda x: 0.6 + 0.3 * x),
    "haze 0.4 + 0.5 x": _curve(lambda x: 0.4 + 0.5 * x),
    "dark x 0.15": _curve(lambda x: 0.15 * x),
    "dark x 0.3": _curve(lambda x: 0.3 * x),
    "bands B G R": lambda pixels, _: pixels[::-1],
    "bands G R B": lambda pixels, _: pixels[[1, 0, 2]],
    "bands R B G": lambda pixels, _: pixels[[0, 2, 1]],
    "bands NIR R G, made up": lambda pixels, _: np.stack(
        [(2.0 * pixels[1] - 0.5 * pixels[0]).clip(0, 255).astype(np.uint8), pixels[0], pixels[1]]
    ),
    "noise 20": _noise(20),
    "noise 40": _noise(40),
    "10 times too coarse": _coarse(10),
    "4 times too fine": _magnified(4),
}
TESTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bright": ("most like imagery brightened by a gamma curve", ("gamma 0.4",)),
    "dark": ("most like imagery that is too dark: dusk, or the wrong --stretch", ("dark x 0.15", "dark x 0.3", "gamma 2.5")),
    "inverted": ("most like imagery with light and dark exchanged", ("inverted",)),
    "bands_grb": ("most like imagery with red and green exchanged (--bands)", ("bands G R B",)),
    "bands_rbg": ("most like imagery with green and blue exchanged (--bands)", ("bands R B G",)),
    "bands_bgr": ("most like imagery with red and blue exchanged (--bands)", ("bands B G R",)),
    "infrared": ("most like near infrared, red and green (--bands)", ("bands NIR R G, made up",)),
    "noisy": ("most like imagery with noise added", ("noise 20", "noise 40")),
    "blurred": ("less detail than pixels of its size show", ("10 times too coarse", "4 times too fine")),
    "flat": ("most like imagery under haze, or with the wrong --stretch", ("haze 0.6 + 0.3 x", "haze 0.4 + 0.5 x")),
}  # fmt: skip
"""Code of a test, what it says, and the alterations that it was taught."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A place, or a part of one, in the state that an alteration leaves it in."""

    place: str
    """`source name`."""
    source: str
    split: str
    """`train` and `val` for sources of the recipe; else `test` (same source) or `elsewhere`."""
    alteration: str
    part: int
    """0: all of it; else a quarter, for learning from smaller samples."""
    measures: NDArray[np.float64]


def main() -> None:
    """Print the report; with --write, put the domain into the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/buildings")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--write", action="store_true", help="into the card")
    parser.add_argument("--keep", type=Path, help="file to keep measures in, or to take them from where it is there")
    options = parser.parse_args()
    bundle = find_model(options.model)
    if options.keep is not None and options.keep.exists():
        samples = list(np.load(options.keep, allow_pickle=True)["samples"])  # our own file, of this script
    else:
        samples = list(_samples(options.data, bundle.spec.gsd))
        if options.keep is not None:
            np.savez(options.keep, samples=np.array(samples, dtype=object))
    domain = learn(samples)
    report(domain, samples, bundle.spec.gsd)
    if options.write:
        card = bundle.folder / CARD
        item = json.loads(card.read_text(encoding="utf-8"))
        item["properties"][DOMAIN] = to_card(domain, samples)
        card.write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")


def _samples(data: Path, gsd: float) -> Iterator[Sample]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda place: list(_samples_of(*place)), _places(data, gsd)):
            yield from found


def _samples_of(place: str, source: str, split: str, patches: Sequence[Patch]) -> Iterator[Sample]:
    """A place in every state; for learning also quarters of it."""
    taught = {"none", *(name for _, names in TESTS.values() for name in names)}
    parts = [patches, *(patches[i::4] for i in (0, 2) if split == "train" and len(patches) >= 8)]
    for part, some in enumerate(parts):
        for name, alter in ALTERATIONS.items():
            if part and name not in taught:
                continue
            rng = np.random.default_rng(zlib.crc32(f"{place} {part} {name}".encode()))
            altered = [(alter(pixels, rng), mask) for pixels, mask in some]
            found = measure(altered)
            if found is not None:
                yield Sample(place, source, split, name, part, found)


def _places(data: Path, gsd: float) -> Iterator[tuple[str, str, str, list[Patch]]]:
    """Name, source, split and patches of each place, on a grid of the model's pixel size."""
    pools: dict[tuple[str, str, str], list[list[Patch]]] = {}
    with (data / "split.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "smoke"]
    for row in rows:
        folder, *_, name = row["image"].removeprefix("sharealike/").split("/")
        source = SOURCES.get(folder, folder)
        split = "elsewhere" if folder not in SOURCES else row["split"] if row["split"] in ("train", "val") else "test"
        with tempfile.TemporaryDirectory() as scratch:
            patches = _patches(data, row, gsd, Path(scratch))
        stem = Path(name).stem
        if not folder.startswith(CHIPS):
            aoi = row["note"].partition("AOI feature name=")[2]
            yield f"{source} {stem}{f' {aoi}' if aoi else ''}", source, split, patches
            continue
        town = stem.partition("_")[2].split("_")[0].split("-")[0].rstrip("0123456789") if "inria" in folder else ""
        town = stem.partition("_")[0] if "dubai" in folder else town
        pools.setdefault((folder, town, split if town == "" else row["split"]), []).append(
            patches[:: max(1, len(patches) // 4)]
        )
    for (folder, town, split), chips in pools.items():
        source = SOURCES.get(folder, folder)
        together = [patch for chip in chips for patch in chip]
        for start in range(0, len(together), MOST_WINDOWS):
            some = together[start : start + MOST_WINDOWS]
            if start == 0 or 2 * len(some) >= MOST_WINDOWS:
                name = f"{source} {folder} {town} {split} {start // MOST_WINDOWS}".replace("  ", " ")
                yield name, source, split if folder in SOURCES else "elsewhere", some


def _patches(data: Path, row: dict[str, str], gsd: float, scratch: Path) -> list[Patch]:
    _, _, aoi_name = row["note"].partition("AOI feature name=")
    aoi = data / row["aoi"] if row["aoi"] and aoi_name else None
    place = Place("", row["split"], data / row["image"], None, aoi, aoi_name or None, None, float(row["gsd_m"].strip("~")))
    truth = prepare(place, scratch)
    source = open_raster(truth.raster, gsd=gsd, core=448)
    bbox = bbox_of(truth) if aoi_name else None
    return survey(source, 0, region_on(None if bbox is None else Region.from_bbox(bbox), source.grid, source.bounds))


def learn(samples: Sequence[Sample]) -> Domain:
    """The domain that training places, and nothing else, make; limits from `train` and `val`."""
    train = [s for s in samples if s.split == "train"]
    plain = [s for s in train if s.alteration == "none"]
    weights = shares([s.source for s in plain])
    values = np.stack([s.measures for s in plain])
    mean = weights @ values
    std = np.sqrt(weights @ (values - mean) ** 2)
    whole = [s for s in plain if s.part == 0]
    blank = Domain(GSD, mean, std, np.empty(0), tuple(s.source for s in whole), 1.0, ())
    places = np.round(blank.standardise(np.stack([s.measures for s in whole])), 3)
    judged = [*whole, *(s for s in samples if s.split == "val" and s.alteration == "none")]
    bare = Domain(GSD, mean, std, places, blank.sources, 1.0, ())
    limit = _beyond([bare.distance(s.measures, without=s.source if s.split == "train" else None) for s in judged])
    trials = []
    for code, (text, alterations) in TESTS.items():
        fitted = {source: _fit(bare, train, alterations, without=source) for source in sorted(set(blank.sources))}
        own = _fit(bare, train, alterations)
        limits = []
        for sample in judged:
            w, bias = fitted[sample.source] if sample.split == "train" else own
            limits.append(float(bare.standardise(sample.measures) @ w + bias))
        trials.append(Trial(code, text, np.round(own[0], 4), round(own[1], 4), _beyond(limits)))
    return Domain(GSD, mean, std, places, blank.sources, limit, tuple(trials))


def _beyond(scores: Sequence[float]) -> float:
    greatest = max(scores)
    return round(float(greatest + HEADROOM * (greatest - np.median(scores))), 4)


def _fit(
    domain: Domain, train: Sequence[Sample], alterations: Sequence[str], without: str | None = None
) -> tuple[NDArray[np.float64], float]:
    """Ridge logistic regression by Newton's method: altered against not, each source with its share, both with half."""
    used = [s for s in train if s.source != without and (s.alteration == "none" or s.alteration in alterations)]
    x = np.column_stack([domain.standardise(np.stack([s.measures for s in used])), np.ones(len(used))])
    is_altered = np.array([s.alteration != "none" for s in used])
    share = np.empty(len(used))
    for side in (False, True):
        share[is_altered == side] = shares([s.source for s, a in zip(used, is_altered, strict=True) if a == side])
    share *= STRENGTH * len({s.source for s in used}) / 2.0
    penalty = np.diag([PENALTY] * len(MEASURES) + [1e-6])
    solution = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ solution, -30, 30)))
        gradient = x.T @ (share * (p - is_altered)) + penalty @ solution
        hessian = (x * (share * p * (1.0 - p))[:, None]).T @ x + penalty
        solution = solution - np.linalg.solve(hessian, gradient)
    return solution[:-1], float(solution[-1])


def report(domain: Domain, samples: Sequence[Sample], model_gsd: float) -> None:
    """Share of places with a finding, by alteration, where nothing was learned or chosen."""

    def codes(sample: Sample) -> list[str]:
        found = check_domain(
            domain, model_gsd=model_gsd, model_bands=3, gsd=0.3, bands=(1, 2, 3), measures=sample.measures,
            saturated=0.0,
        )  # fmt: skip
        return [finding.code for finding in found]

    whole = [s for s in samples if s.part == 0]
    groups = {
        "train, val": [s for s in whole if s.split in ("train", "val")],
        "test": [s for s in whole if s.split == "test"],
        "elsewhere, not Dubai": [s for s in whole if s.split == "elsewhere" and "dubai" not in s.source],
        "Dubai": [s for s in whole if "dubai" in s.source],
    }
    counts = {name: len({s.place for s in some}) for name, some in groups.items()}
    print("| alteration |", " | ".join(f"{name} ({count})" for name, count in counts.items()), "| by |")
    print("|---|" + "--:|" * len(groups) + "---|")
    for alteration in ALTERATIONS:
        cells, by = [], {}
        for name, some in groups.items():
            found = [codes(s) for s in some if s.alteration == alteration]
            cells.append(f"{np.mean([bool(f) for f in found]):.0%}")
            if name != "train, val":
                for code in (code for f in found for code in f):
                    by[code] = by.get(code, 0) + 1
        most = ", ".join(f"{code} {count}" for code, count in sorted(by.items(), key=lambda pair: -pair[1])[:4])
        print(f"| {alteration} |", " | ".join(cells), f"| {most} |")
    for sample in whole:
        if sample.alteration == "none" and (found := codes(sample)):
            print("flagged as it is:", sample.split, sample.place, ", ".join(found))


def to_card(domain: Domain, samples: Sequence[Sample]) -> dict[str, object]:
    """The entry of a card: `parse_domain` reads it."""
    whole = [s for s in samples if s.split == "train" and s.part == 0 and s.alteration == "none"]
    return {
        "gsd": list(domain.gsd),
        "measures": {"names": " ".join(MEASURES), "mean": _text(domain.mean, 4), "std": _text(domain.std, 4)},
        "limit": domain.limit,
        "tests": {
            t.code: {"text": t.text, "limit": t.limit, "bias": t.bias, "weights": _text(t.weights, 4)} for t in domain.trials
        },
        "places": {s.place: _text(place, 3) for s, place in zip(whole, domain.places, strict=True)},
    }


def _text(values: NDArray[np.float64], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}".rstrip("0").rstrip(".") for value in values)


if __name__ == "__main__":
    main()
