"""Which slice each footprint belongs to: by size, density, confidence, distance to water, a column, polygons or a raster.

Says nothing of how good a slice is. A slice specification is a word (`size`, `density`, `confidence`, `water`), the name of
a column of either table, or a file: polygons with a column of names, or a raster read at the centroid. Options follow a
colon: `landcover.tif:name=land cover`, `height_m:edges=3/6/12`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.evaluation.layers import distance_to, polygon_at, raster_at
from geoinfer.evaluation.read import read_vector

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries
    from pyproj import CRS

Kind = Literal["size", "density", "confidence", "water", "column", "polygons", "raster"]
WORDS: dict[str, tuple[tuple[float, ...], str]] = {
    "size": ((30.0, 100.0, 300.0, 1000.0), "m²"),
    "density": ((100.0, 500.0, 1500.0, 3000.0), "/km²"),
    "confidence": ((0.5, 0.6, 0.7, 0.8, 0.9), ""),
    "water": ((1.0, 25.0, 100.0, 500.0), "m"),
}
"""Slices that need no column and no file: edges and unit."""
DENSITY_CELL_M = 250.0
"""Side of the squares in which true footprints are counted for `density`, metres."""
MAX_VALUES = 50
"""More distinct values than this are no slices, but a quantity that wants edges."""
NONE = "(none)"
"""Where a footprint has no value: outside the layer, an empty cell of the table, a miss without confidence."""
_RASTERS, _VECTORS = (".tif", ".tiff"), (".gpkg", ".geojson", ".json", ".parquet", ".fgb", ".shp")
_KEYS = ("name", "column", "band", "edges")
_OPTIONS = re.compile(r":((?:[a-z]+=[^,:]*)(?:,[a-z]+=[^,:]*)*)$")


@dataclass(frozen=True, slots=True, eq=False)
class SliceSpec:
    """A way to divide footprints into slices."""

    name: str
    """What the slices are called together."""
    kind: Kind
    source: Path | GeoDataFrame | None = None
    """The layer of `polygons` and `raster`."""
    column: str | None = None
    """Of the table for `column`, of the layer for `polygons`."""
    band: int = 1
    """Of the raster, from 1."""
    edges: tuple[float, ...] | None = None
    """Ascending; n edges make n + 1 slices, each from its lower edge on and below its upper one. None: a slice a value."""

    def __post_init__(self) -> None:
        if self.edges is not None and (not self.edges or not (np.diff(self.edges) > 0).all()):
            raise ConfigError(f"slices {self.name}: edges must be numbers in ascending order, like edges=30/100/300")
        if self.band < 1:
            raise ConfigError(f"slices {self.name}: band {self.band}; bands are counted from 1")


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """What slices may look at of one side."""

    shapes: NDArray[np.object_]
    """(N,) polygons in the plane."""
    centroids: NDArray[np.object_]
    """(N,) points."""
    table: pd.DataFrame
    """(N,) rows, those of the input that the polygons came from."""
    area_m2: NDArray[np.float64]
    """(N,)."""
    confidence: NDArray[np.float64] | None
    """(N,), NaN where unknown; None for the true side."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The slice of every footprint."""

    spec: SliceSpec
    values: tuple[str, ...]
    """Names of the slices in order; the last is `NONE` where any footprint has no value."""
    pred: NDArray[np.int64] | None
    """(P,) position in `values`; None where predictions cannot carry the value."""
    truth: NDArray[np.int64] | None
    """(T,) position in `values`; None where true footprints cannot."""


def parse_slice(text: str | SliceSpec) -> SliceSpec:
    """A specification from `WORD`, `COLUMN` or `FILE`, each with options `:key=value,...`.

    Args:
        text: Keys are `name`; `column` (polygons); `band` (raster); `edges` (numbers with `/` between them). `column:NAME`
            means a column that is called like a word.

    Raises:
        ConfigError: Nothing there, an unknown key, or a value that does not fit.
    """
    if isinstance(text, SliceSpec):
        return text
    found = _OPTIONS.search(text)
    what = (text[: found.start()] if found else text).strip()
    options: dict[str, str] = dict(part.split("=", 1) for part in found[1].split(",")) if found else {}
    for key in options:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise ConfigError(f"slices {text!r}: unknown key {key!r}; {hint}")
    if not what:
        raise ConfigError(f"slices {text!r}: nothing to slice by; say {', '.join(WORDS)}, a column or a file")
    numbers: dict[str, Any] = {}
    try:
        if "band" in options:
            numbers["band"] = int(options["band"])
        if "edges" in options:
            numbers["edges"] = tuple(float(part) for part in options["edges"].split("/"))
    except ValueError:
        raise ConfigError(f"slices {text!r}: band is a whole number, edges are numbers like edges=30/100/300") from None
    suffix = Path(what).suffix.lower()
    name = options.get("name")
    if what in WORDS:
        return SliceSpec(name or what, what, **{"edges": WORDS[what][0], **numbers})  # type: ignore[arg-type]
    if suffix in _RASTERS:
        return SliceSpec(name or Path(what).stem, "raster", Path(what), **numbers)
    if suffix in _VECTORS:
        return SliceSpec(name or Path(what).stem, "polygons", Path(what), options.get("column"), **numbers)
    column = what.removeprefix("column:")
    return SliceSpec(name or column, "column", column=column, **numbers)


def parse_slices(texts: Iterable[str | SliceSpec]) -> tuple[SliceSpec, ...]:
    """Specifications, no two of one name.

    Raises:
        ConfigError: What `parse_slice` raises, or two of one name.
    """
    specs = tuple(map(parse_slice, texts))
    for at, spec in enumerate(specs):
        if any(spec.name == other.name for other in specs[:at]):
            raise ConfigError(f"slices {spec.name}: two are called so; tell them apart with name=")
    return specs


def label(spec: SliceSpec, pred: Side, truth: Side, *, plane: CRS, water: GeoDataFrame | GeoSeries | None = None) -> Labels:
    """The slice of every footprint.

    Args:
        spec: How to divide.
        pred: Predicted footprints.
        truth: True footprints.
        plane: Coordinate system of both sides' shapes.
        water: Polygons, for `water`.

    Raises:
        ConfigError: The column or the water is missing, or more values than slices can be.
        SourceError: A layer that cannot be read.
    """
    measured = [_measure(spec, side, truth, plane, water) for side in (pred, truth)]
    if measured[0] is None and measured[1] is None:
        raise ConfigError(_no_column(spec, pred, truth))
    unit = WORDS[spec.kind][1] if spec.kind in WORDS else ""
    names, coded = _cut(spec, measured, unit) if spec.edges is not None else _distinct(spec, measured)
    has_none = any(codes is not None and (codes < 0).any() for codes in coded)
    codes = [None if side is None else np.where(side < 0, len(names), side) for side in coded]
    return Labels(spec, (*names, NONE) if has_none else names, codes[0], codes[1])


def _measure(
    spec: SliceSpec, side: Side, truth: Side, plane: CRS, water: GeoDataFrame | GeoSeries | None
) -> NDArray[Any] | None:
    """(N,) what the slices are made of: numbers, or values of any kind; None where this side has none."""
    if spec.kind == "size":
        return side.area_m2
    if spec.kind == "confidence":
        return side.confidence
    if spec.kind == "column":
        return side.table[spec.column].to_numpy() if spec.column in side.table else None
    if spec.kind == "water":
        if water is None:
            raise ConfigError("slices water: no water is given; add --water FILE (water= in Python)")
        return distance_to(side.shapes, water, plane)
    if spec.kind == "density":
        return _density(side.centroids, truth.centroids)
    if spec.kind == "raster":
        assert isinstance(spec.source, Path)
        return raster_at(side.centroids, plane, spec.source, spec.band)
    layer = read_vector(spec.source) if isinstance(spec.source, Path) else spec.source
    assert layer is not None
    names = [*layer[_column_of(layer, spec)], None]  # the last is that of no polygon, -1
    return np.array([names[at] for at in polygon_at(side.centroids, layer, plane)], dtype=object)


def _density(points: NDArray[np.object_], truth: NDArray[np.object_]) -> NDArray[np.float64]:
    """True footprints per km² in the square of `DENSITY_CELL_M` that each point lies in: the same on both sides."""
    from geoinfer.evaluation.blocks import block_of

    here, there = (block_of(shapely.get_x(p), shapely.get_y(p), DENSITY_CELL_M) for p in (points, truth))
    cells, counts = np.unique(there, return_counts=True)
    if not len(cells):
        return np.zeros(len(here))
    at = np.minimum(np.searchsorted(cells, here), len(cells) - 1)
    return np.where(cells[at] == here, counts[at], 0) / (DENSITY_CELL_M / 1000) ** 2


Coded = list[NDArray[np.int64] | None]


def _cut(spec: SliceSpec, measured: list[NDArray[Any] | None], unit: str) -> tuple[tuple[str, ...], Coded]:
    """Slices between edges; -1 where there is no number."""
    assert spec.edges is not None
    edges = np.array(spec.edges)
    tail = f" {unit}" if unit else ""
    inner = [f"{low:g} to {high:g}{tail}" for low, high in pairwise(spec.edges)]
    names = (f"< {edges[0]:g}{tail}", *inner, f">= {edges[-1]:g}{tail}")
    coded: Coded = []
    for values in measured:
        if values is None:
            coded.append(None)
            continue
        try:
            numbers = np.asarray(pd.to_numeric(pd.Series(values)), np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"slices {spec.name}: edges need numbers: {error}") from error
        coded.append(np.where(np.isfinite(numbers), np.searchsorted(edges, numbers, side="right"), -1))
    return names, coded


def _distinct(spec: SliceSpec, measured: list[NDArray[Any] | None]) -> tuple[tuple[str, ...], Coded]:
    """A slice a value, times by the month; in order of the value where it is a number or a time, else of its name."""
    ranks: dict[str, tuple[float, str]] = {}
    sides: list[list[str | None] | None] = []
    for values in measured:
        if values is None:
            sides.append(None)
            continue
        series = pd.Series(values)
        is_time = pd.api.types.is_datetime64_any_dtype(series)
        listed: list[Any] = series.tolist()
        words = [None if pd.isna(value) else f"{value:%Y-%m}" if is_time else _word(value) for value in listed]
        sides.append(words)
        for word, value in zip(words, listed, strict=True):
            if word is not None and word not in ranks:
                ranks[word] = (float(value) if isinstance(value, int | float | np.number) else 0.0, word)
                if len(ranks) > MAX_VALUES:
                    raise ConfigError(
                        f"slices {spec.name}: more than {MAX_VALUES} different values, such as {word!r}; give edges, "
                        f"as {spec.name}:edges=10/20/30"
                    )
    names = tuple(sorted(ranks, key=ranks.__getitem__))
    position: dict[str | None, int] = {name: at for at, name in enumerate(names)}
    return names, [
        None if words is None else np.array([position.get(word, -1) for word in words], np.int64) for words in sides
    ]


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _no_column(spec: SliceSpec, pred: Side, truth: Side) -> str:
    if spec.kind != "column":
        return f"slices {spec.name}: neither side has it"
    known = sorted({*map(str, pred.table.columns), *map(str, truth.table.columns)} - {"geometry"})
    near = difflib.get_close_matches(str(spec.column), [*WORDS, *known], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"slices {spec.column!r}: {hint}it is no word ({', '.join(WORDS)}), no file that slices can read "
        f"({', '.join((*_RASTERS, *_VECTORS))}), and no column of either table: {', '.join(known) or 'they have none'}"
    )


def _column_of(layer: GeoDataFrame, spec: SliceSpec) -> str:
    """The column of names: the one asked for, else `name`, else the only one."""
    known = [str(column) for column in layer.columns if column != layer.geometry.name]
    column = spec.column or ("name" if "name" in known else known[0] if len(known) == 1 else None)
    if column is None or column not in known:
        raise ConfigError(
            f"slices {spec.name}: which column names the polygons? say column=, one of {', '.join(known) or 'none'}"
        )
    return column
