"""One million predicted against one million true footprints, and a plain loop over an STRtree on fewer of them.

    python -m benchmarks.evaluation [--count 1000000] [--loop 20000] [--measures]

The loop is the classic SpaceNet evaluator (Van Etten, Lindenbaum and Bacastow 2018): predictions in file order, candidates
from an R-tree, the IoU of each by shapely, the best one is taken if it is above the threshold. It must count what `evaluate`
counts with `matching="spacenet"`. Its time grows with the number of footprints, so that it is measured on fewer and
compared per footprint. It counts only, so that what it is compared with is the matching alone; `evaluate` also checks that
polygons are valid and measures the areas of both unions. Footprints are generated at the density of a town: L-shapes and
rectangles in rows, turned; most of them are found with twice the vertices, moved, some missed, some found twice, some false.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import geopandas as gpd
import numpy as np
import psutil
import shapely
from numpy.typing import NDArray

from benchmarks.rows import Row
from geoinfer.evaluation import evaluate, match, pairs_of
from geoinfer.evaluation.measures import measures
from geoinfer.evaluation.objects import objects

Result = TypeVar("Result")

IOU = 0.5
SPACING_M = 18.0


def houses(count: int, seed: int) -> NDArray[np.float64]:
    """(count, 7, 2) closed rings: rectangles (two vertices on their walls) and L-shapes, 7 to 15 m, turned, in rows."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    shape = np.array([[0, 0], [1, 0], [1, 0.5], [0.6, 0.5], [0.6, 1], [0, 1], [0, 0]]) - 0.5
    plain = np.array([[0, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0]]) - 0.5
    rings = np.where(rng.random(count)[:, None, None] < 0.4, shape, plain) * rng.uniform(7, 15, (count, 1, 2))
    turn = rng.uniform(0, np.pi, count)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = rings[..., 0] * cos - rings[..., 1] * sin, rings[..., 0] * sin + rings[..., 1] * cos
    at = np.arange(count)
    centres = np.stack([500_000 - side * SPACING_M / 2 + at % side * SPACING_M, 600_000 + at // side * SPACING_M], axis=1)
    return np.stack([x, y], axis=-1) + centres[:, None] + rng.normal(0, 1.5, (count, 1, 2))


def sides(count: int, seed: int = 0) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Predictions and truth, `count` each."""
    rng = np.random.default_rng(seed)
    true = houses(count, seed)
    middle = (true[:, 1:] + true[:, :-1]) / 2
    found = np.stack([true[:, :-1], middle], axis=2).reshape(count, 12, 2)
    found = found + rng.normal(0, 0.25, found.shape) + rng.normal(0, 0.8, (count, 1, 2))
    found = np.concatenate([found, found[:, :1]], axis=1)  # (count, 13, 2)
    fate = rng.random(count)
    found[fate < 0.08] += SPACING_M / 2  # false: in the gaps, over corners of others
    again = np.flatnonzero(fate > 0.97)
    found[again] = found[again - 1] + 0.3  # twice: in the place of one that is missed
    guesses = shapely.make_valid(shapely.polygons(found), method="structure", keep_collapsed=False)
    crs = "EPSG:32630"
    pred = gpd.GeoDataFrame({"confidence": rng.random(count)}, geometry=guesses, crs=crs)
    return pred, gpd.GeoDataFrame(geometry=shapely.polygons(true), crs=crs)


def plain_loop(pred: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> tuple[int, int, int]:
    """True positives, false positives, misses, one prediction at a time."""
    guesses, facts = pred.geometry.to_numpy(), truth.geometry.to_numpy()
    tree = shapely.STRtree(facts)
    free = set(range(len(facts)))
    tp = 0
    for guess in guesses:
        best, best_iou = -1, 0.0
        for at in tree.query(guess).tolist():
            if at in free:
                iou = guess.intersection(facts[at]).area / guess.union(facts[at]).area
                if iou > best_iou:
                    best, best_iou = at, iou
        if best_iou > IOU:
            free.remove(best)
            tp += 1
    return tp, len(guesses) - tp, len(facts) - tp


def matched(pred: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> tuple[int, int, int]:
    """The same by the matching that `evaluate` does."""
    tp = len(match(pairs_of(pred.geometry.to_numpy(), truth.geometry.to_numpy()), IOU, "spacenet"))
    return tp, len(pred) - tp, len(truth) - tp


def timed(what: str, count: int, work: Callable[[], Result]) -> tuple[float, Result]:
    """Do it and print a row; seconds of the processor, and the result."""
    process = psutil.Process()
    before = process.memory_info().rss
    peaks, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):  # kernels and GEOS work without the GIL
            peaks.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    done.set()
    watcher.join()
    more = (max(peaks) - before) / 2**20
    print(f"| {what} | {count} | {wall:.1f} | {processor:.1f} | {processor / count * 1e6:.1f} | {more:.0f} |", flush=True)
    return processor, result


def rows(quick: bool) -> list[Row]:
    """Matching and a whole evaluation against the loop, per footprint."""
    few_count, count = (2000, 20_000) if quick else (20_000, 200_000)
    measures(objects(*sides(1000)))  # compiles, or loads what was compiled
    few, many = sides(few_count), sides(count)
    with contextlib.redirect_stdout(io.StringIO()):
        loop_s, counts = timed("plain loop", few_count, lambda: plain_loop(*few))
        match_s, _ = timed("matching alone", count, lambda: matched(*many))
        whole_s, _ = timed("evaluate", count, lambda: evaluate(*many))
    if matched(*few) != counts:
        raise AssertionError(f"the matching counts {matched(*few)}, the plain loop {counts}")
    loop, unit, against = few_count / loop_s, "footprints/s", "a plain loop over an STRtree"
    return [
        Row("matching", count / match_s, unit, loop, against, 20),
        Row("whole evaluate, validity and unions included", count / whole_s, unit, loop, against),
    ]


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--loop", type=int, default=20_000)
    parser.add_argument("--measures", action="store_true", help="also the tables and all measures, on --count")
    options = parser.parse_args()
    measures(objects(*sides(1000)))  # compiles, or loads what was compiled
    few, many = sides(options.loop), sides(options.count)
    held = psutil.Process().memory_info().rss / 2**20
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; one thread")
    print(f"{held:.0f} MB with the footprints\n")
    print("| what | footprints a side | wall s | processor s | processor s per million | MB more at the peak |")
    print("|---|--:|--:|--:|--:|--:|")
    loop_s, counts = timed("plain loop", options.loop, lambda: plain_loop(*few))
    _, ours = timed("matching alone", options.loop, lambda: matched(*few))
    match_s, _ = timed("matching alone", options.count, lambda: matched(*many))
    timed("evaluate, spacenet", options.count, lambda: evaluate(*many, matching="spacenet"))
    _, total = timed("evaluate, optimal", options.count, lambda: evaluate(*many))
    if options.measures:
        _, tables = timed("tables of footprints", options.count, lambda: objects(*many))
        timed("all measures of them", options.count, lambda: measures(tables))
    ratio = loop_s / options.loop / (match_s / options.count)
    print(f"\nloop / matching, per footprint: {ratio:.1f}; counts {counts} and {ours}; f1 {total.f1:.3f}")


if __name__ == "__main__":
    main()
