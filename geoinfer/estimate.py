"""What a job will take: tiles, pixels, bytes, requests, time, disk and money, counted without reading a pixel.

Tiles and chips are counted on the grid; blocks under them in the tables of the files (`imagery.reading`), each once, as a
run reads them. What only the pixels tell, nodata above all, makes it less. How fast the network is on this machine is what
earlier runs measured (`rates`), else a round number that says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geoinfer.detection import CHIPS_AT_ONCE, Core
from geoinfer.grid import Tile, Window, blocks, cores_of, hull, in_strips
from geoinfer.imagery.reading import Reading, reckon
from geoinfer.job import Execution, Job
from geoinfer.rates import rate_of
from geoinfer.skipping import SkipRule

EXACT_TILES = 4096
"""Up to so many tiles the blocks under each are looked up; of more, stretches of neighbours spread over all of them."""
_STRETCH = 256
"""Tiles of a stretch: what its border reads twice is little."""
_DISK_A_TILE, _DISK_A_SIDE = 6800.0, 16.0
"""Bytes that a committed tile takes with nothing in it, and more for each pixel of its side: what its neighbours need."""
_DISK_A_KM2 = 1_000_000.0
"""Bytes of tiles and outputs a square kilometre of a town; a dense one takes three times as much, farmland a tenth."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job will take; counted on the grid and in the files' tables, without reading a pixel."""

    tiles: int
    cores: int
    """Chips to infer: nodata found while reading makes it fewer, buildings that reach masked cores more."""
    masked_cores: int
    """Chips that mask layers marked `skip` spare."""
    pixels: int
    """Pixels of the tiles, at the model's gsd."""
    read_pixels: int
    """Pixels read, margins and overlaps between tiles included."""
    read_bytes: int
    """The same in bytes, uncompressed 8 bit at the model's gsd."""
    chip_pixels: int
    """Pixels through the network, margins included."""
    tile_bytes: int
    """Memory for one tile on a worker, the model not counted."""
    area_km2: float
    """Area of the tiles' windows on the grid."""
    covers: float
    """Share of the region that lies within the imagery, 0..1."""
    rasters: int
    """Rasters that the region meets."""
    stored_bytes: int
    """What the blocks to decode take in the files, headers not counted."""
    requests: int
    """Sent over networks: headers and blocks, neighbouring ones together, none of them twice."""
    fetched_bytes: int
    """What comes over networks."""
    device_s: float
    """Time of the network on one such device, or on this machine's cores."""
    rate_mpx_s: float
    """Million chip pixels a second that this was reckoned with."""
    rate_from: str
    """`measured`, by earlier runs of this model on this machine, or `assumed`."""
    disk_bytes: int
    """Of the run directory, roughly: a town's."""
    cost: float | None = None
    """Of the device's time, in the currency of the price; None without a price."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Sums:
    """What tiles add up to."""

    tiles: int = 0
    cores: int = 0
    masked: int = 0
    pixels: int = 0
    read: int = 0


def plan(job: Job, execution: Execution | None = None, *, price_gpu_hour: float | None = None) -> Plan:
    """Count tiles, chips, pixels, bytes and requests of a job. Reads headers and tables, no pixels.

    Args:
        job: What will be done.
        execution: How it will be cut.
        price_gpu_hour: What an hour of the device costs; gives `cost`.
    """
    execution = execution or Execution()
    sums, reading = _count(job, execution)
    rate, side = rate_of(job), job.spec.chips.core * execution.tile
    metres = job.source.grid.pixel_m
    chip_pixels = sums.cores * job.spec.chips.chip**2
    device_s = chip_pixels / (rate.mpx_s * 1e6)
    area_km2 = sums.pixels * metres**2 / 1e6
    return Plan(
        tiles=sums.tiles,
        cores=sums.cores,
        masked_cores=sums.masked,
        pixels=sums.pixels,
        read_pixels=sums.read,
        read_bytes=sums.read * job.source.bands,
        chip_pixels=chip_pixels,
        tile_bytes=tile_bytes(job, execution),
        area_km2=area_km2,
        covers=job.region.covers,
        rasters=reading.rasters,
        stored_bytes=round(reading.stored_bytes),
        requests=round(reading.requests),
        fetched_bytes=round(reading.fetched_bytes),
        device_s=round(device_s, 3),
        rate_mpx_s=rate.mpx_s,
        rate_from=rate.origin,
        disk_bytes=round(sums.tiles * (_DISK_A_TILE + side * _DISK_A_SIDE) + area_km2 * _DISK_A_KM2),
        cost=None if price_gpu_hour is None else round(device_s / 3600 * price_gpu_hour, 4),
    )


def _count(job: Job, execution: Execution) -> tuple[_Sums, Reading]:
    """Tiles and chips one by one; what their reads cost, while they are counted."""
    sums = _Sums()
    steps = {(tile.row, tile.col): (tile, window) for tile, window in job.tiles(execution.tile)}
    order = in_strips(steps, execution.tile)
    with _spared(job) as rule:
        counted = ((at, _add(sums, job, rule, *steps[at])) for at in order)
        looked_up = _looked_up(counted, order, job.spec.chips.core * execution.tile)
        reading = reckon(job.source, job.chips_window(job.region.window), looked_up)
    return sums, reading


def _add(sums: _Sums, job: Job, rule: SkipRule, tile: Tile, window: Window) -> list[Window]:
    """Count a tile; the windows of its chips."""
    spec = job.spec.chips
    asked = [core for core in cores_of(tile, spec.core) if job.region.touches(core.intersection(window))]
    spared = rule.cores(tile.window)
    seen = [core for core in asked if (core.row // spec.core, core.col // spec.core) not in spared]
    sums.tiles += 1
    sums.pixels += window.height * window.width
    sums.cores += len(seen)
    sums.masked += len(asked) - len(seen)
    needed = [hull(block).grow(spec.margin) for block in blocks(seen)]
    sums.read += sum(window.height * window.width for window in needed)
    return [core.grow(spec.margin) for core in seen]


def _looked_up(
    tiles: Iterable[tuple[Core, list[Window]]], order: Sequence[Core], side: int
) -> Iterator[tuple[float, list[Window]]]:
    """All of few tiles; of many, stretches of neighbours, and for how many tiles each of theirs stands.

    A tile of a stretch comes after the tiles beside and above it that a run reads before it, with no weight: what they share
    is decoded by then.
    """
    count = len(order)
    step = -(-count // EXACT_TILES)
    if step <= 1:
        yield from ((1.0, windows) for _, windows in tiles)
        return
    stretches = -(-count // _STRETCH)
    chosen = set(range(0, stretches, step))
    weight = count / sum(min(_STRETCH, count - at * _STRETCH) for at in chosen)
    places = {at: place for place, at in enumerate(order)}
    for (row, col), windows in tiles:
        place = places[row, col]
        if place // _STRETCH not in chosen:
            continue
        for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1)):
            if places.get((row + down, col + right), count) < place:
                yield 0.0, [Window(w.row + down * side, w.col + right * side, w.height, w.width) for w in windows]
        yield weight, windows


def tile_bytes(job: Job, execution: Execution) -> int:
    """Memory for one tile on a worker, the model not counted: probabilities, what was computed, and its chips twice over."""
    spec = job.spec.chips
    chips = min(execution.tile**2, CHIPS_AT_ONCE)
    return (execution.tile * spec.core) ** 2 * 3 + 2 * chips * spec.chip**2 * (job.source.bands + 1)


@contextmanager
def _spared(job: Job) -> Iterator[SkipRule]:
    """The job's rule for skipping, its layers prepared for as long as that takes."""
    with tempfile.TemporaryDirectory() as folder:
        skipping = replace(job, masks=tuple(layer for layer in job.masks if layer.action == "skip"))
        yield skipping.skip_rule(skipping.prepare_masks(Path(folder)))
