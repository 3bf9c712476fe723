"""One raster as a source names it, before it is opened: where it is, and what the document that named it says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from affine import Affine
from pyproj import CRS


@dataclass(frozen=True, slots=True)
class Header:
    """What a document declares of a raster's header: enough to plan without opening the file (STAC `proj:`, `raster:`)."""

    crs: CRS
    transform: Affine
    """(col, row) -> (x, y)."""
    height: int
    width: int
    dtype: str | None = None
    count: int | None = None
    """All bands of the file."""
    size: int | None = None
    """Bytes of the file."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a snapshot or an item says the content is; reading anything else is an error."""

    size: int | None = None
    """Bytes."""
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One raster. Frozen and picklable; two scenes of one address are the same raster."""

    address: str = field(repr=False)
    """Absolute local path, or URL (https, http, s3, gs, az); a URL may hold a signature, so messages show it redacted."""
    is_typed: bool = True
    """The user wrote this address, or the folder or pattern it was found with; False: it comes out of a document."""
    item: str | None = None
    """Identifier of the STAC item."""
    collection: str | None = None
    datetime: str | None = None
    """When it was taken, ISO 8601 in UTC."""
    cloud_cover: float | None = None
    """Share of clouds, percent."""
    bands: tuple[int, ...] | None = None
    """Numbers of the bands to read, from 1, in the model's order; None: decided by the file's colours."""
    scale: tuple[float, ...] | None = None
    """Per band of `bands`: physical value = stored * scale + offset (STAC `raster:bands`)."""
    offset: tuple[float, ...] | None = None
    limits: tuple[tuple[float, float], ...] | None = None
    """Per band: stored values that a document declares as least and greatest."""
    nodata: float | None = None
    """Declared by the document; the file's own comes first."""
    header: Header | None = None
    expected: Expected | None = None
    platform: str | None = None
    """What took it, as a STAC item's `platform` names it."""
