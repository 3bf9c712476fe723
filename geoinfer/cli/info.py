"""`geoinfer info`: what a raster is, and the grid it will be read on."""

from __future__ import annotations

import os

import typer

from geoinfer.cli import flags
from geoinfer.cli.printing import emit_json, emit_pairs, warn


def info(
    ctx: typer.Context,
    source: flags.Source = None,
    model: flags.Model = None,
    bbox: flags.Bbox = None,
    bbox_crs: flags.BboxCrs = None,
    region: flags.Region = None,
    place: flags.Place = None,
    bands: flags.Bands = None,
    assume_crs: flags.AssumeCrs = None,
    prefer: flags.Prefer = None,
    no_overviews: flags.NoOverviews = None,
    collection: flags.Collection = None,
    datetime: flags.Datetime = None,
    query: flags.Query = None,
    asset: flags.Asset = None,
    max_items: flags.MaxItems = None,
    zoom: flags.Zoom = None,
    tile_cache: flags.TileCache = None,
    wmts_layer: flags.WmtsLayer = None,
    allow_host: flags.AllowHost = None,
    allow_vrt: flags.AllowVrt = None,
    aws_no_sign_requests: flags.NoSign = None,
    aws_requester_pays: flags.RequesterPays = None,
    sign: flags.Sign = None,
    changed: flags.Changed = None,
    as_json: flags.AsJson = False,
) -> None:
    """What a raster is, and the grid that a model will read it on. Reads no pixels to speak of."""
    from geoinfer.cli.options import resolve
    from geoinfer.cli.search import region_of
    from geoinfer.imagery.locate import open_source
    from geoinfer.model.registry import resolve_model

    settled = resolve(ctx.params, os.environ)
    spec = resolve_model(settled.model)
    where = region_of(settled)
    opened = open_source(settled.source, settled.source_options(), gsd=spec.gsd, core=spec.chips.core, region=where)
    for remark in opened.remarks:
        warn(remark)
    description = opened.describe()
    if as_json:
        emit_json(description)
    else:
        emit_pairs(description)
