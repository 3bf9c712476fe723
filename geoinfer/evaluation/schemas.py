"""Footprints of other origins in our columns: OpenStreetMap, Microsoft, Google, Overture. Knows columns and their meaning.

Ours are `id`, `confidence` (0..1, NaN where not known) and `area_in_meters`; every other column stays as it is, so that it
can be sliced by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.errors import ConfigError
from geoinfer.evaluation.read import read_vector

if TYPE_CHECKING:
    import pandas as pd
    from geopandas import GeoDataFrame

Confidences = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schema:
    """How one provider names what we need."""

    title: str
    """For a person."""
    signs: tuple[frozenset[str], ...]
    """Sets of columns; all of one set tell the provider."""
    id: tuple[str, ...] = ()
    """Columns that may hold the identifier, the best first."""
    area: str | None = None
    """Column of the area, square metres."""
    confidence: Callable[[pd.Series], Confidences] | None = None
    """(N,) 0..1, NaN where not known, from the column `score`; None where the provider has none."""
    score: str = "confidence"
    is_tagged: bool = False
    """The file holds more than buildings: those are told by a value in the column `building`."""


@dataclass(frozen=True, slots=True, eq=False)
class Footprints:
    """What was read, in our columns."""

    frame: GeoDataFrame
    """`geometry` and, where known, `id`, `confidence`, `area_in_meters`; then all other columns of the file."""
    schema: str
    """Key of `SCHEMAS`."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Features of the file that are not in `frame`, by reason."""


def _share(column: pd.Series) -> Confidences:
    """A share; what lies outside 0..1 is not known (Microsoft writes -1)."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    return np.where((values >= 0) & (values <= 1), values, np.nan)


def _of_sources(column: pd.Series) -> Confidences:
    """Overture: a confidence for each source of a feature; the one of its geometry comes first (schema, `sources`)."""
    return np.array([_first_confidence(sources) for sources in column], float)


def _first_confidence(sources: Any) -> float:
    for source in sources if isinstance(sources, list | tuple | np.ndarray) else ():
        value = source.get("confidence") if isinstance(source, Mapping) else None
        if value is not None and 0 <= value <= 1:
            return float(value)
    return float("nan")


def _is_building(tags: pd.Series) -> NDArray[np.bool_]:
    """OpenStreetMap: `building` has a value, and that is not `no` (OpenStreetMap wiki, Key:building)."""
    tagged: NDArray[np.bool_] = (tags.notna() & ~tags.astype(str).str.lower().isin(["no", "", "none", "nan"])).to_numpy()
    return tagged


SCHEMAS: Mapping[str, Schema] = {
    "geoinfer": Schema(
        "geoinfer", (frozenset({"id", "confidence", "area_in_meters", "truncated"}),), ("id",), "area_in_meters", _share
    ),
    "google": Schema(
        "Google Open Buildings",
        (frozenset({"full_plus_code", "confidence"}),),
        ("full_plus_code",), "area_in_meters", _share,
    ),
    "overture": Schema(
        "Overture Maps buildings",
        (frozenset({"id", "version", "sources"}), frozenset({"id", "sources", "has_parts"})),
        ("id",), None, _of_sources, "sources",
    ),
    "microsoft": Schema(
        "Microsoft building footprints",
        (frozenset({"height", "confidence"}), frozenset({"release", "capture_dates_range"})),
        (), None, _share,
    ),
    "osm": Schema(
        "OpenStreetMap",
        (frozenset({"osm_id"}), frozenset({"osm_way_id"}), frozenset({"@id"}), frozenset({"building"})),
        ("osm_way_id", "osm_id", "@id", "id"), is_tagged=True,
    ),
    "other": Schema("footprints", (), ("id",), "area_in_meters", _share),
}  # fmt: skip
"""Name -> schema, in the order in which they are tried. Sources: Google Open Buildings v3 (CSV columns), Overture Maps
schema (buildings/building), Microsoft GlobalMLBuildingFootprints and USBuildingFootprints (GeoJSON properties),
OpenStreetMap's exports by GDAL (`osm_id`, `osm_way_id`) and by Overpass (`@id`)."""


def detect_schema(columns: Any) -> str:
    """Whose columns these are; `other` where no provider is recognised."""
    present = set(map(str, columns))
    return next((name for name, schema in SCHEMAS.items() if any(signs <= present for signs in schema.signs)), "other")


def read_footprints(path: str | Path, schema: str | None = None) -> Footprints:
    """Footprints of a file in our columns.

    Args:
        path: The file.
        schema: Key of `SCHEMAS`; default: told by the columns.

    Raises:
        ConfigError: No schema of that name.
        SourceError, SafetyError: As `read_vector`.
    """
    if schema is not None and schema not in SCHEMAS:
        raise ConfigError(f"schema {schema!r} is unknown; use one of {', '.join(SCHEMAS)}")
    return to_ours(read_vector(Path(path)), schema)


def to_ours(frame: GeoDataFrame, schema: str | None = None) -> Footprints:
    """A table in our columns, without features that are no polygons or, as their provider says, no buildings.

    Args:
        frame: Features.
        schema: Key of `SCHEMAS`; default: told by the columns.
    """
    name = detect_schema(frame.columns) if schema is None else schema
    found = SCHEMAS[name]
    kinds = shapely.get_type_id(np.asarray(frame.geometry.array, dtype=object))
    is_shape = np.isin(kinds, (-1, 3, 6))  # a missing one is the affair of what compares
    is_building = np.ones(len(frame), bool)
    if found.is_tagged and "building" in frame:
        is_building = _is_building(frame["building"])
    dropped = {"not a polygon": int((~is_shape).sum()), "not a building": int((is_shape & ~is_building).sum())}
    kept = frame[is_shape & is_building].reset_index(drop=True)
    if kept.geometry.name != "geometry":
        kept = kept.drop(columns="geometry", errors="ignore").rename_geometry("geometry")
    ours: dict[str, Any] = {}
    source = next((column for column in found.id if column in kept), None)
    if source is not None:
        ours["id"] = _first_known(kept, [column for column in found.id if column in kept])
    if found.area is not None and found.area in kept:
        ours["area_in_meters"] = kept[found.area].astype(float)
    if found.confidence is not None and found.score in kept:
        ours["confidence"] = found.confidence(kept[found.score])
    return Footprints(kept.assign(**ours), name, {reason: count for reason, count in dropped.items() if count})


def _first_known(frame: GeoDataFrame, columns: list[str]) -> pd.Series:
    """Identifiers as text, from the first column that has one: GDAL writes ways and relations into two."""
    ids = frame[columns[0]]
    for column in columns[1:]:
        ids = ids.where(ids.notna(), frame[column])
    named: pd.Series = ids.map(lambda value: None if value is None or value != value else str(value).removesuffix(".0"))
    return named
