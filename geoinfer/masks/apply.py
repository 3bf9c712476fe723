"""What layers do to footprints, one after the other, and what they did: every footprint comes out once (law 4).

Decisions are made on whole footprints (law 3), and each depends on its own footprint and the layers alone, bit for bit.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from geoinfer.errors import ConfigError, MaskWarning
from geoinfer.imagery.ground import label_of
from geoinfer.masks.cover import ROUNDING, Floats, Indices, Shapes, covered_share, uncovered
from geoinfer.masks.layer import MaskLayer, open_masks
from geoinfer.masks.planes import areas_m2, measured, planes_of, projected
from geoinfer.masks.prepare import PreparedLayer, prepare
from geoinfer.region import Bounds
from geoinfer.vector.footprints import text_column

_AROUND_M = np.array([-1.0, -1.0, 1.0, 1.0])
"""A region has an area even where a footprint has none."""
_QUANTUM_M2 = 2.0**-10
"""Areas are rounded to multiples of this before they are added: then floats add without rounding, in any order."""


@dataclass(slots=True)
class LayerCount:
    """What one layer did. The counts of a run's parts add up to those of the run, exactly."""

    tested: int = 0
    """Footprints that reached the layer: earlier layers had left them."""
    removed: int = 0
    flagged: int = 0
    """Survivors of which the layer covers some."""
    removed_area_m2: float = 0.0
    """Of the removed footprints, as they came to the layer."""
    clipped: int = 0
    """Survivors that lost a part."""
    clipped_area_m2: float = 0.0
    """What survivors lost."""

    def add(self, other: LayerCount) -> None:
        """Add what the layer did elsewhere."""
        self.tested += other.tested
        self.removed += other.removed
        self.flagged += other.flagged
        self.removed_area_m2 += other.removed_area_m2
        self.clipped += other.clipped
        self.clipped_area_m2 += other.clipped_area_m2


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Footprints = accepted + rejected; each in the order and with the index it came with."""

    accepted: gpd.GeoDataFrame
    """The columns that came in, and for each layer NAME_cover: the share of the footprint that it covers, 0..1, before any
    clipping by that layer."""
    rejected: gpd.GeoDataFrame
    """The same (NAME_cover is NaN for layers after the one that rejected: they were not asked), and `reason` (mask_drop,
    mask_keep, mask_clip, mask_skip), `detail` (the numbers, for a person), `layer`, `layer_version`, `covered_share`.
    Geometry and area are those that came to the rejecting layer."""
    counts: tuple[LayerCount, ...]
    """In the order of the layers."""


def apply_masks(
    footprints: gpd.GeoDataFrame, layers: Sequence[PreparedLayer], *, min_area_m2: float = 0.0, threads: int = 1
) -> Masked:
    """Let layers act on footprints, in order.

    `drop` and `skip` reject what is covered by more than `max_cover`, `keep` what is covered by no more than it; `flag` only
    says how much. `clip` cuts the covered part away, whatever `max_cover`: the footprint stays one row, its parts below the
    least area go as well, and where no part is left it is rejected.

    Args:
        footprints: Valid polygons in the coordinate system that the layers were prepared in, with `area_in_meters`.
        layers: Prepared layers.
        min_area_m2: Least area of a part that `clip` leaves, square metres on the ellipsoid.
        threads: As in `covered_share`.
    """
    shapes: Shapes = np.array(footprints.geometry.array, dtype=object)
    fates = _Fates.of(shapes, footprints["area_in_meters"].to_numpy(np.float64), len(layers))
    counts = _act(fates, footprints.crs, layers, min_area_m2, threads)
    accepted, rejected = _split(footprints, fates, [layer.layer for layer in layers])
    return Masked(accepted, rejected, counts)


def mask_footprints(
    footprints: gpd.GeoDataFrame,
    masks: Iterable[MaskLayer | str | Mapping[str, object]],
    *,
    min_area: float = 0.0,
    threads: int = 1,
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Let mask layers act on any table of polygons.

    Each footprint is measured in the table's own coordinate system where a metre of that is one on the ground there, else
    in its UTM zone; so no footprint's fate depends on the others in the table.

    Args:
        footprints: Polygons in any coordinate system. Invalid ones are repaired for measuring. Missing and empty ones
            are accepted, and their NAME_cover is NaN.
        masks: Layers, or their texts `FILE:name=water,action=drop`, or mappings as in YAML; they act in this order.
        min_area: Least area of a part that `clip` leaves, square metres.
        threads: As in `covered_share`.

    Returns:
        accepted and rejected, with the columns of `Masked`; order, index, coordinate system and geometries are those that
        came in, but for what `clip` cut. `area_in_meters` is kept up to date where there is such a column.

    Raises:
        ConfigError: A table without a coordinate system, a geometry that is no polygon, or a layer's setting.
        SourceError: A layer that cannot be read.

    Warns:
        MaskWarning: A layer has nothing near the footprints.
    """
    layers = open_masks(masks)
    shapes = _polygons(footprints)
    fates = _Fates.of(shapes, np.zeros(len(shapes)), len(layers))
    met: dict[MaskLayer, int] = {}
    spans: dict[MaskLayer, Bounds | None] = {}
    for crs, rows in planes_of(shapes, footprints.crs):
        there = _Fates.of(*measured(shapes[rows], footprints.crs, crs), len(layers))
        minx, miny, maxx, maxy = (shapely.total_bounds(there.shapes) + _AROUND_M).tolist()
        with tempfile.TemporaryDirectory(prefix="geoinfer-masks-") as folder:
            prepared = [prepare(layer, crs, (minx, miny, maxx, maxy), Path(folder)) for layer in layers]
            _act(there, crs, prepared, min_area, threads)
        for ready in prepared:
            met[ready.layer] = met.get(ready.layer, 0) + ready.features
            spans[ready.layer] = ready.source_bounds
        cut = np.flatnonzero(there.clipped)
        there.shapes[cut] = projected(there.shapes[cut], crs, footprints.crs)
        fates.put(rows, there)
    for layer in [layer for layer, features in met.items() if not features]:
        warnings.warn(_nothing(layer, spans[layer], footprints), MaskWarning, stacklevel=2)
    return _split(footprints, fates, layers)


@dataclass(frozen=True, slots=True, eq=False)
class _Fates:
    """What becomes of N footprints: arrays that layers write into."""

    shapes: Shapes
    """(N,) as the last layer left them."""
    area_m2: Floats
    """(N,) on the ellipsoid."""
    cover: Floats
    """(N, layers); NaN where a layer was not asked."""
    rejecter: Indices
    """(N,) number of the layer that rejected it; -1 for none."""
    detail: Shapes
    """(N,) why, or None."""
    clipped: NDArray[np.bool_]
    """(N,) something was cut away."""

    @classmethod
    def of(cls, shapes: Shapes, area_m2: Floats, layers: int) -> _Fates:
        """Before any layer acts."""
        n = len(shapes)
        nothing: Shapes = np.full(n, None, object)
        return cls(
            shapes.copy(), area_m2.copy(), np.full((n, layers), np.nan), np.full(n, -1), nothing, np.zeros(n, np.bool_)
        )

    def put(self, rows: Indices, part: _Fates) -> None:
        """Write the fates of some footprints in their places."""
        self.shapes[rows], self.area_m2[rows], self.cover[rows] = part.shapes, part.area_m2, part.cover
        self.rejecter[rows], self.detail[rows], self.clipped[rows] = part.rejecter, part.detail, part.clipped


def _act(
    fates: _Fates, crs: CRS, layers: Sequence[PreparedLayer], min_area_m2: float, threads: int
) -> tuple[LayerCount, ...]:
    """Let layers act in order; each is asked about what the earlier ones left."""
    counts = []
    for number, layer in enumerate(layers):
        alive = np.flatnonzero(fates.rejecter < 0)
        share = covered_share(fates.shapes[alive], layer, threads=threads)
        fates.cover[alive, number] = share
        count = LayerCount(tested=len(alive))
        if layer.layer.action == "clip":
            touched = share > 0
            removed = np.zeros(len(alive), np.bool_)
            removed[touched] = _clip(fates, alive[touched], share[touched], crs, layer, min_area_m2, threads, count)
        else:
            removed = _is_out(share, layer.layer)
            fates.detail[alive[removed]] = [_reason_of(value, layer.layer) for value in share[removed].tolist()]
        fates.rejecter[alive[removed]] = number
        count.removed = int(removed.sum())
        count.removed_area_m2 = _sum_m2(fates.area_m2[alive[removed]])
        count.flagged = int((share[~removed] > 0).sum())
        counts.append(count)
    return tuple(counts)


def _is_out(share: Floats, layer: MaskLayer) -> NDArray[np.bool_]:
    """Which footprints a layer rejects for the share of them that it covers."""
    if layer.action == "flag":
        return np.zeros(len(share), np.bool_)
    covered: NDArray[np.bool_] = share > layer.max_cover
    return np.logical_not(covered) if layer.action == "keep" else covered


def _reason_of(share: float, layer: MaskLayer) -> str:
    limit = f"{100 * layer.max_cover:.12g}"
    verdict = "no more" if layer.action == "keep" else "more"
    return f"{_cut(100 * share, float(limit))} % of it lies in {layer.name}, {verdict} than {limit} %"


def _clip(
    fates: _Fates,
    rows: Indices,
    share: Floats,
    crs: CRS,
    layer: PreparedLayer,
    min_area_m2: float,
    threads: int,
    count: LayerCount,
) -> NDArray[np.bool_]:
    """Cut away what a layer covers of some footprints; which of them have nothing left."""
    parts, owner = shapely.get_parts(uncovered(fates.shapes[rows], layer, threads=threads), return_index=True)
    area_m2 = areas_m2(parts, crs)
    largest = np.zeros(len(rows))
    np.maximum.at(largest, owner, area_m2)
    # What remains of a footprint along a layer's edge for the rounding of coordinates is no part of it.
    stays = (area_m2 >= min_area_m2) & (area_m2 > ROUNDING * fates.area_m2[rows][owner])
    parts, owner = parts[stays], owner[stays]
    remains = np.bincount(owner, minlength=len(rows))
    gone: NDArray[np.bool_] = remains == 0
    fates.detail[rows[gone]] = [
        f"it lies wholly in {layer.layer.name}"
        if covered == 1.0 or area >= min_area_m2
        else f"its largest part outside {layer.layer.name} has {_cut(area, min_area_m2)} m2 < {min_area_m2:g} m2"
        for covered, area in zip(share[gone].tolist(), largest[gone].tolist(), strict=True)
    ]
    kept = rows[~gone]
    several = remains[owner] > 1
    whole: Shapes = np.full(len(rows), None, object)
    whole[owner[~several]] = parts[~several]
    split = np.flatnonzero(remains > 1)
    whole[split] = shapely.multipolygons(parts[several], indices=np.searchsorted(split, owner[several]))
    before = fates.area_m2[kept]
    fates.shapes[kept] = whole[~gone]
    fates.area_m2[kept] = areas_m2(whole[~gone], crs)
    fates.clipped[kept] = True
    count.clipped = len(kept)
    count.clipped_area_m2 = _sum_m2(before) - _sum_m2(fates.area_m2[kept])
    return gone


def _split(
    footprints: gpd.GeoDataFrame, fates: _Fates, layers: Sequence[MaskLayer]
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """The accepted and the rejected rows of a table."""
    table = footprints.copy()
    if fates.clipped.any():
        shapes = np.where(fates.clipped, fates.shapes, np.array(table.geometry.array, dtype=object))
        table[table.geometry.name] = gpd.GeoSeries(shapes, index=table.index, crs=table.crs)
        if "area_in_meters" in table:
            table["area_in_meters"] = np.where(fates.clipped, fates.area_m2, table["area_in_meters"])
    for column, layer in enumerate(layers):
        table[f"{layer.name}_cover"] = fates.cover[:, column]
    out = fates.rejecter >= 0
    accepted, rejected = table[~out].copy(), table[out].copy()
    number = fates.rejecter[out]
    by = [layers[at] for at in number.tolist()]
    rejected["reason"] = text_column([f"mask_{layer.action}" for layer in by])
    rejected["detail"] = text_column(fates.detail[out].tolist())
    rejected["layer"] = text_column([layer.name for layer in by])
    rejected["layer_version"] = text_column([layer.version for layer in by])
    rejected["covered_share"] = fates.cover[np.flatnonzero(out), number]
    return accepted, rejected


def _polygons(footprints: gpd.GeoDataFrame) -> Shapes:
    """(N,) polygons and multipolygons of a table; None for missing and empty ones."""
    if footprints.crs is None:
        raise ConfigError("the footprints name no coordinate system; set one with set_crs()")
    shapes: Shapes = np.array(footprints.geometry.array, dtype=object)
    shapes[shapely.is_empty(shapes)] = None
    wrong = np.flatnonzero(~np.isin(shapely.get_type_id(shapes), (-1, 3, 6)))
    if len(wrong):
        row = footprints.index[wrong[0]]
        raise ConfigError(f"row {row}: {shapes[wrong[0]].geom_type} is no footprint; only polygons can be masked")
    return shapes


def _nothing(layer: MaskLayer, bounds: Bounds | None, footprints: gpd.GeoDataFrame) -> str:
    """The message for a layer that has nothing near the footprints."""
    spans = "holds no polygon" if bounds is None else f"spans {_box(bounds)} in its own coordinate system"
    around = f"{_box(footprints.total_bounds.tolist())} in {label_of(CRS(footprints.crs))}"
    return f"mask layer {layer.name}: touches none of the footprints: it {spans}, they span {around}"


def _box(bounds: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.10g}" for value in bounds) + "]"


def _sum_m2(areas: Floats) -> float:
    """Exact but for the quantum, so that sums of parts add up to the sum of all."""
    quanta = float(np.rint(areas / _QUANTUM_M2).sum())
    return quanta * _QUANTUM_M2


def _cut(value: float, limit: float) -> float:
    """Few digits, cut, not rounded; more where a value above the limit would not read as above it."""
    for digits in range(2, 16):
        shown = math.floor(value * 10.0**digits) / 10.0**digits
        if shown != limit and (shown > limit) == (value > limit):
            return shown
    return value
