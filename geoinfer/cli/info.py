"""`geoinfer info`: what a raster is, and the grid it will be read on."""

from __future__ import annotations

from typing import Annotated

import typer

from geoinfer.cli import flags
from geoinfer.cli.printing import emit_json, emit_pairs


def info(
    source: Annotated[list[str], typer.Argument(help="What names imagery, as for `run`.")],
    model: Annotated[str, typer.Option("--model", help="Whose grid: a model's name or its directory.")] = "buildings",
    assume_crs: Annotated[
        str | None, typer.Option("--assume-crs", help="Coordinate system of imagery that names none.")
    ] = None,
    bbox: flags.Bbox = None,
    allow_host: flags.AllowHost = None,
    allow_vrt: flags.AllowVrt = None,
    aws_no_sign_requests: flags.NoSign = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What a raster is, and the grid that a model will read it on. Reads no pixels to speak of."""
    from geoinfer.imagery.locate import open_source
    from geoinfer.imagery.options import SourceOptions
    from geoinfer.model.registry import resolve_model
    from geoinfer.region import Region
    from geoinfer.remote.access import Access

    spec = resolve_model(model)
    access = Access(hosts=tuple(allow_host or ()), sign_requests=not aws_no_sign_requests)
    options = SourceOptions(assume_crs=assume_crs, allow_vrt=bool(allow_vrt), access=access)
    place = None if bbox is None else Region.from_bbox(bbox)
    opened = open_source(source, options, gsd=spec.gsd, core=spec.chips.core, region=place)
    description = opened.describe()
    if as_json:
        emit_json(description)
    else:
        emit_pairs(description)
