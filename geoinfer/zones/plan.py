"""Which grids it takes where one cannot hold it: a zone of UTM for each six degrees, polar caps beyond 84 N and 80 S.

The earth is cut into strips by meridians, by the equator and by two parallels: each place belongs to one, whatever is asked
for, so its grid depends on the place only. A zone answers for the region within its strip and looks a margin beyond, so that
a building on the border is seen whole from both sides. Opens nothing, and knows nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geoinfer.earth import Bounds, project
from geoinfer.errors import ConfigError
from geoinfer.imagery.ground import utm_of
from geoinfer.meridian import near, split
from geoinfer.region import Region

MARGIN_M = 500.0
"""How far beyond its strip a zone looks: longer than nearly all buildings."""
NORTH, SOUTH = 84.0, -80.0
"""Where UTM ends."""
LONLAT = CRS.from_epsg(4326)
_STEP = 0.5
"""Corners of a strip's grown side are this far apart, degrees of latitude."""
_M_PER_DEGREE = 110_000.0
"""Metres of a degree of latitude, a little less than anywhere; of longitude at the equator."""
_CAPS = {"UPN": (NORTH, 90.0), "UPS": (-90.0, SOUTH)}
_DECIMALS = 12
"""Of degrees: a tenth of a micrometre. Closer to a border than this, GEOS may lose a whole part in an intersection."""
_NOTHING = 1e-18
"""Square degrees, a hundredth of a square millimetre: what rounding leaves of a region on the other side of a border."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The part of the earth that one grid answers for, in degrees on WGS 84."""

    label: str
    """`30N`, `30S`; `UPN` and `UPS` for the caps."""
    west: float
    south: float
    east: float
    north: float

    @property
    def is_cap(self) -> bool:
        """Around a pole."""
        return self.label in _CAPS

    @property
    def centre(self) -> float:
        """Its middle meridian."""
        return (self.west + self.east) / 2

    def shape(self, margin_m: float = 0.0) -> BaseGeometry:
        """Itself, or with a margin all around; longitudes then pass 180 rather than jump."""
        up, down = min(self.north + margin_m / _M_PER_DEGREE, 90.0), max(self.south - margin_m / _M_PER_DEGREE, -90.0)
        if self.is_cap or not margin_m:
            return shapely.box(self.west, down, self.east, up)
        y = np.linspace(down, up, math.ceil((up - down) / _STEP) + 1)
        x = margin_m / (_M_PER_DEGREE * np.cos(np.radians(y)))  # convex, so the chord between two corners lies outside
        right, left = np.column_stack([self.east + x, y]), np.column_stack([self.west - x, y])
        return shapely.Polygon(np.concatenate([right, left[::-1]]))


@dataclass(frozen=True, slots=True)
class ZonePart:
    """What one zone has to do."""

    strip: Strip
    crs: CRS
    """Of its grid."""
    core: Region
    """What it answers for: the region within its strip, in degrees; the zones of a plan share no point but edges."""
    grown: Region
    """What it looks at: `core` and the region a margin around its strip. All of the region where there is one zone."""

    @property
    def label(self) -> str:
        """What stands before its footprints' identifiers."""
        return self.strip.label

    @property
    def folder(self) -> str:
        """Name of its run's directory: `EPSG_32630`."""
        code = self.crs.to_epsg()
        return f"UTM_{self.label}" if code is None else f"EPSG_{code}"


def plan_zones(
    bounds: Bounds | None, region: Region | None, *, datum: CRS | None = None, margin_m: float = MARGIN_M
) -> list[ZonePart]:
    """The zones that a region needs, from west to east; across the antimeridian as well.

    Args:
        bounds: Of the imagery, degrees; west > east across the antimeridian. None: unknown. Strips without any are left out.
        region: What is asked for; None: all imagery, and then `bounds` must be known.
        datum: A coordinate system on the datum that grids are to have, as the imagery's; None: WGS 84.
        margin_m: How far beyond its strip a zone looks, metres.

    Raises:
        ConfigError: Neither bounds nor region.
    """
    if region is None and bounds is None:
        raise ConfigError("imagery too wide for one grid, and no region: give a --bbox or a --region")
    imagery = None if bounds is None else near(Region.from_bbox(_within(bounds)).geometry, 0.0)
    asked = imagery if region is None else lonlat(region)
    assert asked is not None
    asked = shapely.transform(asked, lambda points: points.round(_DECIMALS))
    within = asked if imagery is None else shapely.intersection(asked, imagery)
    chosen = [strip for strip in _strips() if shapely.intersection(within, strip.shape()).area > _NOTHING]
    whole = Region(asked, LONLAT) if region is None else region
    parts = []
    for strip in _from_west(chosen):
        core = Region(_polygons(shapely.intersection(near(asked, strip.centre), strip.shape())), LONLAT)
        grown = shapely.intersection(near(asked, strip.centre), strip.shape(margin_m))
        is_alone = len(chosen) == 1
        crs = utm_of(datum or LONLAT, strip.centre, (strip.south + strip.north) / 2)
        parts.append(ZonePart(strip, crs, core, whole if is_alone else Region(_polygons(grown), LONLAT)))
    return parts


def lonlat(region: Region) -> BaseGeometry:
    """A region in degrees on WGS 84, between -180 and 180."""
    if region.crs.is_geographic:
        shape = region.geometry if region.crs == LONLAT else project(region.geometry, region.crs, LONLAT)
        return near(shape, 0.0)
    moved = project(region.geometry, region.crs, LONLAT)
    return near(shapely.union_all(shapely.make_valid(split(np.array([moved], dtype=object)))), 0.0)


def _strips() -> list[Strip]:
    zones = [
        Strip(f"{zone}{letter}", zone * 6.0 - 186.0, south, zone * 6.0 - 180.0, north)
        for zone in range(1, 61)
        for letter, south, north in (("N", 0.0, NORTH), ("S", SOUTH, 0.0))
    ]
    return [*zones, *(Strip(label, -180.0, south, 180.0, north) for label, (south, north) in _CAPS.items())]


def _from_west(strips: Sequence[Strip]) -> list[Strip]:
    """Around the earth from behind the widest gap, north before south, caps last."""
    columns = sorted({round((strip.west + 180.0) / 6.0) for strip in strips if not strip.is_cap})
    gaps = [(column - columns[at - 1] - 1) % 60 for at, column in enumerate(columns)]
    first = columns[max(range(len(gaps)), key=lambda at: (gaps[at], -at))] if columns else 0

    def place(strip: Strip) -> tuple[bool, float, bool]:
        return strip.is_cap, (round((strip.west + 180.0) / 6.0) - first) % 60, strip.north <= 0

    return sorted(strips, key=place)


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    """Without the lines and points that cutting leaves."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])


def _within(bounds: Bounds) -> Bounds:
    """Bounds that a raster's last half pixel, or rounding, takes past the poles or around the earth."""
    west, south, east, north = bounds
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    return west, max(south, -90.0), east, min(north, 90.0)
