"""What a user writes for imagery, told apart by kind and opened: files, folders, lists, searches, services, snapshots.

Texts that name several rasters (a folder, a tile index, a search, a snapshot) become scenes; scenes become one source. Each
kind is at home in a module of its own, which is loaded only where it is needed.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pyproj import CRS, Transformer

from geoinfer.errors import ConfigError, SafetyError, SourceError, TooWideError
from geoinfer.imagery.ground import utm_of
from geoinfer.imagery.mosaic import RasterSource, open_files, open_scenes
from geoinfer.imagery.options import Search, SourceOptions
from geoinfer.imagery.safety import address_of
from geoinfer.imagery.scene import Scene
from geoinfer.region import Region
from geoinfer.remote.address import is_remote, shown, typed_hosts

Kind = Literal["raster", "rasters", "stac", "service", "snapshot"]
_SERVICES = ("xyz:", "tms:", "wmts:")
_STAC = "stac+"
_TABLES = (".parquet", ".geoparquet", ".gpkg", ".shp", ".fgb")
_ZONE_DEGREES = 6.0
"""Width of a UTM zone."""
_LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of a JSON that is looked into to tell what it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What texts name, before anything of it is opened."""

    scenes: tuple[Scene, ...]
    """In the order given."""
    service: str | None
    """Map tiles, which stand alone."""
    options: SourceOptions
    """As given, and with the hosts that the user's own addresses name."""
    remarks: tuple[str, ...] = ()
    """What a user should know of it."""


def open_source(
    texts: Sequence[str],
    options: SourceOptions | None = None,
    *,
    gsd: float,
    core: int,
    region: Region | None = None,
    crs: CRS | None = None,
) -> RasterSource:
    """Open whatever texts name as one source on a model's grid.

    Args:
        texts: Local paths, URLs, folders, patterns, tile indexes, `stac+...`, `xyz:`, `tms:`, `wmts:`, snapshots.
        options: Every setting of a source.
        gsd: The model's ground sample distance, metres.
        core: Step of the model's lattice, pixels.
        region: Where it is wanted; searches and map tiles need one.
        crs: Coordinate system of the grid; chosen by the imagery where None.

    Raises:
        ConfigError: A setting that cannot work.
        SourceError: Nothing found, or a raster that cannot be used.
        SafetyError: An address that may not be read.
        RemoteError: A remote gave up.
        TooWideError: No single grid can hold it.
    """
    return open_found(find(texts, options or SourceOptions(), region), gsd=gsd, core=core, region=region, crs=crs)


def find(texts: Sequence[str], options: SourceOptions, region: Region | None = None) -> Found:
    """What texts name; searches, but opens no raster."""
    if not texts:
        raise ConfigError("no imagery: name at least one source")
    if options.access.signer is not None:
        from geoinfer.remote.signing import check_signer

        check_signer(options.access)
    hosts = dict.fromkeys([*options.access.hosts, *(host for text in texts for host in typed_hosts(_address(text)))])
    options = replace(options, access=replace(options.access, hosts=tuple(hosts)))
    if any(not _address(text).strip() for text in texts):
        raise ConfigError("an empty source: name a file, a folder or an address; is a variable of the shell unset?")
    services = [text for text in texts if text.startswith(_SERVICES)]
    _check_use(options, has_service=bool(services), has_stac=any(text.startswith(_STAC) for text in texts))
    if services:
        if len(texts) > 1:
            raise ConfigError(f"{shown(services[0])}: map tiles cover everything, so they stand alone; give no other source")
        return Found((), services[0], options)
    scenes: dict[Scene, None] = {}
    remarks: list[str] = []
    kinds = [_kind_of(text) for text in texts]
    for text, kind in zip(texts, kinds, strict=True):
        found, told = _scenes(text, kind, options, region)
        scenes |= dict.fromkeys(found)
        remarks += told
    if options.search != Search() and "stac" not in kinds:
        raise ConfigError("collection, datetime, query, asset and max items act on STAC: write stac+URL, or leave them out")
    return Found(tuple(scenes), None, options, tuple(remarks))


def _check_use(options: SourceOptions, *, has_service: bool, has_stac: bool) -> None:
    """Settings that would act on nothing are a mistake; local STAC files are known by their content only, later."""
    service = options.service
    if not has_service and (service.zoom is not None or service.placeholders or service.layer):
        raise ConfigError("zoom, placeholder and wmts layer act on map tiles: write xyz:URL or the like, or leave them out")
    if has_service and not has_stac and options.search != Search():
        raise ConfigError(
            "collection, datetime, query, asset and max items act on STAC: map tiles have none; leave them out"
        )


def open_found(found: Found, *, gsd: float, core: int, region: Region | None = None, crs: CRS | None = None) -> RasterSource:
    """Open what was found; arguments and errors as for `open_source`."""
    if found.service is None:
        source = open_scenes(found.scenes, found.options, gsd=gsd, core=core, crs=crs)
        left_out = (
            f"left out: {'' if part.reason.startswith(part.name) else f'{part.name}: '}{part.reason}"
            for part in source.left_out
        )
        return replace(source, remarks=(*found.remarks, *left_out))
    from geoinfer.imagery.tiles import open_service, unkept

    if region is None:
        raise ConfigError(f"{shown(found.service)}: map tiles have no end; give a --bbox or a --region")
    zone = _zone_of(region) if crs is None else crs  # not that of the imagery, which has no middle
    files = open_service(found.service, found.options, gsd=gsd, region=region)
    source = open_files(files, found.options, gsd=gsd, core=core, crs=zone)
    return replace(source, remarks=(*source.remarks, *unkept(found.options.service)))


def _zone_of(region: Region) -> CRS:
    """The UTM zone that a region lies in: map tiles show each place on one grid, whatever is asked for.

    Raises:
        TooWideError: It reaches into another.
    """
    lonlat = CRS.from_epsg(4326)
    bounds = Transformer.from_crs(region.crs, lonlat, always_xy=True).transform_bounds(*region.geometry.bounds)
    west, south, east, north = bounds
    corners = {utm_of(lonlat, lon, lat).to_epsg() for lon in (west, east) for lat in (south, north)}
    if len(corners) > 1 or east - west > _ZONE_DEGREES:
        raise TooWideError(
            f"the region {west:.10g},{south:.10g},{east:.10g},{north:.10g} reaches over more than one UTM zone, and map "
            "tiles have no grid of their own: `geoinfer run` and `geoinfer.detect` cut it by zone"
        )
    return utm_of(lonlat, *region.centre)


def _address(text: str) -> str:
    """The URL in a text that begins with the name of its kind."""
    for prefix in (_STAC, *_SERVICES):
        text = text.removeprefix(prefix)
    return text


def suspects(texts: Sequence[str]) -> list[str]:
    """What a user should be told of map tiles that were read: the same picture at several places may mean 'nothing here'."""
    if not any(text.startswith(_SERVICES) for text in texts):
        return []
    from geoinfer.imagery import tiles

    return tiles.suspects()


def _scenes(text: str, kind: Kind, options: SourceOptions, region: Region | None) -> tuple[list[Scene], list[str]]:
    """What a text names, and what a user should know of it."""
    if kind == "stac":
        from geoinfer.imagery.stac import scenes_and_skipped

        found, skipped = scenes_and_skipped(text.removeprefix(_STAC), options, region)
        return found, [f"left out: {reason}" for reason in skipped]
    if kind == "snapshot":
        from geoinfer.imagery.snapshot import check_snapshot

        return check_snapshot(text, options)
    if kind == "rasters":
        from geoinfer.imagery.index import scenes_of

        return scenes_of(text, options), []
    return [Scene(address_of(text))], []


def _kind_of(text: str) -> Kind:
    """By its prefix, what it is on disk, and, where a name says too little, its first bytes."""
    if text.startswith(_STAC):
        return "stac"
    if is_remote(text):
        name = shown(text).lower()
        if name.endswith((".json", ".geojson", ".parquet")):
            raise ConfigError(f"{shown(text)}: a document, not a raster; write stac+{shown(text)} if it is STAC")
        return "raster"
    path = Path(text)
    if path.is_dir() or (glob.has_magic(text) and not path.exists()):
        return "rasters"
    suffix = path.suffix.lower()
    if suffix == ".vrt":
        return "rasters"
    if suffix in (".json", ".geojson"):
        return _kind_of_json(path)
    if suffix in _TABLES:
        return "stac" if suffix.endswith("parquet") and _holds_items(path) else "rasters"
    return "raster"


def _kind_of_json(path: Path) -> Kind:
    try:
        if os.path.getsize(path) > _LARGEST_DOCUMENT:
            raise SafetyError(f"{path}: refused, a JSON of more than {_LARGEST_DOCUMENT // 2**20} MiB; use GeoParquet")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except OSError as error:
        if isinstance(error, SafetyError):
            raise
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a JSON that can be read: {error}") from error
    if isinstance(document, dict):
        if "geoinfer:snapshot" in document:
            return "snapshot"
        features = document.get("features")
        first = features[0] if isinstance(features, list) and features and isinstance(features[0], dict) else {}
        if "stac_version" in document or "stac_version" in first:
            return "stac"
        if document.get("type") == "FeatureCollection":
            return "rasters"
    raise SourceError(f"{path}: neither STAC, nor a snapshot, nor a tile index (GeoJSON with a property `location`)")


def _holds_items(path: Path) -> bool:
    """A table of STAC items, not a tile index."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        names = set(pq.read_schema(path).names)
    except (OSError, ArrowException) as error:
        raise SourceError(f"{path}: not a Parquet file that can be read: {error}") from error
    return "assets" in names and "location" not in names
