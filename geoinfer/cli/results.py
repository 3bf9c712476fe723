"""Verbs on a finished run: `export` to other formats, `verify` its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.cli.printing import emit, emit_json
from geoinfer.errors import OutputError, SourceError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Run = Annotated[Path, typer.Argument(help="A run directory.")]


def export(
    run: Run,
    formats: Annotated[str, typer.Option("-f", "--format", help="gpkg, geojson or fgb; several with commas.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to; default: into the run directory.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the footprints of a run in other formats."""
    from geoinfer.formats import check_format
    from geoinfer.formats import export as write

    source = footprints_of(run)
    folder = run if output is None else output
    targets = [folder / f"footprints.{name.strip().lstrip('.')}" for name in formats.split(",")]
    for target in targets:
        check_format(target)
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists; replace it with --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    for target in targets:
        write(source, target)
        if not as_json:
            emit(str(target))
    if as_json:
        emit_json({"files": [str(target) for target in targets]})


def verify(run: Run, as_json: AsJson = False) -> int:
    """Compare the files of a finished run with what its manifest says of them; status 5 where they differ."""
    from geoinfer.store import RunDirectory
    from geoinfer.store import verify as check

    faults = check(RunDirectory(run))
    if as_json:
        emit_json({"run": str(run), "ok": not faults, "faults": faults})
    else:
        for line in faults or [f"{run}: all files are as the run wrote them"]:
            emit(line)
    return 5 if faults else 0


def footprints_of(run: Path) -> Path:
    """The footprints in a run directory."""
    path = run / "footprints.parquet"
    if not path.exists():
        raise SourceError(
            f"{run}: not a finished run (it has no {path.name}); give the directory that `geoinfer run -o` wrote"
        )
    return path


def read_vector(path: Path) -> GeoDataFrame:
    """The features of a vector file; raises what `evaluation.read.read_vector` does."""
    from geoinfer.evaluation.read import read_vector as read

    return read(path)
