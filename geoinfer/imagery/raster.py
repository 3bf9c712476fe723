"""One raster: its header as a value, and a handle on it for each thread. Knows no grid and no model.

Everything that the header decides is read once, by `inspect`; workers get the value and open the file again, one handle a
thread. Files beside the raster (.aux.xml, .msk, .ovr, .tfw) are ignored: no snapshot has them, so they may change nothing.
Where a raster lies makes no difference to its pixels: `stored` has its bytes, `opener` gives them to GDAL.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from affine import Affine
from pyproj import CRS
from rasterio.enums import Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery.hashes import hash_stored
from geoinfer.imagery.header import (
    alpha_of,
    check_sizes,
    choose_bands,
    crs_of,
    datetime_of,
    dtype_of,
    horizontal,
    nodata_of,
    overview_sizes,
    transform_of,
)
from geoinfer.imagery.meter import count_decoded
from geoinfer.imagery.opener import Kept, environment, open_dataset, reason_of
from geoinfer.imagery.safety import UnreadableError, address_of, check_local, check_magic, check_tables
from geoinfer.imagery.scene import Header, Scene
from geoinfer.imagery.stored import HEAD_BYTES, Stored, directories, forget, keep_head
from geoinfer.imagery.tiff import DamagedTable, overviews_of
from geoinfer.remote.access import DEFAULT, Access
from geoinfer.remote.address import basename, is_remote, shown, typed_hosts
from geoinfer.remote.client import RemoteFile, open_file

__all__ = [
    "RasterFile", "at_overview", "check_unchanged", "close_handle", "environment", "handle", "hash_file", "inspect",
    "reason_of", "verify_content", "version_of",
]  # fmt: skip

_MAX_HANDLES = 32
_ASSUMED_BLOCK = 512


@dataclass(frozen=True, slots=True)
class RasterFile:
    """The header of a raster, as far as reading it goes. Holds no handle."""

    path: str = field(repr=False)
    """Absolute, or an address, which may hold a signature: messages show `shown`."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, 0: remote. With `size`, how a file replaced in a run is noticed; enters no fingerprint."""
    height: int
    """Of what is read: the overview's, where that is one."""
    width: int
    count: int
    """All bands of the file."""
    dtype: str
    crs: CRS
    """Horizontal."""
    transform: Affine
    """(col, row) -> (x, y)."""
    bands: tuple[int, ...]
    """Numbers of the bands to read, from 1, in the model's order."""
    alpha: int | None
    """Number of the alpha band."""
    nodata: tuple[float | None, ...]
    """Per band of `bands`."""
    has_mask: bool
    """It carries an internal mask."""
    datetime: str | None
    """ISO 8601: when it was taken, by the document that named it, else TIFFTAG_DATETIME."""
    block: tuple[int, int]
    """(rows, cols) of the blocks, tiles or strips, that the file is stored in."""
    remote: RemoteFile | None = None
    """The version of the file behind an address."""
    scene: Scene | None = field(default=None, repr=False)
    """What named it."""
    overview: int | None = None
    """Number of the overview that is read in place of the raster, from 0."""
    overviews: tuple[tuple[int, int], ...] = ()
    """(height, width) of each overview that could be."""
    service: Any | None = None
    """Map tiles in place of a file: `imagery.tiles` knows."""
    interleaved: bool = True
    """All bands of a pixel lie in one block."""
    is_assumed: bool = False
    """Never opened: a document's word for everything, good for a plan only."""

    @property
    def name(self) -> str:
        """Base name."""
        return basename(self.path) if self.service is None else str(self.service.name)

    @property
    def shown(self) -> str:
        """Path or address without what may be secret, for messages."""
        return shown(self.path) if self.service is None else str(self.service.name)

    @property
    def stored(self) -> Stored:
        """Its bytes."""
        return Stored(self.path, self.size, self.mtime_ns, self.remote)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Equal for the same pixels of the same state of the same file: a key for what was decoded."""
        version = None if self.remote is None else self.remote.version
        return self.path, self.size, self.mtime_ns, version, self.overview, self.bands

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def validity(self) -> str:
        """What says which pixels are valid, in words."""
        if self.service is not None:
            return "tiles that are there"
        kinds = [
            ("alpha band", self.alpha is not None),
            ("internal mask", self.has_mask),
            ("nodata", any(v is not None for v in self.nodata)),
        ]
        return " and ".join(kind for kind, present in kinds if present) or "all valid"


def inspect(
    scene: Scene | str | os.PathLike[str],
    bands: Sequence[int] | None = None,
    assume_crs: str | CRS | None = None,
    *,
    access: Access = DEFAULT,
    open_header: bool = True,
) -> RasterFile:
    """Read the header of a GeoTIFF, local or behind an address (one request for most).

    Args:
        scene: The file, or where it is and what a document says of it.
        bands: Numbers of the bands to read, from 1; default: the scene's, else red, green, blue by colour interpretation,
            else 1, 2, 3.
        assume_crs: Coordinate system of a file that names none.
        access: By what right addresses are reached. Hosts that the user typed are allowed.
        open_header: False: what the scene declares serves instead, where it declares enough (`is_assumed`).

    Raises:
        SourceError: Not a readable, georeferenced raster with these bands, or not what was expected.
        SafetyError: Reading it could do harm.
        RemoteError: A server gave up.
    """
    named = scene if isinstance(scene, Scene) else Scene(address_of(scene))
    wanted = bands if bands is not None else named.bands
    if not open_header and named.header is not None:
        return _assume(named, named.header, wanted)
    if not is_remote(named.address):
        stored = check_local(named.address)
        _check_expected(stored, named)
        return _open(stored, named, wanted, assume_crs)
    if named.is_typed:
        access = replace(access, hosts=tuple(dict.fromkeys([*access.hosts, *typed_hosts(named.address)])))
    for attempt in range(2):  # what a faulty server or line garbled may come right
        remote, head = open_file(named.address, access, HEAD_BYTES)
        stored = Stored(named.address, remote.size, 0, remote)
        forget(stored)
        _check_expected(stored, named)
        try:
            check_magic(stored.shown, head)
            keep_head(stored, head)
            check_tables(stored.shown, stored)
            return _open(stored, named, wanted, assume_crs)
        except (DamagedTable, UnreadableError) as error:
            if attempt:
                raise SourceError(str(error)) from None
    raise AssertionError


def _open(stored: Stored, scene: Scene, bands: Sequence[int] | None, assume_crs: str | CRS | None) -> RasterFile:
    """What GDAL says of a file that is safe to open."""
    file = stored.shown
    try:
        with environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with open_dataset(stored) as dataset:
                check_sizes(file, dataset)
                chosen = choose_bands(file, dataset, bands)
                flags = dataset.mask_flag_enums[chosen[0] - 1]
                has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
                return RasterFile(
                    path=stored.path,
                    size=stored.size,
                    mtime_ns=stored.mtime_ns,
                    height=dataset.height,
                    width=dataset.width,
                    count=dataset.count,
                    dtype=dtype_of(file, dataset, chosen),
                    crs=crs_of(file, dataset, assume_crs),
                    transform=transform_of(file, dataset),
                    bands=chosen,
                    alpha=alpha_of(dataset, chosen),
                    nodata=nodata_of(dataset, chosen, scene),
                    has_mask=has_mask,
                    datetime=scene.datetime or datetime_of(dataset),
                    block=dataset.block_shapes[chosen[0] - 1],
                    remote=stored.remote,
                    scene=scene,
                    overviews=overview_sizes(stored, dataset, chosen[0], has_mask),
                    interleaved=dataset.interleaving == Interleaving.pixel,
                )
    except RasterioError as error:
        fault = f"{file}: cannot be opened as GeoTIFF: {reason_of(error)}"
        if stored.remote is not None:
            raise UnreadableError(fault) from error
        raise SourceError(fault) from error


def at_overview(file: RasterFile, level: int | None) -> RasterFile:
    """The same raster, read from an overview: fewer, larger pixels.

    Args:
        file: At full resolution.
        level: Number of the overview, from 0; None: full resolution.

    Raises:
        SourceError: It has no such overview.
    """
    if level is None:
        return file
    if file.overview is not None or not 0 <= level < len(file.overviews):
        raise SourceError(f"{file.shown}: no overview {level}, it has {len(file.overviews)}")
    height, width = file.overviews[level]
    image = overviews_of(directories(file.stored))[level]
    scale = Affine.scale(file.width / width, file.height / height)
    return replace(file, overview=level, height=height, width=width, transform=file.transform * scale, block=image.block)


def hash_file(file: RasterFile) -> str:
    """sha256 of the content, as it is remembered or read; all of a remote file is fetched.

    Raises:
        SourceError: It changed, or cannot be read.
        RemoteError: A server gave up.
    """
    return hash_stored(file.stored)


def verify_content(file: RasterFile) -> str:
    """`hash_file`, and SourceError where the scene expects another content."""
    digest = hash_file(file)
    expected = None if file.scene is None or file.scene.expected is None else file.scene.expected.sha256
    if expected is not None and digest != expected.lower():
        raise SourceError(f"{file.shown}: changed since the snapshot or item that names it was made: another sha256")
    return digest


def version_of(file: RasterFile) -> dict[str, object]:
    """What identifies the content for a fingerprint: sha256 of a local file, the server's word for a remote one.

    Raises:
        SourceError: A local file cannot be read, or is not the content that its scene expects.
    """
    return {"sha256": verify_content(file)} if file.remote is None else {"version": file.remote.version}


def check_unchanged(file: RasterFile) -> None:
    """Raise SourceError where the file is no longer the one that was opened. A remote one is checked by each request."""
    if file.service is None:
        file.stored.check_unchanged()


class _Handles(threading.local):
    """Open datasets of this thread, the longest unused first. GDAL handles must not cross threads."""

    def __init__(self) -> None:
        self.open: OrderedDict[tuple[Hashable, ...], Kept] = OrderedDict()


_HANDLES = _Handles()


def handle(file: RasterFile) -> Kept:
    """This thread's dataset of a file, or of the overview that is read; closed when many others were used since.

    Raises:
        SourceError: The file changed.
        RasterioError: It cannot be opened any more.
        RemoteError: A server gave up.
    """
    check_unchanged(file)
    stored, handles = file.stored, _HANDLES.open
    key = (*stored.key, file.overview)
    if key in handles:
        handles.move_to_end(key)
        return handles[key]
    while len(handles) >= _MAX_HANDLES:
        handles.popitem(last=False)[1].close()
    options = {} if file.overview is None else {"overview_level": file.overview}
    dataset = Kept(stored, **options)
    if dataset.shape != (file.height, file.width):
        dataset.close()
        raise SourceError(f"{file.shown}: its overviews are not in the order of the file; --no-overviews reads without them")
    handles[key] = dataset
    count_decoded(headers=1)
    return dataset


def close_handle(file: RasterFile) -> None:
    """Close this thread's dataset of a file: the next use opens it anew."""
    dataset = _HANDLES.open.pop((*file.stored.key, file.overview), None)
    if dataset is not None:
        dataset.close()


def _check_expected(stored: Stored, scene: Scene) -> None:
    expected = scene.expected
    if expected is None:
        return
    etag = None if stored.remote is None else stored.remote.etag
    for what, found, wanted in (("bytes", stored.size, expected.size), ("ETag", etag, expected.etag)):
        if found is not None and wanted is not None and str(found) != str(wanted).strip('"'):
            was = f"{what} {found}, expected {wanted}"
            raise SourceError(f"{stored.shown}: changed since the snapshot: {was}; take a new one, or say --changed warn")


def _assume(scene: Scene, header: Header, bands: Sequence[int] | None) -> RasterFile:
    """What a document declares, in place of a header."""
    size = header.size if header.size is not None else scene.expected.size if scene.expected is not None else None
    chosen = tuple(bands) if bands is not None else (1, 2, 3)
    return RasterFile(
        path=scene.address,
        size=size or 0,
        mtime_ns=0,
        height=header.height,
        width=header.width,
        count=header.count or max(chosen),
        dtype=header.dtype or "uint8",
        crs=horizontal(scene_name(scene), header.crs),
        transform=header.transform,
        bands=chosen,
        alpha=None,
        nodata=(scene.nodata,) * len(chosen),
        has_mask=False,
        datetime=scene.datetime,
        block=(_ASSUMED_BLOCK, _ASSUMED_BLOCK),
        scene=scene,
        is_assumed=True,
    )


def scene_name(scene: Scene) -> str:
    """A scene's address for messages."""
    return shown(scene.address)
