"""Which of the places that were asked for by name each footprint belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoinfer.meridian import TURN, wrap
from geoinfer.region import Region

Shapes = NDArray[np.object_]


def place_of(shapes: Shapes, crs: CRS, places: Sequence[tuple[str, Region]]) -> list[str | None]:
    """The place of each shape (N,): the first that holds its centroid, else the first that it meets, else None.

    Depends on the shape and the places only.

    Args:
        shapes: Of a building's size, in `crs`.
        places: Name and region, as `region.named_regions` gives them; the earlier one wins where two overlap.
    """
    found: list[str | None] = [None] * len(shapes)
    moved: dict[str, list[Shapes]] = {}
    rules: tuple[Callable[[Shapes], Shapes], ...] = (shapely.centroid, lambda shapes: shapes)
    for rule in rules:
        for name, region in places:
            system = region.crs.to_wkt()
            copies = moved.get(system) or moved.setdefault(system, _in(shapes, crs, region.crs))
            shapely.prepare(region.geometry)
            meets = np.logical_or.reduce([shapely.intersects(region.geometry, rule(copy)) for copy in copies])
            for at in np.flatnonzero(meets).tolist():
                found[at] = name if found[at] is None else found[at]
    return found


def _in(shapes: Shapes, crs: CRS, target: CRS) -> list[Shapes]:
    """Shapes in another system; in degrees each in one piece, and once more a turn to the west and to the east."""
    if crs == target and not crs.is_geographic:
        return [shapes]
    transformer = Transformer.from_crs(crs, target, always_xy=True)
    moved: Shapes = shapely.transform(shapes, transformer.transform, interleaved=False)
    if not target.is_geographic:
        return [moved]
    points, owner = shapely.get_coordinates(moved, return_index=True)
    first = points[np.searchsorted(owner, np.arange(len(moved))), 0] if len(points) else np.empty(0)
    whole = shapely.set_coordinates(moved.copy(), np.column_stack([wrap(points[:, 0], first[owner]), points[:, 1]]))

    def turned(turn: float) -> Shapes:
        return np.asarray(shapely.transform(whole, lambda at: at + np.array([turn, 0.0])), dtype=object)

    return [whole, turned(-TURN), turned(TURN)]
