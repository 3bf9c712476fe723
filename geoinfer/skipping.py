"""Which cores need no look, because a layer marked `skip` would remove all that could be found in them (law 8).

Let S be the cores that one layer covers wholly, with as much around them as a footprint's outline may reach beyond its
pixels. All cores but S are looked at. A core of S is looked at as well once a building pixel of a core that was looked at
faces it, until no such core is left. Then a building with a pixel in a core that was looked at was found whole: its pixels
hang together through sides, and where one crossed into a core of S, that was opened. A building that was never seen lies in
cores of S that hang together. Cores of S that touch along a side belong to the same layer (see `_keep_apart`), so its
outline lies wholly inside that one layer, which would have removed it.

The least such set of opened cores is one of the pixels and the layers alone: neither tiles nor order enter. Which cores lie
in S is decided here, by the driver; workers are told with each tile, and know nothing of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely

from geoinfer.detection import NO_SKIP, Core, Skip, TileRecord
from geoinfer.grid import Grid, Tile, Window, tile_phase
from geoinfer.masks.cover import cores_inside
from geoinfer.masks.prepare import PreparedLayer


@dataclass(frozen=True, slots=True)
class SkipRule:
    """How cores are told apart on one grid."""

    layers: tuple[PreparedLayer, ...]
    """All layers of the job, in order; those with the action `skip` count."""
    grid: Grid
    window: Window
    """Of the region: no pixel outside it is asked for."""
    core: int
    """Side of a core, pixels."""
    slack_m: float
    """How far a footprint's outline may reach beyond its pixels, metres."""

    @property
    def is_empty(self) -> bool:
        """No layer skips anything."""
        return not self._skipping()

    def cores(self, part: Window, ring: int = 0) -> dict[Core, int]:
        """The cores of S in a part of the lattice, to the number of their layer.

        Args:
            part: Whole cores.
            ring: Cores around it that count as well.
        """
        skipping = self._skipping()
        if not skipping:
            return {}
        reach = ring + (len(skipping) > 1)  # whether a core is in S may depend on its neighbours then
        rows = range(part.row // self.core - reach, part.stop_row // self.core + reach)
        cols = range(part.col // self.core - reach, part.stop_col // self.core + reach)
        left = [(row, col) for row in rows for col in cols if not self._asked(row, col).is_empty]
        found: dict[Core, int] = {}
        for number in skipping:
            inside = cores_inside(self._boxes(left), self.layers[number]) if left else np.zeros(0, np.bool_)
            found |= {core: number for core, is_inside in zip(left, inside.tolist(), strict=True) if is_inside}
            left = [core for core in left if core not in found]
        apart = _keep_apart(found)
        edge = (rows[0] + reach - ring, rows[-1] - reach + ring, cols[0] + reach - ring, cols[-1] - reach + ring)
        return {at: of for at, of in apart.items() if edge[0] <= at[0] <= edge[1] and edge[2] <= at[1] <= edge[3]}

    def _skipping(self) -> list[int]:
        return [number for number, layer in enumerate(self.layers) if layer.layer.action == "skip" and layer.pieces]

    def _asked(self, row: int, col: int) -> Window:
        return Window(row * self.core, col * self.core, self.core, self.core).intersection(self.window)

    def _boxes(self, cores: Sequence[Core]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        """What footprints with pixels in these cores can cover, one box (N,) a core, in the grid's coordinate system."""
        slack = self.slack_m / self.grid.pixel_m * self.grid.pixel_size
        bounds = np.array([self.grid.bounds(self._asked(*core)) for core in cores])  # (N, 4)
        boxes = shapely.box(*(bounds + np.array([-slack, -slack, slack, slack])).T)
        return np.asarray(boxes, dtype=np.object_)


def _keep_apart(cores: dict[Core, int]) -> dict[Core, int]:
    """Without those that have a core of an earlier layer beside them.

    A building across the border of two layers is wholly inside neither, and may stay: one side of it must be looked at.
    """
    return {
        (row, col): number
        for (row, col), number in cores.items()
        if all(cores.get(at, number) >= number for at in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)))
    }


@dataclass(slots=True)
class Openings:
    """The skipped cores that buildings reach, as tiles tell about them: what to send with a tile, and what to do again."""

    rule: SkipRule
    k: int
    """Cores on a side of a tile."""
    _opened: dict[Core, set[Core]] = field(default_factory=dict)
    """Tile row and column -> cores of that tile that were reached from outside it."""

    def skip(self, tile: Tile) -> Skip:
        """What the tile's worker is told, by all that is known now."""
        if self.rule.is_empty:
            return NO_SKIP
        return Skip(self.rule.cores(tile.window, ring=1), frozenset(self._opened.get((tile.row, tile.col), ())))

    def learn(self, records: Iterable[TileRecord]) -> None:
        """Take in which cores the buildings of tiles reach."""
        core = self.rule.core
        down, right = (at // core for at in tile_phase(self.rule.grid, core, self.k))
        for row, col in (core for record in records for core in record.knocks):
            self._opened.setdefault(((row + down) // self.k, (col + right) // self.k), set()).add((row, col))

    def lacking(self, records: Iterable[TileRecord]) -> list[Core]:
        """Row and column of the tiles that left a core out which a building of another tile reaches.

        Failed tiles are not among them: a later run tries them again.
        """
        return [
            (record.row, record.col)
            for record in records
            if record.status != "failed"
            and not self._opened.get((record.row, record.col), set()) <= {(row, col) for row, col, _ in record.opened}
        ]
