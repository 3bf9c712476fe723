"""Choose on `val` how a model's planes become footprints: which probability, threshold, growth and minimum area.

    GEOINFER_DATA=../shared/data python -m benchmarks.calibrate --model models/buildings

Each place of the `val` split is predicted once a kind of probability, and cut at each threshold. Printed is the object F1 of
each source and their mean, so that a source with many buildings does not decide alone. Never run this on `test`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from benchmarks.regions import footprints, places, prepare, probabilities, score
from geoinfer.evaluation import combine
from geoinfer.model.folding import fold
from geoinfer.model.predictor import Predictor, load_network, resolve_precision
from geoinfer.model.registry import find_model

SOURCES = ("Boston", "Accra", "Banepa north", "Rotterdam", "Vegas 1 m", "Vegas 0.6 m")


def main() -> None:
    """Print a table, best mean first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings", help="name or folder")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--probability", default="body,core,parted")
    parser.add_argument("--thresholds", default="0.3,0.4,0.5,0.6")
    parser.add_argument("--grow", default="0.6,0.9", help="metres, for core; others do not grow")
    parser.add_argument("--min-area", default="", help="square metres; the card's unless given")
    parser.add_argument("--only", default="", help="images whose path holds this")
    parser.add_argument("--split", default="val", choices=["val", "train"])
    options = parser.parse_args()
    bundle = find_model(options.model)
    network = load_network(bundle)
    thresholds = [float(t) for t in options.thresholds.split(",")]
    areas = [float(a) for a in options.min_area.split(",") if a] or [bundle.spec.min_area_m2]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        chosen = [
            p
            for p in places(options.data, (options.split,))
            if options.only in str(p.image) and "inria_s" not in str(p.image)
        ]
        truths = [prepare(p, Path(scratch)) for p in chosen]
        for how in options.probability.split(","):
            spec = dataclasses.replace(bundle.spec, probability=how)
            predictor = Predictor(
                spec, fold(network, spec), precision=resolve_precision("auto", "cpu"), batch_size=1, threads=os.cpu_count()
            )
            cached = [probabilities(truth, predictor) for truth in truths]
            for grow in [float(g) for g in options.grow.split(",")] if how == "core" else [0.0]:
                for area in areas:
                    for threshold in thresholds:
                        parts: dict[str, list] = {}
                        for place, truth, prob in zip(chosen, truths, cached, strict=True):
                            found = footprints(prob, predictor, threshold, min_area_m2=area, grow_m=grow)
                            parts.setdefault(place.name, []).append(score(found, truth).evaluation)
                        table = {name: combine(e) for name, e in parts.items()}
                        f1 = {name: e.f1 for name, e in table.items()}
                        iou = sum(e.pixel_iou for e in table.values()) / len(table)
                        rows.append((sum(f1.values()) / len(f1), how, grow, area, threshold, iou, f1))
                        print(
                            f"{rows[-1][0]:.3f} {how} grow {grow} area {area} t {threshold} iou {iou:.3f}",
                            _brief(f1),
                            flush=True,
                        )
    for mean, how, grow, area, threshold, iou, f1 in sorted(rows, reverse=True, key=lambda r: r[0])[:12]:
        print(f"| {how} | {grow} m | {area} m2 | {threshold} | {mean:.3f} | {iou:.3f} | {_brief(f1)} |")


def _brief(f1: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in f1.items())


if __name__ == "__main__":
    main()
