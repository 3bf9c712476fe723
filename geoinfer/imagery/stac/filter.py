"""Which items are wanted: collections, time, properties, place. Used twice: sent to an API, and applied to what comes back.

So a search means the same whatever an API is able to filter. A property that an item lacks meets no condition.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shapely
import shapely.geometry
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geoinfer.errors import ConfigError
from geoinfer.imagery.options import Search
from geoinfer.imagery.stac.io import pystac
from geoinfer.region import Region

Bounds = tuple[float, float, float, float]
Interval = tuple[dt.datetime | None, dt.datetime | None]
"""First and last moment, both included; None: open."""
_CONDITION = re.compile(
    r"""\s*([A-Za-z_][\w:.\-]{0,99}?)\s*(<=|>=|<>|!=|==|=|<|>)\s*("[^"]{0,200}"|'[^']{0,200}'|[^<>=!"'\s][^<>=]{0,199}?)\s*""",
    re.ASCII,
)
_OPERATORS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "=": "eq", "==": "eq", "<>": "neq", "!=": "neq"}
_MOMENT = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)([Zz]|[+-]\d{2}:?\d{2})?)?)?)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a property."""

    name: str
    operator: str
    """lt, lte, gt, gte, eq or neq."""
    value: str | float | bool

    def meets(self, properties: Mapping[str, Any]) -> bool:
        """Whether a property is there, of the same kind as the value, and compares so."""
        found, value = properties.get(self.name), self.value
        if found is None:
            return False
        numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (found, value))
        if not numbers and type(found) is not type(value):
            return self.operator == "neq"
        match self.operator:
            case "eq":
                return bool(found == value)
            case "neq":
                return bool(found != value)
            case "lt":
                return bool(found < value)
            case "lte":
                return bool(found <= value)
            case "gt":
                return bool(found > value)
            case _:
                return bool(found >= value)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    collections: tuple[str, ...]
    interval: Interval | None
    conditions: tuple[Condition, ...]
    boxes: tuple[Bounds, ...] | None
    """Degrees, west < east; None: everywhere."""
    max_items: int | None

    @classmethod
    def of(cls, search: Search, region: Region | None) -> Wanted:
        """Checked settings.

        Raises:
            ConfigError: A time or a condition that cannot be understood.
        """
        if search.max_items is not None and search.max_items < 1:
            raise ConfigError(f"--max-items {search.max_items}: 1 or more")
        return cls(
            collections=search.collections,
            interval=None if search.datetime is None else parse_interval(search.datetime),
            conditions=tuple(map(parse_condition, search.query)),
            boxes=None if region is None else boxes_of(region),
            max_items=search.max_items,
        )

    def meets(self, item: pystac.Item) -> bool:
        """Whether an item is wanted."""
        if self.collections and item.collection_id not in self.collections:
            return False
        if not all(condition.meets(item.properties) for condition in self.conditions):
            return False
        if self.interval is not None and not _overlap(self.interval, interval_of(item)):
            return False
        return self.boxes is None or _meets_boxes(item, self.boxes)

    def meets_extent(self, collection: pystac.Catalog) -> bool:
        """False where a collection declares that nothing in it can be wanted for its place."""
        if self.boxes is None or not isinstance(collection, pystac.Collection):
            return True
        try:
            boxes = [split_box(box) for box in collection.extent.spatial.bboxes]
        except (AttributeError, TypeError, ValueError):
            return True
        return not boxes or any(_boxes_meet(one, other) for part in boxes for one in part for other in self.boxes)

    @property
    def datetime(self) -> str | None:
        """The interval as an API is sent it."""
        if self.interval is None:
            return None
        if self.interval[0] is not None and self.interval[0] == self.interval[1]:
            return text_of(self.interval[0])
        return "/".join(".." if moment is None else text_of(moment) for moment in self.interval)

    @property
    def query(self) -> dict[str, dict[str, object]] | None:
        """The conditions as the query extension has them."""
        query: dict[str, dict[str, object]] = {}
        for condition in self.conditions:
            query.setdefault(condition.name, {})[condition.operator] = condition.value
        return query or None


def parse_condition(text: str) -> Condition:
    """`eo:cloud_cover<10`: a property, one of < <= > >= = !=, and a number, true, false or text (in quotes where it looks
    like one of the others).

    Raises:
        ConfigError: Anything else.
    """
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise ConfigError(f"--query {text[:100]!r}: not PROPERTY OPERATOR VALUE, as in eo:cloud_cover<10")
    name, operator, value = parts.groups()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return Condition(name, _OPERATORS[operator], value[1:-1])
    if value in ("true", "false"):
        return Condition(name, _OPERATORS[operator], value == "true")
    try:
        number = float(value)
    except ValueError:
        return Condition(name, _OPERATORS[operator], value)
    if not math.isfinite(number):
        raise ConfigError(f"--query {text[:100]!r}: {value} is not a finite number")
    return Condition(name, _OPERATORS[operator], int(number) if number.is_integer() and abs(number) < 2**53 else number)


def parse_interval(text: str) -> Interval:
    """A time or a range `A/B`, either side open with `..` or nothing; `2024` and `2024-05` mean all of it.

    Raises:
        ConfigError: Neither.
    """
    parts = text.strip().split("/")
    spans = [_span(part.strip(), text) for part in parts] if len(parts) <= 2 else []
    if not spans or spans == [None] or spans == [None, None]:
        raise ConfigError(f"--datetime {text!r}: not a time or a range, as 2024-05 or 2024-01-01/2024-12-31")
    first, last = spans[0], spans[-1]
    start, stop = first[0] if first else None, last[1] if last else None
    if start is not None and stop is not None and start > stop:
        raise ConfigError(f"--datetime {text!r}: its end lies before its start")
    return start, stop


def _span(part: str, text: str) -> tuple[dt.datetime, dt.datetime] | None:
    """First and last moment of what one time names; None where open."""
    if part in ("", ".."):
        return None
    found = _MOMENT.fullmatch(part)
    try:
        if found is None:
            raise ValueError("not RFC 3339")
        year, month, day, clock, zone = found.groups()
        if clock is not None:
            moment = dt.datetime.fromisoformat(f"{year}-{month}-{day}T{clock}{(zone or 'Z').upper()}").astimezone(dt.UTC)
            return moment, moment
        start = dt.datetime(int(year), int(month or 1), int(day or 1), tzinfo=dt.UTC)
        if day is not None:
            end = start + dt.timedelta(days=1)
        elif month is not None:
            end = (start + dt.timedelta(days=31)).replace(day=1)
        else:
            end = start.replace(year=start.year + 1)
        return start, end - dt.timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"--datetime {text!r}: {part!r} is not a time: {error}") from error


def text_of(moment: dt.datetime) -> str:
    """ISO 8601 in UTC."""
    return moment.isoformat().replace("+00:00", "Z")


def interval_of(item: pystac.Item) -> Interval | None:
    """When an item was taken: from `start_datetime` to `end_datetime`, else its `datetime`; None where it says nothing."""
    start, stop = (_moment(item.properties.get(name)) for name in ("start_datetime", "end_datetime"))
    if start is not None and stop is not None:
        return start, stop
    if item.datetime is None:
        return None
    moment = item.datetime if item.datetime.tzinfo else item.datetime.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC), moment.astimezone(dt.UTC)


def _moment(value: object) -> dt.datetime | None:
    try:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _overlap(wanted: Interval, found: Interval | None) -> bool:
    if found is None:
        return False
    ends = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
    (start, stop), (first, last) = ((a or ends[0], b or ends[1]) for a, b in (wanted, found))
    return start <= last and first <= stop


def boxes_of(region: Region) -> tuple[Bounds, ...]:
    """The region's bounds in degrees: one box, or two where it crosses the antimeridian."""
    to_degrees = Transformer.from_crs(region.crs, CRS.from_epsg(4326), always_xy=True)
    parts = [
        box
        for part in shapely.get_parts(region.geometry)
        for box in split_box(to_degrees.transform_bounds(*_corners(part), densify_pts=21))
    ]
    if max(box[2] for box in parts) - min(box[0] for box in parts) <= 180:
        halves = [parts]
    else:
        halves = [[box for box in parts if box[0] + box[2] < 0], [box for box in parts if box[0] + box[2] >= 0]]
    return tuple(
        (min(b[0] for b in half), min(b[1] for b in half), max(b[2] for b in half), max(b[3] for b in half))
        for half in halves
        if half
    )


def _corners(part: BaseGeometry) -> Bounds:
    west, south, east, north = part.bounds
    return west, south, east, north


def split_box(values: Sequence[float]) -> list[Bounds]:
    """A bounding box of 4 or 6 numbers as one or two boxes with west < east, within -180..180.

    Raises:
        ValueError: Not such numbers.
    """
    numbers = [float(value) for value in values]
    if len(numbers) == 6:
        numbers = [*numbers[:2], *numbers[3:5]]
    west, south, east, north = numbers
    if not all(map(math.isfinite, numbers)):
        raise ValueError("numbers that are not finite")
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    if not (-180 <= west <= 180):
        turns = math.floor((west + 180) / 360) * 360
        west, east = west - turns, east - turns
    if east > 180:
        east -= 360
    return [(west, south, east, north)] if west <= east else [(west, south, 180.0, north), (-180.0, south, east, north)]


def _meets_boxes(item: pystac.Item, boxes: Sequence[Bounds]) -> bool:
    """By its geometry, or by its box; an item that says neither is not ruled out."""
    if isinstance(item.geometry, Mapping):
        try:
            shape = shapely.geometry.shape(item.geometry)
            if shape.is_valid and not shape.is_empty:
                return any(shapely.intersects(shape, shapely.box(*box)) for box in boxes)
        except (shapely.errors.ShapelyError, ValueError, LookupError, TypeError, AttributeError):
            pass  # the box serves
    try:
        own = split_box(item.bbox or ())
    except (TypeError, ValueError):
        return True
    return any(_boxes_meet(one, other) for one in own for other in boxes)


def _boxes_meet(one: Bounds, other: Bounds) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
