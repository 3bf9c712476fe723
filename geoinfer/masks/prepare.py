"""Prepare a layer: once, before any inference, streamed from its file into small pieces in the grid's coordinate system.

The pieces go to one FlatGeobuf, whose packed R-tree answers every later question by box. What a piece is depends on its
feature alone; the region decides only which pieces are written. So whatever region a layer was prepared for, it says the
same of a footprint within that region.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from geoinfer.errors import ConfigError, OutputError, SourceError
from geoinfer.masks import raster, source
from geoinfer.masks.lattice import meets
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.project import Projection
from geoinfer.masks.read import open_header, read_batches
from geoinfer.masks.repair import repair
from geoinfer.region import Bounds

_FORMAT = 1
"""Of the prepared pieces: a change of how they are made makes older ones unusable."""
_SCHEMA = pa.schema([("feature", pa.int64()), ("piece", pa.int64()), ("geometry", pa.binary())])


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Small polygons of a layer."""

    shapes: NDArray[np.object_]
    """(N,) valid Polygons in the grid's CRS, in (feature, piece) order."""
    feature: NDArray[np.int64]
    """(N,) number of the feature that each is a part of."""


@dataclass(frozen=True, slots=True)
class PreparedLayer:
    """A layer made ready for one region. Picklable, nothing is open."""

    layer: MaskLayer
    path: Path
    """FlatGeobuf of the pieces."""
    features: int
    """That met the region. Of a raster: outlines of its classes within squares of its lattice."""
    repaired: int
    """Of these were not valid as they stood in the file."""
    dropped: dict[str, int]
    """Reason (null, empty, malformed, curved, not_polygon, not_finite, no_area) -> features left out. Features without a
    place are counted only where the whole file is read (`read.READ_WHOLE`)."""
    pieces: int
    bounds: Bounds | None
    """Of the pieces, in the grid's CRS; None when there are none."""
    source_bounds: Bounds | None
    """Of the whole layer, in its own CRS; None where nothing says."""

    def read(self, bounds: Bounds) -> Pieces:
        """The pieces that meet a box.

        Which pieces these are, and their order, does not depend on the region the layer was prepared for, as long as
        the box lies within that region (and `project.OVERSHOOT_M`). A piece counts when its shape meets the box, not
        its bounds alone. Any number of threads may read at once.

        Args:
            bounds: (minx, miny, maxx, maxy) in the grid's CRS.

        Raises:
            SourceError: The prepared file is gone or damaged.
        """
        mine = self.bounds
        if mine is None or not meets(np.array([bounds]), np.array([mine]))[0]:
            return Pieces(np.zeros(0, object), np.zeros(0, np.int64))
        import pyogrio  # a GDAL of its own: only where there is a layer

        try:
            _, table = pyogrio.read_arrow(self.path, bbox=tuple(bounds), columns=["feature", "piece"])
        except (RuntimeError, OSError, ValueError) as error:
            raise SourceError(f"{self.path}: damaged: {error}; remove it and start again") from error
        # Where only boxes meet and no shape does, GDAL 3.12 hands over a full batch of rows without a geometry.
        table = table.filter(pc.greater(pc.binary_length(table.column(table.num_columns - 1)), 0))
        feature, piece = (table.column(name).to_numpy() for name in ("feature", "piece"))
        shapes = shapely.from_wkb(table.column(table.num_columns - 1).to_numpy())
        order = np.lexsort((piece, feature))
        return Pieces(shapes[order], feature[order])


def prepare(layer: MaskLayer, crs: CRS, bounds: Bounds, folder: Path) -> PreparedLayer:
    """Repair, reproject, buffer and cut a layer's features, and write them to FOLDER/NAME.fgb; reuse what is there already.

    Atomic: NAME.json, which says what NAME.fgb is of, is removed first and written last.

    Args:
        layer: The layer.
        crs: The grid's coordinate system: projected, true to the ground.
        bounds: Of the region, in `crs`. Whatever is asked of the layer later lies within them and `project.OVERSHOOT_M`.
        folder: Made where it does not exist.

    Raises:
        SourceError: Damaged, cut off, or changed since it was opened.
        RemoteError: A URL that stopped answering.
        OutputError: The folder cannot be written.
    """
    if not (np.isfinite(bounds).all() and bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        raise ConfigError(f"mask {layer.name}: bounds {bounds} of the region have no area")
    key = _key(layer, crs, bounds)
    data, note = folder / f"{layer.name}.fgb", folder / f"{layer.name}.json"
    if (known := _reuse(layer, key, data, note)) is not None:
        return known
    found = source.look(layer.source)
    if found.version != layer.version:
        raise SourceError(f"{found.shown}: changed since it was opened (now {found.version[:20]}...); open the layer again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    work = _Work(layer, found, Projection(_crs_of(layer, found), crs, layer.buffer_m, bounds))
    scratch = folder / f".{layer.name}.{os.getpid()}.fgb"
    try:
        _write(work, scratch, crs)
        counts = work.features, work.repaired, dict(sorted(work.dropped.items())), work.pieces
        prepared = PreparedLayer(layer, data, *counts, work.bounds, work.source_bounds)
        scratch.replace(data)
        _write_note(prepared, key, note)
    finally:
        scratch.unlink(missing_ok=True)
    return prepared


@dataclass(slots=True)
class _Work:
    """One preparation: what was counted so far."""

    layer: MaskLayer
    source: source.Source
    projection: Projection
    features: int = 0
    repaired: int = 0
    pieces: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bounds: Bounds | None = None
    source_bounds: Bounds | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The pieces, ready to be written."""
        for feature, shapes in self._outlines() if self.layer.kind == "raster" else self._features():
            meets_region = self._meets_region(shapes)
            feature, shapes = feature[meets_region], shapes[meets_region]
            if not len(shapes):
                continue
            if self.layer.kind == "vector":
                self.features += len(np.unique(feature))  # all pieces of a feature come together
            self.bounds = _join(self.bounds, shapely.total_bounds(shapes))
            numbers = np.arange(self.pieces, self.pieces + len(shapes))
            self.pieces += len(shapes)
            yield pa.record_batch([feature, numbers, pa.array(shapely.to_wkb(shapes), pa.binary())], schema=_SCHEMA)

    def _meets_region(self, shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
        """(N,) a piece itself, not its bounds alone, meets the region: a layer that only comes near touches nothing."""
        bounds, (region,) = shapely.bounds(shapes), self.projection.target_boxes
        meets_it: NDArray[np.bool_] = ((bounds[:, :2] >= region[:2]) & (bounds[:, 2:] <= region[2:])).all(axis=1)
        beyond = np.flatnonzero(~meets_it)
        meets_it[beyond] = shapely.intersects(shapes[beyond], shapely.box(*region))
        return meets_it

    def _features(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.object_]]]:
        header = open_header(self.source, self.layer)
        self.source_bounds = header.bounds
        for batch in read_batches(self.source, self.layer, header, self.projection.boxes):
            self.dropped.update(batch.dropped)
            bounds = shapely.bounds(batch.shapes)
            placed = np.isfinite(bounds).all(axis=1)
            if header.bounds is None and placed.any():
                low, high = bounds[placed, :2].min(axis=0), bounds[placed, 2:].max(axis=0)
                self.source_bounds = _join(self.source_bounds, np.concatenate([low, high]))
            near = ~placed | meets(bounds, self.projection.boxes)  # without a place: counted by the reason
            if not near.any():
                continue
            done = repair(batch.shapes[near])
            placing = self.projection.place(done.shapes)
            self.repaired += done.repaired
            self.dropped.update(done.dropped)
            self.dropped.update(placing.dropped)
            yield batch.feature[near][done.index[placing.index]], placing.shapes

    def _outlines(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.object_]]]:
        header = raster.inspect(self.source, self.layer)
        self.source_bounds = header.bounds
        for found in raster.outline(self.source, self.layer, header, self.projection):
            if self.projection.buffer:
                near, (index, shapes) = np.ones(len(found.shapes), np.bool_), self.projection.cut(found.shapes)
            else:
                near = meets(shapely.bounds(found.shapes), self.projection.boxes)
                placing = self.projection.place(found.shapes[near])
                index, shapes = placing.index, placing.shapes
                self.dropped.update(placing.dropped)
            self.features += int(near.sum())
            yield found.feature[near][index], shapes


def _crs_of(layer: MaskLayer, found: source.Source) -> CRS:
    return raster.inspect(found, layer).crs if layer.kind == "raster" else open_header(found, layer).crs


def _write(work: _Work, path: Path, crs: CRS) -> None:
    """Stream the pieces into a FlatGeobuf."""
    failed: list[Exception] = []

    def stream() -> Iterator[pa.RecordBatch]:
        try:
            yield from work.batches()
        except Exception as error:
            failed.append(error)  # Arrow's stream would carry a text alone
            raise

    import pyogrio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(_SCHEMA, stream()),
                path,
                driver="FlatGeobuf",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs.to_wkt(),
                layer=work.layer.name,
            )
    except (RuntimeError, OSError, ValueError) as error:
        if failed:
            raise failed[0] from None
        raise OutputError(f"{path.parent}: prepared mask {work.layer.name} cannot be written: {error}") from error
    if failed:
        raise failed[0]


def _key(layer: MaskLayer, crs: CRS, bounds: Bounds) -> dict[str, object]:
    """What the pieces depend on, as JSON gives it back. What the layer does to footprints is not among it."""
    fields = ("name", "buffer_m", "crs", "column", "classes", "kind", "version")
    about = {name: value for name, value in layer.describe().items() if name in fields}
    return {"format": _FORMAT, "layer": about, "crs": crs.to_wkt(), "bounds": [float(value) for value in bounds]}


def _reuse(layer: MaskLayer, key: dict[str, object], data: Path, note: Path) -> PreparedLayer | None:
    try:
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if known["key"] != key or data.stat().st_size != known["bytes"]:
            return None
        bounds, source_bounds = (None if known[name] is None else tuple(known[name]) for name in ("bounds", "source_bounds"))
        return PreparedLayer(
            layer, data, known["features"], known["repaired"], known["dropped"], known["pieces"], bounds, source_bounds
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(prepared: PreparedLayer, key: dict[str, object], note: Path) -> None:
    content = {
        "key": key,
        "bytes": prepared.path.stat().st_size,
        "features": prepared.features,
        "repaired": prepared.repaired,
        "dropped": prepared.dropped,
        "pieces": prepared.pieces,
        "bounds": prepared.bounds,
        "source_bounds": prepared.source_bounds,
    }
    scratch = note.with_name(f".{note.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
    scratch.replace(note)


def _join(bounds: Bounds | None, more: NDArray[np.float64]) -> Bounds:
    west, south, east, north = more.tolist()
    if bounds is None:
        return west, south, east, north
    return min(bounds[0], west), min(bounds[1], south), max(bounds[2], east), max(bounds[3], north)
