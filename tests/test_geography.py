"""Geography: the antimeridian, the poles, borders of zones, places by name. Each building once, with its true area."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import antimeridian
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.windows
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer

from geoinfer.anywhere import make_any_job, run_any
from geoinfer.detection import pixel_area_m2
from geoinfer.earth import project, sphere_area
from geoinfer.errors import ConfigError, OutputError, RegionError, SourceError, TilesFailed
from geoinfer.formats import SortedRows, export, write_geoparquet
from geoinfer.grid import Grid, Window, tiles_of
from geoinfer.job import Execution, Job, make_job
from geoinfer.meridian import near, split
from geoinfer.pipeline import Run, run
from geoinfer.places import place_of
from geoinfer.region import Region, named_regions, region_on
from geoinfer.store import verify
from geoinfer.zones import Zones, find_in_zones, make_jobs, run_zones
from geoinfer.zones.match import match
from geoinfer.zones.plan import LONLAT, ZonePart, lonlat, plan_zones
from tests.standins import Failing, StandIn, write_scene

GEOD = Geod(ellps="WGS84")
MARGIN_M = 30.0
"""Longer than the painted buildings."""
SIZE = 0.5
"""Pixels of the rasters, metres."""


def geodesic_area(shape: shapely.Geometry) -> float:
    """Square metres on the ellipsoid; edges cut fine enough that geodesics follow them."""
    parts = shapely.get_parts(shapely.segmentize(shape, 1e-3))
    return sum(abs(GEOD.geometry_area_perimeter(part)[0]) for part in parts)


# --- the antimeridian


@given(
    st.floats(-179.99, 180.0),
    st.floats(-80, 80),
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-5, 5)), min_size=3, max_size=8, unique=True),
)
def test_a_polygon_is_cut_where_it_crosses_the_antimeridian(lon: float, lat: float, corners: list) -> None:
    hull = shapely.MultiPoint([(lon + x, lat + y) for x, y in corners]).convex_hull
    if hull.geom_type != "Polygon" or hull.area < 1.0:
        return
    jumping = shapely.transform(hull, lambda p: np.column_stack([(p[:, 0] + 180.0) % 360.0 - 180.0, p[:, 1]]))
    cut = split(np.array([jumping], dtype=object))[0]
    assert cut.is_valid
    assert cut.area == pytest.approx(hull.area, rel=1e-9)
    assert cut.bounds[0] >= -180.0
    assert cut.bounds[2] <= 180.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = antimeridian.fix_polygon(jumping, great_circle=False, fix_winding=True)
    if np.abs(np.abs(shapely.get_coordinates(jumping)[:, 0]) - 180.0).min() > 1e-6:
        assert shapely.symmetric_difference(cut, shapely.make_valid(theirs)).area <= 1e-5  # they round to 1e-7 degrees


def test_a_ring_around_a_pole_becomes_its_cap_and_others_stay_the_very_objects() -> None:
    around = Transformer.from_crs(32661, 4326, always_xy=True)
    circle = shapely.Point(2_000_000, 2_000_000).buffer(300_000, 64)
    holed = circle.difference(shapely.Point(2_000_000, 2_000_000).buffer(50_000, 64))
    apart = shapely.box(10, 20, 30, 40)
    rings = shapely.transform(np.array([circle, holed]), around.transform, interleaved=False)
    cap, ring, same = split(np.array([*rings, apart], dtype=object))
    assert same is apart
    assert cap.bounds[3] == 90.0
    assert (cap.bounds[0], cap.bounds[2]) == (-180.0, 180.0)
    assert geodesic_area(cap) == pytest.approx(circle.area, rel=0.02)  # UPS shrinks: 0.994 at the pole
    assert ring.bounds[3] < 90.0
    assert geodesic_area(ring) == pytest.approx(holed.area, rel=0.02)


# --- regions


@pytest.mark.parametrize(
    "bbox", [(170.0, -20.0, -170.0, -10.0), (170.0, -20.0, 190.0, -10.0), (-190.0, -20.0, -170.0, -10.0)]
)
def test_spellings_of_a_box_over_the_antimeridian_are_one(bbox: tuple[float, ...]) -> None:
    shape = lonlat(Region.from_bbox(bbox))
    expected = shapely.union(shapely.box(170, -20, 180, -10), shapely.box(-180, -20, -170, -10))
    assert shapely.equals(shape, expected)
    assert [part.label for part in plan_zones(None, Region.from_bbox(bbox))] == ["59S", "60S", "1S", "2S"]


@pytest.mark.parametrize(
    ("bbox", "crs", "expected"),
    [
        ((170.0, -20.0, -170.0, -10.0), "EPSG:4326", (-180.0, -15.0)),
        ((170.0, -20.0, 180.0, -10.0), "EPSG:4326", (175.0, -15.0)),
        ((-180.0, -90.0, 180.0, 90.0), "EPSG:4326", (0.0, 0.0)),
        ((499_990.0, 10.0, 500_010.0, 20.0), "EPSG:32630", (-3.0, 15 / 110_574)),
    ],
)
def test_the_centre_of_a_region(bbox: tuple, crs: str, expected: tuple[float, float]) -> None:
    assert Region.from_bbox(bbox, crs).centre == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("epsg", "lat"), [(32661, 89.99), (32761, -89.99)])
def test_a_region_around_a_pole_asks_for_the_pixels_whose_centre_lies_in_it(epsg: int, lat: float) -> None:
    grid = Grid(CRS.from_epsg(epsg), Affine(10.0, 0, 1_998_000.0, 0, -10.0, 2_001_500.0), 300, 400)
    south, north = (lat, 90.0) if lat > 0 else (-90.0, lat)
    found = region_on(Region.from_bbox((-180, south, 180, north)), grid)
    mask = found.mask(grid.window)
    assert mask is not None
    rows, cols = np.mgrid[:300, :400]
    x, y = 1_998_005.0 + 10 * cols, 2_001_495.0 - 10 * rows
    _, lats = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    clear = np.abs(np.abs(lats) - abs(lat)) > 1e-6
    assert np.array_equal(mask[clear], (np.abs(lats) > abs(lat))[clear])
    assert found.covers == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(RegionError, match="outside all imagery"):
        region_on(Region.from_bbox((0, -10, 10, 10)), grid)


@pytest.mark.parametrize("bbox", [(-180, -90, 180, 90), (-180, 80, 180, 90), (-5, -85.06, 5, 85.06)])
def test_latitudes_of_ninety_and_of_web_mercators_end_stay_finite(bbox: tuple[float, ...]) -> None:
    limit = 20_037_508.342789244
    grid = Grid(CRS.from_epsg(3857), Affine(1000.0, 0, -2e6, 0, -1000.0, limit), 40_075, 4_000)
    found = region_on(Region.from_bbox(bbox), grid)
    assert found.window.height <= grid.height
    assert found.window.width <= grid.width
    zones = plan_zones(None, Region.from_bbox(bbox))
    assert sum(sphere_area(zone.core.geometry) for zone in zones) == pytest.approx(sphere_area(shapely.box(*bbox)), rel=1e-9)


def test_a_region_in_a_projected_system_is_cut_by_zone() -> None:
    region = Region.from_bbox((-3e5, -2e5, 3e5, 2e5), "+proj=laea +lon_0=180 +lat_0=0 +datum=WGS84")
    zones = plan_zones(None, region)
    assert [zone.label for zone in zones] == ["60N", "60S", "1N", "1S"]
    areas = [geodesic_area(zone.core.geometry) for zone in zones]
    assert sum(areas) == pytest.approx(6e5 * 4e5, rel=1e-3)
    assert areas == pytest.approx([6e10] * 4, rel=1e-3)


def places_file(folder: Path) -> Path:
    def feature(name: str | None, box: tuple[float, float, float, float], **more: object) -> dict:
        shape = json.loads(shapely.to_geojson(shapely.box(*box)))
        return {"type": "Feature", "properties": {"Name": name, **more}, "geometry": shape}

    features = [
        feature("Osu", (0, 0, 1, 1), ward=1),
        feature("Labone", (1, 0, 2, 1), ward=2),
        feature("Osu", (5, 5, 6, 6), ward=1),
        feature(None, (8, 8, 9, 9), ward=3),
    ]
    path = folder / "places.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "parquet"])
def test_a_file_of_named_places_gives_each_by_name(tmp_path: Path, suffix: str) -> None:
    path = places_file(tmp_path)
    if suffix != "geojson":
        frame = gpd.read_file(path)
        path = path.with_suffix(f".{suffix}")
        frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    names = dict(named_regions(path))
    assert list(names) == ["Osu", "Labone"]
    assert names["Osu"].geometry.area == pytest.approx(2.0)  # features of one name are one place
    assert Region.from_file(path).geometry.area == pytest.approx(4.0)
    assert Region.from_file(path, places=["Labone"]).geometry.bounds == (1, 0, 2, 1)
    assert [name for name, _ in named_regions(path, key="ward")] == ["1", "2", "3"]
    with pytest.raises(ConfigError, match=r"place 'Labbone': none of the 2 places.*Labone"):
        Region.from_file(path, places=["Labbone"])
    with pytest.raises(SourceError, match=r"no polygon has a property 'district'.*Name"):
        named_regions(path, key="district")


def test_a_footprint_belongs_to_the_place_of_its_centre_else_to_one_it_meets(tmp_path: Path) -> None:
    places = named_regions(places_file(tmp_path))
    shapes = [(0.9, 0.2, 1.2, 0.3), (0.7, 0.2, 1.1, 0.3), (1.9, 0.9, 2.3, 1.3), (5.5, 5.5, 5.6, 5.6), (7, 7, 7.1, 7.1)]
    boxes = np.array([shapely.box(*box) for box in shapes], dtype=object)
    expected = ["Labone", "Osu", "Labone", "Osu", None]
    assert place_of(boxes, LONLAT, places) == expected
    mercator = Transformer.from_crs(4326, 3857, always_xy=True).transform
    assert place_of(shapely.transform(boxes, mercator, interleaved=False), CRS.from_epsg(3857), places) == expected


# --- the plan


@given(st.floats(-180, 180), st.floats(-89, 88), st.floats(0.01, 40), st.floats(0.01, 5), st.floats(1, 5000))
def test_zones_share_a_region_out_and_each_looks_a_margin_beyond(
    lon: float, lat: float, width: float, height: float, margin_m: float
) -> None:
    corners = (round(value, 9) for value in (lon, lat, lon + width, min(lat + height, 90.0)))  # a plan rounds to 1e-12
    region = Region(shapely.box(*corners), LONLAT)
    zones = plan_zones(None, region, margin_m=margin_m)
    assert sum(sphere_area(zone.core.geometry) for zone in zones) == pytest.approx(sphere_area(region.geometry), rel=1e-6)
    for at, zone in enumerate(zones):
        core, grown = near(zone.core.geometry, zone.strip.centre), near(zone.grown.geometry, zone.strip.centre)
        assert shapely.difference(core, grown).area <= 1e-12
        assert all(other.label != zone.label for other in zones[:at])
        assert zone.crs == plan_zones(None, Region(zone.core.geometry, LONLAT))[0].crs  # of the place alone
        outside = near(region.geometry, zone.strip.centre).difference(grown)
        if outside.area > 1e-9 and not zone.strip.is_cap:  # what is not looked at is a margin away from the strip
            there, here = shapely.get_coordinates(shapely.shortest_line(outside, zone.strip.shape()))
            assert GEOD.inv(*there, *here)[2] >= 0.98 * margin_m


def test_the_earth_takes_sixty_zones_twice_and_two_caps() -> None:
    zones = plan_zones((-180, -90, 180, 90), None)
    assert len(zones) == 122
    assert len({zone.folder for zone in zones}) == 122
    assert [zone.folder for zone in zones[-2:]] == ["EPSG_32661", "EPSG_32761"]
    with pytest.raises(ConfigError, match="give a --bbox"):
        plan_zones(None, None)


@pytest.mark.parametrize("corner", [(6.0, 50.0), (180.0, -17.0), (36.0, 0.0), (12.0, 84.0), (-66.0, -80.0)])
def test_the_pixels_that_zones_answer_for_have_the_area_of_the_region(corner: tuple[float, float]) -> None:
    lon, lat = corner
    wide = 0.02 / math.cos(math.radians(lat))
    region = Region.from_bbox((lon - wide, lat - 0.02, lon + wide, lat + 0.017))
    total = 0.0
    for zone in plan_zones(None, region):
        minx, miny, maxx, maxy = project(zone.grown.geometry, LONLAT, zone.crs).bounds
        grid = Grid(
            zone.crs, Affine(1.0, 0, math.floor(minx), 0, -1.0, math.ceil(maxy)), int(maxy - miny) + 2, int(maxx - minx) + 2
        )
        core = region_on(zone.core, grid)
        for window in (tile.window.intersection(core.window) for tile in tiles_of(core.window, 512, 1)):
            mask = core.mask(window)
            pixels = window.height * window.width if mask is None else int(mask.sum())
            total += pixels * pixel_area_m2(grid, window) if pixels else 0.0
    assert total == pytest.approx(geodesic_area(region.geometry), rel=1e-3)


def test_grids_keep_the_datum_of_the_imagery() -> None:
    region = Region.from_bbox((-126.01, 40, -125.99, 40.01))
    assert [zone.crs.to_epsg() for zone in plan_zones(None, region, datum=CRS.from_epsg(4269))] == [26909, 26910]


# --- which zone keeps what


def seen_by(zone: ZonePart, houses: Sequence[shapely.Geometry], rng: np.random.Generator, path: Path) -> list[int]:
    """Write what a zone sees of houses in degrees: those it looks at, each a little off; which houses its rows are."""
    grown = near(zone.grown.geometry, 0.0)
    chosen = [at for at, house in enumerate(houses) if grown.intersects(house)]
    move = Transformer.from_crs(4326, zone.crs, always_xy=True).transform
    shapes = [shapely.transform(houses[at].intersection(grown), move, interleaved=False) for at in chosen]
    shapes = [shapely.affinity.translate(shape, *rng.uniform(-0.3, 0.3, 2)) for shape in shapes]
    frame = gpd.GeoDataFrame({"id": [f"{at:016x}" for at in chosen]}, geometry=shapes, crs=zone.crs)
    rows = SortedRows(path.parent, path.name, frame)
    rows.add(frame, np.arange(len(frame)).astype(np.uint64))
    with path.open("wb") as file:
        write_geoparquet(file, rows, zone.crs)
    return chosen


@pytest.mark.parametrize("corner", [(6.0, 50.0), (12.0, 0.0), (6.0, 84.0), (0.0, 0.0)])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_building_is_kept_by_one_zone(tmp_path_factory: pytest.TempPathFactory, corner: tuple, seed: int) -> None:
    """Houses in a row and houses apart around a point where two to four zones meet; all see them a little differently."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("match")
    metre_y, metre_x = 1 / 111_000, 1 / (111_000 * math.cos(math.radians(corner[1])))
    houses = []
    for row in range(-6, 7):
        x = -150.0
        while x < 150.0:
            wide, tall = rng.uniform(4, 25), rng.uniform(4, 14)
            box = (x * metre_x, row * 16 * metre_y, (x + wide) * metre_x, (row * 16 + tall) * metre_y)
            houses.append(shapely.affinity.translate(shapely.box(*box), *corner))
            x += wide + rng.choice([0.8, 12.0])
    west, south, east, north = shapely.total_bounds(np.array(houses))
    zones = plan_zones(None, Region.from_bbox((west - 0.001, south - 0.001, east + 0.001, north + 0.001)), margin_m=60.0)
    files = [folder / f"{zone.folder}.parquet" for zone in zones]
    rows = [seen_by(zone, houses, rng, file) for zone, file in zip(zones, files, strict=True)]
    lost = match(zones, files)
    kept = [
        at for zone, there in enumerate(rows) for row, at in enumerate(there) if row not in set(lost[zone].rows.tolist())
    ]
    assert sorted(kept) == list(range(len(houses)))
    for zone in range(len(zones)):
        assert all(keeper != zone for keeper in lost[zone].keeper.tolist())


# --- runs


@dataclass(frozen=True)
class Town:
    """Rasters in degrees around a point where zones meet, and the houses painted on them."""

    paths: list[str]
    region: Region
    houses: list[shapely.Geometry]
    """In degrees around the centre's longitude."""
    centre: tuple[float, float]

    def make(self, crs: CRS, region: Region) -> Job:
        return make_job(self.paths, model=StandIn(), region=region, grid_crs=crs)

    def zones(self) -> Zones:
        return make_jobs(self.make, self.region, margin_m=MARGIN_M)


def build(folder: Path, centre: tuple[float, float], height: int = 420, width: int = 460, seed: int = 0) -> Town:
    """Houses on a slant lattice, the middle ones on the border; two rasters where the antimeridian runs between them."""
    rng = np.random.default_rng(seed)
    lon, lat = centre
    tall, wide = SIZE / 111_100, SIZE / (111_320 * math.cos(math.radians(lat)))
    west, north = lon - width / 2 * wide, lat + height / 2 * tall
    pixels = rng.integers(20, 60, (3, height, width)).astype(np.uint8)
    houses = []
    for row in range(24, height - 50, 58):
        for col in range(20, width - 60, 66):
            r, c = row + int(rng.integers(0, 9)), col + int(rng.integers(0, 9))
            h, w = (int(v) for v in rng.integers(18, 44, 2))
            pixels[:, r : r + h, c : c + w] = rng.integers(205, 245)
            houses.append(shapely.box(west + c * wide, north - (r + h) * tall, west + (c + w) * wide, north - r * tall))
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"scene.tif": (pixels, west)}
    if abs(lon) == 180.0:
        middle = width // 2
        halves = {"west.tif": (pixels[:, :, :middle], west), "east.tif": (pixels[:, :, middle:], -180.0)}
    paths = [
        str(write_scene(folder / name, part, crs="EPSG:4326", transform=Affine(wide, 0, left, 0, -tall, north)))
        for name, (part, left) in halves.items()
    ]
    inset = 8
    bounds = (
        west + inset * wide,
        north - (height - inset) * tall,
        west + (width - inset) * wide,
        north - inset * tall,
    )
    return Town(paths, Region.from_bbox(bounds), houses, centre)


def around(frame: gpd.GeoDataFrame, lon: float) -> np.ndarray:
    """Shapes in degrees, in one piece around a longitude."""
    return np.array([near(shape, lon) for shape in frame.geometry.to_crs(4326)], dtype=object)


def check(found: Run, town: Town) -> gpd.GeoDataFrame:
    """What must hold of a run over zones."""
    frame, rejected = found.read(), gpd.read_parquet(found.directory.rejected)
    coverage, manifest = gpd.read_parquet(found.directory.coverage), found.manifest
    shapes = around(frame, town.centre[0])
    near_one = shapely.STRtree(town.houses).query(shapes, predicate="intersects")
    assert sorted(near_one[1].tolist()) == list(range(len(town.houses))), "each house is found, and none twice"
    assert sorted(near_one[0].tolist()) == list(range(len(frame))), "nothing else is found"
    assert not frame["truncated"].any()
    assert frame["id"].is_unique
    assert rejected["id"].is_unique
    for shape, area_m2 in zip(frame.geometry, frame["area_in_meters"], strict=True):
        assert area_m2 == pytest.approx(geodesic_area(shape), rel=1e-3)
        assert shape.is_valid
        assert shape.bounds[0] >= -180.0
        assert shape.bounds[2] <= 180.0
    counts = manifest["footprints"]
    assert counts["raw"] == counts["accepted"] + sum(counts["rejected"].values())
    assert (counts["accepted"], sum(counts["rejected"].values())) == (len(frame), len(rejected))
    zones = manifest["zones"]
    assert counts["raw"] == sum(zone["footprints"]["raw"] for zone in zones)
    assert counts["rejected"]["other_zone"] > 0
    parts = coverage[["done_m2", "nodata_m2", "masked_m2", "failed_m2"]].sum(axis=1)
    assert np.allclose(parts, coverage["area_m2"], rtol=1e-12)
    assert coverage["area_m2"].sum() == pytest.approx(manifest["area_m2"]["asked"], rel=1e-9)
    edges_m = 4 * 900 * SIZE  # of the region and of the borders within, from both sides
    assert abs(manifest["area_m2"]["asked"] - geodesic_area(town.region.geometry)) < edges_m * SIZE / 2  # half a pixel
    assert manifest["region_covers"] == pytest.approx(1.0, abs=1e-6)
    assert coverage["tile"].is_unique
    return frame


PLACES = {
    "between zones": (6.0, 50.0),
    "antimeridian": (180.0, -17.0),
    "north end of UTM": (15.0, 84.0),
    "south end of UTM": (-63.0, -80.0),
    "equator": (33.0, 0.0),
    "four zones": (36.0, 0.0),
    "three zones": (12.0, 84.0),
}


@pytest.mark.parametrize("place", PLACES)
def test_over_a_border_each_building_is_found_once_with_its_area(tmp_path: Path, place: str) -> None:
    town = build(tmp_path, PLACES[place])
    zones = town.zones()
    found = run_zones(zones, tmp_path / "run", execution=Execution(tile=3))
    frame = check(found, town)
    assert len(zones.jobs) == {"four zones": 4, "three zones": 3}.get(place, 2)
    assert len({name.partition("-")[0] for name in frame["id"]}) >= 2, "both sides keep some"
    verified = json.loads(found.directory.manifest.read_text())
    assert verified["state"] == "done"
    assert pq.read_metadata(found.footprints).num_rows == len(frame)


def test_over_a_border_the_buildings_are_those_of_one_grid(tmp_path: Path) -> None:
    """Found apart and joined, or on one grid: the same, but for the half pixel that another grid moves an outline."""
    town = build(tmp_path, (6.0, 50.0))
    joined = find_in_zones(town.zones())
    single = run(make_job(town.paths, model=StandIn(), region=town.region), tmp_path / "one").read()
    ours, theirs = around(joined, 6.0), around(single, 6.0)
    assert len(ours) == len(theirs)
    left, right = shapely.STRtree(theirs).query(ours, predicate="intersects")
    common = shapely.area(shapely.intersection(ours[left], theirs[right]))
    assert len(left) == len(ours)
    assert (common / shapely.area(shapely.union(ours[left], theirs[right])) > 0.85).all()


def test_tiles_do_not_change_a_run_over_zones(tmp_path: Path) -> None:
    town = build(tmp_path, (36.0, 0.0), 190, 210)
    zones = town.zones()
    found = [run_zones(zones, tmp_path / str(tile), execution=Execution(tile=tile)) for tile in (2, 5)]
    for name in ("footprints.parquet", "rejected.parquet"):
        assert (found[0].directory.root / name).read_bytes() == (found[1].directory.root / name).read_bytes()
    two, five = (one.manifest for one in found)
    assert two["fingerprint"] == five["fingerprint"]
    assert two["area_m2"] == pytest.approx(five["area_m2"], rel=1e-6)  # a pixel's area is taken at its tile's centre


def test_an_output_system_can_be_chosen_and_geojson_is_cut(tmp_path: Path) -> None:
    town = build(tmp_path, (180.0, -17.0))
    metric = run_zones(town.zones(), tmp_path / "run", crs=CRS.from_epsg(3832)).read()  # the Pacific, in one piece
    assert metric.crs == CRS.from_epsg(3832)
    assert (metric.geometry.geom_type == "Polygon").all()
    export(tmp_path / "run" / "footprints.parquet", tmp_path / "found.geojson")
    features = json.loads((tmp_path / "found.geojson").read_text())["features"]
    kinds = {feature["geometry"]["type"] for feature in features}
    assert kinds == {"Polygon", "MultiPolygon"}
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert all(part.bounds[2] - part.bounds[0] < 0.01 for part in shapely.get_parts(shape))


def test_one_zone_is_an_ordinary_run(tmp_path: Path) -> None:
    town = build(tmp_path, (9.0, 50.0), 200, 220)
    zones = town.zones()
    assert [zone.part.folder for zone in zones.jobs] == ["EPSG_32632"]
    ours = run_zones(zones, tmp_path / "zones")
    theirs = run(town.make(CRS.from_epsg(32632), town.region), tmp_path / "plain")
    for name in ("footprints.parquet", "rejected.parquet", "coverage.parquet"):
        assert (ours.directory.root / name).read_bytes() == (theirs.directory.root / name).read_bytes()
    assert ours.manifest["fingerprint"] == theirs.manifest["fingerprint"]


def test_a_finished_run_is_returned_another_refused_and_overwritten(tmp_path: Path) -> None:
    town, other = build(tmp_path / "a", (6.0, 50.0), 180, 200), build(tmp_path / "b", (12.0, 50.0), 180, 200)
    first = run_zones(town.zones(), tmp_path / "run")
    stamp = first.footprints.stat().st_mtime_ns
    again = run_zones(town.zones(), tmp_path / "run")
    assert again.resumed == again.manifest["tiles"]["total"] == first.manifest["tiles"]["total"]
    assert again.footprints.stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="another job"):
        run_zones(other.zones(), tmp_path / "run")
    swapped = run_zones(other.zones(), tmp_path / "run", overwrite=True)
    assert {path.name for path in (tmp_path / "run" / "zones").iterdir()} == {"EPSG_32632", "EPSG_32633"}
    assert swapped.manifest["fingerprint"] != first.manifest["fingerprint"]


def test_a_zone_without_imagery_is_left_out_and_its_region_counts_as_not_covered(tmp_path: Path) -> None:
    town = build(tmp_path, (6.0, 50.0), 180, 200)
    west, south, east, north = town.region.geometry.bounds
    wide = Region.from_bbox((west, south, east + 6.0, north))
    zones = make_jobs(town.make, wide, margin_m=MARGIN_M)
    assert [zone.part.label for zone in zones.jobs] == ["31N", "32N"]
    assert zones.covers == pytest.approx((east - west) / (east - west + 6.0), rel=0.1)  # the imagery's box is a little wider
    with pytest.raises(RegionError):
        make_jobs(town.make, Region.from_bbox((40, 10, 47, 11)), margin_m=MARGIN_M)


KILLED = """
import sys
from pathlib import Path
from geoinfer.job import Execution
from geoinfer.zones import run_zones
from tests.test_geography import build
folder = Path(sys.argv[1])
run_zones(build(folder, (6.0, 50.0), 260, 300).zones(), folder / "killed", execution=Execution(tile=1, in_flight=1))
"""


@pytest.mark.kill
@pytest.mark.parametrize(
    "failpoint", ["tile_replaced:3", "zone_done:1", "tile_replaced:60", "spilled", "rejected_replaced:3"]
)
def test_a_run_killed_within_a_zone_or_between_resumes_to_the_same(tmp_path: Path, failpoint: str) -> None:
    code = "import geoinfer.formats\ngeoinfer.formats.SPILL_ROWS = 5\n" + KILLED if failpoint == "spilled" else KILLED
    script = [sys.executable, "-c", code, str(tmp_path)]
    home = Path(__file__).parents[1]
    environment = {**os.environ, "GEOINFER_FAILPOINT": failpoint, "PYTHONPATH": str(home)}
    died = subprocess.run(script, env=environment, cwd=home, capture_output=True, check=False, timeout=120)
    town = build(tmp_path, (6.0, 50.0), 260, 300)
    execution = Execution(tile=1)
    resumed = run_zones(town.zones(), tmp_path / "killed", execution=execution)
    whole = run_zones(town.zones(), tmp_path / "whole", execution=execution)
    assert died.returncode == -9, died.stderr.decode()
    assert resumed.resumed > 0
    for name in ("footprints.parquet", "rejected.parquet", "coverage.parquet"):
        assert (resumed.directory.root / name).read_bytes() == (whole.directory.root / name).read_bytes()


# --- what else a run has to do, over zones as well


def test_a_raster_too_wide_for_one_grid_is_cut_by_zone(tmp_path: Path) -> None:
    """Sixty degrees of a sparse raster with a town in it: nothing names zones, and only those asked for are opened."""
    town = build(tmp_path, (6.0, 50.0), 260, 300)
    path, (west, _, _, north) = tmp_path / "wide.tif", town.region.geometry.bounds
    with rasterio.open(town.paths[0]) as small:
        pixels, transform = small.read(), small.transform
    columns = 2 * round(32.0 / transform.a / 16) * 16
    left = round((transform.c - (6.0 - 32.0)) / transform.a)
    placed = Affine(transform.a, 0, transform.c - left * transform.a, 0, transform.e, transform.f)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 260, "width": columns, "crs": "EPSG:4326"}
    with rasterio.open(path, "w", **profile, transform=placed, nodata=0, tiled=True, SPARSE_OK=True) as file:
        file.write(pixels, window=rasterio.windows.Window(left, 0, 300, 260))
    job = make_any_job(str(path), model=StandIn(), region=town.region)
    assert isinstance(job, Zones)
    assert [zone.part.folder for zone in job.jobs] == ["EPSG_32631", "EPSG_32632"]
    frame = check(run_any(job, tmp_path / "run"), town)
    assert frame.crs == LONLAT
    one = make_any_job(str(path), model=StandIn(), bbox=(west, north - 0.0005, 5.9999, north))
    assert isinstance(one, Zones)
    assert len(one.jobs) == 1


def test_layers_that_touch_one_zone_only_raise_no_alarm_and_act_once(tmp_path: Path) -> None:
    town = build(tmp_path, (6.0, 50.0), 260, 300)
    lake = gpd.GeoDataFrame({"k": [1]}, geometry=[shapely.box(5.9, 49.9, 5.9997, 50.1)], crs=4326)
    lake.to_file(tmp_path / "lake.gpkg")
    told: list[str] = []

    def make(crs: CRS, region: Region) -> Job:
        masks = [f"{tmp_path / 'lake.gpkg'}:name=lake,action=skip,max_cover=0.5"]
        return make_job(town.paths, model=StandIn(), region=region, grid_crs=crs, masks=masks)

    execution = Execution(tile=2, strict_masks=True, mask_alarm=0.9)
    found = run_zones(
        make_jobs(make, town.region, margin_m=MARGIN_M), tmp_path / "run", execution=execution, warn=told.append
    )
    assert told == []
    plain = run_zones(town.zones(), tmp_path / "plain", execution=Execution(tile=2))
    kept, before = found.read(), plain.read()
    inside = shapely.area(shapely.intersection(before.geometry, lake.geometry.iloc[0])) / shapely.area(before.geometry) > 0.5
    assert 0 < inside.sum() < len(before)
    assert set(kept["id"]) == set(before["id"][~inside])
    area = found.manifest["area_m2"]
    assert area["masked"] > 0
    assert area["asked"] == pytest.approx(plain.manifest["area_m2"]["asked"], rel=1e-9)
    assert found.manifest["masks"][0]["name"] == "lake"


def test_tiles_that_fail_in_a_zone_fail_the_whole_and_are_tried_again(tmp_path: Path) -> None:
    town = build(tmp_path, (6.0, 50.0), 260, 300)
    zones = town.zones()
    second = zones.jobs[1]
    at = second.core.window
    broken = Failing(second.job.source, Window(at.row, at.stop_col - 40, 40, 40), SourceError)
    spoilt = replace(zones, jobs=(zones.jobs[0], replace(second, job=replace(second.job, source=broken))))
    with pytest.raises(TilesFailed, match=r"of \d+ tiles failed"):
        run_zones(spoilt, tmp_path / "run", execution=Execution(tile=2))
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["state"] == "failed"
    assert manifest["area_m2"]["failed"] > 0
    healed = run_zones(zones, tmp_path / "run", execution=Execution(tile=2))
    assert healed.resumed == healed.manifest["tiles"]["total"] - manifest["tiles"]["failed"]
    check(healed, town)
    assert verify(healed.directory) == []


def test_an_ordinary_run_in_degrees_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    town = build(tmp_path, (180.0, -17.0), 180, 200)
    job = make_job(town.paths, model=StandIn(), region=town.region, grid_crs=CRS.from_epsg(32760), crs=4326)
    found = run(job, tmp_path / "run")
    for frame in (found.read(), gpd.read_parquet(found.directory.coverage)):
        assert frame.geometry.is_valid.all()
        for shape in frame.geometry:
            assert all(part.bounds[2] - part.bounds[0] < 0.01 for part in shapely.get_parts(shape))
    assert (found.read().geom_type == "MultiPolygon").any()


def test_footprints_name_their_place_over_zones_and_without(tmp_path: Path) -> None:
    town = build(tmp_path, (6.0, 50.0), 200, 240)
    west, south, east, north = town.region.geometry.bounds
    middle = (south + north) / 2
    named = {"Upper": (west, middle, east, north), "Lower": (west, south, east, middle), "Far": (20.0, 20.0, 21.0, 21.0)}
    frame = gpd.GeoDataFrame({"name": list(named)}, geometry=[shapely.box(*box) for box in named.values()], crs=4326)
    frame.to_file(tmp_path / "wards.geojson")
    places = tuple(named_regions(tmp_path / "wards.geojson", ["Upper", "Lower"]))
    wards = Region.from_file(tmp_path / "wards.geojson", ["Upper", "Lower"])

    def make(crs: CRS, region: Region) -> Job:
        return replace(town.make(crs, region), places=places)

    joined = find_in_zones(make_jobs(make, wards, margin_m=MARGIN_M))
    plain = make_job(town.paths, model=StandIn(), region=tmp_path / "wards.geojson", places=["Upper", "Lower"])
    single = run(plain, tmp_path / "run").read()
    for found in (joined, single):
        above = shapely.get_y(shapely.centroid(np.asarray(found.geometry.to_crs(4326)))) > middle
        assert found["place"].tolist() == np.where(above, "Upper", "Lower").tolist()
        assert len(set(found["place"])) == 2
