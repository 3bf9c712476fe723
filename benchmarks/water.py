"""Mask layers on real imagery: false footprints per km² of water before and after, true ones lost, and what is removed.

    GEOINFER_DATA=../shared/data python -m benchmarks.water --cache /tmp/prob              # the tables
    python -m benchmarks.water --only boston --cache /tmp/prob --audit                     # recall cost, precision gain
    python -m benchmarks.water --cache /tmp/prob --pictures docs                           # before and after
    python -m benchmarks.water --cache /tmp/prob --pictures /tmp/look --imagery            # to look at; not to commit

Places are the held-out ones with water: two Boston harbour tiles, Manila, a Dutch river, Rotterdam, and the Dubai images
that the model was not trained on. Layers are the water polygons of each place (Dubai: the class of a raster) and, where
there is one, the coarse sea layer. Each acts alone, as `drop`, on what the model alone would have delivered. With its own
water polygons a place has nothing left in water by construction: what tells is the coarse layer, and what is lost. Test
splits are reported here, never tuned on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from geopandas import GeoDataFrame
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry.base import BaseGeometry

from benchmarks.regions import Place, Probabilities, Truth, footprints, places, prepare, probabilities
from geoinfer.errors import MaskWarning
from geoinfer.evaluation import Evaluation, combine, evaluate, outcomes
from geoinfer.evaluation.mask_audit import BUFFERS, audit_masks, combine_audits, plot_audit
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.masks.apply import mask_footprints
from geoinfer.masks.layer import MaskLayer
from geoinfer.model.predictor import Predictor, load_predictor
from geoinfer.view import draw, overlay

SEAS = {"Boston": "boston", "Water Manila": "manila", "Water Rotterdam": "rotterdam"}
"""Row of the table -> the coarse sea layer of its coast."""
HELD_OUT = ("Boston", "Water Manila", "Water Netherlands", "Water Rotterdam", "Dubai (water) held out")
IN_WATER = 0.5
"""A footprint is in water when more than this share of it is."""
OFF_M = (100, 200)
"""How far off the water is drawn to see what a bad layer costs, metres, in each of four directions."""
WATER_CLASS = 2
"""Value of water in Dubai's masks."""
AROUND_M = 120.0
"""How far pictures reach beyond what was removed, metres."""
COLOURS = {
    "water": (58, 110, 165), "sea": (120, 90, 200), "labelled": (95, 100, 108),
    "kept": (255, 214, 10), "removed": (255, 69, 58), "lost": (255, 80, 220),
}  # fmt: skip
"""Later ones lie above earlier ones; `lost`: removed, and a true building by the labels."""
GROUND, GAP = (24, 28, 34), 12
"""Colour of the plain ground; pixels between before and after."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A place with what the model alone finds in it."""

    place: Place
    truth: Truth
    cached: Probabilities
    found: GeoDataFrame
    """Footprints that passed the model's own filters, on its grid."""
    water: BaseGeometry
    """Water within the imagery, on the grid."""
    layers: tuple[MaskLayer, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a layer did to a scene."""

    layer: str
    water_km2: float
    found: int
    in_water: int
    """Footprints in water, before."""
    left_in_water: int
    """The same after."""
    removed: int
    removed_true: int | None
    """Removed ones that match a labelled building; None where there are no labels."""
    before: Evaluation | None
    after: Evaluation | None


def scenes(data: Path, predictor: Predictor, only: str, cache: Path, scratch: Path) -> Iterator[Scene]:
    """The places one by one; probabilities are computed once and kept in `cache`."""
    wanted = [p for p in places(data, ("test", "water_test")) if p.name in HELD_OUT and p.water is not None]
    wanted.sort(key=lambda place: HELD_OUT.index(place.name))
    for number, place in enumerate(wanted, 1):
        if only.lower() not in f"{place.name} {place.image}".lower():
            continue
        sys.stderr.write(f"\r{number}/{len(wanted)} {place.name:<30}")
        truth = prepare(place, scratch)
        cached = _cached(place, truth, predictor, cache)
        found = footprints(cached, predictor, predictor.spec.threshold)
        water = _within(truth, found)
        if not water.is_empty:  # some of the Dubai images are all land
            yield Scene(place, truth, cached, found, water, tuple(_layers(data, place, truth, scratch)))
    sys.stderr.write("\n")


def _cached(place: Place, truth: Truth, predictor: Predictor, cache: Path) -> Probabilities:
    spec = predictor.spec
    path = cache / f"{place.image.parent.name}_{place.image.stem}.npz"
    if not path.exists():
        fresh = probabilities(truth, predictor)
        np.savez_compressed(path, prob=fresh.prob, row=fresh.row, col=fresh.col)
        return fresh
    with np.load(path) as held:
        source = open_raster(truth.raster, gsd=spec.gsd, core=spec.chips.core)
        return Probabilities(source, int(held["row"]), int(held["col"]), held["prob"])


def _within(truth: Truth, found: GeoDataFrame) -> BaseGeometry:
    """Known water within the raster's frame, in the system of the footprints."""
    with rasterio.open(truth.raster) as file:
        frame = GeoDataFrame(geometry=[shapely.box(*file.bounds)], crs=file.crs)
    water = truth.water.to_crs(found.crs).geometry.make_valid().union_all()
    return water.intersection(frame.to_crs(found.crs).union_all())


def _layers(data: Path, place: Place, truth: Truth, scratch: Path) -> Iterator[MaskLayer]:
    if place.water.suffix == ".png":  # no coordinate system: put where `prepare` put the image
        path = scratch / f"{place.water.stem}.tif"
        with rasterio.open(truth.raster) as image, rasterio.open(place.water) as mask:
            profile = {"crs": image.crs, "transform": image.transform, "tiled": True, "compress": "deflate"}
            height, width = mask.shape
            with rasterio.open(
                path, "w", driver="GTiff", count=1, height=height, width=width, dtype="uint8", **profile
            ) as file:
                file.write(mask.read(1), 1)
        yield MaskLayer.open(path, name="water", classes=WATER_CLASS)
    else:
        yield MaskLayer.open(place.water, name="water")
    if place.name in SEAS:
        yield MaskLayer.open(data / "water_layers" / f"osm_seas_{SEAS[place.name]}.geojson", name="sea")


def audits_of(scene: Scene, scratch: Path) -> Iterator[pd.DataFrame]:
    """Each layer as it is; the sea layer also as wide as its errors; and the water drawn 100 m and 200 m off."""
    truth = scene.truth
    for layer in scene.layers:
        buffers = (0.0, 100.0, 200.0) if layer.name == "sea" else BUFFERS
        yield audit_masks(scene.found, truth.buildings, [layer], aoi=truth.aoi, buffers=buffers)
    for metres in OFF_M:
        for east, north in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            path = scratch / f"off_{scene.place.image.stem}_{metres}_{east}_{north}.gpkg"
            there = truth.water.to_crs(scene.found.crs).geometry.translate(metres * east, metres * north)
            there.to_file(path)
            layer = MaskLayer.open(path, name=f"water_off_{metres}_m")
            yield audit_masks(scene.found, truth.buildings, [layer], aoi=truth.aoi)


def effect(scene: Scene, layer: MaskLayer) -> Effect:
    """What one layer alone does."""
    truth, found = scene.truth, scene.found
    kept, _ = mask_footprints(found, [layer])
    gone = ~found["id"].isin(kept["id"]).to_numpy()
    wet = _in_water(found, scene.water)
    before = after = lost = None
    if truth.buildings is not None:
        words = np.array(outcomes(found, truth.buildings, aoi=truth.aoi)[0])
        lost = int((gone & (words == "tp")).sum())
        before, after = (evaluate(some, truth.buildings, aoi=truth.aoi) for some in (found, kept))
    return Effect(
        layer.name, scene.water.area / 1e6, len(found), int(wet.sum()), int((wet & ~gone).sum()), int(gone.sum()), lost,
        before, after,
    )  # fmt: skip


def _in_water(found: GeoDataFrame, water: BaseGeometry) -> np.ndarray:
    shapes = np.asarray(found.geometry.array, dtype=object)
    shapely.prepare(water)
    return shapely.area(shapely.intersection(shapes, water)) > IN_WATER * shapely.area(shapes)


def table(effects: dict[tuple[str, str], list[Effect]]) -> Iterator[str]:
    """Markdown: a row a place and layer."""
    yield (
        "| place | layer | images | water km² | found | in water, per km² (n) | after | removed | true ones lost "
        "| precision | recall | F1 |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for (name, layer), parts in effects.items():
        km2 = sum(part.water_km2 for part in parts)
        wet, left = sum(part.in_water for part in parts), sum(part.left_in_water for part in parts)
        lost = [part.removed_true for part in parts if part.removed_true is not None]
        cells = ["", "", ""]
        if judged := [part for part in parts if part.before and part.after]:
            before, after = combine([part.before for part in judged]), combine([part.after for part in judged])
            cells = [f"{getattr(before, key):.4f} → {getattr(after, key):.4f}" for key in ("precision", "recall", "f1")]
        yield (
            f"| {name} | {layer} | {len(parts)} | {km2:.3f} | {sum(part.found for part in parts)} | {wet / km2:.1f} ({wet}) "
            f"| {left / km2:.1f} ({left}) | {sum(part.removed for part in parts)} | {sum(lost) if lost else ''} | "
            f"{' | '.join(cells)} |"
        )


def audit_table(frame: pd.DataFrame) -> Iterator[str]:
    """Markdown of an audit."""
    yield "| layer | buffer m | max_cover | removed | false | true | tp lost | recall cost | precision gain | F1 gain |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in frame.to_dict("records"):
        yield (
            f"| {row['layer']} | {row['buffer_m']:g} | {row['max_cover']:g} | {row['removed']} | {row['removed_false']} | "
            f"{row['removed_true']} | {row['tp_before'] - row['tp']} | {row['recall_cost']:.4f} "
            f"| {row['precision_gain']:+.4f} | {row['f1_gain']:+.4f} |"
        )


def picture(scene: Scene, layers: Sequence[MaskLayer], path: Path, *, imagery: bool, side: int) -> None:
    """Before and after, side by side: water, the layer, footprints kept and removed, true ones lost.

    Args:
        scene: What to draw.
        layers: Those that act, in order.
        path: The PNG; its frame is what was removed and its surroundings, or everything where nothing was.
        imagery: Over the imagery instead of plain ground.
        side: Longest side of each half, pixels.
    """
    found, truth, grid = scene.found, scene.truth, scene.cached.source.grid
    kept, _ = mask_footprints(found, layers)
    gone = ~found["id"].isin(kept["id"]).to_numpy()
    words = np.full(len(found), "", dtype=object)
    if truth.buildings is not None:
        words = np.array(outcomes(found, truth.buildings, aoi=truth.aoi)[0], dtype=object)
    frame = _frame(scene, gone)
    step = max(1, -(-max(frame.height, frame.width) // side))
    t = grid.transform
    transform = Affine(t.a * step, 0, t.c + t.a * frame.col, 0, t.e * step, t.f + t.e * frame.row)
    if imagery:
        ground = scene.cached.source.read(frame).pixels[:, ::step, ::step]
    else:
        shape = (3, -(-frame.height // step), -(-frame.width // step))
        ground = np.broadcast_to(np.array(GROUND, np.uint8)[:, None, None], shape)
    under: list[tuple[BaseGeometry, str]] = [(scene.water, "water")]
    under += [(shape, "sea") for layer in layers if layer.name == "sea" for shape in _shapes_of(layer, found)]
    if truth.buildings is not None and not imagery:
        under += [(shape, "labelled") for shape in truth.buildings.to_crs(found.crs).geometry]
    shapes = list(found.geometry)
    before = [*under, *((shape, "kept") for shape in shapes)]
    fates = np.where(~gone, "kept", np.where(words == "tp", "lost", "removed"))
    after = [*under, *zip(shapes, fates.tolist(), strict=True)]
    halves = []
    for drawn in (before, after):
        geometries, kinds = zip(*drawn, strict=True)
        halves.append(overlay(ground, geometries, transform, kinds, COLOURS, fill=0.3))
    gap = np.full((3, halves[0].shape[1], GAP), 255, np.uint8)
    draw(np.concatenate([halves[0], gap, halves[1]], axis=2), [], transform, path, scale_m=grid.pixel_m * step)


def _frame(scene: Scene, gone: np.ndarray) -> Window:
    """What to draw: around what was removed, else all that was looked at."""
    height, width = scene.cached.prob.shape
    whole = Window(scene.cached.row, scene.cached.col, height, width)
    if not gone.any():
        return whole
    t, margin = scene.cached.source.grid.transform, round(AROUND_M / scene.cached.source.grid.pixel_m)
    west, south, east, north = scene.found[gone].total_bounds.tolist()
    rows, cols = sorted(round((y - t.f) / t.e) for y in (south, north)), sorted(round((x - t.c) / t.a) for x in (west, east))
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0]).grow(margin).intersection(whole)


def _shapes_of(layer: MaskLayer, like: GeoDataFrame) -> Iterable[BaseGeometry]:
    import geopandas

    return geopandas.read_file(layer.source).to_crs(like.crs).geometry


def main() -> None:
    """Print the tables, and draw the pictures asked for."""
    warnings.simplefilter("ignore", MaskWarning)  # a layer that touches nothing is a row of the table
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GEOINFER_DATA", "../shared/data")))
    parser.add_argument("--only", default="", help="only places whose name or image holds this, whatever the case")
    parser.add_argument("--cache", type=Path, help="folder for probabilities, which takes most of the time")
    parser.add_argument("--audit", action="store_true", help="also audit each layer where there are labels")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw before and after of each image that has removals")
    parser.add_argument("--imagery", action="store_true", help="pictures over the imagery: not for the repository")
    parser.add_argument("--side", type=int, default=700, help="longest side of each half, pixels")
    options = parser.parse_args()
    predictor = load_predictor(options.model)
    effects: dict[tuple[str, str], list[Effect]] = {}
    audits: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        for scene in scenes(options.data, predictor, options.only, cache, Path(folder)):
            for layer in scene.layers:
                effects.setdefault((scene.place.name, layer.name), []).append(effect(scene, layer))
            if options.audit and scene.truth.buildings is not None:
                audits += audits_of(scene, Path(folder))
            if options.pictures:
                path = options.pictures / f"masks_{scene.place.image.stem}.png"
                picture(scene, scene.layers, path, imagery=options.imagery, side=options.side)
    sys.stdout.write("\n".join(table(effects)) + "\n")
    if audits:
        audited = combine_audits(audits)
        sys.stdout.write("\n" + "\n".join(audit_table(audited)) + "\n")
        if options.pictures:
            plot_audit(audited[audited["layer"] != "sea"], options.pictures / "masks_audit.png")


if __name__ == "__main__":
    main()
