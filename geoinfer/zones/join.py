"""From the runs of zones to one: each building once, each pixel asked for accounted for by one zone, in bounded memory.

Rows come zone by zone, western ones first, each zone's along its own Hilbert curve; so files are read and written as
streams, and only what lies near borders is held (`zones.match`). A footprint that another zone keeps leaves as rejected,
with the reason `other_zone`: accepted + rejected stay all candidates of all zones. Coverage is cut at the borders: of a tile
that reaches beyond, only the pixels within the zone's strip are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geoinfer.detection import TileRecord, failed_record, pixel_area_m2
from geoinfer.earth import project
from geoinfer.formats import GEOMETRY, ChainedRows, SortedRows, hilbert, write_geoparquet
from geoinfer.grid import Window
from geoinfer.job import Job
from geoinfer.manifest import STATUSES
from geoinfer.merge import Counts, coverage_frame, keys_of
from geoinfer.meridian import near, split
from geoinfer.region import GridRegion
from geoinfer.store import RunDirectory, digest
from geoinfer.vector.footprints import reproject
from geoinfer.vector.stitch import TileResult
from geoinfer.zones.match import Lost, match
from geoinfer.zones.plan import LONLAT, ZonePart

OTHER_ZONE = "other_zone"
"""Why a footprint is rejected that another zone keeps."""
_BATCH = 16_384
"""Rows read at a time."""


@dataclass(frozen=True, slots=True)
class ZoneRun:
    """A zone's finished run."""

    part: ZonePart
    job: Job
    """In the coordinate system of its grid."""
    core: GridRegion
    """The pixels that it answers for, among those of the job."""
    directory: RunDirectory
    tile: int
    """Cores on a side of its tiles."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it."""

    counts: Counts
    area_m2: dict[str, float]
    """Of what the zones answer for, by status."""
    outputs: dict[str, dict[str, object]]
    """Name -> rows and sha256 of each file."""


def join_zones(runs: Sequence[ZoneRun], target: RunDirectory, crs: CRS, check_stop: Callable[[], None]) -> Joined:
    """Write footprints, rejected and coverage of all zones.

    Args:
        runs: Western ones first; as `plan_zones` orders them.
        target: Where.
        crs: Of the outputs.
        check_stop: Called between steps; raises where the user asked to stop.
    """
    lost = match([run.part for run in runs], [run.directory.footprints for run in runs])
    accepted, rejected, coverage = list[SortedRows](), list[SortedRows](), list[SortedRows]()
    counts, area_m2 = Counts(), dict.fromkeys(STATUSES, 0.0)
    for number, run in enumerate(runs):
        check_stop()
        kept, left = _footprints(run, lost[number], runs, target, crs)
        accepted.append(kept)
        rejected.append(left)
        coverage.append(_coverage(run, target, crs, area_m2, check_stop))
        counts.raw += kept.rows + left.rows
        counts.accepted += kept.rows
        _count_reasons(run, len(lost[number].rows), counts)
    outputs: dict[str, dict[str, object]] = {}
    for path, rows, point in (
        (target.rejected, rejected, "rejected"),
        (target.coverage, coverage, "coverage"),
        (target.footprints, accepted, "footprints"),
    ):
        check_stop()
        chained = ChainedRows(rows)
        with target.replacing(path, point) as file:
            write_geoparquet(file, chained, crs)
        outputs[path.name] = {"rows": chained.rows, "sha256": digest(path)}
    return Joined(counts, area_m2, outputs)


def _footprints(
    run: ZoneRun, lost: Lost, runs: Sequence[ZoneRun], target: RunDirectory, crs: CRS
) -> tuple[SortedRows, SortedRows]:
    """A zone's footprints as they leave: accepted and rejected."""
    files, name = (run.directory.footprints, run.directory.rejected), run.part.folder
    empty, empty_rejected = (_empty(file, run.part.crs) for file in files)
    accepted = SortedRows(target.scratch, f"footprints.{name}", empty)
    rejected = SortedRows(target.scratch, f"rejected.{name}", empty_rejected)
    start = 0
    for frame in _frames(files[0], run.part.crs):
        rows, keepers = lost.within(start, start + len(frame))
        start += len(frame)
        is_kept = np.ones(len(frame), np.bool_)
        is_kept[rows] = False
        _add(accepted, frame[is_kept], run.part, crs)
        given = frame[~is_kept].copy()
        given["reason"] = OTHER_ZONE
        given["detail"] = [f"in zone {runs[keeper].part.label}" for keeper in keepers.tolist()]
        given["covered_share"] = np.nan
        _add(rejected, given.reindex(columns=empty_rejected.columns), run.part, crs)
    for frame in _frames(files[1], run.part.crs):
        _add(rejected, frame, run.part, crs)
    return accepted, rejected


def _add(rows: SortedRows, frame: gpd.GeoDataFrame, part: ZonePart, crs: CRS) -> None:
    """Take footprints: their identifiers then say the zone as well, since each grid counts its own pixels."""
    if not len(frame):
        return
    keys = keys_of(frame)
    frame = _moved(frame, crs)
    frame["id"] = [f"{part.label}-{name}" for name in frame["id"]]
    rows.add(frame, keys)


def _count_reasons(run: ZoneRun, lost: int, counts: Counts) -> None:
    with pq.ParquetFile(run.directory.rejected) as stored:
        for batch in stored.iter_batches(_BATCH, columns=["reason"]):
            for entry in batch.column(0).value_counts().to_pylist():
                counts.rejected[entry["values"]] = counts.rejected.get(entry["values"], 0) + int(entry["counts"])
    if lost:
        counts.rejected[OTHER_ZONE] = counts.rejected.get(OTHER_ZONE, 0) + lost


def _frames(file: Path, crs: CRS) -> Iterator[gpd.GeoDataFrame]:
    """The rows of a GeoParquet file of ours, a bounded number at a time."""
    with pq.ParquetFile(file) as stored:
        names = [name for name in stored.schema_arrow.names if name != "bbox"]
        for batch in stored.iter_batches(_BATCH, columns=names):
            yield _frame(pa.table(batch), crs)


def _frame(table: pa.Table, crs: CRS) -> gpd.GeoDataFrame:
    shapes = shapely.from_wkb(table[GEOMETRY].to_numpy())
    columns: Mapping[str, Any] = {
        name: shapes if name == GEOMETRY else table[name].to_pandas() for name in table.column_names
    }
    return gpd.GeoDataFrame(columns, geometry=GEOMETRY, crs=crs)


def _empty(file: Path, crs: CRS) -> gpd.GeoDataFrame:
    schema = pq.read_schema(file).remove_metadata()
    return _frame(schema.remove(schema.get_field_index("bbox")).empty_table(), crs)


def _coverage(
    run: ZoneRun,
    target: RunDirectory,
    crs: CRS,
    area_m2: dict[str, float],
    check_stop: Callable[[], None],
) -> SortedRows:
    """What the zone looked at of what it answers for; adds its areas to `area_m2`."""
    grid = run.job.source.grid
    found = SortedRows(target.scratch, f"coverage.{run.part.folder}", _empty(run.directory.coverage, run.part.crs))
    held: list[tuple[TileRecord, bool]] = []

    def flush() -> None:
        records = [record for record, _ in held]
        frame = coverage_frame(records, run.job)
        frame["tile"] = [f"{run.part.label}/{record.row}_{record.col}" for record in records]
        shapes = shapely.segmentize(np.asarray(frame.geometry.values), grid.pixel_size * 64)  # straight here is curved there
        for at, (_, is_cut) in enumerate(held):
            shapes[at] = _within_strip(shapes[at], run.part) if is_cut else shapes[at]
        frame = _moved(frame.set_geometry(gpd.GeoSeries(shapes, index=frame.index, crs=grid.crs)), crs)
        corners = np.array([record.window[:2] for record in records], np.int64).reshape(-1, 2) + grid.origin_pixel
        found.add(frame, hilbert(corners[:, 0], corners[:, 1]))
        held.clear()

    failed = _failed(run.directory.coverage)  # tiles that leave no file, so that the next try does them again
    for at, window in run.job.tiles(run.tile):
        check_stop()
        if (at.row, at.col) in failed:
            whole = failed_record(at, window, grid, run.job.region, failed[at.row, at.col])
        else:
            whole = TileRecord.from_json(run.directory.read_record(at.row, at.col))
        record, is_cut = _own(run, whole, window)
        if record is None:
            continue
        for status in STATUSES:
            area_m2[status] += getattr(record, f"{status}_m2")
        held.append((record, is_cut))
        if len(held) >= _BATCH:
            flush()
    flush()
    return found


def _failed(coverage: Path) -> dict[tuple[int, int], str]:
    """Tile row and column of failed tiles, and why."""
    rows = pq.read_table(coverage, columns=["tile", "reason"], filters=[("status", "==", "failed")]).to_pylist()
    places = [(row["tile"].split("_"), row["reason"]) for row in rows]
    return {(int(row), int(col)): reason for (row, col), reason in places}


def _own(run: ZoneRun, record: TileRecord, window: Window) -> tuple[TileRecord | None, bool]:
    """A tile's record of the pixels that the zone answers for, None where these are none; and whether there were others."""
    asked, own = _mask(run.job.region, window), _mask(run.core, window)
    own &= asked
    if np.array_equal(own, asked):
        return record, False
    if not own.any():
        return None, True
    pixel_m2, core = pixel_area_m2(run.job.source.grid, window), run.job.spec.chips.core
    whole = int(np.count_nonzero(own))
    done = masked = failed = 0
    if record.status == "failed":
        failed = whole
    elif record.status == "done":
        computed = TileResult.from_arrays(run.directory.read_tile(record.row, record.col)[0]).computed
        done = int(np.count_nonzero(own if computed is None else own & computed))
    for row, col, _ in record.skipped:
        masked += int(np.count_nonzero(own[Window(row * core, col * core, core, core).slices_in(window)]))
    status = record.status if done or failed else "masked" if masked else "nodata"
    return (
        replace(
            record,
            status=status,
            area_m2=whole * pixel_m2,
            done_m2=done * pixel_m2,
            nodata_m2=(whole - done - masked - failed) * pixel_m2,
            masked_m2=masked * pixel_m2,
            failed_m2=failed * pixel_m2,
        ),
        True,
    )


def _mask(region: GridRegion, window: Window) -> NDArray[np.bool_]:
    mask = region.mask(window)
    return np.ones((window.height, window.width), np.bool_) if mask is None else mask


def _within_strip(outline: BaseGeometry, part: ZonePart) -> BaseGeometry:
    """A tile's outline without what lies beyond the zone's border."""
    degrees = split(np.array([project(outline, part.crs, LONLAT)], dtype=object))[0]
    inside = shapely.intersection(near(degrees, part.strip.centre), part.strip.shape())
    return project(inside, LONLAT, part.crs)


def _moved(frame: gpd.GeoDataFrame, crs: CRS) -> gpd.GeoDataFrame:
    """Rows in the output's system, in degrees cut at the antimeridian."""
    moved = reproject(frame, crs)
    if not crs.is_geographic:
        return moved
    shapes = split(np.asarray(moved.geometry.values))
    return moved.set_geometry(gpd.GeoSeries(shapes, index=moved.index, crs=crs))
