"""Which raster comes first where several cover a pixel, and opening many of them. Reads headers, no pixels.

The order is the user's choice: as given, the newest, the finest or the least cloudy first. Where that does not decide, the
order given does, so equal inputs give equal outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf, log

from pyproj import CRS

from geoinfer.errors import RemoteError, SafetyError, SourceError
from geoinfer.imagery.ground import ground_pixel_size
from geoinfer.imagery.options import Prefer, SourceOptions
from geoinfer.imagery.raster import RasterFile, inspect
from geoinfer.imagery.scene import Scene
from geoinfer.remote.address import shown

MOST_THREADS = 16
"""Headers read at a time."""
_SIZE_STEP = log(1.02)
"""Pixel sizes within the same step of 2 % are one size: the ground of a pixel differs a little within one flight."""
RULES: dict[Prefer, str] = {
    "given": "the first named wins",
    "newest": "the newest wins, undated last, then the first named",
    "finest": "the smallest pixels win (in steps of 2 %), then the first named",
    "least-cloud": "the least cloudy wins, unknown last, then the first named",
}
"""What decides, in words."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A raster that could not be opened, where the user said to go on without."""

    name: str
    reason: str


def open_headers(scenes: Sequence[Scene], options: SourceOptions) -> tuple[list[RasterFile], tuple[LeftOut, ...]]:
    """The header of each scene, several at a time, in the order given; and what was left out.

    Raises:
        SourceError, RemoteError: The first scene that cannot be opened, where `on_error` says so, or where none can.
        SafetyError: A scene that may not be opened, whatever `on_error` says.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, len(scenes)), thread_name_prefix="geoinfer-headers") as pool:
        waiting = [pool.submit(_open, scene, options) for scene in scenes]
        files: list[RasterFile] = []
        left_out: list[LeftOut] = []
        failure: SourceError | RemoteError | None = None
        try:
            for scene, future in zip(scenes, waiting, strict=True):
                try:
                    files.append(future.result())
                except SafetyError:
                    raise
                except (SourceError, RemoteError) as error:
                    if options.on_error == "fail":
                        raise
                    failure = failure or error
                    left_out.append(LeftOut(shown(scene.address), str(error)))
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None and not files:
        raise failure
    return files, tuple(left_out)


def _open(scene: Scene, options: SourceOptions) -> RasterFile:
    return inspect(scene, options.bands, options.assume_crs, access=options.access, open_header=options.open_headers)


def preferred(files: Sequence[RasterFile], prefer: Prefer) -> list[RasterFile]:
    """Rasters in order of priority; a stable sort, so the order given decides ties."""
    keys: dict[Prefer, Callable[[RasterFile], tuple[bool, float]]] = {
        "newest": _age,
        "finest": lambda file: (False, round(log(ground_pixel_size(file)) / _SIZE_STEP)),
        "least-cloud": _clouds,
    }
    return list(files) if prefer == "given" else sorted(files, key=keys[prefer])


def with_shared_crs(files: Sequence[RasterFile]) -> list[RasterFile]:
    """The same rasters, equal coordinate systems being one object: comparing and pickling thousands is then cheap."""
    known: dict[str, CRS] = {}
    shared = []
    for file in files:
        crs = known.setdefault(file.crs.srs, file.crs)
        shared.append(file if crs is file.crs else replace(file, crs=crs))
    return shared


def _age(file: RasterFile) -> tuple[bool, float]:
    moment = _seconds(file.datetime)
    return moment is None, inf if moment is None else -moment


def _clouds(file: RasterFile) -> tuple[bool, float]:
    share = file.scene.cloud_cover if file.scene is not None else None
    return share is None, inf if share is None else share


def _seconds(text: str | None) -> float | None:
    """Since 1970; UTC where the text names no zone, None where it is no time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
