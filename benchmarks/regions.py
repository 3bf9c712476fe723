"""Footprints of labelled places, scored: precision, recall, F1 at IoU 0.5, pixel IoU, and footprints in water.

    GEOINFER_DATA=../shared/data python benchmarks/regions.py --model buildings --splits test
    python benchmarks/regions.py --splits val --thresholds 0.3,0.4,0.5,0.6     # choose on val, never on test

Each image goes through `geoinfer.detect` at its own pixel size and is scored inside its area of interest. With
`--thresholds` the probabilities of a place are computed once and cut at each of them. Images without a coordinate system
are given one of a UTM zone, and their masks become polygons. Rows of several images add up counts and areas.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from geopandas import GeoDataFrame
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

import geoinfer
from geoinfer.detection import Predicts, predict
from geoinfer.evaluation import Evaluation, combine, evaluate
from geoinfer.imagery import open_raster
from geoinfer.imagery.source import Source

HEADLINE = ("Zanzibar south", "Boston", "Austin a", "Accra", "Banepa south")
"""The five test places that the goal (mean F1 of at least 0.60) is about."""
ASSUMED_CRS = "EPSG:32631"
"""For images that name none: any UTM zone; only lengths matter."""
AROUND_M = 80.0
"""Imagery looked at around an area of interest, so that footprints on its border are whole."""
NEVER_SCORED = ("estonia_tallinn_maaamet",)
"""Its masks are half automatic: for training only (MANIFEST.md)."""
NAMES = {
    "boston_massachusetts": "Boston", "boston_suburbs_nrcan": "Boston suburbs", "accra_ghana_opencities": "Accra",
    "banepa_nepal_oam": "Banepa", "banepa_south_nepal_fair3": "Banepa south", "zanzibar_tanzania_fair1": "Zanzibar",
    "austin_usa_inria": "Austin", "inria_samples": "Inria", "spacenet2_samples": "SpaceNet 2",
    "newbrunswick_canada_nrcan": "New Brunswick", "newzealand_whu_linz": "Christchurch", "dubai_uae_hitl": "Dubai (water)",
    "estonia_harbour_maaamet": "Tallinn harbour", "water_scenes": "Water", "rotterdam_spacenet6_50cm": "Rotterdam 0.5 m",
    "vegas_spacenet2_1m": "Vegas 1 m", "vegas_spacenet2_60cm": "Vegas 0.6 m", "vegas_spacenet2_30cm": "Vegas 0.3 m",
}  # fmt: skip
"""Folder of the data -> what its rows are called."""
IN_WATER = 0.5
"""A footprint is in water when more than this share of it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """One row of split.csv."""

    name: str
    """The row of the table that it adds to."""
    split: str
    image: Path
    labels: Path | None
    aoi: Path | None
    aoi_name: str | None
    """Only this feature of `aoi`."""
    water: Path | None
    gsd: float
    """Metres a pixel, for images that do not say."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A place made ready: a raster with a coordinate system, and what is known of it."""

    raster: Path
    buildings: GeoDataFrame | None
    aoi: GeoDataFrame | None
    water: GeoDataFrame | None
    boats: GeoDataFrame | None


@dataclass(frozen=True, slots=True)
class Score:
    """What came out for a place."""

    evaluation: Evaluation | None
    """None where there are no building labels."""
    in_water: int
    """Footprints that lie in water."""
    water_km2: float
    on_boats: int
    """Footprints that lie on a labelled boat."""
    boats: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Probabilities:
    """A place's probabilities, computed once: cut them at any threshold."""

    source: Source
    row: int
    col: int
    prob: np.ndarray
    """(H, W) uint8; its first pixel is (row, col) of the source's grid."""


def places(data: Path, splits: Iterable[str]) -> list[Place]:
    """The places of some splits, in the order of split.csv.

    Args:
        data: Folder that holds split.csv.
        splits: train, val, test, water_test.
    """
    wanted = set(splits)
    found = []
    with (data / "split.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            folder = row["image"].split("/")[0]
            if row["split"] not in wanted or folder in NEVER_SCORED:
                continue
            _, _, aoi_name = row["note"].partition("AOI feature name=")
            labels, aoi, water = (data / row[key] if row[key] else None for key in ("labels", "aoi", "water"))
            if folder == "dubai_uae_hitl":  # its mask's buildings are whole blocks; only its water is scored
                labels, water = None, labels
            name, gsd = _row_name(row["image"], aoi_name), float(row["gsd_m"].strip("~"))
            found.append(Place(name, row["split"], data / row["image"], labels, aoi, aoi_name or None, water, gsd))
    return found


def _row_name(image: str, aoi_name: str) -> str:
    """The row of the table for an image: its place, and what tells it from others there."""
    folder, *_, file = image.split("/")
    stem = Path(file).stem
    if folder == "sharealike":
        folder = image.split("/")[1]
    words = {
        "austin_usa_inria": stem[-1],
        "banepa_nepal_oam": aoi_name.split("_")[0],
        "zanzibar_tanzania_fair1": aoi_name.split("_")[0],
        "inria_samples": stem.partition("_")[2].split("_")[0].split("-")[0].rstrip("0123456789").capitalize(),
        "spacenet2_samples": stem.split("_")[0].capitalize(),
        "water_scenes": stem.split("_")[0].capitalize(),
        "dubai_uae_hitl": "held out" if stem[:2] in ("t7", "t8") else "trained on",  # the recipe's negatives
    }
    return f"{NAMES.get(folder, folder)} {words.get(folder, '')}".strip()


def prepare(place: Place, scratch: Path) -> Truth:
    """Read what is known of a place; images without a coordinate system are copied to `scratch` with one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(place.image) as file:
            crs, transform = file.crs, file.transform
            pixels = file.read() if crs is None else None
    raster = place.image
    if pixels is not None:
        crs, transform = ASSUMED_CRS, Affine(place.gsd, 0, 500_000, 0, -place.gsd, 5_000_000)
        raster = scratch / f"{place.image.parent.name}_{place.image.stem}.tif"
        count, height, width = pixels.shape
        with rasterio.open(
            raster, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, crs=crs,
            transform=transform, tiled=True, compress="deflate",
        ) as file:  # fmt: skip
            file.write(pixels)
    buildings, aoi = _layer(place.labels, crs, transform, 1), _layer(place.aoi, crs, transform, 1)
    water = _layer(place.water, crs, transform, 2)
    if place.labels is not None and place.labels.suffix == ".png":
        aoi = _layer(place.labels, crs, transform, None)
    if aoi is not None and place.aoi_name:
        aoi = aoi[aoi["name"] == place.aoi_name]
    boats = place.image.parent / "boxes.csv"
    return Truth(raster, buildings, aoi, water, _boats(boats, place, crs, transform) if boats.exists() else None)


def _layer(path: Path | None, crs: object, transform: Affine, value: int | None) -> GeoDataFrame | None:
    """Polygons of a vector file, or of the pixels of a mask that hold a value (None: all that are labelled)."""
    if path is None:
        return None
    if path.suffix != ".png":
        return geopandas.read_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            mask = file.read(1)
    chosen = mask != 255 if value is None else mask == value
    outlines = [shapely.geometry.shape(outline) for outline, _ in shapes(chosen.astype(np.uint8), chosen, 4, transform)]
    return GeoDataFrame(geometry=outlines, crs=crs)


def _boats(path: Path, place: Place, crs: object, transform: Affine) -> GeoDataFrame:
    with path.open(newline="") as file:
        boxes = [row for row in csv.DictReader(file) if row["image"] == place.image.stem and row["class"] == "Watercraft"]
    pixels = np.array([[[float(box[f"x{n}"]), float(box[f"y{n}"])] for n in (1, 2, 3, 4)] for box in boxes]).reshape(
        -1, 4, 2
    )
    return GeoDataFrame(geometry=shapely.polygons(pixels * [transform.a, transform.e] + [transform.c, transform.f]), crs=crs)


def bbox_of(truth: Truth) -> tuple[float, float, float, float] | None:
    """What to look at, EPSG:4326: the area of interest and its surroundings; None for the whole raster."""
    if truth.aoi is None:
        return None
    near = truth.aoi.to_crs(truth.aoi.estimate_utm_crs())
    west, south, east, north = GeoDataFrame(geometry=near.buffer(AROUND_M), crs=near.crs).to_crs(4326).total_bounds.tolist()
    return west, south, east, north


def probabilities(truth: Truth, predictor: Predicts) -> Probabilities:
    """The probabilities of a place, those that a run would compute (law 1)."""
    from geoinfer.region import Region, region_on

    spec = predictor.spec
    source = open_raster(truth.raster, gsd=spec.gsd, core=spec.chips.core)
    bbox = bbox_of(truth)
    region = None if bbox is None else Region.from_bbox(bbox)
    window = region_on(region, source.grid, source.bounds).window
    return Probabilities(source, window.row, window.col, predict(source, window, predictor))


def footprints(
    cached: Probabilities,
    predictor: Predicts,
    threshold: float,
    *,
    min_area_m2: float | None = None,
    grow_m: float | None = None,
) -> GeoDataFrame:
    """Footprints at a threshold, those that a run with it would find (law 2)."""
    from geoinfer.detection import threshold_to_u8
    from geoinfer.vector import polygonize
    from geoinfer.vector.footprints import finish

    spec, grid = predictor.spec, cached.source.grid
    found = polygonize(
        cached.prob >= threshold_to_u8(threshold), grid.transform, prob=cached.prob, offset=(cached.row, cached.col)
    )
    return finish(
        found, grid,
        min_area_m2=spec.min_area_m2 if min_area_m2 is None else min_area_m2,
        simplify_m=spec.simplify_m,
        grow_m=spec.grow_m if grow_m is None else grow_m,
    ).accepted  # fmt: skip


def score(found: GeoDataFrame, truth: Truth, seconds: float = 0.0) -> Score:
    """Compare footprints with what is known of a place."""
    evaluation = None if truth.buildings is None else evaluate(found, truth.buildings, aoi=truth.aoi)
    in_water, water_km2 = _inside(found, truth.water, truth.raster)
    on_boats, _ = _inside(found, truth.boats, truth.raster)
    return Score(evaluation, in_water, water_km2, on_boats, 0 if truth.boats is None else len(truth.boats), seconds)


def score_place(
    place: Place, predictor: Predicts, threshold: float | None = None, *, scratch: Path, cached: Probabilities | None = None
) -> Score:
    """Detect and score one place.

    Args:
        place: Which one.
        predictor: The model.
        threshold: Probability that is building; the model's own where None.
        scratch: Folder for copies of images without a coordinate system.
        cached: Its probabilities, where they are known; else `geoinfer.detect` runs.
    """
    truth = prepare(place, scratch)
    start = time.perf_counter()
    if cached is None:
        found = geoinfer.detect(truth.raster, model=predictor, bbox=bbox_of(truth), threshold=threshold)
    else:
        found = footprints(cached, predictor, predictor.spec.threshold if threshold is None else threshold)
    return score(found, truth, time.perf_counter() - start)


def _inside(found: GeoDataFrame, layer: GeoDataFrame | None, raster: Path) -> tuple[int, float]:
    """How many footprints lie in a layer, and its area in square kilometres within the raster."""
    if layer is None or layer.empty:
        return 0, 0.0
    with rasterio.open(raster) as file:
        frame = GeoDataFrame(geometry=[shapely.box(*file.bounds)], crs=file.crs)
    crs = frame.estimate_utm_crs()
    area = shapely.intersection(layer.to_crs(crs).union_all(), frame.to_crs(crs).union_all())
    outlines = np.asarray(found.to_crs(crs).geometry.array, dtype=object)
    share = shapely.area(shapely.intersection(outlines, area)) / np.maximum(shapely.area(outlines), 1e-9)
    return int((share > IN_WATER).sum()), float(area.area / 1e6)


def table(rows: dict[tuple[str, str], list[Score]]) -> Iterator[str]:
    """Markdown, a line at a time."""
    yield "| place | split | n true | n found | precision | recall | F1@0.5 | pixel IoU | in water per km² (n / km²) | s |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for (name, split), scores in rows.items():
        parts = [one.evaluation for one in scores if one.evaluation is not None]
        cells = ["", "", "", "", "", ""]
        if parts:
            e = combine(parts)
            numbers = (e.precision, e.recall, e.f1, e.pixel_iou)
            cells = [str(e.n_truth), str(e.n_pred), *(f"{number:.3f}" for number in numbers)]
        wet, km2 = sum(one.in_water for one in scores), sum(one.water_km2 for one in scores)
        water = f"{wet / km2:.1f} ({wet} / {km2:.3f})" if km2 else ""
        if boats := sum(one.boats for one in scores):
            water = f"{sum(one.on_boats for one in scores)} on {boats} boats"
        yield f"| {name} | {split} | {' | '.join(cells)} | {water} | {sum(one.seconds for one in scores):.0f} |"
    f1 = {
        name: combine([one.evaluation for one in scores if one.evaluation is not None]).f1
        for (name, split), scores in rows.items()
        if split == "test" and name in HEADLINE
    }
    if len(f1) == len(HEADLINE):
        yield f"\nMean F1 of {', '.join(HEADLINE)}: {sum(f1.values()) / len(f1):.3f}"


def figures(predictor: Predicts, rows: dict[tuple[str, str], list[Score]]) -> dict[str, object]:
    """The table as numbers, with the weights they belong to."""
    listed = []
    for (name, split), scores in rows.items():
        row: dict[str, object] = {"place": name, "split": split}
        parts = [one.evaluation for one in scores if one.evaluation is not None]
        if parts:
            e = combine(parts)
            row |= {"n_truth": e.n_truth, "n_pred": e.n_pred}
            row |= {key: round(getattr(e, key), 4) for key in ("precision", "recall", "f1", "pixel_iou")}
        if water := sum(one.water_km2 for one in scores):
            row |= {"in_water": sum(one.in_water for one in scores), "water_km2": round(water, 4)}
        if boats := sum(one.boats for one in scores):
            row |= {"on_boats": sum(one.on_boats for one in scores), "boats": boats}
        listed.append(row)
    spec = predictor.spec
    return {
        "model": spec.name,
        "version": spec.version,
        "weights_sha256": spec.weights_sha256,
        "precision": getattr(predictor, "precision", None),
        "matching": "one to one, IoU >= 0.5, inside the area of interest",
        "places": listed,
    }


def main() -> None:
    """Score the places asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings", help="name or folder")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--splits", default="test", choices=["test", "val", "train", "water", "report", "all"])
    parser.add_argument("--only", default="", help="only places whose name or image holds this, whatever the case")
    parser.add_argument("--without", default="", help="no images whose path holds one of these, with commas between them")
    parser.add_argument("--threshold", type=float, help="instead of the model's")
    parser.add_argument("--thresholds", default="", help="several, with commas: one table for each")
    parser.add_argument("--json", type=Path, help="also write the figures there, as a model's evaluation.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    splits = {
        "all": ("test", "val", "train", "water_test"),
        "test": ("test", "water_test"),
        "water": ("water_test",),
        "report": ("test", "val", "water_test"),
    }
    from geoinfer.model.predictor import load_predictor

    predictor = load_predictor(options.model, device=options.device, precision=options.precision)
    wanted = [
        place
        for place in places(options.data, splits.get(options.splits, (options.splits,)))
        if options.only.lower() in f"{place.name} {place.image}".lower()
        and not any(part in str(place.image) for part in options.without.split(",") if part)
    ]
    several: list[float | None] = [float(part) for part in options.thresholds.split(",") if part]
    thresholds = several or [options.threshold]
    tables: dict[float | None, dict[tuple[str, str], list[Score]]] = {threshold: {} for threshold in thresholds}
    with tempfile.TemporaryDirectory() as folder:
        for number, place in enumerate(wanted, 1):
            sys.stderr.write(f"\r{number}/{len(wanted)} {place.name:<30}")
            cached = probabilities(prepare(place, Path(folder)), predictor) if options.thresholds else None
            for threshold in thresholds:
                found = score_place(place, predictor, threshold, scratch=Path(folder), cached=cached)
                tables[threshold].setdefault((place.name, place.split), []).append(found)
    sys.stderr.write("\n")
    if options.json:
        options.json.write_text(json.dumps(figures(predictor, tables[thresholds[0]]), indent=2) + "\n", encoding="utf-8")
    for threshold, rows in tables.items():
        used = predictor.spec.threshold if threshold is None else threshold
        sys.stdout.write(f"\nModel {predictor.spec.name} {predictor.spec.version}, threshold {used:g}\n\n")
        sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
