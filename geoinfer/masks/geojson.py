"""GeoJSON as a stream of features, by RFC 7946 and the `crs` member of its predecessor.

Read here and not by a driver: several of OGR's JSON drivers follow links or run pipelines, and which of them opens a file
depends on words anywhere in its first bytes. Python's own JSON parser takes one feature at a time out of a sliding text, so
memory is that of the largest feature; GEOS makes the geometries of many features in one call. The root may be written in any
order of members, but `crs` must come before the features.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyproj import CRS
from pyproj.exceptions import CRSError

from geoinfer.errors import SourceError

_CHUNK = 2**22
_GEOMETRIES = ("Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString", "MultiLineString", "GeometryCollection")
_NEAR_END = 64
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature, as text for GEOS and as values."""

    text: str
    has_geometry: bool
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the first feature."""

    crs: CRS | None
    """None where the file says that none can be assumed (`crs: null`)."""
    names_crs: bool


def read_head(stream: io.BufferedIOBase, name: str) -> Head:
    """The coordinate system; also makes sure that this is GeoJSON at all.

    Raises:
        SourceError: Something else, or damaged before its first feature.
    """
    for found in _walk(stream, name):
        return found if isinstance(found, Head) else Head(CRS.from_epsg(4326), False)
    raise SourceError(f"{name}: no GeoJSON in it")  # pragma: no cover: _walk yields a head or raises


def read_features(stream: io.BufferedIOBase, name: str) -> Iterator[Feature]:
    """All features in the order of the file; a geometry that stands alone is one.

    Raises:
        SourceError: Not GeoJSON, damaged or cut off: said when the reading gets there.
    """
    return (found for found in _walk(stream, name) if isinstance(found, Feature))


def _walk(stream: io.BufferedIOBase, name: str) -> Iterator[Head | Feature]:
    """The head, then the features."""
    text = _Text(stream, name)
    text.expect("{")
    members: dict[str, Any] = {}
    told = False
    if not text.skip("}"):
        while True:
            key = text.value()
            if not isinstance(key, str):
                raise text.fault("a member without a name")
            text.expect(":")
            if key == "features" and text.skip("["):
                if told:
                    raise text.fault("two lists of features")
                yield _head_of(members, name)
                told = True
                yield from _items(text)
            else:
                begin = text.at
                members[key] = text.value()
                if key == "crs" and told:
                    raise text.fault("crs stands after the features; move it before them, or convert the file with ogr2ogr")
                if key in ("coordinates", "geometries", "geometry"):
                    members[key] = (text.text[begin : text.at].strip(), members[key] is not None)
            if text.skip("}"):
                break
            text.expect(",")
    text.end()
    kind = members.get("type")
    if told:
        if kind != "FeatureCollection":
            raise text.fault(f"type {kind!r} has no features in GeoJSON")
        return
    yield _head_of(members, name)
    yield from _alone(members, text)


def _items(text: _Text) -> Iterator[Feature]:
    """The members of the list of features, from behind its bracket to behind its end."""
    if text.skip("]"):
        return
    while True:
        text.space()
        begin = text.at
        value = text.value()
        if not isinstance(value, dict) or value.get("type") != "Feature":
            raise text.fault("a member of features that is no Feature")
        properties = value.get("properties")
        yield Feature(
            text.text[begin : text.at],
            value.get("geometry") is not None,
            properties if isinstance(properties, dict) else {},
        )
        text.forget()
        if text.skip("]"):
            return
        text.expect(",")


def _alone(members: dict[str, Any], text: _Text) -> Iterator[Feature]:
    """A root that is a feature or a geometry."""
    kind = members.get("type")
    if kind == "Feature" and isinstance(members.get("geometry"), tuple):
        content, present = members["geometry"]
        properties = members.get("properties")
        yield Feature(content, present, properties if isinstance(properties, dict) else {})
    elif kind in _GEOMETRIES:
        key = "geometries" if kind == "GeometryCollection" else "coordinates"
        if not isinstance(members.get(key), tuple):
            raise text.fault(f"a {kind} without {key}")
        yield Feature(f'{{"type": "{kind}", "{key}": {members[key][0]}}}', True, {})
    else:
        raise text.fault(f"type {kind!r} is none of GeoJSON")


def _head_of(members: dict[str, Any], name: str) -> Head:
    if "crs" not in members:
        return Head(CRS.from_epsg(4326), False)
    member = members["crs"]
    if member is None:
        return Head(None, True)
    try:
        kind, properties = member["type"], member["properties"]
        if kind == "EPSG":
            return Head(CRS.from_epsg(int(properties["code"])), True)
        if kind == "name":
            return Head(CRS.from_user_input(str(properties["name"])), True)
    except (KeyError, TypeError, ValueError, CRSError) as error:
        raise SourceError(f"{name}: crs {str(member)[:80]} is not one that PROJ knows; correct it, or say crs=") from error
    raise SourceError(f"{name}: crs of type {str(kind)[:20]!r} is not followed; name it, or say crs=")


class _Text:
    """The part of a document that is being looked at."""

    def __init__(self, stream: io.BufferedIOBase, name: str) -> None:
        self._stream, self._name = stream, name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._is_whole = False
        self._gone = 0
        self.text, self.at = "", 0

    def fault(self, what: str) -> SourceError:
        return SourceError(f"{self._name}: not a GeoJSON that can be read: {what} (at character {self._gone + self.at:,})")

    def forget(self) -> None:
        """Let go of what was read; only from time to time, since it copies the rest."""
        if self.at > _CHUNK:
            self._gone += self.at
            self.text, self.at = self.text[self.at :], 0

    def space(self) -> None:
        """Step over white space, so that a character follows."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self._more(_CHUNK):
                return

    def skip(self, character: str) -> bool:
        """Step over a character if it is the next one."""
        self.space()
        if self.text[self.at : self.at + 1] != character:
            return False
        self.at += 1
        return True

    def expect(self, character: str) -> None:
        if not self.skip(character):
            raise self.fault(f"expected {character!r}" if self.at < len(self.text) else "it breaks off")

    def end(self) -> None:
        self.space()
        if self.at < len(self.text):
            raise self.fault("more after its end; a file of one JSON text a line is not GeoJSON")

    def value(self) -> Any:
        """The next JSON value, whole: text is added, twice as much each time, until its end is seen."""
        self.space()
        wanted = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_open = error.pos >= len(self.text) - _NEAR_END or error.msg.startswith("Unterminated string")
                if not is_open or self._is_whole:
                    self.at = error.pos
                    raise self.fault(error.msg if self.at < len(self.text) else "it breaks off") from None
            except RecursionError:
                raise self.fault("nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise self.fault(str(error)) from None
            else:
                if end < len(self.text) or self._is_whole:
                    self.at = end
                    return value
            self._more(wanted)
            wanted *= 2

    def _more(self, count: int) -> bool:
        if self._is_whole:
            return False
        try:
            content = self._stream.read(count)
            self._is_whole = not content
            self.text += self._decode.decode(content, final=self._is_whole)
        except UnicodeDecodeError as error:
            raise self.fault(f"not UTF-8 ({error.reason})") from None
        except EOFError:
            raise self.fault("it breaks off") from None
        return bool(content)
