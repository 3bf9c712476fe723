"""From a mask to polygons: exact pixel outlines of 4-connected components.

Pack the mask to bits, find the crossings of each row, label runs by union-find, link the crossings to outlines and walk
these: after the packing all work is proportional to the length of the outlines. The same polygons as
`rasterio.features.shapes(connectivity=4)`: tested, not copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.vector import kernels
from geoinfer.vector.bits import BitMask, pack
from geoinfer.vector.kernels import Int32, Int64
from geoinfer.vector.polygons import Polygons


def polygonize(
    mask: NDArray[Any] | BitMask,
    transform: Affine | None = None,
    *,
    prob: NDArray[np.uint8] | None = None,
    valid: NDArray[np.bool_] | None = None,
    offset: tuple[int, int] = (0, 0),
) -> Polygons:
    """The polygons of a mask, in the order of their first pixels.

    Args:
        mask: (H, W) bool or integer, not zero is foreground, masked pixels of a masked array are not; or bits of `at_least`.
        transform: (col, row) -> (x, y) for the geometries; None: pixels.
        prob: (H, W) uint8 to add up in each polygon; without it each pixel counts 255.
        valid: (H, W) bool, pixels that were computed; others are never foreground. What lies outside the array was not
            computed either, so polygons at its edge are truncated.
        offset: (row, col) of the array's first pixel, added to coordinates and first pixels.
    """
    if transform is not None and not isinstance(transform, Affine):
        raise ConfigError(f"transform of type {type(transform).__name__}: give an Affine, as a dataset's transform is")
    found = label_components(mask if isinstance(mask, BitMask) else np.ma.filled(mask, 0), prob, valid)
    truncated = found.truncated.copy()
    for side in found.sides():
        truncated[side[side >= 0]] = True
    return found.outlines(transform, offset, truncated)


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The labelled runs of a mask: all that the outlines and the tile edges follow from."""

    xs: Int32
    row_offsets: Int64
    run_rows: Int32
    label: Int32
    width: int
    pixels: Int64
    prob_sum: Int64
    first: Int32
    truncated: NDArray[np.bool_]
    """(N,) touches a pixel inside the mask that was not computed."""

    def outlines(self, transform: Affine | None, offset: tuple[int, int], truncated: NDArray[np.bool_]) -> Polygons:
        """The components as polygons, moved by `offset` (row, col)."""
        coords, ring_offsets, polygon_offsets = trace(
            self.xs, self.row_offsets, self.run_rows, self.label, len(self.pixels), offset
        )
        return Polygons(
            coords=coords,
            ring_offsets=ring_offsets,
            polygon_offsets=polygon_offsets,
            pixels=self.pixels,
            prob_sum=self.prob_sum,
            first=self.first + np.array(offset, np.int32),
            truncated=truncated,
            transform=transform,
        )

    def sides(self) -> tuple[Int32, Int32, Int32, Int32]:
        """Component at each pixel of the top, bottom, left and right side, -1 for background."""
        if len(self.row_offsets) < 2:
            empty = np.zeros(0, np.int32)
            return np.full(self.width, -1, np.int32), np.full(self.width, -1, np.int32), empty, empty
        return kernels.label_sides(self.xs, self.row_offsets, self.label, self.width)


def trace(
    xs: Int32, row_offsets: Int64, run_rows: Int32, label: Int32, components: int, offset: tuple[int, int] = (0, 0)
) -> tuple[Int32, Int64, Int64]:
    """coords, ring_offsets and polygon_offsets of labelled runs: the one way from runs to rings."""
    follow, corners = kernels.link_edges(xs, row_offsets, label)
    coords, ring_offsets, ring_label = kernels.trace_rings(xs, run_rows, label, follow, corners, *offset)
    return kernels.group_rings(coords, ring_offsets, ring_label, components)


def label_components(
    mask: NDArray[Any] | BitMask, prob: NDArray[np.uint8] | None = None, valid: NDArray[np.bool_] | None = None
) -> Components:
    """Label the 4-connected components of a mask and count inside each; arguments as for `polygonize`."""
    if not isinstance(mask, BitMask) and (mask.ndim != 2 or mask.dtype.kind not in "bui"):
        raise ConfigError(f"mask of shape {mask.shape}, {mask.dtype}: polygonize takes a 2-D bool or integer array")
    for name, array in (("prob", prob), ("valid", valid)):
        if array is not None and array.shape != mask.shape:
            raise ConfigError(f"{name} of shape {array.shape} does not fit the mask of shape {mask.shape}")
    if prob is not None and prob.dtype != np.uint8:
        raise ConfigError(f"prob is {prob.dtype}: give uint8 probabilities, 0..255")
    height, width = mask.shape
    if height * width >= 2**31:
        raise ConfigError(f"mask of {height} x {width} px: split it into tiles of less than 2**31 pixels and stitch these")
    words = (mask if isinstance(mask, BitMask) else pack(mask)).words
    is_complete = valid is None or bool(valid.all())
    if valid is not None and not is_complete:
        words = words & pack(valid).words
    xs, row_offsets = kernels.find_crossings(words)
    label, components = kernels.label_runs(xs, row_offsets)
    run_rows = kernels.rows_of_runs(row_offsets, np.arange(height, dtype=np.int32))
    no_prob = np.zeros((0, 0), np.uint8)
    pixels, prob_sum, first = kernels.measure_components(
        xs, run_rows, label, components, no_prob if prob is None else np.ascontiguousarray(prob)
    )
    if valid is None or is_complete:
        truncated = np.zeros(components, np.bool_)
    else:
        computed = np.ascontiguousarray(valid, np.bool_)
        complete_row = np.asarray(computed.all(axis=1))
        truncated = kernels.find_truncated(xs, run_rows, label, components, computed, complete_row)
    return Components(xs, row_offsets, run_rows, label, width, pixels, prob_sum, first, truncated)
