"""All that is to be known of geoinfer on one GPU, by one command.

    python -m benchmarks.gpu [--device cuda:0] [--price-per-hour 2.5] [--model buildings | --random] [--quick] [--append]

Batch: the network alone on chips that are on the device already, for batches that double and each precision; the smallest
within 3 % of the best is the batch found. Run: a whole run over a generated raster (decoding, staging, copying, polygons,
files) in the default precision with that batch, against the network alone; how busy the device was, and from that km2/s,
hours and cost for a million km2. The same over imagery of 0.5 m, resampled to the model's pixels: the network's work is that
of the ground, not of the imagery.

Equal: probabilities on the device against the CPU's in the same precision on the same chips. The share of pixels whose
decision differs must be at most `FLIPS`, since sums are done in another order; the share against float32 is told as well.
Repeatable: probabilities
of the same chips in two processes, and footprints of three runs, must agree to the bit (batches of one shape, no algorithm
chosen by timing).

Weights are random where the model is not there or `--random` says so: rates, shares and repeatability are then as with any
weights. `--device cpu --quick` goes through all of it in a minute, which proves the command, not a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.imagery import scene, write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, append, table
from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import ChipSpec
from geoinfer.imagery.blocks import set_capacity
from geoinfer.job import Execution, make_job
from geoinfer.model.folding import fold
from geoinfer.model.networks import build_network
from geoinfer.model.predictor import PRECISIONS, Predictor, load_network, probability, resolve_device, resolve_precision
from geoinfer.model.registry import find_model
from geoinfer.model.spec import ModelSpec
from geoinfer.pipeline import Run, run
from geoinfer.vector import warm_up
from geoinfer.worker import usable_cores

FLIPS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-3}
"""Share of the pixels whose decision may differ from the CPU's in that precision (float32 for fp16), as in the tests."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SHARE, KM2_PER_S = 0.9, 10.0
"""Targets: of the network alone, and at 0.3 m."""
UNTRAINED = ModelSpec(
    name="random",
    version="0",
    gsd=0.3,
    chips=ChipSpec(1280, 64, 32),
    bands=("red", "green", "blue"),
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
    architecture="unet-lite0",
    arguments={"bands": 3, "outputs": 3},
    probability="core",
    threshold=0.5,
    min_area_m2=20.0,
    simplify_m=0.45,
    grow_m=0.8,
    weights_sha256="0" * 64,
)
"""The card of a network that nobody trained."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, and how long."""

    device: str
    """`cpu` or `cuda:N`."""
    model: str | None
    """None: random weights."""
    side: int | None
    """Of the raster, pixels; None: as many as take some ten seconds."""
    threads: int
    """Tiles side by side: who reads and polygonizes while the network works."""
    quick: bool
    price_per_hour: float | None = None
    """Of the machine, in whatever currency."""


def open_network(model: str | None) -> tuple[ModelSpec, nn.Module]:
    """A model's card and folded network; with random weights where it is not there."""
    if model is not None:
        try:
            bundle = find_model(model)
            return bundle.spec, fold(load_network(bundle), bundle.spec)
        except (ConfigError, SourceError) as error:
            print(f"{error}; going on with random weights", file=sys.stderr)
    torch.manual_seed(0)
    network = build_network(UNTRAINED.architecture, **UNTRAINED.arguments).eval()
    return UNTRAINED, fold(network, UNTRAINED)


def ready_chips(spec: ModelSpec, count: int) -> NDArray[np.uint8]:
    """(N, C, S, S) of a generated town, no two alike."""
    town, side = scene(), spec.chips.chip
    steps = range(0, town.shape[1] - side + 1, 64)
    places = [(row, col) for row in steps for col in steps]
    picked = [places[i * 7919 % len(places)] for i in range(count)]
    return np.stack([town[:, row : row + side, col : col + side] for row, col in picked])


def bare_rate(spec: ModelSpec, network: nn.Module, device: str, precision: str, batch: int, seconds: float) -> float:
    """Pixels a second of normalising, network and probabilities on chips that are on the device."""
    dtype = PRECISIONS[precision]
    placed = network.to(torch.device(device), dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    x = torch.from_numpy(ready_chips(spec, batch)).to(device)  # (N, C, S, S) uint8

    def forward() -> Tensor:
        ready = ((x.float() - mean) / std).to(dtype).contiguous(memory_format=torch.channels_last)
        return probability(placed(ready), spec.probability)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        for _ in range(1 if device == "cpu" else 3):  # kernels are made and chosen at the first calls
            forward()
        wait()
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            forward()
            wait()
            done += 1
        return done * batch * spec.chips.chip**2 / (time.perf_counter() - begin)


def find_batch(setting: Setting, precision: str, say: Callable[[str], None]) -> tuple[int, float]:
    """The smallest batch within 3 % of the best rate, and its rate; batches that the memory does not hold end the search."""
    rates: dict[int, float] = {}
    for batch in BATCHES[:2] if setting.device == "cpu" else BATCHES:
        try:
            spec, network = open_network(setting.model)
            seconds = 0.5 if setting.quick else 3.0
            rates[batch] = bare_rate(spec, network, setting.device, precision, batch, seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        say(f"network alone, {precision}, batch {batch}: {rates[batch] / 1e6:.1f} Mpx/s")
    best = max(rates.values())
    found = min(batch for batch, rate in rates.items() if rate >= 0.97 * best)
    return found, rates[found]


def predictor_of(setting: Setting, precision: str, batch: int | None) -> Predictor:
    """Fresh, on the device."""
    spec, network = open_network(setting.model)
    return Predictor(spec, network, device=setting.device, precision=precision, batch_size=batch, threads=setting.threads)


def whole(setting: Setting, predictor: Predictor, raster: Path, out: Path) -> tuple[Run, float]:
    """A run and its seconds, opening and hashing the file included, loading the model not."""
    set_capacity()  # forget the blocks of the run before
    begin = time.perf_counter()
    done = run(make_job(raster, model=predictor), out, execution=Execution(threads=setting.threads))
    return done, time.perf_counter() - begin


def flips(setting: Setting, precision: str, reference: str) -> tuple[float, int]:
    """Share of the pixels whose decision differs from the CPU's in a precision, and the largest difference in 1/255."""
    here = Setting("cpu", setting.model, None, setting.threads, setting.quick)
    there, truth = predictor_of(setting, precision, None), predictor_of(here, reference, 1)
    chips = ready_chips(there.spec, 1 if setting.quick else 8)
    found, expected = there.predict(chips), truth.predict(chips)
    threshold = 255 * there.spec.threshold
    differs = np.mean((found >= threshold) != (expected >= threshold))
    return float(differs), int(np.abs(found.astype(np.int16) - expected).max())


def _on_cpu(precision: str) -> str:
    """What a CPU computes in where a GPU has this precision."""
    return "fp32" if precision == "fp16" else precision


def digest(setting: Setting, precision: str, batch: int) -> str:
    """sha256 of the probabilities of chips that fill a batch and half of another."""
    predictor = predictor_of(setting, precision, batch)
    chips = ready_chips(predictor.spec, batch + max(1, batch // 2))
    return hashlib.sha256(predictor.predict(chips).tobytes()).hexdigest()


def digest_elsewhere(setting: Setting, precision: str, batch: int) -> str:
    """The same, computed by a new process."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--digest", precision, str(batch), "--device", setting.device]
    command += ["--threads", str(setting.threads), *(["--model", setting.model] if setting.model else ["--random"])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return str(json.loads(done.stdout.splitlines()[-1]))


def footprints(done: Run) -> str:
    """sha256 of the ids and geometries of a run's footprints."""
    frame = done.read()
    return hashlib.sha256(b"".join([*frame.geometry.to_wkb(), *(str(one).encode() for one in frame["id"])])).hexdigest()


def measure(setting: Setting, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """All of it."""
    warm_up()
    torch.set_num_threads(1 if setting.device == "cpu" else torch.get_num_threads())
    default = resolve_precision("auto", setting.device)
    rows: list[Row] = []
    found: dict[str, tuple[int, float]] = {}
    for precision in ("fp32", default) if setting.device == "cpu" else ("fp32", "bf16", "fp16"):
        if precision not in found:
            found[precision] = find_batch(setting, precision, say)
            batch, rate = found[precision]
            rows.append(Row(f"network alone, {precision}, batch {batch} (found)", rate / 1e6, "Mpx/s"))
    batch, bare = found[default]
    taken = predictor_of(setting, default, None).batch_size
    rows.append(Row("batch", batch, "chips", taken, "taken where none is given"))
    rows += _runs(setting, default, batch, bare, say)
    for precision, reference in dict.fromkeys((("fp32", "fp32"), (default, _on_cpu(default)), (default, "fp32"))):
        share, largest = flips(setting, precision, reference)
        name = f"decisions in {precision} that differ from the CPU's in {reference}, at most {largest}/255 apart"
        is_equal = reference == _on_cpu(precision)
        rows.append(Row(name, share, "", target=FLIPS[precision] if is_equal else None, at_most=True))
    once = digest(setting, default, batch)
    same = once == digest(setting, default, batch) == digest_elsewhere(setting, default, batch)
    rows.append(Row("probabilities agree to the bit, again and in another process", float(same), "", target=1))
    return rows


def _runs(setting: Setting, precision: str, batch: int, bare: float, say: Callable[[str], None]) -> list[Row]:
    """Whole runs at the model's pixel size, twice, and over coarser imagery."""
    predictor = predictor_of(setting, precision, batch)
    spec, rows = predictor.spec, []
    side = setting.side or (2 * spec.chips.core if setting.device == "cpu" else 8192 if setting.quick else 32768)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_raster(folder / "fine.tif", side, spec.gsd)
        turns = [whole(setting, predictor, folder / "fine.tif", folder / f"fine-{turn}") for turn in range(3)]
        for done, seconds in turns:
            say(f"run: {seconds:.2f} s, {json.dumps(done.manifest['stages_s'])}, {json.dumps(done.manifest['device'])}")
        done, seconds = min(turns, key=lambda turn: turn[1])  # the first one fills caches and makes kernels
        chips = done.manifest["chips"] * spec.chips.chip**2
        how = f"{precision}, batch {batch}, {setting.threads} tile(s) side by side"
        rows.append(Row(f"whole run, {how}", chips / seconds / 1e6, "Mpx/s", bare / 1e6, "network alone", SHARE))
        rows.append(Row("delivered", side**2 / seconds / 1e6, "Mpx/s"))
        rows.append(Row("device busy share while tiles are done", done.manifest["device"]["busy_share"], ""))
        rows += _ground(f"{spec.gsd:g} m", side**2 * spec.gsd**2 / 1e6 / seconds, setting, KM2_PER_S)
        same = len({footprints(one) for one, _ in turns}) == 1
        rows.append(Row(f"{len(done.read())} footprints agree to the bit in three runs", float(same), "", target=1))
        coarse = int(side * spec.gsd / 0.5)
        write_raster(folder / "coarse.tif", coarse, 0.5)
        done, seconds = whole(setting, predictor, folder / "coarse.tif", folder / "coarse")
        say(f"run at 0.5 m: {seconds:.2f} s, {json.dumps(done.manifest['stages_s'])}")
        rows += _ground("0.5 m, resampled", coarse**2 * 0.25 / 1e6 / seconds, setting, None)
    return rows


def _ground(name: str, km2_per_s: float, setting: Setting, target: float | None) -> list[Row]:
    """A rate on the ground, and what a million km2 takes at it."""
    hours = 1e6 / km2_per_s / 3600
    rows = [
        Row(f"ground, imagery of {name}", km2_per_s, "km2/s", target=target if setting.device != "cpu" else None),
        Row(f"a million km2, imagery of {name}", hours, "h"),
    ]
    if setting.price_per_hour is not None:
        rows.append(Row(f"its cost at {setting.price_per_hour:g} an hour", hours * setting.price_per_hour, ""))
    return rows


def rows(quick: bool) -> list[Row]:
    """Of the first GPU, or of the CPU where there is none."""
    device = resolve_device("auto")
    return measure(Setting(device, "buildings", None, _usual_threads(device), quick))


def _usual_threads(device: str) -> int:
    """One on a CPU, as the network alone has here; on a GPU as many as read and polygonize."""
    return 1 if device == "cpu" else usable_cores()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; append where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="buildings", help="a name or a folder")
    parser.add_argument("--random", action="store_true", help="random weights whatever is there")
    parser.add_argument("--side", type=int, help="of the raster, pixels")
    parser.add_argument("--threads", type=int, help="tiles side by side; default: one a core on a GPU, else 1")
    parser.add_argument("--price-per-hour", type=float, help="of the machine")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--append", action="store_true", help="write the table to the end of RESULTS.md")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="or of another file")
    parser.add_argument("--digest", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    model = None if options.random else options.model
    device = resolve_device(options.device)
    threads = options.threads or _usual_threads(device)
    setting = Setting(device, model, options.side, threads, options.quick, options.price_per_hour)
    if options.digest:
        print(json.dumps(digest(setting, options.digest[0], int(options.digest[1]))))
        return
    about = str(machine())
    print(about, flush=True)
    found = measure(setting, lambda text: print(text, flush=True))
    print(f"\n{table(found)}")
    if options.append:
        name = torch.cuda.get_device_name(device) if device != "cpu" else "the CPU"
        weights = f"model {model}" if model else "random weights"
        how = f"`python -m benchmarks.gpu{' --quick' * options.quick}`, {weights}."
        append(options.results, f"On {name}, {date.today().isoformat()}", f"{about}. {how}", [("All", found)])


if __name__ == "__main__":
    main()
