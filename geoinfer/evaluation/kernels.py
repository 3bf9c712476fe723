"""The compiled loops over pairs of polygons: the area they share, and how far their outlines are apart.

All of them take `Outlines` of two sets as flat arrays (xy, sign, rings, polygons) and the pairs as two index arrays, look
at every pair of edges, and need no order, no index and no topology, so that there is nothing that can fail. With
NUMBA_DISABLE_JIT=1 all of them run as plain Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoinfer.compiled import kernel

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

DEPTH = 60
"""How often an edge is halved at most: then its stretches are shorter than the last digit of their coordinates."""


@kernel
def shared_areas(
    xy_a: Float64, sign_a: Float64, rings_a: Int64, polygons_a: Int64,
    xy_b: Float64, sign_b: Float64, rings_b: Int64, polygons_b: Int64,
    first: Int64, second: Int64, most: int,
) -> Float64:  # fmt: skip
    """(K,) area of each intersection; -1 for pairs that have more than `most` pairs of edges.

    A polygon's indicator is the sum over its edges of the indicator of what lies below the edge, negative for edges that
    run to the right with the inside on their left: the trapezoid formula for areas, before it is integrated. The product
    of two such sums, integrated, is the area of the intersection:

        area(A and B) = sum over edges e of A and f of B of  sign(e) sign(f) integral of min(y_e(x), y_f(x)) dx

    over the x that both edges span. From where down "below" reaches cancels, because rings are closed. The integral has a
    closed form. Rounding is that of coordinates of the pair's own size: y is taken from A's first vertex.
    """
    result = np.zeros(len(first))
    for pair in range(len(first)):
        a_from, a_to = polygons_a[first[pair], 0], polygons_a[first[pair], 1]
        b_from, b_to = polygons_b[second[pair], 0], polygons_b[second[pair], 1]
        if a_from == a_to or b_from == b_to:
            continue
        if (rings_a[a_to] - rings_a[a_from]) * (rings_b[b_to] - rings_b[b_from]) > most:
            result[pair] = -1.0
            continue
        floor = xy_a[rings_a[a_from], 1]
        total = 0.0
        for ring_a in range(a_from, a_to):
            for i in range(rings_a[ring_a], rings_a[ring_a + 1] - 1):
                left_x, left_y, right_x, right_y = xy_a[i, 0], xy_a[i, 1] - floor, xy_a[i + 1, 0], xy_a[i + 1, 1] - floor
                if left_x == right_x:
                    continue
                weight = sign_a[ring_a]
                if left_x > right_x:
                    left_x, left_y, right_x, right_y = right_x, right_y, left_x, left_y
                    weight = -weight
                slope = (right_y - left_y) / (right_x - left_x)
                for ring_b in range(b_from, b_to):
                    part = 0.0
                    for j in range(rings_b[ring_b], rings_b[ring_b + 1] - 1):
                        west_x, west_y, east_x, east_y = xy_b[j, 0], xy_b[j, 1], xy_b[j + 1, 0], xy_b[j + 1, 1]
                        turn = 1.0
                        if west_x > east_x:
                            west_x, west_y, east_x, east_y = east_x, east_y, west_x, west_y
                            turn = -1.0
                        low, high = max(left_x, west_x), min(right_x, east_x)
                        if high <= low:
                            continue
                        tilt = (east_y - west_y) / (east_x - west_x)
                        e_low, e_high = left_y + slope * (low - left_x), left_y + slope * (high - left_x)
                        f_low, f_high = west_y - floor + tilt * (low - west_x), west_y - floor + tilt * (high - west_x)
                        above_low, above_high = e_low - f_low, e_high - f_high
                        # min(e, f) = e - max(e - f, 0); the last has a triangle or a trapezoid below it
                        if above_low <= 0.0 and above_high <= 0.0:
                            height = 0.5 * (e_low + e_high)
                        elif above_low >= 0.0 and above_high >= 0.0:
                            height = 0.5 * (f_low + f_high)
                        elif above_low > 0.0:
                            height = 0.5 * (e_low + e_high - above_low * above_low / (above_low - above_high))
                        else:
                            height = 0.5 * (e_low + e_high - above_high * above_high / (above_high - above_low))
                        part += turn * height * (high - low)
                    total += weight * sign_b[ring_b] * part
        result[pair] = max(total, 0.0)
    return result


@kernel
def _apart(x: float, y: float, from_x: float, from_y: float, to_x: float, to_y: float) -> float:
    """Square of the distance of a point from an edge."""
    off_x, off_y = x - from_x, y - from_y
    edge_x, edge_y = to_x - from_x, to_y - from_y
    length = edge_x * edge_x + edge_y * edge_y
    if length > 0.0:
        along = min(max((off_x * edge_x + off_y * edge_y) / length, 0.0), 1.0)
        off_x, off_y = off_x - along * edge_x, off_y - along * edge_y
    return off_x * off_x + off_y * off_y


@kernel
def _nearest(x: float, y: float, xy: Float64, rings: Int64, ring_from: int, ring_to: int) -> float:
    """Distance of a point from the nearest edge of some rings."""
    best = np.inf
    for ring in range(ring_from, ring_to):
        for i in range(rings[ring], rings[ring + 1] - 1):
            best = min(best, _apart(x, y, xy[i, 0], xy[i, 1], xy[i + 1, 0], xy[i + 1, 1]))
    return float(np.sqrt(best))


@kernel
def _reach(
    x: float, y: float, to_x: float, to_y: float, xy: Float64, rings: Int64, ring_from: int, ring_to: int
) -> float:  # fmt: skip
    """What the distance from the nearest edge of some rings stays below on a stretch between two points.

    The distance from one edge is convex along a line, so it is greatest at an end of the stretch: the bound is the least,
    over the edges, of the greater of two distances.
    """
    best = np.inf
    for ring in range(ring_from, ring_to):
        for i in range(rings[ring], rings[ring + 1] - 1):
            one = _apart(x, y, xy[i, 0], xy[i, 1], xy[i + 1, 0], xy[i + 1, 1])
            if one < best:
                best = min(best, max(one, _apart(to_x, to_y, xy[i, 0], xy[i, 1], xy[i + 1, 0], xy[i + 1, 1])))
    return float(np.sqrt(best))


@kernel
def vertex_distances(
    xy_a: Float64, rings_a: Int64, polygons_a: Int64,
    xy_b: Float64, rings_b: Int64, polygons_b: Int64,
    first: Int64, second: Int64,
) -> Float64:  # fmt: skip
    """(K,) mean distance of the vertices of A from the nearest point of the outline of B."""
    result = np.full(len(first), np.nan)
    for pair in range(len(first)):
        b_from, b_to = polygons_b[second[pair], 0], polygons_b[second[pair], 1]
        count, total = 0, 0.0
        for ring in range(polygons_a[first[pair], 0], polygons_a[first[pair], 1]):
            for i in range(rings_a[ring], rings_a[ring + 1] - 1):  # the closing vertex is the first one
                total += _nearest(xy_a[i, 0], xy_a[i, 1], xy_b, rings_b, b_from, b_to)
                count += 1
        if count > 0 and b_to > b_from:
            result[pair] = total / count
    return result


@kernel
def farthest_distances(
    xy_a: Float64, rings_a: Int64, polygons_a: Int64,
    xy_b: Float64, rings_b: Int64, polygons_b: Int64,
    first: Int64, second: Int64, tolerance: float,
) -> Float64:  # fmt: skip
    """(K,) greatest distance of a point of the outline of A from the nearest point of the outline of B.

    Mostly that of a vertex, but an edge across the mouth of a U is farthest in its middle. Stretches of an edge that may
    hide more than the greatest distance known are halved.

    Args:
        tolerance: How much of the greatest distance may be missed, above 0.
    """
    result = np.full(len(first), np.nan)
    stretches = np.empty((DEPTH + 2, 2))  # begin and end along the edge, 0..1; halving adds one at a time
    for pair in range(len(first)):
        a_from, a_to = polygons_a[first[pair], 0], polygons_a[first[pair], 1]
        b_from, b_to = polygons_b[second[pair], 0], polygons_b[second[pair], 1]
        if a_from == a_to or b_from == b_to:
            continue
        farthest = 0.0
        for i in range(rings_a[a_from], rings_a[a_to]):
            farthest = max(farthest, _nearest(xy_a[i, 0], xy_a[i, 1], xy_b, rings_b, b_from, b_to))
        for ring in range(a_from, a_to):
            for i in range(rings_a[ring], rings_a[ring + 1] - 1):
                x, y = xy_a[i, 0], xy_a[i, 1]
                edge_x, edge_y = xy_a[i + 1, 0] - x, xy_a[i + 1, 1] - y
                stretches[0, 0], stretches[0, 1] = 0.0, 1.0
                open_stretches = 1
                while open_stretches > 0:
                    begin, end = stretches[open_stretches - 1]
                    open_stretches -= 1
                    from_x, from_y, to_x, to_y = x + begin * edge_x, y + begin * edge_y, x + end * edge_x, y + end * edge_y
                    if _reach(from_x, from_y, to_x, to_y, xy_b, rings_b, b_from, b_to) <= farthest + tolerance:
                        continue
                    middle = (begin + end) / 2.0
                    middle_x, middle_y = x + middle * edge_x, y + middle * edge_y
                    farthest = max(farthest, _nearest(middle_x, middle_y, xy_b, rings_b, b_from, b_to))
                    if open_stretches < DEPTH:
                        stretches[open_stretches, 0], stretches[open_stretches, 1] = begin, middle
                        stretches[open_stretches + 1, 0], stretches[open_stretches + 1, 1] = middle, end
                        open_stretches += 2
        result[pair] = farthest
    return result


@kernel
def directions(xy: Float64, rings: Int64, polygons: Int64) -> Float64:
    """(N, 3) sums over the edges of each polygon of length cos 4t, length sin 4t and length, t the edge's direction.

    Four times an edge's direction is the same for edges that are parallel or at right angles.
    """
    result = np.zeros((len(polygons), 3))
    for polygon in range(len(polygons)):
        for ring in range(polygons[polygon, 0], polygons[polygon, 1]):
            for i in range(rings[ring], rings[ring + 1] - 1):
                x, y = xy[i + 1, 0] - xy[i, 0], xy[i + 1, 1] - xy[i, 1]
                length = np.sqrt(x * x + y * y)
                if length > 0.0:
                    cos, sin = x / length, y / length
                    cos, sin = cos * cos - sin * sin, 2.0 * cos * sin
                    cos, sin = cos * cos - sin * sin, 2.0 * cos * sin
                    result[polygon, 0] += length * cos
                    result[polygon, 1] += length * sin
                    result[polygon, 2] += length
    return result


@kernel
def count_corners(xy: Float64, rings: Int64, polygons: Int64, tolerance: float) -> Int64:
    """(N,) vertices that are left of each polygon when those on a straight line between others are not counted.

    Each ring is walked from the vertex that is farthest from its first one; a line from the last corner is drawn out as
    long as no vertex that it passes is farther than the tolerance from it, and the vertex before is the next corner. The
    start is a corner, and the result does not depend on how densely straight edges are cut.
    """
    result = np.zeros(len(polygons), np.int64)
    for polygon in range(len(polygons)):
        for ring in range(polygons[polygon, 0], polygons[polygon, 1]):
            begin, count = rings[ring], rings[ring + 1] - rings[ring] - 1
            start, farthest = 0, -1.0
            for i in range(count):
                x, y = xy[begin + i, 0] - xy[begin, 0], xy[begin + i, 1] - xy[begin, 1]
                if x * x + y * y > farthest:
                    start, farthest = i, x * x + y * y
            corners, last, end = 1, 0, 2  # positions are counted from the start and wrap around
            while end <= count:
                from_at, to_at = begin + (start + last) % count, begin + (start + end) % count
                edge_x, edge_y = xy[to_at, 0] - xy[from_at, 0], xy[to_at, 1] - xy[from_at, 1]
                length = np.sqrt(edge_x * edge_x + edge_y * edge_y)
                is_straight = True
                for k in range(last + 1, end):
                    at = begin + (start + k) % count
                    x, y = xy[at, 0] - xy[from_at, 0], xy[at, 1] - xy[from_at, 1]
                    along = x * edge_x + y * edge_y
                    off = np.sqrt(x * x + y * y)
                    if length > 0.0 and 0.0 <= along <= length * length:
                        off = abs(x * edge_y - y * edge_x) / length
                    elif length > 0.0:  # it turned back
                        off = max(off, tolerance * 2.0)
                    if off > tolerance:
                        is_straight = False
                        break
                if is_straight:
                    end += 1
                else:
                    last = end - 1
                    corners += 1
                    end = last + 2
            result[polygon] += corners
    return result


@kernel
def take_in_order(order: Int64, starts: Int64, truth: Int64, iou: Float64, needed: NDArray[np.bool_]) -> Int64:
    """(P,) which of its candidates each prediction takes, when they choose in the given order; -1 for none.

    Each takes the free true footprint of the greatest IoU, of equal ones the first, and a needed one before any other.

    Args:
        order: (P,) predictions, the first to choose first.
        starts: (P + 1,) where the candidates of each prediction begin.
        truth: (K,) candidates, sorted by prediction and then by their own index.
        iou: (K,) of the candidates.
        needed: (T,).
    """
    is_taken = np.zeros(len(needed), np.bool_)
    takes = np.full(len(order), -1, np.int64)
    for pred in order:
        best, best_iou, best_needed = -1, -1.0, False
        for at in range(starts[pred], starts[pred + 1]):
            is_needed = needed[truth[at]]
            if is_taken[truth[at]] or (best_needed and not is_needed):
                continue
            if iou[at] > best_iou or (is_needed and not best_needed):
                best, best_iou, best_needed = at, iou[at], is_needed
        if best >= 0:
            is_taken[truth[best]] = True
            takes[pred] = best
    return takes
