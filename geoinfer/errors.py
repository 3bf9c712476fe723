"""Every failure that geoinfer tells a user about, and the exit status each one becomes.

    GeoinferError                 1  internal, when nothing below fits
    ├── ConfigError   ValueError  2  a flag, a setting or a value that cannot work; also an unknown model
    ├── OutputError   OSError     3  the output exists, belongs to another job, is locked or cannot be written
    ├── SourceError   OSError     4  imagery, region, mask or weights that cannot be read or do not fit
    │   └── TooWideError          4  imagery that no single grid can hold: `zones` cuts it by UTM zone
    ├── RegionError   ValueError  4  the region lies outside all imagery
    ├── TilesFailed   RuntimeError 5 the run finished with more failed tiles than allowed
    ├── MaskAlarm     RuntimeError 5 a mask layer did what none should, and the user asked for an error then
    ├── RemoteError   OSError     6  a remote gave up; trying again later may help
    ├── ResourceError MemoryError 7  out of memory or disk
    ├── SafetyError   PermissionError 8 refused: reading it could execute code or leave the allowed files
    └── Interrupted   RuntimeError 130 asked to stop; what was done is committed

Each message names the thing, the value and the remedy. All survive pickling: they cross process borders. `MaskWarning`
and `DomainWarning` are the warnings of our own.
"""

from __future__ import annotations


class GeoinferError(Exception):
    """Root of all errors that geoinfer raises on purpose."""

    exit_code = 1


class ConfigError(GeoinferError, ValueError):
    """A setting that cannot work, or a name that is not known."""

    exit_code = 2


class OutputError(GeoinferError, OSError):
    """The output exists, belongs to another job, is locked or cannot be written."""

    exit_code = 3


class SourceError(GeoinferError, OSError):
    """Imagery, a region, a layer or weights that cannot be read, or do not fit the model."""

    exit_code = 4


class TooWideError(SourceError):
    """Imagery or a region that no single grid can hold in true metres."""

    def __init__(self, message: str, bounds: tuple[float, float, float, float] | None = None) -> None:
        super().__init__(message)
        self.bounds = bounds
        """West, south, east, north of all imagery in degrees, where known; west > east across the antimeridian."""


class RegionError(GeoinferError, ValueError):
    """The region has no pixel in common with the imagery."""

    exit_code = 4


class TilesFailed(GeoinferError, RuntimeError):
    """The run finished, and more tiles failed than the job allows."""

    exit_code = 5


class MaskAlarm(GeoinferError, RuntimeError):
    """A mask layer touches nothing in the region, or removes an implausible share, and `strict_masks` is set."""

    exit_code = 5


class MaskWarning(UserWarning):
    """What would be a `MaskAlarm` where `strict_masks` were set."""


class DomainWarning(UserWarning):
    """The imagery is unlike what the model was trained on."""


class RemoteError(GeoinferError, OSError):
    """A remote service gave up after all retries."""

    exit_code = 6


class ResourceError(MemoryError, GeoinferError):
    """Out of memory or disk."""

    # MemoryError first: what rebuilds exceptions from another process calls `__new__`, and must find that of MemoryError

    exit_code = 7


class SafetyError(GeoinferError, PermissionError):
    """Refused: reading it could execute code or leave the allowed files."""

    exit_code = 8


class Interrupted(GeoinferError, RuntimeError):
    """The run was asked to stop; what was done is committed, and the same command goes on from there."""

    exit_code = 130
