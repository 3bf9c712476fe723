"""Verbs on a finished run: `export` to other formats, `evaluate` against true footprints, `verify` its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.cli.printing import emit, emit_json, emit_pairs
from geoinfer.errors import ConfigError, OutputError, SourceError

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
    from geoinfer.formats import export as write

    source = _footprints(run)
    folder = run if output is None else output
    targets = [folder / f"footprints.{name.strip().lstrip('.')}" for name in formats.split(",")]
    for target in targets:
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


def evaluate(
    predicted: Annotated[Path, typer.Argument(help="A run directory, or a file of footprints.")],
    truth: Annotated[Path, typer.Argument(help="A file of true footprints.")],
    aoi: Annotated[Path | None, typer.Option("--aoi", help="Polygons inside which the truth is complete.")] = None,
    iou: Annotated[float, typer.Option("--iou", help="Least intersection over union of a match.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Precision, recall, F1 and area agreement of footprints against true ones."""
    from geoinfer.evaluation import evaluate as compare

    pred = _read_vector(_footprints(predicted) if predicted.is_dir() else predicted)
    result = compare(pred, _read_vector(truth), aoi=None if aoi is None else _read_vector(aoi), iou=iou).to_dict()
    if as_json:
        emit_json(result)
    else:
        emit_pairs(result)


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


def _footprints(run: Path) -> Path:
    path = run / "footprints.parquet"
    if not path.exists():
        raise SourceError(
            f"{run}: not a finished run (it has no {path.name}); give the directory that `geoinfer run -o` wrote"
        )
    return path


def _read_vector(path: Path) -> GeoDataFrame:
    import geopandas

    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if path.suffix.lower() in {".vrt", ".xml"}:
        raise ConfigError(f"{path}: give the vector file itself, not a description of one")
    try:
        return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    except Exception as error:  # pyogrio and pyarrow raise a dozen kinds for one fact
        raise SourceError(f"{path}: cannot be read as vector data: {error}") from error
