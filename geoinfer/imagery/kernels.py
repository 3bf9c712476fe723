"""The compiled loops behind `resample`: one block of the grid from the source pixels around it, in whole numbers.

A block is made of *cells* of n x n grid pixels. At the corners of cells (nodes) the source position is known; between them
it is interpolated bilinearly, and quantised to 1/128 of a source pixel, a *phase*. Weights are whole numbers that add up
exactly, so a constant stays constant and no result depends on the order of sums, the compiler or the machine.

    nodes      (2, m + 1, m + 1) int64  source row and column of each node, times 2**24
    weights    (128, T) int64           of the T taps around a position, by phase: 10 bits downwards, 12 bits across
    kinds      (m, m) uint8             what a cell needs: BLANK, WHOLE or PARTIAL
    words      (ceil(C / 3), h, w) int64  three bands in one number, 21 bits each: three multiplications for one

Whole cells, whose taps are all valid, take the packed path; partial ones weigh by validity and divide (normalised
convolution, Knutsson and Westin 1993).

Kernels release the GIL and never use numba's own threads. With NUMBA_DISABLE_JIT=1 all of them run as plain Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoinfer.compiled import kernel, part_of_kernel

Int64 = NDArray[np.int64]

BLANK, WHOLE, PARTIAL = 0, 1, 2
"""A cell without imagery; one whose taps are all valid; one with some that are not."""
_ALL = (1 << 42) + (1 << 21) + 1
"""Times a number: that number in all three lanes of a word."""


@kernel
def classify(nodes: Int64, share: NDArray[np.int32], full: int, taps_down: int, taps_across: int) -> NDArray[np.uint8]:
    """What each cell needs. Positions within a cell lie between those of its corners, so these bound the taps.

    Args:
        nodes: As above, relative to the first pixel of `share`.
        share: (h, w) valid source pixels in each (reduced) pixel.
        full: The largest share.
        taps_down: Rows that a grid pixel takes.
        taps_across: Columns that a grid pixel takes.

    Returns:
        kinds as above.
    """
    cells = nodes.shape[1] - 1
    height, width = share.shape
    kinds = np.empty((cells, cells), np.uint8)
    for i in range(cells):
        for j in range(cells):
            top = bottom = nodes[0, i, j]
            left = right = nodes[1, i, j]
            for a in range(2):
                for b in range(2):
                    top, bottom = min(top, nodes[0, i + a, j + b]), max(bottom, nodes[0, i + a, j + b])
                    left, right = min(left, nodes[1, i + a, j + b]), max(right, nodes[1, i + a, j + b])
            top, bottom, left, right = top >> 24, bottom >> 24, left >> 24, right >> 24
            first_row, stop_row = top - taps_down // 2 - 1, bottom + taps_down // 2 + 2
            first_col, stop_col = left - taps_across // 2 - 1, right + taps_across // 2 + 2
            is_whole = first_row >= 0 and first_col >= 0 and stop_row <= height and stop_col <= width
            is_blank = True
            for row in range(max(first_row, 0), min(stop_row, height)):
                for col in range(max(first_col, 0), min(stop_col, width)):
                    is_whole &= share[row, col] == full
                    is_blank &= share[row, col] == 0
                if not is_whole and not is_blank:
                    break
            kinds[i, j] = BLANK if is_blank else WHOLE if is_whole else PARTIAL
    return kinds


@kernel
def subdivide(nodes: Int64) -> Int64:
    """The nodes of cells half as large: (2, m + 1, m + 1) -> (2, 2 m + 1, 2 m + 1), new ones halfway, rounded down."""
    cells = nodes.shape[1] - 1
    out = np.empty((2, 2 * cells + 1, 2 * cells + 1), np.int64)
    for k in range(2):
        for i in range(2 * cells + 1):
            for j in range(2 * cells + 1):
                a, b = i // 2, j // 2
                c, d = (i + 1) // 2, (j + 1) // 2
                out[k, i, j] = (nodes[k, a, b] + nodes[k, a, d] + nodes[k, c, b] + nodes[k, c, d]) >> 2
    return out


@kernel
def pack(pixels: NDArray[np.uint8]) -> Int64:
    """(C, h, w) bytes -> words as above; lanes without a band hold 0."""
    bands, height, width = pixels.shape
    words = np.zeros(((bands + 2) // 3, height, width), np.int64)
    for k in range(words.shape[0]):
        for row in range(height):
            if 3 * k + 2 < bands:
                for col in range(width):
                    words[k, row, col] = (
                        np.int64(pixels[3 * k, row, col])
                        | np.int64(pixels[3 * k + 1, row, col]) << 21
                        | np.int64(pixels[3 * k + 2, row, col]) << 42
                    )
            else:
                for band in range(3 * k, bands):
                    for col in range(width):
                        words[k, row, col] |= np.int64(pixels[band, row, col]) << (21 * (band - 3 * k))
    return words


@kernel
def log2(n: int) -> int:
    """Of a power of two."""
    bits = 0
    while 1 << bits < n:
        bits += 1
    return bits


@kernel
def clip_byte(value: np.int64) -> int:
    """The nearest of 0..255."""
    return 0 if value < 0 else 255 if value > 255 else int(value)


@kernel
def walk(nodes: Int64, i: int, j: int, r: int, bits: int) -> tuple[int, int, int, int]:
    """The source positions of row r of a cell of 2**(bits - 1) grid pixels a side: they lie evenly on a line.

    Returns:
        Row and column of the first pixel's centre, and the step to the next one's, times 2**(24 + bits).
    """
    steps = 1 << bits
    a, b = steps - 2 * r - 1, 2 * r + 1
    row = (nodes[0, i, j] * a + nodes[0, i + 1, j] * b) >> bits
    down = ((nodes[0, i, j + 1] * a + nodes[0, i + 1, j + 1] * b) >> bits) - row
    col = (nodes[1, i, j] * a + nodes[1, i + 1, j] * b) >> bits
    across = ((nodes[1, i, j + 1] * a + nodes[1, i + 1, j + 1] * b) >> bits) - col
    return row * steps + down, 2 * down, col * steps + across, 2 * across


@kernel
def resample_plain(words: Int64, nodes: Int64, n: int, kinds: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Bilinear between four pixels, without anti-aliasing: whole cells of a block.

    Each lane holds 7 bits of weight across, of which one is rounded away, and 7 more down: 8 + 6 + 7 = 21.

    Args:
        words: As above.
        nodes: As above, relative to the first pixel of `words`.
        n: Side of a cell, a power of two.
        kinds: As above.
        out: (C, m * n, m * n), written where cells are whole.
    """
    bands, width = out.shape[0], words.shape[2]
    bits = log2(2 * n)
    shift = 24 + bits - 7
    half = (1 << (shift - 1)) - (1 << (23 + bits))  # to the nearest phase, counted between pixel centres
    for k in range(words.shape[0]):
        flat = words[k].ravel()
        lanes = bands - 3 * k
        for i in range(kinds.shape[0]):
            for j in range(kinds.shape[1]):
                if kinds[i, j] != WHOLE:
                    continue
                for r in range(n):
                    row0, down, col0, across = walk(nodes, i, j, r, bits)
                    y, x = i * n + r, j * n
                    for c in range(n):
                        row, col = (row0 + half + c * down) >> shift, (col0 + half + c * across) >> shift
                        v, u = row & 127, col & 127
                        at = (row >> 7) * width + (col >> 7)
                        p, q = flat[np.uintp(at)], flat[np.uintp(at + 1)]
                        s, t = flat[np.uintp(at + width)], flat[np.uintp(at + width + 1)]
                        above = (((p << 7) + (q - p) * u + _ALL) >> 1) & (_ALL * 16383)
                        below = (((s << 7) + (t - s) * u + _ALL) >> 1) & (_ALL * 16383)
                        total = (above << 7) + (below - above) * v + _ALL * 4096
                        out[3 * k, y, x + c] = (total >> 13) & 255
                        if lanes > 1:
                            out[3 * k + 1, y, x + c] = (total >> 34) & 255
                        if lanes > 2:
                            out[3 * k + 2, y, x + c] = (total >> 55) & 255


@kernel
def is_upright(nodes: Int64, i: int, j: int) -> bool:
    """Rows of the cell are rows of the source, and columns columns: the same system, scaled."""
    is_level = nodes[0, i, j] == nodes[0, i, j + 1] and nodes[0, i + 1, j] == nodes[0, i + 1, j + 1]
    return bool(is_level and nodes[1, i, j] == nodes[1, i + 1, j] and nodes[1, i, j + 1] == nodes[1, i + 1, j + 1])


@part_of_kernel
def sum_across(flat: Int64, at: int, table: Int64, first: int, taps: int) -> np.int64:
    """The taps of one row, summed with 12 bits of weight, raised by 40 and rounded to quarters: 8 + 12 + 1 bits a lane.

    Args:
        flat: A plane of words, row after row.
        at: Where the first tap is.
        table: Weights across, one phase after the other.
        first: Where the phase's are.
        taps: T.

    Returns:
        A word of 11 bits a lane.
    """
    line = np.int64(_ALL * ((40 << 12) + (1 << 9)))
    if taps == 4:  # by far the most common: unrolled, twice as fast
        line += table[np.uintp(first)] * flat[np.uintp(at)] + table[np.uintp(first + 1)] * flat[np.uintp(at + 1)]
        line += table[np.uintp(first + 2)] * flat[np.uintp(at + 2)] + table[np.uintp(first + 3)] * flat[np.uintp(at + 3)]
    else:
        for tap in range(taps):
            line += table[np.uintp(first + tap)] * flat[np.uintp(at + tap)]
    return (line >> 10) & (_ALL * 2047)


@part_of_kernel
def write_sum(total: np.int64, lanes: int, out: NDArray[np.uint8], k: int, y: int, x: int) -> None:
    """Take a sum of rows apart: raised by 64 with 12 bits behind the point, its rows by 40."""
    out[3 * k, y, x] = clip_byte(((total >> 12) & 511) - 104)
    if lanes > 1:
        out[3 * k + 1, y, x] = clip_byte(((total >> 33) & 511) - 104)
    if lanes > 2:
        out[3 * k + 2, y, x] = clip_byte(((total >> 54) & 511) - 104)


@kernel
def resample_wide(
    words: Int64,
    nodes: Int64,
    n: int,
    kinds: NDArray[np.uint8],
    weights_down: Int64,
    weights_across: Int64,
    out: NDArray[np.uint8],
) -> None:
    """Any table of weights: whole cells of a block.

    A row of taps is summed and rounded to quarters, then rows are summed with 10 bits of weight: 8 + 2 + 10 + 1 bits a lane.
    The last bit holds what negative weights need. In an upright cell all its rows take the same columns with the same
    weights, so each source row is summed once; what comes out is the same.

    Args:
        words: As above.
        nodes: As above, relative to the first pixel of `words`.
        n: Side of a cell, a power of two.
        kinds: As above.
        weights_down: Of rows, 10 bits.
        weights_across: Of columns, 12 bits.
        out: (C, m * n, m * n), written where cells are whole.
    """
    width = words.shape[2]
    rows, taps = weights_down.shape[1], weights_across.shape[1]
    table, before = weights_across.ravel(), taps // 2 - 1
    bits = log2(2 * n)
    shift = 24 + bits - 7
    half = (1 << (shift - 1)) - (1 << (23 + bits))
    start = np.int64(_ALL * ((64 << 12) + (1 << 11)))
    totals = np.empty(n, np.int64)
    for k in range(words.shape[0]):
        flat = words[k].ravel()
        lanes = out.shape[0] - 3 * k
        for i in range(kinds.shape[0]):
            for j in range(kinds.shape[1]):
                if kinds[i, j] != WHOLE:
                    continue
                y, x = i * n, j * n
                if is_upright(nodes, i, j):
                    row0, _, col0, across = walk(nodes, i, j, 0, bits)
                    top, bottom = (row0 + half) >> shift + 7, (walk(nodes, i, j, n - 1, bits)[0] + half) >> shift + 7
                    low = min(top, bottom) - rows // 2 + 1
                    lines = np.empty((abs(bottom - top) + rows, n), np.int64)
                    for source in range(lines.shape[0]):
                        for c in range(n):
                            col = (col0 + half + c * across) >> shift
                            at = (low + source) * width + (col >> 7) - before
                            lines[source, c] = sum_across(flat, at, table, (col & 127) * taps, taps)
                    for r in range(n):
                        row = (walk(nodes, i, j, r, bits)[0] + half) >> shift
                        first = (row >> 7) - rows // 2 + 1 - low
                        totals[:] = start
                        for tap in range(rows):
                            weight = weights_down[row & 127, tap]
                            for c in range(n):
                                totals[c] += weight * lines[first + tap, c]
                        for c in range(n):
                            write_sum(totals[c], lanes, out, k, y + r, x + c)
                    continue
                for r in range(n):
                    row0, down, col0, across = walk(nodes, i, j, r, bits)
                    for c in range(n):
                        row, col = (row0 + half + c * down) >> shift, (col0 + half + c * across) >> shift
                        at = ((row >> 7) - rows // 2 + 1) * width + (col >> 7) - before
                        total = start
                        for tap in range(rows):
                            line = sum_across(flat, at + tap * width, table, (col & 127) * taps, taps)
                            total += weights_down[row & 127, tap] * line
                        write_sum(total, lanes, out, k, y + r, x + c)


@kernel
def resample_partial(
    pixels: NDArray[np.uint8],
    share: NDArray[np.int32],
    fine: NDArray[np.bool_],
    nodes: Int64,
    n: int,
    kinds: NDArray[np.uint8],
    weights_down: Int64,
    weights_across: Int64,
    out: NDArray[np.uint8],
    valid: NDArray[np.bool_],
) -> None:
    """Normalised convolution (Knutsson and Westin 1993): cells of a block with taps that are partly or not valid.

    A grid pixel is valid where its centre falls on a valid pixel of the source. Its value is the mean of its taps by weight
    and share; where negative weights leave nothing to divide by, that of the (reduced) pixel under its centre.

    Args:
        pixels: (C, h, w) means of what is valid in each reduced pixel.
        share: (h, w) how many pixels of the source that is.
        fine: (h * reduce, w * reduce) which pixels of the source are valid.
        nodes: As above, relative to the first of `pixels`.
        n: Side of a cell, a power of two.
        kinds: As above.
        weights_down: Of rows, 10 bits.
        weights_across: Of columns, 12 bits.
        out: (C, m * n, m * n), blank; written where cells are partial.
        valid: (m * n, m * n), all False; written.
    """
    height, width = share.shape
    rows, cols = weights_down.shape[1], weights_across.shape[1]
    per_row, per_col = fine.shape[0] // height, fine.shape[1] // width
    bits = log2(2 * n)
    one = 24 + bits
    shift = one - 7
    half = (1 << (shift - 1)) - (1 << (one - 1))
    for i in range(kinds.shape[0]):
        for j in range(kinds.shape[1]):
            if kinds[i, j] == WHOLE:
                valid[i * n : (i + 1) * n, j * n : (j + 1) * n] = True
            if kinds[i, j] != PARTIAL:
                continue
            for r in range(n):
                row0, down, col0, across = walk(nodes, i, j, r, bits)
                y = i * n + r
                for c in range(n):
                    x = j * n + c
                    at_row, at_col = row0 + c * down, col0 + c * across
                    fine_row, fine_col = (at_row * per_row) >> one, (at_col * per_col) >> one
                    is_valid = 0 <= fine_row < fine.shape[0] and 0 <= fine_col < fine.shape[1] and fine[fine_row, fine_col]
                    valid[y, x] = is_valid
                    if not is_valid:
                        continue
                    row, col = (at_row + half) >> shift, (at_col + half) >> shift
                    v, u = row & 127, col & 127
                    row, col = (row >> 7) - rows // 2 + 1, (col >> 7) - cols // 2 + 1
                    weight = np.int64(0)
                    for a in range(max(-row, 0), min(height - row, rows)):
                        for b in range(max(-col, 0), min(width - col, cols)):
                            weight += weights_down[v, a] * weights_across[u, b] * share[row + a, col + b]
                    is_lost = weight < 1 << 12
                    for band in range(pixels.shape[0]):
                        if is_lost:
                            out[band, y, x] = pixels[band, at_row >> one, at_col >> one]
                            continue
                        total = np.int64(0)
                        for a in range(max(-row, 0), min(height - row, rows)):
                            for b in range(max(-col, 0), min(width - col, cols)):
                                scaled = weights_down[v, a] * weights_across[u, b] * share[row + a, col + b]
                                total += scaled * pixels[band, row + a, col + b]
                        out[band, y, x] = clip_byte((2 * total + weight) // (2 * weight))


@kernel
def pick_nearest(
    pixels: NDArray[np.uint8],
    known: NDArray[np.bool_],
    nodes: Int64,
    n: int,
    out: NDArray[np.uint8],
    valid: NDArray[np.bool_],
) -> None:
    """The source pixel under each centre, for all cells of a block.

    Args:
        pixels: (C, h, w).
        known: (h, w) which are valid.
        nodes: As above, relative to the first of `pixels`.
        n: Side of a cell, a power of two.
        out: (C, m * n, m * n), blank; written where valid.
        valid: (m * n, m * n), written.
    """
    height, width = known.shape
    one = 24 + log2(2 * n)
    at = np.empty(n, np.int64)  # of a row of the cell: where in a band, or -1
    for i in range(nodes.shape[1] - 1):
        for j in range(nodes.shape[2] - 1):
            for r in range(n):
                row0, down, col0, across = walk(nodes, i, j, r, one - 24)
                y, x = i * n + r, j * n
                for c in range(n):
                    row, col = (row0 + c * down) >> one, (col0 + c * across) >> one
                    is_valid = 0 <= row < height and 0 <= col < width and known[row, col]
                    valid[y, x + c] = is_valid
                    at[c] = row * width + col if is_valid else -1
                for band in range(pixels.shape[0]):
                    flat = pixels[band].ravel()
                    for c in range(n):
                        if at[c] >= 0:
                            out[band, y, x + c] = flat[np.uintp(at[c])]


@kernel
def reduce_whole(pixels: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    """Mean of each cell of rows x cols pixels, rounded half up: (C, h * rows, w * cols) -> (C, h, w).

    Rows are added first, along the line, which the compiler does many pixels at a time.
    """
    bands, height, width = pixels.shape[0], pixels.shape[1] // rows, pixels.shape[2] // cols
    out = np.empty((bands, height, width), np.uint8)
    line = np.empty(width * cols, np.uint32)
    area = np.uint32(rows * cols)
    half = np.uint32(rows * cols // 2)
    for band in range(bands):
        for row in range(height):
            line[:] = 0
            for a in range(rows):
                for col in range(width * cols):
                    line[col] += pixels[band, row * rows + a, col]
            for col in range(width):
                total = half
                for b in range(cols):
                    total += line[col * cols + b]
                out[band, row, col] = total // area
    return out


@kernel
def reduce_valid(
    pixels: NDArray[np.uint8], valid: NDArray[np.bool_], rows: int, cols: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Mean of what is valid in each cell of rows x cols pixels, rounded half up, and how many that are.

    Args:
        pixels: (C, h * rows, w * cols).
        valid: (h * rows, w * cols).
        rows: Of a cell.
        cols: Of a cell.

    Returns:
        means (C, h, w), 0 where nothing is valid; counts (h, w) int32.
    """
    bands, height, width = pixels.shape[0], pixels.shape[1] // rows, pixels.shape[2] // cols
    out = np.zeros((bands, height, width), np.uint8)
    share = np.zeros((height, width), np.int32)
    line = np.empty(width * cols, np.uint32)
    for row in range(height):
        for band in range(-1, bands):  # first how many there are
            line[:] = 0
            for y in range(row * rows, (row + 1) * rows):
                if band < 0:
                    for x in range(width * cols):
                        line[x] += np.uint32(valid[y, x])
                else:
                    for x in range(width * cols):
                        line[x] += np.uint32(pixels[band, y, x]) * np.uint32(valid[y, x])
            for col in range(width):
                total = np.int64(0)
                for b in range(cols):
                    total += np.int64(line[col * cols + b])
                count = np.int64(share[row, col])
                if band < 0:
                    share[row, col] = total
                elif count > 0:
                    out[band, row, col] = (total + count // 2) // count
    return out, share
