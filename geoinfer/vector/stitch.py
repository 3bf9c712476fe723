"""Split a mask at tile edges and put it together again, exactly: stitch(split(mask)) == polygonize(mask), byte for byte.

Identity comes from labels that face each other across a seam (union-find), never from geometry. Shape is the union of
integer rectilinear fragments: their vertical edges are laid into common rows, where coinciding ones cancel, and what is
left goes through the same tracer as a mask. Pixel counts and sums are integers, so no order of arrival can change a digit.

Knows tiles as windows only: any partition into rectangles will do, and where no tile is, nobody looked.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.grid import Window
from geoinfer.vector import kernels
from geoinfer.vector.bits import BitMask
from geoinfer.vector.kernels import NOT_COMPUTED, NOWHERE, Int32, Int64
from geoinfer.vector.polygonize import label_components, trace
from geoinfer.vector.polygons import Polygons

Sides = tuple[Int32, Int32, Int32, Int32]
_SIDES = ("top", "bottom", "left", "right")
_OPPOSITE = (1, 0, 3, 2)
_PENDING, _ARRIVED, _SKIPPED = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class TileResult:
    """What a tile knows of its polygons: those it holds wholly, and pieces of those that may go on outside."""

    window: Window
    """The tile's pixels, grid frame."""
    complete: Polygons
    """Polygons that touch no side of the window, grid frame."""
    fragments: Polygons
    """The part inside the window of each that does."""
    edges: Sides
    """Top, bottom (W,), left, right (H,): index into fragments at each pixel, -1 background, -2 not computed."""
    computed: NDArray[np.bool_] | None = None
    """(H, W) where anybody looked; None: at every pixel that was asked for."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as named arrays, for an npz file."""
        w = self.window
        edges = {f"edge_{name}": edge for name, edge in zip(_SIDES, self.edges, strict=True)}
        window = np.array([w.row, w.col, w.height, w.width], np.int64)
        polygons = {**self.complete.to_arrays("complete_"), **self.fragments.to_arrays("fragments_")}
        looked = {} if self.computed is None else {"computed": _pack(self.computed)}
        return {"window": window, **polygons, **edges, **looked}

    @classmethod
    def from_arrays(cls, arrays: Any) -> TileResult:
        """The inverse of `to_arrays`; `arrays` is a mapping, also an open npz file."""
        window = Window(*(int(value) for value in arrays["window"]))
        return cls(
            window=window,
            complete=Polygons.from_arrays(arrays, "complete_"),
            fragments=Polygons.from_arrays(arrays, "fragments_"),
            edges=(arrays["edge_top"], arrays["edge_bottom"], arrays["edge_left"], arrays["edge_right"]),
            computed=_unpack(arrays["computed"], window) if "computed" in arrays else None,
        )


def _pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask as deflated bits: a few hundred bytes, where as an array it would outweigh all polygons of a tile."""
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes(), 1), np.uint8)


def _unpack(packed: NDArray[np.uint8], window: Window) -> NDArray[np.bool_]:
    bits = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8)
    flat = np.unpackbits(bits, count=window.height * window.width).astype(np.bool_)
    return flat.reshape(window.height, window.width)


def split(
    mask: NDArray[Any] | BitMask,
    window: Window,
    prob: NDArray[np.uint8] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> TileResult:
    """Polygonize one tile, keeping apart what touches its sides.

    Args:
        mask: (H, W) bool or integer, the pixels of the window; or bits of `at_least`.
        window: Where the mask lies in the grid.
        prob, valid: (H, W) as for `polygonize`. What lies outside the tile is not known here, so it truncates nothing yet.
    """
    if mask.shape != (window.height, window.width):
        raise ConfigError(f"mask of shape {mask.shape} does not fit {window}")
    found = label_components(mask, prob, valid)
    polygons = found.outlines(None, (window.row, window.col), found.truncated)
    sides = found.sides()
    touches = np.zeros(len(polygons), np.bool_)
    for side in sides:
        touches[side[side >= 0]] = True
    fragment = np.full(len(polygons) + 1, NOWHERE, np.int32)  # one more for NOWHERE, which indexes the last
    fragment[:-1][touches] = np.arange(np.count_nonzero(touches), dtype=np.int32)
    top, bottom, left, right = (fragment[side] for side in sides)
    if valid is not None and valid.size:
        computed = (valid[0], valid[-1], valid[:, 0], valid[:, -1])
        for edge, is_computed in zip((top, bottom, left, right), computed, strict=True):
            edge[~is_computed] = NOT_COMPUTED
    return TileResult(window, polygons.take(~touches), polygons.take(touches), (top, bottom, left, right))


def stitch(results: Iterable[TileResult]) -> Polygons:
    """The polygons of all tiles as if they had never been cut, in the order of their first pixels.

    Outside the tiles given, nobody looked.
    """
    tiles = list(results)
    stitcher = Stitcher([tile.window for tile in tiles])
    return Polygons.concat([stitcher.add(tile) for tile in tiles]).in_order()


class Stitcher:
    """Takes tiles in any order and gives back each polygon as soon as no outstanding tile could add to it.

    Memory is that of the open fragments: in row-major order, those along one row of tiles.
    """

    def __init__(self, windows: Collection[Window]) -> None:
        """Prepare for tiles.

        Args:
            windows: All tiles of the run; they do not overlap. Whatever lies outside them is not computed.
        """
        self._seams = _Seams(windows)
        self._state = np.zeros(len(windows), np.int8)
        self._tiles: dict[int, _OpenTile] = {}
        self._slots = _Slots()

    @property
    def outstanding(self) -> int:
        """Tiles neither added nor skipped so far."""
        return int(np.count_nonzero(self._state == _PENDING))

    @property
    def open_fragments(self) -> int:
        """Fragments held because their polygons may still grow."""
        return sum(tile.open for tile in self._tiles.values())

    def add(self, result: TileResult) -> Polygons:
        """Take a tile; returns its complete polygons and all that it closed, in no particular order."""
        number = self._settle(result.window, _ARRIVED)
        slots = self._slots.allocate(number, result.fragments.truncated)
        as_slot = np.concatenate([slots, np.array([NOT_COMPUTED, NOWHERE], np.int64)]).astype(np.int32)  # [-1], [-2] fit
        top, bottom, left, right = (as_slot[edge] for edge in result.edges)
        tile = _OpenTile(result.window, result.fragments, slots, (top, bottom, left, right))
        touched = [slots]
        for side, other, low, high in self._seams.of(number):
            ours = tile.facing(side, low, high)
            if other >= 0 and self._state[other] == _PENDING:
                self._slots.wait(ours, 1)
                tile.pending += 1
            elif other >= 0 and self._state[other] == _ARRIVED:
                theirs = self._release(other, side, low, high)
                self._slots.join(ours, theirs)
                touched.append(theirs[theirs >= 0].astype(np.int64))
            else:
                self._slots.join(ours, np.full(high - low, NOT_COMPUTED, np.int32))
        self._tiles[number] = tile
        return Polygons.concat([result.complete, self._close(touched)])

    def skip(self, window: Window) -> Polygons:
        """A tile that was not computed (nodata, masked, failed): its neighbours end there, truncated."""
        number = self._settle(window, _SKIPPED)
        touched = []
        for side, other, low, high in self._seams.of(number):
            if other >= 0 and self._state[other] == _ARRIVED:
                theirs = self._release(other, side, low, high)
                self._slots.join(theirs, np.full(high - low, NOT_COMPUTED, np.int32))
                touched.append(theirs[theirs >= 0].astype(np.int64))
        return self._close(touched)

    def _settle(self, window: Window, state: int) -> int:
        number = self._seams.number(window)
        if self._state[number] != _PENDING:
            raise ConfigError(f"{window} was added or skipped before; each tile counts once")
        self._state[number] = state
        return number

    def _release(self, other: int, side: int, low: int, high: int) -> Int32:
        """The slots of an earlier tile along a seam, which waits there no longer."""
        tile = self._tiles[other]
        theirs = tile.facing(_OPPOSITE[side], low, high)
        self._slots.wait(theirs, -1)
        tile.pending -= 1
        return theirs

    def _close(self, touched: list[Int64]) -> Polygons:
        """Unite and forget the components that wait for nothing any more."""
        closed, slots, truncated = self._slots.take_closed(np.concatenate([np.zeros(0, np.int64), *touched]))
        owners = self._slots.tile[slots]
        parts, components = [], []
        for number in np.unique(owners).tolist():
            chosen = owners == number
            parts.append(self._tiles[number].pop(slots[chosen]))
            components.append(closed[chosen])
        self._slots.free(slots)
        for number in [number for number, tile in self._tiles.items() if tile.pending == 0 and tile.open == 0]:
            del self._tiles[number]
        if not parts:
            return Polygons.empty()
        return unite(Polygons.concat(parts), np.concatenate(components), truncated)


def unite(fragments: Polygons, component: Int64, truncated: NDArray[np.bool_]) -> Polygons:
    """Unite disjoint fragments of the same component, in the order of the components' first pixels.

    Args:
        fragments: K polygons.
        component: (K,) component of each, each of 0..N-1 at least once.
        truncated: (N,) for each component.
    """
    count = len(truncated)
    row, col = fragments.first[:, 0].astype(np.int64), fragments.first[:, 1].astype(np.int64)
    key = (row << 32) + (col - np.iinfo(np.int32).min)
    first_key = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first_key, component, key)
    holds_first = np.flatnonzero(key == first_key[component])  # one fragment of each component: they share no pixel
    source = np.empty(count, np.int32)
    source[component[holds_first]] = fragments.source[holds_first]
    order = np.argsort(first_key)
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    component = rank[component]
    pixels, prob_sum = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(pixels, component, fragments.pixels)
    np.add.at(prob_sum, component, fragments.prob_sum)
    first_key = first_key[order]
    first = np.stack([first_key >> 32, (first_key & 0xFFFFFFFF) + np.iinfo(np.int32).min], axis=1).astype(np.int32)
    ring_label = np.repeat(component, np.diff(fragments.polygon_offsets)).astype(np.int32)
    xs, row_offsets, rows, label = kernels.merge_outlines(fragments.coords, fragments.ring_offsets, ring_label, count)
    run_rows = kernels.rows_of_runs(row_offsets, rows)
    coords, ring_offsets, polygon_offsets = trace(xs, row_offsets, run_rows, label, count)
    return Polygons(coords, ring_offsets, polygon_offsets, pixels, prob_sum, first, truncated[order], source=source[order])


class _OpenTile:
    """Fragments of an arrived tile that still wait, and the sides that later tiles will ask for."""

    __slots__ = ("fragments", "open", "pending", "sides", "slots", "window")

    def __init__(self, window: Window, fragments: Polygons, slots: Int64, sides: Sides) -> None:
        self.window = window
        self.fragments = fragments
        self.slots = slots  # ascending, one for each fragment
        self.sides = sides
        self.pending = 0
        self.open = len(slots)

    def facing(self, side: int, low: int, high: int) -> Int32:
        """Slots on a side between two absolute rows or columns."""
        start = self.window.col if side < 2 else self.window.row
        return self.sides[side][low - start : high - start]

    def pop(self, slots: Int64) -> Polygons:
        """The fragments in these slots; the others are copied together once most of many are gone, for memory."""
        taken = self.fragments.take(np.searchsorted(self.slots, slots))
        self.open -= len(slots)
        if self.open == 0:
            self.fragments, self.slots = Polygons.empty(), np.zeros(0, np.int64)
        elif 4 * self.open <= len(self.slots) and len(self.slots) > 64:
            rest = ~np.isin(self.slots, slots)
            self.fragments, self.slots = self.fragments.take(rest), self.slots[rest]
        return taken


class _Slots:
    """Union-find over the open fragments. Slots are numbered upwards and renumbered never, reused once free."""

    def __init__(self) -> None:
        self.tile = np.zeros(0, np.int64)
        self._parent = np.zeros(0, np.int64)
        self._member = np.zeros(0, np.int64)
        self._waits = np.zeros(0, np.int64)
        self._truncated = np.zeros(0, np.bool_)
        self._free = np.zeros(0, np.int64)

    def allocate(self, tile: int, truncated: NDArray[np.bool_]) -> Int64:
        """Slots, ascending, for the fragments of a tile."""
        count = len(truncated)
        if count > len(self._free):
            size = len(self._parent)
            more = max(count, size, 256)
            self._free = np.concatenate([self._free, np.arange(size, size + more)])
            for name in ("tile", "_parent", "_member", "_waits"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))
            self._truncated = np.concatenate([self._truncated, np.zeros(more, np.bool_)])
        slots = np.sort(self._free[:count])
        self._free = self._free[count:]
        self.tile[slots], self._waits[slots], self._truncated[slots] = tile, 0, truncated
        self._parent[slots] = self._member[slots] = slots
        return slots

    def free(self, slots: Int64) -> None:
        """Give slots back."""
        self._free = np.concatenate([slots, self._free])

    def wait(self, side: Int32, amount: int) -> None:
        """Count the stretches of a side that wait for a tile."""
        kernels.add_waits(side, amount, self._parent, self._waits)

    def join(self, ours: Int32, theirs: Int32) -> None:
        """Settle a seam between two sides."""
        kernels.join_facing(ours, theirs, self._parent, self._member, self._waits, self._truncated)

    def take_closed(self, touched: Int64) -> tuple[Int64, Int64, NDArray[np.bool_]]:
        """Number of its component (K,) and slot (K,) of each closed fragment, and truncated (N,) of the components."""
        roots, offsets, slots = kernels.take_closed(touched, self._parent, self._member, self._waits)
        return np.repeat(np.arange(len(roots)), np.diff(offsets)), slots, self._truncated[roots]


class _Seams:
    """Which tile lies on the other side of each side of a tile, between which rows or columns."""

    def __init__(self, windows: Collection[Window]) -> None:
        self._windows = list(windows)
        self._number = {window: number for number, window in enumerate(self._windows)}
        if len(self._number) < len(self._windows):
            raise ConfigError("the same tile window stands twice in the list; tiles do not overlap")
        box = np.array([(w.row, w.stop_row, w.col, w.stop_col) for w in self._windows], np.int64).reshape(-1, 4)
        top, bottom, left, right = box.T
        full = (bottom > top) & (right > left)
        # The neighbour above a tile is found by its bottom, and so on: where it ends, then where it starts along the seam.
        self._index = [
            _index(across[full], along[full], np.flatnonzero(full))
            for across, along in ((bottom, left), (top, left), (right, top), (left, top))
        ]

    def number(self, window: Window) -> int:
        """Place of a window in the list."""
        if window not in self._number:
            raise ConfigError(f"{window} is none of the tiles that the stitcher was made for")
        return self._number[window]

    def of(self, number: int) -> Iterator[tuple[int, int, int, int]]:
        """Side (as _SIDES), other tile or -1 for nobody, first and past-the-last row or column of each seam of a tile."""
        w = self._windows[number]
        if w.is_empty:
            return
        for side, across in enumerate((w.row, w.stop_row, w.col, w.stop_col)):
            low, high = (w.col, w.stop_col) if side < 2 else (w.row, w.stop_row)
            keys, numbers = self._index[side]
            at = max(int(np.searchsorted(keys, _key(across, low), "right")) - 1, 0)
            last = int(np.searchsorted(keys, _key(across, high), "left"))
            for other in numbers[at:last].tolist():
                o = self._windows[other]
                if across != (o.stop_row, o.row, o.stop_col, o.col)[side]:
                    continue
                start, stop = (o.col, o.stop_col) if side < 2 else (o.row, o.stop_row)
                start, stop = max(start, low), min(stop, high)
                if start >= stop:
                    continue
                if start > low:
                    yield side, -1, low, start
                yield side, other, start, stop
                low = stop
            if low < high:
                yield side, -1, low, high


def _key(across: Any, along: Any) -> Any:
    """Sorts by the line that a seam lies on, then along it; rows and columns fit 32 bits."""
    return across * 2**32 + along


def _index(across: Int64, along: Int64, numbers: Int64) -> tuple[Int64, Int64]:
    keys = _key(across, along)
    order = np.argsort(keys)
    return keys[order], numbers[order]
