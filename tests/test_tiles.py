"""Map tiles: what a zoom level is, what a tile holds, how politely they are asked for, and what come of it."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas as gpd
import morecantile
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds

from geoinfer.anywhere import detect
from geoinfer.errors import ConfigError, RemoteError, SafetyError, SourceError, TooWideError
from geoinfer.estimate import plan
from geoinfer.grid import Window
from geoinfer.imagery import blocks, tiles
from geoinfer.imagery.locate import open_source
from geoinfer.imagery.meter import decoded
from geoinfer.imagery.options import Service, SourceOptions
from geoinfer.imagery.raster import RasterFile
from geoinfer.imagery.tiles import cache as tilecache
from geoinfer.imagery.tiles import fetching as tilefetch
from geoinfer.imagery.tiles import wmts
from geoinfer.imagery.tiles.grid import cells_near, choose_level, coarsest, lonlat_of, mercator_grid, pixel_m
from geoinfer.imagery.tiles.image import NotATileError, decode_tile
from geoinfer.imagery.tiles.service import check_template, hosts_of, quadkey, query_digest
from geoinfer.job import make_job
from geoinfer.pipeline import run
from geoinfer.region import Region
from geoinfer.remote import retry
from geoinfer.remote.access import Access
from geoinfer.scenes import generate_scene
from tests.standins import StandIn, spec_of, write_scene
from tests.tileserver import Served, answer, capabilities, show

MERCATOR = morecantile.tms.get("WebMercatorQuad")
ZOOM, ROW, COL = 19, 262_000, 318_900
"""A block of tiles a little south of the equator, away from the edges of cells."""
PATTERN = "pattern/{z}/{x}/{y}.png"


def pattern(row: int, col: int, height: int, width: int) -> np.ndarray:
    """(3, H, W) of absolute pixels: every pixel of the world has its own colour, or nearly."""
    rows, cols = np.mgrid[row : row + height, col : col + width]
    return np.stack([(rows * 7 + cols * 3) % 251 + 1, rows % 256, cols % 256]).astype(np.uint8)


def encode(pixels: np.ndarray, driver: str = "PNG", **options: Any) -> bytes:
    count, height, width = pixels.shape
    with MemoryFile() as memory:
        with rasterio.open(
            memory.name, "w", driver=driver, count=count, height=height, width=width, dtype=pixels.dtype, **options
        ) as file:
            file.write(pixels)
        return bytes(memory.read())


def region_of(row: int, col: int, rows: int, cols: int, zoom: int = ZOOM) -> Region:
    """Whole tiles, a little less on each side."""
    first, last = MERCATOR.bounds(col, row, zoom), MERCATOR.bounds(col + cols - 1, row + rows - 1, zoom)
    return Region.from_bbox((first.left + 1e-7, last.bottom + 1e-7, last.right - 1e-7, first.top - 1e-7))


@pytest.fixture(autouse=True)
def _as_if_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.01)
    begin_anew()


def begin_anew() -> None:
    """What another process would know: nothing."""
    tilefetch._STATES.clear()
    blocks.set_capacity()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Six by six tiles of the pattern, and what the tests put beside them."""
    root = tmp_path_factory.mktemp("odd")
    for row in range(ROW, ROW + 6):
        for col in range(COL, COL + 6):
            path = root / f"pattern/{ZOOM}/{col}/{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pattern(row * 256, col * 256, 256, 256)))
    with answer(root) as server:
        yield server


@pytest.fixture
def server(served: Served) -> Served:
    served.tell()
    return served


@pytest.fixture
def options(tmp_path: Path) -> SourceOptions:
    return SourceOptions(service=Service(cache=str(tmp_path / "cache")), access=Access(tries=3))


def opened(server: Served, options: SourceOptions, template: str = PATTERN, region: Region | None = None) -> RasterFile:
    where = region or region_of(ROW, COL, 6, 6)
    (file,) = tiles.open_service(f"xyz:{server.address}/{template}", options, gsd=0.3, region=where)
    return file


def serving(options: SourceOptions, **changes: Any) -> SourceOptions:
    from dataclasses import replace

    return replace(options, service=replace(options.service, **changes))


def at(file: RasterFile, row: int, col: int, height: int, width: int) -> Window:
    """Pixels counted from the first of the pattern, in a raster's own."""
    cell, side = file.service.cell, file.service.grid.side
    return Window(ROW * 256 - cell.row * side + row, COL * 256 - cell.col * side + col, height, width)


def tile_path(row: int, col: int) -> str:
    return f"pattern/{ZOOM}/{COL + col}/{ROW + row}.png"


# --- names and places --------------------------------------------------------------------------------------------------


@given(st.integers(0, 24), st.data())
def test_levels_lie_where_morecantile_says(zoom: int, data: st.DataObject) -> None:
    row, col = data.draw(st.integers(0, 2**zoom - 1)), data.draw(st.integers(0, 2**zoom - 1))
    grid, bounds = mercator_grid(zoom), MERCATOR.xy_bounds(col, row, zoom)
    corner = grid.transform(row, col)
    assert (corner.c, corner.f) == pytest.approx((bounds.left, bounds.top), abs=1e-6)
    assert corner.c + 256 * corner.a == pytest.approx(bounds.right, abs=1e-6)
    assert corner.f + 256 * corner.e == pytest.approx(bounds.bottom, abs=1e-6)
    inside = (bounds.left, bounds.bottom, bounds.right, bounds.top)
    assert grid.tiles(inside) == Window(row, col, 1, 1)
    assert quadkey(zoom, row, col) == MERCATOR.quadkey(col, row, zoom)


@given(st.floats(-80, 80), st.floats(0.1, 20))
def test_the_zoom_is_the_coarsest_that_shows_the_models_pixels(lat: float, gsd: float) -> None:
    lonlat = shapely.box(10.0, lat, 10.001, lat + 0.001)
    levels = [mercator_grid(zoom) for zoom in range(31)]
    chosen = int(coarsest(levels, gsd, lonlat).name)
    nearest = min(abs(lat), abs(lat + 0.001)) * (lat * (lat + 0.001) > 0)
    bounds = MERCATOR.bounds(*MERCATOR.tile(10.0005, nearest, 21))
    width_m = Geod(ellps="WGS84").inv(bounds.left, nearest, bounds.right, nearest)[2] / 256 * 2**21
    sizes = [width_m / 2**zoom for zoom in range(31)]  # of a pixel across; up it is the same within 0.7 %
    assert sizes[chosen] <= gsd * 1.02 * 1.007
    assert chosen == 0 or sizes[chosen - 1] > gsd * 1.02 * 0.993


def test_the_usual_zooms() -> None:
    def zoom(lat: float, gsd: float) -> str:
        return coarsest([mercator_grid(z) for z in range(31)], gsd, shapely.box(10, lat, 10.01, lat + 0.01)).name

    assert zoom(0.0, 0.3) == "19"
    assert zoom(5.6, 0.3) == "19"
    assert zoom(60.0, 0.3) == "18"
    assert zoom(45.0, 0.5) == "18"


def test_cells_cover_a_region_do_not_overlap_and_do_not_depend_on_it() -> None:
    grid = mercator_grid(19)
    assert grid.cell == 2048
    whole = list(cells_near(grid, shapely.box(39.0, -1.0, 41.5, 1.0)))
    corners = {(cell.row, cell.col) for cell in whole}
    assert len(corners) == len(whole)
    assert all(cell.row % 2048 == 0 and cell.col % 2048 == 0 and cell.height == cell.width == 2048 for cell in whole)
    for part in (shapely.box(39.1, 0.1, 39.2, 0.2), shapely.box(40.0, -0.9, 41.0, 0.9)):
        found = list(cells_near(grid, part))
        assert set(found) <= set(whole)
        needed = grid.tiles(mercator_bounds(part.bounds))
        assert sum(cell.intersection(needed).height * cell.intersection(needed).width for cell in found) == (
            needed.height * needed.width
        )


def mercator_bounds(bounds: tuple[float, ...]) -> tuple[float, float, float, float]:
    return transform_bounds("EPSG:4326", "EPSG:3857", *bounds)


def test_a_region_over_the_antimeridian_has_cells_at_both_ends() -> None:
    grid = mercator_grid(12)
    region = Region.from_bbox((179.5, -17.0, -179.5, -16.0))
    columns = {cell.col // grid.cell for cell in cells_near(grid, lonlat_of(region))}
    assert columns == {0, grid.cols // grid.cell - 1}


def test_pixels_end_where_mercator_ends() -> None:
    grid = mercator_grid(6)
    assert all(cell.stop_row <= grid.rows and cell.row >= 0 for cell in cells_near(grid, shapely.box(0, 80, 10, 90)))
    assert not list(cells_near(grid, shapely.box(0, 86, 10, 90)))
    assert pixel_m(grid, shapely.box(0, 86, 10, 90)) == 0.0


def test_rows_of_tms_count_from_the_bottom(server: Served, options: SourceOptions) -> None:
    (file,) = tiles.open_service(
        f"tms:{server.address}/pattern/{{z}}/{{x}}/{{y}}.png",
        serving(options, zoom=19),
        gsd=0.3,
        region=region_of(ROW, COL, 1, 1),
    )
    flipped = MERCATOR.matrix(19).matrixHeight - 1 - 7
    assert file.service.url(7, 9) == f"{server.address}/pattern/19/9/{flipped}.png"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("https://host/{z}/{x}.png", r"holds \{z\}, \{x\} and \{y\}"),
        ("https://host/tiles.png", "quote it for the shell"),
        ("https://host/{z}/{x}/{y}/{time}.png?key=secret", r"\{time\} means nothing"),
        ("ftp://host/{z}/{x}/{y}.png", "refused, ftp is no scheme"),
        ("file:///etc/{z}/{x}/{y}.png", "refused, file is no scheme"),
        ("s3://bucket/{z}/{x}/{y}.png", "http or https"),
        ("{z}/{x}/{y}.png", "refused"),
    ],
)
def test_an_address_that_cannot_work_is_one_clear_error(template: str, fault: str, options: SourceOptions) -> None:
    with pytest.raises((ConfigError, SafetyError, SourceError), match=fault) as caught:
        tiles.open_service(f"xyz:{template}", options, gsd=0.3, region=region_of(ROW, COL, 1, 1))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hosts_take_turns() -> None:
    template = check_template("xyz", "https://{s}.tiles.org/{z}/{x}/{y}{r}.png")
    assert hosts_of(template) == tuple(f"https://{host}.tiles.org/{{z}}/{{x}}/{{y}}{{r}}.png" for host in "abc")
    assert hosts_of("https://t{switch:0,1}.org/{q}") == ("https://t0.org/{q}", "https://t1.org/{q}")


def test_what_is_asked_for_counts_and_who_asks_does_not() -> None:
    def digest(query: str) -> str | None:
        return query_digest(f"https://host/{{z}}/{{x}}/{{y}}?{query}")

    assert digest("layer=a&key=1") == digest("layer=a&key=2") != digest("layer=b&key=1")
    assert digest("access_token=1") is None


# --- what a tile holds -------------------------------------------------------------------------------------------------


def test_every_way_to_store_a_tile_gives_its_colours() -> None:
    rgb = pattern(0, 0, 64, 64)
    opaque = (np.arange(64)[:, None] > np.arange(64)).astype(np.uint8) * 255
    pixels, valid = decode_tile(encode(rgb), 64)
    assert valid is None
    assert (pixels == rgb).all()
    for driver, extra in (("PNG", {}), ("WEBP", {"QUALITY": 100, "LOSSLESS": True, "EXACT": True})):
        pixels, valid = decode_tile(encode(np.stack([*rgb, opaque]), driver, **extra), 64)
        assert valid is not None
        assert (valid == (opaque != 0)).all()
        assert (pixels[:, valid] == rgb[:, valid]).all()
    pixels, valid = decode_tile(encode(np.stack([rgb[0], opaque])), 64)
    assert valid is not None
    assert (pixels == rgb[0]).all()
    assert (valid == (opaque != 0)).all()
    pixels, valid = decode_tile(encode(rgb[:1]), 64)
    assert valid is None
    assert (pixels == rgb[0]).all()
    smooth = np.full((3, 64, 64), 90, np.uint8) + np.arange(64, dtype=np.uint8)
    pixels, valid = decode_tile(encode(smooth, "JPEG", QUALITY=95), 64)
    assert valid is None
    assert np.abs(pixels.astype(int) - smooth).max() <= 6  # JPEG loses a little


def test_palettes_and_transparent_colours() -> None:
    index = (np.arange(64 * 64).reshape(1, 64, 64) % 3).astype(np.uint8)
    colours = {0: (10, 20, 30, 255), 1: (200, 100, 50, 255), 2: (1, 2, 3, 0)}
    for driver in ("PNG", "GIF"):
        with MemoryFile() as memory:
            with memory.open(driver=driver, count=1, height=64, width=64, dtype="uint8", nodata=2) as file:
                file.write(index)
                file.write_colormap(1, colours)
            content = bytes(memory.read())
        pixels, valid = decode_tile(content, 64)
        assert valid is not None
        assert (valid == (index[0] != 2)).all(), driver
        for entry in (0, 1):
            assert (colours[entry][:3] == pixels[:, index[0] == entry].T).all(), driver
    pixels, valid = decode_tile(encode(np.repeat(index * 60, 3, axis=0), nodata=60), 64)
    assert valid is not None
    assert (valid == (index[0] != 1)).all()


def test_a_tile_black_all_over_is_nothing() -> None:
    black = np.zeros((3, 64, 64), np.uint8)
    for content in (encode(black), encode(black, "JPEG"), encode(black[:1])):
        _, valid = decode_tile(content, 64)
        assert valid is not None
        assert not valid.any()
    dark = black.copy()
    dark[0, 3, 4] = 1
    assert decode_tile(encode(dark), 64)[1] is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"<html>go away</html>", "not an image"),
        (b"II*\x00 no TIFF either", "not an image"),
        (b"<VRTDataset rasterXSize='9'/>", "not an image"),
        (encode(np.ones((3, 64, 64), np.uint8)), "64 x 64 px; tiles of 32 x 32"),
        (encode(np.ones((3, 32, 32), np.uint16)), "uint16"),
        (encode(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))[:900], "cut off"),
    ],
)
def test_what_is_no_tile_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(NotATileError, match=fault):
        decode_tile(content, 32)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    begun = time.monotonic()
    with pytest.raises(NotATileError, match=r"60000 x 60000 px, larger than 4096|cannot be read"):
        decode_tile(bomb, 256)
    assert time.monotonic() - begun < 1


# --- how they are asked for --------------------------------------------------------------------------------------------


def test_any_window_shows_the_pixels_of_the_tiles_under_it(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    assert file.service.grid.name == "19"
    assert file.block == (256, 256)
    rng = np.random.default_rng(5)
    for _ in range(12):
        row, col = (int(value) for value in rng.integers(0, 1200, 2))
        height, width = (int(value) for value in rng.integers(1, 330, 2))
        window = at(file, row, col, height, width)
        pixels, valid = tiles.decode(file, window)
        assert valid is None
        assert (pixels == pattern(ROW * 256 + row, COL * 256 + col, height, width)).all()
        through, known = blocks.read_window(file, window)
        assert known is None
        assert (through == pixels).all()


def test_bands_come_in_the_order_asked_for(server: Served, options: SourceOptions) -> None:
    from dataclasses import replace

    file = opened(server, replace(options, bands=(3, 2, 1)))
    pixels, _ = tiles.decode(file, at(file, 0, 0, 10, 10))
    assert (pixels == pattern(ROW * 256, COL * 256, 10, 10)[::-1]).all()
    with pytest.raises(ConfigError, match="bands 4"):
        opened(server, replace(options, bands=(4,)))


def test_each_tile_is_asked_for_once_whoever_wants_it(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    asked = decoded().requests
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda shift: _read_and_count(file, at(file, shift, shift, 700, 700)), range(8)))
    paths = [hit["path"] for hit in server.hits]
    assert sorted(paths) == sorted(set(paths))
    assert len(paths) == sum(counts) + 1  # the one that showed how large tiles are came before
    assert decoded().requests == asked


def _read_and_count(file: RasterFile, window: Window) -> int:
    before = decoded()
    pixels, _ = blocks.read_window(file, window)
    assert pixels.any()
    return decoded().requests - before.requests


def test_no_more_requests_at_a_time_than_allowed(server: Served, options: SourceOptions) -> None:
    file = opened(server, serving(options, concurrency=2))
    server.tell(every={"delay": 0.03})
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda col: tiles.prefetch(file, [at(file, 0, col * 256, 1536, 256)]), range(6)))
    assert max(hit["under_way"] for hit in server.hits) == 2


def test_no_more_requests_a_second_than_allowed(server: Served, options: SourceOptions) -> None:
    file = opened(server, serving(options, rate=20.0))
    server.tell()
    tiles.prefetch(file, [at(file, 0, 0, 512, 1536)])
    times = sorted(hit["time"] for hit in server.hits)
    assert len(times) >= 11
    assert times[-1] - times[0] >= (len(times) - 1) / 20 - 0.1


ASK = """
import sys
from geoinfer.imagery.tiles import fetching as tilefetch
from geoinfer.remote.access import Access
address, cache, number = sys.argv[1:]
manners = tilefetch.Manners("service", Access(hosts=(address,)), 2, 25.0, cache, (204, 404))
tilefetch.fetch([f"http://{address}/pattern/19/{318900 + col}/{262000 + int(number)}.png" for col in range(6)], manners)
"""


def test_processes_take_turns(server: Served, tmp_path: Path) -> None:
    server.tell(every={"delay": 0.06})
    command = [sys.executable, "-c", ASK, server.host, str(tmp_path)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    hits = server.hits
    assert len(hits) == len({hit["path"] for hit in hits}) == 12
    assert max(hit["under_way"] for hit in hits) <= 2
    times = sorted(hit["time"] for hit in hits)
    assert times[-1] - times[0] >= 11 / 25 - 0.1


@pytest.mark.parametrize("status", [204, 404])
def test_nothing_here_is_nodata_and_no_black_pixel_is_valid(status: int, server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    server.tell(**{tile_path(1, 1): {"status": status}})
    _, valid = tiles.decode(file, at(file, 0, 0, 768, 768))
    assert valid is not None
    expected = np.ones((768, 768), bool)
    expected[256:512, 256:512] = False
    assert (valid == expected).all()
    source = open_source(
        [f"xyz:{server.address}/{PATTERN}"],
        options,
        gsd=0.3,
        core=32,
        region=region_of(ROW, COL, 6, 6),
        crs=CRS.from_epsg(32637),
    )
    image = source.read(source.grid.covering(transform_bounds("EPSG:4326", "EPSG:32637", *tile_bounds(1, 1))))
    inner = image.valid[20:-20, 20:-20]
    assert not inner.any()
    assert (image.pixels[:, ~image.valid] == 127).all()


def tile_bounds(row: int, col: int) -> tuple[float, float, float, float]:
    return tuple(MERCATOR.bounds(COL + col, ROW + row, ZOOM))


def test_other_statuses_can_mean_nothing_and_403_does_not_by_itself(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    server.tell(**{tile_path(2, 2): {"status": 403}})
    with pytest.raises(SourceError, match=r"the server says 403; does the address hold a key") as caught:
        tiles.decode(file, at(file, 512, 512, 256, 256))
    assert caught.value.exit_code == 4
    assert len(server.hits) == 1  # no retry
    lenient = opened(server, serving(options, empty=(204, 403, 404)))
    _, valid = tiles.decode(lenient, at(lenient, 512, 512, 256, 256))
    assert valid is not None
    assert not valid.any()
    assert lenient.service.identity != file.service.identity


def test_failures_that_pass_are_waited_out_and_counted(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    slow = {"status": 429, "times": 1, "headers": {"Retry-After": "1"}}
    server.tell(**{tile_path(3, 3): {"status": 503, "times": 2}, tile_path(3, 4): slow})
    before, begun = decoded(), time.monotonic()
    pixels, valid = tiles.decode(file, at(file, 768, 768, 256, 512))
    assert valid is None
    assert (pixels == pattern(ROW * 256 + 768, COL * 256 + 768, 256, 512)).all()
    assert time.monotonic() - begun >= 1.0
    assert decoded().retries - before.retries == 3
    assert decoded().requests - before.requests == 5


def test_failures_that_do_not_pass_are_a_remote_error(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)
    server.tell(every={"status": 503})
    with pytest.raises(RemoteError, match=r"no answer after 3 tries \(503") as caught:
        tiles.decode(file, at(file, 1024, 1024, 256, 256))
    assert caught.value.exit_code == 6
    assert len(server.hits) == 3
    server.tell()
    assert tiles.decode(file, at(file, 1024, 1024, 256, 256))[1] is None  # a failure is not kept


def test_a_damaged_tile_is_asked_for_again_past_all_that_is_kept(server: Served, options: SourceOptions) -> None:
    whole = (server.root / tile_path(4, 4)).read_bytes()
    (server.root / "damaged.png").write_bytes(whole[:400] + bytes(64) + whole[464:])
    file = opened(server, options)
    server.tell(**{tile_path(4, 4): {"file": "damaged.png", "times": 1}})
    pixels, _ = tiles.decode(file, at(file, 1024, 1024, 256, 256))
    assert (pixels == pattern(ROW * 256 + 1024, COL * 256 + 1024, 256, 256)).all()
    assert len(server.hits) == 2
    begin_anew()
    server.tell(**{tile_path(4, 5): {"file": "damaged.png"}})
    with pytest.raises(SourceError, match=r"5\.png|/262004.png.*a PNG that cannot be read"):
        tiles.decode(file, at(file, 1024, 1280, 256, 256))
    assert len(server.hits) == 2


def test_a_page_instead_of_a_tile_is_an_error_not_nodata(server: Served, options: SourceOptions) -> None:
    (server.root / "page.html").write_text("<html>Please log in</html>")
    file = opened(server, options)
    server.tell(**{tile_path(5, 5): {"file": "page.html"}})
    with pytest.raises(SourceError, match=r"262005\.png: not an image \(first bytes b'<html>Pleas"):
        tiles.decode(file, at(file, 1280, 1280, 256, 256))
    with pytest.raises(SourceError, match="not an image"):
        opened(server, options, "page.html?{z}{x}{y}")


def test_placeholders_are_nodata_by_hash_or_by_file(server: Served, options: SourceOptions) -> None:
    grey = encode(np.full((3, 256, 256), 200, np.uint8))
    (server.root / "grey.png").write_bytes(grey)
    server.tell(**{tile_path(0, 1): {"file": "grey.png"}})
    for placeholder in (hashlib.sha256(grey).hexdigest().upper(), str(server.root / "grey.png")):
        begin_anew()
        file = opened(server, serving(options, placeholders=(placeholder,)))
        _, valid = tiles.decode(file, at(file, 0, 0, 256, 768))
        assert valid is not None
        assert (valid.all(axis=0) == np.repeat([True, False, True], 256)).all()
        assert file.service.snapshot()["placeholders"] == [hashlib.sha256(grey).hexdigest()]
    with pytest.raises(ConfigError, match=r"placeholder nowhere\.png: neither 64 hexadecimal digits nor a file"):
        opened(server, serving(options, placeholders=("nowhere.png",)))


def test_the_same_tile_at_several_places_is_told_and_kept(server: Served, options: SourceOptions) -> None:
    grey = encode(np.full((3, 256, 256), 201, np.uint8))
    (server.root / "again.png").write_bytes(grey)
    file = opened(server, options)
    server.tell(**{tile_path(row, 2): {"file": "again.png"} for row in range(2)})
    _, valid = tiles.decode(file, at(file, 0, 0, 512, 1024))
    assert valid is None
    assert tiles.suspects() == []
    server.tell(**{tile_path(row, 2): {"file": "again.png"} for row in range(6)})
    _, valid = tiles.decode(file, at(file, 0, 0, 1536, 1024))
    assert valid is None
    (line,) = tiles.suspects()
    assert f"--placeholder {hashlib.sha256(grey).hexdigest()}" in line


def test_tiles_are_kept_as_long_as_the_server_says(server: Served, options: SourceOptions) -> None:
    file = opened(server, options)

    def read(**rule: Any) -> list[int]:
        server.tell(**({"every": rule} if rule else {}))
        begin_anew()
        pixels, _ = tiles.decode(file, at(file, 0, 0, 256, 512))
        assert (pixels == pattern(ROW * 256, COL * 256, 256, 512)).all()
        return [hit["status"] for hit in server.hits]

    assert read(headers={"Cache-Control": "max-age=0"})  # one may be known from opening
    assert read(headers={"Cache-Control": "max-age=3600"})[-1:] == [304]
    assert read() == []  # fresh: nobody is asked
    for path in sorted(Path(str(options.service.cache)).rglob("*")):
        assert path.is_dir() or b"127.0.0.1" not in path.read_bytes().partition(b"\n")[0]
    server.tell(every={"headers": {"Cache-Control": "no-store"}})
    unkept = opened(server, serving(options, cache=str(server.root / "unkept")))
    tiles.decode(unkept, at(unkept, 0, 0, 512, 512))
    assert not list((server.root / "unkept").glob("??/*"))
    count = len(server.hits)
    tiles.decode(unkept, at(unkept, 0, 0, 512, 512))
    assert len(server.hits) == count  # the same run need not ask again


def test_a_cache_that_cannot_be_written_is_no_error(server: Served, options: SourceOptions, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    file = opened(server, serving(options, cache=str(tmp_path / "a-file")))
    assert tiles.decode(file, at(file, 0, 0, 300, 300))[1] is None
    told = tiles.unkept(Service(cache=str(tmp_path / "a-file")))
    assert "a-file: cannot be written" in told[0]
    assert tiles.unkept(Service(cache=str(tmp_path / "made" / "anew"))) == tiles.unkept(Service()) == ()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, tilecache.KEEP_S),
        ({"cache-control": "public, max-age=60"}, 60.0),
        ({"cache-control": "max-age=60", "age": "50"}, 10.0),
        ({"cache-control": "no-cache, max-age=60"}, 0.0),
        ({"cache-control": "no-store"}, 0.0),
        ({"cache-control": "s-maxage=9"}, tilecache.KEEP_S),
        ({"expires": "Thu, 01 Jan 1970 00:01:40 GMT"}, 100.0),
        ({"expires": "0"}, 0.0),
        ({"cache-control": "max-age=99999999999"}, tilecache.MOST_S),
    ],
)
def test_how_long_an_answer_may_be_used(headers: dict[str, str], seconds: float) -> None:
    assert tilecache.lifetime(headers, 0.0, is_empty=False) == seconds


def test_a_damaged_entry_counts_as_missing_and_the_folder_is_bounded(tmp_path: Path) -> None:
    stored = tilecache.Answer.of(200, {}, b"x" * 1000, 0.0)
    for number in range(30):
        key = tilecache.key_of(str(number))
        tilecache.save(tmp_path, key, stored)
        used = time.time() - 100_000 + number
        os.utime(tmp_path / key[:2] / key[2:], (used, used))
    assert tilecache.load(tmp_path, tilecache.key_of("3")) == stored
    path = tmp_path / tilecache.key_of("4")[:2] / tilecache.key_of("4")[2:]
    path.write_bytes(path.read_bytes()[:-1])
    assert tilecache.load(tmp_path, tilecache.key_of("4")) is None
    tilecache.sweep(tmp_path, 12_000)
    left = [number for number in range(30) if tilecache.load(tmp_path, tilecache.key_of(str(number))) is not None]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 12_000
    assert 3 in left  # it was used a moment ago
    assert [number for number in left if number != 3] == list(range(31 - len(left), 30))


def test_a_service_travels_to_workers_and_shows_no_secret(server: Served, options: SourceOptions) -> None:
    file = opened(server, options, PATTERN + "?api_key=s3cr3t&layer=x")
    again = pickle.loads(pickle.dumps(file))
    assert again == file
    assert (tiles.decode(again, at(again, 0, 0, 9, 9))[0] == pattern(ROW * 256, COL * 256, 9, 9)).all()
    told = repr(file) + str(file.service.snapshot()) + file.path + file.name + file.shown
    assert "s3cr3t" not in told
    server.tell(every={"status": 403})
    with pytest.raises(SourceError) as caught:
        tiles.decode(file, at(file, 600, 600, 9, 9))
    assert "s3cr3t" not in str(caught.value)


def test_a_region_without_tiles_and_one_with_too_many(server: Served, options: SourceOptions) -> None:
    with pytest.raises(SourceError, match=r"no tile at zoom 19 at \d places of the region .*--zoom"):
        opened(server, options, region=region_of(ROW + 40, COL + 40, 3, 3))
    file = opened(server, serving(options, zoom=19), region=region_of(ROW + 40, COL + 40, 3, 3))
    _, valid = tiles.decode(file, at(file, 0, 40 * 256, 256, 256))
    assert valid is not None
    assert not valid.any()
    with pytest.raises(
        ConfigError, match=r"needs about [\d,]+ tiles at zoom 19, more than 1,000,000; take a smaller region"
    ):
        tiles.open_service(
            f"xyz:{server.address}/{PATTERN}", serving(options, zoom=19), gsd=0.3, region=Region.from_bbox((38, -1, 40, 1))
        )
    with pytest.raises(ConfigError, match="no zoom 31; it has 0 to 30"):
        opened(server, serving(options, zoom=31))


def test_larger_tiles_take_a_coarser_zoom(server: Served, options: SourceOptions) -> None:
    row, col = ROW // 2, COL // 2
    for down in range(3):
        path = server.root / f"large/{ZOOM - 1}/{col}/{row + down}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pattern((row + down) * 512, col * 512, 512, 512)))
    (server.root / "large/any.png").write_bytes(encode(np.ones((3, 512, 512), np.uint8)))
    server.tell(**{f"large/{ZOOM}/{2 * col}/{y}.png": {"file": "large/any.png"} for y in range(2 * row, 2 * row + 6)})
    file = opened(server, options, "large/{z}/{x}/{y}.png", region_of(row, col, 3, 1, ZOOM - 1))
    assert (file.service.grid.name, file.block) == ("18", (512, 512))
    assert file.transform.a == pytest.approx(MERCATOR.matrix(19).cellSize)
    pixels, _ = tiles.decode(file, at(file, 100, 10, 700, 400))
    assert (pixels == pattern(ROW // 2 * 512 + 100, COL // 2 * 512 + 10, 700, 400)).all()


# --- capabilities ------------------------------------------------------------------------------------------------------

WORLDS = ("WorldCRS84Quad", "WebMercatorQuad", "UTM31WGS84Quad", "EuropeanETRS89_LAEAQuad", "NZTM2000Quad")


@pytest.mark.parametrize("name", WORLDS)
def test_levels_of_capabilities_are_morecantiles(name: str) -> None:
    known = morecantile.tms.get(name)
    found = wmts.read_capabilities(capabilities("scene.tif", (name,)).encode(), "https://host/wmts", "wmts", None)
    assert (found.layer, found.matrix_set) == ("scene.tif", name)
    assert found.template == (
        f"https://host/tiles/{name}/{{z}}/{{x}}/{{y}}.png?scene=scene.tif&resampling=bilinear&reproject=bilinear"
    )
    assert len(found.grids) == min(26, len(known.tileMatrices))
    for grid, matrix in zip(found.grids, known.tileMatrices, strict=False):
        bounds = known.xy_bounds(morecantile.Tile(matrix.matrixWidth // 2, matrix.matrixHeight // 3, int(matrix.id)))
        corner = grid.transform(matrix.matrixHeight // 3, matrix.matrixWidth // 2)
        noise = grid.pixel * 1e-3
        assert (corner.c, corner.f) == pytest.approx((bounds.left, bounds.top), abs=noise)
        assert grid.pixel == pytest.approx(matrix.cellSize, rel=1e-8)
        assert (grid.rows, grid.cols, grid.side) == (matrix.matrixHeight, matrix.matrixWidth, matrix.tileWidth)


def test_rounded_scales_of_the_well_known_set_add_up_to_nothing() -> None:
    text = capabilities("scene.tif", ("WebMercatorQuad",))
    rough = wmts.read_capabilities(text.replace("1066.364791924892", "1066.36").encode(), "https://host/", "wmts", None)
    assert "1066.364791924892" in text
    assert choose_level(rough.grids, 19, "wmts").pixel == mercator_grid(19).pixel


def test_of_several_sets_mercator_comes_first_then_metres_then_degrees() -> None:
    def chosen(*names: str) -> str:
        return wmts.read_capabilities(capabilities("s", names).encode(), "https://host/", "wmts", None).matrix_set

    assert chosen(*WORLDS[:3]) == "WebMercatorQuad"
    assert chosen("WorldCRS84Quad", "UTM31WGS84Quad") == "UTM31WGS84Quad"


KVP = """<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1"
  xmlns:xlink="http://www.w3.org/1999/xlink"><ows:OperationsMetadata><ows:Operation name="GetTile"><ows:DCP><ows:HTTP>
  <ows:Get xlink:href="{href}"><ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>KVP</ows:Value>
  </ows:AllowedValues></ows:Constraint></ows:Get></ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata>
  <Contents>{layers}{sets}</Contents></Capabilities>"""


def kvp(href: str, layers: str) -> bytes:
    sets = capabilities("s", ("WebMercatorQuad",))
    return KVP.format(
        href=href, layers=layers, sets=sets[sets.index("<TileMatrixSet><ows") : sets.index("</Contents>")]
    ).encode()


LAYER = """<Layer><ows:Identifier>{name}</ows:Identifier><Style><ows:Identifier>plain</ows:Identifier></Style>
  <Style isDefault="true"><ows:Identifier>a b</ows:Identifier></Style><Format>image/jpeg</Format><Format>image/png</Format>
  <Dimension><ows:Identifier>Time</ows:Identifier><Default>2024</Default><Value>2023</Value></Dimension>
  <TileMatrixSetLink><TileMatrixSet>WebMercatorQuad</TileMatrixSet><TileMatrixSetLimits><TileMatrixLimits>
  <TileMatrix>3</TileMatrix><MinTileRow>2</MinTileRow><MaxTileRow>4</MaxTileRow><MinTileCol>1</MinTileCol>
  <MaxTileCol>1</MaxTileCol></TileMatrixLimits></TileMatrixSetLimits></TileMatrixSetLink></Layer>"""


def test_tiles_by_key_and_value_with_style_dimension_and_limits() -> None:
    document = kvp("https://host/wmts?map=a", LAYER.format(name="photo"))
    found = wmts.read_capabilities(document, "https://host/", "wmts", None)
    assert found.template == (
        "https://host/wmts?map=a&SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&LAYER=photo&STYLE=a+b&FORMAT=image%2Fpng&Time=2024"
        "&TILEMATRIXSET=WebMercatorQuad&TILEMATRIX={z}&TILEROW={y}&TILECOL={x}"
    )
    assert found.grids[3].extent == Window(2, 1, 3, 1)
    assert found.grids[2].extent == Window(0, 0, 4, 4)


def test_a_layer_must_be_chosen_where_there_are_several() -> None:
    document = kvp("https://host/wmts", LAYER.format(name="photo") + LAYER.format(name="map"))
    with pytest.raises(ConfigError, match="offers 2 layers; choose one with --wmts-layer: photo, map"):
        wmts.read_capabilities(document, "https://host/", "wmts", None)
    with pytest.raises(ConfigError, match="no layer 'foto'; it has photo, map"):
        wmts.read_capabilities(document, "https://host/", "wmts", "foto")
    assert wmts.read_capabilities(document, "https://host/", "wmts", "map").layer == "map"


@pytest.mark.parametrize(
    ("document", "error", "fault"),
    [
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><Capabilities>&x;</Capabilities>',
            SafetyError,
            "document type",
        ),
        (b'<?xml version="1.0"?><!DOCTYPE Capabilities><Capabilities/>', SafetyError, "document type"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'.encode("utf-16"), SafetyError, "document type"),
        (b"<a>" * 100, SafetyError, "nested more than 64"),
        (b"<html><body>not here</body></html>", SourceError, "not the capabilities of a WMTS"),
        (b"<WMS_Capabilities/>", SourceError, "<WMS_Capabilities>"),
        (b"<Capabilities><Contents></Capabilities>", SourceError, "not XML"),
        (b"", SourceError, "not XML"),
        (b"<Capabilities>&undefined;</Capabilities>", SourceError, "not XML"),
        (b"<Capabilities><Contents/></Capabilities>", SourceError, "offers no layer"),
    ],
)
def test_xml_that_is_refused(document: bytes, error: type[Exception], fault: str) -> None:
    with pytest.raises(error, match=fault):
        wmts.read_capabilities(document, "https://host/", "wmts:https://host/", None)


@pytest.mark.parametrize(
    "template",
    ["http://169.254.169.254/{z}", "file:///etc/{z}", "http://127.0.0.1:1/{z}", "http://[::ffff:127.0.0.1]:1/{z}"],
)
def test_capabilities_cannot_lead_to_where_the_user_did_not_point(
    template: str, server: Served, options: SourceOptions
) -> None:
    document = capabilities("s", ("WebMercatorQuad",)).replace(
        "/tiles/{TileMatrixSet}/{TileMatrix}", template.replace("{z}", "{TileMatrix}")
    )
    (server.root / "evil.xml").write_text(document)
    with pytest.raises(SafetyError, match="refused"):
        tiles.open_service(f"wmts:{server.address}/evil.xml", options, gsd=0.3, region=region_of(ROW, COL, 1, 1))
    assert [hit["path"] for hit in server.hits] == ["/evil.xml"]


def test_nobody_is_asked_on_a_host_that_was_not_named(server: Served, options: SourceOptions) -> None:
    moved = {"status": 302, "headers": {"Location": "http://169.254.169.254/latest/meta-data"}}
    file = opened(server, options)
    server.tell(**{tile_path(0, 5): moved})
    with pytest.raises(SafetyError, match="refused"):
        tiles.decode(file, at(file, 0, 1280, 256, 256))


# --- from end to end ---------------------------------------------------------------------------------------------------

MODEL = StandIn(spec_of(gsd=0.5))
UTM = CRS.from_epsg(32637)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """titiler over a generated scene, its place given away by buildings with sharp edges."""
    root = tmp_path_factory.mktemp("titiler")
    scene = generate_scene(11, 640, 0.5, style="suburb", water="none")
    pixels = np.clip(scene.image.astype(int) // 2 + (scene.instances > 0) * 120, 1, 255).astype(np.uint8)
    write_scene(
        root / "scene.tif", pixels, (500_007.0, 20_003.5), 0.5, crs="EPSG:32637", tiled=True, blockxsize=256, blockysize=256
    )
    with show(root) as server:
        yield server


def xyz(shown: Served) -> str:
    tail = "{z}/{x}/{y}.png?scene=scene.tif&resampling=bilinear&reproject=bilinear"
    return f"xyz:{shown.address}/tiles/WebMercatorQuad/{tail}"


def inner_box(shown: Served, margin: float = 10.0) -> tuple[float, ...]:
    with rasterio.open(shown.root / "scene.tif") as file:
        left, bottom, right, top = file.bounds
    box = left + margin, bottom + margin, right - margin, top - margin
    return box


def found_through(text: str, options: SourceOptions, box: tuple[float, ...]) -> gpd.GeoDataFrame:
    region = Region.from_bbox(box, UTM)
    source = open_source([text], options, gsd=0.5, core=MODEL.spec.chips.core, region=region, crs=UTM)
    return detect(source, MODEL, region=region)


def same_within_a_pixel(found: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> None:
    """Resampling twice moves an edge by less than a pixel of the model, so no outline differs by more."""
    first, second = found.union_all(), truth.union_all()
    assert shapely.intersection(first, second).area / shapely.union(first, second).area > 0.95
    beyond = shapely.symmetric_difference(first, second).difference(second.boundary.buffer(0.75))
    assert beyond.area < 0.001 * second.area
    whole = truth[(truth.area_in_meters > 30) & ~truth.truncated]
    assert len(whole) > 20
    shares = [(found.intersection(shape).area / found.union(shape).area).max() for shape in whole.geometry]
    assert min(shares) > 0.8  # half a pixel around 30 m2 is a fifth of it
    assert np.median(shares) > 0.95


def test_footprints_through_xyz_are_those_of_the_file(shown: Served, options: SourceOptions) -> None:
    box = inner_box(shown)
    truth = found_through(str(shown.root / "scene.tif"), options, box)
    found = found_through(xyz(shown), options, box)
    same_within_a_pixel(found, truth)
    assert set(found.imagery) == {f"{shown.host} z19"}
    for kind, sets in (("wmts", "WebMercatorQuad"), ("wmts", "WorldCRS84Quad")):
        again = found_through(f"{kind}:{shown.address}/WMTSCapabilities.xml?scene=scene.tif&sets={sets}", options, box)
        if sets == "WebMercatorQuad":
            assert again.geometry.equals(found.geometry)  # the very same tiles
            assert list(again.confidence) == list(found.confidence)
        else:
            same_within_a_pixel(again, truth)


def test_a_place_has_one_grid_whatever_is_asked_for_across_a_border_of_zones(tmp_path: Path, options: SourceOptions) -> None:
    scene = generate_scene(11, 512, 0.5, style="suburb", water="none")
    pixels = np.clip(scene.image.astype(int) // 2 + (scene.instances > 0) * 120, 1, 255).astype(np.uint8)
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(6.0, 1.0)  # between zones 31 and 32
    write_scene(tmp_path / "scene.tif", pixels, (x - 128.0, y), 0.5, crs="EPSG:3857", tiled=True)
    with show(tmp_path) as served:
        source = xyz(served)
        asked = {"bbox_crs": "EPSG:3857", "imagery": options}
        with pytest.raises(TooWideError, match="more than one UTM zone"):
            open_source([source], asked["imagery"], gsd=0.5, core=32, region=Region.from_bbox((5.9, 1.0, 6.1, 1.1)))
        whole = detect(source, MODEL, bbox=(x - 120.0, y - 248.0, x + 120.0, y - 8.0), **asked)
        west = detect(source, MODEL, bbox=(x - 120.0, y - 248.0, x - 8.0, y - 8.0), **asked)
    assert whole.crs == 4326
    assert {name.partition("-")[0] for name in whole.id} == {"31N", "32N"}
    assert west.crs == 32631
    inner = west[~west.truncated]
    assert len(inner) > 5
    assert set("31N-" + inner.id) <= set(whole.id)


def test_a_smaller_region_finds_the_same_interior_footprints(shown: Served, options: SourceOptions) -> None:
    left, bottom, right, top = inner_box(shown)
    whole = found_through(xyz(shown), options, (left, bottom, right, top))
    begin_anew()
    box = left + 60.2, bottom + 70.4, right - 50.1, top - 90.3
    part = found_through(xyz(shown), options, box)
    inside = part[~part.truncated & part.within(shapely.box(*box).buffer(-1.0))]
    assert len(inside) > 5
    known = whole[whole.id.isin(inside.id)]
    assert known.geometry.to_wkb().tolist() == inside.geometry.to_wkb().tolist()
    assert known.confidence.tolist() == inside.confidence.tolist()


def test_what_the_service_does_not_cover_is_nodata(shown: Served, options: SourceOptions) -> None:
    left, bottom, right, top = inner_box(shown, 0.0)
    region = Region.from_bbox((left - 200.0, bottom + 20, right - 20, top - 20), UTM)
    source = open_source([xyz(shown)], options, gsd=0.5, core=32, region=region, crs=UTM)
    outside = source.read(source.grid.covering((left - 190.0, bottom + 50, left - 3.0, bottom + 150)))
    assert not outside.valid.any()
    inside = source.read(source.grid.covering((left + 3.0, bottom + 50, left + 190.0, bottom + 150)))
    assert inside.valid.all()


def test_one_run_asks_for_each_tile_once_and_the_next_for_none(shown: Served, options: SourceOptions) -> None:
    shown.forget()
    box = inner_box(shown, 60.0)
    found_through(xyz(shown), options, box)
    paths = [hit["path"] for hit in shown.hits]
    assert len(paths) == len(set(paths))
    begin_anew()
    shown.forget()
    found_through(xyz(shown), options, box)
    assert not shown.hits


def test_a_run_directory_holds_no_secret_and_says_where_pixels_came_from(
    shown: Served, options: SourceOptions, tmp_path: Path
) -> None:
    box = inner_box(shown, 90.0)
    job = make_job(xyz(shown) + "&api_key=s3cr3t", model=MODEL, region=Region.from_bbox(box, UTM), imagery=options)
    planned = plan(job)
    shown.forget()
    done = run(job, tmp_path / "run")
    assert planned.requests == len(shown.hits)
    (imagery,) = done.manifest["job"]["imagery"]
    assert imagery["template"] == f"{shown.address}/tiles/WebMercatorQuad/{{z}}/{{x}}/{{y}}.png"
    assert (imagery["service"], imagery["zoom"]) == ("xyz", "19")
    assert len(imagery["query"]) == 64
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"s3cr3t" not in path.read_bytes()


def test_pixels_go_on_over_the_antimeridian(server: Served, options: SourceOptions) -> None:
    lat, zoom = -16.5, 17
    count = 2**zoom
    row = MERCATOR.tile(179.9999, lat, zoom).y
    ramp = np.arange(-1024, 1024)  # columns from the antimeridian
    for offset in range(-4, 4):
        column = (np.clip(ramp[(offset + 4) * 256 : (offset + 5) * 256] // 12 + 128, 1, 255)).astype(np.uint8)
        pixels = np.broadcast_to(column, (3, 256, 256)).copy()
        for down in range(4):
            path = server.root / f"date/{zoom}/{offset % count}/{row + down}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    west, north = MERCATOR.bounds(count - 4, row, zoom)[0], MERCATOR.bounds(0, row, zoom).top
    east, south = MERCATOR.bounds(3, row, zoom).right, MERCATOR.bounds(0, row + 3, zoom).bottom
    region = Region.from_bbox((west + 1e-4, south + 1e-4, east - 1e-4, north - 1e-4))
    source = open_source(
        [f"xyz:{server.address}/date/{{z}}/{{x}}/{{y}}.png"],
        options,
        gsd=1.2,
        core=32,
        region=region,
        crs=CRS.from_epsg(32701),
    )
    assert len(source.rasters) == 2
    to_grid = Transformer.from_crs(4326, 32701, always_xy=True)
    x, y = to_grid.transform(180.0, (north + south) / 2)
    image = source.read(source.grid.covering((x - 800, y - 200, x + 800, y + 200)))
    assert image.valid.all()
    steps = np.diff(image.pixels[0, 170].astype(int))
    assert steps.min() >= 0
    assert steps.max() <= 1
    assert image.pixels[0, 170, 0] < 80 < 180 < image.pixels[0, 170, -1]
