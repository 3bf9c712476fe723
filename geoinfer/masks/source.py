"""Which files may reach a driver at all: the format is told by the first bytes, then the file's own lengths are checked.

Path and name are never trusted. A path is made absolute and must be a file of this machine (so no driver prefix and no
GDAL virtual path has a meaning), and XML, archives and unknown content are refused. GeoJSON reaches no driver whatever:
several of OGR's JSON drivers follow links or run pipelines (`geojson` reads it here). What is cut off is noticed by the
lengths that FlatGeobuf, shapefiles and Parquet keep in their headers: their drivers may say nothing (SQLite does).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.safety import check_file
from geoinfer.remote.access import Access
from geoinfer.remote.address import is_remote, shown, typed_hosts
from geoinfer.remote.client import RemoteFile, open_file
from geoinfer.remote.stream import open_seekable, open_stream

Format = Literal["geopackage", "flatgeobuf", "shapefile", "geojson", "geoparquet", "geotiff"]
_KINDS = "GeoPackage, GeoJSON, FlatGeobuf, GeoParquet, shapefile or GeoTIFF"
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11", b"GP12")
SHAPEFILE_PARTS = (".shp", ".shx", ".dbf", ".prj", ".cpg")
_PREFIX = re.compile(r"\s*<|/vsi|[A-Za-z][A-Za-z0-9+.\-]*://", re.IGNORECASE)
_DRIVER = re.compile(r"[A-Za-z_][A-Za-z0-9_]+:")
NODE_BYTES = 40
_HEAD_BYTES = 128
_REMOTE_HEAD_BYTES = 2**10
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a format that is known, complete as far as its header tells."""

    location: str
    """Absolute path, or the URL as given."""
    format: Format
    version: str
    remote: RemoteFile | None
    """None for a local file."""

    @property
    def shown(self) -> str:
        """For messages: a path, or a URL without its query."""
        return shown(self.location)

    def open(self) -> io.BufferedIOBase:
        """A seekable binary file; of a URL by range requests."""
        return open(self.location, "rb") if self.remote is None else open_seekable(self.remote)

    def open_stream(self) -> io.BufferedIOBase:
        """All bytes in order."""
        return open(self.location, "rb") if self.remote is None else open_stream(self.remote)


def text_of(value: object) -> str:
    """An attribute as the text that classes are compared with: whole numbers without a point, truth as true and false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def look(location: str) -> Source:
    """Tell a layer's format and version, and whether it is complete.

    Raises:
        SourceError: Missing, empty, cut off, or of no format that a mask layer has.
        SafetyError: A path or content that could make a driver read other files.
        RemoteError: A URL that does not answer.
    """
    if is_remote(location):
        return _look_remote(location)
    file = _check_path(location)
    try:
        status = file.stat()
        with file.open("rb") as content:
            head = content.read(_HEAD_BYTES)
            source = Source(str(file), _sniff(head, str(file)), "", None)
            if source.format == "geotiff":
                check_file(file)
            elif source.format in _LENGTHS:
                _check_complete(source, content, status.st_size)
        return Source(str(file), source.format, _version_of(file, source.format), None)
    except SourceError:
        raise
    except OSError as error:
        if isinstance(error, SafetyError):
            raise
        raise SourceError(f"{file}: mask layer cannot be read: {error.strerror or error}") from error


def open_remote(location: str) -> tuple[RemoteFile, bytes]:
    """A URL that the user typed; and its first bytes.

    Raises:
        SourceError: The server says that there is no such file, or cannot tell versions apart.
        SafetyError: It redirects to what may not be reached.
        RemoteError: No answer after several tries.
    """
    access = Access(hosts=typed_hosts(location), tries=_TRIES)
    file, head = open_file(location, access, _REMOTE_HEAD_BYTES, is_whole_ok=True)
    if file.etag is None and file.modified is None:
        raise SourceError(f"{file.shown}: neither ETag nor Last-Modified, so its version cannot be told; download it first")
    return file, head


def _look_remote(location: str) -> Source:
    file, head = open_remote(location)
    source = Source(location, _sniff(head, file.shown), file.version, file)
    if source.format in _LENGTHS:
        with source.open() as content:
            _check_complete(source, content, file.size)
    return source


def _check_path(location: str) -> Path:
    file = Path(location).absolute()
    if _PREFIX.match(location) or str(file).lower().startswith("/vsi"):
        raise SafetyError(
            f"{location[:80]!r}: refused, a mask layer is a local file or a URL (https, s3, gs, az), no GDAL virtual path"
        )
    if file.is_dir():
        raise SourceError(f"{file}: a directory, not a mask layer; name one {_KINDS}")
    if not file.is_file():
        if _DRIVER.match(location):
            raise SafetyError(f"{location[:80]!r}: refused, no such file, and driver prefixes are not allowed")
        raise SourceError(f"{file}: no such file")
    return file


def _sniff(head: bytes, shown: str) -> Format:
    if not head:
        raise SourceError(f"{shown}: empty file (0 bytes)")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"SQLite format 3\x00"):
        if head[68:72] not in _GEOPACKAGE_IDS:
            raise SourceError(
                f"{shown}: SQLite, but no GeoPackage (application id {head[68:72]!r}); convert it with ogr2ogr"
            )
        return "geopackage"
    if head.startswith(b"fgb\x03"):
        return "flatgeobuf"
    if head.startswith(b"\x00\x00\x27\x0a"):
        return "shapefile"
    if head.startswith(b"PAR1"):
        return "geoparquet"
    if head.startswith(_TIFF_MAGIC):
        return "geotiff"
    if text.startswith(b"{"):
        return "geojson"
    if text.lower().startswith((b"<!doctype html", b"<html")):
        raise SourceError(f"{shown}: a web page, not a mask layer (first bytes {text[:15]!r}); download it again")
    if text.startswith(b"<"):
        raise SafetyError(f"{shown}: refused, XML can point at other files (first bytes {text[:20]!r}); give a {_KINDS}")
    if head.startswith(b"PK"):
        raise SourceError(f"{shown}: an archive; unpack it and name the layer in it")
    raise SourceError(f"{shown}: not a {_KINDS} (first bytes {head[:8]!r})")


def _check_complete(source: Source, content: BinaryIO | io.BufferedIOBase, size: int) -> None:
    """Compare the length that the file claims with the one it has."""
    content.seek(0)
    head = content.read(_HEAD_BYTES)
    try:
        claimed = _LENGTHS[source.format](content, head)
    except (struct.error, OverflowError):
        claimed = -1
    if claimed < 0 or size < claimed:
        needs = "" if claimed < 0 else f" ({size:,} of {claimed:,} bytes)"
        raise SourceError(f"{source.shown}: {source.format} is cut off or damaged{needs}; copy it again")


def _flatgeobuf_bytes(stream: BinaryIO | io.BufferedIOBase, head: bytes) -> int:
    """FlatGeobuf 3.0: magic, header, packed Hilbert R-tree, features. The last leaf of the tree points at the last feature.

    Of a file without a tree the end is not known; its features are counted when they are read.
    """
    header = head[12:] if len(head) >= 12 + (length := struct.unpack_from("<I", head, 8)[0]) else _at(stream, 12, length)
    count, node_size = flatgeobuf_counts(header)
    if not count or node_size < 2:
        return 12 + int(length)
    nodes = sum(flatgeobuf_levels(count, node_size))
    tree = 12 + length
    last = struct.unpack("<4dQ", _at(stream, tree + (nodes - 1) * NODE_BYTES, NODE_BYTES))[4]
    features = tree + nodes * NODE_BYTES
    return int(features + last + 4 + struct.unpack("<I", _at(stream, features + last, 4))[0])


def flatgeobuf_levels(count: int, node_size: int) -> list[int]:
    """Nodes in each level of the tree, the root first; there is a level above the leaves even where there is one leaf."""
    levels = [count, -(-count // node_size)]
    while levels[-1] > 1:
        levels.append(-(-levels[-1] // node_size))
    return levels[::-1]


def flatgeobuf_counts(header: bytes) -> tuple[int, int]:
    """Number of features and node size: fields 8 and 9 of the header's table (FlatBuffers binary format)."""
    table = struct.unpack_from("<I", header)[0]
    entries = table - struct.unpack_from("<i", header, table)[0]
    fields = (struct.unpack_from("<H", header, entries)[0] - 4) // 2
    offsets = struct.unpack_from(f"<{fields}H", header, entries + 4)
    count = struct.unpack_from("<Q", header, table + offsets[8])[0] if fields > 8 and offsets[8] else 0
    node = struct.unpack_from("<H", header, table + offsets[9])[0] if fields > 9 and offsets[9] else 16
    return int(count), int(node)


def _parquet_bytes(stream: BinaryIO | io.BufferedIOBase, _: bytes) -> int:
    """A Parquet file ends in the length of its footer and its magic."""
    end = stream.seek(0, io.SEEK_END)
    footer, magic = struct.unpack("<I4s", _at(stream, max(0, end - 8), 8))
    return int(footer) + 12 if magic == b"PAR1" else -1


def _shapefile_bytes(_: BinaryIO | io.BufferedIOBase, head: bytes) -> int:
    """ESRI Shapefile Technical Description, 1998: the length in the main file's header, in 16-bit words."""
    return 2 * int(struct.unpack_from(">i", head, 24)[0])


_LENGTHS: dict[str, Callable[[BinaryIO | io.BufferedIOBase, bytes], int]] = {
    "shapefile": _shapefile_bytes,
    "flatgeobuf": _flatgeobuf_bytes,
    "geoparquet": _parquet_bytes,
}


def _at(stream: BinaryIO | io.BufferedIOBase, place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


def _version_of(file: Path, kind: Format) -> str:
    """sha256 of all files that decide what is read."""
    if kind == "geopackage" and _size_of(Path(f"{file}-wal")):
        raise SourceError(f"{file}: another program is still writing it ({file.name}-wal is not empty); close that first")
    if kind != "shapefile":
        return "sha256:" + _hash_file(str(file), *_stamp(file))
    digest = hashlib.sha256()
    for suffix in SHAPEFILE_PARTS:
        part = next((p for p in (file.with_suffix(suffix), file.with_suffix(suffix.upper())) if p.is_file()), None)
        digest.update(f"{suffix}:{'' if part is None else _hash_file(str(part), *_stamp(part))};".encode())
    return "sha256:" + digest.hexdigest()


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _stamp(file: Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _hash_file(path: str, _size: int, _mtime_ns: int) -> str:
    """sha256 of the content, streamed; once per file and state, since layers are looked at again before they are read."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
