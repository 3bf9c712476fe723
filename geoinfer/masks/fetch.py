"""Local copies of remote vector layers for OGR, which reads files only and never sees a network.

Of a FlatGeobuf with an index only what given boxes need is fetched: the copy is a sparse file of the same length, with holes
where OGR will not look. GeoPackage and shapefile are fetched whole, once per process and version.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import SourceError
from geoinfer.masks.source import NODE_BYTES, SHAPEFILE_PARTS, Source, flatgeobuf_counts, flatgeobuf_levels
from geoinfer.remote.client import RemoteFile, join_ranges, open_file, read_ranges
from geoinfer.remote.stream import copy

NO_BOXES: NDArray[np.float64] = np.zeros((0, 4))
"""Only the header is wanted."""
_SUFFIXES = {"geopackage": ".gpkg", "flatgeobuf": ".fgb", "shapefile": ".shp"}
_KEPT = 4
_AT_ONCE = 2**25
_NODE = np.dtype([("box", "<f8", 4), ("offset", "<u8")])

_copies: dict[tuple[str, str], tempfile.TemporaryDirectory[str]] = {}
"""(URL, version) -> folder of a whole copy; removed with the process, or when others take its place."""
_lock = threading.Lock()


@contextmanager
def local_path(source: Source, boxes: NDArray[np.float64] | None) -> Iterator[str]:
    """What OGR opens while the block runs.

    Args:
        source: A GeoPackage, FlatGeobuf or shapefile, local or remote.
        boxes: (K, 4) in the layer's coordinate system: nothing else will be looked at. None: everything.

    Raises:
        SourceError: Changed since it was looked at, or gone.
        RemoteError: No answer after several tries.
    """
    if source.remote is None:
        yield source.location
        return
    if source.format == "flatgeobuf" and boxes is not None:
        with tempfile.TemporaryDirectory(prefix="geoinfer-") as folder:
            path = Path(folder) / "layer.fgb"
            if _copy_boxes(source.remote, path, boxes):
                yield str(path)
                return
    name = f"layer{_SUFFIXES[source.format]}"
    held = _copy_whole(source.remote, name)  # lives as long as this block, whatever others do
    yield str(Path(held.name) / name)


def _copy_whole(file: RemoteFile, name: str) -> tempfile.TemporaryDirectory[str]:
    key = file.url, file.version
    with _lock:
        if key not in _copies:
            folder = tempfile.TemporaryDirectory(prefix="geoinfer-")
            path = Path(folder.name) / name
            copy(file, path)
            if path.suffix == ".shp":
                _copy_parts(file, path)
            while len(_copies) >= _KEPT:
                _copies.pop(next(iter(_copies)))
            _copies[key] = folder
        return _copies[key]


def _copy_parts(file: RemoteFile, path: Path) -> None:
    """The files beside a .shp, under the same address but for the suffix; those that are not there are left out."""
    parts = urlsplit(file.url)
    stem, _, suffix = parts.path.rpartition(".")
    for part in SHAPEFILE_PARTS[1:]:
        place = stem + (part.upper() if suffix.isupper() else part)
        try:
            found, _ = open_file(urlunsplit(parts._replace(path=place)), file.access)
        except SourceError:
            continue  # OGR says what it misses
        copy(found, path.with_suffix(part))


def _copy_boxes(file: RemoteFile, path: Path, boxes: NDArray[np.float64]) -> bool:
    """Of a FlatGeobuf its header, the nodes of its index that a search visits, and the features that these lead to.

    The search is that of the format's own packed Hilbert R-tree: levels from the root, each node's children side by side.
    False where there is no index, or its leaves are not in the order of the features.
    """
    length = struct.unpack("<I", read_ranges(file, [(8, 12)])[0])[0]
    tree = 12 + int(length)
    header = read_ranges(file, [(0, tree)])[0]
    count, node_size = flatgeobuf_counts(header[12:])
    if not count or node_size < 2:
        return False
    levels = flatgeobuf_levels(count, node_size)
    features = tree + sum(levels) * NODE_BYTES
    with path.open("wb") as out:
        out.truncate(file.size)
        out.write(header)
        nodes = np.zeros(1, np.int64)
        first = 0
        for number, many in enumerate(levels):
            is_leaf = number + 1 == len(levels)
            stops = np.minimum(nodes + (1 if number == 0 else node_size), many)
            found = _read_nodes(file, out, tree, first, nodes, np.minimum(stops + is_leaf, many))
            place = np.concatenate([np.arange(a, b) for a, b in zip(nodes, stops, strict=True)] or [nodes])
            is_hit = _meets(found, place, boxes)
            if is_leaf:
                return _copy_features(file, out, features, found, place[is_hit], many)
            nodes = place[is_hit] * node_size
            first += many
    return False


def _read_nodes(
    file: RemoteFile, out: BinaryIO, tree: int, first: int, starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> dict[int, np.void]:
    """Nodes of one level by their number in it; they are copied on the way."""
    spans = [
        (tree + (first + a) * NODE_BYTES, tree + (first + b) * NODE_BYTES)
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    found: dict[int, np.void] = {}
    for (start, _), content, number in zip(spans, read_ranges(file, spans), starts.tolist(), strict=True):
        out.seek(start)
        out.write(content)
        found |= dict(enumerate(np.frombuffer(content, _NODE), number))
    return found


def _meets(found: dict[int, np.void], place: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) the node's box touches one of the boxes."""
    each = np.array([found[number]["box"] for number in place.tolist()]).reshape(-1, 4)
    is_hit = np.zeros(len(each), np.bool_)
    for west, south, east, north in boxes.tolist():
        is_hit |= (each[:, 0] <= east) & (each[:, 1] <= north) & (each[:, 2] >= west) & (each[:, 3] >= south)
    return is_hit


def _copy_features(
    file: RemoteFile, out: BinaryIO, features: int, found: dict[int, np.void], hits: NDArray[np.int64], many: int
) -> bool:
    starts = [features + int(found[number]["offset"]) for number in hits.tolist()]
    stops = [features + int(found[n + 1]["offset"]) if n + 1 < many else file.size for n in hits.tolist()]
    spans = list(zip(starts, stops, strict=True))
    if any(not features <= start < stop <= file.size for start, stop in spans):
        return False
    for some in _batches(join_ranges(spans)):
        for (start, _), content in zip(some, read_ranges(file, some), strict=True):
            out.seek(start)
            out.write(content)
    return True


def _batches(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """As many at once as memory should hold."""
    batch: list[tuple[int, int]] = []
    held = 0
    for start, stop in spans:
        if batch and held + stop - start > _AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append((start, stop))
        held += stop - start
    if batch:
        yield batch
