"""How things look: ground, water, roofs, trees and cars under one sun, seen from straight above.

Colours are (r, g, b) from 0 to 1 as a screen shows them. What is lit is `colour * light`; light is 1 on flat ground in
the sun, and `ambient` in a shadow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from geoinfer.scenes.layout import Building, Ground, turned
from geoinfer.scenes.texture import noise

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]

TILES: tuple[Colour, ...] = (
    (0.60, 0.38, 0.30), (0.54, 0.34, 0.27), (0.70, 0.49, 0.38), (0.50, 0.38, 0.32), (0.74, 0.56, 0.45), (0.64, 0.36, 0.28),
)  # fmt: skip
SHINGLES: tuple[Colour, ...] = (
    (0.44, 0.43, 0.43), (0.36, 0.35, 0.36), (0.52, 0.49, 0.45), (0.42, 0.36, 0.31), (0.58, 0.56, 0.53), (0.30, 0.31, 0.33),
)  # fmt: skip
CONCRETE: tuple[Colour, ...] = (
    (0.72, 0.70, 0.67), (0.60, 0.58, 0.55), (0.82, 0.81, 0.79), (0.52, 0.51, 0.50), (0.66, 0.61, 0.53), (0.90, 0.90, 0.89),
)  # fmt: skip
METAL: tuple[Colour, ...] = (
    (0.70, 0.72, 0.75), (0.62, 0.63, 0.64), (0.80, 0.82, 0.84), (0.55, 0.36, 0.27), (0.60, 0.48, 0.40), (0.38, 0.47, 0.60),
    (0.40, 0.52, 0.44), (0.66, 0.32, 0.28),
)  # fmt: skip
ASPHALT: tuple[Colour, ...] = ((0.42, 0.42, 0.43), (0.52, 0.51, 0.50), (0.36, 0.36, 0.37))
DIRT: tuple[Colour, ...] = ((0.66, 0.57, 0.46), (0.60, 0.48, 0.38))
WATERS: tuple[Colour, ...] = (
    (0.13, 0.22, 0.30), (0.17, 0.27, 0.27), (0.10, 0.16, 0.20), (0.28, 0.29, 0.22), (0.12, 0.33, 0.40), (0.36, 0.34, 0.27),
)  # fmt: skip
CARS: tuple[Colour, ...] = (
    (0.92, 0.92, 0.92), (0.75, 0.76, 0.78), (0.14, 0.14, 0.16), (0.35, 0.36, 0.38), (0.60, 0.14, 0.13), (0.18, 0.26, 0.45),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sun:
    """Where the light comes from."""

    azimuth: float
    """Direction from the ground to the sun, radians from x (right) towards y (down)."""
    elevation: float
    """Height above the horizon, radians."""
    ambient: float
    """Light in a shadow; 1 is the light on flat ground in the sun."""

    def shadow(self, height_m: float) -> tuple[float, float]:
        """(x, y) offset of the shadow of a point so high, metres."""
        reach = height_m / math.tan(self.elevation)
        return -reach * math.cos(self.azimuth), -reach * math.sin(self.azimuth)

    def light(self, slope_x: Floats, slope_y: Floats) -> Floats:
        """Light on a slope (height gained a metre), relative to flat ground."""
        cos = math.cos(self.elevation)
        sideways = math.cos(self.azimuth) * slope_x + math.sin(self.azimuth) * slope_y
        towards = (math.sin(self.elevation) - cos * sideways) / np.sqrt(1 + slope_x**2 + slope_y**2)
        direct = np.clip(towards / np.float32(math.sin(self.elevation)), 0, 1.6)
        return np.asarray(self.ambient + (1 - self.ambient) * direct, np.float32)


class Canvas:
    """The scene while it is painted: what is painted later lies on top."""

    def __init__(self, shape: tuple[int, int], gsd: float, sun: Sun, rng: np.random.Generator) -> None:
        self.colour = np.zeros((3, *shape), np.float32)
        """(3, H, W) 0..1."""
        self.light = np.ones(shape, np.float32)
        """(H, W)."""
        self.shape, self.gsd, self.sun, self.rng = shape, gsd, sun, rng
        self.grain = noise(rng, shape, 2, 2)
        """(H, W) texture of a pixel or two, mean 0, deviation 1."""
        self.blotch = noise(rng, shape, 5 / gsd, 4)
        """(H, W) texture of a few metres, mean 0, deviation 1."""
        self.ground = Ground(shape, gsd)

    def burn(self, shapes: list[BaseGeometry]) -> NDArray[np.bool_]:
        """(H, W) mask of the pixels whose centre lies in one of the shapes."""
        if not shapes:
            return np.zeros(self.shape, bool)
        return np.asarray(rasterize(shapes, self.shape, transform=Affine.scale(self.gsd), dtype="uint8"), bool)

    def fill(self, mask: NDArray[np.bool_], colour: Colour, grain: float = 0.04, blotch: float = 0.05) -> None:
        """Cover a mask with one colour and its texture."""
        texture = 1 + grain * self.grain[mask] + blotch * self.blotch[mask]
        for band, value in enumerate(colour):
            self.colour[band][mask] = value * texture

    def vary(self, colour: Colour, amount: float) -> Colour:
        """A colour like this one: brightness by `amount`, each band by a fifth of it."""
        factor = 1 + self.rng.normal(0, amount) + self.rng.normal(0, amount / 5, 3)
        red, green, blue = np.clip(np.array(colour) * factor, 0.02, 1).tolist()
        return red, green, blue

    def pick(self, colours: tuple[Colour, ...], amount: float = 0.12) -> Colour:
        """One of the colours, varied."""
        return self.vary(colours[int(self.rng.integers(len(colours)))], amount)


def paint_ground(canvas: Canvas, green: float, fields: bool, angle: float) -> None:
    """Grass, weeds and bare soil by noise; fields as turned strips with furrows."""
    rng, shape, gsd = canvas.rng, canvas.shape, canvas.gsd
    grass = canvas.pick(((0.36, 0.42, 0.24), (0.30, 0.38, 0.22), (0.44, 0.45, 0.27), (0.40, 0.43, 0.33)))
    soil = canvas.pick(((0.62, 0.50, 0.38), (0.58, 0.40, 0.28), (0.66, 0.60, 0.50), (0.50, 0.44, 0.37)))
    patches = noise(rng, shape, 30 / gsd, 5)
    share = 1 / (1 + np.exp(-3 * (patches + 2.2 * (green - 0.5) + 0.5 * canvas.blotch)))
    texture = 1 + 0.10 * canvas.blotch + 0.05 * canvas.grain + 0.06 * np.roll(patches, shape[0] // 3, axis=0)
    for band in range(3):
        canvas.colour[band] = (soil[band] + (grass[band] - soil[band]) * share) * texture
    if not fields:
        return
    x, y = canvas.ground.centres((slice(0, shape[0]), slice(0, shape[1])))
    u = x * math.cos(angle) + y * math.sin(angle) + 1.5 * patches
    v = y * math.cos(angle) - x * math.sin(angle)
    strip = np.floor(u / rng.uniform(18, 45)).astype(np.int64)
    cell = (strip * 7919 + np.floor(v / rng.uniform(50, 130) + 0.37 * strip).astype(np.int64) * 104729) % 64
    sown_with = (grass, soil, (0.36, 0.43, 0.25), (0.62, 0.57, 0.42), (0.46, 0.40, 0.33))
    crops = np.array([canvas.pick(sown_with, 0.12) for _ in range(64)], np.float32)
    furrow = 1 + np.float32(0.06 * min(1.0, 0.5 / gsd)) * np.sin(v * np.float32(2 * math.pi / max(1.1, 3 * gsd)))
    wild = patches > 0.9
    for band in range(3):
        sown = crops[cell, band] * furrow * (1 + 0.07 * canvas.blotch + 0.05 * canvas.grain)
        canvas.colour[band] = np.where(wild, canvas.colour[band], sown)


def paint_water(canvas: Canvas, distance_m: Floats, angle: float) -> None:
    """Sand or mud at the edge, foam, waves in two directions and glint."""
    rng, gsd = canvas.rng, canvas.gsd
    beach = float(rng.uniform(0.5, 10))
    sand = canvas.pick(((0.80, 0.73, 0.60), (0.68, 0.60, 0.48), (0.45, 0.42, 0.36)))
    canvas.fill((distance_m >= 0) & (distance_m < beach + 0.3 * beach * canvas.blotch), sand, 0.03, 0.04)
    wet = distance_m < 0
    if not wet.any():
        return
    deep = canvas.pick(WATERS, 0.2)
    shallow = tuple(0.6 * a + 0.4 * b for a, b in zip(deep, sand, strict=True))
    x, y = canvas.ground.centres((slice(0, canvas.shape[0]), slice(0, canvas.shape[1])))
    waves = np.zeros(canvas.shape, np.float32)
    warp = 2 * canvas.blotch
    for length, turn in ((rng.uniform(3, 9), 0.0), (rng.uniform(1.5, 4), rng.uniform(-0.8, 0.8))):
        length = max(length, 3 * gsd)
        phase = (x * math.cos(angle + turn) + y * math.sin(angle + turn) + warp) * np.float32(2 * math.pi / length)
        waves += np.sin(phase, dtype=np.float32)
    rough = float(rng.uniform(0, 0.12))
    depth = np.clip(-distance_m / float(rng.uniform(4, 30)), 0, 1)
    glint = np.maximum(waves + 1.2 * canvas.grain - float(rng.uniform(2.2, 4.5)), 0) * float(rng.uniform(0.05, 0.4))
    foam = (distance_m > -1.2) & (canvas.blotch > 0.8)
    for band in range(3):
        value = shallow[band] + (deep[band] - shallow[band]) * depth
        value = value * (1 + rough * waves + 0.03 * canvas.grain + 0.04 * canvas.blotch) + glint + 0.25 * foam
        canvas.colour[band] = np.where(wet, value, canvas.colour[band])


def cast_shadows(canvas: Canvas, buildings: list[Building]) -> None:
    """Shadows on the ground: each outline swept along the sun's direction, as far as its wall is high."""
    swept: list[BaseGeometry] = []
    for building in buildings:
        x, y = canvas.sun.shadow(building.height_m)
        outline = building.outline
        for ring in (outline.exterior, *outline.interiors):
            near = shapely.get_coordinates(ring)
            far = near + np.array([x, y])
            sides = np.stack([near[:-1], near[1:], far[1:], far[:-1]], axis=1)  # (edges, 4, 2)
            swept.extend(shapely.polygons(sides).tolist())
        swept.append(shapely.transform(outline, lambda xy, shift=(x, y): xy + np.array(shift)))
    canvas.light[canvas.burn(swept)] = canvas.sun.ambient


def paint_roof(canvas: Canvas, building: Building, mask_of: NDArray[np.int32], number: int, base: Colour) -> None:
    """One roof: its pitch lit by the sun, with sheets, tiles, stains, a parapet, plant or panels.

    Args:
        canvas: Painted in place.
        building: What stands there.
        mask_of: (H, W) numbers of the buildings.
        number: This one's number.
        base: The roof's colour.
    """
    window = canvas.ground.window(building.x, building.y, building.reach_m)
    if window is None:
        return
    mask = mask_of[window] == number
    if not mask.any():
        return
    rng, gsd = canvas.rng, canvas.gsd
    u, v = turned(building, *canvas.ground.centres(window))
    rim = np.full(u.shape, -np.inf, np.float32)
    height = np.zeros(u.shape, np.float32)
    pitch = float(rng.uniform(0.25, 0.7)) if building.roof in ("gable", "hip") else float(rng.uniform(0.04, 0.2))
    for u0, v0, u1, v1 in building.wings:
        to_u, to_v = np.minimum(u - u0, u1 - u), np.minimum(v - v0, v1 - v)
        inner = np.minimum(to_u, to_v)
        rim = np.maximum(rim, inner)
        if building.roof == "gable" or (building.roof == "tin" and pitch > 0.1):
            rise = np.where(inner >= -gsd, to_v if u1 - u0 >= v1 - v0 else to_u, 0)
        elif building.roof == "tin":  # a single slope
            rise = (v - v0) if building.height_m * 10 % 2 < 1 else (u - u0)
        else:
            rise = inner
        if building.roof != "flat":
            height = np.maximum(height, rise * np.float32(pitch))
    light = np.ones(u.shape, np.float32)
    if building.roof != "flat" and min(u.shape) > 1:
        slope_y, slope_x = np.gradient(height, np.float32(gsd))
        light = canvas.sun.light(slope_x, slope_y)
    texture = (1 + 0.03 * canvas.grain[window] + float(rng.uniform(0.01, 0.07)) * canvas.blotch[window]).astype(np.float32)
    if building.roof == "tin":
        sheet = float(rng.uniform(0.8, 2.0))
        seams = np.floor((u if rng.random() < 0.5 else v) / np.float32(sheet)).astype(np.int64)
        texture = texture * rng.normal(1, rng.uniform(0.01, 0.09), 101).astype(np.float32)[seams % 101]
    elif building.roof != "flat" and gsd < 0.25:
        texture = texture * (1 + 0.05 * np.sin(height * np.float32(2 * math.pi / (0.35 * pitch))))
    if building.roof == "flat":
        parapet = rim < max(0.35, 0.6 * gsd)
        light = np.where(parapet, np.float32(rng.uniform(0.85, 1.2)), light)
    colour = np.stack([value * texture for value in base])  # (3, h, w)
    colour = colour.astype(np.float32, copy=False)
    if building.roof == "tin" and rng.random() < 0.4:
        rust = np.clip(canvas.blotch[window] - float(rng.uniform(-0.3, 1)), 0, 0.7)
        colour += (np.array([0.45, 0.27, 0.18], np.float32)[:, None, None] - colour) * rust
    if building.roof == "flat":
        _plant(rng, canvas.sun, building, u, v, rim, colour, light)
    elif rng.random() < 0.08:
        u0, v0, u1, v1 = building.wings[0]
        a, b = sorted(rng.uniform(u0, u1, 2))
        panels = (u > a) & (u < b) & (v > v0 + 0.8) & (v < (v0 + v1) / 2 - 0.5)
        colour[:, panels] = np.array([0.13, 0.15, 0.24], np.float32)[:, None]
    for band in range(3):
        canvas.colour[band][window][mask] = colour[band][mask]
    canvas.light[window][mask] = light[mask]


def _plant(
    rng: np.random.Generator, sun: Sun, building: Building, u: Floats, v: Floats, rim: Floats, colour: Floats, light: Floats
) -> None:
    """Boxes on a flat roof (stairs, tanks, machines), each with its shadow."""
    area = sum((u1 - u0) * (v1 - v0) for u0, v0, u1, v1 in building.wings)
    for _ in range(int(rng.poisson(min(area / 70, 8)))):
        u0, v0, u1, v1 = building.wings[int(rng.integers(len(building.wings)))]
        a, b = rng.uniform(u0, u1), rng.uniform(v0, v1)
        half_a, half_b, tall = rng.uniform(0.4, 2), rng.uniform(0.4, 2), rng.uniform(0.6, 2.5)
        x, y = sun.shadow(float(tall))
        cos, sin = math.cos(building.angle), math.sin(building.angle)
        for share in (1.0, 0.66, 0.33):
            shift_u, shift_v = (x * cos + y * sin) * share, (y * cos - x * sin) * share
            light[(np.abs(u - a - shift_u) < half_a) & (np.abs(v - b - shift_v) < half_b) & (rim > 0.4)] = sun.ambient + 0.1
        box = (np.abs(u - a) < half_a) & (np.abs(v - b) < half_b) & (rim > 0.4)
        colour[:, box] = np.float32(rng.uniform(0.45, 0.95))
        light[box] = 1


def plant_trees(canvas: Canvas, count: int, over: NDArray[np.bool_]) -> None:
    """Crowns as lumpy half spheres with shadows. A tree stands where `over` is False, and may reach over what is there."""
    rng, gsd, sun = canvas.rng, canvas.gsd, canvas.sun
    height, width = canvas.shape
    leaf = canvas.pick(((0.20, 0.29, 0.15), (0.26, 0.33, 0.18), (0.17, 0.24, 0.16), (0.33, 0.34, 0.22)))
    clumps = noise(rng, canvas.shape, 40 / gsd, 3)
    for _ in range(count):
        x, y = float(rng.uniform(0, width * gsd)), float(rng.uniform(0, height * gsd))
        row, col = int(y / gsd), int(x / gsd)
        radius = float(rng.uniform(1.0, 4.5))
        if over[row, col] or clumps[row, col] < rng.normal(0, 0.8):
            continue
        shadow_x, shadow_y = sun.shadow(radius * 1.3)
        for centre_x, centre_y, is_shadow in ((x + shadow_x, y + shadow_y, True), (x, y, False)):
            window = canvas.ground.window(centre_x, centre_y, radius * 1.3)
            if window is None:
                continue
            at_x, at_y = canvas.ground.centres(window)
            dx, dy = (at_x - np.float32(centre_x)) / np.float32(radius), (at_y - np.float32(centre_y)) / np.float32(radius)
            square = dx * dx + dy * dy + np.float32(0.22) * canvas.blotch[window]
            crown = square < 1
            if is_shadow:
                canvas.light[window][crown] = np.minimum(canvas.light[window][crown], sun.ambient + 0.08)
                continue
            lumps = 0.35 * canvas.grain[window] + 0.5 * canvas.blotch[window]
            dome = np.sqrt(np.clip(1 - square, 0.15, 1))
            light = sun.light(-dx / dome * 0.6 * -1, -dy / dome * 0.6 * -1) * (1 + 0.25 * lumps)
            tone = canvas.vary(leaf, 0.14)
            for band in range(3):
                canvas.colour[band][window][crown] = tone[band]
            canvas.light[window][crown] = light[crown]


def park_cars(canvas: Canvas, places: list[tuple[float, float, float]]) -> None:
    """Cars at (x, y, direction), each with a windscreen and a shadow."""
    sun, rng = canvas.sun, canvas.rng
    for x, y, angle in places:
        long, wide = float(rng.uniform(3.8, 5.2)), float(rng.uniform(1.7, 2.0))
        window = canvas.ground.window(x, y, 5)
        if window is None:
            continue
        at_x, at_y = canvas.ground.centres(window)
        for share in (1.0, 0.5, 0.0):
            shadow_x, shadow_y = sun.shadow(1.4 * share)
            dx, dy = at_x - np.float32(x + shadow_x), at_y - np.float32(y + shadow_y)
            u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
            body = (np.abs(u) < long / 2) & (np.abs(v) < wide / 2)
            canvas.light[window][body] = 1.0 if share == 0 else sun.ambient
        paint = canvas.pick(CARS, 0.08)
        glass = body & (np.abs(np.abs(u) - 1.1) < 0.4)
        for band in range(3):
            canvas.colour[band][window][body] = paint[band]
            canvas.colour[band][window][glass] = 0.12


def launch_boats(canvas: Canvas, wet: NDArray[np.bool_], count: int) -> None:
    """Hulls on the water and their wakes: bright things that are no buildings."""
    rng = canvas.rng
    rows, cols = np.nonzero(wet[::8, ::8])
    for _ in range(count if len(rows) else 0):
        index = int(rng.integers(len(rows)))
        x, y, angle = (cols[index] * 8 + 0.5) * canvas.gsd, (rows[index] * 8 + 0.5) * canvas.gsd, float(rng.uniform(0, 6.3))
        long = float(rng.uniform(3, 16))
        wide = long * float(rng.uniform(0.22, 0.35))
        window = canvas.ground.window(x, y, 2 * long)
        if window is None:
            continue
        at_x, at_y = canvas.ground.centres(window)
        dx, dy = at_x - np.float32(x), at_y - np.float32(y)
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        wake = (u < 0) & (u > -2 * long) & (np.abs(np.abs(v) + 0.15 * u) < 0.4) & wet[window]
        hull = (np.abs(u) < long / 2) & (np.abs(v) < wide / 2 * np.sqrt(np.clip(1.2 - np.maximum(u, 0) / long * 2, 0, 1)))
        hull &= wet[window]
        paint = canvas.pick(((0.9, 0.9, 0.9), (0.8, 0.8, 0.78), (0.45, 0.32, 0.25), (0.3, 0.4, 0.55)))
        moving = rng.random() < 0.3
        for band in range(3):
            if moving:
                canvas.colour[band][window][wake] += 0.2
            canvas.colour[band][window][hull] = paint[band] * (1 - 0.4 * (np.abs(v[hull]) < wide / 6))


def rectangle(x: float, y: float, angle: float, long: float, wide: float) -> Polygon:
    """A turned rectangle about its centre, metres."""
    return Building(x, y, angle, ((-long / 2, -wide / 2, long / 2, wide / 2),), 0, "flat").outline
