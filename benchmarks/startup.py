"""How long it takes until something happens: importing, `--help`, and a small run until its first tile and to its end.

    python -m benchmarks.startup [--model buildings] [--repeat 5]

Every figure is of a whole new process, started as a user would; wall clock, the best of several, since files come from the
disk's cache the second time. A run is cold where numba finds no compiled kernels (a fresh NUMBA_CACHE_DIR), warm where
another run left them. The first tile has begun when the first pixel is asked for, which the run's own trace tells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.imagery import write_raster
from benchmarks.rows import Row, table

SIDE = 512
"""Pixels on a side of the small run's raster: one chip."""
PROGRAM = [sys.executable, "-m", "geoinfer.cli.main"]
IMPORT = "import time; since = time.perf_counter(); import geoinfer; print(time.perf_counter() - since)"


@dataclass(frozen=True, slots=True)
class SmallRun:
    """Seconds from the start of the process."""

    first_tile: float
    whole: float


def seconds_of(command: list[str]) -> float:
    """Wall clock of a process."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def import_seconds() -> float:
    """Of `import geoinfer` alone, in a new process."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout)


def small_run(raster: Path, folder: Path, model: str, kernels: Path) -> SmallRun:
    """One run in this machine's usual way, in a folder that is new; compiled kernels in `kernels`."""
    trace = folder / "trace.json"
    command = [*PROGRAM, "run", str(raster), "-o", str(folder / "run"), "--model", model, "--workers", "0"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(kernels)}
    began, begin = time.time(), time.perf_counter()
    subprocess.run([*command, "--trace", str(trace)], check=True, capture_output=True, env=environment)
    whole = time.perf_counter() - begin
    reads = [event["ts"] for event in json.loads(trace.read_text()) if event["name"] == "read"]
    return SmallRun(min(reads) / 1e6 - began, whole)


def rows(quick: bool, model: str = "buildings", repeat: int = 5) -> list[Row]:
    """For `python -m benchmarks`."""
    repeat = 2 if quick else repeat
    with tempfile.TemporaryDirectory() as folder:
        raster, runs = Path(folder) / "small.tif", []
        write_raster(raster, SIDE)
        for number in range(repeat + 1):  # the first one compiles
            (at := Path(folder) / str(number)).mkdir()
            runs.append(small_run(raster, at, model, Path(folder) / "kernels"))
    cold, warm = runs[0], runs[1:]
    bare = min(seconds_of([sys.executable, "-c", ""]) for _ in range(repeat))
    return [
        Row("import geoinfer", min(import_seconds() for _ in range(repeat)), "s", target=0.3, at_most=True),
        Row(
            "geoinfer --help",
            min(seconds_of([*PROGRAM, "--help"]) for _ in range(repeat)),
            "s",
            bare,
            "python alone",
            target=1.0,
            judged="value",
            at_most=True,
        ),
        Row("small run to its first tile, warm", min(run.first_tile for run in warm), "s", target=5.0, at_most=True),
        Row("small run, whole, warm", min(run.whole for run in warm), "s"),
        Row("small run to its first tile, cold", cold.first_tile, "s"),
        Row("small run, whole, cold", cold.whole, "s"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(table(rows(False, options.model, options.repeat)))
    print(f"\n{options.model}, {SIDE}² pixels, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
