"""What each mask layer met, removed and saved in a run, and what it tells of false positives without any label.

Amounts are taken core by core, in integers or in steps that add exactly, so no figure depends on tiles, order or restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geoinfer.detection import TileRecord
from geoinfer.grid import Grid, Tile, Window, cores_of
from geoinfer.job import Job
from geoinfer.masks.apply import LayerCount, Masked
from geoinfer.masks.cover import covered_share
from geoinfer.masks.meter import INSIDE, Meter, layer_pixels
from geoinfer.masks.prepare import PreparedLayer
from geoinfer.vector.footprints import Finished, square_metres_per_unit

Json = dict[str, Any]
Mask = npt.NDArray[np.bool_]
_MM2 = 1e6
"""Square millimetres, in which areas are added as integers, in a square metre."""


@dataclass(slots=True)
class _Sums:
    """Of one layer."""

    count: LayerCount
    area_mm2: int = 0
    """Of its pixels among those asked for."""
    skipped_mm2: int = 0
    """Of the pixels asked for that nobody looked at because of it."""
    skipped: int = 0
    opened: int = 0
    """Cores."""


class Accounts:
    """Sums over the tiles and the footprints of a run.

    Args:
        job: What is done.
        layers: Its mask layers, prepared.
    """

    def __init__(self, job: Job, layers: Sequence[PreparedLayer]) -> None:
        self.layers = tuple(layers)
        self._job = job
        self._sums = [_Sums(LayerCount()) for _ in layers]
        self._meters = {number: Meter() for number, layer in enumerate(layers) if layer.layer.negative}
        self._tiles, self._chips, self._predict_s = 0, 0, 0.0

    def add_tile(self, record: TileRecord, computed: Mask | None) -> None:
        """Take in what was looked at.

        Args:
            record: The tile's row of the coverage.
            computed: (H, W) which of its pixels were computed; None: all that were asked for, in a tile that is `done`.
        """
        if not self.layers:
            return
        self._tiles += 1
        self._chips += record.chips
        self._predict_s += record.predict_s
        window = Window(*record.window)
        asked = self._job.region.mask(window)
        asked = np.ones((window.height, window.width), np.bool_) if asked is None else asked
        looked = (asked if computed is None else computed) if record.status == "done" else np.zeros_like(asked)
        cores = list(cores_of(_lattice(window, self._job.spec.chips.core), self._job.spec.chips.core))
        places = [(core.row // core.height, core.col // core.width) for core in cores]
        area = _pixel_areas_m2(self._job.source.grid, cores)  # (cores,)
        for number, layer in enumerate(self.layers):
            met, within, beyond = self._count(layer, window, cores, asked, looked)
            self._sums[number].area_mm2 += _mm2(met * area)
            if number in self._meters:
                self._meters[number].add_area(places, within * area, beyond * area)
        skipped = {(row, col): number for row, col, number in record.skipped}
        for core, place, pixel_m2 in zip(cores, places, area.tolist(), strict=True):
            if place in skipped:
                sums = self._sums[skipped[place]]
                sums.skipped += 1
                sums.skipped_mm2 += _mm2(np.array([asked[core.slices_in(window)].sum() * pixel_m2]))
        for _, _, number in record.opened:
            self._sums[number].opened += 1

    def _count(
        self, layer: PreparedLayer, window: Window, cores: Sequence[Window], asked: Mask, looked: Mask
    ) -> npt.NDArray[np.int64]:
        """(3, cores) pixels asked for inside the layer, looked at inside it, looked at outside it."""
        grid, counts = self._job.source.grid, np.zeros((3, len(cores)), np.int64)
        boxes = [shapely.box(*grid.bounds(core.intersection(self._job.region.window))) for core in cores]
        for number, share in enumerate(covered_share(np.array(boxes, dtype=object), layer).tolist()):
            core, here = cores[number], cores[number].slices_in(window)
            inside: Mask | bool = share == 1.0
            if 0.0 < share < 1.0:  # for the others all pixels are the same, and most cores are such
                part = core.intersection(window)
                inside = layer_pixels(layer, core, grid)[part.slices_in(core)]
            counts[0, number] = np.count_nonzero(inside & asked[here])
            counts[1, number] = np.count_nonzero(inside & looked[here])
            counts[2, number] = np.count_nonzero(looked[here]) - counts[1, number]
        return counts

    def add_footprints(self, finished: Finished, masked: Masked) -> None:
        """Take in whole footprints.

        Args:
            finished: As the model's own filters left them, in the grid's coordinate system.
            masked: What the layers made of the accepted ones.
        """
        for sums, count in zip(self._sums, masked.counts, strict=True):
            sums.count.add(count)
        if not self._meters:
            return
        raw = [finished.accepted, finished.rejected]
        kept = np.repeat([True, False], [len(part) for part in raw])
        shapes = np.concatenate([np.asarray(part.geometry.values, dtype=object) for part in raw])
        pixels = np.concatenate([first_pixels(part) for part in raw]) - self._job.source.grid.origin_pixel
        for number, meter in self._meters.items():
            inside = covered_share(shapes, self.layers[number]) > INSIDE
            meter.add_candidates(pixels // self._job.spec.chips.core, inside, kept)

    @property
    def removed(self) -> dict[str, int]:
        """Footprints that each layer removed."""
        return {layer.layer.name: sums.count.removed for layer, sums in zip(self.layers, self._sums, strict=True)}

    def alarms(self, mask_alarm: float) -> list[str]:
        """What a user must hear of the layers by what is known so far; before any tile, which ones touch nothing."""
        return [text for entry in self.report(mask_alarm) for text in entry["alarms"]]

    def report(self, mask_alarm: float) -> list[Json]:
        """What `run.json` says of each layer, in order.

        Args:
            mask_alarm: As in `Execution`.
        """
        chip_s = self._predict_s / self._chips if self._chips else 0.0
        entries = []
        for layer, sums in zip(self.layers, self._sums, strict=True):
            entry = describe(layer, self._job, sums.count) | {"area_m2": sums.area_mm2 / _MM2 if self._tiles else None}
            if layer.layer.action == "skip":
                entry |= {
                    "skipped_cores": sums.skipped,
                    "skipped_m2": sums.skipped_mm2 / _MM2,
                    "opened_cores": sums.opened,
                    "device_s_saved": round(sums.skipped * chip_s, 3),
                }
            entries.append(entry | {"alarms": alarms(entry, mask_alarm)})
        return entries

    def meters(self) -> list[Json]:
        """What `run.json` says of false positives, for each negative layer, in order."""
        job = self._job
        skipped_km2 = sum(sums.skipped_mm2 for sums in self._sums) / _MM2 / 1e6
        return [
            {
                "layer": self.layers[number].layer.name,
                "model": f"{job.spec.name}@{job.spec.version}",
                "region": {"bounds": _region_bounds(job), "crs": job.source.grid.crs.to_string()},
                **meter.result(),
                "skipped_km2": skipped_km2,  # by all layers: looked at by nobody, so neither inside nor outside
            }
            for number, meter in self._meters.items()
        ]


def describe(layer: PreparedLayer, job: Job, count: LayerCount) -> Json:
    """What is to be said of a layer: its settings, what was read of it, what it did."""
    return {
        **layer.layer.describe(),
        "features": layer.features,
        "repaired": layer.repaired,
        "dropped": layer.dropped,
        "pieces": layer.pieces,
        "source_bounds": layer.source_bounds,
        "region_bounds": _region_bounds(job),
        "region_crs": job.source.grid.crs.to_string(),
        "tested": count.tested,
        "removed": count.removed,
        "share_removed": count.removed / count.tested if count.tested else 0.0,
        "removed_area_m2": count.removed_area_m2,
        "flagged": count.flagged,
        "clipped": count.clipped,
        "clipped_area_m2": count.clipped_area_m2,
    }


def alarms(entry: Mapping[str, Any], mask_alarm: float) -> list[str]:
    """What a user must hear of a layer; nothing where all is well.

    Args:
        entry: As `describe` makes it, also one read back from `run.json`.
        mask_alarm: As in `Execution`.
    """
    found = []
    name = f"mask layer {entry['name']}"
    acted = entry["flagged"] or entry["clipped"] or (entry["removed"] and entry["action"] != "keep")
    if not entry["pieces"] or (entry["area_m2"] == 0 and not acted):
        theirs = (
            "has no polygon"
            if entry["source_bounds"] is None
            else f"lies in {_text(entry['source_bounds'])} of its own system"
        )
        found.append(
            f"{name} touches nothing in the region: it {theirs}, the region is {_text(entry['region_bounds'])} in "
            f"{entry['region_crs']}; is it the right file, in the right coordinate system (crs=)?"
        )
    if entry["share_removed"] > mask_alarm:
        found.append(
            f"{name} removes {entry['removed']} of {entry['tested']} footprints, {100 * entry['share_removed']:.3g}% where "
            f"more than {100 * mask_alarm:.3g}% is an alarm (mask_alarm); look whether they are false or the layer is wrong"
        )
    return found


def _region_bounds(job: Job) -> list[float]:
    return list(job.source.grid.bounds(job.region.window))


def first_pixels(frame: gpd.GeoDataFrame) -> npt.NDArray[np.int64]:
    """(N, 2) absolute row and column of each footprint's first pixel, which its identifier spells."""
    digits = bytes.fromhex("".join(frame["id"].tolist()))  # iterating over an Arrow column takes ten times as long
    return np.frombuffer(digits, ">u4").astype(np.int64).reshape(-1, 2) - 2**31


def _text(bounds: Sequence[float]) -> str:
    return ",".join(f"{value:.10g}" for value in bounds)


def _mm2(areas_m2: npt.NDArray[np.float64]) -> int:
    return int(np.rint(areas_m2 * _MM2).astype(np.int64).sum())


def _pixel_areas_m2(grid: Grid, cores: Sequence[Window]) -> npt.NDArray[np.float64]:
    """(cores,) area of a pixel on the ellipsoid at the centre of each core, square metres."""
    minx, miny, maxx, maxy = np.array([grid.bounds(core) for core in cores]).reshape(-1, 4).T
    return grid.pixel_size**2 * square_metres_per_unit(grid.crs, (minx + maxx) / 2, (miny + maxy) / 2)


def _lattice(window: Window, core: int) -> Tile:
    """The smallest group of cores that holds a window."""
    row, col = window.row // core * core, window.col // core * core
    height, width = -(-window.stop_row // core) * core - row, -(-window.stop_col // core) * core - col
    return Tile(0, 0, Window(row, col, height, width))
