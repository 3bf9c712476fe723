"""What stands where in a generated scene: streets, water's edge, buildings, trees, cars. Geometry only, no colours.

Frame: metres from the scene's upper left corner, x to the right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import LineString, Polygon

from geoinfer.scenes.texture import noise

Wing = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """How a district is built."""

    streets: bool
    """Buildings stand in lots along streets; else they are thrown anywhere."""
    width_m: tuple[float, float]
    """Least and largest length of a building's first side, metres."""
    depth_m: tuple[float, float]
    """Least and largest length of its second side, metres."""
    gap_m: tuple[float, float]
    """Least and largest distance to the neighbour, metres."""
    setback_m: tuple[float, float]
    """Least and largest distance to the street, metres."""
    storeys: tuple[int, int]
    """Least and largest number of storeys."""
    jitter: float
    """Standard deviation of the buildings' direction, radians."""
    per_hectare: float
    """Buildings tried in each hectare where they are thrown."""
    trees_per_hectare: float
    """Trees tried in each hectare."""
    roofs: tuple[str, ...]
    """Kinds of roof, drawn evenly."""
    shapes: tuple[str, ...]
    """Kinds of outline, drawn evenly."""
    green: float
    """Share of ground with vegetation, 0..1."""


STYLES: dict[str, Style] = {
    "suburb": Style(
        True, (8, 17), (7, 12), (2, 9), (4, 9), (1, 2), 0.03, 0, 45, ("gable", "hip", "hip", "flat"),
        ("box", "box", "ell", "tee"), 0.8,
    ),
    "rows": Style(
        True, (5, 9), (8, 13), (0, 0.5), (1.5, 5), (2, 3), 0.0, 0, 25, ("gable", "gable", "flat"), ("box",), 0.6,
    ),
    "informal": Style(
        False, (4, 10), (3.5, 8), (0.3, 1.6), (0.5, 2), (1, 1), 0.25, 260, 12, ("tin", "tin", "tin", "gable"),
        ("box", "box", "box", "ell"), 0.2,
    ),
    "town": Style(
        False, (7, 22), (7, 16), (0.4, 4), (1, 4), (2, 5), 0.06, 60, 18, ("flat", "flat", "hip", "tin"),
        ("box", "ell", "court", "you"), 0.35,
    ),
    "rural": Style(
        False, (5, 16), (4, 9), (3, 12), (3, 10), (1, 2), 0.4, 7, 30, ("gable", "tin", "hip", "flat"),
        ("box", "box", "ell"), 0.7,
    ),
    "industry": Style(
        True, (18, 40), (15, 35), (5, 16), (6, 16), (2, 4), 0.02, 0, 8, ("flat", "tin", "flat", "gable"),
        ("box", "ell", "box"), 0.35,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Building:
    """One building: a union of rectangles that share a direction, which is also its roof's plan."""

    x: float
    """Centre, metres."""
    y: float
    """Centre, metres."""
    angle: float
    """Direction of the first side, radians from x towards y."""
    wings: tuple[Wing, ...]
    """(u0, v0, u1, v1) of each rectangle in the turned frame, metres from the centre."""
    height_m: float
    """Height of the walls."""
    roof: str
    """gable, hip, flat or tin."""

    @property
    def outline(self) -> Polygon:
        """The exact footprint, metres."""
        parts = [shapely.box(*wing) for wing in self.wings]
        plan = parts[0] if len(parts) == 1 else shapely.union_all(parts)
        corners = shapely.get_coordinates(plan)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turned = np.stack(
            [self.x + corners[:, 0] * cos - corners[:, 1] * sin, self.y + corners[:, 0] * sin + corners[:, 1] * cos], 1
        )
        return shapely.set_coordinates(plan, turned)

    @property
    def reach_m(self) -> float:
        """Radius of a circle about the centre that holds the building, metres."""
        return max(math.hypot(u, v) for wing in self.wings for u in wing[::2] for v in wing[1::2])


@dataclass(frozen=True, slots=True)
class Street:
    """A straight or curved carriageway."""

    line: LineString
    """Centre line, metres."""
    width_m: float
    """Width of the carriageway."""

    @property
    def surface(self) -> Polygon:
        """The carriageway."""
        return self.line.buffer(self.width_m / 2, cap_style="flat")


class Ground:
    """Which pixels are taken: each thing placed is asked for first, so that none overlap by more than a pixel's rim."""

    def __init__(self, shape: tuple[int, int], gsd: float) -> None:
        self.taken = np.zeros(shape, bool)
        self.gsd = gsd

    def window(self, x: float, y: float, reach_m: float) -> tuple[slice, slice] | None:
        """Rows and columns within a distance of a point; None where that is outside the scene."""
        height, width = self.taken.shape
        row0, row1 = math.floor((y - reach_m) / self.gsd), math.ceil((y + reach_m) / self.gsd) + 1
        col0, col1 = math.floor((x - reach_m) / self.gsd), math.ceil((x + reach_m) / self.gsd) + 1
        rows, cols = slice(max(row0, 0), min(row1, height)), slice(max(col0, 0), min(col1, width))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def centres(self, window: tuple[slice, slice]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(1, w) x and (h, 1) y of the pixel centres of a window, metres."""
        rows, cols = window
        x = (np.arange(cols.start, cols.stop, dtype=np.float32) + 0.5) * np.float32(self.gsd)
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * np.float32(self.gsd)
        return np.asarray(x[None, :], np.float32), np.asarray(y[:, None], np.float32)

    def claim(self, building: Building, gap_m: float) -> bool:
        """Take the pixels of a building, if no pixel within `gap_m` of it is taken (and some of it is in the scene)."""
        window = self.window(building.x, building.y, building.reach_m + gap_m)
        if window is None:
            return False
        u, v = turned(building, *self.centres(window))
        near = np.zeros(u.shape, bool)
        inside = np.zeros(u.shape, bool)
        for u0, v0, u1, v1 in building.wings:
            far = np.maximum(np.maximum(u0 - u, u - u1), np.maximum(v0 - v, v - v1))
            near |= far <= gap_m
            inside |= far <= 0
        if not inside.any() or (self.taken[window] & near).any():
            return False
        self.taken[window] |= inside
        return True


def turned(
    building: Building, x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points in the frame of a building's first and second side, metres from its centre."""
    cos, sin = np.float32(math.cos(building.angle)), np.float32(math.sin(building.angle))
    dx, dy = x - np.float32(building.x), y - np.float32(building.y)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    return np.asarray(u, np.float32), np.asarray(v, np.float32)


def wings_of(shape: str, width: float, depth: float, rng: np.random.Generator) -> tuple[Wing, ...]:
    """Rectangles of an outline inside width x depth, centred on 0."""
    a, b = width / 2, depth / 2
    arm_u, arm_v = width * rng.uniform(0.35, 0.5), depth * rng.uniform(0.4, 0.55)
    if shape == "ell":
        return (-a, -b, a, -b + arm_v), (-a, -b, -a + arm_u, b)
    if shape == "tee":
        middle = rng.uniform(-0.2, 0.2) * width
        return (-a, -b, a, -b + arm_v), (middle - arm_u / 2, -b, middle + arm_u / 2, b)
    if shape == "you" and min(width, depth) > 10:
        arm = min(width, depth) * rng.uniform(0.25, 0.33)
        return (-a, -b, a, -b + arm), (-a, -b, -a + arm, b), (a - arm, -b, a, b)
    if shape == "court" and min(width, depth) > 12:
        arm = min(width, depth) * rng.uniform(0.25, 0.33)
        return (-a, -b, a, -b + arm), (-a, b - arm, a, b), (-a, -b, -a + arm, b), (a - arm, -b, a, b)
    return ((-a, -b, a, b),)


def streets_of(rng: np.random.Generator, width_m: float, height_m: float, angle: float, style: Style) -> list[Street]:
    """A street grid in one direction over the whole scene, and now and then a curved road."""
    centre = np.array([width_m / 2, height_m / 2])
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    half = math.hypot(width_m, height_m) / 2 + 10
    lanes = float(rng.uniform(4.5, 9)) if style.width_m[1] < 30 else float(rng.uniform(8, 14))
    depth = 2 * (style.depth_m[1] + style.setback_m[1]) * float(rng.uniform(0.95, 1.5)) + lanes
    streets = []
    if style.streets:
        offset = -half + float(rng.uniform(0, depth))
        while offset < half:
            start = centre + offset * across
            streets.append(Street(LineString([start - half * along, start + half * along]), lanes))
            offset += depth * float(rng.uniform(0.9, 1.2))
    spacing = float(rng.uniform(90, 170))
    offset = -half + float(rng.uniform(0, spacing))
    while offset < half:
        start = centre + offset * along
        line = LineString([start - half * across, start + half * across])
        streets.append(Street(line, lanes * float(rng.uniform(0.6, 1.2))))
        offset += spacing * float(rng.uniform(0.7, 1.4)) * (1 if style.streets else 1.6)
    if rng.random() < 0.5:
        bend, turn = float(rng.uniform(-0.35, 0.35)) * half, float(rng.uniform(0, math.pi))
        head = np.array([math.cos(turn), math.sin(turn)])
        side = np.array([-head[1], head[0]])
        steps = np.linspace(-half, half, 40)
        line = centre + steps[:, None] * head + (bend * np.cos(steps / half * 2))[:, None] * side
        streets.append(Street(LineString(line), float(rng.uniform(5, 14))))
    return streets


def place_along(rng: np.random.Generator, ground: Ground, streets: list[Street], style: Style) -> list[Building]:
    """Buildings in lots on both sides of straight streets, rows that nearly or really touch among them."""
    placed = []
    for street in streets:
        points = shapely.get_coordinates(street.line)
        if len(points) != 2:
            continue
        length = float(street.line.length)
        along = (points[1] - points[0]) / length
        angle = math.atan2(along[1], along[0])
        for side in (-1.0, 1.0):
            across = np.array([-along[1], along[0]]) * side
            setback = float(rng.uniform(*style.setback_m))
            position = float(rng.uniform(0, 10))
            while position < length:
                width, depth = _sides(rng, style)
                gap = float(rng.uniform(*style.gap_m))
                if style.gap_m[0] == 0 and rng.random() < 0.5:
                    gap = 0.0  # a party wall: neighbours share an edge
                away = street.width_m / 2 + setback + depth / 2 + (0 if style.jitter == 0 else float(rng.uniform(0, 2)))
                x, y = points[0] + (position + width / 2) * along + away * across
                position += width + gap + (float(rng.uniform(5, 15)) if rng.random() < 0.12 else 0)
                if rng.random() < 0.06:
                    continue
                turn = angle + (math.pi if side > 0 else 0) + float(rng.normal(0, style.jitter))
                building = _building(rng, style, float(x), float(y), turn, width, depth)
                if ground.claim(building, 0.0 if style.gap_m[0] == 0 else min(gap, 1.0)):
                    placed.append(building)
    return placed


def throw(rng: np.random.Generator, ground: Ground, count: int, angle: float, style: Style) -> list[Building]:
    """Buildings thrown anywhere; those that would touch another are left out."""
    height, width = ground.taken.shape
    placed = []
    for _ in range(count):
        x, y = rng.uniform(0, width * ground.gsd), rng.uniform(0, height * ground.gsd)
        turn = angle + float(rng.normal(0, style.jitter)) + float(rng.integers(4)) * math.pi / 2
        building = _building(rng, style, float(x), float(y), turn, *_sides(rng, style))
        if ground.claim(building, float(rng.uniform(*style.gap_m))):
            placed.append(building)
    return placed


def _sides(rng: np.random.Generator, style: Style) -> tuple[float, float]:
    # The larger the rarer: the square of an even draw.
    low, high = style.width_m
    width = low + (high - low) * float(rng.random()) ** 1.5
    low, high = style.depth_m
    return width, low + (high - low) * float(rng.random()) ** 1.2


def _building(
    rng: np.random.Generator, style: Style, x: float, y: float, angle: float, width: float, depth: float
) -> Building:
    storeys = int(rng.integers(style.storeys[0], style.storeys[1] + 1))
    shape = str(rng.choice(style.shapes))
    height_m = 2.8 * storeys + float(rng.uniform(0, 1))
    return Building(x, y, angle, wings_of(shape, width, depth, rng), height_m, str(rng.choice(style.roofs)))


def without_overlap(buildings: list[Building]) -> list[Building]:
    """Drop each building that shares area with an earlier one: pixels cannot see overlaps thinner than themselves."""
    outlines = np.array([building.outline for building in buildings], dtype=object)
    if len(outlines) < 2:
        return buildings
    first, second = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    later = first < second
    first, second = first[later], second[later]
    shared = shapely.area(shapely.intersection(outlines[first], outlines[second])) > 1e-6
    dropped: set[int] = set()
    for a, b in sorted(zip(first[shared].tolist(), second[shared].tolist(), strict=True)):
        if a not in dropped:
            dropped.add(b)
    return [building for index, building in enumerate(buildings) if index not in dropped]


def water_of(rng: np.random.Generator, shape: tuple[int, int], gsd: float, kind: str) -> NDArray[np.float32]:
    """Distance to the water's edge in metres, negative in water: a river, a coast, a pond, or nowhere.

    Args:
        rng: Source of randomness.
        shape: (H, W) in pixels.
        gsd: Metres a pixel.
        kind: none, river, coast, pond or sea (all of the scene).

    Returns:
        (H, W) float32.
    """
    height, width = shape
    if kind == "none":
        return np.full(shape, 1e6, np.float32)
    if kind == "sea":
        return np.full(shape, -1e6, np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5) * gsd)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) * gsd)[None, :]
    middle_x, middle_y = width * gsd * rng.uniform(0.2, 0.8), height * gsd * rng.uniform(0.2, 0.8)
    angle = rng.uniform(0, 2 * math.pi)
    u = (x - middle_x) * math.cos(angle) + (y - middle_y) * math.sin(angle)
    wiggle = noise(rng, shape, 70 / gsd, 4) * np.float32(7)
    if kind == "coast":
        edge = u + wiggle
    elif kind == "river":
        edge = np.abs(u + 2 * wiggle) - rng.uniform(5, 25) + 0.2 * wiggle
    else:
        v = (y - middle_y) * math.cos(angle) - (x - middle_x) * math.sin(angle)
        edge = np.hypot(u, v * rng.uniform(1, 2)) - rng.uniform(10, 40) + wiggle
    return np.asarray(edge, np.float32)
