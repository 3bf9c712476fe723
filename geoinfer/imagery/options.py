"""How a source is opened: one value with every setting, so that functions pass one argument on. Checks only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from pyproj import CRS

from geoinfer.errors import ConfigError
from geoinfer.remote.access import Access, check_several

Prefer = Literal["given", "newest", "finest", "least-cloud"]
Scaling = Literal["percentile", "declared"]
OnError = Literal["fail", "skip"]
Changed = Literal["fail", "warn"]


@dataclass(frozen=True, slots=True)
class Search:
    """What of a STAC collection is wanted; names and meaning as in pystac-client."""

    collections: tuple[str, ...] = ()
    datetime: str | None = None
    query: tuple[str, ...] = ()
    """As `eo:cloud_cover<10`."""
    assets: tuple[str, ...] = ()
    """Keys of the assets to read; none: chosen by roles and common names."""
    max_items: int | None = None

    def __post_init__(self) -> None:
        for name in ("collections", "query", "assets"):
            check_several(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Service:
    """How map tiles are asked for."""

    zoom: int | None = None
    """None: the coarsest zoom whose pixels are at most the model's, at the region's latitude."""
    rate: float | None = None
    """Requests a second, at most."""
    concurrency: int = 4
    """Requests at a time."""
    cache: str | None = None
    """Folder that keeps tiles; None: the user's cache directory."""
    placeholders: tuple[str, ...] = ()
    """Files, or sha256 in hexadecimal, of tiles that mean 'nothing here'."""
    empty: tuple[int, ...] = (204, 404)
    """HTTP statuses that mean 'nothing here'."""
    layer: str | None = None
    """WMTS: identifier of the layer."""

    def __post_init__(self) -> None:
        check_several("placeholders", self.placeholders)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Every setting that says which pixels come from where."""

    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None
    scaling: Scaling = "percentile"
    """What becomes 0 and 255 where the imagery is not 8 bit and no `stretch` is given."""
    resampling: str = "bilinear"
    overviews: bool = True
    """Read an overview where its pixels are at most half as large as the model's."""
    assume_crs: str | CRS | None = None
    prefer: Prefer = "given"
    """Which raster wins where several cover a pixel; ties by the order given, then by address."""
    allow_vrt: bool = False
    open_headers: bool = True
    """False: what a document declares of a raster serves instead of opening it, for a plan."""
    on_error: OnError = "fail"
    """`skip`: rasters that cannot be opened are left out, and named in the manifest."""
    changed: Changed = "fail"
    """What a raster leads to that is not what its snapshot says."""
    access: Access = field(default_factory=Access)
    search: Search = field(default_factory=Search)
    service: Service = field(default_factory=Service)

    def __post_init__(self) -> None:
        known = {"scaling": Scaling, "prefer": Prefer, "on_error": OnError, "changed": Changed}
        for name, values in known.items():
            if getattr(self, name) not in get_args(values):
                raise ConfigError(f"{name} {getattr(self, name)!r}: use one of {', '.join(get_args(values))}")
