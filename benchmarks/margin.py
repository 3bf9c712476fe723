"""What a chip's size and margin cost in quality, and what they give in speed: how the card's chip was chosen.

    GEOINFER_DATA=../shared/data python -m benchmarks.margin [--side 3072] [--lattices 3]

A network that looks far never quite agrees with itself where a chip ends. One square of each `val` place is predicted with
every kind of chip and held against chips with the margin of `REFERENCE`: the share of pixels whose probability differs by
more than `FAR`/255, and of those whose decision differs (probability at least the threshold), over all pixels and in the
`SEAM` pixels on either side of the lines where cores meet, averaged over a few lattices. Every chip lies on the network's
own grid as the reference's chips do, so that chips differ in what they see alone.

The rate is delivered pixels per second of processor time, best of several: chips next to each other share the margin's cost.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.regions import bbox_of, places, prepare
from geoinfer.detection import threshold_to_u8
from geoinfer.grid import ChipSpec, Window
from geoinfer.imagery import open_raster
from geoinfer.model.predictor import FILL, Predictor, load_predictor
from geoinfer.region import Region, region_on

CHIPS = ((1024, 64), (1280, 64), (1280, 96), (1536, 64), (1536, 80), (1536, 96), (2048, 64), (2048, 96), (2048, 128))
"""Chip and margin, pixels."""
REFERENCE = ChipSpec(2048, 256)
FAR = 12
"""In 255ths: a twentieth of a probability."""
SEAM = 16
"""Pixels on either side of a line where cores meet."""
PLACES = ("23279035", "accra_val", "banepa.tif")
"""Parts of the image paths."""


def cut(image: NDArray[np.uint8], predictor: Predictor, chips: ChipSpec, start: int = 0) -> NDArray[np.uint8]:
    """(H, W) probabilities of a (C, H, W) image on a lattice that begins `start` pixels before its corner, both ways."""
    _, height, width = image.shape
    core, margin, before = chips.core, chips.margin, start + chips.margin
    padded = np.pad(image, ((0, 0), (before, chips.chip), (before, chips.chip)), constant_values=FILL)
    prob = np.empty((height + start, width + start), np.uint8)
    for row in range(0, height + start, core):
        for col in range(0, width + start, core):
            part = np.ascontiguousarray(padded[None, :, row : row + chips.chip, col : col + chips.chip])
            inner = predictor.predict(part)[0, margin : margin + core, margin : margin + core]
            here = prob[row : row + core, col : col + core]
            here[:] = inner[: here.shape[0], : here.shape[1]]
    return prob[start:, start:]


def starts(chips: ChipSpec, count: int) -> list[int]:
    """Some places for a lattice to begin, with every chip on the network's own grid as the reference's chips are."""
    step = chips.core // count // chips.stride * chips.stride
    return [-chips.margin % chips.stride + step * at for at in range(count)]


def seams(height: int, width: int, core: int, start: int) -> NDArray[np.bool_]:
    """(H, W) bool: pixels within `SEAM` of a line where cores meet."""

    def near(length: int) -> NDArray[np.bool_]:
        lines = np.arange(core - start, length, core)
        return (np.abs(np.arange(length)[:, None] + 0.5 - lines) < SEAM).any(axis=1)

    return near(height)[:, None] | near(width)


def squares(data: Path, predictor: Predictor, side: int) -> dict[str, NDArray[np.uint8]]:
    """(C, side, side) imagery in the middle of what is labelled of each place, at the model's pixel size."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place in places(data, ("val",)):
            if any(part in str(place.image) for part in PLACES):
                truth = prepare(place, Path(scratch))
                source = open_raster(truth.raster, gsd=predictor.spec.gsd, core=32)
                bbox = bbox_of(truth)
                window = region_on(None if bbox is None else Region.from_bbox(bbox), source.grid, source.bounds).window
                row, col = window.row + (window.height - side) // 2, window.col + (window.width - side) // 2
                found[place.name] = source.read(Window(row, col, side, side)).pixels
    return found


def rate(predictor: Predictor, chip: int, repeat: int) -> float:
    """Pixels per second of processor time through the network alone."""
    chips = np.random.default_rng(0).integers(0, 256, (1, len(predictor.spec.bands), chip, chip), np.uint8)
    predictor.predict(chips)  # warm up
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        predictor.predict(chips)
        best = min(best, time.process_time() - start)
    return chip**2 / best


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings", help="name or folder")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--side", type=int, default=3072, help="of each square, pixels")
    parser.add_argument("--lattices", type=int, default=3, help="places for a lattice to begin, to average over")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeat", type=int, default=5, help="forward passes for a rate")
    options = parser.parse_args()
    print(f"{machine()}\n")
    predictor = load_predictor(options.model, device="cpu", precision=options.precision, batch_size=1, threads=1)
    rates, peaks = {}, {}
    for chip in sorted({chip for chip, _ in CHIPS}):  # ascending: the peak only ever grows
        rates[chip] = rate(predictor, chip, options.repeat)
        peaks[chip] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    images = squares(options.data, predictor, options.side)
    limit = threshold_to_u8(predictor.spec.threshold)
    expected = {name: cut(image, predictor, REFERENCE).astype(np.int16) for name, image in images.items()}
    names = " | ".join(f"{name}: far, decided otherwise" for name in images)
    print(f"| chip, margin | computed per delivered | {names} | at seams | network Mpx/s | delivered Mpx/s | peak MB |")
    print("|---|--:|" + "--:|" * (len(images) + 4))
    for chip, margin in CHIPS:
        chips = ChipSpec(chip, margin, predictor.spec.chips.stride)
        cells, near = [], []
        for name, image in images.items():
            shares = []
            for start in starts(chips, options.lattices):
                prob = cut(image, predictor, chips, start)
                far = np.abs(prob - expected[name]) > FAR
                turned = (prob >= limit) != (expected[name] >= limit)
                lines = seams(*prob.shape, chips.core, start)
                shares.append((far.mean(), turned.mean()))
                near.append((far[lines].mean(), turned[lines].mean()))
            cells.append("{:.3%}, {:.3%}".format(*np.mean(shares, axis=0)))
        ratio, (far_near, turned_near) = (chip / chips.core) ** 2, np.mean(near, axis=0)
        print(
            f"| {chip}, {margin} | {ratio:.3f} | {' | '.join(cells)} | {far_near:.2%}, {turned_near:.2%} |"
            f" {rates[chip] / 1e6:.2f} | {rates[chip] / ratio / 1e6:.2f} | {peaks[chip]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
