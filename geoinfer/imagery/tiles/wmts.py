"""What a WMTS offers, from its capabilities (OGC 07-057r7): layers, zoom levels, how a tile is asked for. Fetches nothing.

The document comes from elsewhere, so it is read without entities: a document type declaration is refused. Levels are taken
whose tiles are square, in any system that PROJ knows. A pixel's size is the scale denominator times 0.28 mm (clause 6.1).
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin
from xml.parsers import expat

from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import ConfigError, SafetyError, SourceError
from geoinfer.imagery.tiles.grid import MERCATOR, TileGrid, exact

LARGEST_DOCUMENT = 32 * 2**20
"""Bytes."""
_DEEPEST = 64
_STANDARD_PIXEL_M = 0.28e-3
_EQUATOR_DEGREE_M = 6378137.0 * math.pi / 180.0
_FORMATS = ("image/png", "image/webp", "image/jpeg", "image/gif")
"""The first that is offered: those that can say what is transparent before those that cannot."""
_VARIABLE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Levels:
    """One layer in one tile matrix set."""

    layer: str
    template: str
    """Address of a tile, with {z}, {y} and {x} for level, row and column."""
    matrix_set: str
    grids: tuple[TileGrid, ...]
    """Coarse to fine."""


def read_capabilities(document: bytes, url: str, name: str, layer: str | None) -> Levels:
    """How to ask for the tiles of a layer.

    Args:
        document: XML.
        url: Where it came from: addresses in it may be relative.
        name: What messages call the service.
        layer: Identifier; None: the only one.

    Raises:
        SafetyError: It declares a document type.
        ConfigError: Several layers, and none was named; or no such layer.
        SourceError: No capabilities, or no level that can be used.
    """
    root = parse_xml(document, name)
    contents = root.find("Contents")
    if root.tag != "Capabilities" or contents is None:
        raise SourceError(f"{name}: not the capabilities of a WMTS (it begins with <{root.tag}>); check the address")
    chosen = _choose_layer(contents, name, layer)
    template, sets = _template_of(root, chosen, url, name), {}
    for matrix_set in contents.findall("TileMatrixSet"):
        sets[_text(matrix_set, "Identifier")] = matrix_set
    best: Levels | None = None
    for link in chosen.findall("TileMatrixSetLink"):
        title = _text(link, "TileMatrixSet")
        if title not in sets:
            continue
        grids = _grids_of(sets[title], _limits_of(link))
        if grids and (best is None or _rank(grids) < _rank(best.grids)):
            filled = template.replace("{TileMatrixSet}", quote(title, safe=""))
            best = Levels(_text(chosen, "Identifier"), filled, title, grids)
    if best is None:
        raise SourceError(
            f"{name}: layer {_text(chosen, 'Identifier')} has no zoom levels with square pixels in a known system"
        )
    return best


def parse_xml(document: bytes, name: str) -> ET.Element:
    """An element tree whose names have no namespaces.

    Raises:
        SafetyError: A document type declaration: entities could grow without end or read files.
        SourceError: Not well formed.
    """
    builder, depth = ET.TreeBuilder(), 0

    def begin(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise SafetyError(f"{name}: refused, its XML is nested more than {_DEEPEST} deep")
        builder.start(_plain(tag), {_plain(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_plain(tag))

    def refuse(*_: object) -> None:
        raise SafetyError(f"{name}: refused, its XML declares a document type; entities could read files of this machine")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(document, True)
        return builder.close()
    except (expat.ExpatError, AssertionError, LookupError, ValueError) as error:
        if isinstance(error, SafetyError):
            raise
        raise SourceError(f"{name}: not XML that can be read ({error}; first bytes {document[:20]!r})") from error


def _plain(name: str) -> str:
    return name.rpartition(" ")[2]


def _text(element: ET.Element, path: str, default: str = "") -> str:
    return (element.findtext(path) or default).strip()


def _choose_layer(contents: ET.Element, name: str, wanted: str | None) -> ET.Element:
    layers = {_text(layer, "Identifier"): layer for layer in contents.findall("Layer")}
    if wanted is not None and wanted in layers:
        return layers[wanted]
    if wanted is None and len(layers) == 1:
        return next(iter(layers.values()))
    listed = ", ".join(list(layers)[:12]) + (f", ... ({len(layers)} in all)" if len(layers) > 12 else "")
    if not layers:
        raise SourceError(f"{name}: offers no layer")
    if wanted is None:
        raise ConfigError(f"{name}: offers {len(layers)} layers; choose one with --wmts-layer: {listed}")
    raise ConfigError(f"{name}: no layer {wanted!r}; it has {listed}")


def _template_of(root: ET.Element, layer: ET.Element, url: str, name: str) -> str:
    """Where a tile is, by ResourceURL where there is one, else as a query; {TileMatrixSet}, {z}, {y} and {x} left open."""
    settled = {"Style": _style_of(layer), "Layer": _text(layer, "Identifier"), "layer": _text(layer, "Identifier")}
    for dimension in layer.findall("Dimension"):
        settled[_text(dimension, "Identifier")] = _text(dimension, "Default") or _text(dimension, "Value")
    resources = [found for found in layer.findall("ResourceURL") if found.get("resourceType") == "tile"]
    for kind in _FORMATS:
        for resource in resources:
            if resource.get("format", "").partition(";")[0].strip().lower() == kind and resource.get("template"):
                return _fill(urljoin(url, resource.get("template", "").strip()), settled, name)
    offered = [(found.text or "").strip() for found in layer.findall("Format")]
    formats = [found for kind in _FORMATS for found in offered if found.partition(";")[0].strip().lower() == kind]
    href = _query_address(root)
    if not formats or href is None:
        raise SourceError(
            f"{name}: layer {settled['Layer']} comes as {', '.join(offered) or 'nothing'}, not as PNG, JPEG or WebP"
        )
    query = {
        "SERVICE": "WMTS", "REQUEST": "GetTile", "VERSION": "1.0.0", "LAYER": settled["Layer"], "STYLE": settled["Style"],
        "FORMAT": formats[0],
    } | {key: value for key, value in settled.items() if key not in ("Style", "Layer", "layer")}  # fmt: skip
    address = urljoin(url, href)
    joint = "" if address.endswith(("?", "&")) else "&" if "?" in address else "?"
    return f"{address}{joint}{urlencode(query)}&TILEMATRIXSET={{TileMatrixSet}}&TILEMATRIX={{z}}&TILEROW={{y}}&TILECOL={{x}}"


def _style_of(layer: ET.Element) -> str:
    styles = layer.findall("Style")
    chosen = next((style for style in styles if style.get("isDefault") == "true"), styles[0] if styles else None)
    return "default" if chosen is None else _text(chosen, "Identifier", "default")


def _query_address(root: ET.Element) -> str | None:
    """Of GetTile by key and value."""
    for operation in root.findall("OperationsMetadata/Operation"):
        if operation.get("name") == "GetTile":
            for found in operation.findall("DCP/HTTP/Get"):
                kinds = [(value.text or "").strip().upper() for value in found.findall("Constraint/AllowedValues/Value")]
                if not kinds or "KVP" in kinds:
                    return found.get("href")
    return None


def _fill(template: str, settled: Mapping[str, str], name: str) -> str:
    open_names = {"TileMatrix": "{z}", "TileRow": "{y}", "TileCol": "{x}", "TileMatrixSet": "{TileMatrixSet}"}

    def value(found: re.Match[str]) -> str:
        key = found[1]
        if key in open_names:
            return open_names[key]
        matches = [known for known in settled if known.lower() == key.lower()]
        if not matches:
            raise SourceError(f"{name}: its addresses hold {{{key}}}, and the capabilities do not say what that is")
        return quote(settled[matches[0]], safe="")

    return _VARIABLE.sub(value, template)


def _limits_of(link: ET.Element) -> dict[str, tuple[int, int, int, int]]:
    """By level: first row, first col, stop row, stop col."""
    limits = {}
    for found in link.findall("TileMatrixSetLimits/TileMatrixLimits"):
        try:
            first_row, last_row, first_col, last_col = (
                int(_text(found, tag)) for tag in ("MinTileRow", "MaxTileRow", "MinTileCol", "MaxTileCol")
            )
        except ValueError:
            continue
        limits[_text(found, "TileMatrix")] = (first_row, first_col, last_row + 1, last_col + 1)
    return limits


def _grids_of(matrix_set: ET.Element, limits: Mapping[str, tuple[int, int, int, int]]) -> tuple[TileGrid, ...]:
    """The levels of a set, coarse to fine; none where its system is not known or its tiles are not square."""
    crs, is_flipped = _crs_of(_text(matrix_set, "SupportedCRS"))
    if crs is None:
        return ()
    return tuple(sorted(_levels(matrix_set, crs, is_flipped, limits), key=lambda grid: -grid.pixel))


def _levels(
    matrix_set: ET.Element, crs: CRS, is_flipped: bool, limits: Mapping[str, tuple[int, int, int, int]]
) -> Iterator[TileGrid]:
    unit = _EQUATOR_DEGREE_M if crs.is_geographic else float(crs.axis_info[0].unit_conversion_factor)
    for matrix in matrix_set.findall("TileMatrix"):
        title = _text(matrix, "Identifier")
        try:
            first, second = (float(value) for value in _text(matrix, "TopLeftCorner").split())
            side, height = int(_text(matrix, "TileWidth")), int(_text(matrix, "TileHeight"))
            rows, cols = int(_text(matrix, "MatrixHeight")), int(_text(matrix, "MatrixWidth"))
            pixel = float(_text(matrix, "ScaleDenominator")) * _STANDARD_PIXEL_M / unit
        except ValueError:
            continue
        if side != height or not (1 <= side <= 4096 and rows > 0 and cols > 0 and math.isfinite(pixel) and pixel > 0):
            continue
        left, top = (second, first) if is_flipped else (first, second)
        if crs.is_geographic and abs(top) > 90.5 >= abs(left):  # some servers write x first whatever the system says
            left, top = top, left
        yield exact(TileGrid(title, crs, left, top, pixel, side, rows, cols, limits.get(title)))


def _crs_of(text: str) -> tuple[CRS | None, bool]:
    """A system as WMTS names it, x before y; and whether corners are written y before x."""
    if "CRS84" in text.upper():
        return CRS.from_epsg(4326), False
    code = re.search(r"EPSG(?:::|:[\d.]+:|/[\d.]+/|:)(\d+)\s*$", text, re.IGNORECASE)
    if code is not None and code[1] in ("3857", "900913", "3785", "102100"):
        return MERCATOR, False
    try:
        crs = CRS.from_user_input(f"EPSG:{code[1]}" if code is not None else text).to_2d()
    except CRSError:
        return None, False
    if not (crs.is_projected or crs.is_geographic):
        return None, False
    first, second = crs.axis_info[:2]
    return crs, second.direction.lower() in ("east", "west") or first.abbrev.startswith("N")


def _rank(grids: tuple[TileGrid, ...]) -> tuple[int, float]:
    """Web Mercator first, then other metres, then degrees; then the finest."""
    crs = grids[0].crs
    return (0 if crs == MERCATOR else 2 if crs.is_geographic else 1), grids[-1].pixel
