"""How alike the outlines of paired footprints are. Knows polygons in one plane; distances are in its units.

Each function takes two arrays (N,) of valid polygons or multipolygons, none of them missing or empty, or their `Outlines`,
and gives an array (N,). All rings take part, holes too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.evaluation import kernels
from geoinfer.evaluation.outlines import Geometries, Outlines, outlines_of

Floats = NDArray[np.float64]
Shapes = Geometries | Outlines

COLLINEAR = 0.01
"""A vertex this near the straight line between its neighbours is none, metres: below any survey, above rounding."""
HAUSDORFF_TOLERANCE = 1e-3
"""How much of the Hausdorff distance may be missed, metres."""
LEAST_CLARITY = 0.25
"""Share of an outline's length that its dominant direction must carry. 1 for a rectangle, 0 for a circle or an octagon; an
outline of n equal edges in random directions reaches about 1 / sqrt(n)."""
ARC_SEGMENTS = 8
"""Straight pieces of a quarter of a circle about reflex corners, in what lies deeper than the boundary's width."""


def polis(a: Shapes, b: Shapes) -> Floats:
    """PoLiS distance: the mean distance of the vertices of each outline from the other outline, averaged over both sides.

        1/(2 q) sum over the q vertices of A of min distance to outline B + 1/(2 r) sum over the r vertices of B likewise

    Symmetric, and 0 for equal outlines. Avbelj, Müller and Bamler 2015, "A Metric for Polygon Comparison and Building
    Extraction Evaluation", IEEE Geoscience and Remote Sensing Letters 12(1), 170-174. Vertices on straight edges count, as
    there.
    """
    return (_each_way(kernels.vertex_distances, a, b) + _each_way(kernels.vertex_distances, b, a)) / 2


def hausdorff(a: Shapes, b: Shapes, tolerance: float = HAUSDORFF_TOLERANCE) -> Floats:
    """Hausdorff distance of the outlines: how far a point of either may be from the other.

    Over all points of the edges, not only over vertices. Hausdorff 1914, "Grundzüge der Mengenlehre"; Huttenlocher,
    Klanderman and Rucklidge 1993, "Comparing Images Using the Hausdorff Distance", IEEE PAMI 15(9).

    Args:
        a: (N,).
        b: (N,).
        tolerance: How much may be missed, above 0.
    """
    kernel = kernels.farthest_distances
    return np.maximum(_each_way(kernel, a, b, tolerance), _each_way(kernel, b, a, tolerance))


def shared_area(a: Shapes, b: Shapes) -> Floats:
    """Area of each intersection; see `kernels.shared_areas`."""
    left, right, pairs = _outlines(a), _outlines(b), _every(a)
    everything = np.iinfo(np.int64).max
    return kernels.shared_areas(
        left.xy, left.sign, left.rings, left.polygons, right.xy, right.sign, right.rings, right.polygons,
        pairs, pairs, everything,
    )  # fmt: skip


def boundary_iou(a: Geometries, b: Geometries, distance: float) -> Floats:
    """IoU of what lies within a distance of each outline, inside it.

        |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|

    with G_d the points within the distance d of the outline of G: Cheng et al. 2021, "Boundary IoU: Improving Object-Centric
    Image Segmentation Evaluation", CVPR. Here d is a length on the ground, there a share of the image's diagonal.
    At a d that leaves nothing deeper inside, it is the plain IoU.

    The boundary is G without its inner part G', what is deeper than d, so that its areas are those of intersections:
    |A and B| - |A' and B| - |A and B'| + |A' and B'|.

    Args:
        a: (N,).
        b: (N,).
        distance: d, above 0.
    """
    deep_a, deep_b = (shapely.buffer(side, -distance, quad_segs=ARC_SEGMENTS) for side in (a, b))
    outer_a, outer_b, inner_a, inner_b = (outlines_of(side) for side in (a, b, deep_a, deep_b))
    shared = (
        shared_area(outer_a, outer_b) - shared_area(inner_a, outer_b)
        - shared_area(outer_a, inner_b) + shared_area(inner_a, inner_b)
    )  # fmt: skip
    both = shapely.area(a) - shapely.area(deep_a) + shapely.area(b) - shapely.area(deep_b)
    iou: Floats = np.clip(shared / (both - shared), 0.0, 1.0)  # against rounding
    return iou


def centroid_offset(a: Geometries, b: Geometries) -> tuple[Floats, Floats]:
    """How far the centroid of A lies from that of B: dx (N,) and dy (N,), to be added to B to lie where A is."""
    here, there = shapely.centroid(a), shapely.centroid(b)
    return shapely.get_x(here) - shapely.get_x(there), shapely.get_y(here) - shapely.get_y(there)


def dominant_angle(a: Shapes) -> Floats:
    """The direction that an outline's edges have, modulo 90 degrees, each weighted by its length.

    The direction of the mean of exp(4 i t): the circular mean of data that repeat four times a turn, as edges of a right-
    angled outline do (Mardia and Jupp 2000, "Directional Statistics", on axial data, with 4 for their 2). An outline along
    pixel edges has the direction of the pixels.

    Returns:
        (N,) degrees anticlockwise from the x axis, 0 or more and below 90; NaN where no direction dominates, see
        `LEAST_CLARITY`.
    """
    outlines = _outlines(a)
    cos, sin, length = kernels.directions(outlines.xy, outlines.rings, outlines.polygons).T
    angle = np.degrees(np.arctan2(sin, cos)) / 4 % 90
    return np.where(np.hypot(cos, sin) >= LEAST_CLARITY * length, np.where(angle < 90, angle, 0.0), np.nan)


def rotation_error(a: Shapes, b: Shapes) -> Floats:
    """(N,) angle between the dominant directions, degrees, 0 to 45; NaN where one of both has none."""
    turned = np.abs(dominant_angle(a) - dominant_angle(b))
    error: Floats = np.minimum(turned, 90 - turned)
    return error


def corners(a: Shapes, tolerance: float = COLLINEAR) -> Floats:
    """(N,) vertices of each polygon without those on a straight line between others.

    Args:
        a: (N,).
        tolerance: How near the line.
    """
    outlines = _outlines(a)
    return kernels.count_corners(outlines.xy, outlines.rings, outlines.polygons, tolerance).astype(np.float64)


def vertex_ratio(a: Shapes, b: Shapes, tolerance: float = COLLINEAR) -> Floats:
    """Vertices of A over those of B, the N-ratio of Zorzi et al. 2022, "PolyWorld: Polygonal Building Extraction with Graph
    Neural Networks in Satellite Images"; 1 is best. Vertices on straight edges do not count, see `corners`.
    """
    return corners(a, tolerance) / corners(b, tolerance)


def area_ratio(a: Geometries, b: Geometries) -> Floats:
    """(N,) area of A over that of B."""
    ratio: Floats = shapely.area(a) / shapely.area(b)
    return ratio


def _outlines(shapes: Shapes) -> Outlines:
    return shapes if isinstance(shapes, Outlines) else outlines_of(shapes)


def _every(shapes: Shapes) -> NDArray[np.int64]:
    count = len(shapes.polygons) if isinstance(shapes, Outlines) else len(shapes)
    return np.arange(count, dtype=np.int64)


def _each_way(kernel: Callable[..., Floats], a: Shapes, b: Shapes, *more: float) -> Floats:
    left, right, pairs = _outlines(a), _outlines(b), _every(a)
    return kernel(left.xy, left.rings, left.polygons, right.xy, right.rings, right.polygons, pairs, pairs, *more)
