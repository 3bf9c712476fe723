"""Which files may reach GDAL at all. Decided from the path and the first bytes, before any library parses them.

GDAL opens far more than GeoTIFF: a VRT named scene.tif can read any file of this machine, and a small file that declares
one huge compressed block makes GDAL allocate all of it for a single pixel. So: local files only, TIFF by magic bytes, the
GTiff driver only, and no compressed block above `MAX_BLOCK_BYTES` in any directory (pixels, masks and overviews alike).
The layout read here is TIFF 6.0 (section 2) and BigTIFF.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from geoinfer.errors import SafetyError, SourceError

MAX_BLOCK_BYTES = 256 * 2**20
"""Largest block of a raster, decompressed, bytes."""
MAX_BANDS = 64
"""Most bands of a raster."""
_MAX_DIRECTORIES = 256
_MAX_ENTRIES = 4096
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_VIRTUAL = re.compile(r"\s*<|/vsi|[a-z][a-z0-9+.\-]*://|(MEM|GTIFF_DIR|GTIFF_RAW):", re.IGNORECASE)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT = (
    256, 257, 258, 259, 277, 278, 284, 322, 323,
)  # fmt: skip
_WANTED = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a TIFF keeps its numbers: byte order, and the 32 or 64 bit flavour."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")


def check_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a local TIFF that is safe to hand to GDAL's GTiff driver.

    Raises:
        SafetyError: A path that is not a file's, a file that is a document about other files, or a block that is a bomb.
        SourceError: Missing, unreadable, empty, not a TIFF, or cut off within its header.
    """
    text = os.fspath(path)
    if _VIRTUAL.match(text):
        raise SafetyError(f"{text[:80]!r}: refused, imagery must be a local GeoTIFF file (no URL, no GDAL virtual path)")
    file = Path(text).absolute()
    if file.is_dir():
        raise SourceError(f"{file}: a directory, not a raster; name the GeoTIFF files in it")
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
            _check_magic(file, head)
            _check_blocks(file, stream, head)
    except FileNotFoundError:
        raise SourceError(f"{file}: no such file") from None
    except PermissionError as error:
        if isinstance(error, SafetyError):
            raise
        raise SourceError(f"{file}: no permission to read it") from error
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    return file


def _check_magic(file: Path, head: bytes) -> None:
    if not head:
        raise SourceError(f"{file}: empty file (0 bytes)")
    if head[:4] in _TIFF_MAGIC:
        return
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise SourceError(f"{file}: not a GeoTIFF but a web page (first bytes {head[:15]!r}); download it again")
    if text.startswith(b"<"):
        raise SafetyError(f"{file}: refused, XML can point GDAL at other files (first bytes {head[:20]!r}); give a GeoTIFF")
    raise SourceError(f"{file}: not a GeoTIFF (first bytes {head[:8]!r})")


def _check_blocks(file: Path, stream: BinaryIO, head: bytes) -> None:
    """Walk the directories and refuse a block too large to hold."""
    layout = _Layout("<" if head[:2] == b"II" else ">", head[2:4] in (b"+\x00", b"\x00+"))
    try:
        position = struct.unpack_from(layout.offset, head, 8 if layout.big else 4)[0]
        seen: set[int] = set()
        while position and position not in seen and len(seen) < _MAX_DIRECTORIES:
            seen.add(position)
            tags, position = _read_directory(stream, layout, position)
            _check_block(file, tags)
    except struct.error:
        raise SourceError(f"{file}: the TIFF header is cut off or damaged") from None


def _read_directory(stream: BinaryIO, layout: _Layout, position: int) -> tuple[dict[int, int], int]:
    """First value of each wanted tag, and the place of the next directory."""
    stream.seek(min(position, 2**62))
    count = struct.unpack(layout.count, stream.read(struct.calcsize(layout.count)))[0]
    entry = layout.order + ("HHQ8s" if layout.big else "HHI4s")
    size = struct.calcsize(entry)
    if count > _MAX_ENTRIES:
        raise struct.error("a directory without end")
    body = stream.read(size * count + struct.calcsize(layout.offset))
    following = struct.unpack_from(layout.offset, body, size * count)[0]
    tags: dict[int, int] = {}
    for index in range(count):
        tag, kind, values, inline = struct.unpack_from(entry, body, size * index)
        if tag not in _WANTED or kind not in _INTEGERS or not values:
            continue
        value = layout.order + _INTEGERS[kind]
        if values * struct.calcsize(value) > len(inline):
            stream.seek(min(struct.unpack(layout.offset, inline)[0], 2**62))
            inline = stream.read(8)
        tags[tag] = struct.unpack_from(value, inline)[0]
    return tags, following


def _check_block(file: Path, tags: dict[int, int]) -> None:
    samples = tags.get(_SAMPLES, 1)
    bytes_a_pixel = -(-tags.get(_BITS, 1) // 8) * (samples if tags.get(_PLANAR, 1) == 1 else 1)
    if _TILE_WIDTH in tags:
        pixels = tags[_TILE_WIDTH] * tags.get(_TILE_HEIGHT, tags[_TILE_WIDTH])
    elif tags.get(_COMPRESSION, 1) == 1:
        return  # GDAL cuts uncompressed strips into lines
    else:
        height = tags.get(_HEIGHT, 0)
        pixels = tags.get(_WIDTH, 0) * min(height, tags.get(_ROWS_PER_STRIP, height))
    if pixels * bytes_a_pixel > MAX_BLOCK_BYTES:
        raise SafetyError(
            f"{file}: refused, a block of {pixels * bytes_a_pixel / 2**20:,.0f} MiB exceeds the limit of "
            f"{MAX_BLOCK_BYTES // 2**20} MiB; rewrite it with smaller blocks (gdal_translate -of COG)"
        )
