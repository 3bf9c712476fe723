"""GeoParquet in a fixed order and in bounded memory, and the other vector formats.

Rows are ordered along a Hilbert curve over *all* absolute pixels (32 bits an axis), so neither the region nor the set of
rasters nor the order in which tiles came can move one row before another. The sort is external: sorted spills of bounded
size, then one pass that takes the same key range of every spill at a time.

GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/), with the bbox covering, WKB, zstd and page checksums. Equal rows
give equal bytes. Knows nothing about what the columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

from geoinfer.errors import ConfigError
from geoinfer.meridian import split
from geoinfer.store import failpoint, output_errors

ROW_GROUP = 65_536
"""Rows of a row group: small enough for the covering to prune, large enough to compress."""
SPILL_ROWS = 65_536
"""Rows that the external sort holds before it writes them out."""
GEOMETRY = "geometry"
_KEY = "__hilbert__"
_BBOX = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}


def hilbert(rows: npt.NDArray[Any], cols: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Distance of absolute pixels along the Hilbert curve of order 32; no two pixels share one.

    The classic bit-by-bit walk from the largest quadrant to the smallest (Wikipedia, "Hilbert curve", `xy2d`), over arrays.

    Args:
        rows: (N,) absolute pixel rows, within int32.
        cols: (N,) absolute pixel columns, within int32.
    """
    x = (cols.astype(np.int64) + 2**31).astype(np.uint64)
    y = (rows.astype(np.int64) + 2**31).astype(np.uint64)
    distance = np.zeros(len(x), np.uint64)
    one = np.uint64(1)
    for bit in range(31, -1, -1):
        s = np.uint64(1 << bit)
        rx, ry = (x & s) >> np.uint64(bit), (y & s) >> np.uint64(bit)
        distance |= ((np.uint64(3) * rx) ^ ry) << np.uint64(2 * bit)
        x, y = x & (s - one), y & (s - one)  # only the position inside the quadrant matters from here on
        turn, flip = ry == 0, (ry == 0) & (rx == 1)
        x, y = np.where(flip, s - one - x, x), np.where(flip, s - one - y, y)
        x, y = np.where(turn, y, x), np.where(turn, x, y)
    return distance


def to_table(frame: gpd.GeoDataFrame) -> pa.Table:
    """A frame as an Arrow table: WKB, a `bbox` struct column, no pandas metadata, text columns as text even when empty."""
    geometry = frame.geometry.values
    columns: dict[str, pa.Array] = {}
    for name in frame.columns:
        if name == GEOMETRY:
            columns[name] = pa.array(shapely.to_wkb(np.asarray(geometry), byte_order=1), pa.binary())
        else:
            columns[name] = _plain(frame[name])
    bounds = shapely.bounds(np.asarray(geometry)).reshape(-1, 4)  # (N, 4) xmin, ymin, xmax, ymax
    columns["bbox"] = pa.StructArray.from_arrays([pa.array(bounds[:, i]) for i in range(4)], fields=list(_BBOX))
    return pa.table(columns)


def _plain(values: pd.Series) -> pa.Array:
    array = pa.Array.from_pandas(values)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_null(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    return array


@dataclass(slots=True)
class Extent:
    """What the file's metadata says of its geometries; grows as rows come."""

    bounds: list[float] = field(default_factory=lambda: [np.inf, np.inf, -np.inf, -np.inf])
    types: set[str] = field(default_factory=set)

    def add(self, frame: gpd.GeoDataFrame) -> None:
        """Take in rows."""
        if len(frame):
            xmin, ymin, xmax, ymax = (float(v) for v in frame.total_bounds)
            self.join(Extent([xmin, ymin, xmax, ymax], set(frame.geom_type.unique())))

    def join(self, other: Extent) -> None:
        """Take in what is known of more rows."""
        a, b = self.bounds, other.bounds
        self.bounds = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
        self.types |= other.types


class Rows(Protocol):
    """Rows that are ready to be written."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    @property
    def extent(self) -> Extent:
        """What is known of their geometries."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Columns, in order."""
        ...

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, a bounded number at a time; once."""
        ...


class SortedRows:
    """Rows that come in any order and leave in Hilbert order, with bounded memory.

    Args:
        directory: Where spills go; the caller removes what is left there.
        name: Stem of the spills' names.
        empty: A frame without rows that has the columns, so that a file without rows keeps its schema.
    """

    def __init__(self, directory: Path, name: str, empty: gpd.GeoDataFrame) -> None:
        self.extent = Extent()
        self.rows = 0
        self._directory, self._name = directory, name
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._spills: list[Path] = []
        self._empty = to_table(empty.iloc[:0])

    @property
    def schema(self) -> pa.Schema:
        """Columns that leave, in order."""
        return self._empty.schema

    def add(self, frame: gpd.GeoDataFrame, keys: npt.NDArray[np.uint64]) -> None:
        """Take rows and their Hilbert distances (N,)."""
        if not len(frame):
            return
        self.extent.add(frame)
        self.rows += len(frame)
        self._held.append(to_table(frame).cast(self.schema).append_column(_KEY, pa.array(keys)))
        self._held_rows += len(frame)
        if self._held_rows >= SPILL_ROWS:
            self._spill()

    def _spill(self) -> None:
        table = pa.concat_tables(self._held).sort_by(_KEY).combine_chunks()
        path = self._directory / f"{self._name}.{len(self._spills)}.spill"
        with output_errors(path), path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=table.num_rows)
        failpoint("spilled")
        self._spills.append(path)
        self._held, self._held_rows = [], 0

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, a bounded number at a time."""
        if not self._spills:
            if self._held:
                yield pa.concat_tables(self._held).sort_by(_KEY).drop_columns([_KEY])
            return
        if self._held:
            self._spill()
        # Zero copy: pages of the spills, read when touched. numpy's maps keep no file open, so there may be thousands.
        runs = [pa.ipc.open_file(pa.py_buffer(np.memmap(path, np.uint8, "r"))).read_all() for path in self._spills]
        keys = [run.column(_KEY).chunk(0).to_numpy() for run in runs]
        step = max(1, ROW_GROUP // 16)
        samples = np.sort(np.concatenate([k[::step] for k in keys]))
        edges = samples[:: max(1, ROW_GROUP // step)][1:]
        starts = [0] * len(runs)
        for edge in [*edges, None]:
            stops = [len(k) if edge is None else int(np.searchsorted(k, edge)) for k in keys]
            parts = [run.slice(a, b - a) for run, a, b in zip(runs, starts, stops, strict=True) if b > a]
            if parts:
                yield pa.concat_tables(parts).sort_by(_KEY).drop_columns([_KEY])
            starts = stops
        for path in self._spills:
            path.unlink(missing_ok=True)


class ChainedRows:
    """Rows of several kinds of order, one after the other.

    Args:
        parts: At least one; all of one schema.
    """

    def __init__(self, parts: Sequence[SortedRows]) -> None:
        self._parts = parts
        self.schema: pa.Schema = parts[0].schema
        self.rows = sum(part.rows for part in parts)
        self.extent = Extent()
        for part in parts:
            self.extent.join(part.extent)

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, a bounded number at a time."""
        for part in self._parts:
            yield from part.tables()


def write_geoparquet(sink: BinaryIO, rows: Rows, crs: CRS | None) -> None:
    """Write sorted rows as one GeoParquet 1.1 file.

    Args:
        sink: Open for writing; the caller makes it appear in place.
        crs: Of the geometries; None writes `null`, "unknown" by the specification.
    """
    covering = {"bbox": {edge: ["bbox", edge] for edge in ("xmin", "ymin", "xmax", "ymax")}}
    geometry: dict[str, object] = {
        "encoding": "WKB",
        "geometry_types": sorted(rows.extent.types),
        "crs": crs.to_json_dict() if crs is not None else None,
        "covering": covering,
    }
    if rows.rows:
        geometry["bbox"] = rows.extent.bounds
    geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: geometry}}
    schema = rows.schema.with_metadata({"geo": json.dumps(geo)})
    with pq.ParquetWriter(
        sink, schema, compression="zstd", write_page_checksum=True, version="2.6", store_schema=True
    ) as writer:
        for table in _regroup(rows.tables(), ROW_GROUP):
            writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)


def _regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut a stream of tables anew, `size` rows each and the rest in the last: row groups then depend on the rows alone."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def check_format(target: Path) -> None:
    """Whether footprints can be written as such a file.

    Raises:
        ConfigError: No format of that extension.
    """
    suffix = target.suffix.lower()
    if suffix not in _DRIVERS:
        raise ConfigError(f"{target.name}: no format {suffix!r}; use one of {', '.join(_DRIVERS)}")


def export(source: Path, target: Path) -> None:
    """Write footprints as GeoPackage, GeoJSON or FlatGeobuf, by the target's extension.

    GeoJSON is written in EPSG:4326, and cut at the antimeridian, as RFC 7946 wants.

    Raises:
        ConfigError: No format of that extension.
    """
    check_format(target)
    suffix = target.suffix.lower()
    frame = gpd.read_parquet(source)
    if suffix == ".geojson" and frame.crs is not None:
        frame = frame.to_crs(4326)
        frame = frame.set_geometry(gpd.GeoSeries(split(np.asarray(frame.geometry.values)), index=frame.index, crs=4326))
    if "bbox" in frame:
        frame = frame.drop(columns="bbox")
    scratch = target.with_name(f".{target.stem}.partial{suffix}")  # a half-written FlatGeobuf reads as one without rows
    with output_errors(target):
        try:
            frame.to_file(scratch, driver=_DRIVERS[suffix], engine="pyogrio", layer=target.stem)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
