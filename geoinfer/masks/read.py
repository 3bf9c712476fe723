"""Vector layers as a stream of batches: geometries as they stand in the file, numbered, read by box where there is an index.

A batch holds some ten thousand features, whatever the size of the file. The number of a feature is its place in the file
(its FID, its row), so it does not depend on the box that was asked for. What cannot be decoded is counted, by reason.
A layer of up to `READ_WHOLE` features is read whole: so also features without a place (null, empty) are counted.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import ConfigError, RemoteError, SafetyError, SourceError
from geoinfer.masks import geojson
from geoinfer.masks.decode import Batch, from_binary, from_texts
from geoinfer.masks.fetch import NO_BOXES, local_path
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.source import Source, open_remote, text_of
from geoinfer.region import Bounds, parse_crs
from geoinfer.remote.address import redact

READ_WHOLE = 100_000
"""Up to so many features a file with an index is read whole."""
_BATCH = 4096
_BATCH_CHARACTERS = 2**25
_FAULTS = (RuntimeError, OSError, ValueError, KeyError, struct.error, pa.ArrowException)
_NO_SYSTEM = "undefined"
"""How GeoPackage calls the systems of its codes 0 and -1."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a vector layer says of itself."""

    crs: CRS
    """Horizontal; the layer's own or what the user says in its place."""
    bounds: Bounds | None
    """In `crs`, where the header knows."""
    features: int | None
    """Where the header knows."""
    table: str | None
    """The layer in a file that can hold several; geometry column of GeoParquet."""


def open_header(source: Source, layer: MaskLayer) -> Header:
    """Read a layer's header.

    Raises:
        SourceError: Damaged, several layers in one file, no polygons, no coordinate system, no such column.
        RemoteError: A URL that stopped answering.
    """
    open_one = {"geojson": _open_geojson, "geoparquet": _open_parquet}.get(source.format, _open_gdal)
    try:
        return open_one(source, layer)
    except (SourceError, RemoteError, SafetyError, ConfigError):
        raise
    except _FAULTS as error:
        raise _fault(source, error) from error


def read_batches(source: Source, layer: MaskLayer, header: Header, boxes: NDArray[np.float64]) -> Iterator[Batch]:
    """All features that may meet one of the boxes, and perhaps others.

    Args:
        source: The file.
        layer: Its `column` and `classes` select.
        header: From `open_header`.
        boxes: (K, 4) in the layer's coordinate system.

    Raises:
        SourceError: Damaged or cut off.
        RemoteError: A URL that stopped answering.
    """
    batches = {"geojson": _read_geojson, "geoparquet": _read_parquet}.get(source.format, _read_gdal)
    try:
        yield from batches(source, layer, header, boxes)
    except (SourceError, RemoteError, SafetyError):
        raise
    except _FAULTS as error:
        raise _fault(source, error) from error


# --- GeoPackage, FlatGeobuf, shapefile -------------------------------------------------------------------------------


def _open_gdal(source: Source, layer: MaskLayer) -> Header:
    import pyogrio  # a GDAL of its own: only where there is a layer

    with local_path(source, NO_BOXES) as path, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tables = [(str(name), str(kind)) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(tables) > 1:
            tables = [(name, kind) for name, kind in tables if "Polygon" in kind or "Surface" in kind] or tables
        if not tables:
            raise SourceError(f"{source.shown}: no geometry in it; a mask layer has polygons")
        if len(tables) > 1:
            names = ", ".join(name for name, _ in tables[:6])
            raise SourceError(
                f"{source.shown}: {len(tables)} layers in one file ({names}); write the one that is meant alone: "
                f"ogr2ogr one.gpkg FILE {tables[0][0]}"
            )
        table, kind = tables[0]
        info = pyogrio.read_info(path, layer=table, force_total_bounds=source.remote is None)
    if any(word in kind for word in ("Point", "LineString", "Curve")) and "Polygon" not in kind:
        raise SourceError(f"{source.shown}: {kind} features; a mask layer has polygons")
    _check_column(source, layer, [str(name) for name in info["fields"]])
    bounds = info["total_bounds"]
    is_known = bounds is not None and bool(np.isfinite(bounds).all())
    count = int(info["features"])
    return Header(
        _system(source, layer, info["crs"]),
        (float(bounds[0]), float(bounds[1]), float(bounds[2]), float(bounds[3])) if is_known else None,
        count if count >= 0 else None,
        table,
    )


def _read_gdal(source: Source, layer: MaskLayer, header: Header, boxes: NDArray[np.float64]) -> Iterator[Batch]:
    whole = header.features is not None and header.features <= READ_WHOLE
    with local_path(source, None if whole else boxes) as path:
        yield from _read_boxes(source, path, layer, header, None if whole else boxes)


def _read_boxes(
    source: Source, path: str, layer: MaskLayer, header: Header, boxes: NDArray[np.float64] | None
) -> Iterator[Batch]:
    """Of the file on disk; None: everything. A feature that meets several boxes comes once."""
    places = [None] if boxes is None else boxes.tolist()
    seen = np.zeros(0, np.int64)
    for number, box in enumerate(places):
        count, found = 0, [seen]
        for feature, geometries, keep in _stream_gdal(path, layer, header, box):
            count += len(feature)
            if number:
                keep &= ~np.isin(feature, seen)
            if number + 1 < len(places):
                found.append(feature[keep])
            yield from_binary(feature[keep], _take(geometries, keep))
        seen = np.concatenate(found)
        if boxes is None and count != header.features:
            raise SourceError(
                f"{source.shown}: damaged, only {count:,} of {header.features:,} features can be read; copy it again"
            )


def _stream_gdal(
    path: str, layer: MaskLayer, header: Header, box: list[float] | None
) -> Iterator[tuple[NDArray[np.int64], pa.Array, NDArray[np.bool_]]]:
    """FIDs, well-known binary, and which belong to the layer's classes."""
    import pyogrio

    # GDAL's own fast way (3.12 at least) gives overlapping geometries once a FlatGeobuf has a null one. The option is one of
    # the process, changes no result, and is never taken back: another thread may be reading.
    pyogrio.set_gdal_config_options({"OGR_FLATGEOBUF_STREAM_BASE_IMPL": "YES"})
    with pyogrio.open_arrow(
        path,
        layer=header.table,
        columns=[] if layer.column is None else [layer.column],
        bbox=None if box is None else tuple(box),
        return_fids=True,
        batch_size=_BATCH,
        use_pyarrow=True,
    ) as (about, reader):
        geometry = about["geometry_name"] or "wkb_geometry"
        for batch in reader:
            fids = batch.column(0).to_numpy(zero_copy_only=False).astype(np.int64)
            yield fids, batch.column(geometry), _is_chosen(batch, layer)


# --- GeoParquet -------------------------------------------------------------------------------------------------------


def _open_parquet(source: Source, layer: MaskLayer) -> Header:
    with source.open() as stream:
        file = pq.ParquetFile(stream)
        content = (file.schema_arrow.metadata or {}).get(b"geo")
        if content is None:
            raise SourceError(f"{source.shown}: a Parquet file without geo metadata; write it as GeoParquet with geopandas")
        geo = json.loads(content)
        primary = str(geo["primary_column"])
        column = geo["columns"][primary]
        if str(column.get("encoding")).upper() != "WKB":
            raise SourceError(f"{source.shown}: geometries encoded as {column.get('encoding')!r}; write them as WKB")
        kinds = [str(kind) for kind in column.get("geometry_types", [])]
        if kinds and not any("Polygon" in kind or "Collection" in kind for kind in kinds):
            raise SourceError(f"{source.shown}: {', '.join(kinds)} features; a mask layer has polygons")
        _check_column(source, layer, [name for name in file.schema_arrow.names if name != primary])
        bbox = column.get("bbox")
        bounds = None
        if bbox and len(bbox) in (4, 6):
            x, y = len(bbox) // 2, len(bbox) // 2 + 1
            bounds = (float(bbox[0]), float(bbox[1]), float(bbox[x]), float(bbox[y]))
        named = column.get("crs", "OGC:CRS84")  # absent is not null
        return Header(_system(source, layer, named), bounds, file.metadata.num_rows, primary)


def _read_parquet(source: Source, layer: MaskLayer, header: Header, boxes: NDArray[np.float64]) -> Iterator[Batch]:
    with source.open() as stream:
        file = pq.ParquetFile(stream)
        geo = json.loads(file.schema_arrow.metadata[b"geo"])
        covering = geo["columns"][header.table].get("covering", {}).get("bbox")
        whole = file.metadata.num_rows <= READ_WHOLE
        columns = [str(header.table)] + ([] if layer.column is None else [layer.column])
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if whole or _meets(file, group, covering, boxes):
                at = first
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                    feature = np.arange(at, at + batch.num_rows, dtype=np.int64)
                    at += batch.num_rows
                    keep = _is_chosen(batch, layer)
                    yield from_binary(feature[keep], _take(batch.column(str(header.table)), keep))
            first += rows


def _meets(file: pq.ParquetFile, group: int, covering: dict[str, list[str]] | None, boxes: NDArray[np.float64]) -> bool:
    """The bounds of a row group, by the statistics of its bbox columns, meet a box; True where these are not known."""
    if covering is None:
        return True
    about = file.metadata.row_group(group)
    paths = {about.column(place).path_in_schema: place for place in range(about.num_columns)}
    limits: list[float] = []
    for key, side in (("xmin", "min"), ("ymin", "min"), ("xmax", "max"), ("ymax", "max")):
        place = paths.get(".".join(covering.get(key, ())))
        statistics = None if place is None else about.column(place).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        limits.append(float(getattr(statistics, side)))
    meets = (boxes[:, 0] <= limits[2]) & (boxes[:, 2] >= limits[0]) & (boxes[:, 1] <= limits[3]) & (boxes[:, 3] >= limits[1])
    return bool(meets.any())


# --- GeoJSON ----------------------------------------------------------------------------------------------------------


def _open_geojson(source: Source, layer: MaskLayer) -> Header:
    with source.open_stream() as stream:
        head = geojson.read_head(stream, source.shown)
    return Header(_system(source, layer, head.crs), None, None, None)


def _read_geojson(source: Source, layer: MaskLayer, _header: Header, _boxes: NDArray[np.float64]) -> Iterator[Batch]:
    wanted = None if layer.classes is None else set(layer.classes)
    feature: list[int] = []
    texts: list[str | None] = []
    characters, known = 0, layer.column is None
    with source.open_stream() as stream:
        for number, item in enumerate(geojson.read_features(stream, source.shown)):
            known = known or layer.column in item.properties
            if wanted is not None and text_of(item.properties.get(str(layer.column))) not in wanted:
                continue
            feature.append(number)
            texts.append(item.text if item.has_geometry else None)
            characters += len(item.text)
            if len(texts) == _BATCH or characters > _BATCH_CHARACTERS:
                yield from_texts(feature, texts)
                feature, texts, characters = [], [], 0
    if texts:
        yield from_texts(feature, texts)
    if not known:
        raise SourceError(f"{source.shown}: no feature has the property {layer.column!r}; check column=")


# --- common -----------------------------------------------------------------------------------------------------------


def _is_chosen(batch: pa.RecordBatch, layer: MaskLayer) -> NDArray[np.bool_]:
    """(N,) the feature's class belongs to the layer."""
    if layer.column is None or layer.classes is None:
        return np.ones(batch.num_rows, np.bool_)
    column = batch.column(layer.column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionaryfrom_binary()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = pa.array([None if value is None else text_of(value) for value in column.to_pylist()], pa.string())
    chosen: NDArray[np.bool_] = pc.is_in(column, pa.array(layer.classes, column.type)).to_numpy(zero_copy_only=False)
    return chosen


def _take(column: pa.Array, keep: NDArray[np.bool_]) -> pa.Array:
    return column if keep.all() else column.filter(pa.array(keep))


def _check_column(source: Source, layer: MaskLayer, columns: list[str]) -> None:
    if layer.column is not None and layer.column not in columns:
        known = ", ".join(columns[:12]) + ", ..." * (len(columns) > 12)
        raise SourceError(f"{source.shown}: no column {layer.column!r}; it has {known or 'none'}")


def _system(source: Source, layer: MaskLayer, named: Any) -> CRS:
    """The coordinate system to read in."""
    if layer.crs is not None:
        return horizontal(parse_crs(layer.crs))
    try:
        crs = None if named is None else CRS.from_user_input(named)
    except CRSError as error:
        raise SourceError(f"{source.shown}: its coordinate system is not one that PROJ knows; say crs=EPSG:...") from error
    if crs is None or crs.name.lower().startswith(_NO_SYSTEM):
        raise SourceError(f"{source.shown}: names no coordinate system; if you know it, say crs=EPSG:...")
    flat = horizontal(crs)
    if not (flat.is_projected or flat.is_geographic):
        raise SourceError(f"{source.shown}: its coordinate system {crs.name!r} has no place on the ground; say crs=EPSG:...")
    return flat


def horizontal(crs: CRS) -> CRS:
    """Without heights and datum shifts, under its EPSG code where it has one: equal systems then are equal values."""
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    crs = crs.to_2d()
    code = crs.to_epsg()
    return crs if code is None else CRS.from_epsg(code)


def _fault(source: Source, error: BaseException) -> SourceError | RemoteError:
    """A library's error as ours. Of a URL it may be the network: then asking again tells."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if source.remote is not None:
        try:
            open_remote(source.location)
        except RemoteError as gone:
            return gone
        reason = redact(reason)
    return SourceError(f"{source.shown}: mask layer cannot be read: {reason}")
