"""Imagery over a network: requests and bytes a delivered megapixel, and the rate against the same file on disk.

    python -m benchmarks.remote [--side 8192] [--repeat 3] [--latency 0.02] [--readers 16]

A server in a process of its own waits for `latency` seconds before each answer. Readers are threads that read tiles of a
COG, a row of chips fetched at once, as a run does; both ways start with nothing decoded or fetched. They take turns,
so that other work on the machine disturbs both, and the best of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import rasterio.shutil

from benchmarks.imagery import write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.grid import Window
from geoinfer.imagery import blocks
from geoinfer.imagery.meter import decoded
from geoinfer.imagery.raster import RasterFile, inspect

CHIP, MARGIN, TILE = 640, 64, 4
"""Side and margin of a chip, pixels; cores along a tile."""
PAGE = 2**16
"""The head of a file."""


def tiles_of(window: Window) -> list[Window]:
    """Tiles of cores that cover a window."""
    side = TILE * (CHIP - 2 * MARGIN)
    return [Window(row, col, side, side) for row in range(0, window.height, side) for col in range(0, window.width, side)]


def read_tile(file: RasterFile, tile: Window) -> tuple[int, ...]:
    """All chips of a tile; (requests, bytes, retries) that it took."""
    before, core = decoded(), CHIP - 2 * MARGIN
    for row in range(tile.row, min(tile.stop_row, file.height), core):
        blocks.prefetch(file, [Window(row, tile.col, core, tile.width).grow(MARGIN).intersection(file.window)])
        for col in range(tile.col, min(tile.stop_col, file.width), core):
            blocks.read_window(file, Window(row, col, core, core).grow(MARGIN).intersection(file.window))
    after = decoded()
    return after.requests - before.requests, after.fetched_bytes - before.fetched_bytes, after.retries - before.retries


def read_all(address: str, readers: int) -> tuple[float, list[int]]:
    """Mpx/s of a file that is opened and read whole by so many threads, and (requests, bytes, retries)."""
    blocks.set_capacity()
    blocks.make_room(readers)
    begin, before = time.perf_counter(), decoded()
    file = inspect(address)
    opened = decoded()
    with ThreadPoolExecutor(readers) as pool:
        taken = list(pool.map(lambda tile: read_tile(file, tile), tiles_of(file.window)))
    seconds = time.perf_counter() - begin
    totals = [sum(column) for column in zip(*taken, strict=True)]
    totals[0] += opened.requests - before.requests
    totals[1] += opened.fetched_bytes - before.fetched_bytes
    return file.height * file.width / 1e6 / seconds, totals


def remote_rows(folder: Path, side: int, repeat: int, latency: float, readers: int) -> Iterator[Row]:
    """Every figure, of one COG."""
    write_raster(folder / "plain.tif", side)
    rasterio.shutil.copy(folder / "plain.tif", folder / "cog.tif", driver="COG", compress="deflate", blocksize=512)
    local, remote, served = [], [], (folder / "cog.tif").stat().st_size
    with serve(folder, latency) as (address, asked):
        for number in range(repeat):
            local.append(read_all(str(folder / "cog.tif"), readers)[0])
            rate, totals = read_all(f"{address}/cog.tif?{number}", readers)  # an address of its own: nothing is remembered
            remote.append(rate)
        starts = [start for start, _ in asked()]
    megapixels = side * side / 1e6
    name = f"{readers} readers, {latency * 1000:.0f} ms of latency"
    yield Row(f"over HTTP, {name}", max(remote), "Mpx/s", max(local), "the same file on disk", 0.8)
    yield Row("requests a delivered megapixel", totals[0] / megapixels, "")
    yield Row("bytes fetched", totals[1] / 1e6, "MB", served / 1e6, "the whole file with its overviews", 1.0, at_most=True)
    yield Row("header reads a file", sum(start < PAGE // 8 for start in starts) / repeat, "", target=1.0, at_most=True)
    yield Row("requests that were sent again", totals[2], "", target=0.0, at_most=True)


@contextmanager
def serve(folder: Path, latency: float) -> Iterator[tuple[str, Callable[[], list[tuple[int, int]]]]]:
    """A server in another process: its address, and what gives the ranges asked for so far."""
    log = folder / "asked.txt"
    command = [sys.executable, "-m", "benchmarks.remote", "--serve", str(folder), "--latency", str(latency)]

    def asked() -> list[tuple[int, int]]:
        return [(int(start), int(stop)) for start, stop in (line.split() for line in log.read_text().splitlines())]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", asked
        finally:
            process.terminate()


async def run_server(folder: Path, latency: float) -> None:
    """Ranges of files over HTTP/1.1, each answer after some time; a line a request goes to `asked.txt`."""
    log = (folder / "asked.txt").open("w", buffering=1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in count():
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            path = folder / head.split(" ")[1].partition("?")[0].lstrip("/")
            found = re.search(r"(?i)^range: bytes=(\d+)-(\d+)", head, re.MULTILINE)
            size = path.stat().st_size
            start, stop = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
            log.write(f"{start} {stop}\n")
            await asyncio.sleep(latency)
            writer.write(
                f'HTTP/1.1 206 Partial Content\r\nContent-Length: {stop - start}\r\nETag: "{path.stat().st_mtime_ns}"\r\n'
                f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
            )
            with path.open("rb") as file:
                await asyncio.get_running_loop().sendfile(writer.transport, file, start, stop - start)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def rows(quick: bool) -> list[Row]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        return list(remote_rows(Path(folder), 4096 if quick else 8192, 2 if quick else 5, 0.02, 16))


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8192, help="of the raster, pixels")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds")
    parser.add_argument("--readers", type=int, default=16, help="threads")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(run_server(options.serve, options.latency))
        return
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        print(table(list(remote_rows(Path(folder), options.side, options.repeat, options.latency, options.readers))))


if __name__ == "__main__":
    main()
