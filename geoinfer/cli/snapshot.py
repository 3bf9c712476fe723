"""`geoinfer snapshot`: what identifies imagery, apart from its pixels, in a small file; and what differs between two."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.cli import flags
from geoinfer.cli.printing import emit, emit_json, say
from geoinfer.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from geoinfer.cli.options import RunOptions


def snapshot(
    source: Annotated[
        list[str], typer.Argument(help="What names imagery, as for `run`; or `diff A.json B.json`.", metavar="SOURCE...")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The snapshot (default: stdout).", metavar="FILE")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Content by SHA-256 of all bytes; else size, ETag and the first 64 KiB.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="diff: end with status 1 where they differ, as `git diff --exit-code`.")
    ] = False,
    bbox: flags.Bbox = None,
    bands: flags.Bands = None,
    assume_crs: flags.AssumeCrs = None,
    collection: flags.Collection = None,
    datetime: flags.Datetime = None,
    query: flags.Query = None,
    asset: flags.Asset = None,
    max_items: flags.MaxItems = None,
    allow_host: flags.AllowHost = None,
    allow_vrt: flags.AllowVrt = None,
    aws_no_sign_requests: flags.NoSign = None,
    aws_requester_pays: flags.RequesterPays = None,
    sign: flags.Sign = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: flags.AsJson = False,
) -> int:
    """Take a snapshot of imagery: addresses, sizes, content, coordinate systems, bounds, bands, times. Needs no model.

    The same imagery has the same id, whatever its order. `geoinfer run FILE -o RUN` reads exactly that imagery, and stops
    where a raster changed. `geoinfer snapshot diff A.json B.json` says what came, went and changed.
    """
    if source[0] == "diff" and not os.path.exists("diff"):
        if len(source) != 3:
            raise ConfigError("snapshot diff: takes two snapshots, as in `geoinfer snapshot diff A.json B.json`")
        return _diff(source[1], source[2], as_json=as_json, exit_code=exit_code)
    if exit_code:
        raise ConfigError("--exit-code: goes with `snapshot diff A.json B.json`")
    from geoinfer.cli.options import resolve

    given = {
        "source": source,
        "bbox": bbox,
        "bands": bands,
        "assume_crs": assume_crs,
        "collection": collection,
        "datetime": datetime,
        "query": query,
        "asset": asset,
        "max_items": max_items,
        "allow_host": allow_host,
        "allow_vrt": allow_vrt,
        "aws_no_sign_requests": aws_no_sign_requests,
        "aws_requester_pays": aws_requester_pays,
        "sign": sign,
    }
    settled = resolve(given, os.environ)
    return _take(settled, output, strict=strict, overwrite=overwrite, as_json=as_json)


def _take(settled: RunOptions, output: Path | None, *, strict: bool, overwrite: bool, as_json: bool) -> int:
    from geoinfer.cli.search import region_of
    from geoinfer.imagery.locate import find
    from geoinfer.imagery.taking import take

    if output is not None and output.exists() and not overwrite:
        raise OutputError(f"{output}: is there already; use --overwrite or another name")
    found = find(settled.source, settled.source_options(), region_of(settled))
    if found.service is not None:
        raise ConfigError("map tiles have no version that could be kept; a snapshot takes rasters")
    folder = None if output is None else str(output.absolute().parent)
    taken = take(found.scenes, found.options, strict=strict, folder=folder)
    if output is None:
        emit(taken.to_text().rstrip("\n"))
        return 0
    scratch = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        scratch.write_text(taken.to_text(), encoding="utf-8")
        scratch.replace(output)
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write: {error.strerror or error}; check the path and its permissions"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    if as_json:
        emit_json({"snapshot": str(output), "id": taken.id, "mode": taken.mode, "rasters": len(taken.entries)})
    else:
        say(f"{len(taken.entries)} rasters, {taken.mode}, id {taken.id[:16]}: {output}")
    return 0


def _diff(before: str, after: str, *, as_json: bool, exit_code: bool) -> int:
    from geoinfer.imagery.changes import diff, lines
    from geoinfer.imagery.snapshot import read_snapshot

    found = diff(read_snapshot(before), read_snapshot(after))
    if as_json:
        emit_json(found.to_json())
    else:
        for line in lines(found):
            emit(line)
        counts = f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed, {found.equal} equal"
        emit(f"{counts}; {found.area_km2:.4g} km² differ")
    return 1 if exit_code and not found.is_empty else 0
