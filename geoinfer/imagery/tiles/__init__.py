"""Map tiles (XYZ, TMS, WMTS) as rasters: from what a user writes to `RasterFile`s, and from a window of one to pixels.

A service has no end, no date and no version: what identifies its pixels is where they are asked for, at which zoom. 'Nothing
here' is nodata: the statuses 204 and 404 (or those configured), tiles whose sha256 is a configured placeholder's, tiles that
are transparent or black all over. A service may say it in yet other ways: the same bytes at several places are never
imagery, so the user is told (`suspects`) and can name them as placeholders. They are not dropped on sight: what was seen
before would then decide what a pixel is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery.meter import count_decoded
from geoinfer.imagery.options import Service, SourceOptions
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.tiles.fetching import LARGEST_BYTES, Manners, Tile, fetch, is_kept, note, suspects
from geoinfer.imagery.tiles.grid import (
    MAX_ZOOM,
    TileGrid,
    cells_near,
    choose_level,
    coarsest,
    count_tiles,
    lonlat_of,
    mercator_grid,
    parts_on,
)
from geoinfer.imagery.tiles.image import NotATileError, decode_tile, side_of
from geoinfer.imagery.tiles.service import TileService, check_template, hosts_of
from geoinfer.imagery.tiles.wmts import LARGEST_DOCUMENT, read_capabilities
from geoinfer.region import Region
from geoinfer.remote.access import Access
from geoinfer.remote.address import WEB, check_host, host_port_of, scheme_of, shown, typed_hosts
from geoinfer.remote.client import read_whole

__all__ = ["TileService", "decode", "open_service", "planned", "prefetch", "suspects", "unkept"]

MAX_TILES = 1_000_000
"""More than this is no use of a service but a copy of it."""
_PIXELS = tuple[NDArray[np.uint8], NDArray[np.bool_] | None]
_HEX = frozenset("0123456789abcdef")


def open_service(text: str, options: SourceOptions, *, gsd: float, region: Region) -> tuple[RasterFile, ...]:
    """The rasters of a service near a region: cells that lie fixed in its zoom level and do not overlap.

    Asks for a few tiles at most: that there are tiles where the region is, and how large they are.

    Args:
        text: `xyz:URL` or `tms:URL` with {z}, {x}, {y} or {-y} or {q}, and {s} or {switch:a,b,c} for hosts; `wmts:URL` of
            the capabilities.
        options: `service`, `access` and `bands` count.
        gsd: The model's, metres.
        region: Where pixels are wanted.

    Returns:
        Each of uint8 with three bands, its `block` a tile.

    Raises:
        ConfigError: A template that cannot work, a layer or zoom that does not exist, too many tiles.
        SourceError: The service has no tiles there.
        SafetyError: An address that may not be reached.
        RemoteError: The service gave up.
    """
    kind, _, address = text.partition(":")
    bands = options.bands or (1, 2, 3)
    if not all(1 <= band <= 3 for band in bands):
        raise ConfigError(f"bands {','.join(map(str, bands))}: map tiles have 1, 2 and 3")
    lonlat, layer = lonlat_of(region), None
    if kind == "wmts":
        access = _with_hosts(options.access, [address])
        document = read_whole(address, access, limit=LARGEST_DOCUMENT, accept=("application/xml", "text/xml"))
        found = read_capabilities(document, address, f"wmts:{shown(address)}", options.service.layer)
        template, grids, layer = found.template, found.grids, found.layer
    else:
        template = check_template(kind, address)
        access = _with_hosts(options.access, hosts_of(template))
        grids = _mercator(256)
    manners = _manners(template, access, options.service)
    placeholders = _placeholders(options.service.placeholders)
    service = TileService(kind, template, grids[0], Window(0, 0, 1, 1), placeholders, manners, layer)
    service = _at_level(service, grids, options.service.zoom, gsd, lonlat)
    side, tile_bytes = _probe(service, lonlat, is_strict=options.service.zoom is None)
    service = replace(service, tile_bytes=tile_bytes)
    if side is not None and side != service.grid.side:
        if kind == "wmts":
            raise SourceError(f"{service.shown}: tiles of {side} px where the capabilities say {service.grid.side}")
        service = _at_level(service, _mercator(side), options.service.zoom, gsd, lonlat)
    if (tiles := count_tiles(service.grid, lonlat)) > MAX_TILES:
        raise ConfigError(
            f"{service.shown}: the region needs about {tiles:,} tiles at zoom {service.grid.name}, more than {MAX_TILES:,}; "
            "take a smaller region or a coarser --zoom, or get the imagery as files"
        )
    return tuple(replace(service, cell=cell).raster(bands) for cell in cells_near(service.grid, lonlat))


def prefetch(file: RasterFile, windows: Sequence[Window]) -> None:
    """Have the tiles under windows of a service's raster at hand: side by side, as far as its manners allow.

    Raises:
        SourceError, RemoteError, SafetyError: A tile cannot be had.
    """
    service = _service_of(file)
    places = dict.fromkeys(place for window in windows for place in _under(service, window))
    fetch([service.url(row, col) for row, col in places], service.manners)


def planned(file: RasterFile, window: Window) -> list[tuple[int, int]]:
    """(0, bytes) for each tile under a window that is not kept yet: the bytes of the one that was looked at."""
    service = _service_of(file)
    urls = (service.url(row, col) for row, col in _under(service, window))
    return [(0, service.tile_bytes) for url in urls if not is_kept(url, service.manners)]


def decode(file: RasterFile, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Pixels of a service's raster and which are valid, as `imagery.decode.decode` gives them.

    Args:
        file: From `open_service`.
        window: In the raster's own pixels, within it.

    Returns:
        pixels: (C, H, W) uint8; valid: (H, W), None where all are.

    Raises:
        SourceError: A tile is refused, or is no image, also when asked for again.
        RemoteError: The service gave up.
    """
    service = _service_of(file)
    side, cell, order = service.grid.side, service.cell, [band - 1 for band in file.bands]
    places = list(_under(service, window))
    urls = [service.url(row, col) for row, col in places]
    pixels = np.zeros((len(order), window.height, window.width), np.uint8)
    valid = np.zeros((window.height, window.width), np.bool_)
    for (row, col), url, tile in zip(places, urls, fetch(urls, service.manners), strict=True):
        found = _imagery(service, tile, url)
        if found is not None:
            frame = Window((row - cell.row) * side, (col - cell.col) * side, side, side)
            part = frame.intersection(window)
            there, here = part.slices_in(window), part.slices_in(frame)
            pixels[:, *there] = found[0][order][:, *here]
            valid[there] = True if found[1] is None else found[1][here]
    return pixels, None if valid.all() else valid


def _imagery(service: TileService, tile: Tile, url: str) -> _PIXELS | None:
    """What a tile shows, None where nothing is; asked for once more, past all that is kept, where it is damaged."""
    fault: NotATileError | None = None
    for attempt in range(2):
        if attempt:
            (tile,) = fetch([url], service.manners, anew=True)
        if tile.content is None or tile.sha256 in service.placeholders:
            return None
        try:
            found = decode_tile(tile.content, service.grid.side)
        except NotATileError as error:
            fault = error
            continue
        count_decoded(service.grid.side**2, len(tile.content))
        if found[1] is None or found[1].any():
            note(tile, url)
        return found
    raise SourceError(f"{shown(url)}: {fault}")


def _service_of(file: RasterFile) -> TileService:
    assert isinstance(file.service, TileService)
    return file.service


def _under(service: TileService, window: Window) -> Iterator[tuple[int, int]]:
    """Row and column in the level of the tiles that may exist under a window of the cell."""
    side, cell = service.grid.side, service.cell
    row, col = window.row // side, window.col // side
    height, width = -(-window.stop_row // side) - row, -(-window.stop_col // side) - col
    tiles = Window(cell.row + row, cell.col + col, height, width).intersection(service.grid.extent)
    for row in range(tiles.row, tiles.stop_row):
        for col in range(tiles.col, tiles.stop_col):
            yield row, col


# --- opening -----------------------------------------------------------------------------------------------------------


def _mercator(side: int) -> tuple[TileGrid, ...]:
    return tuple(mercator_grid(zoom, side) for zoom in range(MAX_ZOOM + 1))


def _at_level(
    service: TileService, grids: Sequence[TileGrid], zoom: int | None, gsd: float, lonlat: BaseGeometry
) -> TileService:
    """The service at the zoom asked for, else at the coarsest that shows the model's pixels."""
    level = coarsest(grids, gsd, lonlat) if zoom is None else choose_level(grids, zoom, service.shown)
    if next(cells_near(level, lonlat), None) is None:
        raise SourceError(f"{service.shown}: the region {_text(lonlat)} lies outside all tiles of zoom {level.name}")
    return replace(service, grid=level)


def _probe(service: TileService, lonlat: BaseGeometry, *, is_strict: bool) -> tuple[int | None, int]:
    """Side of the tiles and bytes of one in the region; None and 0 where the first few that were looked at are empty.

    Raises:
        SourceError: They are empty, and the zoom was not the user's choice; or what comes is no tile.
    """
    places = list(_spread(service.grid, lonlat))
    for row, col in places:
        url = service.url(row, col)
        (tile,) = fetch([url], service.manners)
        if tile.content is not None and tile.sha256 not in service.placeholders:
            try:
                return side_of(tile.content), len(tile.content)
            except NotATileError as error:
                raise SourceError(f"{shown(url)}: {error}") from error
    if is_strict:
        raise SourceError(
            f"{service.shown}: no tile at zoom {service.grid.name} at {len(places)} places of the region {_text(lonlat)}; "
            "say --zoom if the service has another, or the same to go on"
        )
    return None, 0


def _spread(grid: TileGrid, lonlat: BaseGeometry) -> Iterator[tuple[int, int]]:
    """Some tiles of a region: one within it, then those of its corners."""
    seen = set()
    for part in parts_on(grid, lonlat)[:1]:
        inside, (minx, miny, maxx, maxy) = part.representative_point(), part.bounds
        xs = [inside.x, *np.linspace(minx, maxx, 6)[1:-1]]
        ys = [inside.y, *np.linspace(miny, maxy, 6)[1:-1]]
        for x, y in [(xs[0], ys[0]), (xs[1], ys[1]), (xs[4], ys[4]), (xs[1], ys[4]), (xs[4], ys[1])]:
            tiles = grid.tiles((float(x), float(y), float(x), float(y)))
            place = tiles.row, tiles.col
            if place not in seen and not tiles.is_empty:
                seen.add(place)
                yield place


def unkept(options: Service) -> tuple[str, ...]:
    """What a user should know of a cache folder that was named and does not do."""
    if options.cache is None:
        return ()
    try:
        Path(options.cache).mkdir(parents=True, exist_ok=True)
        reason = None if os.access(options.cache, os.W_OK | os.X_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror or str(error)
    told = f"--tile-cache {options.cache}: cannot be written ({reason}); no tile is kept, and each run asks for all"
    return () if reason is None else (told,)


def _with_hosts(access: Access, addresses: Sequence[str]) -> Access:
    """What the user typed may be reached."""
    typed = [host for address in addresses for host in typed_hosts(address)]
    return replace(access, hosts=tuple(dict.fromkeys([*access.hosts, *typed])))


def _manners(template: str, access: Access, options: Service) -> Manners:
    if options.concurrency < 1 or not (options.rate is None or 0 < options.rate < float("inf")):
        raise ConfigError(f"{options.concurrency} tiles at a time, {options.rate} a second: use 1 or more, and more than 0")
    for address in hosts_of(template):
        check_host(address, access)
        if scheme_of(address) not in WEB:
            raise ConfigError(f"{shown(address)}: map tiles come over http or https")
    host = host_port_of(hosts_of(template)[0]).removesuffix(":443").removesuffix(":80")
    return Manners(host, access, options.concurrency, options.rate, options.cache, tuple(sorted(options.empty)))


def _placeholders(texts: Sequence[str]) -> tuple[str, ...]:
    """sha256 of each, which may be given as that or as a file."""
    found = set()
    for text in texts:
        if len(text) == 64 and set(text.lower()) <= _HEX:
            found.add(text.lower())
            continue
        try:
            with Path(text).open("rb") as stream:
                content = stream.read(LARGEST_BYTES)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"placeholder {text}: neither 64 hexadecimal digits nor a file that can be read: {reason}"
            ) from error
        found.add(hashlib.sha256(content).hexdigest())
    return tuple(sorted(found))


def _text(lonlat: BaseGeometry) -> str:
    return "({})".format(", ".join(f"{value:.6g}" for value in lonlat.bounds))
