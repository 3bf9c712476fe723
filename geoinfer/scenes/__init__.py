"""Generated aerial scenes whose truth is exact: what `geoinfer demo` runs on, and training material without a licence.

A scene is a function of its seed and settings alone. Streets, buildings of many shapes and roofs, shadows, trees, fields,
cars, water with waves, glint and boats are laid out in metres, lit by one sun, and seen through a sensor's blur and noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from geoinfer.errors import ConfigError, OutputError
from geoinfer.scenes import layout, paint
from geoinfer.scenes.layout import STYLES, Building, Street, Style
from geoinfer.scenes.texture import blur

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["STYLES", "Scene", "Water", "generate_scene", "write_scene"]

Water = Literal["any", "none", "river", "coast", "pond", "sea"]

CRS = "EPSG:32637"
"""UTM zone 37 north: a scene needs a place on Earth to be a GeoTIFF, and metres to be measured in."""
ORIGIN = (500_000.0, 20_000.0)
"""(x, y) of the upper left corner: on the central meridian, at the equator."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A generated image and what stands in it."""

    image: NDArray[np.uint8]
    """(3, H, W) red, green, blue."""
    instances: NDArray[np.int32]
    """(H, W) 0 where there is no building, else 1 + its place in `buildings`: that of the building its centre lies in."""
    buildings: tuple[Polygon | MultiPolygon, ...]
    """Footprints, not overlapping, clipped to the image (which may leave two parts), in `crs`."""
    water: tuple[Polygon, ...]
    """Water, exact to the pixel, in `crs`."""
    transform: Affine
    """(col, row) -> (x, y) in `crs`."""
    seed: int
    """What it was made from."""
    crs: str = CRS
    """A UTM zone."""

    @property
    def gsd(self) -> float:
        """Metres a pixel."""
        return float(self.transform.a)

    def truth(self) -> GeoDataFrame:
        """The buildings as a table with columns id and geometry."""
        import geopandas

        return geopandas.GeoDataFrame({"id": range(len(self.buildings))}, geometry=list(self.buildings), crs=self.crs)


def generate_scene(
    seed: int, size: int | tuple[int, int] = 640, gsd: float = 0.3, *, style: str = "any", water: Water = "any"
) -> Scene:
    """Make a scene.

    Args:
        seed: Chooses everything that is not given. The same seed and settings give the same scene.
        size: Pixels a side, or (height, width).
        gsd: Metres a pixel.
        style: A key of `STYLES`, or any.
        water: none, river, coast, pond, sea (nothing but water and boats), or any: mostly none.

    Raises:
        ConfigError: An unknown style, or a size or gsd that is not positive.
    """
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 1 or not gsd > 0:
        raise ConfigError(f"scene of {shape[0]}x{shape[1]} px at {gsd} m: size and gsd must be positive")
    if style != "any" and style not in STYLES:
        raise ConfigError(f"scene style {style!r} is unknown; use any, {', '.join(STYLES)}")
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(list(STYLES)))
    chosen = STYLES[drawn if style == "any" else style]
    wet = str(rng.choice(["none", "none", "none", "none", "river", "coast", "pond"]))
    sun = paint.Sun(float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.55, 1.25)), float(rng.uniform(0.3, 0.6)))
    canvas = paint.Canvas(shape, gsd, sun, rng)
    angle = float(rng.uniform(0, math.pi))
    paint.paint_ground(canvas, chosen.green * float(rng.uniform(0.5, 1.3)), chosen is STYLES["rural"], angle)
    distance_m = layout.water_of(rng, shape, gsd, wet if water == "any" else water)
    paint.paint_water(canvas, distance_m, angle)
    dry = distance_m >= 0

    streets = layout.streets_of(rng, shape[1] * gsd, shape[0] * gsd, angle, chosen) if dry.any() else []
    road = _pave(canvas, streets, dry)
    canvas.ground.taken |= road | (distance_m < 2)
    lots = _parking(canvas, chosen, angle) if dry.any() else []
    buildings = _build(canvas, streets, chosen, angle)
    outlines = [building.outline for building in buildings]
    instances = np.zeros(shape, np.int32)
    if outlines:
        instances = rasterize(
            ((outline, number) for number, outline in enumerate(outlines, 1)),
            shape, transform=Affine.scale(gsd), dtype="int32",
        )  # fmt: skip
    paint.cast_shadows(canvas, buildings)
    tiled = rng.random() < 0.5
    for number, building in enumerate(buildings, 1):
        palettes = {"flat": paint.CONCRETE, "tin": paint.METAL}
        colours = palettes.get(building.roof, paint.TILES if tiled == (rng.random() < 0.85) else paint.SHINGLES)
        paint.paint_roof(canvas, building, instances, number, canvas.pick(colours))
    paint.park_cars(canvas, lots + _traffic(canvas, streets, road))
    hectares = shape[0] * shape[1] * gsd**2 / 1e4
    blocked = road | (instances > 0) | (distance_m < 1)
    paint.plant_trees(canvas, int(chosen.trees_per_hectare * hectares * rng.uniform(0.4, 2.5)), blocked)
    paint.launch_boats(canvas, ~dry, int(rng.poisson(3 * hectares * (~dry).mean() * rng.uniform(0, 2))))
    return _finish(canvas, seed, outlines, instances, dry)


def _pave(canvas: paint.Canvas, streets: list[Street], dry: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Paint the streets; returns the (H, W) mask of carriageways and their verges. Some cross water as bridges."""
    rng = canvas.rng
    if not streets:
        return np.zeros(canvas.shape, bool)
    paved = rng.random() < 0.75
    surface = canvas.pick(paint.ASPHALT if paved else paint.DIRT)
    verge = canvas.burn([street.line.buffer(street.width_m / 2 + 1.5, cap_style="flat") for street in streets]) & dry
    if paved:
        canvas.fill(verge, canvas.pick(((0.68, 0.66, 0.63), (0.60, 0.59, 0.57))), 0.03, 0.04)
    carriageway = canvas.burn([street.surface for street in streets]) & (dry | (rng.random() < 0.5))
    canvas.fill(carriageway, surface, 0.03, 0.05 if paved else 0.1)
    if paved and rng.random() < 0.6:
        dashes: list[BaseGeometry] = []
        for street in streets:
            for start in np.arange(0, street.line.length, 9.0):
                piece = substring(street.line, float(start), float(start) + 3)
                dashes.append(piece.buffer(0.09, cap_style="flat"))
        canvas.fill(canvas.burn(dashes) & carriageway, (0.85, 0.85, 0.82), 0.02, 0.02)
    return verge | carriageway


def _parking(canvas: paint.Canvas, style: Style, angle: float) -> list[tuple[float, float, float]]:
    """Paint parking lots; returns the places of their cars."""
    rng, gsd = canvas.rng, canvas.gsd
    height, width = canvas.shape
    cars = []
    hectares = height * width * gsd**2 / 1e4
    for _ in range(int(rng.poisson(hectares * (1.2 if style.width_m[1] > 30 else 0.12)))):
        columns, lanes = int(rng.integers(4, 22)), int(rng.integers(1, 5))
        lot = Building(
            float(rng.uniform(0, width * gsd)), float(rng.uniform(0, height * gsd)), angle,
            ((-columns * 1.3, -lanes * 5.5, columns * 1.3, lanes * 5.5),), 0, "flat",
        )  # fmt: skip
        if not canvas.ground.claim(lot, 0.5):
            continue
        canvas.fill(canvas.burn([lot.outline]), canvas.pick(paint.ASPHALT), 0.03, 0.05)
        cos, sin = math.cos(angle), math.sin(angle)
        lines: list[BaseGeometry] = []
        fullness = rng.uniform(0.1, 0.9)
        for lane in range(2 * lanes):
            v = -lanes * 5.5 + lane * 5.5 + 2.75
            for column in range(columns):
                u = (column - columns / 2 + 0.5) * 2.6
                x, y = lot.x + u * cos - v * sin, lot.y + u * sin + v * cos
                lines.append(paint.rectangle(x - 1.3 * cos, y - 1.3 * sin, angle + math.pi / 2, 4.6, 0.14))
                if lane % 2 == 0 and rng.random() < fullness:
                    cars.append((x, y, angle + math.pi / 2))
        canvas.fill(canvas.burn(lines), (0.82, 0.82, 0.8), 0.02, 0.02)
    return cars


def _traffic(canvas: paint.Canvas, streets: list[Street], road: NDArray[np.bool_]) -> list[tuple[float, float, float]]:
    rng = canvas.rng
    places = []
    every_m = float(rng.uniform(15, 90))
    for street in streets:
        for start in np.arange(float(rng.uniform(0, every_m)), street.line.length - 1, every_m):
            here, ahead = shapely.get_coordinates(shapely.line_interpolate_point(street.line, [start, start + 1]))
            along = ahead - here
            side = float(rng.choice([-1, 1])) * street.width_m * float(rng.uniform(0.2, 0.4))
            x, y = here[0] - along[1] * side, here[1] + along[0] * side
            row, col = int(y / canvas.gsd), int(x / canvas.gsd)
            if 0 <= row < road.shape[0] and 0 <= col < road.shape[1] and road[row, col]:
                places.append((float(x), float(y), math.atan2(along[1], along[0])))
    return places


def _build(canvas: paint.Canvas, streets: list[Street], style: Style, angle: float) -> list[Building]:
    """Buildings of which some of each lies in the image and none overlap."""
    rng, gsd = canvas.rng, canvas.gsd
    hectares = canvas.shape[0] * canvas.shape[1] * gsd**2 / 1e4
    placed = layout.place_along(rng, canvas.ground, streets, style) if style.streets else []
    density = style.per_hectare if not style.streets else (8 if style.width_m[1] < 30 else 1)
    count = int(hectares * density * rng.uniform(0.5, 1.3))
    thrown = layout.throw(rng, canvas.ground, count, angle, style if not style.streets else STYLES["rural"])
    frame = shapely.box(0, 0, canvas.shape[1] * gsd, canvas.shape[0] * gsd)
    every = layout.without_overlap(placed + thrown)
    inside = shapely.area(shapely.intersection([building.outline for building in every], frame)) > 2 * gsd**2
    return [building for building, keep in zip(every, inside.tolist(), strict=True) if keep]


def _finish(
    canvas: paint.Canvas, seed: int, outlines: list[Polygon], instances: NDArray[np.int32], dry: NDArray[np.bool_]
) -> Scene:
    """Look at the canvas through air and a sensor; put the truth on the ground."""
    rng, gsd = canvas.rng, canvas.gsd
    # A shadow is lit by the blue sky: red loses the most.
    shade = 1 - canvas.light
    sky = np.maximum(shade, 0)
    lit = np.stack([canvas.colour[band] * (canvas.light + tint * sky) for band, tint in enumerate((0.0, 0.03, 0.08))])
    lit = blur(np.clip(lit, 0, 1.2).astype(np.float32), float(rng.uniform(0.45, 0.85)))
    grey = lit.mean(axis=0)
    lit += (grey - lit) * np.float32(rng.uniform(0.15, 0.5))  # no sensor sees colours as pure as a palette's
    haze = float(rng.uniform(0, 0.12))
    gain = np.float32(rng.uniform(0.8, 1.15)) * (1 + rng.normal(0, 0.03, 3)).astype(np.float32)
    lit = (lit * gain[:, None, None] * (1 - haze) + haze * np.float32(0.75)) ** np.float32(rng.uniform(0.85, 1.2))
    lit += rng.standard_normal(lit.shape, dtype=np.float32) * np.float32(rng.uniform(0.003, 0.018))
    image = np.clip(lit * 255 + 0.5, 0, 255).astype(np.uint8)

    transform = Affine(gsd, 0, ORIGIN[0], 0, -gsd, ORIGIN[1])
    frame = shapely.box(0, 0, canvas.shape[1] * gsd, canvas.shape[0] * gsd)
    buildings = tuple(_on_ground(shapely.intersection(outline, frame)) for outline in outlines)
    wet = [
        shapely.geometry.shape(geometry)
        for geometry, _ in shapes((~dry).astype(np.uint8), mask=~dry, connectivity=4, transform=transform)
    ]
    return Scene(image, instances, buildings, tuple(wet), transform, seed)


def _on_ground(polygon: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """From metres right and down of the upper left corner to coordinates."""
    xy = shapely.get_coordinates(polygon)
    return shapely.set_coordinates(polygon, np.stack([ORIGIN[0] + xy[:, 0], ORIGIN[1] - xy[:, 1]], axis=1))


def write_scene(scene: Scene, path: str | Path) -> None:
    """Write the image as a tiled GeoTIFF.

    Raises:
        OutputError: It cannot be written.
    """
    bands, height, width = scene.image.shape
    try:
        with rasterio.open(
            path, "w", driver="GTiff", count=bands, height=height, width=width, dtype="uint8", crs=scene.crs,
            transform=scene.transform, compress="deflate", photometric="RGB", tiled=True, blockxsize=256, blockysize=256,
        ) as file:  # fmt: skip
            file.write(scene.image)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise OutputError(f"{path}: cannot write the scene: {error}") from error
