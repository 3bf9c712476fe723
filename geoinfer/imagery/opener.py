"""How GDAL reads a remote raster without a network of its own: it asks for bytes here, and they are at hand or are fetched.

The blocks under a window are fetched before GDAL decodes them (`serving`); anything else that it asks for is read by range,
so a result never depends on what was fetched before. What goes wrong within GDAL's calls is kept and raised after them: an
exception cannot pass through GDAL.
"""

from __future__ import annotations

import atexit
import io
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.abc import FileContainer
from rasterio.io import DatasetReader

from geoinfer.imagery.stored import Pieces, Stored, load, read

_ENVIRONMENT: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_NUM_THREADS": "1",  # threads of ours read side by side, and a remote raster's bytes are at hand in this one
    "GDAL_CACHEMAX": 16 * 2**20,  # bytes; small, since `blocks` remembers what was decoded
    "GTIFF_POINT_GEO_IGNORE": "NO",
}
_NAME = "raster.tif"
"""What GDAL calls every remote file: it needs to know nothing of addresses."""
_LARGEST_PAGED = 2**18
"""Bytes: longer reads are of blocks, and are not worth remembering."""


class _Inside(threading.local):
    """This thread is inside `environment` already."""

    yes = False


_INSIDE = _Inside()


@contextmanager
def environment() -> Iterator[None]:
    """GDAL's options for every read of ours, whatever the process around us has set.

    Entering takes a quarter of a millisecond, so whoever reads many blocks enters once around them; within that it is free.
    """
    if _INSIDE.yes:
        yield
        return
    with rasterio.Env(**_ENVIRONMENT):
        _INSIDE.yes = True
        try:
            yield
        finally:
            _INSIDE.yes = False


def reason_of(error: BaseException) -> str:
    """The deepest cause that says something: rasterio's own messages often say only 'see context'."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return " ".join(str(error).split()) or type(error).__name__


class _Call(threading.local):
    """What this thread's call of GDAL may use, and what went wrong in it."""

    key: object = None
    pieces: Pieces = ()
    starts: tuple[int, ...] = ()
    fault: BaseException | None = None


_CALL = _Call()


@contextmanager
def serving(stored: Stored, pieces: Pieces = ()) -> Iterator[None]:
    """Around a call of GDAL's: these bytes of the file are at hand. Raises what went wrong while GDAL asked for bytes."""
    _CALL.key, _CALL.pieces, _CALL.starts, _CALL.fault = stored.key, pieces, tuple(start for start, _ in pieces), None
    try:
        yield
    except BaseException:
        if _CALL.fault is not None:
            raise _CALL.fault from None
        raise
    else:
        if _CALL.fault is not None:
            raise _CALL.fault
    finally:
        _CALL.key, _CALL.pieces, _CALL.starts, _CALL.fault = None, (), (), None


class _Bytes(io.RawIOBase):
    """A remote file as GDAL reads it."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self._at = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._stored.size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._stored.size if size < 0 else min(self._at + size, self._stored.size)
        if stop <= self._at:
            return b""
        try:
            content = _at_hand(self._stored, self._at, stop)
        except BaseException as error:  # noqa: BLE001  # raised by `serving`, once GDAL has returned
            _CALL.fault = error
            return b""
        self._at += len(content)
        return content


def _at_hand(stored: Stored, start: int, stop: int) -> bytes:
    if _CALL.starts and stored.key == _CALL.key:
        number = bisect_right(_CALL.starts, start) - 1
        if number >= 0:
            first, content = _CALL.pieces[number]
            if stop <= first + len(content):
                return bytes(content[start - first : stop - first])
    return load(stored, [(start, stop)])[0] if stop - start <= _LARGEST_PAGED else bytes(read(stored, [(start, stop)])[0])


class _Files(FileContainer):  # type: ignore[misc]
    """There is one file, and nothing beside it."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def open(self, path: str, mode: str = "r", **_: Any) -> _Bytes:
        if path.rpartition("/")[2] != _NAME or "w" in mode or "+" in mode:
            raise FileNotFoundError(path)
        return _Bytes(self._stored)

    def isfile(self, path: str) -> bool:
        return path.rpartition("/")[2] == _NAME

    def isdir(self, path: str) -> bool:  # noqa: ARG002
        return False

    def ls(self, path: str) -> list[str]:  # noqa: ARG002
        return [_NAME]

    def mtime(self, path: str) -> int:  # noqa: ARG002
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:  # noqa: ARG002
        return self._stored.size


_OPEN: weakref.WeakSet[DatasetReader] = weakref.WeakSet()
_LOCK = threading.Lock()


def open_dataset(stored: Stored, **options: Any) -> DatasetReader:
    """GDAL's view of a raster, local or remote; by the GTiff driver only. To be closed in the task that opens it.

    Raises:
        RasterioError: It cannot be opened.
        SourceError, RemoteError: Its bytes cannot be had.
    """
    if stored.remote is None:
        return rasterio.open(Path(stored.path), driver="GTiff", sharing=False, **options)
    with serving(stored):
        dataset = rasterio.open(_NAME, driver="GTiff", sharing=False, opener=_Files(stored), **options)
    with _LOCK:
        _OPEN.add(dataset)
    return dataset


class Kept:
    """A dataset that stays open from one task to the next; arguments and errors as of `open_dataset`.

    rasterio keeps an opener's files in variables of the context (`contextvars`) that opened them, and Dask gives each task a
    context of its own, so all that is done with the dataset is done in the one that it was opened in.
    """

    def __init__(self, stored: Stored, **options: Any) -> None:
        self._context = Context()
        self._dataset: DatasetReader = self._context.run(open_dataset, stored, **options)
        with _LOCK:
            _KEPT.add(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self._dataset.height), int(self._dataset.width)

    def read(self, *where: Any, **how: Any) -> NDArray[Any]:
        """As `DatasetReader.read`."""
        pixels: NDArray[Any] = self._context.run(self._dataset.read, *where, **how)
        return pixels

    def read_masks(self, *where: Any, **how: Any) -> NDArray[np.uint8]:
        """As `DatasetReader.read_masks`."""
        mask: NDArray[np.uint8] = self._context.run(self._dataset.read_masks, *where, **how)
        return mask

    def close(self) -> None:
        """Once or several times."""
        self._context.run(self._dataset.close)

    def __del__(self) -> None:
        if hasattr(self, "_dataset"):  # the thread that used it ended
            self.close()


_KEPT: weakref.WeakSet[Kept] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """GDAL would ask for bytes when there is no Python any more."""
    with _LOCK:
        kept, opened = list(_KEPT), list(_OPEN)
    for dataset in kept:
        with suppress(RuntimeError):  # a thread that nobody waits for reads it this moment
            dataset.close()
    for one in opened:
        one.close()
