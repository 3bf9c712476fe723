"""A million mask polygons against a million footprints: prepare the layer, apply `drop`, in one run.

    python -m benchmarks.masks [--size 1000000] [--overlay 100000] [--threads 2] [--crs EPSG:4326]

The mask is a GeoPackage of ponds and a few huge lakes, the footprints are a table in memory. Then the same at a smaller size
beside `geopandas.overlay` and `groupby`: seconds of both, and the covered shares must be equal. Each runs in a process of
its own; the peak memory is that of the whole process, to which libraries and footprints contribute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from geoinfer.masks.apply import apply_masks
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.prepare import prepare
from geoinfer.vector.footprints import square_metres_per_unit

UTM = "EPSG:32631"
CORNER = np.array([400_000.0, 5_700_000.0])
CELL_M = 100.0
"""One pond in each cell: a density like that of a wet delta, and ponds do not overlap."""
LAKES = 6
SHORE = 100_000
"""Vertices of a lake."""
SAME_SHARE = 1e-9
"""Coordinates are rounded to 1e-9 m, a footprint has 36 m² or more and some 10 m within one piece."""


def side_of(size: int) -> float:
    """Metres: room for `size` ponds beside the lakes."""
    return CELL_M * float(np.ceil(np.sqrt(size * 1.2)))


def water(size: int) -> gpd.GeoDataFrame:
    """Lakes with islands and ragged shores, and ponds of 16 vertices."""
    rng, side = np.random.default_rng(0), side_of(size)
    angle = np.linspace(0, 2 * np.pi, SHORE, endpoint=False)
    lakes = []
    for number in range(LAKES):
        centre = CORNER + side * np.array([(number % 3 + 0.5) / 3, (number // 3 + 0.5) / 2])
        waves = sum(rng.uniform(0, 1) / k * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5, 50, 400, 3000))
        reach = side / 16 * (1 + 0.2 * waves)
        shore = shapely.Polygon(centre + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        lakes.append(shore.difference(shapely.Point(centre).buffer(side / 60)))
    columns = round(side / CELL_M)
    cells = np.stack(np.divmod(rng.permutation(columns**2), columns), axis=1)
    radius = rng.lognormal(2.9, 0.5, len(cells)).clip(3, 38)
    centres = CORNER + (cells + 0.5) * CELL_M
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    reach = radius[:, None] * rng.uniform(0.7, 1.3, (len(cells), 16))
    ponds = shapely.polygons(centres[:, None] + reach[..., None] * np.stack([np.cos(turn), np.sin(turn)], axis=1))
    dry = np.ones(len(ponds), bool)
    dry[shapely.STRtree(ponds).query(shapely.get_parts(shapely.buffer(lakes, 1.0)), predicate="intersects")[1]] = False
    chosen = np.concatenate([np.array(lakes, object), ponds[dry][: size - LAKES]])
    return gpd.GeoDataFrame({"natural": "water"}, geometry=chosen, crs=UTM, index=range(len(chosen)))


def houses(size: int) -> gpd.GeoDataFrame:
    """Turned rectangles of 6 to 24 by 6 to 16 m, anywhere."""
    rng, side = np.random.default_rng(1), side_of(size)
    shapes: NDArray[np.object_] = np.empty(size, object)
    for start in range(0, size, 50_000):  # so that making them is not the peak of memory
        part = shapes[start : start + 50_000]
        centres = CORNER + rng.uniform(0, side, (len(part), 2))
        half, turn = rng.uniform((3, 3), (12, 8), (len(part), 2)), rng.uniform(0, np.pi, len(part))
        u = np.stack([np.cos(turn), np.sin(turn)], axis=1) * half[:, :1]
        v = np.stack([-np.sin(turn), np.cos(turn)], axis=1) * half[:, 1:]
        part[:] = shapely.polygons(centres[:, None] + np.stack([u + v, v - u, -u - v, u - v], axis=1))
    frame = gpd.GeoDataFrame({"id": np.arange(size)}, geometry=shapes, crs=UTM)
    x, y = shapely.get_coordinates(shapely.centroid(shapes)).T
    frame["area_in_meters"] = shapely.area(shapes) * square_metres_per_unit(CRS(UTM), x, y)
    return frame


def peak_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(size: int, path: Path, threads: int) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Prepare and apply; and the covered shares in the order of the footprints."""
    found, before, start, cpu = houses(size), peak_mb(), time.perf_counter(), time.process_time()
    layer = MaskLayer.open(path, name="water", action="drop", max_cover=0.5)
    opened = time.perf_counter()
    minx, miny, maxx, maxy = found.total_bounds.tolist()
    prepared = prepare(layer, CRS(UTM), (minx, miny, maxx, maxy), path.with_suffix(".run"))
    ready, then = time.perf_counter(), peak_mb()
    done = apply_masks(found, [prepared], threads=threads)
    end = time.perf_counter()
    share = np.empty(size)
    for table in (done.accepted, done.rejected):
        share[table.id] = table.water_cover
    return {
        "footprints": size,
        "features": prepared.features,
        "pieces": prepared.pieces,
        "touched": int((share > 0).sum()),
        "removed": done.counts[0].removed,
        "open_s": round(opened - start, 2),
        "prepare_s": round(ready - opened, 2),
        "apply_s": round(end - ready, 2),
        "seconds": round(end - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "footprints_mb": round(before),
        "prepared_mb": round(then),
        "peak_mb": round(peak_mb()),
    }, share


def theirs(size: int, path: Path) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Read, overlay and group."""
    found, start = houses(size), time.perf_counter()
    layer = gpd.read_file(path).to_crs(UTM)
    parts = gpd.overlay(found[["id", "geometry"]], layer, how="intersection")
    area = parts.area.groupby(parts["id"]).sum()
    end = time.perf_counter()
    share = np.zeros(size)
    share[area.index] = area.to_numpy() / found.area.to_numpy()[area.index]
    return {"footprints": size, "features": len(layer), "seconds": round(end - start, 2), "peak_mb": round(peak_mb())}, share


def work(who: str, size: int, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the mask, or let one of the two measure; its shares then lie beside the mask."""
    if who == "water":
        water(size).to_crs(options.crs).to_file(path, engine="pyogrio")
        return {}
    result, share = ours(size, path, options.threads) if who == "geoinfer" else theirs(size, path)
    np.save(path.with_suffix(f".{who}.npy"), share)
    return result


def measure(who: str, size: int, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`work` in a fresh process: started from a small one, since a process inherits the peak of its parent."""
    command = [sys.executable, "-m", "benchmarks.masks", "--one", who, str(path), "--size", str(size)]
    command += ["--threads", str(options.threads), "--crs", options.crs]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result:
        print(who, json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measure at full size, then beside geopandas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="mask polygons, and footprints")
    parser.add_argument("--overlay", type=int, default=100_000, help="the same beside geopandas; 0: not at all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crs", default=UTM, help="of the mask file; with another, shares differ by how edges bend")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(work(options.one[0], options.size, Path(options.one[1]), options)))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.threads} threads"
    print(f"{options.size:,} mask polygons and as many footprints; mask in {options.crs}; {machine}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in filter(None, (options.size, options.overlay)):
            path = Path(folder) / f"{size}.gpkg"
            measure("water", size, path, options)
            found = measure("geoinfer", size, path, options)
            if size == options.size:
                print(f"{found['seconds']:.1f} s in all (target 60 s at 1,000,000), peak {found['peak_mb']} MiB")
            if size != options.overlay:
                continue
            reference = measure("overlay", size, path, options)
            a, b = (np.load(path.with_suffix(f".{who}.npy")) for who in ("geoinfer", "overlay"))
            gap = float(np.abs(a - b).max())
            print(f"geopandas / geoinfer: {reference['seconds'] / found['seconds']:.1f}; shares differ by {gap:.1g} at most")
            assert options.crs != UTM or gap <= SAME_SHARE, gap


if __name__ == "__main__":
    main()
