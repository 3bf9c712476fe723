"""All of it on the machine at hand: one table of ratios, against the device's ceiling and against peers.

    python -m benchmarks [--quick] [--only NAME...] [--append] [--peers DIR]

Each part runs in a process of its own, one after the other: nothing that one of them loaded or kept weighs on the next. A
part that fails says so and the others go on; the exit status is 1 then. RESULTS.md is touched with --append alone, at its
end. `--quick` is for seeing that all parts work, in a few minutes; its figures are of runs too short to be quoted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.rows import Row, append, from_json, table, to_json

PARTS = {
    "network": "the bare network",
    "ceiling": "the whole run against the bare network",
    "nonetwork": "the whole run without a network, against decoding",
    "reading": "reading",
    "remote": "imagery over a network",
    "polygonize": "polygonizing",
    "merging": "merging tiles",
    "evaluation": "evaluation",
    "scale": "two workers, two threads",
    "startup": "start-up",
    "memory": "memory",
    "peers": "peers on the same raster with the same weights",
    "gpu": "the GPU",
}
"""Name and what it measures, in the order of the table."""
HOMES = {"peers": "benchmarks.peers.compare"}
"""Modules that are not called like their part."""
RESULTS = Path(__file__).with_name("RESULTS.md")
MARK = "rows: "
"""Before the line of JSON in which a part's process says its rows."""


def rows_of(part: str, quick: bool) -> list[Row]:
    """A part's rows, measured in this process."""
    module = importlib.import_module(HOMES.get(part, f"benchmarks.{part}"))
    found: list[Row] = module.rows(quick)
    return found


def measure(part: str, quick: bool, environment: dict[str, str]) -> list[Row] | None:
    """A part's rows, measured in a process of its own; None where it failed, which it says on stderr itself."""
    command = [sys.executable, "-m", "benchmarks", "--one", part, *["--quick"] * quick]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    return from_json(lines[-1].removeprefix(MARK)) if done.returncode == 0 and lines else None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, append if asked to.

    Returns:
        0, or 1 where a part failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--append", action="store_true", help="write the tables to the end of RESULTS.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="or of another file")
    parser.add_argument("--peers", type=Path, help="the folder that peers/install.sh filled")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(MARK + to_json(rows_of(options.one, options.quick)))
        return 0
    about = str(machine())
    print(about, flush=True)
    environment = {"BENCHMARK_PEERS": str(options.peers.absolute())} if options.peers else {}
    found: list[tuple[str, list[Row]]] = []
    failed: list[str] = []
    for part in options.only or [part for part in PARTS if part != "gpu" or machine().gpu]:
        begin = time.monotonic()
        rows = measure(part, options.quick, environment)
        if rows is None:
            failed.append(part)
            print(f"\n{part}: failed", flush=True)
            continue
        found.append((PARTS[part].capitalize(), rows))
        print(f"\n{PARTS[part].capitalize()} ({time.monotonic() - begin:.0f} s)\n\n{table(rows)}", flush=True)
    judged = [row for _, rows in found for row in rows if row.is_met is not None]
    verdict = f"{sum(bool(row.is_met) for row in judged)} of {len(judged)} targets met"
    lost = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"\n{verdict}{lost}")
    if options.append:
        how = "`python -m benchmarks --quick`: short runs, not to be quoted" if options.quick else "`python -m benchmarks`"
        append(options.results, f"All parts, {date.today().isoformat()}", f"{about}. {how}.", found, verdict + lost)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
