"""`geoinfer search`: which items a STAC API or catalog has for a place and time, with the flags of pystac-client."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli import flags
from geoinfer.cli.printing import emit, emit_json, emit_table, say
from geoinfer.errors import ConfigError, OutputError, SourceError

if TYPE_CHECKING:
    from geoinfer.cli.options import RunOptions
    from geoinfer.imagery.options import SourceOptions
    from geoinfer.imagery.stac.items import Item
    from geoinfer.region import Region


def search(
    source: Annotated[
        str, typer.Argument(help="stac+URL of an API, or a catalog, collection, items or stac-geoparquet.", metavar="SOURCE")
    ],
    bbox: flags.Bbox = None,
    bbox_crs: flags.BboxCrs = None,
    region: flags.Region = None,
    place: flags.Place = None,
    collection: flags.Collection = None,
    datetime: flags.Datetime = None,
    query: flags.Query = None,
    max_items: flags.MaxItems = None,
    matched: Annotated[bool, typer.Option("--matched", help="Only say how many items match.")] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the items as an item collection, which is a source too.", metavar="FILE"),
    ] = None,
    allow_host: flags.AllowHost = None,
    aws_no_sign_requests: flags.NoSign = None,
    aws_requester_pays: flags.RequesterPays = None,
    sign: flags.Sign = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Find imagery: the items of a STAC API or catalog that meet a place, a time and properties. Opens no raster."""
    from geoinfer.cli.options import resolve
    from geoinfer.imagery.stac import PREFIX

    given: dict[str, object] = {
        "source": [source],
        "bbox": bbox,
        "bbox_crs": bbox_crs,
        "region": region,
        "place": place,
        "collection": collection,
        "datetime": datetime,
        "query": query,
        "max_items": max_items,
        "allow_host": allow_host,
        "aws_no_sign_requests": aws_no_sign_requests,
        "aws_requester_pays": aws_requester_pays,
        "sign": sign,
    }
    settled = resolve({name: value for name, value in given.items() if value is not None}, os.environ)
    if save is not None and not matched:
        _refuse(save)
    where = region_of(settled)
    options = _with_host(settled.source_options(), source.removeprefix(PREFIX))
    if matched:
        _tell_count(source, options, where, as_json=as_json)
    else:
        _tell_items(source, options, where, save, as_json=as_json, quiet=quiet)


def region_of(settled: RunOptions) -> Region | None:
    """Where imagery is wanted, by the flags; None: anywhere.

    Raises:
        ConfigError: They contradict each other.
        RegionError: The file cannot be read.
    """
    from geoinfer.region import Region

    if settled.bbox is not None and settled.region is not None:
        raise ConfigError("--bbox and --region: give one of them")
    if settled.place and settled.region is None:
        raise ConfigError("--place names places of --region FILE; give that too")
    if settled.bbox is not None:
        return Region.from_bbox(settled.bbox, settled.bbox_crs)
    return None if settled.region is None else Region.from_file(settled.region, settled.place)


def _with_host(options: SourceOptions, address: str) -> SourceOptions:
    """The host that the user typed may be reached, wherever it is."""
    from dataclasses import replace

    from geoinfer.remote.address import typed_hosts

    hosts = (*options.access.hosts, *typed_hosts(address))
    return replace(options, access=replace(options.access, hosts=hosts))


def _tell_count(source: str, options: SourceOptions, where: Region | None, *, as_json: bool) -> None:
    from geoinfer.imagery.stac import count

    number = count(source, options, where)
    if as_json:
        emit_json({"matched": number})
    else:
        emit(f"{number} items matched")


def _tell_items(
    source: str, options: SourceOptions, where: Region | None, save: Path | None, *, as_json: bool, quiet: bool
) -> None:
    from geoinfer.imagery.stac import search as find
    from geoinfer.remote.address import shown

    items = find(source, options, where)
    if not items:
        raise SourceError(f"{shown(source)}: 0 items matched")
    if save is not None:
        _write(save, _collection(items, save.absolute().parent))
        if not quiet:
            say(f"{len(items)} items in {save}")
    if as_json:
        emit_json({"items": [_row(item) for item in items]})
    elif save is None:
        names = ("collection", "id", "datetime", "cloud_cover", "assets")
        emit_table(names, ([_row(item)[name] for name in names] for item in items))


def _row(item: Item) -> dict[str, Any]:
    collection, name = item.key
    return {
        "collection": collection or None,
        "id": name,
        "datetime": item.datetime,
        "cloud_cover": item.cloud_cover,
        "assets": list(item.value.assets),
    }


def _collection(items: list[Item], folder: Path) -> dict[str, Any]:
    """A document that means the same wherever it lies: addresses of assets in full, of local ones seen from its folder."""
    from geoinfer.remote.address import is_remote

    features: list[dict[str, Any]] = []
    for item in items:
        value = item.value.to_dict(include_self_link=is_remote(item.origin.address), transform_hrefs=False)
        if not is_remote(item.origin.address):
            value["links"] = [link for link in value["links"] if is_remote(str(link.get("href")))]
            for asset in value["assets"].values():
                asset["href"] = _moved(str(asset["href"]), Path(item.origin.address).parent, folder)
        features.append(value)
    return {"type": "FeatureCollection", "features": features}


def _moved(href: str, old: Path, new: Path) -> str:
    return href if "://" in href else os.path.relpath(old / href, new)


def _refuse(path: Path) -> None:
    """Only an older item collection is replaced."""
    if not path.exists():
        return
    try:
        older = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        older = None
    if not (isinstance(older, dict) and older.get("type") == "FeatureCollection" and _are_items(older.get("features"))):
        raise OutputError(f"{path}: exists, and is not an item collection; choose another name for --save")


def _are_items(features: object) -> bool:
    return isinstance(features, list) and all(isinstance(one, dict) and "stac_version" in one for one in features)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
