"""A VRT read as what most are: a list of files and their places. GDAL's own reader is never asked.

To GDAL a VRT is a program: it may name any file or address, run functions over pixels, nest others. Here its XML is parsed
and compared with the short list of what a plain mosaic consists of. Each file must lie in the VRT's own folder, be a
GeoTIFF, and lie where its own georeference puts it; anything else is refused, and says why. Later files lie on top, as in
GDAL; where one is invalid (nodata, alpha, mask) those beneath show through.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.order import open_headers
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.scene import Scene

_LARGEST = 64 * 2**20
"""Bytes."""
_NOISE = 0.05
"""Largest distance between a place by the VRT and by the file's own georeference, pixels."""
_DATASET = {"SRS", "GeoTransform", "Metadata", "OverviewList", "BlockXSize", "BlockYSize", "VRTRasterBand", "MaskBand"}
_BAND = {"ColorInterp", "NoDataValue", "HideNoDataValue", "Description", "Metadata", "Histograms", "UnitType"}
"""What a band says beside its sources: nothing that changes a pixel."""
_SOURCE = {"SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"}
_ATTRIBUTES = {
    "VRTDataset": {"rasterXSize", "rasterYSize"},
    "VRTRasterBand": {"dataType", "band", "blockXSize", "blockYSize"},
    "SimpleSource": {"name"},
    "ComplexSource": {"name"},
    "SourceFilename": {"relativeToVRT", "relativetoVRT", "shared"},
}
_ADDRESS = re.compile(r"\s*<|/vsi|[A-Za-z][A-Za-z0-9+.\-_]*:", re.IGNORECASE)

Rect = tuple[float, float, float, float]
"""xOff, yOff, xSize, ySize."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A file's place in a band."""

    file: str
    """As written."""
    band: str
    source: Rect
    target: Rect
    nodata: float | None


def scenes_of_vrt(path: Path, options: SourceOptions) -> list[Scene]:
    """The files of a VRT, those on top first.

    Args:
        path: The VRT.
        options: `allow_vrt`, and how headers are read: each file's is compared with the place that the VRT gives it.

    Raises:
        SafetyError: VRTs are not allowed, or this one does more than place files of its own folder.
        SourceError: Not a VRT that can be read, or files that are not what it says.
    """
    if not options.allow_vrt:
        raise SafetyError(f"{path}: refused, a VRT can point at other files; allow it with allow_vrt (--allow-vrt)")
    root = _parse(path)
    _check(path, root, _DATASET)
    bands = [_band(path, band) for band in root.findall("VRTRasterBand")]
    if not bands or not bands[0]:
        raise SourceError(f"{path}: a VRT without a file in it")
    placed = [(part.file, part.target) for part in bands[0]]
    for other in bands[1:]:
        if [(part.file, part.target) for part in other] != placed:
            raise SafetyError(f"{path}: refused, its bands come from different files; stack them into one file each")
    for mask in root.findall("MaskBand"):
        _check_mask(path, mask, {part.file for part in bands[0]})
    numbers = _numbers(path, bands, options.bands)
    scenes = [
        Scene(_inside(path, part.file), is_typed=False, bands=numbers, nodata=part.nodata) for part in reversed(bands[0])
    ]
    if len({scene.address for scene in scenes}) < len(scenes):
        raise SafetyError(f"{path}: refused, it shows a file at more than one place")
    parts = dict(zip((scene.address for scene in scenes), reversed(bands[0]), strict=True))
    _check_places(path, root, parts, scenes, options)
    return scenes


def _parse(path: Path) -> ET.Element:
    try:
        if path.stat().st_size > _LARGEST:
            raise SafetyError(f"{path}: refused, a VRT of more than {_LARGEST // 2**20} MiB; name its folder instead")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not a VRT (XML in UTF-8)") from None
    except OSError as error:
        if isinstance(error, SafetyError):
            raise
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise SafetyError(f"{path}: refused, XML with a document type can expand to anything")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise SourceError(f"{path}: not a VRT that can be read: {error}") from error
    if root.tag != "VRTDataset":
        raise SafetyError(f"{path}: refused, XML of type <{root.tag}> and not a VRT")
    return root


def _check(path: Path, element: ET.Element, children: set[str]) -> None:
    """Nothing but what is known."""
    attributes = set(element.attrib) - _ATTRIBUTES.get(element.tag, set())
    if attributes:
        raise _not_plain(path, f"<{element.tag} {sorted(attributes)[0]}=...>")
    for child in element:
        if child.tag not in children:
            raise _not_plain(path, f"<{child.tag}>")


def _not_plain(path: Path, what: str) -> SafetyError:
    return SafetyError(f"{path}: refused, {what[:80]} in it does more than place files; name the files themselves")


def _band(path: Path, band: ET.Element) -> list[_Part]:
    """The files of a band, from the bottom to the top."""
    _check(path, band, _BAND | {"SimpleSource", "ComplexSource"})
    nodata = _number(path, band.findtext("NoDataValue")) if band.find("NoDataValue") is not None else None
    return [_part(path, source, nodata) for source in band if source.tag in ("SimpleSource", "ComplexSource")]


def _part(path: Path, source: ET.Element, nodata: float | None) -> _Part:
    _check(path, source, _SOURCE)
    name = source.find("SourceFilename")
    if name is None or not (name.text or "").strip():
        raise SourceError(f"{path}: a source without a file name")
    _check(path, name, set())
    own = source.findtext("NODATA")
    return _Part(
        _local(path, name),
        source.findtext("SourceBand", "1").strip(),
        _rect(path, source, "SrcRect"),
        _rect(path, source, "DstRect"),
        nodata if own is None else _number(path, own),
    )


def _local(path: Path, name: ET.Element) -> str:
    """A file name that is one, relative to the VRT."""
    text = (name.text or "").strip()
    if _ADDRESS.match(text) or "\0" in text:
        raise SafetyError(f"{path}: refused, it points at {text[:80]!r}, which is no plain file name")
    is_relative = name.attrib.get("relativeToVRT", name.attrib.get("relativetoVRT", "0")) == "1"
    if not is_relative or os.path.isabs(text):
        raise SafetyError(
            f"{path}: refused, it names {text[:80]!r} by a path of its own; only files beside or below a VRT are read "
            "(relativeToVRT)"
        )
    return text


def _inside(path: Path, name: str) -> str:
    """The absolute path of a file in the VRT's folder, links followed."""
    folder = path.absolute().parent
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or ".." in Path(name).parts:
        raise SafetyError(f"{path}: refused, {name[:80]!r} leads out of its folder")
    if file.suffix.lower() == ".vrt":
        raise SafetyError(f"{path}: refused, {name[:80]!r} is a VRT within a VRT")
    return str(file)


def _rect(path: Path, source: ET.Element, tag: str) -> Rect:
    found = source.find(tag)
    if found is None:
        raise _not_plain(path, f"a source without <{tag}>")
    xs = [_number(path, found.attrib.get(name)) for name in ("xOff", "yOff", "xSize", "ySize")]
    return xs[0], xs[1], xs[2], xs[3]


def _number(path: Path, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise SourceError(f"{path}: {text!r} is no number") from None


def _numbers(path: Path, bands: list[list[_Part]], wanted: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Bands of the files for the bands of the VRT; None where they are the same, so that the files' colours decide."""
    mapping = []
    for band in bands:
        found = {part.band for part in band}
        if len(found) > 1 or not all(text.isdecimal() and int(text) for text in found):
            raise _not_plain(path, f"a band made of bands {', '.join(sorted(found))}")
        mapping.append(int(found.pop()))
    if mapping == list(range(1, len(mapping) + 1)):
        return None
    if wanted is not None:
        raise SourceError(f"{path}: its bands are those of its files in another order; give it without bands= (--bands)")
    return tuple(mapping[:3])


def _check_mask(path: Path, mask: ET.Element, files: set[str]) -> None:
    """The files' own masks, which are heeded without it."""
    _check(path, mask, {"VRTRasterBand"})
    for part in _mask_parts(path, mask):
        if part.file not in files or not part.band.startswith("mask"):
            raise _not_plain(path, "a <MaskBand> that is not the files' own")


def _mask_parts(path: Path, mask: ET.Element) -> Iterator[_Part]:
    for band in mask.findall("VRTRasterBand"):
        yield from _band(path, band)


def _check_places(
    path: Path, root: ET.Element, parts: dict[str, _Part], scenes: list[Scene], options: SourceOptions
) -> None:
    """Each file is shown whole, pixel for pixel, where it lies anyway."""
    whole = _transform(path, root)
    system = _code(root.findtext("SRS"))
    files, _ = open_headers(scenes, replace(options, bands=None))
    for file in files:
        part = parts[file.path]
        size = (file.width, file.height)
        if part.source != (0.0, 0.0, *map(float, size)):
            raise SourceError(f"{path}: shows a part of {file.name} only; name the files themselves")
        if part.target[2:] != tuple(map(float, size)):
            raise SourceError(f"{path}: changes the pixel size of {file.name}; name the files themselves")
        if _drift(file, part.target[:2], whole) > _NOISE:
            raise SourceError(f"{path}: puts {file.name} where its own georeference does not; name the files themselves")
        if system is not None and file.crs.to_epsg() not in (None, system):
            raise SourceError(f"{path}: is in EPSG:{system}, {file.name} in EPSG:{file.crs.to_epsg()}")


def _transform(path: Path, root: ET.Element) -> Affine:
    numbers = [_number(path, text) for text in root.findtext("GeoTransform", "").split(",")]
    if len(numbers) != 6:
        raise SourceError(f"{path}: a VRT without a georeference")
    return Affine.from_gdal(*numbers)


def _code(text: str | None) -> int | None:
    try:
        return CRS.from_user_input(text).to_epsg() if text else None
    except CRSError:
        return None


def _drift(file: RasterFile, place: tuple[float, float], whole: Affine) -> float:
    """Largest distance between where a file's corners lie and where the VRT has them, in pixels of the VRT.

    Args:
        file: With a georeference of its own.
        place: Column and row of its first pixel in the VRT.
        whole: (col, row) of the VRT -> (x, y).
    """
    to_pixels = ~whole
    found = []
    for col, row in ((0, 0), (file.width, 0), (0, file.height), (file.width, file.height)):
        x, y = _apply(file.transform, col, row)
        there = _apply(to_pixels, x, y)
        found += [abs(there[0] - place[0] - col), abs(there[1] - place[1] - row)]
    return max(found)


def _apply(transform: Affine, x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f
