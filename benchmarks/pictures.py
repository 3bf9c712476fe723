"""Footprints of a labelled place, coloured by what became of them: found and true, found and false, ignored at the border.

    GEOINFER_DATA=../shared/data python -m benchmarks.pictures "Zanzibar south" -o docs/zanzibar.png
    python -m benchmarks.pictures Accra --imagery -o accra.png             # to look at; not for the repository

Without `--imagery` the ground is plain: the data set's licence to us does not cover copies of it in this repository.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from affine import Affine

from benchmarks.regions import footprints, places, prepare, probabilities
from geoinfer.evaluation import outcomes
from geoinfer.grid import Window
from geoinfer.model.predictor import load_predictor
from geoinfer.view import draw

GROUND = (24, 28, 34)


def main() -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", help="name of a row of benchmarks.regions, or part of an image's path")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--imagery", action="store_true", help="draw over the imagery, with the missed ones")
    parser.add_argument("--size", type=int, default=1400, help="longest side, pixels of the model's grid")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    options = parser.parse_args()
    wanted = [
        p for p in places(options.data, ("test", "val", "train", "water_test")) if options.place in (p.name, str(p.image))
    ]
    wanted = wanted or [p for p in places(options.data, ("test", "val")) if options.place in str(p.image)]
    predictor = load_predictor(options.model)
    with tempfile.TemporaryDirectory() as scratch:
        truth = prepare(wanted[0], Path(scratch))
        cached = probabilities(truth, predictor)
        found = footprints(cached, predictor, predictor.spec.threshold)
        source = cached.source
        height, width = (min(side, options.size) for side in cached.prob.shape)
        row, col = cached.row + (cached.prob.shape[0] - height) // 2, cached.col + (cached.prob.shape[1] - width) // 2
        image = np.broadcast_to(np.array(GROUND, np.uint8)[:, None, None], (3, height, width))
        geometries, kinds = list(found.geometry), ["found"] * len(found)
        if truth.buildings is not None:
            kinds, known = outcomes(found, truth.buildings, aoi=truth.aoi)
            if options.imagery:
                missed = truth.buildings.to_crs(found.crs)[np.asarray(known) == "fn"]
                geometries, kinds = [*geometries, *missed.geometry], [*kinds, *(["fn"] * len(missed))]
        if options.imagery:
            image = source.read(Window(row, col, height, width)).pixels
    t = source.grid.transform
    transform = Affine(t.a, 0, t.c + t.a * col, 0, t.e, t.f + t.e * row)
    draw(image, geometries, transform, options.output, kinds=kinds, scale_m=predictor.spec.gsd)


if __name__ == "__main__":
    main()
