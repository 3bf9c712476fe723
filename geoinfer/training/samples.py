"""Labelled scenes in memory, as a recipe names them: pixels, target bits, and where the buildings are.

Reads the table of a data set (`image, split, labels, aoi, water, gsd_m, note`), georeferenced or not. Knows nothing of
networks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import features
from rasterio.enums import Resampling
from rasterio.warp import transform_geom
from rasterio.windows import Window as RasterWindow
from rasterio.windows import from_bounds, intersection
from shapely.geometry import shape

from geoinfer.errors import ConfigError, SourceError
from geoinfer.imagery.source import FILL
from geoinfer.training.recipe import SourceRecipe
from geoinfer.training.targets import VALID, encode_targets


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """One image with its targets. Both cover the same ground; the targets may be on a finer raster."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) uint8; `FILL` where there is no imagery."""
    bits: NDArray[np.uint8]
    """(h, w) uint8 of target bits, see `targets`."""
    gsd: float
    """Metres a pixel of `pixels`."""
    target_gsd: float
    """Metres a pixel of `bits`."""
    centres: NDArray[np.float32]
    """(B, 2) (x, y) metres from the upper left corner: where to look. One a building, or places in a negative."""


def read_rows(data: Path, source: SourceRecipe) -> list[dict[str, str]]:
    """The rows of `split.csv` that belong to a source.

    Raises:
        ConfigError: None do.
    """
    with (data / "split.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["image"].startswith(source.prefix) and r["split"] == source.split]
    if not rows:
        raise ConfigError(f"recipe source {source.prefix!r}: no row of {data / 'split.csv'} with split {source.split!r}")
    return rows


def load_scenes(data: Path, source: SourceRecipe, gsd: float) -> Iterator[LabelledScene]:
    """The scenes of a source; imagery finer than the model's gsd is averaged down to about it."""
    for row in read_rows(data, source):
        path = data / row["image"]
        try:
            with rasterio.open(path) as raster:
                loader = _load_plain if raster.crs is None else _load_georeferenced
                scene = loader(data, row, raster, source.kind, gsd)
        except rasterio.errors.RasterioError as error:
            raise SourceError(f"{path}: cannot be read as training imagery: {error}") from error
        if scene.bits.any():
            yield scene


def _load_georeferenced(data: Path, row: dict[str, str], raster: Any, kind: str, gsd: float) -> LabelledScene:
    native = float(row["gsd_m"].lstrip("~"))
    aois = _geometries(data / row["aoi"], raster.crs, row["note"]) if row["aoi"] else []
    window = RasterWindow(0, 0, raster.width, raster.height)
    if aois:
        bounds = np.array([g.bounds for g in aois])
        around = 30.0 * raster.res[0] / native  # metres of context, in the raster's units
        box = (*(bounds[:, :2].min(0) - around), *(bounds[:, 2:].max(0) + around))
        window = intersection(from_bounds(*box, transform=raster.transform).round_offsets().round_lengths(), window)
    factor = max(1.0, gsd / native)
    height, width = round(window.height / factor), round(window.width / factor)
    shape_out = (height, width)
    pixels = raster.read(
        (1, 2, 3),
        window=window,
        out_shape=(3, *shape_out),
        resampling=Resampling.average if factor > 1 else Resampling.nearest,
    )
    known = raster.dataset_mask(window=window, out_shape=shape_out) > 0
    pixels = np.where(known, pixels, FILL).transpose(1, 2, 0).astype(np.uint8)
    image_gsd = native * window.height / height
    fine = max(1, int(np.ceil(image_gsd / (gsd * 1.17))))
    target_shape = (height * fine, width * fine)
    affine = raster.window_transform(window)
    affine = affine * affine.scale(window.width / target_shape[1], window.height / target_shape[0])
    valid = cv2.resize(known.astype(np.uint8), target_shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    if aois:
        valid &= features.rasterize(aois, target_shape, transform=affine) > 0
    instances = np.zeros(target_shape, np.int32)
    if kind == "negative":
        waters = _geometries(data / row["water"], raster.crs)
        valid &= (
            features.rasterize([w.buffer(-3 * raster.res[0] / native) for w in waters], target_shape, transform=affine) > 0
        )
    else:
        buildings = _geometries(data / row["labels"], raster.crs)
        if buildings:
            features.rasterize(((g, i + 1) for i, g in enumerate(buildings)), out=instances, transform=affine)
    return _scene(pixels, instances, valid, image_gsd, image_gsd / fine)


def _load_plain(data: Path, row: dict[str, str], raster: Any, kind: str, gsd: float) -> LabelledScene:
    native = float(row["gsd_m"].lstrip("~"))
    pixels = raster.read((1, 2, 3)).transpose(1, 2, 0)
    with rasterio.open(data / row["labels"]) as file:
        classes = file.read(1)
    if native < gsd / 1.17:
        size = (round(pixels.shape[1] * native / gsd), round(pixels.shape[0] * native / gsd))
        native *= pixels.shape[0] / size[1]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        classes = cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST)
    fine = max(1, int(np.ceil(native / (gsd * 1.17))))
    classes = np.repeat(np.repeat(classes, fine, 0), fine, 1)
    if kind == "negative":
        valid = cv2.erode((classes == 2).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        instances = np.zeros(classes.shape, np.int32)
    else:
        valid = classes != 255
        _, instances = cv2.connectedComponents((classes == 1).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return _scene(np.ascontiguousarray(pixels), instances, valid, native, native / fine)


def scene_from_arrays(pixels: NDArray[np.uint8], instances: NDArray[np.int32], gsd: float) -> LabelledScene:
    """A scene whose truth is complete, such as a generated one; (H, W, 3) uint8 and (H, W) int32."""
    return _scene(pixels, instances, np.ones(instances.shape, bool), gsd, gsd)


def _scene(
    pixels: NDArray[np.uint8], instances: NDArray[np.int32], valid: NDArray[np.bool_], gsd: float, target_gsd: float
) -> LabelledScene:
    bits = encode_targets(instances, valid, target_gsd)
    count = int(instances.max()) + 1
    rows, cols = np.nonzero((instances > 0) & ((bits & VALID) > 0))
    number = instances[rows, cols]
    n = np.maximum(np.bincount(number, minlength=count), 1)
    centres: NDArray[Any] = np.stack((np.bincount(number, cols, count) / n, np.bincount(number, rows, count) / n), 1)[
        np.unique(number)
    ]
    if not len(centres):  # a negative: anywhere that is known
        rows, cols = np.nonzero(bits & VALID)
        centres = np.stack((cols, rows), 1)[:: max(1, len(rows) // 500)]
    return LabelledScene(pixels, bits, gsd, target_gsd, (centres * target_gsd).astype(np.float32))


def _geometries(path: Path, crs: Any, note: str = "") -> list[Any]:
    """Polygons of an EPSG:4326 GeoJSON in `crs`; a note `AOI feature name=X` picks the one feature of that name."""
    collection = json.loads(path.read_text())
    name = note.partition("AOI feature name=")[2].split(";")[0].strip()
    chosen = [f for f in collection["features"] if not name or f["properties"].get("name") == name]
    if name and not chosen:
        raise ConfigError(f"{path}: no feature named {name!r}")
    return [shape(transform_geom("EPSG:4326", crs, f["geometry"])) for f in chosen if f["geometry"]]
