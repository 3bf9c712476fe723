"""A tile index: a table of rasters with a column `location`, as gdaltindex writes it. Its shapes are not looked at.

GeoPackage, GeoJSON, FlatGeobuf, shapefile or GeoParquet, told by the first bytes. Optional columns: `datetime`,
`cloud_cover` (or `eo:cloud_cover`) and `platform`. A relative location is looked for beside the index, then in the working
directory; a local one must lie in one of the two, links followed, since an index may come from anywhere. Web and
object-store addresses are reached by the rules for addresses out of documents.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.scene import Scene
from geoinfer.remote.address import is_remote, shown

_LOCATION = "location"
_OPTIONAL = ("datetime", "cloud_cover", "cloud_cove", "eo:cloud_cover", "platform")
"""`cloud_cove` is what a shapefile makes of it: names there have ten letters."""
_LARGEST_JSON = 256 * 2**20
"""Bytes."""
_NO_FILE = re.compile(r"\s*<|/vsi|[A-Za-z][A-Za-z0-9+.\-_]+:", re.IGNORECASE)

Row = Mapping[str, Any]
"""The columns that are known, by their names in lower case."""


def scenes_of_index(path: Path, *, are_all_there: bool = True) -> list[Scene]:
    """The rasters of a tile index, in its order.

    Args:
        path: The index.
        are_all_there: A file that is not there is an error, at once; else where it is opened.

    Raises:
        SourceError: Not a tile index that can be read, or one without rows.
        SafetyError: A location that is no GeoTIFF's place, or leads out of the index's folder.
    """
    rows = _rows(path)
    if not rows:
        raise SourceError(f"{path}: a tile index without a raster in it")
    folders = tuple(dict.fromkeys((path.absolute().parent.resolve(), Path.cwd().resolve())))
    return [_scene(path, row, folders, are_all_there) for row in rows]


def _scene(path: Path, row: Row, folders: tuple[Path, ...], are_all_there: bool) -> Scene:
    text = str(row.get(_LOCATION) or "").strip()
    if not text:
        raise SourceError(f"{path}: a row without a {_LOCATION}")
    cloud = next((row[name] for name in _OPTIONAL if name.endswith(("cover", "cove")) and name in row), None)
    platform = row.get("platform")
    return Scene(
        text if is_remote(text) else _local(path, text, folders, are_all_there),
        is_typed=False,
        datetime=_time(path, row.get("datetime")),
        cloud_cover=_share(path, cloud),
        platform=None if platform is None else str(platform),
    )


def _local(path: Path, text: str, folders: tuple[Path, ...], is_there: bool) -> str:
    """The absolute path of a location within one of the folders."""
    if _NO_FILE.match(text) or "\0" in text:
        raise SafetyError(f"{path}: refused, it points at {shown(text)[:80]!r}, which is no plain file name")
    candidates = [folder / text for folder in folders]
    file = next((candidate for candidate in candidates if candidate.exists()), None)
    if file is None and not is_there:
        file = candidates[0]
    if file is None:
        raise SourceError(f"{path}: {text!r} is neither beside it nor in the working directory")
    resolved = file.resolve()
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise SafetyError(
            f"{path}: refused, {text[:80]!r} lies neither below its folder nor below the working directory; start in a "
            "folder that holds both"
        )
    return os.path.abspath(file)


def _time(path: Path, value: object) -> str | None:
    if value is None or value != value or value == "":  # NaT and NaN are unequal to themselves
        return None
    if isinstance(value, datetime | date):
        return value.isoformat()
    try:
        datetime.fromisoformat(str(value).replace("/", "-"))
    except ValueError:
        raise SourceError(f"{path}: datetime {str(value)[:40]!r} is no time; write it like 2024-05-31T10:00:00Z") from None
    return str(value).replace("/", "-")


def _share(path: Path, value: Any) -> float | None:
    if value is None or value != value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SourceError(f"{path}: cloud_cover {value!r} is no number") from None


def _rows(path: Path) -> list[Row]:
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
        if head.startswith(b"PAR1"):
            return _of_parquet(path)
        if head.startswith(b"SQLite format 3\x00"):
            return _of_geopackage(path)
        if head.startswith((b"fgb\x03", b"\x00\x00\x27\x0a")):
            return _of_driver(path)
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            return _of_json(path)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except OSError as error:
        if isinstance(error, SourceError | SafetyError):
            raise
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise SafetyError(f"{path}: refused, XML can point at other files; write the index with gdaltindex -f GPKG")
    raise SourceError(f"{path}: not a tile index (GeoPackage, GeoJSON, FlatGeobuf, shapefile or GeoParquet)")


def _wanted(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Columns to read -> their names in lower case."""
    known = {name: name.lower() for name in names if name.lower() in (_LOCATION, *_OPTIONAL)}
    if _LOCATION not in known.values():
        raise SourceError(f"{path}: no column `{_LOCATION}`, so not a tile index; gdaltindex writes one")
    return known


def _of_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        columns = _wanted(path, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(columns))
    except ArrowException as error:
        raise SourceError(f"{path}: not a Parquet file that can be read: {error}") from error
    return _renamed(table.to_pylist(), columns)


def _of_geopackage(path: Path) -> list[Row]:
    """By SQLite itself, read only: no driver is asked."""
    found: list[Row] = []
    has_any = False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as base:
            tables = [name for (name,) in base.execute("SELECT table_name FROM gpkg_contents ORDER BY rowid")]
            for table in tables:
                quoted = '"' + str(table).replace('"', '""') + '"'
                names = [row[1] for row in base.execute(f"PRAGMA table_info({quoted})")]
                if _LOCATION not in [name.lower() for name in names]:
                    continue
                has_any = True
                columns = _wanted(path, names)
                chosen = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
                rows = base.execute(f"SELECT {chosen} FROM {quoted} ORDER BY rowid").fetchall()  # quoted names
                found += [dict(zip(columns.values(), row, strict=True)) for row in rows]
    except sqlite3.Error as error:
        raise SourceError(f"{path}: not a GeoPackage that can be read: {error}") from error
    if not has_any:
        _wanted(path, ())
    return found


def _of_driver(path: Path) -> list[Row]:
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        columns = _wanted(path, pyogrio.read_info(path)["fields"])
        _, table = pyogrio.read_arrow(path, columns=list(columns), read_geometry=False)
    except (DataSourceError, ValueError) as error:
        raise SourceError(f"{path}: tile index cannot be read: {error}") from error
    return _renamed(table.to_pylist(), columns)


def _of_json(path: Path) -> list[Row]:
    if path.stat().st_size > _LARGEST_JSON:
        raise SafetyError(f"{path}: refused, a JSON of more than {_LARGEST_JSON // 2**20} MiB; use GeoParquet")
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a JSON that can be read: {error}") from error
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        raise SourceError(f"{path}: not a FeatureCollection, so not a tile index")
    rows = [feature.get("properties") if isinstance(feature, dict) else None for feature in features]
    if not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{path}: a feature without properties")
    columns = _wanted(path, dict.fromkeys(str(name) for row in rows for name in row or ())) if rows else {}
    return _renamed([row for row in rows if row is not None], columns)


def _renamed(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> list[Row]:
    return [{columns[name]: value for name, value in row.items() if name in columns} for row in rows]
