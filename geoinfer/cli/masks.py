"""`geoinfer masks`: what a layer is, what it does to footprints, and what it costs and gains against true ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.printing import emit, emit_json, emit_pairs, emit_table, warn
from geoinfer.cli.results import read_vector
from geoinfer.errors import ConfigError, MaskWarning, OutputError

if TYPE_CHECKING:
    import pandas as pd
    from geopandas import GeoDataFrame

    from geoinfer.masks.layer import MaskLayer

app = typer.Typer(name="masks", help="Show, apply and audit mask layers.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Layers = Annotated[
    list[str], typer.Option("--mask", help="A layer; may stand several times, in order.", metavar="FILE:key=value,...")
]
Predicted = Annotated[Path, typer.Argument(help="A run directory, or a file of footprints.")]

SHOWN = (
    "layer", "buffer_m", "max_cover", "own", "removed", "removed_false", "removed_true", "recall_cost", "precision_gain",
    "f1_gain",
)  # fmt: skip
"""Columns of the audit that are printed; the files have all."""


@app.command("audit")
def audit(
    predicted: Predicted,
    truth: Annotated[Path, typer.Argument(help="A file of true footprints.")],
    mask: Layers,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for audit.json, audit.csv and audit.png.", metavar="DIR")
    ] = None,
    aoi: Annotated[Path | None, typer.Option("--aoi", help="Polygons inside which the truth is complete.")] = None,
    max_covers: Annotated[
        str, typer.Option("--max-covers", help="Thresholds of the covered share.", metavar="S,...")
    ] = "0.1,0.25,0.5,0.75,0.9",
    buffers: Annotated[
        str, typer.Option("--buffers", help="Metres; instead of the layer's own.", metavar="M,...")
    ] = "-20,0,20",
    iou: Annotated[float, typer.Option("--iou", help="Least intersection over union of a match.")] = 0.5,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """What each layer, alone, costs in recall and gains in precision, at several thresholds and buffers.

    Of a run directory the footprints before any layer are audited: the accepted ones and those that layers rejected.
    """
    from geoinfer.evaluation.mask_audit import audit_masks, unmasked

    names = ("audit.json", "audit.csv", "audit.png")
    targets = () if output is None else tuple(output / name for name in names)
    _refuse_existing(targets, overwrite)
    with _told_warnings():
        frame = audit_masks(
            unmasked(predicted) if predicted.is_dir() else read_vector(predicted),
            read_vector(truth),
            mask,
            aoi=None if aoi is None else read_vector(aoi),
            max_covers=_numbers("--max-covers", max_covers),
            buffers=_numbers("--buffers", buffers),
            iou=iou,
        )
    report = {"iou": iou, "rows": frame.to_dict("records")}
    if targets:
        _write_audit(frame, report, *targets)
    if as_json:
        emit_json({**report, "files": [str(path) for path in targets if path.exists()]})
    else:
        emit_table(SHOWN, frame[[*SHOWN]].itertuples(index=False))


def _write_audit(frame: pd.DataFrame, report: dict[str, object], as_json: Path, as_csv: Path, as_png: Path) -> None:
    """The three files; without the library that draws the picture, the other two and a line."""
    from geoinfer.evaluation.mask_audit import plot_audit

    try:
        as_json.parent.mkdir(parents=True, exist_ok=True)
        as_json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        frame.to_csv(as_csv, index=False)
    except OSError as error:
        raise OutputError(
            f"{as_json.parent}: cannot be written: {error.strerror or error}; choose another with -o"
        ) from error
    try:
        plot_audit(frame, as_png)
    except ConfigError as error:
        warn(f"{as_png.name} was not drawn: {error}")


@app.command("apply")
def apply(
    footprints: Predicted,
    mask: Layers,
    output: Annotated[Path, typer.Option("-o", "--output", help="GeoParquet of what is accepted.", metavar="OUT.parquet")],
    min_area: Annotated[float, typer.Option("--min-area", help="Least area of what clip leaves, m².", min=0)] = 0.0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Let layers act on footprints of any origin: OUT.parquet is what is accepted, OUT_rejected.parquet the rest.

    Of a run directory the footprints before any layer are taken, so that layers can be tried without inference.
    """
    from geoinfer.evaluation.mask_audit import unmasked
    from geoinfer.masks.apply import mask_footprints

    if output.suffix != ".parquet":
        raise ConfigError(f"-o {output}: the result is GeoParquet; name it {output.with_suffix('.parquet').name}")
    beside = output.with_name(f"{output.stem}_rejected.parquet")
    _refuse_existing((output, beside), overwrite)
    table = unmasked(footprints) if footprints.is_dir() else read_vector(footprints)
    with _told_warnings():
        accepted, rejected = mask_footprints(table, mask, min_area=min_area)
    _write_table(rejected, beside)
    _write_table(accepted, output)
    told = {"accepted": len(accepted), "rejected": len(rejected), "files": [str(output), str(beside)]}
    if as_json:
        emit_json(told)
    else:
        emit_pairs(told)


@app.command("show")
def show(
    mask: Annotated[list[str], typer.Argument(help="A layer, as --mask takes it.", metavar="FILE[:key=value,...]...")],
    as_json: AsJson = False,
) -> None:
    """What a layer is: kind, coordinate system, extent, features or classes, version, and what it would do."""
    from geoinfer.masks.layer import open_masks

    described = [_describe(layer) for layer in open_masks(mask)]
    if as_json:
        emit_json({"layers": described})
        return
    for number, pairs in enumerate(described):
        if number:
            emit("")
        emit_pairs(pairs)


@contextmanager
def _told_warnings() -> Iterator[None]:
    """A layer that touches nothing becomes a line of ours, not Python's two with a file and a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", MaskWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, MaskWarning):
                warn(message)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _describe(layer: MaskLayer) -> dict[str, object]:
    """Its settings and what its header says; reads no feature and no pixel."""
    from geoinfer.masks import raster, read, source

    found = source.look(layer.source)
    header = raster.inspect(found, layer) if layer.kind == "raster" else read.open_header(found, layer)
    about: dict[str, object] = {"format": found.format, "bounds": header.bounds}
    about["crs"] = header.crs.to_string()
    if isinstance(header, read.Header):
        about["features"] = header.features
    else:
        about["size"] = {"height": header.height, "width": header.width}
    return {**layer.describe(), **about}


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: expected numbers with commas between them") from error


def _refuse_existing(targets: tuple[Path, ...], overwrite: bool) -> None:
    for target in targets:
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists; replace it with --overwrite")


def _write_table(table: GeoDataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path, compression="zstd", write_covering_bbox=True, schema_version="1.1.0")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}; choose another with -o") from error
