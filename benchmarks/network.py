"""The network alone: how fast each way to run it is, and what that costs in quality.

    python -m benchmarks.network [--slim FOLDER] [--compile] [--f1 --data ../shared/data]

One chip on one thread, best of several, in processor time; from normalised pixels to uint8 probabilities, nothing read and
nothing cut. Each way is held against the first one, plain torch in float32 as the weights were trained: how much faster, and
the share of pixels of a generated scene that are decided otherwise. `--compile` adds `torch.compile`, which needs a C++
compiler, and says from how many pixels on it pays. `--f1` adds the mean object F1 of the `val` places: minutes a row.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.rows import Row
from geoinfer.detection import threshold_to_u8
from geoinfer.evaluation import combine
from geoinfer.model.folding import fold
from geoinfer.model.predictor import PRECISIONS, Predictor, load_network, probability, resolve_precision
from geoinfer.model.registry import find_model
from geoinfer.model.spec import ModelSpec
from geoinfer.scenes import generate_scene

PLACES = ("Boston", "Accra", "Banepa north")
"""Of `val`, for the mean F1: those that the settings were chosen on."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a network."""

    name: str
    spec: ModelSpec
    network: nn.Module
    precision: str
    layout: torch.memory_format = torch.channels_last
    compile_s: float = 0.0
    """What had to be waited for before the first result."""


def ways(model: str, slim: str | None, compiled: bool) -> Iterator[Way]:
    """The ways to compare, the reference first."""
    bundle = find_model(model)
    spec, network = bundle.spec, load_network(bundle)
    yield Way("float32 as trained, NCHW", spec, network, "fp32", torch.contiguous_format)
    yield Way("float32 as trained, channels last", spec, network, "fp32")
    yield Way("float32 folded", spec, fold(network, spec), "fp32")
    yield Way("bfloat16 as trained, channels last", spec, network, "bf16")
    yield Way("bfloat16 folded", spec, fold(network, spec), "bf16")
    if slim is not None:
        other = find_model(slim)
        yield Way(f"bfloat16 folded, {slim}", other.spec, fold(load_network(other), other.spec), "bf16")
    if compiled:
        yield _compiled(Way("bfloat16 folded, torch.compile", spec, fold(network, spec), "bf16"))


def _compiled(way: Way) -> Way:
    ready = prepare(way)
    fast = torch.compile(ready)
    x = pixels(way)
    start = time.perf_counter()
    with torch.inference_mode():
        fast(x)
    seconds = time.perf_counter() - start
    return Way(way.name, way.spec, fast, way.precision, way.layout, seconds)


def prepare(way: Way) -> nn.Module:
    """The network of a way in its precision and layout; a compiled one is ready."""
    if way.compile_s:
        return way.network
    moved: nn.Module = copy.deepcopy(way.network).to(PRECISIONS[way.precision], memory_format=way.layout)
    return moved


def pixels(way: Way) -> Tensor:
    """(1, C, S, S) normalised pixels of a generated scene, in a way's precision and layout."""
    scene = generate_scene(7, size=way.spec.chips.chip, gsd=way.spec.gsd).image
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (way.spec.mean, way.spec.std))
    x = (torch.from_numpy(np.ascontiguousarray(scene))[None].float() - mean) / std
    return x.to(PRECISIONS[way.precision]).contiguous(memory_format=way.layout)


def measure(way: Way, repeat: int) -> tuple[float, NDArray[np.uint8]]:
    """Seconds of the processor for a chip, and its (S, S) probabilities."""
    network, x = prepare(way), pixels(way)

    def forward() -> Tensor:
        return probability(network(x), way.spec.probability)

    with torch.inference_mode():
        prob = forward()[0].numpy()  # warm: kernels are made at the first call
        return _best(forward, repeat, time.process_time), prob


def _best(work: Callable[[], object], repeat: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(repeat):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def mean_f1(way: Way, data: Path) -> float:
    """Mean over `PLACES` of the object F1, at the card's settings."""
    from benchmarks.regions import places, score_place

    predictor = Predictor(way.spec, prepare(way), precision=way.precision, batch_size=1, threads=os.cpu_count())
    parts: dict[str, list] = {name: [] for name in PLACES}
    with tempfile.TemporaryDirectory() as scratch:
        for place in places(data, ("val",)):
            if place.name in parts:
                parts[place.name].append(score_place(place, predictor, scratch=Path(scratch)).evaluation)
    return float(np.mean([combine(found).f1 for found in parts.values()]))


def rows(quick: bool) -> list[Row]:
    """The shipped network as `load_predictor` runs it against the same weights as they were trained, wall clock."""
    bundle = find_model("buildings")
    spec, network = bundle.spec, load_network(bundle)
    found = []
    for precision in dict.fromkeys(("fp32", resolve_precision("auto", "cpu"))):
        for threads in dict.fromkeys((1, os.cpu_count() or 1)):
            chips = np.random.default_rng(0).integers(
                0, 256, (threads, len(spec.bands), spec.chips.chip, spec.chips.chip), np.uint8
            )
            rates = []
            for one in (fold(network, spec), copy.deepcopy(network)):
                predictor = Predictor(spec, one, precision=precision, batch_size=1, threads=threads)
                predictor.predict(chips)  # warm up
                seconds = _best(lambda p=predictor, c=chips: p.predict(c), 1 if quick else 5, time.perf_counter)
                rates.append(chips[:, 0].size / seconds / 1e6)
            name = f"network alone, {precision}, threads: {threads}"
            found.append(Row(name, rates[0], "Mpx/s", rates[1], "as trained"))
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings", help="name or folder")
    parser.add_argument("--slim", help="name or folder of another model, run as the shipped one")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--f1", action="store_true", help="also the mean F1 on val: minutes a row")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chip = find_model(options.model).spec.chips.chip
    print(f"{machine()}; chips of {chip} px, one thread, processor time, best of {options.repeat}\n")
    print("| network | ms a chip | Mpx/s | times the first | decided otherwise | mean F1 on val | pays from |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    first: tuple[float, NDArray[np.bool_]] | None = None
    folded_s = float("nan")
    for way in ways(options.model, options.slim, options.compile):
        seconds, prob = measure(way, options.repeat)
        decided = prob >= threshold_to_u8(way.spec.threshold)
        first = first or (seconds, decided)
        if way.name == "bfloat16 folded":
            folded_s = seconds
        pays = ""
        if way.compile_s:
            gain = folded_s - seconds
            pays = f"{way.compile_s:.0f} s of compiling: " + (
                f"{way.compile_s / gain * chip**2 / 1e6:.0f} Mpx" if gain > 0 else "never"
            )
        score = f"{mean_f1(way, options.data):.4f}" if options.f1 else ""
        print(
            f"| {way.name} | {seconds * 1e3:.0f} | {chip**2 / seconds / 1e6:.2f} | {first[0] / seconds:.2f} |"
            f" {(decided != first[1]).mean():.3%} | {score} | {pays} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
