"""One STAC item as a raster: which asset, which of its bands, and what the item declares of it (STAC 1.0 and 1.1).

Read are the common metadata and the extensions eo, raster, projection and file. Opens nothing. What a document says wrongly
of a header (no such system, a shape that cannot be) is left out, and the file is opened instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import SourceError
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Expected, Header, Scene
from geoinfer.imagery.stac.filter import interval_of, text_of
from geoinfer.imagery.stac.io import pystac
from geoinfer.imagery.stac.links import Origin, resolve

COLOURS = ("red", "green", "blue")
"""Common names in the model's order."""
_NOT_IMAGERY = {"thumbnail", "overview", "metadata", "saturation", "cloud", "cloud-shadow", "data-mask", "snow-ice"}
"""Roles of assets that are about the imagery."""
_AUTHORITY = re.compile(r"[A-Za-z]+:[0-9A-Za-z_]+", re.ASCII)
_SHA256 = re.compile(r"1220([0-9a-f]{64})", re.ASCII)
_SIDE = 2**31


@dataclass(frozen=True, slots=True)
class Item:
    """An item, and where it was read."""

    value: pystac.Item
    origin: Origin
    """What its relative addresses are relative to."""

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it: its collection and its identifier, text out of a document and never part of a path."""
        return self.value.collection_id or "", self.value.id

    @property
    def datetime(self) -> str | None:
        """When it was taken, or began to be; ISO 8601 in UTC."""
        taken = interval_of(self.value)
        return None if taken is None or taken[0] is None else text_of(taken[0])

    @property
    def cloud_cover(self) -> float | None:
        """Percent."""
        return _finite(self.value.properties.get("eo:cloud_cover"))


@dataclass(frozen=True, slots=True)
class _Band:
    colour: str | None
    dtype: str | None
    nodata: float | None
    scale: float | None
    offset: float | None
    low: float | None
    high: float | None


def scene_of(item: Item, options: SourceOptions) -> Scene:
    """The raster that an item stands for.

    Raises:
        SourceError: No asset fits, or several do.
        SafetyError: Its address leads to where no document may lead.
    """
    asset = item.value.assets[choose_asset(item.value, options.search.assets)]
    bands = _bands_of(asset)
    colours = [band.colour for band in bands]
    numbers = options.bands
    if numbers is None and all(colour in colours for colour in COLOURS):
        numbers = tuple(colours.index(colour) + 1 for colour in COLOURS)
    chosen = numbers if numbers is not None else ((1, 2, 3) if len(bands) == 3 else ())
    read = [bands[number - 1] for number in chosen] if chosen and max(chosen) <= len(bands) and min(chosen) >= 1 else []
    nodata = {band.nodata for band in read or bands}
    return Scene(
        address=resolve(asset.href, item.origin, options.access),
        is_typed=False,
        item=item.value.id,
        collection=item.value.collection_id,
        datetime=item.datetime,
        cloud_cover=item.cloud_cover,
        bands=numbers,
        scale=_all([band.scale if band.scale is not None or band.offset is None else 1.0 for band in read]),
        offset=_all([band.offset if band.offset is not None or band.scale is None else 0.0 for band in read]),
        limits=_limits(read),
        nodata=nodata.pop() if len(nodata) == 1 or _all_nan(nodata) else None,
        header=_header(asset, item.value.properties, bands),
        expected=_expected(asset),
        platform=_platform(item.value.properties),
    )


def choose_asset(item: pystac.Item, wanted: Sequence[str]) -> str:
    """Key of the asset to read: the first of `wanted` that the item has; else the visual one, the one with red, green and
    blue, the one for data, or the only GeoTIFF.

    Raises:
        SourceError: None fits, or several do alike.
    """
    assets = item.assets
    keys = ", ".join(list(assets)[:12]) or "none"
    if wanted:
        found = next((key for key in wanted if key in assets), None)
        if found is None:
            raise SourceError(f"item {item.id!r}: no asset {' or '.join(map(repr, wanted))}; it has {keys} (--asset)")
        if not _is_tiff(assets[found]):
            kind = assets[found].media_type
            raise SourceError(f"item {item.id!r}: asset {found!r} is {kind}; only GeoTIFFs can be read; it has {keys}")
        if len(_bands_of(assets[found])) == 1:
            raise SourceError(f"item {item.id!r}: asset {found!r} holds one band; " + _ONE_FILE)
        return found
    images = {key: asset for key, asset in assets.items() if _is_tiff(asset) and not _roles(asset) & _NOT_IMAGERY}
    counts = {key: len(_bands_of(asset)) for key, asset in images.items()}
    usable = {key: asset for key, asset in images.items() if counts[key] == 0 or counts[key] >= 3}
    ranks = [
        [key for key, asset in usable.items() if key == "visual" or "visual" in _roles(asset)],
        [key for key, asset in usable.items() if {band.colour for band in _bands_of(asset)} >= set(COLOURS)],
        [key for key, asset in usable.items() if "data" in _roles(asset)],
        list(usable),
    ]
    for fitting in ranks:
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise SourceError(f"item {item.id!r}: assets {', '.join(fitting[:12])} fit alike; choose one with --asset")
    if images:
        raise SourceError(
            f"item {item.id!r}: its GeoTIFFs ({', '.join(list(images)[:12])}) hold one band each; " + _ONE_FILE
        )
    raise SourceError(f"item {item.id!r}: no asset is a GeoTIFF; it has {keys}")


_ONE_FILE = "only an asset with red, green and blue in one file can be read"


def _platform(properties: Mapping[str, Any]) -> str | None:
    """What took it; else with which of its instruments."""
    instruments = properties.get("instruments")
    named = [properties.get("platform"), *(instruments if isinstance(instruments, list) else [])]
    return next((name for name in named if isinstance(name, str) and name), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _roles(asset: pystac.Asset) -> set[str]:
    return {role for role in asset.roles or () if isinstance(role, str)}


def _is_tiff(asset: pystac.Asset) -> bool:
    """By its media type; by its name where it declares none that says anything."""
    kind = asset.media_type
    if isinstance(kind, str) and kind.partition(";")[0].strip().lower() not in ("", "application/octet-stream"):
        return kind.partition(";")[0].strip().lower() in ("image/tiff", "image/vnd.stac.geotiff", "image/geotiff")
    return urlsplit(str(asset.href)).path.lower().endswith((".tif", ".tiff"))


def _bands_of(asset: pystac.Asset) -> list[_Band]:
    """Every band of an asset as declared: `bands` (1.1), or `eo:bands` beside `raster:bands` (1.0). Empty: not declared."""
    lists = [asset.extra_fields.get(name) for name in ("bands", "eo:bands", "raster:bands")]
    declared = [[_mapping(band) for band in found] for found in lists if isinstance(found, list) and found]
    count = max(map(len, declared), default=0)
    merged = [_band({}, asset.extra_fields) for _ in range(count)]
    for bands in declared:
        if len(bands) == count:
            values = [dict(band) for band in bands]
            merged = [_joined(old, _band(value, asset.extra_fields)) for old, value in zip(merged, values, strict=True)]
    return merged


def _joined(old: _Band, new: _Band) -> _Band:
    return _Band(*(getattr(new, name) if getattr(new, name) is not None else getattr(old, name) for name in _Band.__slots__))


def _band(band: Mapping[str, Any], asset: Mapping[str, Any]) -> _Band:
    def of(*names: str) -> Any:
        """What the band says, else what the asset says of all its bands."""
        return next((place[name] for place in (band, asset) for name in names if place.get(name) is not None), None)

    names = [band.get(name) for name in ("eo:common_name", "common_name", "name")]
    known = [name.lower() for name in names if isinstance(name, str) and name.lower() in COLOURS]
    statistics, dtype = _mapping(of("statistics", "raster:statistics")), of("data_type", "raster:data_type")
    return _Band(
        colour=known[0] if known else None,
        dtype=dtype if isinstance(dtype, str) else None,
        nodata=_number(of("nodata", "raster:nodata")),
        scale=_finite(of("raster:scale", "scale")),
        offset=_finite(of("raster:offset", "offset")),
        low=_finite(statistics.get("minimum")),
        high=_finite(statistics.get("maximum")),
    )


def _number(value: object) -> float | None:
    """A number, or one of the names that the raster extension has for what JSON lacks."""
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _all(values: list[float | None]) -> tuple[float, ...] | None:
    known = [value for value in values if value is not None]
    return tuple(known) if known and len(known) == len(values) else None


def _all_nan(values: set[float | None]) -> bool:
    """NaN differs from itself, so a set may hold it several times."""
    return bool(values) and all(value is not None and math.isnan(value) for value in values)


def _limits(bands: list[_Band]) -> tuple[tuple[float, float], ...] | None:
    pairs = [(band.low, band.high) for band in bands if band.low is not None and band.high is not None]
    if not pairs or len(pairs) != len(bands) or any(low >= high for low, high in pairs):
        return None
    return tuple(pairs)


def _expected(asset: pystac.Asset) -> Expected | None:
    size, checksum = asset.extra_fields.get("file:size"), asset.extra_fields.get("file:checksum")
    size = size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
    digest = _SHA256.fullmatch(checksum.lower()) if isinstance(checksum, str) else None
    if size is None and digest is None:
        return None
    return Expected(size=size, sha256=digest[1] if digest else None)


def _header(asset: pystac.Asset, properties: Mapping[str, Any], bands: list[_Band]) -> Header | None:
    """What the projection extension says, of the asset first, then of the item; None where it does not suffice."""

    def of(name: str) -> Any:
        return asset.extra_fields[name] if asset.extra_fields.get(name) is not None else properties.get(name)

    crs, shape = _crs(of), of("proj:shape")
    if crs is None or not _is_shape(shape):
        return None
    height, width = shape
    transform = _transform(of("proj:transform"), of("proj:bbox"), height, width)
    if transform is None:
        return None
    size, dtypes = asset.extra_fields.get("file:size"), {band.dtype for band in bands}
    return Header(
        crs=crs,
        transform=transform,
        height=height,
        width=width,
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        count=len(bands) or None,
        size=size if isinstance(size, int) and size > 0 else None,
    )


def _crs(of: Any) -> CRS | None:
    code = of("proj:code")
    if code is None and isinstance(of("proj:epsg"), int):
        code = f"EPSG:{of('proj:epsg')}"
    try:
        if isinstance(code, str):
            return _crs_of_code(code) if _AUTHORITY.fullmatch(code) else None
        if isinstance(of("proj:wkt2"), str):
            return CRS.from_wkt(of("proj:wkt2"))
        if isinstance(of("proj:projjson"), Mapping):
            return CRS.from_json_dict(dict(of("proj:projjson")))
    except (CRSError, ValueError, TypeError):
        return None
    return None


@lru_cache(maxsize=256)
def _crs_of_code(code: str) -> CRS:
    return CRS.from_user_input(code)


def _is_shape(value: object) -> bool:
    whole = isinstance(value, list | tuple) and len(value) == 2
    return whole and all(isinstance(side, int) and 0 < side < _SIDE for side in value)  # type: ignore[attr-defined]


def _transform(values: object, box: object, height: int, width: int) -> Affine | None:
    """`proj:transform` (6 or 9 numbers, row by row), else north-up over `proj:bbox`."""
    if isinstance(values, list | tuple) and len(values) in (6, 9):
        given = [_finite(value) for value in values[:6]]
        numbers = [value for value in given if value is not None]
    elif isinstance(box, list | tuple) and len(box) == 4 and all(_finite(value) is not None for value in box):
        west, south, east, north = box
        numbers = [(east - west) / width, 0.0, west, 0.0, (south - north) / height, north]
    else:
        return None
    if len(numbers) != 6:
        return None
    transform = Affine(*numbers)
    return transform if transform.determinant != 0 else None
