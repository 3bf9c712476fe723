"""From committed tiles to the output files: stitch, finish, mask, sort, write, in bounded memory.

Tiles are read row-major, so the stitcher holds only what crosses the current row of tiles. Decisions are made on whole
footprints, after stitching (law 3) and in the grid's coordinate system, and each candidate leaves as accepted or as rejected
(law 4).

Most of the time goes into outlines, by GEOS, which does not hold the GIL: a few threads draw them while the driver reads and
stitches on. What they give is taken in the order in which it was handed out, so their number cannot change a byte.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geoinfer import meridian
from geoinfer.accounts import Accounts, first_pixels
from geoinfer.detection import TileRecord
from geoinfer.formats import SortedRows, hilbert, write_geoparquet
from geoinfer.grid import Window
from geoinfer.imagery.source import Origin
from geoinfer.job import Job
from geoinfer.masks.apply import apply_masks
from geoinfer.places import place_of
from geoinfer.store import RunDirectory, digest
from geoinfer.trace import span
from geoinfer.vector.footprints import Finished, finish, reproject, text_column
from geoinfer.vector.polygons import Polygons
from geoinfer.vector.stitch import Stitcher, TileResult

FINISH_POLYGONS = 2048
"""Polygons finished at a time: enough for the vectorised steps to pay, little enough to hold."""
MOST_THREADS = 4
"""Threads that draw outlines: with more, the driver's own work is what they wait for."""
_UNKNOWN = Origin(None, None)


@dataclass(slots=True)
class Counts:
    """Footprints of a run; raw = accepted + rejected, exactly."""

    raw: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """By reason."""

    def add(self, finished: Finished) -> None:
        """Take in what was decided; `raw` is counted before that."""
        self.accepted += len(finished.accepted)
        for reason, count in finished.rejected["reason"].value_counts().items():
            self.rejected[str(reason)] = self.rejected.get(str(reason), 0) + int(count)


def finish_polygons(polygons: Polygons, job: Job, origins: Sequence[Origin]) -> Finished:
    """Place whole footprints on the grid's map and apply the model's own filters. Pure, so any thread may.

    Args:
        polygons: In the grid's pixels.
        job: What is done.
        origins: The source's rasters, which `polygons.source` counts.
    """
    source = polygons.source if len(origins) != 1 else np.zeros(len(polygons), np.int32)
    found_in = [origins[number] if number >= 0 else _UNKNOWN for number in source.tolist()]
    return finish(
        polygons,
        job.source.grid,
        min_area_m2=job.min_area_m2,
        simplify_m=job.simplify_m,
        grow_m=job.grow_m,
        min_confidence=job.min_confidence,
        model=f"{job.spec.name}@{job.spec.version}",
        imagery=[origin.name for origin in found_in],
        datetime=[origin.datetime for origin in found_in],
        low_trust=None if job.low_trust is None else np.array([*job.low_trust, False], np.bool_)[source],
    )


def judge(polygons: Polygons, job: Job, accounts: Accounts, origins: Sequence[Origin]) -> Finished:
    """Decide on whole footprints: the model's own filters, then the mask layers. In the output's coordinate system.

    Args:
        polygons: Whole polygons in the grid's pixels.
        accounts: Holds the prepared layers, and takes in what they do.
        origins: The source's rasters.
    """
    return decide(finish_polygons(polygons, job, origins), job, accounts)


def decide(finished: Finished, job: Job, accounts: Accounts) -> Finished:
    """The second half of `judge`: what the mask layers say of footprints that the model's own filters have passed."""
    if accounts.layers:
        masked = apply_masks(finished.accepted, accounts.layers, min_area_m2=job.min_area_m2)
        accounts.add_footprints(finished, masked)
        parts = [part for part in (finished.rejected, masked.rejected[finished.rejected.columns]) if len(part)]
        rejected = pd.concat(parts, ignore_index=True) if parts else finished.rejected
        finished = Finished(masked.accepted.reset_index(drop=True), rejected)
    for frame in (finished.accepted, finished.rejected) if job.places else ():
        frame["place"] = text_column(place_of(np.asarray(frame.geometry.values), job.source.grid.crs, job.places))
    return Finished(reproject(finished.accepted, job.crs), reproject(finished.rejected, job.crs))


def stitched(
    tiles: Iterable[tuple[Window, TileResult | None]],
    every: Sequence[Window],
) -> Iterator[Polygons]:
    """Whole polygons of a row-major stream of tiles, a bounded number at a time.

    Args:
        tiles: Each tile's window and result; None for a tile in which nothing was computed.
        every: The windows of all tiles.
    """
    stitcher = Stitcher(every)
    held: list[Polygons] = []
    count = 0
    for window, result in tiles:
        with span("stitch"):
            closed = stitcher.skip(window) if result is None else stitcher.add(result)
        if len(closed):
            held.append(closed)
            count += len(closed)
        if count >= FINISH_POLYGONS:
            yield Polygons.concat(held)
            held, count = [], 0
    if held:
        yield Polygons.concat(held)


def keys_of(frame: gpd.GeoDataFrame) -> npt.NDArray[np.uint64]:
    """Hilbert distance of each footprint's first pixel (N,), which its identifier spells."""
    return hilbert(*first_pixels(frame).T)


def merge(
    run: RunDirectory,
    job: Job,
    records: Sequence[TileRecord],
    accounts: Accounts,
    check_stop: Callable[[], None],
) -> tuple[Counts, dict[str, dict[str, object]]]:
    """Write footprints, rejected and coverage of a run whose tiles are committed.

    Args:
        records: Every tile of the run, row-major.
        accounts: Of this run and still empty; takes in what the mask layers met and did.
        check_stop: Called between tiles; raises where the user asked to stop.

    Returns:
        The counts, and name -> rows and sha256 of each file written.
    """
    grid = job.source.grid
    counts, origins = Counts(), job.source.origins()
    with span("finish"):
        nothing = judge(Polygons.empty(grid.transform), job, accounts, origins)
    accepted = SortedRows(run.scratch, "footprints", nothing.accepted)
    rejected = SortedRows(run.scratch, "rejected", nothing.rejected)

    def tiles() -> Iterator[tuple[Window, TileResult | None]]:
        for record in records:
            check_stop()
            with span("stitch", f"{record.row}_{record.col}"):
                arrays = run.read_tile(record.row, record.col)[0] if record.status == "done" else {}
                result = TileResult.from_arrays(arrays) if arrays else None
                accounts.add_tile(record, None if result is None else result.computed)
            yield Window(*record.window), result

    def draw(polygons: Polygons) -> Finished:
        with span("outlines"):
            return finish_polygons(polygons, job, origins)

    def take(waiting: Future[Finished]) -> None:
        with span("finish"):
            finished = decide(waiting.result(), job, accounts)
            counts.add(finished)
        with span("write"):
            accepted.add(finished.accepted, keys_of(finished.accepted))
            rejected.add(finished.rejected, keys_of(finished.rejected))

    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads, thread_name_prefix="geoinfer-outlines") as pool:
        waiting: deque[Future[Finished]] = deque()
        for polygons in stitched(tiles(), [Window(*record.window) for record in records]):
            counts.raw += len(polygons)
            waiting.append(pool.submit(draw, polygons))
            if len(waiting) > threads:
                take(waiting.popleft())
        while waiting:
            take(waiting.popleft())
    with span("write"):
        coverage = SortedRows(run.scratch, "coverage", coverage_frame([], job))
        for start in range(0, len(records), FINISH_POLYGONS):
            part = records[start : start + FINISH_POLYGONS]
            corners = np.array([record.window[:2] for record in part], np.int64).reshape(-1, 2) + grid.origin_pixel
            coverage.add(coverage_frame(part, job), hilbert(corners[:, 0], corners[:, 1]))
    outputs = {}
    for path, rows, point in (
        (run.rejected, rejected, "rejected"),
        (run.coverage, coverage, "coverage"),
        (run.footprints, accepted, "footprints"),
    ):
        with span("write"):
            outputs[path.name] = _write(run, path, rows, job, point)
    return counts, outputs


def _write(run: RunDirectory, path: Path, rows: SortedRows, job: Job, point: str) -> dict[str, object]:
    with run.replacing(path, point) as file:
        write_geoparquet(file, rows, job.crs)
    return {"rows": rows.rows, "sha256": digest(path)}


def coverage_frame(records: Sequence[TileRecord], job: Job) -> gpd.GeoDataFrame:
    """What was looked at: one row a tile, its outline in the output's coordinate system."""
    grid = job.source.grid
    boxes = [shapely.box(*grid.bounds(Window(*record.window))) for record in records]
    if job.crs != grid.crs:
        boxes = [shapely.segmentize(box, grid.pixel_size * 64) for box in boxes]  # straight here is curved there
    columns = {
        "tile": pd.Series([f"{record.row}_{record.col}" for record in records], dtype=object),
        "status": pd.Series([record.status for record in records], dtype=object),
        "reason": pd.Series([record.reason for record in records], dtype=object),
        "area_m2": np.array([record.area_m2 for record in records], np.float64),
        "done_m2": np.array([record.done_m2 for record in records], np.float64),
        "nodata_m2": np.array([record.nodata_m2 for record in records], np.float64),
        "masked_m2": np.array([record.masked_m2 for record in records], np.float64),
        "failed_m2": np.array([record.failed_m2 for record in records], np.float64),
    }
    frame = gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries(boxes, crs=grid.crs))
    if job.crs == grid.crs:
        return frame
    moved = frame.to_crs(job.crs)
    if not job.crs.is_geographic:
        return moved
    return moved.set_geometry(
        gpd.GeoSeries(meridian.split(np.asarray(moved.geometry.values)), index=moved.index, crs=job.crs)
    )
