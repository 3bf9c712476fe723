"""A mask layer as a value: which file, which version of it, and what it does to footprints. Nothing is open.

All that can be wrong with a layer's settings or its header is said here, before any inference. Knows no grid and no region:
`prepare` brings a layer onto these.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from geoinfer.errors import ConfigError
from geoinfer.masks import source as sources
from geoinfer.region import parse_crs
from geoinfer.remote.address import is_remote

Action = Literal["drop", "keep", "clip", "flag", "skip"]
"""drop: reject what is covered more than `max_cover`; keep: reject what is not; clip: cut the covered part away; flag: only
say how much is covered; skip: as drop, and what lies wholly inside need not be looked at."""

MAX_BUFFER_M = 10_000.0
"""Widest buffer, metres: beyond it a layer says nothing about a building."""
_MAX_SKIP_COVER = 0.99
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_NEGATIVE = re.compile(r"(water|sea)(_.*)?|.*_(water|sea)")
_OPTIONS = re.compile(r"[A-Za-z_]+=[^,]*(,[A-Za-z_]+=[^,]*)*")
_KEYS = ("name", "action", "max_cover", "buffer", "crs", "column", "classes", "negative")
_BOOLEANS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class MaskLayer:
    """A named, versioned layer of polygons or classes, and what it does to footprints. Picklable, hashable."""

    source: str
    """Absolute path or URL. A URL may hold a secret: show `describe()["file"]` instead."""
    name: str
    """[a-z][a-z0-9_]{0,30}; footprints get a column NAME_cover."""
    action: Action
    max_cover: float
    """Covered share that decides, 0..1."""
    buffer_m: float
    """Metres on the ground by which each feature grows; negative: shrinks, each feature by itself."""
    crs: str | None
    """Coordinate system to read the file in, in place of what it says; None: its own."""
    column: str | None
    """Attribute that `classes` are values of; None for rasters."""
    classes: tuple[str, ...] | None
    """Values that belong to the layer, compared as text. None: all features; of a raster all values but nodata and 0."""
    negative: bool
    """Nothing true stands in it: candidates inside are false, and are counted as such."""
    kind: Literal["vector", "raster"]
    version: str
    """sha256:..., etag:... or modified:...;bytes."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        action: Action = "drop",
        max_cover: float = 0.5,
        buffer: float = 0.0,
        crs: str | None = None,
        column: str | None = None,
        classes: Iterable[str | int] | str | int | None = None,
        negative: bool | None = None,
    ) -> MaskLayer:
        """Check the settings, then the file: its format by its first bytes, its version, its header.

        Args:
            path: GeoPackage, GeoJSON, FlatGeobuf, GeoParquet, shapefile or GeoTIFF, or a URL of one.
            name: Default: from the file's name.
            action: What it does, see `Action`.
            max_cover: Covered share of a footprint that decides, 0..1.
            buffer: Metres by which each feature grows (or, negative, shrinks).
            crs: For a file that names no coordinate system, or a wrong one.
            column: Attribute of a vector layer to select by, with `classes`.
            classes: Values to take: one, several, or text joined by +, like "80+90".
            negative: Nothing true stands in it; default: only when its name says water or sea.

        Raises:
            ConfigError: A setting that cannot work.
            SourceError: Missing, unreadable, cut off, no polygons, or no coordinate system.
            SafetyError: A file or path that could make a driver read others.
            RemoteError: A URL that does not answer.
        """
        text = os.fspath(path)
        named = _slug(text) if name is None else name
        if not _NAME.fullmatch(named):
            raise ConfigError(
                f"mask name {named!r}: lower-case letters, digits and _, a letter first, at most 31; like {_slug(named)!r}"
            )
        if action not in get_args(Action):
            raise ConfigError(f"mask {named}: action {action!r}; choose of {', '.join(get_args(Action))}")
        chosen = _classes_of(classes)
        _check_numbers(named, action, max_cover, buffer)
        if crs is not None:
            parse_crs(crs)
        if column is not None and chosen is None:
            raise ConfigError(f"mask {named}: column {column!r} without classes; add classes=VALUE+VALUE")
        source = sources.look(text)
        kind: Literal["vector", "raster"] = "raster" if source.format == "geotiff" else "vector"
        if kind == "raster" and column is not None:
            raise ConfigError(f"mask {named}: column {column!r} of a raster; a raster has classes alone")
        if kind == "vector" and chosen is not None and column is None:
            raise ConfigError(f"mask {named}: classes of a vector layer need column=, the attribute that holds them")
        layer = cls(
            source=source.location,
            name=named,
            action=action,
            max_cover=float(max_cover),
            buffer_m=float(buffer),
            crs=crs,
            column=column,
            classes=chosen,
            negative=bool(_NEGATIVE.fullmatch(named)) if negative is None else bool(negative),
            kind=kind,
            version=source.version,
        )
        _check_header(layer, source)
        return layer

    @property
    def file(self) -> str:
        """Base name of the file, without a URL's query."""
        path = urlsplit(self.source).path if is_remote(self.source) else self.source
        return PurePosixPath(unquote(path)).name or self.name

    def describe(self) -> dict[str, object]:
        """What identifies it in a job: everything but where the file lies."""
        return {
            "file": self.file,
            "name": self.name,
            "action": self.action,
            "max_cover": self.max_cover,
            "buffer_m": self.buffer_m,
            "crs": self.crs,
            "column": self.column,
            "classes": None if self.classes is None else list(self.classes),
            "negative": self.negative,
            "kind": self.kind,
            "version": self.version,
        }


def parse_mask(text: str) -> dict[str, object]:
    """The arguments of `MaskLayer.open` from "FILE:key=value,key=value"; ':' may occur in FILE and in values.

    Raises:
        ConfigError: No file, an unknown key, or a value that is none.
    """
    path, options = _cut_options(text)
    if not path.strip():
        raise ConfigError(f"mask {text!r}: no file in it; write FILE:name=water,action=drop")
    arguments: dict[str, object] = {"path": path}
    for option in options:
        key, _, value = option.partition("=")
        if key in arguments:
            raise ConfigError(f"mask {text!r}: {key} is said twice")
        arguments[key] = _value_of(text, _known_key(key, f"mask {text!r}"), value.strip())
    return arguments


def open_masks(specs: Iterable[MaskLayer | str | Mapping[str, object]]) -> tuple[MaskLayer, ...]:
    """Layers in the order given, from layers, texts for `parse_mask`, or mappings as they stand in YAML.

    Raises:
        ConfigError: Two layers of one name, an unknown key, and all that `MaskLayer.open` raises.
    """
    layers: list[MaskLayer] = []
    for spec in specs:
        layer = _open(spec)
        if any(layer.name == other.name for other in layers):
            raise ConfigError(f"mask {layer.name}: two layers have this name; tell them apart with name=")
        layers.append(layer)
    return tuple(layers)


def _open(spec: MaskLayer | str | Mapping[str, object]) -> MaskLayer:
    if isinstance(spec, MaskLayer):
        return spec
    if isinstance(spec, Mapping):
        arguments: dict[str, Any] = {}
        for key, value in spec.items():
            name = str(key)
            arguments["path" if name in ("file", "path") else _known_key(name, "mask")] = value
        if not isinstance(arguments.get("path"), str | os.PathLike):
            raise ConfigError(f"mask {dict(spec)!r}: needs file: the path or URL of the layer")
        if isinstance(arguments.get("negative"), str):
            arguments["negative"] = _value_of("mask", "negative", arguments["negative"])
    elif isinstance(spec, str):
        arguments = parse_mask(spec)
    else:
        raise ConfigError(f"mask of type {type(spec).__name__}: give FILE:key=value, a mapping or a MaskLayer")
    return MaskLayer.open(arguments.pop("path"), **arguments)


def _cut_options(text: str) -> tuple[str, list[str]]:
    """The file, and the options behind the first ':' that only options follow: before it any other ':' is the file's.

    Where known keys begin further right, they win: a URL's own query may look like an option.
    """
    found: tuple[str, list[str]] | None = None
    for at in (match.start() for match in re.finditer(":", text)):
        if not _OPTIONS.fullmatch(text[at + 1 :]):
            continue
        options = text[at + 1 :].split(",")
        if all(option.partition("=")[0] in _KEYS for option in options):
            return text[:at], options
        found = found or (text[:at], options)
    return found or (text, [])


def _known_key(key: str, where: str) -> str:
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
        raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    return key


def _value_of(text: str, key: str, value: str) -> object:
    if key in ("max_cover", "buffer"):
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"mask {text!r}: {key} {value!r} is not a number") from None
    if key == "negative":
        if value.lower() not in _BOOLEANS:
            raise ConfigError(f"mask {text!r}: negative {value!r}; say yes or no")
        return _BOOLEANS[value.lower()]
    if not value:
        raise ConfigError(f"mask {text!r}: {key} has no value")
    return value


def _check_numbers(name: str, action: str, max_cover: float, buffer: float) -> None:
    for key, value in (("max_cover", max_cover), ("buffer", buffer)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"mask {name}: {key} {value!r} is not a finite number")
    if not 0 <= max_cover <= 1:
        raise ConfigError(f"mask {name}: max_cover {max_cover:g} is a share, 0..1")
    if action == "skip" and max_cover > _MAX_SKIP_COVER:
        raise ConfigError(f"mask {name}: skip needs max_cover <= {_MAX_SKIP_COVER}, got {max_cover:g}; or use action=drop")
    if action in ("drop", "keep") and max_cover == 1:
        what = "nothing; use action=flag" if action == "drop" else "everything; 0.5 keeps what lies mostly inside"
        raise ConfigError(f"mask {name}: {action} with max_cover 1 removes {what}")
    if abs(buffer) > MAX_BUFFER_M:
        raise ConfigError(f"mask {name}: buffer {buffer:g} m is wider than {MAX_BUFFER_M:g} m; buffers are in metres")


def _classes_of(classes: Iterable[str | int] | str | int | None) -> tuple[str, ...] | None:
    """Sorted text: their order says nothing, so it must not change the job."""
    if classes is None:
        return None
    values = classes.split("+") if isinstance(classes, str) else [classes] if isinstance(classes, int) else list(classes)
    texts = {sources.text_of(value).strip() for value in values}
    if not texts or "" in texts:
        raise ConfigError(f"mask classes {classes!r}: name at least one value, like 80 or 80+90")
    return tuple(sorted(texts))


def _slug(text: str) -> str:
    path = urlsplit(text).path if is_remote(text) else text
    stem = PurePosixPath(unquote(path).replace("\\", "/")).name.split(".")[0]
    slug = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return (slug if slug[:1].isalpha() else f"layer_{slug}".rstrip("_"))[:31]


def _check_header(layer: MaskLayer, source: sources.Source) -> None:
    """Open the header: raises what is wrong with it."""
    if layer.kind == "raster":
        from geoinfer.masks.raster import inspect

        inspect(source, layer)
    else:
        from geoinfer.masks.read import open_header

        open_header(source, layer)
