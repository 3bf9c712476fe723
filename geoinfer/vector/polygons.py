"""Polygons as columns: integer rings in pixel space, and what was counted inside each.

Knows how polygons are stored, selected, joined and handed to shapely. Does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoinfer.vector import kernels

UNKNOWN = -1
"""Source of a polygon when nobody said which raster it was found in."""
_OPTIONAL = ("transform", "source")


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """N polygons, columnar, pixel space.

    The form is canonical, so equal masks give equal bytes. Every vertex is a corner. A ring starts at its vertex with the
    smallest y, of those the smallest x, and repeats it at the end. Outer rings run anticlockwise on a north-up map
    (clockwise in the y-down pixel frame), holes the other way. The outer ring comes first, holes follow in the
    order of their start vertices (y, then x). Polygons made by this package come in the order of their first pixels.
    """

    coords: NDArray[np.int32]
    """(V, 2) corners, x = col and y = row, pixels."""
    ring_offsets: NDArray[np.int64]
    """(R+1,) where each ring begins in coords."""
    polygon_offsets: NDArray[np.int64]
    """(N+1,) where each polygon begins among the rings."""
    pixels: NDArray[np.int64]
    """(N,) pixel count."""
    prob_sum: NDArray[np.int64]
    """(N,) sum of the uint8 probabilities inside."""
    first: NDArray[np.int32]
    """(N, 2) row, col of the first pixel: smallest row, of those the smallest col."""
    truncated: NDArray[np.bool_]
    """(N,) has a pixel with a 4-neighbour that was not computed."""
    transform: Affine | None = None
    """(col, row) -> (x, y) for shapely and geopandas; None: stay in pixels."""
    source: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,) which raster of the imagery the first pixel came from, `UNKNOWN` where nobody said; so for all where left out."""

    def __post_init__(self) -> None:
        if not len(self.source) and len(self.pixels):
            object.__setattr__(self, "source", np.full(len(self.pixels), UNKNOWN, np.int32))

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def empty(cls, transform: Affine | None = None) -> Polygons:
        """No polygon, all columns."""
        return cls(
            coords=np.zeros((0, 2), np.int32),
            ring_offsets=np.zeros(1, np.int64),
            polygon_offsets=np.zeros(1, np.int64),
            pixels=np.zeros(0, np.int64),
            prob_sum=np.zeros(0, np.int64),
            first=np.zeros((0, 2), np.int32),
            truncated=np.zeros(0, np.bool_),
            transform=transform,
        )

    @classmethod
    def concat(cls, parts: Sequence[Polygons]) -> Polygons:
        """The polygons of all parts, in order; the transform of the first part."""
        parts = [part for part in parts if len(part)] or list(parts[:1])
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        return cls(
            coords=np.concatenate([part.coords for part in parts]),
            ring_offsets=_join_offsets([part.ring_offsets for part in parts]),
            polygon_offsets=_join_offsets([part.polygon_offsets for part in parts]),
            pixels=np.concatenate([part.pixels for part in parts]),
            prob_sum=np.concatenate([part.prob_sum for part in parts]),
            first=np.concatenate([part.first for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            transform=parts[0].transform,
            source=np.concatenate([part.source for part in parts]),
        )

    def take(self, index: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Polygons:
        """The polygons at these positions (or where a boolean mask is True), in that order."""
        chosen = (np.flatnonzero(index) if index.dtype == np.bool_ else index).astype(np.int64, copy=False)
        coords, ring_offsets, polygon_offsets = kernels.take_polygons(
            self.coords, self.ring_offsets, self.polygon_offsets, chosen
        )
        return Polygons(
            coords=coords,
            ring_offsets=ring_offsets,
            polygon_offsets=polygon_offsets,
            pixels=self.pixels[chosen],
            prob_sum=self.prob_sum[chosen],
            first=self.first[chosen],
            truncated=self.truncated[chosen],
            transform=self.transform,
            source=self.source[chosen],
        )

    def in_order(self) -> Polygons:
        """Sorted by first pixel."""
        order = np.lexsort((self.first[:, 1], self.first[:, 0]))
        return self if np.array_equal(order, np.arange(len(self))) else self.take(order)

    def to_shapely(self) -> NDArray[np.object_]:
        """(N,) shapely polygons: in the coordinates of `transform`, or in pixels without one."""
        points = self.coords.astype(np.float64)
        if self.transform is not None:
            points = apply_affine(self.transform, points)
        offsets = (self.ring_offsets, self.polygon_offsets)
        geometries: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
        return geometries

    def to_geopandas(self, crs: Any = None) -> gpd.GeoDataFrame:
        """A table with geometry, pixels, prob_sum and truncated; `crs` is anything that pyproj understands."""
        columns = {"pixels": self.pixels, "prob_sum": self.prob_sum, "truncated": self.truncated}
        return gpd.GeoDataFrame(columns, geometry=self.to_shapely(), crs=crs)

    def to_arrays(self, prefix: str = "") -> dict[str, NDArray[Any]]:
        """All columns by name, for an npz file; the transform is left out, and sources of which none is known."""
        names = [column.name for column in fields(self) if column.name not in _OPTIONAL]
        if (self.source != UNKNOWN).any():
            names.append("source")
        return {prefix + name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Any, prefix: str = "") -> Polygons:
        """The inverse of `to_arrays`; `arrays` is a mapping, also an open npz file."""
        names = [column.name for column in fields(cls) if column.name not in _OPTIONAL]
        if prefix + "source" in arrays:
            names.append("source")
        return cls(**{name: arrays[prefix + name] for name in names})


def apply_affine(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(V, 2) points (col, row) to (x, y). Each value depends on its own point only, bit for bit."""
    moved = np.empty_like(points)
    moved[:, 0] = points[:, 0] * transform.a + points[:, 1] * transform.b + transform.c
    moved[:, 1] = points[:, 0] * transform.d + points[:, 1] * transform.e + transform.f
    return moved


def _join_offsets(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of lists that stand one after another."""
    before = np.cumsum([0] + [part[-1] for part in parts[:-1]])
    moved = [part[1:] + shift for part, shift in zip(parts, before, strict=True)]
    return np.concatenate([np.zeros(1, np.int64), *moved])
