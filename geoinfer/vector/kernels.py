"""The compiled loops behind polygonize and stitch: flat arrays in, flat arrays out.

All of them work on *crossings*. In a row, a crossing is an x where the mask changes; a row's crossings are sorted and come
in pairs, so crossing 2i is the left side of run i and crossing 2i + 1 its right side (exclusive). A crossing also *is* an
edge of the outline: the unit edge from (x, row) to (x, row + 1). Left sides are walked down and right sides up, so the
foreground lies on the left hand when rows are drawn downwards, and outer rings run anticlockwise on a map.

    xs           (2R,)  int32  crossings, row after row
    row_offsets  (H+1,) int64  where each row's crossings begin in xs
    label        (R,)   int32  component of each run, 0.. in the order of first pixels
    follow       (2R,)  int32  the edge that the outline takes after each edge

Whatever has crossings can be traced, hence one tracer serves a mask and the union of fragments, and the two cannot differ.
Rows may be images stacked with an empty row between them.

Kernels release the GIL and never use numba's own threads: those abort the process when two Python threads meet in them.
With NUMBA_DISABLE_JIT=1 all of them run as plain Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoinfer.compiled import kernel

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

NOWHERE = -1
"""No component at this pixel of a tile edge: computed, and background."""
NOT_COMPUTED = -2
"""Nobody looked at this pixel of a tile edge."""

# Position of the only set bit of a 32-bit word: multiply by a de Bruijn sequence and look up the top five bits
# (Leiserson, Prokop and Randall 1998). Plain int64 arithmetic, so that it also runs without the compiler.
_DE_BRUIJN = 0x077CB531
_BIT_POSITION = np.zeros(32, np.int64)
for _bit in range(32):
    _BIT_POSITION[((_DE_BRUIJN << _bit) & 0xFFFFFFFF) >> 27] = _bit


@kernel
def count_bits(word: np.int64) -> np.int64:
    """Bits set among the lowest 32, in parallel (Warren, Hacker's Delight, section 5-1): no branch, so loops vectorise."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) & 0xFFFFFFFF) >> 24


@kernel
def find_crossings(words: NDArray[np.uint32]) -> tuple[Int32, Int64]:
    """Crossings of a bit mask, 32 pixels at a time.

    A word differs from itself shifted by one pixel exactly at its crossings, so a word without any costs one comparison.
    Two passes: count, which no word waits for another in, then fill.

    Args:
        words: (H, ceil(W / 32)) bits, lowest bit leftmost; bits beyond the width are 0.

    Returns:
        xs and row_offsets as in the module's docstring.
    """
    height, length = words.shape
    row_offsets = np.zeros(height + 1, np.int64)
    count = np.int64(0)
    for row in range(height):
        if length > 0:
            word = np.int64(words[row, 0])
            count += count_bits((word ^ (word << 1)) & 0xFFFFFFFF) + (np.int64(words[row, length - 1]) >> 31)
        for k in range(1, length):
            word = np.int64(words[row, k])
            count += count_bits((word ^ ((word << 1) | (np.int64(words[row, k - 1]) >> 31))) & 0xFFFFFFFF)
        row_offsets[row + 1] = count
    xs = np.empty(count, np.int32)
    at = 0
    for row in range(height):
        if row_offsets[row + 1] == row_offsets[row]:
            continue
        carry = np.int64(0)
        for k in range(length):
            word = np.int64(words[row, k])
            change = (word ^ ((word << 1) | carry)) & 0xFFFFFFFF
            carry = word >> 31
            while change != 0:
                lowest = change & -change
                xs[at] = 32 * k + _BIT_POSITION[((lowest * _DE_BRUIJN) & 0xFFFFFFFF) >> 27]
                at += 1
                change ^= lowest
        if carry != 0:
            xs[at] = 32 * length
            at += 1
    return xs, row_offsets


@kernel
def label_runs(xs: Int32, row_offsets: Int64) -> tuple[Int32, int]:
    """Label 4-connected runs: union-find over the runs that overlap a run of the row above.

    The run-based two-scan algorithm of He, Chao and Suzuki (2008): the smaller root wins, so a root is the run that holds
    the component's first pixel, and numbering the roots in order numbers components by first pixel.

    Returns:
        label (R,) int32 and the number of components.
    """
    parent = np.arange(xs.size // 2).astype(np.int32)
    for row in range(1, row_offsets.size - 1):
        above, below = row_offsets[row - 1] // 2, row_offsets[row] // 2
        above_stop, below_stop = below, row_offsets[row + 1] // 2
        while above < above_stop and below < below_stop:
            if xs[2 * above] < xs[2 * below + 1] and xs[2 * below] < xs[2 * above + 1]:
                a, b = above, below
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = np.int64(parent[a])
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = np.int64(parent[b])
                if a < b:
                    parent[b] = a
                else:
                    parent[a] = b
            if xs[2 * above + 1] < xs[2 * below + 1]:
                above += 1
            else:
                below += 1
    count = 0
    for run in range(parent.size):
        if parent[run] == run:
            parent[run] = count
            count += 1
        else:
            parent[run] = parent[parent[run]]  # a parent comes before its children, so it already holds its label
    return parent, count


@kernel
def link_edges(xs: Int32, row_offsets: Int64, label: Int32) -> tuple[Int32, int]:
    """Join the edges to outlines, by merging the crossings of each pair of neighbouring rows.

    Between two rows the outline has a horizontal piece wherever exactly one of them is set. Walking along the merged
    crossings such pieces begin and end alternately, so each one joins the edge before it to the edge after it. A crossing
    in both rows at one x is either the same side (the outline goes straight on: no corner) or a saddle, where two pixels
    of the foreground meet only at a corner. Pixels of two components are kept apart there. Pixels of one component are
    joined there, which keeps the two *background* pixels apart: these cannot belong to one side of the component, since its
    own 4-connected path together with the corner encloses one of them. So no ring ever touches itself, a hole may touch
    the outer ring or another hole at a point, and polygons are valid.

    Returns:
        follow (2R,) int32, and the number of corners of all outlines together.
    """
    follow = np.empty(xs.size, np.int32)
    corners = 0
    height = row_offsets.size - 1
    for row in range(height + 1):
        above = row_offsets[max(row - 1, 0)]
        below = above_stop = row_offsets[row]
        below_stop = row_offsets[min(row + 1, height)]
        pending = np.int64(-1)
        while above < above_stop or below < below_stop:
            if below == below_stop or (above < above_stop and xs[above] < xs[below]):
                edge = above
                above += 1
                after = np.int64(-1)
            elif above == above_stop or xs[below] < xs[above]:
                edge = below
                below += 1
                after = np.int64(-1)
            else:
                if (above ^ below) & 1 == 0:
                    if above & 1 == 0:
                        follow[above] = below
                    else:
                        follow[below] = above
                    above += 1
                    below += 1
                    continue
                if (above & 1 == 1) != (label[above >> 1] == label[below >> 1]):
                    edge, after = above, below
                else:
                    edge, after = below, above
                above += 1
                below += 1
            if pending < 0:
                pending = edge
                continue
            # Left sides run down and right sides up: of two edges that meet here one arrives and one leaves.
            if (pending < above_stop) == (pending & 1 == 0):
                follow[pending] = edge
            else:
                follow[edge] = pending
            corners += 2
            pending = after
    return follow, corners


@kernel
def trace_rings(
    xs: Int32, run_rows: Int32, label: Int32, follow: Int32, corners: int, row: int, col: int
) -> tuple[Int32, Int64, Int32]:
    """Walk all outlines once and write their corners, in the order of their first edges.

    A ring starts at its corner with the smallest y, of those the smallest x. The first edge of an outer ring is a left side,
    which leaves that corner; the first edge of a hole is a right side, which arrives there.

    Args:
        xs, label, follow: As in the module's docstring. `follow` is used up.
        run_rows: (R,) row of each run.
        corners: Number of corners that `link_edges` counted.
        row, col: Added to the rows and columns.

    Returns:
        coords (V, 2) int32 of closed rings, ring_offsets (K+1,) int64, component of each ring (K,) int32.
    """
    most = corners // 4
    coords = np.empty((corners + most, 2), np.int32)
    ring_offsets = np.zeros(most + 1, np.int64)
    ring_label = np.empty(most, np.int32)
    at = 0
    rings = 0
    for start in range(xs.size):
        if follow[start] < 0:
            continue
        if start & 1 == 0:
            coords[at, 0] = xs[start] + col
            coords[at, 1] = run_rows[start >> 1] + row
            at += 1
        edge = np.int64(start)
        while True:
            after = np.int64(follow[edge])
            follow[edge] = -1
            if xs[after] != xs[edge]:
                y = run_rows[edge >> 1] + 1 - (edge & 1) + row
                coords[at, 0] = xs[edge] + col
                coords[at, 1] = y
                coords[at + 1, 0] = xs[after] + col
                coords[at + 1, 1] = y
                at += 2
            edge = after
            if edge == start:
                break
        if start & 1 == 1:
            coords[at, 0] = coords[ring_offsets[rings], 0]
            coords[at, 1] = coords[ring_offsets[rings], 1]
            at += 1
        ring_label[rings] = label[start >> 1]
        rings += 1
        ring_offsets[rings] = at
    return coords[:at], ring_offsets[: rings + 1], ring_label[:rings]


@kernel
def group_rings(coords: Int32, ring_offsets: Int64, ring_label: Int32, components: int) -> tuple[Int32, Int64, Int64]:
    """Bring the rings of each component together, outer ring first, holes in their order (a counting sort).

    Returns:
        coords, ring_offsets and polygon_offsets (N+1,) int64.
    """
    polygon_offsets = np.zeros(components + 1, np.int64)
    for ring in range(ring_label.size):
        polygon_offsets[ring_label[ring] + 1] += 1
    for component in range(components):
        polygon_offsets[component + 1] += polygon_offsets[component]
    if ring_label.size == components:
        return coords, ring_offsets, polygon_offsets
    source = np.empty(ring_label.size, np.int64)
    free = polygon_offsets[:-1].copy()
    for ring in range(ring_label.size):
        source[free[ring_label[ring]]] = ring
        free[ring_label[ring]] += 1
    grouped = np.empty_like(coords)
    grouped_offsets = np.zeros_like(ring_offsets)
    at = 0
    for ring in range(source.size):
        for vertex in range(ring_offsets[source[ring]], ring_offsets[source[ring] + 1]):
            grouped[at, 0] = coords[vertex, 0]
            grouped[at, 1] = coords[vertex, 1]
            at += 1
        grouped_offsets[ring + 1] = at
    return grouped, grouped_offsets, polygon_offsets


@kernel
def rows_of_runs(row_offsets: Int64, rows: Int32) -> Int32:
    """Row of each run (R,), where `rows` (H,) gives the row that each stacked row stands for."""
    run_rows = np.empty(row_offsets[-1] // 2, np.int32)
    for row in range(rows.size):
        for run in range(row_offsets[row] // 2, row_offsets[row + 1] // 2):
            run_rows[run] = rows[row]
    return run_rows


@kernel
def measure_components(
    xs: Int32, run_rows: Int32, label: Int32, components: int, prob: NDArray[np.uint8]
) -> tuple[Int64, Int64, Int32]:
    """Pixel count (N,), sum of prob (N,), first pixel (N, 2) of each component; an empty `prob` counts 255 a pixel."""
    pixels = np.zeros(components, np.int64)
    prob_sum = np.zeros(components, np.int64)
    first = np.empty((components, 2), np.int32)
    width, flat = prob.shape[1], prob.reshape(-1)  # one unsigned index: no test for a negative one at each pixel
    for run in range(label.size):
        component = label[run]
        start, stop, row = xs[2 * run], xs[2 * run + 1], run_rows[run]
        if pixels[component] == 0:
            first[component, 0] = row
            first[component, 1] = start
        pixels[component] += stop - start
        if prob.size:
            total = np.int64(0)
            line = np.int64(row) * width
            for at in range(np.uint64(line + start), np.uint64(line + stop)):
                total += np.int64(flat[at])
            prob_sum[component] += total
        else:
            prob_sum[component] += 255 * (stop - start)
    return pixels, prob_sum, first


@kernel
def find_truncated(
    xs: Int32, run_rows: Int32, label: Int32, components: int, valid: NDArray[np.bool_], complete_row: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Components (N,) with a pixel that has a 4-neighbour inside the window which is not computed.

    Args:
        xs, run_rows, label, components: As elsewhere.
        valid: (H, W) computed pixels.
        complete_row: (H,) rows where all pixels are computed: no need to look at these.
    """
    height, width = valid.shape
    truncated = np.zeros(components, np.bool_)
    for run in range(label.size):
        if truncated[label[run]]:
            continue
        start, stop, row = xs[2 * run], xs[2 * run + 1], run_rows[run]
        found = (start > 0 and not valid[row, start - 1]) or (stop < width and not valid[row, stop])
        for near in (row - 1, row + 1):
            if not found and 0 <= near < height and not complete_row[near]:
                for col in range(start, stop):
                    if not valid[near, col]:
                        found = True
                        break
        truncated[label[run]] = found
    return truncated


@kernel
def label_sides(xs: Int32, row_offsets: Int64, label: Int32, width: int) -> tuple[Int32, Int32, Int32, Int32]:
    """Component at each pixel of the first and last row (W,) and the first and last column (H,); -1 is background."""
    height = row_offsets.size - 1
    top, bottom = np.full(width, -1, np.int32), np.full(width, -1, np.int32)
    left, right = np.full(height, -1, np.int32), np.full(height, -1, np.int32)
    for side, row in ((top, 0), (bottom, height - 1)):
        for run in range(row_offsets[row] // 2, row_offsets[row + 1] // 2):
            side[xs[2 * run] : xs[2 * run + 1]] = label[run]
    for row in range(height):
        begin, end = row_offsets[row], row_offsets[row + 1]
        if begin == end:
            continue
        if xs[begin] == 0:
            left[row] = label[begin >> 1]
        if xs[end - 1] == width:
            right[row] = label[(end - 1) >> 1]
    return top, bottom, left, right


@kernel
def merge_outlines(
    coords: Int32, ring_offsets: Int64, ring_label: Int32, components: int
) -> tuple[Int32, Int64, Int32, Int32]:
    """Crossings of the unions of disjoint rectilinear polygons, one component stacked above the next.

    The vertical edges of all rings are cut to unit edges and sorted into their rows (by row with a counting sort, within a
    row by x). Where two fragments lie side by side their edges coincide and cancel, which joins their runs. Horizontal
    edges need not be looked at: the crossings of two rows say where they are. Cost: the length of the vertical edges.

    Args:
        coords: (V, 2) closed rings, integer corners, each edge along an axis.
        ring_offsets: (K+1,)
        ring_label: (K,) component of each ring, each of 0..components-1 at least once.
        components: Number of components.

    Returns:
        xs, row_offsets, the row that each stacked row stands for, and the label of each run.
    """
    lowest = np.full(components, np.iinfo(np.int32).max, np.int64)
    highest = np.full(components, np.iinfo(np.int32).min, np.int64)
    for ring in range(ring_label.size):
        component = ring_label[ring]
        for vertex in range(ring_offsets[ring], ring_offsets[ring + 1]):
            lowest[component] = min(lowest[component], coords[vertex, 1])
            highest[component] = max(highest[component], coords[vertex, 1])
    base = np.zeros(components + 1, np.int64)
    for component in range(components):
        base[component + 1] = base[component] + highest[component] - lowest[component] + 1
    height = base[components]
    begin = np.zeros(height + 1, np.int64)
    for ring in range(ring_label.size):
        shift = base[ring_label[ring]] - lowest[ring_label[ring]]
        for vertex in range(ring_offsets[ring], ring_offsets[ring + 1] - 1):
            y0, y1 = np.int64(coords[vertex, 1]), np.int64(coords[vertex + 1, 1])
            for y in range(min(y0, y1) + shift, max(y0, y1) + shift):
                begin[y + 1] += 1
    for row in range(height):
        begin[row + 1] += begin[row]
    sorted_xs = np.empty(begin[height], np.int32)
    free = begin[:-1].copy()
    for ring in range(ring_label.size):
        shift = base[ring_label[ring]] - lowest[ring_label[ring]]
        for vertex in range(ring_offsets[ring], ring_offsets[ring + 1] - 1):
            y0, y1 = np.int64(coords[vertex, 1]), np.int64(coords[vertex + 1, 1])
            for y in range(min(y0, y1) + shift, max(y0, y1) + shift):
                sorted_xs[free[y]] = coords[vertex, 0]
                free[y] += 1
    row_offsets = np.zeros(height + 1, np.int64)
    at = 0
    for row in range(height):
        part = sorted_xs[begin[row] : begin[row + 1]]
        if part.size > 32:
            part.sort()
        else:
            for i in range(1, part.size):
                x = part[i]
                j = i - 1
                while j >= 0 and part[j] > x:
                    part[j + 1] = part[j]
                    j -= 1
                part[j + 1] = x
        i = 0
        while i < part.size:
            if i + 1 < part.size and part[i] == part[i + 1]:
                i += 2
            else:
                sorted_xs[at] = part[i]
                at += 1
                i += 1
        row_offsets[row + 1] = at
    rows = np.empty(height, np.int32)
    label = np.empty(at // 2, np.int32)
    for component in range(components):
        for row in range(base[component], base[component + 1]):
            rows[row] = row - base[component] + lowest[component]
        label[row_offsets[base[component]] // 2 : row_offsets[base[component + 1]] // 2] = component
    return sorted_xs[:at].copy(), row_offsets, rows, label


@kernel
def join_facing(
    ours: Int32, theirs: Int32, parent: Int64, member: Int64, waits: Int64, truncated: NDArray[np.bool_]
) -> None:
    """Settle one seam: unite fragments that face each other, mark those that face a pixel nobody looked at.

    Union-find over fragment slots, the smaller root wins. `member` links the slots of a component in a circle; two circles
    become one by exchanging one link of each.

    Args:
        ours, theirs: (L,) slot of the fragment at each pixel on the two sides of the seam, or NOWHERE, or NOT_COMPUTED.
        parent, member, waits, truncated: Per slot; changed in place. `waits` and `truncated` count at the root only.
    """
    for i in range(ours.size):
        a, b = np.int64(ours[i]), np.int64(theirs[i])
        if a < 0 and b < 0:
            continue
        if i > 0 and ours[i - 1] == ours[i] and theirs[i - 1] == theirs[i]:
            continue
        if a >= 0:
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
        if b >= 0:
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
        if a == NOT_COMPUTED:
            truncated[b] = True
        elif b == NOT_COMPUTED:
            truncated[a] = True
        elif a >= 0 and b >= 0 and a != b:
            root, child = min(a, b), max(a, b)
            parent[child] = root
            waits[root] += waits[child]
            truncated[root] = truncated[root] or truncated[child]
            member[root], member[child] = member[child], member[root]


@kernel
def add_waits(side: Int32, amount: int, parent: Int64, waits: Int64) -> None:
    """Add `amount` to the waits of a fragment's component for each stretch of pixels that the fragment has on a seam."""
    previous = np.int64(-1)
    for i in range(side.size):
        slot = np.int64(side[i])
        if slot >= 0 and slot != previous:
            root = slot
            while parent[root] != root:
                root = parent[root]
            waits[root] += amount
        previous = slot


@kernel
def take_closed(touched: Int64, parent: Int64, member: Int64, waits: Int64) -> tuple[Int64, Int64, Int64]:
    """Components that wait for nothing any more, among those of the touched slots.

    Returns:
        root (C,) of each closed component, offsets (C+1,), and slots of their fragments. Their `waits` become -1.
    """
    roots = np.empty(touched.size, np.int64)
    closed = 0
    slots_count = 0
    for i in range(touched.size):
        root = touched[i]
        while parent[root] != root:
            root = parent[root]
        if waits[root] == 0:
            waits[root] = -1
            roots[closed] = root
            closed += 1
            slot = root
            while True:
                slots_count += 1
                slot = member[slot]
                if slot == root:
                    break
    offsets = np.zeros(closed + 1, np.int64)
    slots = np.empty(slots_count, np.int64)
    at = 0
    for i in range(closed):
        slot = roots[i]
        while True:
            slots[at] = slot
            at += 1
            slot = member[slot]
            if slot == roots[i]:
                break
        offsets[i + 1] = at
    return roots[:closed].copy(), offsets, slots


@kernel
def take_polygons(coords: Int32, ring_offsets: Int64, polygon_offsets: Int64, chosen: Int64) -> tuple[Int32, Int64, Int64]:
    """coords, ring_offsets and polygon_offsets of the chosen polygons, in that order."""
    polygons = np.zeros(chosen.size + 1, np.int64)
    vertices = np.int64(0)
    for i in range(chosen.size):
        begin, end = polygon_offsets[chosen[i]], polygon_offsets[chosen[i] + 1]
        polygons[i + 1] = polygons[i] + end - begin
        vertices += ring_offsets[end] - ring_offsets[begin]
    rings = np.zeros(polygons[-1] + 1, np.int64)
    taken = np.empty((vertices, 2), np.int32)
    for i in range(chosen.size):
        begin = polygon_offsets[chosen[i]]
        for k in range(polygons[i + 1] - polygons[i]):
            start, size = ring_offsets[begin + k], ring_offsets[begin + k + 1] - ring_offsets[begin + k]
            at = rings[polygons[i] + k]
            for vertex in range(size):
                taken[at + vertex, 0] = coords[start + vertex, 0]
                taken[at + vertex, 1] = coords[start + vertex, 1]
            rings[polygons[i] + k + 1] = at + size
    return taken, rings, polygons


@kernel
def simplify_rings(coords: Int32, ring_offsets: Int64, tolerance: float) -> NDArray[np.bool_]:
    """Which vertices (V,) to keep, by Douglas and Peucker (1973), ring by ring.

    A closed ring needs two fixed vertices. Its start vertex is only the topmost one, somewhere on a rounded corner, so the
    vertex farthest from it is taken, and the one farthest from that: both are true corners. Distances are to the segment,
    from integer differences, so the same shape is simplified the same way wherever it lies. A ring that would shrink below
    three corners is kept as it is. The closing vertex is never kept: whoever copies the ring closes it.

    Args:
        coords: (V, 2) closed rings.
        ring_offsets: (R+1,)
        tolerance: Largest distance of a dropped vertex, pixels.
    """
    keep = np.zeros(coords.shape[0], np.bool_)
    longest = 0
    for ring in range(ring_offsets.size - 1):
        longest = max(longest, ring_offsets[ring + 1] - ring_offsets[ring])
    stack = np.empty((longest + 2, 2), np.int64)
    for ring in range(ring_offsets.size - 1):
        begin = ring_offsets[ring]
        size = ring_offsets[ring + 1] - begin - 1
        anchor, second = np.int64(0), np.int64(0)
        for _ in range(2):
            second = anchor
            farthest = np.int64(-1)
            for i in range(size):
                dx = np.int64(coords[begin + i, 0]) - np.int64(coords[begin + second, 0])
                dy = np.int64(coords[begin + i, 1]) - np.int64(coords[begin + second, 1])
                if dx * dx + dy * dy > farthest:
                    farthest = dx * dx + dy * dy
                    anchor = np.int64(i)
        low, high = min(anchor, second), max(anchor, second)
        keep[begin + low] = True
        keep[begin + high] = True
        kept = 2
        stack[0, 0], stack[0, 1] = low, high
        stack[1, 0], stack[1, 1] = high, low + size  # positions past the end wrap around
        depth = 2
        while depth > 0:
            depth -= 1
            i, j = stack[depth, 0], stack[depth, 1]
            x0, y0 = np.int64(coords[begin + i % size, 0]), np.int64(coords[begin + i % size, 1])
            ux, uy = np.int64(coords[begin + j % size, 0]) - x0, np.int64(coords[begin + j % size, 1]) - y0
            square = ux * ux + uy * uy
            worst, at = tolerance * tolerance, np.int64(-1)
            for k in range(i + 1, j):
                vertex = begin + (k if k < size else k - size)
                vx, vy = np.int64(coords[vertex, 0]) - x0, np.int64(coords[vertex, 1]) - y0
                along = ux * vx + uy * vy
                if along <= 0:
                    distance = float(vx * vx + vy * vy)
                elif along >= square:
                    distance = float((vx - ux) * (vx - ux) + (vy - uy) * (vy - uy))
                else:
                    cross = float(ux * vy - uy * vx)
                    distance = cross * cross / float(square)
                if distance > worst:
                    worst, at = distance, np.int64(k)
            if at >= 0:
                keep[begin + at % size] = True
                kept += 1
                stack[depth, 0], stack[depth, 1] = i, at
                stack[depth + 1, 0], stack[depth + 1, 1] = at, j
                depth += 2
        if kept < 3:
            keep[begin : begin + size] = True
    return keep
