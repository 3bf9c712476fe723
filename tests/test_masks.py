"""What layers do to footprints: exact shares, each footprint out once, and a meter that tells how much is false."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import scipy.stats
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS
from shapely.affinity import rotate

from geoinfer.errors import ConfigError
from geoinfer.evaluation import outcomes
from geoinfer.grid import Grid, Window
from geoinfer.masks import cover, meter
from geoinfer.masks.apply import LayerCount, Masked, MaskWarning, apply_masks, mask_footprints
from geoinfer.masks.cover import cores_inside, covered_share, uncovered
from geoinfer.masks.layer import MaskLayer
from geoinfer.masks.meter import Meter, density_interval, layer_pixels, poisson_interval, student_quantile
from geoinfer.masks.prepare import PreparedLayer
from geoinfer.scenes import Scene, generate_scene
from geoinfer.vector import finish, polygonize
from geoinfer.vector.footprints import identifiers, square_metres_per_unit
from tests import oracles

pytestmark = pytest.mark.fast
UTM = "EPSG:32631"
CORNER = np.array([480_000.0, 5_800_000.0])
SIDE = 400.0
"""Metres: features and footprints lie in a square of this side."""


def prepared(path: Path, features: list[shapely.Polygon], cell: float | None = 37.0, **settings: Any) -> PreparedLayer:
    """A layer as `prepare` makes it: features cut along a lattice into pieces, in a FlatGeobuf."""
    parts, owner = [], []
    for number, feature in enumerate(features):
        cut = [feature] if cell is None else [shapely.intersection(feature, box) for box in _cells(feature, cell)]
        pieces = [piece for piece in shapely.get_parts(cut) if piece.geom_type == "Polygon" and piece.area > 0]
        parts += pieces
        owner += [number] * len(pieces)
    settled = {"name": "water", "action": "drop", "max_cover": 0.5, "negative": True, "version": "sha256:12", **settings}
    layer = MaskLayer(source=path.name, buffer_m=0.0, crs=None, column=None, classes=None, kind="vector", **settled)
    if not parts:
        return PreparedLayer(layer, path, 0, 0, {}, 0, None, None)
    piece = [at for _, group in itertools.groupby(owner) for at, _ in enumerate(group)]
    table = gpd.GeoDataFrame({"feature": np.array(owner), "piece": np.array(piece, np.int32)}, geometry=parts, crs=UTM)
    shuffled = table.sample(frac=1.0, random_state=1)  # a reader must not lean on the file's order
    pyogrio.write_dataframe(shuffled, path, driver="FlatGeobuf")
    bounds = tuple(table.total_bounds.tolist())
    return PreparedLayer(layer, path, len(features), 0, {}, len(parts), bounds, bounds)


def _cells(feature: shapely.Polygon, cell: float) -> list[shapely.Polygon]:
    minx, miny, maxx, maxy = feature.bounds
    xs, ys = (np.arange(math.floor(a / cell), math.ceil(b / cell) + 1) * cell for a, b in ((minx, maxx), (miny, maxy)))
    return [shapely.box(x, y, x + cell, y + cell) for x in xs for y in ys]


def random_features(seed: int, most: int = 8) -> list[shapely.Polygon]:
    """Lakes of all sizes, some with an island, some across others."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(int(rng.integers(0, most + 1))):
        centre, radius = CORNER + rng.uniform(0, SIDE, 2), rng.uniform(2, 120)
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        reach = radius * rng.uniform(0.5, 1.0, 12)
        shore = shapely.Polygon(centre + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)).buffer(0)
        if rng.random() < 0.3:
            shore = shore.difference(shapely.Point(centre).buffer(radius / 4))
        found += [part for part in shapely.get_parts(shore) if part.area > 0]
    return found


def random_footprints(seed: int, count: int = 40) -> np.ndarray:
    """Turned rectangles, and boxes whose edges lie on the lattice that the pieces were cut along."""
    rng = np.random.default_rng(seed)
    shapes = []
    for x, y, long, wide, angle in rng.uniform((0, 0, 2, 2, 0), (SIDE, SIDE, 30, 12, 90), (count, 5)):
        shapes.append(rotate(lake(x, y, long, wide), angle))
    for cell in rng.integers(0, 10, (count // 4, 2)):
        at = (np.floor(CORNER / 37) + cell) * 37
        shapes.append(shapely.box(*at, *(at + rng.choice([5, 37, 50], 2))))
    return np.array(shapes, object)


def lake(x: float = 0.0, y: float = 0.0, wide: float = 100.0, tall: float = 100.0) -> shapely.Polygon:
    """A box from a corner of the square, metres."""
    left, bottom = CORNER + np.array([x, y])
    return shapely.box(left, bottom, left + wide, bottom + tall)


def frame_of(shapes: Any, **columns: Any) -> gpd.GeoDataFrame:
    """Footprints with the columns that masks look at."""
    frame = gpd.GeoDataFrame({"id": [f"{n:04d}" for n in range(len(shapes))], **columns}, geometry=list(shapes), crs=UTM)
    centres = frame.centroid
    factor = square_metres_per_unit(frame.crs, centres.x.to_numpy(), centres.y.to_numpy())
    frame["area_in_meters"] = frame.area.to_numpy() * factor
    return frame


def same_frames(a: gpd.GeoDataFrame, b: gpd.GeoDataFrame) -> bool:
    """Every cell, bit for bit."""
    plain = [pd.DataFrame(frame.drop(columns="geometry")) for frame in (a, b)]
    wkb = [shapely.to_wkb(np.array(frame.geometry.array)).tolist() for frame in (a, b)]
    return plain[0].equals(plain[1]) and wkb[0] == wkb[1]


# Shares


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 37.0, 11.0]))
def test_the_covered_share_is_that_of_the_union_of_all_features(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cell: float | None
) -> None:
    features, shapes = random_features(seed), random_footprints(seed + 1)
    layer = prepared(tmp_path_factory.mktemp("layer") / "water.fgb", features, cell)
    share = covered_share(shapes, layer)
    expected = oracles.covered_share(shapes, features)
    np.testing.assert_allclose(share, expected, atol=1e-8)  # vertices on seams are rounded to 1e-9 m
    assert (share[expected == 0] == 0).all()
    union = shapely.union_all(features)
    assert (share[shapely.contains_properly(union, shapes)] == 1).all()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.sampled_from([1, 3, 1000]),
    st.integers(1, 3),
)
def test_the_share_of_a_footprint_depends_on_it_and_the_layer_alone(
    tmp_path_factory: pytest.TempPathFactory, seed: int, footprints: int, pieces: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    # Small pieces: with three and more of a footprint, sums and unions depend on their order.
    layer = prepared(tmp_path_factory.mktemp("layer") / "water.fgb", random_features(seed), 7.0)
    shapes = random_footprints(seed + 1)
    alone = np.concatenate([covered_share(shapes[n : n + 1], layer) for n in range(len(shapes))])
    chosen = rng.permutation(len(shapes))[: rng.integers(1, len(shapes) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cover, "FOOTPRINTS_AT_ONCE", footprints)
        patch.setattr(cover, "PIECES_AT_ONCE", pieces)
        together = covered_share(shapes[chosen], layer, threads=threads)
        outside = uncovered(shapes[chosen], layer, threads=threads)
    assert together.tobytes() == alone[chosen].tobytes()
    single = [uncovered(shapes[n : n + 1], layer)[0] for n in chosen]
    assert shapely.to_wkb(outside).tolist() == shapely.to_wkb(single).tolist()


def test_groups_are_bounded_in_footprints_and_in_pieces_expected(tmp_path: Path) -> None:
    features = [lake(x, y, 1, 1) for x in range(0, 400, 10) for y in range(0, 400, 10)]
    layer = prepared(tmp_path / "water.fgb", features, None)
    shapes = random_footprints(5, 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cover, "FOOTPRINTS_AT_ONCE", 50)
        patch.setattr(cover, "PIECES_AT_ONCE", 40)
        groups = list(cover._groups(shapely.bounds(shapes), layer))
    assert max(len(group) for group in groups) <= 50
    boxes = [tuple(shapely.total_bounds(shapes[group]).tolist()) for group in groups if len(group) > 1]
    assert max(len(layer.read(box).shapes) for box in boxes) <= 80  # edges, and not quite even
    met = np.flatnonzero(shapely.intersects(shapely.envelope(shapes), shapely.box(*layer.bounds)))
    assert sorted(np.concatenate(groups).tolist()) == met.tolist()


def test_nothing_near_is_0_inside_is_1_and_a_touch_is_no_cover(tmp_path: Path) -> None:
    layer = prepared(tmp_path / "water.fgb", [lake(), lake(100, 0)], 25.0)
    inside, across_seams, across_features = lake(3, 3, 7, 9), lake(20.3, 20.7, 61.1, 57.3), lake(90.1, 40.2, 20.3, 13.7)
    touching, far, half = lake(-10, 10, 10, 10), lake(900, 900, 10, 10), lake(-5, 10, 10, 10)
    shapes = np.array([inside, across_seams, across_features, touching, far, half, lake(), shapely.Polygon(), None], object)
    assert covered_share(shapes, layer).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0, 0.0]
    assert covered_share(shapes[:0], layer).tolist() == []


def test_turned_seams_leave_no_gap(tmp_path: Path) -> None:
    wide = rotate(lake(0, 0, 300, 300), 31.7)
    layer = prepared(tmp_path / "water.fgb", [wide], 7.3)
    shapes = np.array([rotate(lake(x, x, 17, 9), 3 * x) for x in range(80, 200, 7)], object)
    assert set(covered_share(shapes, layer)) == {1.0}


def test_features_that_overlap_count_once(tmp_path: Path) -> None:
    layer = prepared(tmp_path / "water.fgb", [lake(0, 0, 60, 100), lake(40, 0, 60, 100), lake(0, 0, 60, 100)], 25.0)
    share = covered_share(np.array([lake(-100, 0, 200, 100)], object), layer)
    assert share[0] == pytest.approx(0.5, abs=1e-12)


def test_an_empty_layer_covers_nothing(tmp_path: Path) -> None:
    layer = prepared(tmp_path / "water.fgb", [])
    shapes = random_footprints(3)
    assert not covered_share(shapes, layer).any()
    assert uncovered(shapes, layer).tolist() == shapes.tolist()
    assert not cores_inside(shapes, layer).any()


@given(st.integers(0, 2**32 - 1))
def test_covered_and_uncovered_make_the_whole(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    features, shapes = random_features(seed), random_footprints(seed + 1)
    layer = prepared(tmp_path_factory.mktemp("layer") / "water.fgb", features)
    outside = uncovered(shapes, layer)
    area = shapely.area(shapes)
    np.testing.assert_allclose(shapely.area(outside) / area + covered_share(shapes, layer), 1, atol=1e-8)
    union = shapely.union_all(features)
    assert (shapely.area(shapely.intersection(outside, union)) <= 1e-8 * area).all()


def test_cores_inside_are_those_wholly_inside(tmp_path: Path) -> None:
    layer = prepared(tmp_path / "sea.fgb", [lake(0, 0, 300, 300)], 37.0)
    boxes = [lake(x, y, 64, 64) for x in (-1, 0, 100, 236, 237) for y in (0, 50)]
    assert cores_inside(np.array(boxes, object), layer).tolist() == [False] * 2 + [True] * 6 + [False] * 2


# Actions


def masked(shapes: Any, *layers: PreparedLayer, **settings: float) -> Masked:
    return apply_masks(frame_of(shapes), layers, **settings)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.sampled_from(["drop", "keep", "flag", "skip"]), st.sampled_from([0.0, 0.3, 0.5, 0.99])), max_size=3
    ),
)
def test_every_footprint_comes_out_once_where_the_first_layer_that_rejects_it_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rules: list[tuple[str, float]]
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    worlds = [random_features(seed + number) for number in range(len(rules))]
    layers = [
        prepared(folder / f"{n}.fgb", features, name=f"layer{n}", action=action, max_cover=most)
        for n, ((action, most), features) in enumerate(zip(rules, worlds, strict=True))
    ]
    shapes = random_footprints(seed + 9)
    done = masked(shapes, *layers)
    fates = oracles.masked(shapes, [(*rule, features) for rule, features in zip(rules, worlds, strict=True)])
    assert done.accepted.index.tolist() == [n for n, (layer, _) in enumerate(fates) if layer < 0]
    assert done.rejected.index.tolist() == [n for n, (layer, _) in enumerate(fates) if layer >= 0]
    assert done.rejected.layer.tolist() == [f"layer{layer}" for layer, _ in fates if layer >= 0]
    expected = [share for layer, share in fates if layer >= 0]
    np.testing.assert_allclose(done.rejected.covered_share, expected, atol=1e-8)
    left = len(shapes)
    for number, count in enumerate(done.counts):
        assert count.tested == left
        assert count.removed == sum(layer == number for layer, _ in fates)
        left -= count.removed
    assert left == len(done.accepted)
    areas = frame_of(shapes).area_in_meters
    removed = sum(count.removed_area_m2 for count in done.counts)
    assert removed == pytest.approx(areas[done.rejected.index].sum(), abs=1e-3 * (1 + len(shapes)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_batches_add_up_to_the_whole_exactly(tmp_path_factory: pytest.TempPathFactory, seed: int, size: int) -> None:
    folder = tmp_path_factory.mktemp("layers")
    actions = ["flag", "clip", "drop"]
    layers = [
        prepared(folder / f"{action}.fgb", random_features(seed + n), name=action, action=action)
        for n, action in enumerate(actions)
    ]
    frame = frame_of(random_footprints(seed + 9))
    whole = apply_masks(frame, layers, min_area_m2=15.0)
    parts = [apply_masks(frame.iloc[at : at + size], layers, min_area_m2=15.0) for at in range(0, len(frame), size)]
    counts = [LayerCount() for _ in layers]
    for part in parts:
        for total, count in zip(counts, part.counts, strict=True):
            total.add(count)
    assert tuple(counts) == whole.counts
    for name in ("accepted", "rejected"):
        filled = [getattr(part, name) for part in parts if len(getattr(part, name))]
        assert same_frames(pd.concat(filled) if filled else getattr(whole, name), getattr(whole, name))


def test_columns_say_what_happened(tmp_path: Path) -> None:
    water = prepared(tmp_path / "w.fgb", [lake()], name="water", version="sha256:aa")
    land = prepared(tmp_path / "l.fgb", [lake(-100, 0)], name="land", action="keep", version="etag:bb")
    pier, boat, ship = lake(-6, 10, 10, 10), lake(50, 50, 10, 10), lake(10, 500, 10, 10)
    done = masked([pier, boat, ship], water, land)
    assert list(done.accepted.columns) == ["id", "geometry", "area_in_meters", "water_cover", "land_cover"]
    extra = ["reason", "detail", "layer", "layer_version", "covered_share"]
    assert list(done.rejected.columns) == [*done.accepted.columns, *extra]
    assert done.accepted.iloc[0][["id", "water_cover", "land_cover"]].tolist() == ["0000", 0.4, 0.6]
    first, second = done.rejected.to_dict("records")
    assert [first[name] for name in extra] == [
        "mask_drop",
        "100.0 % of it lies in water, more than 50 %",
        "water",
        "sha256:aa",
        1.0,
    ]
    assert math.isnan(first["land_cover"])
    assert [second[name] for name in extra] == [
        "mask_keep",
        "0.0 % of it lies in land, no more than 50 %",
        "land",
        "etag:bb",
        0.0,
    ]
    assert (second["water_cover"], second["land_cover"]) == (0.0, 0.0)
    assert done.counts == (
        LayerCount(3, 1, 1, done.counts[0].removed_area_m2),
        LayerCount(2, 1, 1, done.counts[1].removed_area_m2),
    )


def test_nothing_to_mask_gives_the_same_columns_and_types(tmp_path: Path) -> None:
    water = prepared(tmp_path / "w.fgb", [lake()], action="clip")
    some, none = masked([lake(-5, 5, 10, 10), lake(10, 10, 9, 9)], water), apply_masks(frame_of([lake()]).iloc[:0], [water])
    for name in ("accepted", "rejected"):
        assert getattr(none, name).dtypes.equals(getattr(some, name).dtypes)
        assert not len(getattr(none, name))
        assert getattr(none, name).crs == UTM


@pytest.mark.parametrize("action", ["drop", "keep"])
@pytest.mark.parametrize("most", [0.5, 0.07, 0.123456789])
def test_a_share_that_is_not_the_limit_never_reads_as_the_limit(tmp_path: Path, action: str, most: float) -> None:
    layer = prepared(tmp_path / "w.fgb", [lake(0, 0, 300, 300)], None, action=action, max_cover=most)
    for away in (1e-7, 1e-4, 3e-3):
        share = most + away if action == "drop" else most - away
        detail = masked([lake(-(1 - share) * 100, 10, 100, 10)], layer).rejected.detail.iloc[0]
        value, limit = (float(word) for word in detail.split() if word[0].isdigit())
        assert (value > limit) if action == "drop" else (value < limit), detail
        assert value == pytest.approx(100 * share, abs=0.011)
        assert limit == pytest.approx(100 * most)


def test_flag_removes_nothing_and_a_share_of_exactly_the_limit_stays(tmp_path: Path) -> None:
    half = lake(-5, 10, 10, 10)
    for action, kept in (("flag", True), ("drop", True), ("skip", True), ("keep", False)):
        layer = prepared(tmp_path / f"{action}.fgb", [lake()], action=action)
        done = masked([half], layer)
        assert len(done.accepted) == kept
        assert done.counts[0].flagged == kept


def test_a_misregistered_shore_flags_what_it_touches_and_drops_nothing(tmp_path: Path) -> None:
    water = prepared(tmp_path / "w.fgb", [lake()])
    done = masked([lake(-6, 10, 10, 10)], water)  # 40 % of it lies beyond the shore
    assert done.accepted.water_cover.tolist() == [0.4]
    assert done.counts[0] == LayerCount(tested=1, flagged=1)


def test_clip_cuts_what_is_covered_and_checks_what_remains(tmp_path: Path) -> None:
    canal = prepared(tmp_path / "w.fgb", [lake(0, -100, 2, 300)], action="clip", max_cover=0.0)
    split, trimmed, gone, wholly, far = (
        lake(-8, 0, 20, 10),
        lake(-8, 20, 10.5, 10),
        lake(-1, 40, 4, 5),
        lake(0.1, 0.1, 1, 1),
        lake(50, 0),
    )
    frame = frame_of([split, trimmed, gone, wholly, far])
    done = apply_masks(frame, [canal], min_area_m2=20.0)
    assert done.accepted.id.tolist() == ["0000", "0001", "0004"]
    assert done.accepted.geom_type.tolist() == ["MultiPolygon", "Polygon", "Polygon"]
    np.testing.assert_allclose(done.accepted.area, [180, 80, 10_000], rtol=1e-9)
    np.testing.assert_allclose(done.accepted.area_in_meters / done.accepted.area, frame.area_in_meters[0] / 200, rtol=1e-6)
    assert done.accepted.geometry.iloc[2] is frame.geometry.iloc[4]
    np.testing.assert_allclose(done.accepted.water_cover, [0.1, 2 / 10.5, 0], atol=1e-9)
    assert done.rejected.reason.tolist() == ["mask_clip"] * 2
    largest, inside = done.rejected.detail
    assert largest.startswith("its largest part outside water has 5.0")
    assert largest.endswith(" m2 < 20 m2")
    assert inside == "it lies wholly in water"
    assert done.rejected.geometry.tolist() == [gone, wholly]
    count = done.counts[0]
    assert (count.tested, count.removed, count.flagged, count.clipped) == (5, 2, 2, 2)
    lost = frame.area_in_meters.sum() - done.accepted.area_in_meters.sum() - done.rejected.area_in_meters.sum()
    assert count.clipped_area_m2 == pytest.approx(lost, abs=0.01)


def test_clip_takes_small_parts_of_a_split_footprint_along(tmp_path: Path) -> None:
    canal = prepared(tmp_path / "w.fgb", [lake(0, -100, 2, 300)], action="clip")
    done = masked([lake(-8, 0, 11, 10)], canal, min_area_m2=20.0)
    assert done.accepted.geom_type.tolist() == ["Polygon"]
    assert done.accepted.area.iloc[0] == pytest.approx(80)


def test_a_later_layer_sees_what_clip_left(tmp_path: Path) -> None:
    canal = prepared(tmp_path / "c.fgb", [lake(0, -100, 50, 300)], name="canal", action="clip")
    marsh = prepared(tmp_path / "m.fgb", [lake(-5, -100, 300, 300)], name="marsh", action="drop")
    done = masked([lake(-10, 0, 40, 10)], canal, marsh)
    assert done.accepted.area.iloc[0] == pytest.approx(100)
    assert done.accepted[["canal_cover", "marsh_cover"]].iloc[0].tolist() == pytest.approx([0.75, 0.5])
    rejected = masked([lake(-10, 0, 40, 10)], marsh, canal).rejected
    assert rejected.covered_share.tolist() == pytest.approx([0.875])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 10.0]))
def test_clipped_footprints_are_good_polygons(tmp_path_factory: pytest.TempPathFactory, seed: int, least: float) -> None:
    features = random_features(seed)
    layer = prepared(tmp_path_factory.mktemp("layer") / "w.fgb", features, action="clip")
    done = masked(random_footprints(seed + 1), layer, min_area_m2=least)
    assert done.accepted.is_valid.all()
    assert not done.accepted.is_empty.any()
    parts = done.accepted[done.accepted.water_cover > 0].explode()
    factor = done.accepted.area_in_meters / done.accepted.area
    assert (parts.area * factor[parts.index] >= least * (1 - 1e-9)).all()
    assert not len(parts) or parts.intersection(shapely.union_all(features)).area.max() < 1e-6


# Tables


def write_water(path: Path, *features: shapely.Polygon, crs: str = UTM) -> Path:
    gpd.GeoDataFrame(geometry=list(features), crs=UTM).to_crs(crs).to_file(path, engine="pyogrio")
    return path


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", "EPSG:3857", "EPSG:2154", "EPSG:32634"])
def test_any_table_in_any_system_is_masked_alike(tmp_path: Path, crs: str) -> None:
    water = write_water(tmp_path / "water.gpkg", lake(), crs="EPSG:4326")
    shapes = [lake(-6.01, 10, 10, 10), lake(50, 50, 10, 10), lake(-90, 50, 10, 10), None]
    table = gpd.GeoDataFrame({"street": list("abcd")}, geometry=shapes, crs=UTM, index=[7, 3, 3, 1]).to_crs(crs)
    accepted, rejected = mask_footprints(table, [{"file": str(water), "buffer": 1.0}])
    assert accepted.street.tolist() == ["a", "c", "d"]
    assert accepted.index.tolist() == [7, 3, 1]
    assert accepted.crs == table.crs
    assert accepted.geometry.iloc[0] is table.geometry.iloc[0]
    # A metre of buffer may be 1 % off in a plane that counts as true to the ground: 0.001 of 10 m.
    np.testing.assert_allclose(accepted.water_cover, [0.499, 0, np.nan], atol=0.002)
    assert rejected.street.tolist() == ["b"]
    assert rejected.covered_share.tolist() == [1.0]
    assert "area_in_meters" not in rejected


def test_the_fate_of_a_footprint_does_not_depend_on_the_table(tmp_path: Path) -> None:
    water = write_water(tmp_path / "water.gpkg", lake(), crs="EPSG:4326")
    near = gpd.GeoSeries([rotate(lake(-6, y, 10, 8), y) for y in range(10, 60, 9)], crs=UTM).to_crs("EPSG:4326")
    far = gpd.GeoSeries([shapely.box(lon, 10, lon + 1e-4, 10.0001) for lon in (-70, 3.5, 100, 179.9999)], crs="EPSG:4326")
    alone, _ = mask_footprints(gpd.GeoDataFrame(geometry=near), [str(water)])
    both, _ = mask_footprints(gpd.GeoDataFrame(geometry=pd.concat([near, far])), [str(water)])
    assert both.water_cover[: len(near)].tolist() == alone.water_cover.tolist()
    assert (both.water_cover[len(near) :] == 0).all()


def test_clip_of_a_table_cuts_what_it_covers_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    water = write_water(tmp_path / "water.gpkg", lake())
    bow_tie = shapely.Polygon(CORNER + np.array([[-20, 0], [-10, 10], [-10, 0], [-20, 10]]))
    table = frame_of([lake(-6, 10, 10, 10), lake(-90, 50, 10, 10), bow_tie]).to_crs("EPSG:4326")
    accepted, rejected = mask_footprints(table, [{"file": str(water), "action": "clip"}])
    assert not len(rejected)
    assert accepted.to_crs(UTM).area.iloc[0] == pytest.approx(60, abs=1e-3)
    assert accepted.area_in_meters.iloc[0] == pytest.approx(table.area_in_meters.iloc[0] * 0.6, rel=1e-4)
    assert [accepted.geometry.iloc[n] is table.geometry.iloc[n] for n in range(3)] == [False, True, True]
    assert accepted.area_in_meters.iloc[1:].tolist() == table.area_in_meters.iloc[1:].tolist()


def test_a_layer_that_touches_nothing_is_said_loudly(tmp_path: Path) -> None:
    water = write_water(tmp_path / "water.gpkg", lake(50_000))
    with pytest.warns(
        MaskWarning, match=r"mask layer water: touches none of the footprints: it spans \[530000, .*they span \["
    ):
        accepted, _ = mask_footprints(frame_of([lake()]), [str(water)])
    assert accepted.water_cover.tolist() == [0.0]


def test_a_table_that_cannot_be_masked_is_refused_with_its_row(tmp_path: Path) -> None:
    water = str(write_water(tmp_path / "water.gpkg", lake()))
    with pytest.raises(ConfigError, match="set_crs"):
        mask_footprints(gpd.GeoDataFrame(geometry=[lake()]), [water])
    with pytest.raises(ConfigError, match="row 1: Point is no footprint"):
        mask_footprints(gpd.GeoDataFrame(geometry=[lake(), shapely.Point(0, 0)], crs=UTM), [water])
    accepted, rejected = mask_footprints(gpd.GeoDataFrame(geometry=[], crs=UTM), [water])
    assert not len(accepted)
    assert not len(rejected)
    assert "water_cover" in accepted


# The meter


@pytest.mark.parametrize("count", [0, 1, 2, 5, 17, 100, 12_345, 1_000_000, 0.3, 7.7])
def test_garwood_intervals_are_those_of_scipy(count: float) -> None:
    low, high = poisson_interval(count)
    assert low == (0 if count == 0 else pytest.approx(scipy.stats.chi2.ppf(0.025, 2 * count) / 2, rel=1e-9))
    assert high == pytest.approx(scipy.stats.chi2.ppf(0.975, 2 * count + 2) / 2, rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 10, 57, 1000, math.inf])
def test_student_quantiles_are_those_of_scipy(degrees: float) -> None:
    expected = scipy.stats.norm.ppf(0.975) if math.isinf(degrees) else scipy.stats.t.ppf(0.975, degrees)
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-9)
    assert student_quantile(0.975, 1e6) == pytest.approx(scipy.stats.norm.ppf(0.975), rel=2e-3)


@pytest.mark.parametrize(
    ("clusters", "density", "swarm"),
    [(12, 30, 0.0), (12, 30, 1.0), (40, 30, 1.0), (200, 30, 0.0), (200, 30, 1.0), (200, 30, 3.0), (6, 1000, 0.2)],
)
def test_the_interval_holds_the_true_density_about_as_often_as_it_says(clusters: int, density: int, swarm: float) -> None:
    """Candidates fall in swarms: the density of a core varies from core to core (gamma, relative variance `swarm`)."""
    rng = np.random.default_rng(clusters + density + int(10 * swarm))
    trials, held, poisson_held = 400, 0, 0
    for _ in range(trials):
        areas = rng.uniform(0.002, 0.02, clusters) * (rng.random(clusters) < 0.8)
        areas[0] = 0.01
        local = density * (rng.gamma(1 / swarm, swarm, clusters) if swarm else 1.0)
        counts = rng.poisson(local * areas).astype(float)
        low, high = density_interval(counts, areas)
        held += low <= density <= high
        simple = np.array(poisson_interval(counts.sum())) / areas.sum()
        poisson_held += simple[0] <= density <= simple[1]
    assert held / trials >= 0.92  # 0.95 less three standard errors of 400 trials
    assert held / trials <= (0.985 if clusters == 200 else 1.0)  # exact limits of few candidates hold more often
    if swarm >= 3 or density == 1000:
        assert poisson_held / trials < 0.9  # an interval that takes swarms for independent candidates claims too much


def test_no_candidate_gives_the_exact_upper_limit() -> None:
    assert density_interval(np.zeros(5), np.full(5, 0.2)) == (0.0, pytest.approx(-math.log(0.025)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_the_meter_does_not_depend_on_order_or_batches(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    cores = np.stack(np.divmod(rng.permutation(400)[:100], 20), axis=1)
    areas = rng.uniform(0, 18_000, (100, 2)) * (rng.random((100, 2)) < 0.7)
    owner = cores[rng.integers(0, 100, 300)]
    inside, kept = rng.random(300) < 0.4, rng.random(300) < 0.6

    def measure(order: np.ndarray, area_order: np.ndarray, size: int) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meter, "COMPACT_ROWS", size * 3)
            total, part = Meter(), Meter()
            for at in range(0, 300, size):
                some = order[at : at + size]
                (total if at % 2 else part).add_candidates(owner[some], inside[some], kept[some])
            for at in range(0, 300, size):
                some, thirds = area_order[at : at + size] % 100, area_order[at : at + size] // 100  # a core in three parts
                mine = areas[some] * np.array([0.5, 0.3, 0.2])[thirds, None]
                (part if at % 2 else total).add_area(cores[some], mine[:, 0], mine[:, 1])
            total.add(part)
            return json.dumps(total.result())

    whole = measure(np.arange(300), np.arange(300), 1000)
    assert measure(rng.permutation(300), rng.permutation(300), size) == whole
    result = json.loads(whole)
    assert (result["inside"]["raw"], result["inside"]["kept"]) == (inside.sum(), (inside & kept).sum())
    assert (result["outside"]["raw"], result["outside"]["kept"]) == ((~inside).sum(), (~inside & kept).sum())
    assert result["inside"]["area_km2"] == pytest.approx(areas[:, 0].sum() / 1e6, abs=3e-7)
    side = result["inside"]
    assert side["kept_per_km2"] == pytest.approx(side["kept"] / side["area_km2"])
    assert side["interval_95"][0] <= side["kept_per_km2"] <= side["interval_95"][1]
    assert side["raw_interval_95"][0] <= side["raw_per_km2"] <= side["raw_interval_95"][1]
    assert result["ratio"] == pytest.approx(side["kept_per_km2"] / result["outside"]["kept_per_km2"])


def test_a_meter_that_saw_nothing_says_nothing() -> None:
    result = Meter().result()
    assert result["inside"] == result["outside"]
    assert result["inside"]["area_km2"] == 0
    assert result["inside"]["interval_95"] is None
    assert result["ratio"] is None
    lonely = Meter()
    lonely.add_area((3, 4), 0.0, 1e6)
    lonely.add_candidates([(3, 4)], [True], [True])  # a footprint's first pixel may lie where the layer has none
    assert lonely.result()["inside"]["kept_per_km2"] is None
    assert lonely.result()["outside"]["interval_95"] == [0.0, pytest.approx(-math.log(0.025))]


@given(st.integers(0, 2**32 - 1))
def test_layer_pixels_are_those_whose_centre_is_inside(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    features = random_features(seed)
    layer = prepared(tmp_path_factory.mktemp("layer") / "w.fgb", features)
    grid = Grid(CRS.from_user_input(UTM), Affine(2.0, 0, CORNER[0] - 10, 0, -2.0, CORNER[1] + SIDE), 128, 128)
    at = (0, 64)
    inside = np.block([[layer_pixels(layer, Window(row, col, 64, 64), grid) for col in at] for row in at])
    row, col = np.mgrid[0:128, 0:128] + 0.5
    x, y = grid.transform.c + 2 * col, grid.transform.f - 2 * row
    points, union = shapely.points(x, y), shapely.union_all(features)
    shapely.prepare(union)
    sure = ~shapely.dwithin(union.boundary, points, 1e-6)
    assert (inside == shapely.intersects(union, points))[sure].all()


WORLDS = (("rural", "river", 5), ("informal", "coast", 6), ("suburb", "coast", 7), ("town", "coast", 11))
"""Style, water and seed: from 300 to 5000 buildings a km²."""
NOISE = (150, 60, 1700, 100, 900, 1200, 30, 1000, 2400, 300, 600, 400)
"""False footprints a km² of each case; the worlds take turns, so noise goes with no world."""


def see(scene: Scene, per_km2: float, seed: int) -> np.ndarray:
    """(H, W) uint8 prob of a stand-in model: it sees every building, and swarms of what is none, on land and water alike."""
    rng = np.random.default_rng(seed)
    number = scene.instances
    apart = (number[:-1, :-1] == number[1:, :-1]) & (number[:-1, :-1] == number[:-1, 1:])
    prob = np.zeros(number.shape, np.uint8)
    prob[:-1, :-1][(number[:-1, :-1] > 0) & apart] = 220
    km2 = number.size * scene.gsd**2 / 1e6
    for row, col in rng.uniform(0, number.shape, (rng.poisson(per_km2 * km2 / 3), 2)):
        for at in rng.normal((row, col), 25, (1 + rng.poisson(2), 2)).astype(int):
            (r, c), (tall, wide) = at, rng.integers(6, 12, 2)
            if min(r, c) > 0 and not prob[r - 1 : r + tall + 1, c - 1 : c + wide + 1].any():
                prob[r : r + tall, c : c + wide] = 170
    return prob


def measure_world(scene: Scene, layer: PreparedLayer, prob: np.ndarray) -> tuple[dict[str, Any], float]:
    """What the meter says without labels, and the true rate of false footprints per km² of land."""
    core = 64
    grid = Grid(CRS.from_user_input(scene.crs), scene.transform, *prob.shape)
    polygons = polygonize(prob >= 128, prob=prob)
    done = finish(polygons, grid, min_area_m2=5.0, simplify_m=0.5)
    reading = Meter()
    ids = np.array(identifiers(polygons.first, grid.origin_pixel))
    for table, kept in ((done.accepted, True), (done.rejected, False)):
        share = covered_share(np.array(table.geometry.array), layer)
        first = polygons.first[[int(np.flatnonzero(ids == name)[0]) for name in table.id]].reshape(-1, 2)
        reading.add_candidates(first // core, share > meter.INSIDE, np.full(len(table), kept))
        if kept:
            on_land = share <= meter.INSIDE
    wet = np.zeros(prob.shape, bool)
    for row, col in itertools.product(range(0, prob.shape[0], core), range(0, prob.shape[1], core)):
        pixels = layer_pixels(layer, Window(row, col, core, core), grid)
        wet[row : row + core, col : col + core] = pixels
        pixel_m2 = scene.gsd**2
        reading.add_area((row // core, col // core), pixels.sum() * pixel_m2, (~pixels).sum() * pixel_m2)
    found, _ = outcomes(done.accepted, scene.truth())
    false_on_land = sum(word == "fp" for word, land in zip(found, on_land, strict=True) if land)
    return reading.result(), false_on_land / ((~wet).sum() * scene.gsd**2 / 1e6)


def test_the_meter_goes_with_the_true_rate_of_false_footprints_on_land(tmp_path: Path) -> None:
    worlds = []
    for style, water, seed in WORLDS:
        scene = generate_scene(seed, 640, 0.5, style=style, water=water)
        worlds.append((scene, prepared(tmp_path / f"{style}.fgb", list(scene.water))))
    readings, truths = [], []
    for number, noise in enumerate(NOISE):
        scene, layer = worlds[number % len(worlds)]
        reading, truth = measure_world(scene, layer, see(scene, noise, number))
        readings.append(reading)
        truths.append(truth)
    inside = [reading["inside"]["kept_per_km2"] for reading in readings]
    assert scipy.stats.spearmanr(inside, truths).statistic > 0.8
    # A count of everything goes with how much is built instead: this test can tell a meter from a counter.
    sides = [(reading["inside"], reading["outside"]) for reading in readings]
    every = [sum(side["kept"] for side in both) / sum(side["area_km2"] for side in both) for both in sides]
    assert scipy.stats.spearmanr(every, truths).statistic < 0.6
