"""What comes after the tiles: from committed tiles to footprints in a file, by stage, and as a share of a run.

    python -m benchmarks.merging [--side 16384] [--density 2000 5000] [--repeat 3]

Tiles of rotated rectangles are committed without imagery or network, at a density of footprints that models give in towns,
then merged with the settings of the model `buildings`. The share is of a run whose network does NETWORK_KM2_S a core on all
cores: 3 to 5 Mpx/s at 0.3 m. Wall clock, best of several, with one thread for the outlines and with the usual ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio
from affine import Affine

from benchmarks.memory import Red
from benchmarks.polygonize import rectangles_and_noise
from benchmarks.rows import Row, table
from geoinfer import merge
from geoinfer.accounts import Accounts
from geoinfer.detection import TileRecord
from geoinfer.job import TILE, Job, make_job
from geoinfer.model.registry import resolve_model
from geoinfer.store import RunDirectory
from geoinfer.trace import collect
from geoinfer.vector import split, warm_up
from geoinfer.worker import usable_cores

GSD = 0.3
NETWORK_KM2_S = 0.36
"""4 Mpx/s at 0.3 m, of one core."""
STAGES = ("stitch", "finish", "write")


@dataclass(frozen=True, slots=True)
class Merged:
    """One merge."""

    footprints: int
    seconds: float
    stages: dict[str, float]
    """Seconds of the driver."""


def job_on(folder: Path, side: int) -> Job:
    """A job on a raster that holds nothing: only its grid is needed."""
    path = folder / "empty.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32630", "SPARSE_OK": "TRUE"}
    transform = Affine(GSD, 0, 500_000, 0, -GSD, 5_000_000)
    with rasterio.open(path, "w", height=side, width=side, transform=transform, **profile):
        pass
    card = resolve_model("buildings")
    return replace(make_job(path, model=Red()), simplify_m=card.simplify_m, grow_m=card.grow_m)


def commit_tiles(run: RunDirectory, job: Job, density: float) -> list[TileRecord]:
    """Commit all tiles of a mask with so many rectangles a square kilometre."""
    side = job.region.window.height
    mask = rectangles_and_noise(side, round(density * (side * GSD / 1000) ** 2), 0.0)
    records = []
    for tile, window in job.tiles(TILE):
        inside = window.slices_in(job.region.window)
        result = split(mask[inside], window, prob=mask[inside] * 200)
        pixels, area = (window.row, window.col, window.height, window.width), window.height * window.width * GSD**2
        record = TileRecord(tile.row, tile.col, pixels, "done", None, area_m2=area, done_m2=area)
        run.commit_tile(tile.row, tile.col, result.to_arrays(), record.to_json())
        records.append(record)
    return records


def merge_once(run: RunDirectory, job: Job, records: list[TileRecord], threads: int) -> Merged:
    """Merge committed tiles."""
    merge.MOST_THREADS = threads
    collect()
    begin = time.perf_counter()
    counts, _ = merge.merge(run, job, records, Accounts(job, ()), "empty.tif", None, lambda: None)
    seconds, spent = time.perf_counter() - begin, Counter[str]()
    for span in collect():
        spent[span.name] += span.duration_us
    return Merged(counts.raw, seconds, {stage: spent[stage] / 1e6 for stage in STAGES})


def measure(side: int, density: float, repeat: int) -> list[Row]:
    """Seconds and shares at one density."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        run, job = RunDirectory(Path(folder) / "run"), job_on(Path(folder), side)
        run.create()
        records = commit_tiles(run, job, density)
        usual = merge.MOST_THREADS
        one, many = (
            min((merge_once(run, job, records, threads) for _ in range(repeat)), key=lambda merged: merged.seconds)
            for threads in (1, usual)
        )
        merge.MOST_THREADS = usual
    network_s = (side * GSD / 1000) ** 2 / (NETWORK_KM2_S * usable_cores())
    name = f"{one.footprints} footprints, {density:g} a km²"
    found.append(Row(f"merge of {name}", many.seconds, "s", one.seconds, "one thread for outlines", at_most=True))
    for stage in STAGES:
        target = 0.02 if stage == "stitch" else None
        share = many.stages[stage] / (network_s + many.seconds)
        found.append(Row(f"{stage}, share of a run, {density:g} a km²", share, "", target=target, at_most=True))
    share = many.seconds / (network_s + many.seconds)
    found.append(Row(f"all after the tiles, share of a run, {density:g} a km²", share, "", target=0.05, at_most=True))
    return found


def rows(quick: bool) -> list[Row]:
    """For `python -m benchmarks`."""
    warm_up()
    return measure(4096, 2000.0, 2) if quick else [row for density in (2000.0, 5000.0) for row in measure(16384, density, 3)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--density", type=float, nargs="+", default=[2000.0, 5000.0])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    warm_up()
    found = [row for density in options.density for row in measure(options.side, density, options.repeat)]
    print(f"{table(found)}\n\n{options.side}² px, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
