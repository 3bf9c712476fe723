"""The polygonizer against `rasterio.features.shapes` and `cv2.findContours` on one synthetic mask, all in one run.

    python -m benchmarks.polygonize [--side 8192] [--rectangles 25000] [--noise 0.0002] [--repeat 5]

Geometry construction counts: a polygonizer is done when shapely polygons exist. Other work may share the machine, so read
the ratios first. `findContours` joins pixel centres, not pixel edges: a bound on speed, not a peer in what it computes.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import platform
import time
from collections.abc import Callable

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from geoinfer.vector import kernels, warm_up
from geoinfer.vector.polygonize import pack_bits, polygonize, trace


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


def by_rasterio(mask: NDArray[np.uint8]) -> NDArray[np.object_]:
    """The reference: GDAL's polygonizer, one dictionary and one shapely polygon at a time."""
    shapes = rasterio.features.shapes(mask, mask=mask, connectivity=4)
    return np.array([shapely.geometry.shape(shape) for shape, _ in shapes], object)


def by_rasterio_alone(mask: NDArray[np.uint8]) -> int:
    """GDAL's polygonizer without geometries."""
    return sum(1 for _ in rasterio.features.shapes(mask, mask=mask, connectivity=4))


def by_contours(mask: NDArray[np.uint8]) -> int:
    """OpenCV's contours of pixel centres, 8-connected, two levels; no geometries."""
    import cv2

    return len(cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0])


def best_of(repeat: int, work: Callable[[], object]) -> float:
    """Shortest of several runs, seconds: the least disturbed one."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def same_polygons(ours: NDArray[np.object_], theirs: NDArray[np.object_]) -> bool:
    """The same set with the same vertices, whatever the order, start vertex and orientation."""
    left, right = (np.sort(shapely.to_wkb(shapely.normalize(geometries)).astype("S")) for geometries in (ours, theirs))
    return left.shape == right.shape and bool((left == right).all())


def stages(mask: NDArray[np.uint8]) -> str:
    """Milliseconds of each stage, for whoever wants to make it faster."""
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    words = pack_bits(mask)
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


def print_row(cells: list[str]) -> None:
    """One row of a markdown table."""
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--rectangles", type=int, default=25_000)
    parser.add_argument("--noise", type=float, default=0.0002)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    warm_up()
    mask = rectangles_and_noise(options.side, options.rectangles, options.noise)
    megapixels = mask.size / 1e6
    ours, theirs = polygonize(mask).to_shapely(), by_rasterio(mask)
    count, vertices = len(ours), int(shapely.get_num_coordinates(ours).sum())
    same = same_polygons(ours, theirs)
    del ours, theirs
    seconds = {
        "geoinfer": best_of(options.repeat, lambda: polygonize(mask).to_shapely()),
        "geoinfer without shapely": best_of(options.repeat, lambda: polygonize(mask)),
        "rasterio": best_of(min(2, options.repeat), lambda: by_rasterio(mask)),
        "rasterio without shapely": best_of(min(2, options.repeat), lambda: by_rasterio_alone(mask)),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        seconds["findContours (not exact edges)"] = best_of(options.repeat, lambda: by_contours(mask))
    machine = f"one thread, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(
        f"{options.side}² mask, {options.rectangles} rectangles, noise {options.noise:g}, {count} polygons with {vertices}"
    )
    print(f"vertices; Mpx/s, best run; {machine}\n")
    ratio = seconds["rasterio"] / seconds["geoinfer"]
    values = [f"{megapixels / s:.0f}" for s in seconds.values()]
    print_row([*seconds, "geoinfer / rasterio", "same polygons"])
    print_row(["---"] * (len(values) + 2))
    print_row([*values, f"{ratio:.1f}", "yes" if same else "NO"])
    print("\n" + stages(mask))


if __name__ == "__main__":
    main()
