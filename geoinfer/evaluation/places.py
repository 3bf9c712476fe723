"""Labelled places: imagery, its true footprints, where they are complete, and which split they may be used for."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geoinfer.errors import ConfigError, SourceError
from geoinfer.evaluation.read import read_vector

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SPLITS = "split.csv"
"""File in a folder of data that says which image may be used for what: columns `image` (relative to it) and `split`."""
_LEVELS = 8
"""Folders above an image in which that file is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One labelled image."""

    name: str
    """For people."""
    image: Path
    truth: GeoDataFrame
    aoi: GeoDataFrame | None
    """Where the truth is complete; None: in all of the image."""


def open_place(image: Path, labels: Path, aoi: Path | None = None) -> Place:
    """Read what is known of an image.

    Raises:
        ConfigError: A `split.csv` above the image says that it is for testing.
        SourceError: A file that cannot be read.
    """
    if not image.exists():
        raise SourceError(f"{image}: no such file")
    refuse_test(image)
    return _open(image, labels, aoi)


def read_places(path: Path, region: str | None = None) -> dict[str, list[Place]]:
    """The places of a CSV with the columns `image`, `labels` and, where there are any, `aoi`, `region` and `split`.

    Paths are relative to the file. A row's own `split` counts; where there is none, that of a `split.csv` above its image.

    Args:
        path: The CSV.
        region: Only rows of this region where there is such a column; else the name for all of them.

    Returns:
        Region -> places, in the order of the file.

    Raises:
        ConfigError: No row, a missing column, a row without a region, or a row for testing.
        SourceError: The file, or one that it names, cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    for column in ("image", "labels"):
        if not rows or column not in rows[0]:
            raise ConfigError(f"{path}: needs the columns image,labels (aoi, region and split may follow) and a row")
    has_regions = "region" in rows[0]
    wanted = [row for row in rows if not has_regions or region is None or row["region"] == region]
    if not wanted:
        known = ", ".join(sorted({row["region"] for row in rows}))
        raise ConfigError(f"{path}: no row of region {region!r}; there are {known}")
    for row in wanted:
        if not (row["image"] and row["labels"]):
            raise ConfigError(f"{path}: a row lacks its image or its labels: {row['image'] or row['labels']!r}")
        if row.get("split"):
            _refuse(row["image"], row["split"], path)
        else:
            refuse_test(path.parent / row["image"])
    found: dict[str, list[Place]] = {}
    for row in wanted:
        name = (row["region"] if has_regions else region) or ""
        if not name:
            raise ConfigError(f"{path}: {row['image']} has no region; add a column region, or say --region NAME")
        aoi = row.get("aoi")
        files = path.parent / row["image"], path.parent / row["labels"], path.parent / aoi if aoi else None
        found.setdefault(name, []).append(_open(*files))
    return found


def refuse_test(image: Path) -> None:
    """Make sure that no `split.csv` in the folders above an image keeps it for testing.

    Raises:
        ConfigError: One does. An image of which only a part is for testing is refused as a whole.
    """
    full = image.absolute()
    for folder in full.parents[:_LEVELS]:
        listing = folder / SPLITS
        if not listing.is_file():
            continue
        name = full.relative_to(folder).as_posix()
        for row in _splits(listing):
            if row.get("image") == name:
                _refuse(name, row.get("split") or "", listing)


def _splits(path: Path) -> Iterable[dict[str, str | None]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read, so nobody knows what may be calibrated on: {error}") from error


def _refuse(image: str, split: str, where: Path) -> None:
    if "test" in split.lower():
        raise ConfigError(
            f"{image}: {where.name} says split {split}: what is chosen on it can no longer be tested on it; calibrate on val"
        )


def _open(image: Path, labels: Path, aoi: Path | None) -> Place:
    if not image.exists():
        raise SourceError(f"{image}: no such file")
    return Place(image.name, image, read_vector(labels), None if aoi is None else read_vector(aoi))
