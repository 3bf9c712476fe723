"""`geoinfer compare`: two sets of footprints against each other, and both against a truth where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.evaluate import (
    Aoi,
    AsJson,
    Folder,
    Imagery,
    Iou,
    MatchingFlag,
    Overwrite,
    check_matching_flag,
    footprints,
    open_imagery,
    polygons,
    shown_name,
)
from geoinfer.cli.printing import emit, emit_json, emit_table, say, warn
from geoinfer.errors import ConfigError

if TYPE_CHECKING:
    from geoinfer.evaluation.compare import Comparison

SchemaFlag = typer.Option(help="Whose columns: geoinfer, google, microsoft, overture, osm or other; default: told by them.")


def compare(
    a: Annotated[Path, typer.Argument(help="A run directory, or a file of footprints.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another, for instance OpenStreetMap's or Google's.", metavar="B")],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="True footprints: who is closer to them?", metavar="FILE")
    ] = None,
    aoi: Aoi = None,
    iou: Iou = 0.5,
    matching: MatchingFlag = "optimal",
    schema_a: Annotated[str | None, SchemaFlag] = None,
    schema_b: Annotated[str | None, SchemaFlag] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare runs on different imagery; every output says so.")] = False,
    output: Folder = None,
    imagery: Imagery = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """What only A has, what only B has, what both have, and how far those lie apart.

    Two runs on different imagery are refused without --force. With -o also comparison.json, objects.parquet and report.html.
    """
    from geoinfer.evaluation.compare import compare as start
    from geoinfer.evaluation.report import COMPARISON_FILES, check_targets, write_comparison

    if output is not None:
        check_targets(output, COMPARISON_FILES, overwrite)  # before any work
    source = open_imagery(imagery, output)
    labels = _labels(a, b, force)
    found = start(
        footprints(a, schema_a),
        footprints(b, schema_b),
        None if truth is None else footprints(truth),
        aoi=polygons(aoi),
        iou=iou,
        matching=check_matching_flag(matching),
        names=(shown_name(a), shown_name(b)),
        labels=labels,
    )
    for label in labels:
        warn(label)
    files: list[Path] = []
    if output is not None:
        named = {"Truth": truth, "Area of interest": aoi}
        inputs = {name: shown_name(path) for name, path in named.items() if path is not None}
        files = write_comparison(found, output, source, inputs=inputs, overwrite=overwrite)
    if as_json:
        from geoinfer.evaluation.report import plain

        emit_json({**plain(found.to_json()), "files": [str(path) for path in files]})
    else:
        _print(found)
        for path in files:
            say(f"written: {path}")


def _labels(a: Path, b: Path, force: bool) -> tuple[str, ...]:
    """What must be said of two runs before anything else; of files nothing is known.

    Raises:
        ConfigError: They read different imagery, and nobody said that this is meant.
    """
    from geoinfer.evaluation.compare import imagery_differences, is_same_region

    if not (a.is_dir() and b.is_dir()):
        return ()
    labels = []
    differences = imagery_differences(a, b)
    if differences:
        told = "; ".join(differences)
        if not force:
            raise ConfigError(f"{a} and {b} are runs on different imagery: {told}; compare them all the same with --force")
        labels.append(
            f"Different imagery (--force): {told}. What differs may be the place, the date or the sensor, not the model."
        )
    if not is_same_region(a, b):
        labels.append("The runs were asked for different regions: what only one looked at counts as only in it; give --aoi.")
    return tuple(labels)


def _print(found: Comparison) -> None:
    from geoinfer.evaluation.compare_html import QUANTITIES, shift

    for label in found.labels:
        emit(f"NOTE: {label}")
    emit_table(("only a", "both", "only b"), [(found.only_a, found.both, found.only_b)])
    emit(shift(found))
    rows: list[list[Any]] = []
    for name in QUANTITIES:
        one = getattr(found, name)
        rows.append([name, one.n, one.mean, one.p05, one.p25, one.median, one.p75, one.p95])
    emit_table(("quantity", "n", "mean", "5%", "25%", "median", "75%", "95%"), rows)
    if found.truth is not None and found.differences is not None:
        emit("")
        a, b = found.truth
        lines = [
            [name, a.measures[name].value, b.measures[name].value, one.value, one.low, one.high]
            for name, one in found.differences.items()
        ]
        emit_table(("against the truth", "a", "b", "b-a", "low", "high"), lines)
