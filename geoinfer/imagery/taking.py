"""Take a snapshot: open rasters as they are now, and write down what tells them from others. Reads headers, no pixels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from geoinfer.errors import SourceError
from geoinfer.imagery.about import crs_text
from geoinfer.imagery.extent import bounds_lonlat
from geoinfer.imagery.ground import ground_pixel_size
from geoinfer.imagery.opener import environment, open_dataset
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.order import open_headers
from geoinfer.imagery.raster import RasterFile, hash_file
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.snapshot import Entry, Snapshot, side_by_side
from geoinfer.imagery.stored import HEAD_BYTES, load
from geoinfer.remote.address import shown

_SENSORS = ("platform", "satellite", "satelliteid", "satid", "sensor", "instrument", "mission")
"""Names of TIFF tags, in small letters, that say what took a raster; the first that is there counts."""


def take(scenes: Sequence[Scene], options: SourceOptions, *, strict: bool = False, folder: str | None = None) -> Snapshot:
    """The snapshot of scenes as they are now. Reads headers; in strict mode all bytes.

    Args:
        scenes: In the order given.
        options: How they are opened.
        strict: Content by its SHA-256.
        folder: Where the snapshot will lie; paths below it become relative. None: all stay absolute.

    Raises:
        SourceError: A raster cannot be opened, or one stands there twice.
        RemoteError: A server gave up.
    """
    files, _ = open_headers(scenes, options)
    entries = side_by_side(lambda file: _entry(file, strict, folder), files)
    numbers = sorted(range(len(entries)), key=lambda number: entries[number].address)
    ordered = tuple(entries[number] for number in numbers)
    for before, after in itertools.pairwise(ordered):
        if before.address == after.address:
            raise SourceError(f"{shown(after.address)}: stands among the rasters twice; name it once")
    places = {number: place for place, number in enumerate(numbers)}
    order = tuple(places[number] for number in range(len(entries)))
    is_sorted = order == tuple(range(len(order)))
    return Snapshot(ordered, () if is_sorted else order, folder or "")


def _entry(file: RasterFile, strict: bool, folder: str | None) -> Entry:
    if file.service is not None:
        raise SourceError(f"{file.shown}: map tiles have no version that could be kept; a snapshot takes rasters")
    scene = file.scene or Scene(file.path)
    [head] = load(file.stored, [(0, HEAD_BYTES)])
    remote = file.remote
    etag = None if remote is None else remote.etag
    return Entry(
        address=shown(file.path) if remote is not None else _relative(file.path, folder),
        size=file.size,
        etag=etag,
        modified=remote.modified if remote is not None and etag is None else None,
        head=None if strict else hashlib.sha256(head).hexdigest(),
        sha256=hash_file(file) if strict else None,
        crs=crs_text(file.crs),
        transform=tuple(float(number) for number in file.transform[:6]),
        height=file.height,
        width=file.width,
        bounds=bounds_lonlat(file.crs, file.transform, file.height, file.width),
        gsd=round(ground_pixel_size(file), 6),
        count=file.count,
        bands=file.bands,
        dtype=file.dtype,
        datetime=file.datetime,
        platform=scene.platform or _platform_of(file),
        item=scene.item,
        collection=scene.collection,
        cloud_cover=scene.cloud_cover,
        scale=scene.scale,
        offset=scene.offset,
        limits=scene.limits,
        nodata=scene.nodata,
    )


def _relative(path: str, folder: str | None) -> str:
    if folder is not None and Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    return path


def _platform_of(file: RasterFile) -> str | None:
    with environment(), open_dataset(file.stored) as dataset:
        tags = {name.lower(): value for space in (None, "IMAGERY") for name, value in dataset.tags(ns=space).items()}
    return next((str(tags[name]) for name in _SENSORS if tags.get(name)), None)
