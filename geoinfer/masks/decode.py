"""Geometries from well-known binary and from GeoJSON, many at a time; what is none is counted by the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

_CURVED = range(8, 18)
"""Kinds of geometry with arcs, and surfaces of many faces: GEOS has none of them."""
_COLLECTION = 7


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some features."""

    feature: NDArray[np.int64]
    """(N,) place in the file."""
    shapes: NDArray[np.object_]
    """(N,) geometries of any kind, none of them None."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> features of the file that are not among `shapes`."""


def from_binary(feature: NDArray[np.int64], column: pa.Array) -> Batch:
    """Geometries from well-known binary; curves, nulls and what is no geometry are counted.

    Raises:
        ValueError: The column itself is damaged.
    """
    binary = column.cast(pa.large_binary())
    kinds = _kinds_of(binary)
    curved = np.isin(kinds, list(_CURVED))
    dropped = Counter(null=int((kinds == -1).sum()), malformed=int((kinds == 0).sum()), curved=int(curved.sum()))
    keep = np.flatnonzero((kinds > 0) & ~curved)
    shapes = shapely.from_wkb(binary.take(pa.array(keep)).to_numpy(zero_copy_only=False), on_invalid="ignore")
    broken = shapely.is_missing(shapes)
    hidden = ~broken & (kinds[keep] == _COLLECTION)
    hidden[hidden] = [_holds_curves(shape) for shape in shapes[hidden]]
    dropped.update(malformed=int(broken.sum()), curved=int(hidden.sum()))
    return Batch(feature[keep[~(broken | hidden)]], shapes[~(broken | hidden)], +dropped)


def _holds_curves(collection: shapely.Geometry) -> bool:
    """GEOS reads a curve within a collection, and then does nothing with it."""
    try:
        shapely.get_coordinates(collection)
    except (shapely.errors.GEOSException, NotImplementedError):
        return True
    return False


def _kinds_of(binary: pa.Array) -> NDArray[np.int64]:
    """(N,) kind of geometry by OGC 06-103r4, table 15, without Z and M; -1 for null, 0 where there is no header."""
    count = len(binary)
    offsets = np.frombuffer(binary.buffers()[1], np.int64, count + 1, 8 * binary.offset) if count else np.zeros(1, np.int64)
    data = np.frombuffer(binary.buffers()[2] or b"", np.uint8)
    start, size = offsets[:-1], np.diff(offsets)
    if (size < 0).any() or offsets[-1] > len(data):
        raise ValueError("damaged: geometries overlap in their column")
    kinds = np.zeros(count, np.int64)
    long_enough = size >= 5
    header = data[start[long_enough, None] + np.arange(5)].astype(np.int64)  # (n, 5)
    little = header[:, 1:] @ (1 << np.array([0, 8, 16, 24]))
    big = header[:, 1:] @ (1 << np.array([24, 16, 8, 0]))
    code = np.where(header[:, 0] == 1, little, big)
    code = np.where(header[:, 0] <= 1, (code & 0x0FFFFFFF) % 1000, 0)  # the high bits are PostGIS' way to say Z, M, SRID
    kinds[long_enough] = np.where(code <= 17, code, 0)
    if binary.null_count:
        kinds[binary.is_null().to_numpy(zero_copy_only=False)] = -1
    return kinds


def from_texts(feature: list[int], texts: list[str | None]) -> Batch:
    """Features from their JSON; a null geometry and one that GEOS does not take are counted."""
    shapes = shapely.from_geojson(np.array(texts, object), on_invalid="ignore")
    missing = np.array([text is None for text in texts])
    broken = ~missing & shapely.is_missing(shapes)
    dropped = Counter(null=int(missing.sum()), malformed=int(broken.sum()))
    keep = ~(missing | broken)
    return Batch(np.array(feature, np.int64)[keep], shapes[keep], +dropped)
