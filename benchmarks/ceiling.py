"""A whole run against the device's ceiling: the bare network on ready chips, same batch, same threads, same process.

    python -m benchmarks.ceiling [--model buildings] [--cores 8] [--tile 4] [--threads 1 2] [--precision auto] [--repeat 3]

Share = pixels through the network per second of the run (margins counted, since the network computes them) over the same of
the network alone. The run is everything: opening and hashing the file, reading, cutting, polygonizing, committing,
stitching, finishing and writing; only loading the model is left out. Ceiling and run take turns, so that a busy machine
troubles both; the median share counts. On a CPU the share of processor time is printed too, which other work on the machine
moves less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.imagery import write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.imagery.blocks import set_capacity
from geoinfer.job import Execution, make_job
from geoinfer.model.predictor import Predictor, load_predictor
from geoinfer.pipeline import run
from geoinfer.vector import warm_up

TARGET = 0.9


@dataclass(frozen=True, slots=True)
class Share:
    """Of one predictor, medians of several turns; pixels a second count margins."""

    run: float
    """Pixels through the network per second of the whole run."""
    bare: float
    """The same of the network alone."""
    share: float
    processor: float
    """The share by processor time."""
    busy: float | None
    """Device busy share of the last run, as `run.json` has it."""
    delivered: float
    """Pixels of the region per second of the run: margins not counted."""


def clocks() -> NDArray[np.float64]:
    """(2,) seconds: wall, and processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def bare(predictor: Predictor, chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(2,) pixels a second of the network alone, by both clocks: forward passes over ready chips, nothing cut or checked."""
    start = clocks()
    predictor.predict(chips)
    rates: NDArray[np.float64] = chips[:, 0].size / (clocks() - start)
    return rates


def ready_chips(predictor: Predictor, count: int) -> NDArray[np.uint8]:
    """(N, C, S, S) noise, N a multiple of what the predictor takes at once."""
    side, at_once = predictor.spec.chips.chip, predictor.chips_at_once
    shape = (-(-count // at_once) * at_once, len(predictor.spec.bands), side, side)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def measure(
    predictor: Predictor,
    raster: Path,
    *,
    tile: int,
    threads: int | None,
    repeat: int,
    chips: int = 16,
    say: Callable[[str], None] = lambda _: None,
) -> Share:
    """Ceiling, run and ceiling again, `repeat` times."""
    ready = ready_chips(predictor, chips)
    bare(predictor, ready[: predictor.chips_at_once])
    spec = predictor.spec.chips
    turns = []
    busy = None
    delivered = 0
    for _ in range(repeat):
        before = bare(predictor, ready)
        with tempfile.TemporaryDirectory() as folder:
            set_capacity()  # forget the blocks of the run before
            start = clocks()
            job = make_job(raster, model=predictor)
            done = run(job, Path(folder) / "run", execution=Execution(tile=tile, threads=threads))
            rate = done.manifest["chips"] * spec.chip**2 / (clocks() - start)
        delivered = job.region.window.height * job.region.window.width / (done.manifest["chips"] * spec.chip**2)
        alone = (before + bare(predictor, ready)) / 2
        turns.append((rate[0], alone[0], *(rate / alone)))
        busy = done.manifest["device"]["busy_share"]
        say(
            f"run {rate[0] / 1e6:.2f} Mpx/s, network alone {alone[0] / 1e6:.2f} Mpx/s, share {rate[0] / alone[0]:.3f}, of "
            f"processor time {rate[1] / alone[1]:.3f}; {done.manifest['stages_s']}"
        )
    middle = [statistics.median(values) for values in zip(*turns, strict=True)]
    return Share(middle[0], middle[1], middle[2], middle[3], busy, middle[0] * delivered)


def to_rows(predictor: Predictor, share: Share) -> list[Row]:
    """What a share says in two rows."""
    threads = f", {predictor.threads} thread{'s' * (predictor.threads > 1)}" if predictor.device == "cpu" else ""
    how = f"{predictor.precision}, batch {predictor.batch_size}{threads}"
    whole = Row(f"whole run, {how}", share.share * share.bare / 1e6, "Mpx/s", share.bare / 1e6, "network alone", TARGET)
    rows = [whole, Row(f"delivered, {how}", share.delivered / 1e6, "Mpx/s")]
    return rows if share.busy is None else [*rows, Row(f"device busy share, {how}", share.busy, "")]


def rows(quick: bool) -> list[Row]:
    """The bundled model in its default precision, one thread and two."""
    return _rows("buildings", 2 if quick else 8, 1 if quick else 4, (1, 2), "auto", "auto", 1 if quick else 3)


def _rows(
    model: str,
    cores: int,
    tile: int,
    threads: Sequence[int],
    precision: str,
    batch_size: int | str,
    repeat: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    warm_up()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        raster = Path(folder) / "scene.tif"
        for count in threads:
            predictor = load_predictor(model, device="cpu", precision=precision, batch_size=batch_size, threads=count)
            if not raster.exists():
                write_raster(raster, cores * predictor.spec.chips.core, predictor.spec.gsd)
            share = measure(predictor, raster, tile=tile, threads=count, repeat=repeat, chips=2 * cores, say=say)
            found += to_rows(predictor, share)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--cores", type=int, default=8, help="cores of the lattice on a side of the scene")
    parser.add_argument("--tile", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(machine(), flush=True)
    measured = _rows(
        options.model,
        options.cores,
        options.tile,
        options.threads,
        options.precision,
        options.batch_size,
        options.repeat,
        print,
    )
    print(table(measured))


if __name__ == "__main__":
    main()
