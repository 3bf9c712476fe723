"""Which files may reach GDAL at all. Decided from the path and the first bytes, before any other library parses them.

GDAL opens far more than GeoTIFF: a VRT named scene.tif can read any file of this machine, and a small file that declares
one huge compressed block makes GDAL allocate all of it for a single pixel. So: TIFF by magic bytes, the GTiff driver only,
no path of GDAL's own, and no compressed block above `MAX_BLOCK_BYTES` in any directory (pixels, masks and overviews alike).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.stored import Stored, directories, forget_head
from geoinfer.imagery.tiff import MAGIC, DamagedTable
from geoinfer.remote.address import is_remote

MAX_BLOCK_BYTES = 256 * 2**20
"""Largest block of a raster, decompressed, bytes."""
MAX_BANDS = 64
"""Most bands of a raster."""
_VIRTUAL = re.compile(r"\s*<|/vsi|[a-z][a-z0-9+.\-]*://|(MEM|GTIFF_DIR|GTIFF_RAW):", re.IGNORECASE)


class UnreadableError(SourceError):
    """Bytes that are no GeoTIFF: if they came over a network, they may have been garbled on the way."""


def address_of(path: str | os.PathLike[str]) -> str:
    """What a user wrote for a raster as an address: absolute where it is local.

    Raises:
        SafetyError: A document, or a path of GDAL's own.
    """
    text = os.fspath(path)
    return text if is_remote(text) else os.path.abspath(_plain(text))


def _plain(text: str) -> str:
    if _VIRTUAL.match(text):
        raise SafetyError(
            f"{text[:80]!r}: refused; imagery is a GeoTIFF by its path or its https, s3, gs or az address, no GDAL path"
        )
    return text


def check_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a local TIFF that is safe to hand to GDAL's GTiff driver; raises as `check_local` does."""
    return Path(check_local(path).path)


def check_local(path: str | os.PathLike[str]) -> Stored:
    """A local TIFF that is safe to hand to GDAL's GTiff driver, as it is now.

    Raises:
        SafetyError: A path that is not a file's, a file that is a document about other files, or a block that is a bomb.
        SourceError: Missing, unreadable, empty, not a TIFF, or cut off within its header.
    """
    file = Path(_plain(os.fspath(path))).absolute()
    if file.is_dir():
        raise SourceError(f"{file}: a directory, not a raster; name the GeoTIFF files in it")
    try:
        with file.open("rb") as stream:
            check_magic(str(file), stream.read(64))
            status = os.fstat(stream.fileno())
        stored = Stored(str(file), status.st_size, status.st_mtime_ns)
        forget_head(stored)  # a second write may leave size and time as they were
        check_tables(str(file), stored)
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
    return stored


def check_magic(shown: str, head: bytes) -> None:
    """Refuse what does not begin as a TIFF; says what it seems to be.

    Raises:
        SourceError: No TIFF.
        SafetyError: A document that could name other files.
    """
    if not head:
        raise SourceError(f"{shown}: empty file (0 bytes)")
    if head[:4] in MAGIC:
        return
    text = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise SourceError(f"{shown}: not a GeoTIFF but a web page (first bytes {head[:15]!r}); download it again")
    if text.startswith(b"<"):
        raise SafetyError(f"{shown}: refused, XML can point GDAL at other files (first bytes {head[:20]!r}); give a GeoTIFF")
    raise UnreadableError(f"{shown}: not a GeoTIFF (first bytes {head[:8]!r})")


def check_tables(shown: str, stored: Stored) -> None:
    """Refuse a block that is too large to hold, in any image of a TIFF.

    Raises:
        SourceError: Cut off or damaged within its header.
        SafetyError: A bomb.
    """
    try:
        found = directories(stored)
    except DamagedTable as error:
        raise UnreadableError(f"{shown}: the TIFF header is cut off or damaged ({error})") from None
    for directory in found:
        if directory.block_bytes > MAX_BLOCK_BYTES:
            raise SafetyError(
                f"{shown}: refused, a block of {directory.block_bytes / 2**20:,.0f} MiB exceeds the limit of "
                f"{MAX_BLOCK_BYTES // 2**20} MiB; rewrite it with smaller blocks (gdal_translate -of COG)"
            )
