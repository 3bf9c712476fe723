"""A whole run against the device's ceiling: the bare network on ready chips, same batch, same threads, same process.

    python -m benchmarks.ceiling [--model buildings] [--cores 16] [--tile 4] [--batch-size 1] [--threads 1] [--repeat 3]

Share = pixels through the network per second of the run (margins counted, since the network computes them) over the same of
the network alone. The run is everything: reading, cutting, polygonizing, committing, stitching, finishing and writing; only
loading the model is left out. Ceiling and run take turns, so that a busy machine troubles both; the median share counts.
On a CPU with one thread the share of processor time is printed too, which other work on the machine does not move.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from geoinfer.job import Execution, make_job
from geoinfer.model.predictor import Predictor, load_predictor
from geoinfer.pipeline import run
from geoinfer.vector import warm_up


def paint(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """(3, side, side) noise with a roof for each 2,500 pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(40, 120, (3, side, side), np.uint8)
    for row, col, tall, wide in rng.integers([0, 0, 10, 10], [side, side, 50, 50], (side * side // 2500, 4)):
        pixels[:, row : row + tall, col : col + wide] = rng.integers(140, 240, (3, 1, 1))
    return pixels


def write_scene(path: Path, side: int, gsd: float) -> None:
    """A tiled, deflated GeoTIFF on the lattice, as imagery is delivered."""
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32630", "compress": "deflate", "tiled": True}
    size = {"height": side, "width": side, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", transform=Affine(gsd, 0, 0, 0, -gsd, 0), **profile, **size) as file:
        file.write(paint(side))


def clocks() -> NDArray[np.float64]:
    """(2,) seconds: wall, and processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def ceiling(predictor: Predictor, chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(2,) pixels a second of the network alone, by both clocks: forward passes over ready chips, nothing cut or checked."""
    start = clocks()
    prob = np.empty((len(chips), *chips.shape[2:]), np.uint8)
    predictor._forward_all(chips, prob)
    rates: NDArray[np.float64] = prob.size / (clocks() - start)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--cores", type=int, default=8, help="cores of the lattice on a side of the scene")
    parser.add_argument("--tile", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warm_up()
    predictor = load_predictor(
        arguments.model, device=arguments.device, batch_size=arguments.batch_size, threads=arguments.threads
    )
    spec = predictor.spec.chips
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_scene(path, arguments.cores * spec.core, predictor.spec.gsd)
        rng = np.random.default_rng(0)
        ready = rng.integers(0, 256, (max(16, 4 * arguments.batch_size), 3, spec.chip, spec.chip), np.uint8)
        ceiling(predictor, ready[:2])
        for i in range(arguments.repeat):
            before = ceiling(predictor, ready)
            start = clocks()
            done = run(make_job(path, model=predictor), Path(folder) / f"run{i}", execution=Execution(tile=arguments.tile))
            rate = done.manifest["chips"] * spec.chip**2 / (clocks() - start)
            bare = (before + ceiling(predictor, ready)) / 2
            shares.append(rate / bare)
            print(
                f"run {rate[0] / 1e6:.2f} Mpx/s, network alone {bare[0] / 1e6:.2f} Mpx/s, share {shares[-1][0]:.3f}, of "
                f"processor time {shares[-1][1]:.3f}; {done.manifest['timings_s']}"
            )
    wall, processor = (statistics.median(values) for values in zip(*shares, strict=True))
    print(
        f"{arguments.model} on {predictor.device} in {predictor.precision}, batch {arguments.batch_size}, "
        f"{arguments.threads} thread(s), tiles of {arguments.tile} cores: "
        f"median share {wall:.3f}, of processor time {processor:.3f} (target 0.9)"
    )


if __name__ == "__main__":
    main()
