"""`geoinfer evaluate`: footprints against true ones, as numbers, and as a report to read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from geoinfer.cli.printing import emit, emit_json, emit_table, say, warn
from geoinfer.errors import ConfigError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from geoinfer.evaluation.assess import Assessment
    from geoinfer.imagery.source import Source

SHOWN = ("precision", "recall", "f1", "ap", "pixel_iou", "boundary_iou", "polis_m", "offset_x_m", "offset_y_m", "fp_per_km2")
"""Measures that are printed; the report has all."""
SLICES_SHOWN = ("slice", "value", "n_pred", "n_truth", "precision", "recall", "f1", "is_small")

_CORE = 256
"""Step of a lattice that nothing is inferred on."""

Aoi = Annotated[Path | None, typer.Option("--aoi", help="Polygons inside which the truth is complete.", metavar="FILE")]
Iou = Annotated[float, typer.Option("--iou", help="Least intersection over union of a match.")]
MatchingFlag = Annotated[str, typer.Option("--matching", help="optimal or spacenet.")]
Folder = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the report.", metavar="DIR")]
Imagery = Annotated[
    list[Path] | None,
    typer.Option("--imagery", help="A GeoTIFF for pictures of the worst; may stand several times.", metavar="FILE"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def evaluate(
    predicted: Annotated[Path, typer.Argument(help="A run directory, or a file of footprints.", metavar="PRED")],
    truth: Annotated[Path, typer.Argument(help="A file of true footprints.", metavar="TRUTH")],
    aoi: Aoi = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slices",
            metavar="SPEC,...",
            help="size, density, confidence, water, a column, or a file of polygons or a raster; options as FILE:key=value.",
        ),
    ] = None,
    water: Annotated[
        Path | None,
        typer.Option("--water", help="Polygons of water, for false positives in it and slices by distance.", metavar="FILE"),
    ] = None,
    iou: Iou = 0.5,
    matching: MatchingFlag = "optimal",
    block: Annotated[
        float | None,
        typer.Option("--block", help="Side of the blocks of ground for intervals; default: chosen.", metavar="M"),
    ] = None,
    replicates: Annotated[int, typer.Option("--replicates", help="Draws for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0,
    training: Annotated[
        Path | None,
        typer.Option("--training", help="Footprints that the model was trained with, for the bias table.", metavar="FILE"),
    ] = None,
    output: Folder = None,
    imagery: Imagery = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Precision, recall, F1 and every other measure of footprints against true ones, with intervals and slices.

    With -o also evaluation.json, objects.parquet (each footprint with its IoU and reason) and report.html.
    """
    from geoinfer.evaluation.assess import assess
    from geoinfer.evaluation.report import ASSESSMENT_FILES, check_targets, write_report

    if output is not None:
        check_targets(output, ASSESSMENT_FILES, overwrite)  # before any work
    source = open_imagery(imagery, output)
    assessment = assess(
        footprints(predicted),
        footprints(truth),
        aoi=polygons(aoi),
        iou=iou,
        matching=check_matching_flag(matching),
        slices=split_slices(slices or ()),
        water=polygons(water),
        training=polygons(training),
        block_m=block,
        replicates=replicates,
        seed=seed,
    )
    files: list[Path] = []
    if output is not None:
        named = {"Predicted": predicted, "Truth": truth, "Area of interest": aoi, "Water": water}
        inputs = {name: shown_name(path) for name, path in named.items() if path is not None}
        files = write_report(assessment, output, source, inputs=inputs, overwrite=overwrite)
    if as_json:
        from geoinfer.evaluation.report import plain

        emit_json({**plain(assessment.to_json()), "files": [str(path) for path in files]})
    else:
        _print(assessment)
        for path in files:
            say(f"written: {path}")


def _print(assessment: Assessment) -> None:
    total, measures = assessment.evaluation, assessment.measures
    ignored = total.ignored_pred + total.ignored_truth
    emit(f"{total.tp} pairs, {total.fp} false positives, {total.fn} misses, {ignored} ignored")
    rows: list[list[Any]] = []
    for name in SHOWN:
        if name in measures:
            one = measures[name]
            rows.append([name, one.value, one.low, one.high, one.n, one.note or ""])
    emit_table(("measure", "value", "low", "high", "n", "note"), rows)
    if len(assessment.slices) > 1:
        from geoinfer.evaluation.report import plain

        emit("")
        emit_table(SLICES_SHOWN, plain(assessment.slices[list(SLICES_SHOWN)].to_numpy(object)))


def footprints(path: Path, schema: str | None = None) -> GeoDataFrame:
    """Footprints of a run directory or of a file, of any provider, in our columns; says what was left out."""
    from geoinfer.cli.results import footprints_of
    from geoinfer.evaluation.schemas import read_footprints

    found = read_footprints(footprints_of(path) if path.is_dir() else path, schema)
    for reason, count in found.dropped.items():
        warn(f"{path}: {count} features left out: {reason}")
    return found.frame


def polygons(path: Path | None) -> GeoDataFrame | None:
    """Polygons of a file that is not about footprints."""
    from geoinfer.evaluation.read import read_vector

    return None if path is None else read_vector(path)


def open_imagery(paths: list[Path] | None, output: Path | None) -> Source | None:
    """Imagery for pictures, on its own grid where that is good for one."""
    if not paths:
        return None
    if output is None:
        raise ConfigError("--imagery: pictures are for the report; say where to write it with -o DIR")
    from geoinfer.imagery import open_raster
    from geoinfer.imagery.ground import ground_pixel_size
    from geoinfer.imagery.raster import inspect

    return open_raster([str(path) for path in paths], gsd=ground_pixel_size(inspect(paths[0])), core=_CORE)


def split_slices(given: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Specifications separated by commas, except by those that go on with another `key=value`."""
    return tuple(part.strip() for text in given for part in re.split(r",(?!\s*[a-z]+=)", text) if part.strip())


def check_matching_flag(matching: str) -> Literal["optimal", "spacenet"]:
    """The flag's value as one of the two."""
    from geoinfer.evaluation.sides import Matching

    if matching not in get_args(Matching):
        raise ConfigError(f"--matching {matching}: unknown; use {' or '.join(get_args(Matching))}")
    return matching  # type: ignore[return-value]


def shown_name(path: Path) -> str:
    """A file's name and that of its folder: a report travels, and the paths of one machine mean nothing on another."""
    return path.name if path.parent in (Path(), Path("/")) else f"{path.parent.name}/{path.name}"
