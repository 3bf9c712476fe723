"""`geoinfer demo`: the whole path on a generated scene with the bundled model, and a picture to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.interrupt import soft_stop
from geoinfer.cli.printing import emit_json, say
from geoinfer.cli.progress import shown
from geoinfer.cli.run import summary
from geoinfer.errors import Interrupted, OutputError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from geoinfer.scenes import Scene

MODEL = "buildings"
SIZE = 1024
"""Pixels a side of the scene: at 0.3 m, a few streets, and several tiles with seams between them."""
TILE = 2
"""Cores on a side of a tile."""


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to.", metavar="DIR")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Which scene.", min=0)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No talk but errors.")] = False,
) -> int:
    """Find the buildings of a generated scene, and draw them: writes a scene, its truth, a run and demo.png to DIR.

    Under a minute on two cores; no network, no GPU, no data. A second time, DIR/run is replaced.
    """
    from geoinfer.job import Execution, make_job
    from geoinfer.pipeline import run as start
    from geoinfer.scenes import generate_scene, write_scene

    scene = generate_scene(seed, SIZE, style="suburb", water="none")
    truth = scene.truth()
    try:
        output.mkdir(parents=True, exist_ok=True)
        truth.to_parquet(output / "truth.parquet")
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}; choose another with -o") from error
    write_scene(scene, output / "scene.tif")
    with soft_stop() as stop, shown(quiet) as show:
        job = make_job(output / "scene.tif", model=MODEL)
        try:
            run = start(job, output / "run", execution=Execution(tile=TILE), overwrite=True, progress=show, stop=stop.event)
        except Interrupted as error:
            say(f"geoinfer: {error}")
            return stop.status
    found = run.read()
    picture = output / "demo.png"
    scores = _judge(scene, found, truth, picture)
    if as_json:
        emit_json({**summary(run), "picture": str(picture), "scene": str(output / "scene.tif"), **scores})
    elif not quiet:
        say(f"{len(found)} footprints in {run.footprints}; the scene holds {len(truth)} buildings")
        say(
            f"precision {scores['precision']:.2f}, recall {scores['recall']:.2f}; generated scenes are easier than real ones"
        )
        say(f"picture: {picture}")
    return 0


def _judge(scene: Scene, found: GeoDataFrame, truth: GeoDataFrame, picture: Path) -> dict[str, Any]:
    """Compare with the truth, and draw what was found over the scene."""
    from geoinfer.evaluation import evaluate
    from geoinfer.view import draw

    draw(scene.image, list(found.to_crs(scene.crs).geometry), scene.transform, picture, scale_m=scene.gsd)
    result = evaluate(found, truth)
    return {"precision": result.precision, "recall": result.recall, "f1": result.f1, "pixel_iou": result.pixel_iou}
