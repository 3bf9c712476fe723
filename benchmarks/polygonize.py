"""The polygonizer against `rasterio.features.shapes`, xarray-spatial and `cv2.findContours` on two masks, all in one run.

    python -m benchmarks.polygonize [--side 8192] [--repeat 5] [--peers DIR]

Dense: 25,000 rotated rectangles on 8192² pixels and 0.02 % of the pixels flipped. Sparse: 2,500 rectangles, nothing flipped.
Other sides have as many to the area. Each is timed to arrays (columns of all polygons; GDAL's are lists) and to shapely
polygons. `findContours` joins pixel centres, not pixel edges, 8-connected: a bound on speed, not a peer in what it computes.
xarray-spatial runs where DIR/xarray_spatial has it, as `peers/install.sh` makes it, else it is left out.

One thread; processor time, the best of several runs, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from benchmarks.rows import Row
from geoinfer.grid import Window
from geoinfer.vector import kernels, split, warm_up
from geoinfer.vector.bits import at_least, pack
from geoinfer.vector.polygonize import polygonize, trace

SIDE = 8192
MASKS = {"dense": (25_000, 0.0002), "sparse": (2_500, 0.0)}
"""Rectangles on SIDE² pixels, and the share of pixels flipped."""
TARGETS = {
    ("dense", "arrays"): 800.0,
    ("sparse", "arrays"): 1500.0,
    ("dense", "shapely"): 400.0,
    ("sparse", "shapely"): 400.0,
}
"""Mpx/s."""
Seconds = dict[tuple[str, str], float]
"""By who and to what (arrays, shapely, tile)."""


def rectangles_and_noise(side: int, rectangles: int, noise: float, seed: int = 0) -> NDArray[np.uint8]:
    """(side, side) mask of rotated rectangles, 10 to 60 pixels a side, and a share `noise` of flipped pixels."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, side, (rectangles, 2))
    length, width = random.uniform(10, 60, rectangles), random.uniform(10, 30, rectangles)
    angle = random.uniform(0, np.pi, rectangles)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * width[:, None] / 2
    corners = centres[:, None] + np.stack([along + across, along - across, -along - across, across - along], axis=1)
    mask = rasterio.features.rasterize(shapely.polygons(corners), out_shape=(side, side), dtype=np.uint8)
    flipped = random.integers(0, side, (round(noise * side * side), 2))
    mask[flipped[:, 0], flipped[:, 1]] ^= 1
    return mask


def mask_of(name: str, side: int) -> NDArray[np.uint8]:
    """One of MASKS."""
    rectangles, noise = MASKS[name]
    return rectangles_and_noise(side, round(rectangles * (side / SIDE) ** 2), noise)


def by_rasterio(mask: NDArray[np.uint8]) -> NDArray[np.object_]:
    """The reference: GDAL's polygonizer, one dictionary and one shapely polygon at a time."""
    shapes = rasterio.features.shapes(mask, mask=mask, connectivity=4)
    return np.array([shapely.geometry.shape(shape) for shape, _ in shapes], object)


def by_rasterio_alone(mask: NDArray[np.uint8]) -> int:
    """GDAL's polygonizer without geometries."""
    return sum(1 for _ in rasterio.features.shapes(mask, mask=mask, connectivity=4))


def by_contours(mask: NDArray[np.uint8]) -> int:
    """OpenCV's contours of pixel centres, two levels; no geometries."""
    import cv2

    cv2.setNumThreads(1)
    return len(cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0])


def by_xarray_spatial(mask: NDArray[np.uint8], peers: Path | None, repeat: int) -> Seconds:
    """What `peers/xarray_spatial.py` says; nothing where it is not installed."""
    python = None if peers is None else peers / "xarray_spatial" / "bin" / "python"
    if python is None or not python.exists():
        return {}
    script = Path(__file__).parent / "peers" / "xarray_spatial.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.npy"
        np.save(path, mask)
        done = subprocess.run([python, script, path, "--repeat", str(repeat)], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return {("xarray-spatial", to): told[to] for to in ("arrays", "shapely")}


def best_of(repeat: int, work: Callable[[], object]) -> float:
    """Least processor time of several runs, seconds."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def measure(mask: NDArray[np.uint8], repeat: int, peers: Path | None) -> Seconds:
    """Processor seconds of everybody who is here."""
    prob = np.where(mask, np.uint8(200), np.uint8(20))
    valid, window = np.ones(mask.shape, np.bool_), Window(0, 0, *mask.shape)
    seconds = {
        ("geoinfer", "arrays"): best_of(repeat, lambda: polygonize(mask)),
        ("geoinfer", "shapely"): best_of(repeat, lambda: polygonize(mask).to_shapely()),
        ("geoinfer", "tile"): best_of(repeat, lambda: split(at_least(prob, 128), window, prob=prob, valid=valid)),
        ("rasterio", "arrays"): best_of(min(2, repeat), lambda: by_rasterio_alone(mask)),
        ("rasterio", "shapely"): best_of(min(2, repeat), lambda: by_rasterio(mask)),
    }
    if importlib.util.find_spec("cv2"):
        seconds["OpenCV", "arrays"] = best_of(repeat, lambda: by_contours(mask))
    return seconds | by_xarray_spatial(mask, peers, min(2, repeat))


def same_polygons(ours: NDArray[np.object_], theirs: NDArray[np.object_]) -> bool:
    """The same set with the same vertices, whatever the order, start vertex and orientation."""
    left, right = (np.sort(shapely.to_wkb(shapely.normalize(geometries)).astype("S")) for geometries in (ours, theirs))
    return left.shape == right.shape and bool((left == right).all())


def stages(mask: NDArray[np.uint8]) -> str:
    """Milliseconds of processor time of each stage, for whoever wants to make it faster."""
    marks = [("", time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.process_time()))

    words = pack(mask).words
    mark("pack")
    xs, row_offsets = kernels.find_crossings(words)
    mark("crossings")
    label, components = kernels.label_runs(xs, row_offsets)
    mark("label")
    run_rows = kernels.rows_of_runs(row_offsets, np.arange(len(mask), dtype=np.int32))
    mark("rows")
    kernels.measure_components(xs, run_rows, label, components, np.zeros((0, 0), np.uint8))
    mark("measure")
    trace(xs, row_offsets, run_rows, label, components)
    mark("trace")
    polygons = polygonize(mask)
    mark("(all of these)")
    polygons.to_shapely()
    mark("shapely")
    return ", ".join(f"{name} {1e3 * (now - then):.0f} ms" for (_, then), (name, now) in itertools.pairwise(marks))


def rows(quick: bool) -> list[Row]:
    """For `python -m benchmarks`."""
    side, repeat = (2048, 2) if quick else (SIDE, 5)
    peers = os.environ.get("BENCHMARK_PEERS")
    warm_up()
    found = []
    for name in MASKS:
        mask = mask_of(name, side)
        rates = {key: mask.size / 1e6 / s for key, s in measure(mask, repeat, Path(peers) if peers else None).items()}
        for (who, to), rate in rates.items():
            if who == "geoinfer" and to != "tile":
                against = rates["rasterio", to], "rasterio", TARGETS[name, to], "value"
                found.append(Row(f"mask to {to}, {name}", rate, "Mpx/s", *against))
            elif who not in ("geoinfer", "rasterio"):
                found.append(Row(f"mask to {to}, {name}", rates["geoinfer", to], "Mpx/s", rate, who))
        found.append(Row(f"probabilities to a tile's polygons, {name}", rates["geoinfer", "tile"], "Mpx/s"))
    return found


def print_row(cells: list[str]) -> None:
    """One row of a markdown table."""
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="the folder that peers/install.sh filled")
    options = parser.parse_args()
    warm_up()
    others = ["rasterio", "xarray-spatial", "OpenCV"]
    print(f"Mpx/s of processor time, {options.side}², one thread, {platform.machine()}, load {os.getloadavg()[0]:.1f}\n")
    print_row(["mask", "to", "polygons", "vertices", "geoinfer", *others, "geoinfer / rasterio", "same polygons", "target"])
    print_row(["---"] * 11)
    details = []
    for name in MASKS:
        mask = mask_of(name, options.side)
        ours, theirs = polygonize(mask).to_shapely(), by_rasterio(mask)
        about = [f"{len(ours)}", f"{shapely.get_num_coordinates(ours).sum()}"]
        same = "yes" if same_polygons(ours, theirs) else "NO"
        del ours, theirs
        rates = {key: mask.size / 1e6 / s for key, s in measure(mask, options.repeat, options.peers).items()}
        for to in ("arrays", "shapely", "tile"):
            values = [f"{rates[who, to]:.0f}" if (who, to) in rates else "" for who in ("geoinfer", *others)]
            ratio = f"{rates['geoinfer', to] / rates['rasterio', to]:.1f}" if ("rasterio", to) in rates else ""
            print_row(
                [
                    name,
                    to,
                    *about,
                    *values,
                    ratio,
                    same if ratio else "",
                    f"{TARGETS.get((name, to), 0):g}" if (name, to) in TARGETS else "",
                ]
            )
        details.append(f"{name}: {stages(mask)}")
    print("\ntile: from probabilities, with the threshold, sums and validity: what a run does\n")
    print("\n".join(details))
    if ("xarray-spatial", "arrays") not in rates:
        print("xarray-spatial is not installed: --peers DIR")


if __name__ == "__main__":
    main()
