"""Texts that name several local rasters: a folder, a pattern, a VRT, a tile index. Lists files, opens none to read pixels.

A folder gives its GeoTIFFs at any depth, a pattern what it matches, both sorted by path. A VRT is read as a list of its
files (`vrt`), a tile index as a table with a column `location` (`tileindex`).
"""

from __future__ import annotations

import glob
import os
from pathlib import Path, PurePath

from geoinfer.errors import SourceError
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Scene

SUFFIXES = (".tif", ".tiff", ".gtiff", ".btf", ".tf8")
"""What GeoTIFFs are named, and BigTIFFs."""


def scenes_of(text: str, options: SourceOptions) -> list[Scene]:
    """The rasters that a text names, in order.

    Args:
        text: A folder, a pattern (`scenes/**/*.tif`), a `.vrt`, or a tile index.
        options: Whether a VRT may be read, and how headers are.

    Raises:
        SourceError: Nothing found, or a list that cannot be read.
        SafetyError: A list that could lead to files that the user did not mean.
    """
    path = Path(text)
    if path.is_dir():
        return _typed(_in_folder(path), f"{text}: no GeoTIFF in this folder (looked for {_listed()}, at any depth)")
    if glob.has_magic(text) and not path.exists():
        return _typed(_matches(text), f"{text}: matches no GeoTIFF")
    if path.suffix.lower() == ".vrt":
        from geoinfer.imagery.vrt import scenes_of_vrt

        return scenes_of_vrt(path, options)
    from geoinfer.imagery.tileindex import scenes_of_index

    return scenes_of_index(path, are_all_there=options.on_error == "fail")


def _typed(files: list[str], nothing: str) -> list[Scene]:
    if not files:
        raise SourceError(nothing)
    return [Scene(os.path.abspath(file)) for file in files]


def _in_folder(folder: Path) -> list[str]:
    """GeoTIFFs at any depth; neither hidden ones nor those behind a link to another folder."""
    found = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if _is_raster(name)]
    return sorted(found)


def _matches(pattern: str) -> list[str]:
    """Files; where the pattern leaves the ending open, GeoTIFFs only: not what other programs put beside them."""
    ending = PurePath(pattern).suffix
    is_open = not ending or glob.has_magic(ending)
    found = [file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]
    return sorted(file for file in found if not is_open or _is_raster(os.path.basename(file)))


def _is_raster(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _listed() -> str:
    return ", ".join(f"*{suffix}" for suffix in SUFFIXES[:3])


def _raise(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed: {error.strerror}") from error
