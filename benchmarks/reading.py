"""Reading imagery: what chips cost over rasterio's own decoding, how much is decoded twice, resampling against GDAL's.

    python -m benchmarks.reading [--side 8192] [--repeat 3]

Processor time of one thread, best of several runs, so that other work on the machine counts little. Chips are as a run asks
for them: 1280 px with a margin of 64, in strips that turn at each end; delivered are the pixels of their cores. GDAL
resamples from memory in one call, we from decoded blocks, chip by chip.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window as RasterioWindow

from benchmarks.imagery import scene
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.grid import Window
from geoinfer.imagery import RasterSource, blocks, open_raster, resample
from geoinfer.imagery.meter import decoded

CHIP, MARGIN = 1280, 64
PLACE = (-0.2, 5.58)
"""Longitude and latitude."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "deflate tiles of 512": {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"},
    "deflate strips of 1 row": {"blockysize": 1, "interleave": "pixel"},
    "deflate strips of 64 rows": {"blockysize": 64, "interleave": "pixel"},
}


@dataclass(frozen=True, slots=True)
class Warp:
    """A way of resampling."""

    name: str
    crs: str
    size: float
    """Metres a pixel of the source."""
    method: str = "bilinear"
    target: float | None = 60.0
    """Mpx/s."""


ROOM = 2**30
"""Bytes for decoded blocks where decoding is not what is measured."""

WARPS = (
    Warp("0.25 to 0.3 m", "EPSG:32630", 0.25),
    Warp("0.2 to 0.3 m (anti-aliased)", "EPSG:32630", 0.2),
    Warp("EPSG:4326 to UTM", "EPSG:4326", 0.29),
    Warp("EPSG:3857 to UTM", "EPSG:3857", 0.31),
    Warp("EPSG:4326 to UTM, cubic", "EPSG:4326", 0.29, "cubic", None),
    Warp("EPSG:4326 to UTM, nearest", "EPSG:4326", 0.29, "nearest"),
    Warp("0.075 to 0.3 m (16 pixels into one)", "EPSG:32630", 0.075, target=None),
)


def write(path: Path, side: int, crs: str, size: float, **layout: Any) -> Path:
    """A square raster of mirrored scenes, pixels of `size` metres, at a place near the equator."""
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(*PLACE)
    unit = size / 111_000 if crs == "EPSG:4326" else size
    tile = scene()
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "compress": "deflate", "BIGTIFF": "YES", **layout}
    with rasterio.open(
        path, "w", height=side, width=side, crs=crs, transform=Affine(unit, 0, x, 0, -unit, y), **profile
    ) as file:
        wide = np.concatenate([tile[:, :, :: (-1) ** i] for i in range(-(-side // tile.shape[2]))], axis=2)[:, :, :side]
        for i, top in enumerate(range(0, side, tile.shape[1])):
            part = wide[:, :: (-1) ** i][:, : side - top]
            file.write(part, window=RasterioWindow(0, top, side, part.shape[1]))
    return path


def best_of(repeat: int, work: Callable[[], object]) -> float:
    """Least processor seconds of several runs: the least disturbed one."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def decode_alone(path: Path, rows: int, cols: int) -> None:
    """What rasterio does, window by window of whole blocks."""
    with rasterio.open(path, sharing=False) as file:
        for row in range(0, file.height, rows):
            for col in range(0, file.width, cols):
                file.read(window=RasterioWindow(col, row, cols, rows))


def chips_of(window: Window) -> Iterator[Window]:
    """Chips whose cores cover a window, in strips that turn at each end."""
    core = CHIP - 2 * MARGIN
    for i, row in enumerate(range(window.row, window.stop_row, core)):
        for col in list(range(window.col, window.stop_col, core))[:: (-1) ** i]:
            yield Window(row, col, core, core).grow(MARGIN)


def read_chips(source: RasterSource) -> None:
    """All chips of the imagery."""
    for chip in chips_of(source.placement.windows[0]):
        source.read(chip)


def reading_rows(folder: Path, side: int, repeat: int) -> Iterator[Row]:
    """Native imagery: the rate of chips by that of decoding, and what is decoded twice."""
    megapixels = side * side / 1e6
    for name, layout in LAYOUTS.items():
        path = write(folder / "native.tif", side, "EPSG:32630", 0.3, **layout)
        source = open_raster(path, gsd=0.3, core=CHIP - 2 * MARGIN)
        rows, cols = blocks.granule_of(source.rasters[0].file)
        alone, ours = [], []

        def run(source: RasterSource = source) -> None:
            blocks.set_capacity()
            read_chips(source)

        for _ in range(repeat):  # in turn, so that what else runs on the machine disturbs both
            alone.append(best_of(1, lambda path=path, rows=rows, cols=cols: decode_alone(path, rows, cols)))
            before = decoded().pixels
            ours.append(best_of(1, run))
        twice = (decoded().pixels - before) / (side * side)
        yield Row(f"chips, {name}", megapixels / min(ours), "Mpx/s", megapixels / min(alone), "rasterio alone", 0.8)
        yield Row(f"decoded by delivered, {name}", twice, "", target=1.15, at_most=True)
        blocks.set_capacity(ROOM)
        read_chips(source)
        warm = best_of(repeat, lambda source=source: read_chips(source))
        yield Row(f"chips of decoded blocks, {name}", megapixels / warm, "Mpx/s")


def warped_rows(folder: Path, side: int, repeat: int) -> Iterator[Row]:
    """Resampled imagery: both from pixels in memory."""
    resample.warm_up()
    blocks.set_capacity(ROOM)
    for warp in WARPS:
        path = write(folder / "warped.tif", side, warp.crs, warp.size, tiled=True, blockxsize=512, blockysize=512)
        source = open_raster(path, gsd=0.3, core=CHIP - 2 * MARGIN, resampling=warp.method)
        window = source.placement.windows[0]
        megapixels = window.height * window.width / 1e6
        with rasterio.open(path) as file:
            pixels, transform, crs = file.read(), file.transform, file.crs
        out = np.zeros((3, window.height, window.width), np.uint8)
        grid = source.grid

        def gdal(pixels: Any = pixels, out: Any = out, how: tuple[Any, ...] = (transform, crs, grid, window, warp)) -> None:
            transform, crs, grid, window, warp = how
            reproject(
                pixels,
                out,
                src_transform=transform,
                src_crs=crs,
                dst_transform=grid.transform * Affine.translation(window.col, window.row),
                dst_crs=grid.crs.to_wkt(),
                resampling=Resampling[warp.method],
                num_threads=1,
            )

        def ours(source: RasterSource = source) -> None:
            source.rasters[0].cache.resize(128 * 2**20)  # forgets resampled blocks, not decoded ones
            read_chips(source)

        ours()
        yield Row(
            f"resampled, {warp.name}",
            megapixels / best_of(repeat, ours),
            "Mpx/s",
            megapixels / best_of(min(repeat, 2), gdal),
            "GDAL's reproject",
            warp.target,
            "value",
        )


def rows(quick: bool) -> list[Row]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        side, repeat = (4096, 2) if quick else (8192, 3)
        return [*reading_rows(Path(folder), side, repeat), *warped_rows(Path(folder), side, repeat)]


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8192, help="of the native raster, pixels")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        found = [
            *reading_rows(Path(folder), options.side, options.repeat),
            *warped_rows(Path(folder), options.side, options.repeat),
        ]
    print(table(found))


if __name__ == "__main__":
    main()
