"""A tiled map as a value: how its tiles are named and asked for, what identifies its pixels, and the rasters it is cut into.
Fetches nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit

from geoinfer.errors import ConfigError
from geoinfer.grid import Window
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.tiles.fetching import Manners
from geoinfer.imagery.tiles.grid import TileGrid
from geoinfer.remote.address import shown

_VARIABLE = re.compile(r"\{([^{}]*)\}")
_SUBDOMAINS = ("a", "b", "c")
_KEY = re.compile(r"(?i)key|token|sig|secret|password|credential|auth|session|expires|^x-amz-|^x-goog-|^s[pvetk]$|^sr$|^se$")
"""Parameters that say who asks or until when, not what for."""


@dataclass(frozen=True, slots=True)
class TileService:
    """One cell of one zoom level of a service. Picklable."""

    kind: str
    """`xyz`, `tms` or `wmts`."""
    template: str = field(repr=False)
    """Address of a tile, as `check_template` allows it; may hold keys."""
    grid: TileGrid
    cell: Window
    """The tiles of this raster, in tiles of the level."""
    placeholders: tuple[str, ...]
    """sha256 of tiles that mean 'nothing here', sorted."""
    manners: Manners = field(repr=False)
    layer: str | None = None
    """WMTS: identifier of the layer."""
    tile_bytes: int = field(default=0, repr=False, compare=False)
    """Of a tile that was looked at; 0 where none was there. For plans."""

    @property
    def shown(self) -> str:
        """The address without secrets."""
        return shown(self.template)

    @property
    def name(self) -> str:
        """Short, for tables: host, layer, zoom."""
        return " ".join(filter(None, (self.manners.service, self.layer, f"z{self.grid.name}")))

    @property
    def identity(self) -> str:
        """sha256 of all that decides which pixels come."""
        facts = (self.template, self.grid, self.placeholders, sorted(self.manners.empty))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def snapshot(self) -> dict[str, object]:
        """What identifies the pixels before they are fetched: where they are asked for; a service has no version."""
        cell = self.cell
        return {
            "name": self.name,
            "service": self.kind,
            "template": self.shown,
            "query": query_digest(self.template),
            "layer": self.layer,
            "zoom": self.grid.name,
            "tile": self.grid.side,
            "crs": self.grid.crs.to_string(),
            "cell": [cell.row, cell.col, cell.height, cell.width],
            "empty": sorted(self.manners.empty),
            "placeholders": list(self.placeholders),
        }

    def url(self, row: int, col: int) -> str:
        """Address of a tile of the level."""

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name == "z":
                return quote(self.grid.name, safe=":")
            if name == "q":
                return quadkey(int(self.grid.name), row, col)
            if name in ("x", "y", "-y"):
                return str({"x": col, "y": row, "-y": self.grid.rows - 1 - row}[name])
            hosts = _hosts_of(name)
            return hosts[(row + col) % len(hosts)] if hosts else ""

        return _VARIABLE.sub(value, self.template)

    def raster(self, bands: tuple[int, ...]) -> RasterFile:
        """The header of the cell, as if it were a file whose blocks are tiles."""
        grid, cell = self.grid, self.cell
        return RasterFile(
            path=f"{self.kind}:{self.shown}#{self.identity[:12]}/{grid.name}/{cell.row}/{cell.col}",
            size=0,
            mtime_ns=0,
            height=cell.height * grid.side,
            width=cell.width * grid.side,
            count=3,
            dtype="uint8",
            crs=grid.crs,
            transform=grid.transform(cell.row, cell.col),
            bands=bands,
            alpha=None,
            nodata=(None,) * len(bands),
            has_mask=False,
            datetime=None,
            block=(grid.side, grid.side),
            service=self,
        )


def quadkey(zoom: int, row: int, col: int) -> str:
    """Bing's name of a tile: the interleaved bits of row and column in base 4, coarse to fine."""
    return "".join(str((row >> bit & 1) * 2 + (col >> bit & 1)) for bit in range(zoom - 1, -1, -1))


def check_template(kind: str, address: str) -> str:
    """The template of a service by URL; of TMS, which counts rows from the bottom, with {-y} for {y}.

    Raises:
        ConfigError: It does not say where row, column and level go, or holds something else.
    """
    text = f"{kind}:{shown(address)}"
    names = _VARIABLE.findall(address)
    for name in names:
        if name not in ("z", "x", "y", "-y", "q", "r") and not _hosts_of(name):
            raise ConfigError(
                f"{text}: {{{name}}} means nothing here; use {{z}}, {{x}}, {{y}}, {{-y}}, {{q}}, {{s}} or {{switch:a,b}}"
            )
    if "q" not in names and not ("z" in names and "x" in names and ("y" in names or "-y" in names)):
        raise ConfigError(
            f"{text}: an address of tiles holds {{z}}, {{x}} and {{y}} (or {{-y}}, or {{q}} alone); quote it for the shell"
        )
    if kind == "tms":
        if "-y" in names:
            raise ConfigError(f"{text}: TMS counts {{y}} from the bottom already; write xyz: for {{-y}}")
        return address.replace("{y}", "{-y}")
    return address


def hosts_of(template: str) -> tuple[str, ...]:
    """The template with each of the hosts that it names, its other variables left open."""
    choices = [_hosts_of(found[1]) or (found[0],) for found in _VARIABLE.finditer(template)]
    texts = _VARIABLE.split(template)[::2]
    filled = []
    for chosen in itertools.islice(itertools.product(*choices), 64):
        filled.append("".join(part for pair in itertools.zip_longest(texts, chosen, fillvalue="") for part in pair))
    return tuple(filled)


def query_digest(template: str) -> str | None:
    """sha256 of the parameters that say what is asked for, without those that say by whom; None where there are none."""
    pairs = [pair for pair in parse_qsl(urlsplit(template).query, keep_blank_values=True) if not _KEY.search(pair[0])]
    return hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest() if pairs else None


def _hosts_of(name: str) -> tuple[str, ...]:
    """What stands for a variable that spreads requests over hosts."""
    if name == "s":
        return _SUBDOMAINS
    return tuple(filter(None, name.removeprefix("switch:").split(","))) if name.startswith("switch:") else ()
