"""A whole run with the network replaced by a constant, against the rate at which rasterio alone decodes the same file.

    python -m benchmarks.nonetwork [--side 16384] [--threads 1 2] [--density 0 400] [--repeat 3] [--profile]

What is left without the network: opening, hashing and reading the file, cutting chips, validity, thresholds, polygons,
commits, stitching, finishing, writing. The constant is a plane of probabilities that every chip gets: empty, or with roofs
at a density per km2 (400: a town; the polygons of these are paid for as well). Decoding is every block once, block by
block, one handle a thread, as many threads as the run has. The two take turns, so that a busy machine troubles both, in
processes that have read nothing of the file before (the cache of decoded blocks outlives a run), and the median of the
ratios counts; that of processor time stands beside it. Both read from the system's page cache. A second run need not hash
the file again, which is told apart.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from benchmarks.imagery import BLOCK, write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.imagery.blocks import set_capacity
from geoinfer.job import Execution, make_job
from geoinfer.model.registry import resolve_model
from geoinfer.model.spec import ModelSpec
from geoinfer.pipeline import run
from geoinfer.store import Json
from geoinfer.vector import warm_up

DENSITY = 400
"""Roofs a km2: what the bundled model finds in a suburb."""
TARGET = 0.8


@dataclass(frozen=True, slots=True)
class Constant:
    """A predictor whose answer is there before it is asked."""

    spec: ModelSpec
    plane: NDArray[np.uint8]
    """(S, S) probabilities of every chip, made with a period of a core, so that roofs go on from core to core."""

    def predict(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:  # noqa: ARG002
        """(N, C, S, S) -> (N, S, S), a view."""
        return np.broadcast_to(self.plane, (len(chips), *self.plane.shape))


def constant(spec: ModelSpec, density: float) -> Constant:
    """Of a model's card, with roofs of 8 to 20 m at a density per km2."""
    side = spec.chips.core
    rng = np.random.default_rng(0)
    core = np.zeros((side, side), np.uint8)
    count = round(density * side * side * spec.gsd**2 / 1e6)
    least, most = round(8 / spec.gsd), round(20 / spec.gsd)
    for row, col, tall, wide in rng.integers([0, 0, least, least], [side, side, most, most], (count, 4)):
        core[np.ix_(np.arange(row, row + tall) % side, np.arange(col, col + wide) % side)] = 230
    return Constant(spec, np.pad(core, spec.chips.margin, mode="wrap"))


def clocks() -> NDArray[np.float64]:
    """(2,) seconds: wall, and processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def decode(path: Path, threads: int) -> NDArray[np.float64]:
    """(2,) wall and processor seconds in which rasterio reads every block of a file once, one handle a thread."""
    with rasterio.open(path) as file:
        windows = [window for _, window in file.block_windows(1)]

    def work(part: Sequence[Window]) -> None:
        with rasterio.open(path, sharing=False) as file:
            out = np.empty((file.count, BLOCK, BLOCK), np.uint8)
            for window in part:
                file.read(window=window, out=out[:, : window.height, : window.width])

    share = -(-len(windows) // threads)
    begin = clocks()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [windows[i : i + share] for i in range(0, len(windows), share)]))
    return clocks() - begin


def whole(path: Path, model: Constant, threads: int) -> tuple[NDArray[np.float64], Json]:
    """(2,) wall and processor seconds of a run, from opening the file to `_SUCCESS`; and its manifest."""
    with tempfile.TemporaryDirectory() as out:
        begin = clocks()
        done = run(make_job(path, model=model), Path(out) / "run", execution=Execution(threads=threads))
        return clocks() - begin, done.manifest


def warm(path: Path, density: float) -> Constant:
    """A model, once all is imported and compiled: what a first run of another, small file brings about."""
    warm_up()
    model = constant(resolve_model("buildings"), density)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.tif"
        with rasterio.open(path) as file:
            write_raster(small, model.spec.chips.core, file.res[0])
        whole(small, model, 1)
    return model


def turn(path: Path, threads: int, density: float) -> Json:
    """Decoding, two runs, and decoding, in this process, which has read nothing of the file yet."""
    model = warm(path, density)
    before = decode(path, threads)
    took, manifest = whole(path, model, threads)
    set_capacity()  # forget the decoded blocks
    again, _ = whole(path, model, threads)
    around = (before + decode(path, threads)) / 2
    return {
        "footprints": manifest["footprints"]["accepted"],
        "decode_s": around.tolist(),
        "run_s": took.tolist(),
        "again_s": again.tolist(),
        "stages_s": manifest["stages_s"],
        "decoded_per_pixel": manifest["decoded"]["pixels"] / pixels_of(path),
    }


def pixels_of(path: Path) -> int:
    """Of a raster."""
    with rasterio.open(path) as file:
        return int(file.width * file.height)


def measure(path: Path, threads: int, density: float, repeat: int, say: Callable[[str], None]) -> list[Row]:
    """Each turn in a process of its own: the cache of decoded blocks outlives a run."""
    command = [sys.executable, "-m", "benchmarks.nonetwork", "--one", str(path), str(threads), str(density)]
    turns = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:  # of the hashes of files that were seen before
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        turns.append(json.loads(done.stdout.splitlines()[-1]))
        say(done.stdout.splitlines()[-1])
    first, again = (
        np.median([np.divide(one["decode_s"], one[key]) for one in turns], axis=0)  # (2,) wall, processor
        for key in ("run_s", "again_s")
    )
    rate = pixels_of(path) / 1e6 / statistics.median(one["decode_s"][0] for one in turns)
    name = f"{turns[0]['footprints']} footprints, {threads} thread{'s' * (threads > 1)}"
    return [
        Row(f"run without a network, {name}", first[0] * rate, "Mpx/s", rate, "rasterio decodes", TARGET),
        Row(f"share by processor time, {name}", first[1], ""),
        Row(f"second run over the same file, {name}", again[0] * rate, "Mpx/s", rate, "rasterio decodes"),
        Row(f"decoded by delivered, {name}", max(one["decoded_per_pixel"] for one in turns), "", target=1.15, at_most=True),
    ]


def rows(quick: bool, *, side: int | None = None) -> list[Row]:
    """Empty and with roofs, one thread and two."""
    side = side or (8192 if quick else 16384)
    return _rows(side, (1, 2), (0, DENSITY), 1 if quick else 3, lambda _: None)


def _rows(
    side: int, threads: Sequence[int], densities: Sequence[float], repeat: int, say: Callable[[str], None]
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        ratio = write_raster(path, side)
        say(f"{side} x {side} x 3 uint8, {ratio:.2f} times smaller as a file, blocks of {BLOCK}")
        return [row for n in threads for density in densities for row in measure(path, n, density, repeat, say)]


def profile(side: int, density: float) -> None:
    """Where the time of a run of one thread goes, by function."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_raster(path, side)
        model = warm(path, density)
        with cProfile.Profile() as profiler:
            whole(path, model, 1)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--density", type=float, nargs="+", default=[0, DENSITY], help="roofs a km2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="of one thread, at the last density")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(turn(Path(options.one[0]), int(options.one[1]), float(options.one[2]))))
    elif options.profile:
        profile(options.side, options.density[-1])
    else:
        print(machine(), flush=True)
        print(table(_rows(options.side, options.threads, options.density, options.repeat, print)))


if __name__ == "__main__":
    main()
