"""`geoinfer info`: what a raster is, and the grid it will be read on."""

from __future__ import annotations

from typing import Annotated

import typer

from geoinfer.cli.printing import emit_json, emit_pairs


def info(
    source: Annotated[list[str], typer.Argument(help="One raster, or several that share a coordinate system.")],
    model: Annotated[str, typer.Option("--model", help="Whose grid: a model's name or its directory.")] = "buildings",
    assume_crs: Annotated[
        str | None, typer.Option("--assume-crs", help="Coordinate system of imagery that names none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What a raster is, and the grid that a model will read it on. Reads no pixels to speak of."""
    from geoinfer.imagery import open_raster
    from geoinfer.model.registry import resolve_model

    spec = resolve_model(model)
    opened = open_raster(source, gsd=spec.gsd, core=spec.chips.core, assume_crs=assume_crs)
    description = opened.describe()
    if as_json:
        emit_json(description)
    else:
        emit_pairs(description)
