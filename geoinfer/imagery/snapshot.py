"""Snapshots: what identifies a set of rasters, apart from their pixels, in a small file that lines can be compared of.

A snapshot is JSON, one raster a line, sorted by address. Its id is the SHA-256 of the set of its rasters: neither their
order nor where they lie nor when it was taken enters. `fast` names a content by its size, the ETag of its server and its
first 64 KiB, which misses a change further in that kept the size (and, on a server, the ETag); `strict` by the SHA-256 of
all of it, and then equal rasters have equal ids wherever they lie. Addresses are kept without what may be secret.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import GeoinferError, SafetyError, SourceError
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Expected, Header, Scene
from geoinfer.imagery.stored import HEAD_BYTES
from geoinfer.remote.address import basename, is_remote, shown
from geoinfer.remote.client import open_file

MARK = "geoinfer:snapshot"
"""Key of the document that says it is a snapshot; its value is the version of the form."""
VERSION = 1
LARGEST_BYTES = 256 * 2**20
MOST_THREADS = 16
Mode = Literal["fast", "strict"]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Entry:
    """One raster of a snapshot."""

    address: str
    """URL without query; or a path, relative to the snapshot's folder where it lies below that, else absolute."""
    size: int
    """Bytes."""
    etag: str | None = None
    modified: str | None = None
    """`Last-Modified`, of a server that gives no ETag."""
    head: str | None = None
    """SHA-256 of the first 64 KiB; fast mode."""
    sha256: str | None = None
    """Of all bytes; strict mode."""
    crs: str = ""
    """`EPSG:code` where there is one, else WKT."""
    transform: tuple[float, ...] = ()
    """(col, row) -> (x, y), 6 numbers."""
    height: int = 0
    width: int = 0
    bounds: tuple[float, ...] = ()
    """west, south, east, north in degrees; west > east across the antimeridian."""
    gsd: float = 0.0
    """Metres on the ground of a pixel."""
    count: int = 0
    """All bands of the file."""
    bands: tuple[int, ...] = ()
    """Numbers of those that are read."""
    dtype: str = ""
    datetime: str | None = None
    platform: str | None = None
    item: str | None = None
    collection: str | None = None
    cloud_cover: float | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    limits: tuple[tuple[float, float], ...] | None = None
    nodata: float | None = None
    """What a document declares beside the file."""

    @property
    def name(self) -> str:
        """Base name."""
        return basename(self.address)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """What enters the id: everything but where it lies, and the content by the best that is known of it."""
        known = {"name": self.name, **self.to_json()}
        drop = ("address", "etag", "modified", "head") if self.sha256 is not None else ("address",)
        return {name: value for name, value in known.items() if name not in drop}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A set of rasters at one time."""

    entries: tuple[Entry, ...]
    """Sorted by address."""
    order: tuple[int, ...] = ()
    """Numbers of the entries in the order given, where that is another; enters no id."""
    folder: str = ""
    """What relative addresses are relative to; enters no file."""

    @property
    def id(self) -> str:
        """SHA-256 of the set of entries."""
        lines = sorted(json.dumps(entry.identity(), sort_keys=True, allow_nan=False) for entry in self.entries)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def mode(self) -> Mode:
        """How contents are told apart."""
        return "strict" if all(entry.sha256 is not None for entry in self.entries) else "fast"

    def address_of(self, entry: Entry) -> str:
        """Where an entry lies, as it can be opened."""
        return entry.address if is_remote(entry.address) else os.path.normpath(os.path.join(self.folder, entry.address))

    def scenes(self) -> list[Scene]:
        """Its rasters in the order given, each with what its content must be."""
        return [self._scene(self.entries[number]) for number in self.order or range(len(self.entries))]

    def _scene(self, entry: Entry) -> Scene:
        header = Header(
            _crs_of(entry), Affine(*entry.transform), entry.height, entry.width, entry.dtype, entry.count, entry.size
        )
        return Scene(
            address=self.address_of(entry),
            is_typed=not is_remote(entry.address),
            item=entry.item,
            collection=entry.collection,
            datetime=entry.datetime,
            cloud_cover=entry.cloud_cover,
            bands=entry.bands,
            scale=entry.scale,
            offset=entry.offset,
            limits=entry.limits,
            nodata=entry.nodata,
            header=header,
            expected=Expected(entry.size, entry.etag, entry.sha256),
            platform=entry.platform,
        )

    def to_text(self) -> str:
        """The file: JSON with one raster a line."""
        head: dict[str, Any] = {MARK: VERSION, "id": self.id, "mode": self.mode, "rasters": len(self.entries)}
        if self.order:
            head["order"] = list(self.order)
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        entries = [json.dumps(entry.to_json(), ensure_ascii=False, allow_nan=False) for entry in self.entries]
        return "{\n" + ",\n".join(lines) + ',\n"entries": [\n' + ",\n".join(entries) + "\n]\n}\n"


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """A snapshot from its file.

    Raises:
        SourceError: It cannot be read, or is no snapshot.
        SafetyError: It names what no snapshot would.
    """
    try:
        if os.path.getsize(path) > LARGEST_BYTES:
            raise SourceError(f"{path}: more than {LARGEST_BYTES // 2**20} MiB, which no snapshot has")
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except GeoinferError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a JSON that can be read: {error}") from error
    if not isinstance(document, dict) or MARK not in document:
        raise SourceError(f"{path}: not a snapshot (no {MARK!r} in it); `geoinfer snapshot SOURCE -o FILE` makes one")
    if document[MARK] != VERSION:
        raise SourceError(f"{path}: a snapshot of version {document[MARK]!r}, this geoinfer reads version {VERSION}")
    try:
        entries = tuple(_parse(entry) for entry in document["entries"])
        order = tuple(int(number) for number in document.get("order", ()))
        if order and sorted(order) != list(range(len(entries))):
            raise ValueError("its order does not name each raster once")
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: a damaged snapshot: {type(error).__name__} {error}; take it again") from error
    if not entries:
        raise SourceError(f"{path}: a snapshot of no raster")
    for entry in entries:
        _check_address(path, entry.address)
    found = Snapshot(entries, order, str(Path(path).absolute().parent))
    if document.get("id") != found.id:
        raise SourceError(f"{path}: its id is not that of its rasters: it was edited or damaged; take it again")
    return found


def _parse(entry: Any) -> Entry:
    known = {field.name for field in fields(Entry)}
    if not isinstance(entry, dict) or not entry.keys() <= known:
        raise ValueError(f"unknown fields {sorted(set(entry) - known)}")
    made = Entry(**{name: _tuples(value) for name, value in entry.items()})
    if not (isinstance(made.address, str) and len(made.transform) == 6 and len(made.bounds) == 4 and made.size >= 0):
        raise ValueError(f"{made.address!r} lacks a part of its header")
    if not (made.height > 0 and made.width > 0 and all(isinstance(band, int) and band > 0 for band in made.bands)):
        raise ValueError(f"{made.address!r} has no pixels")
    return made


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _check_address(path: str | os.PathLike[str], address: str) -> None:
    """Plain paths and the addresses that imagery may have; nothing that GDAL or the system would read in its own way."""
    if not is_remote(address) and ("://" in address or address.startswith(("/vsi", "file:")) or "\0" in address):
        raise SafetyError(f"{path}: refused, it names {shown(address)!r}, which is neither a path nor http(s), s3, gs or az")


def _crs_of(entry: Entry) -> CRS:
    try:
        return CRS.from_user_input(entry.crs)
    except CRSError as error:
        raise SourceError(f"{entry.name}: the snapshot's coordinate system {entry.crs[:60]!r} is unknown") from error


def open_snapshot(path: str, options: SourceOptions | None = None) -> list[Scene]:
    """The scenes of a snapshot in the order given; see `check_snapshot`."""
    return check_snapshot(path, options)[0]


def check_snapshot(path: str, options: SourceOptions | None = None) -> tuple[list[Scene], list[str]]:
    """The scenes of a snapshot, and what of them is no longer what it says, one line a raster.

    Local files are looked at here (first 64 KiB; all of it where the snapshot is strict and the hash not remembered), remote
    ones when they are opened, and all of them again whenever they are read.

    Args:
        path: The snapshot.
        options: `changed` says what to do: `fail`, or `warn`, and then a changed raster is read as it is now.

    Raises:
        SourceError: Not a snapshot; or a raster changed, or is gone.
    """
    options = options or SourceOptions()
    snapshot = read_snapshot(path)
    scenes = snapshot.scenes()
    wanted = [snapshot.entries[number] for number in snapshot.order or range(len(snapshot.entries))]
    is_lenient = options.changed == "warn"

    def look(pair: tuple[Scene, Entry]) -> str | None:
        scene, entry = pair
        if is_remote(scene.address):
            return _remote_change(scene, entry, options) if is_lenient else None
        return _local_change(scene, entry)

    found = side_by_side(look, list(zip(scenes, wanted, strict=True)))
    changes = [text for text in found if text is not None]
    if changes and not is_lenient:
        more = f", and {len(changes) - 1} more" * (len(changes) > 1)
        raise SourceError(
            f"{path}: {changes[0]}{more}; `geoinfer snapshot` takes it again, --changed warn reads them as they are now"
        )
    as_is = [
        scene if text is None else replace(scene, expected=None, header=None)
        for scene, text in zip(scenes, found, strict=True)
    ]
    return as_is, changes


def _local_change(scene: Scene, entry: Entry) -> str | None:
    path = scene.address
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"{path} cannot be read any more: {error.strerror or error}"
    if size != entry.size:
        return f"{path} changed since the snapshot: {entry.size:,} bytes then, {size:,} now"
    if entry.head is not None and hashlib.sha256(head).hexdigest() != entry.head:
        return f"{path} changed since the snapshot: its first {HEAD_BYTES // 1024} KiB differ"
    if entry.sha256 is not None:
        from geoinfer.imagery.hashes import remembered

        def whole() -> str:
            with open(path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        if remembered(path, whole) != entry.sha256:
            return f"{path} changed since the snapshot: another SHA-256"
    return None


def _remote_change(scene: Scene, entry: Entry, options: SourceOptions) -> str | None:
    """By one request. What cannot be opened at all is for whoever opens it to tell."""
    now, head = open_file(scene.address, options.access, HEAD_BYTES)
    if now.size != entry.size:
        return f"{now.shown} changed since the snapshot: {entry.size:,} bytes then, {now.size:,} now"
    if entry.etag is not None and now.etag != entry.etag:
        return f"{now.shown} changed since the snapshot: another ETag"
    if entry.head is not None and hashlib.sha256(head).hexdigest() != entry.head:
        return f"{now.shown} changed since the snapshot: its first {HEAD_BYTES // 1024} KiB differ"
    return None


def side_by_side(do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What `do` gives for each item, in their order."""
    if not items:
        return []
    with ThreadPoolExecutor(min(MOST_THREADS, len(items)), thread_name_prefix="geoinfer-snapshot") as pool:
        return list(pool.map(do, items))
