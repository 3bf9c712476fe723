"""Peak memory of whole runs of 100 Mpx and of 1 Gpx: it must not grow with the region.

    python -m benchmarks.memory [--megapixels 100 1000] [--tile 4] [--workers 1]

The raster is generated and sparse: one block in four holds ground and roofs, the others were never written. The model is a
stand-in that costs little, so what is measured is the pipeline. Each size runs in a fresh process; driver and worker are
measured apart (`ru_maxrss`).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from benchmarks.rows import Row, table
from geoinfer.cluster import connect
from geoinfer.grid import ChipSpec
from geoinfer.job import Execution, make_job
from geoinfer.model.spec import ModelSpec
from geoinfer.pipeline import run

BLOCK = 512
ROOFS = 40
"""In a block that holds any."""
TARGET = 1.1
SPEC = ModelSpec(
    name="red",
    version="1",
    gsd=0.3,
    chips=ChipSpec(512, 32, 32),
    bands=("red", "green", "blue"),
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
    architecture="none",
    arguments={},
    probability="body",
    threshold=0.5,
    min_area_m2=1.0,
    simplify_m=0.3,
    grow_m=0.0,
    weights_sha256="0" * 64,
)


@dataclass(frozen=True)
class Red:
    """A model that takes red for building: as much work as copying."""

    spec: ModelSpec = SPEC

    def predict(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """(N, C, S, S) -> (N, S, S)."""
        prob = chips[:, 0].copy()
        if valid is not None:
            prob[~valid] = 0
        return prob


def write_sparse(path: Path, side: int) -> None:
    """A raster of side x side pixels; blocks that are not written cost nothing on disk."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[0:BLOCK, 0:BLOCK]
    ground = (40 + (row + col) % 8).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32630", "compress": "deflate", "zlevel": 1}
    tiling = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "SPARSE_OK": "TRUE", "BIGTIFF": "YES"}
    transform = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
    with rasterio.open(path, "w", height=side, width=side, transform=transform, **profile, **tiling) as file:
        for top in range(0, side - BLOCK, 2 * BLOCK):
            for left in range(0, side - BLOCK, 2 * BLOCK):
                pixels = np.stack([ground] * 3)
                for r, c, tall, wide in rng.integers([0, 0, 12, 12], [BLOCK, BLOCK, 50, 50], (ROOFS, 4)):
                    pixels[:, r : r + tall, c : c + wide] = 200
                file.write(pixels, window=RasterioWindow(left, top, BLOCK, BLOCK))


def peak_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, out: Path, tile: int, workers: int) -> dict[str, float]:
    """One run in this process, with its peaks."""
    job, execution = make_job(path, model=Red()), Execution(tile=tile)
    before, start = peak_mb(), time.perf_counter()
    if workers:
        with connect(workers) as client:
            done = run(job, out, execution=execution, client=client)
            worker = max(client.run(peak_mb).values())
    else:
        done, worker = run(job, out, execution=execution), 0.0
    return {
        "megapixels": job.region.window.height * job.region.window.width / 1e6,
        "footprints": done.manifest["footprints"]["raw"],
        "tiles": done.manifest["tiles"]["total"],
        "seconds": round(time.perf_counter() - start, 1),
        "driver_before_mb": round(before),
        "driver_mb": round(peak_mb()),
        "worker_mb": round(worker),
    }


def measure_all(megapixels: Sequence[int], tile: int, workers: int, say: Callable[[str], None]) -> list[dict[str, float]]:
    """Each size in a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in megapixels:
            path = Path(folder) / f"{size}.tif"
            write_sparse(path, math.isqrt(size * 1_000_000))
            command = [sys.executable, "-m", "benchmarks.memory", "--tile", str(tile)]
            command += ["--workers", str(workers), "--one", str(path), str(path.with_suffix(".run"))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            say(json.dumps(results[-1]))
    return results


def to_rows(results: Sequence[dict[str, float]]) -> list[Row]:
    """The largest against the smallest."""
    small, large = results[0], results[-1]
    sizes = f"{large['megapixels']:.0f} Mpx", f"{small['megapixels']:.0f} Mpx"
    rows = [
        Row(f"peak memory of the {who}, {sizes[0]}", large[f"{who}_mb"], "MB", small[f"{who}_mb"], sizes[1])
        for who in ("driver", "worker")
        if small[f"{who}_mb"]
    ]
    both = [one["driver_mb"] + one["worker_mb"] for one in (large, small)]
    return [*rows, Row(f"peak memory in all, {sizes[0]}", both[0], "MB", both[1], sizes[1], TARGET, at_most=True)]


def rows(quick: bool) -> list[Row]:
    """100 Mpx and ten times as much, one worker process."""
    return to_rows(measure_all((50, 200) if quick else (100, 1000), 4, 1, lambda _: None))


def main() -> None:
    """Measure each size and print the ratio of the largest to the smallest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--tile", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), Path(options.one[1]), options.tile, options.workers)))
    else:
        print(table(to_rows(measure_all(options.megapixels, options.tile, options.workers, print))))


if __name__ == "__main__":
    main()
