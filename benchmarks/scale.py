"""How a run grows with the machine: two worker processes against one, two threads of one process against one.

    python -m benchmarks.scale [--cores 8] [--tile 1] [--repeat 2] [--precision auto]

Each worker process has one thread. The rate is of the tiles' phase with the real network: chips by its wall clock, less the
time in which workers load the model. Small tiles, so that both sides end together. One and two take turns; the medians
count. What two cores can do at best is what the bare network does on them (`benchmarks.network`): they may share a memory
bus, or even be two threads of one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.imagery import write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.cluster import connect
from geoinfer.job import Execution, Job, make_job
from geoinfer.model.registry import resolve_model
from geoinfer.pipeline import Run, run
from geoinfer.vector import warm_up

TARGET = 1.8


def rate(done: Run) -> float:
    """Pixels through the network per second of the tiles' phase."""
    seconds: float = done.manifest["timings_s"]["tiles"] - done.manifest["stages_s"]["load"]
    chip: int = done.manifest["job"]["model"]["chips"]["chip"]
    chips: int = done.manifest["chips"]
    return chips * chip**2 / seconds


def with_processes(job: Job, out: Path, count: int, tile: int) -> float:
    """The rate with worker processes of one thread each."""
    with connect(count) as client:
        return rate(run(job, out, execution=Execution(tile=tile), client=client))


def with_threads(job: Job, out: Path, count: int, tile: int) -> float:
    """The rate with threads of this process."""
    return rate(run(job, out, execution=Execution(tile=tile, threads=count)))


def rows(quick: bool) -> list[Row]:
    """Processes, then threads."""
    return _rows(3 if quick else 8, 1, 1 if quick else 2, "auto")


def _rows(cores: int, tile: int, repeat: int, precision: str, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    warm_up()
    spec = resolve_model("buildings")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        raster = Path(folder) / "scene.tif"
        write_raster(raster, cores * spec.chips.core, spec.gsd)
        job = make_job(raster, device="cpu", precision=precision)
        for what, work in (("worker processes of one thread", with_processes), ("threads of one process", with_threads)):
            rates: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(repeat):
                for count in (1, 2) if turn % 2 == 0 else (2, 1):
                    rates[count].append(work(job, Path(folder) / f"{work.__name__}-{count}-{turn}", count, tile) / 1e6)
                    say(f"{count} {what}: {rates[count][-1]:.2f} Mpx/s")
            one, two = statistics.median(rates[1]), statistics.median(rates[2])
            found.append(Row(f"two {what}, {job.precision}", two, "Mpx/s", one, "one", TARGET))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=8, help="cores of the lattice on a side of the scene")
    parser.add_argument("--tile", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    print(machine(), flush=True)
    print(table(_rows(options.cores, options.tile, options.repeat, options.precision, print)))


if __name__ == "__main__":
    main()
