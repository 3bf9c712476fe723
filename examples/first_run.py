"""Imagery in, footprints out, and how good they are: on a generated scene, so that it runs anywhere.

python examples/first_run.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import geoinfer as gi
from geoinfer.evaluation import evaluate
from geoinfer.scenes import generate_scene, write_scene


def main() -> None:
    """Make a scene, find its buildings in one call, then once more step by step."""
    predictor = gi.load_predictor("buildings")
    spec = predictor.spec
    scene = generate_scene(seed=7, size=640, gsd=spec.gsd, style="suburb", water="none")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_scene(scene, path)

        found = gi.detect(str(path), model=predictor)  # a GeoDataFrame
        print(found[["id", "confidence", "area_in_meters", "truncated"]].head())
        score = evaluate(found, scene.truth())
        print(f"{len(found)} footprints, precision {score.precision:.2f}, recall {score.recall:.2f}")

        # The same in pieces: any window gives the same probabilities, so look wherever you like.
        source = gi.open_raster(path, model=predictor)
        prob = gi.predict(source, gi.Window(100, 100, 400, 400), predictor)  # (400, 400) uint8
        polygons = gi.polygonize(prob >= round(255 * spec.threshold))
        print(
            f"{len(polygons)} polygons in a window of {prob.shape[0]} x {prob.shape[1]} pixels, before anything is decided"
        )


if __name__ == "__main__":
    main()
