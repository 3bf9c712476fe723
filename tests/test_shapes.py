"""Outlines compared: each distance against its definition, worked examples, and GEOS or pixels where they can say it too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import rotate, translate
from shapely.geometry import MultiPolygon, Point, Polygon, box

from geoinfer.evaluation import kernels, shapes
from geoinfer.evaluation.outlines import outlines_of

seeds = st.integers(0, 2**32 - 1)
ORIGIN = np.array([500_000.0, 6_600_000.0])
"""Where coordinates have few digits left behind the point."""


def array(*polygons: object) -> np.ndarray:
    return np.array([*polygons, None], dtype=object)[:-1]


def star(rng: np.random.Generator, radius: float = 10.0, centre: tuple[float, float] = (0, 0)) -> Polygon:
    """A polygon that is seen whole from its centre, mostly not convex."""
    count = int(rng.integers(4, 15))
    turn = (np.arange(count) + 0.9 * rng.random(count)) / count * 2 * np.pi  # no gap of half a turn
    reach = radius * rng.uniform(0.3, 1, count)
    return Polygon(np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None] + centre)


def anything(seed: int) -> object:
    """A star, one with a hole, or two of them, near the origin of a UTM zone's coordinates; valid."""
    rng = np.random.default_rng(seed)
    shape = star(rng, centre=tuple(rng.uniform(-5, 5, 2)))
    kind = rng.integers(3)
    if kind == 1:
        shape = shape.difference(star(rng, 4.0))
    if kind == 2:
        shape = shape.union(star(rng, 6.0, (25, 3)))
    shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return shapely.transform(shape, lambda xy: xy + ORIGIN) if shape.area > 1 else box(*ORIGIN, *(ORIGIN + 2))


@given(seeds, seeds)
def test_shared_area_is_that_of_the_intersection(one: int, other: int) -> None:
    a, b = anything(one), anything(other)
    (found,) = shapes.shared_area(array(a), array(b))
    # 1e-6: GEOS rounds the vertices of the intersection to the nearest 1e-9 of these coordinates
    assert math.isclose(found, a.intersection(b).area, abs_tol=1e-6)
    assert math.isclose(shapes.shared_area(array(a), array(a))[0], a.area, rel_tol=1e-9)


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=2, max_size=2))
def test_shared_area_of_boxes_is_exact_also_where_edges_touch(corners: list[tuple[int, int, int, int]]) -> None:
    a, b = (box(x + ORIGIN[0], y + ORIGIN[1], x + w + 1 + ORIGIN[0], y + h + 1 + ORIGIN[1]) for x, y, w, h in corners)
    assert shapes.shared_area(array(a), array(b))[0] == a.intersection(b).area


def test_orientation_of_rings_and_empty_polygons_do_not_matter() -> None:
    hole = Polygon(box(0, 0, 10, 10).exterior.coords, [box(2, 2, 8, 8).exterior.coords])
    other = box(5, -1, 20, 11)
    turned = Polygon(hole.exterior.coords[::-1], [hole.interiors[0].coords[::-1]])
    assert shapes.shared_area(array(hole, turned), array(other, other)).tolist() == [32.0, 32.0]
    assert shapes.shared_area(array(Polygon(), hole), array(other, MultiPolygon())).tolist() == [0.0, 0.0]
    assert len(shapes.shared_area(array(), array())) == 0


def polis_by_definition(a: Polygon, b: Polygon) -> float:
    """Avbelj et al. 2015, one vertex at a time."""
    sums = 0.0
    for one, to in ((a, b), (b, a)):
        rings = shapely.get_rings(shapely.get_parts(one))
        sums += np.mean([Point(xy).distance(to.boundary) for ring in rings for xy in ring.coords[:-1]])
    return float(sums / 2)


@given(seeds, seeds)
def test_polis_is_its_formula_and_symmetric(one: int, other: int) -> None:
    a, b = anything(one), anything(other)
    (found,) = shapes.polis(array(a), array(b))
    # the reference is right to some 1e-9 m: coordinates of 6.6e6 m have no more digits
    assert math.isclose(found, polis_by_definition(a, b), abs_tol=1e-8)
    assert found == shapes.polis(array(b), array(a))[0]
    assert shapes.polis(array(a), array(a))[0] == 0


SQUARE = box(0, 0, 4, 4)
WORKED = [
    # a vertex 1 m above the roof's ridge: four vertices at 0; four at 0 and one at 1 of five -> (0 + 1/5) / 2
    (SQUARE, Polygon([(0, 0), (4, 0), (4, 4), (2, 5), (0, 4)]), 0.1),
    # moved 1 m to the right: on each side two vertices lie on the other's edges and two are 1 m off -> (1/2 + 1/2) / 2
    (SQUARE, translate(SQUARE, 1), 0.5),
    # grown by 1 m: corners inside are 1 m from an edge; corners outside sqrt(2) from a corner
    (SQUARE, box(-1, -1, 5, 5), (1 + math.sqrt(2)) / 2),
    # an extra vertex on an edge counts as one: (0 + 0) / 2, and in the case before it dilutes: 4 sqrt(2) and one 1, of five
    (SQUARE, Polygon([(0, 0), (2, 0), (4, 0), (4, 4), (0, 4)]), 0.0),
    (SQUARE, Polygon([(-1, -1), (2, -1), (5, -1), (5, 5), (-1, 5)]), (1 + (4 * math.sqrt(2) + 1) / 5) / 2),
    # a courtyard that was missed: its four corners are 1 m from the nearest wall, the eight vertices of A have mean 1/2
    (Polygon(SQUARE.exterior.coords, [box(1, 1, 3, 3).exterior.coords]), SQUARE, (0.5 + 0) / 2),
]


@pytest.mark.parametrize(("a", "b", "expected"), WORKED)
def test_polis_of_worked_examples(a: Polygon, b: Polygon, expected: float) -> None:
    assert shapes.polis(array(a), array(b))[0] == pytest.approx(expected, abs=1e-12)


@given(seeds, seeds)
def test_hausdorff_is_that_of_densely_sampled_outlines(one: int, other: int) -> None:
    a, b = anything(one), anything(other)
    (found,) = shapes.hausdorff(array(a), array(b))
    # shapely looks at points only, here at most 30 m / 500 apart; ours may miss 1e-3
    sampled = shapely.hausdorff_distance(a.boundary, b.boundary, densify=0.002)
    assert sampled - 2e-3 <= found <= sampled + 0.06


def test_hausdorff_looks_at_edges_and_not_only_at_vertices() -> None:
    hull = box(0, 0, 10, 20)
    court = hull.difference(box(2, 1, 8, 20))  # a U that opens upwards: the mouth's middle is 3 m from its arms
    deep = hull.difference(box(2, 10, 8, 20))
    assert shapes.hausdorff(array(hull), array(court))[0] == pytest.approx(3, abs=2e-3)
    assert shapely.hausdorff_distance(hull, court) == pytest.approx(1)  # at the vertices alone
    assert shapes.hausdorff(array(deep), array(hull))[0] == pytest.approx(5, abs=2e-3)  # the middle of the court's end
    assert shapes.hausdorff(array(SQUARE), array(translate(SQUARE, 3, 4)))[0] == pytest.approx(5)


@given(seeds)
def test_boundary_iou_is_its_definition_on_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = star(rng), star(rng)
    pixel, width = 0.05, 1.0
    x, y = np.meshgrid(*[np.arange(-10.5, 10.5, pixel) + pixel / 2] * 2)
    bands, masks = [], []
    for shape in (a, b):
        mask = shapely.contains_xy(shape, x, y)
        depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] * pixel
        bands.append(mask & (depth <= width))  # G_d and G
        masks.append(mask)
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    # a pixel's depth is known to about half a pixel, which moves 2.5 % of a band of 20 pixels in and out
    assert shapes.boundary_iou(array(a), array(b), width)[0] == pytest.approx(expected, abs=0.04)
    whole = a.intersection(b).area / a.union(b).area
    assert shapes.boundary_iou(array(a), array(b), 30.0)[0] == pytest.approx(whole, abs=1e-9)


def test_boundary_iou_of_a_worked_example() -> None:
    # 10 x 10 m with a boundary of 1 m, and the same moved by 1 m, in pixels of 1 m
    mask = np.zeros((2, 12, 12), bool)
    mask[0, 1:11, :10] = True
    mask[1, 1:11, 1:11] = True
    inner = np.stack([scipy.ndimage.binary_erosion(one, np.ones((3, 3))) for one in mask])
    band = mask & ~inner
    expected = (band[0] & band[1]).sum() / (band[0] | band[1]).sum()
    assert shapes.boundary_iou(array(box(0, 1, 10, 11)), array(box(1, 1, 11, 11)), 1.0)[0] == pytest.approx(expected)


@given(st.floats(0, 360), st.floats(2, 30), st.floats(2, 30))
def test_the_dominant_angle_of_a_rectangle_is_that_of_its_walls(turn: float, width: float, height: float) -> None:
    rectangle = rotate(box(0, 0, width, height), turn)
    (angle,) = shapes.dominant_angle(array(rectangle))
    assert 0 <= angle < 90
    apart = abs(angle - turn % 90)
    assert min(apart, 90 - apart) < 1e-6


@given(st.floats(-200, 200), st.floats(0, 90))
def test_rotation_error_is_the_turn_modulo_a_quarter(turn: float, start: float) -> None:
    house = rotate(Polygon([(0, 0), (20, 0), (20, 8), (9, 8), (9, 14), (0, 14)]), start)
    (error,) = shapes.rotation_error(array(rotate(house, turn)), array(house))
    apart = turn % 90
    assert error == pytest.approx(min(apart, 90 - apart), abs=1e-6)


def test_round_outlines_have_no_direction_and_long_walls_decide() -> None:
    octagon = Point(0, 0).buffer(5, quad_segs=2)
    assert np.isnan(shapes.dominant_angle(array(Point(0, 0).buffer(5), octagon))).all()
    assert np.isnan(shapes.rotation_error(array(octagon), array(SQUARE))).all()
    bay = Polygon([(0, 0), (20, 0), (20, 10), (12, 10), (11, 11), (9, 11), (8, 10), (0, 10)])  # two slanting walls
    (angle,) = shapes.dominant_angle(array(bay))
    assert min(angle, 90 - angle) == pytest.approx(0, abs=1e-9)


@given(seeds, st.integers(0, 20))
def test_vertices_on_straight_edges_do_not_count_wherever_the_ring_begins(seed: int, start: int) -> None:
    rng = np.random.default_rng(seed)
    house = rotate(Polygon([(0, 0), (20, 0), (20, 8), (9, 8), (9, 14), (0, 14)]), float(rng.uniform(0, 90)))
    dense = shapely.segmentize(house, float(rng.uniform(0.5, 10)))
    ring = np.roll(np.array(dense.exterior.coords[:-1]), start, axis=0) + ORIGIN
    assert shapes.corners(array(Polygon(ring)))[0] == 6
    assert shapes.vertex_ratio(array(Polygon(ring)), array(house))[0] == 1


def test_vertices_of_holes_count_and_curves_keep_some() -> None:
    yard = Polygon(SQUARE.exterior.coords, [box(1, 1, 3, 3).exterior.coords])
    assert shapes.corners(array(yard, SQUARE, MultiPolygon([SQUARE, box(9, 9, 10, 10)]))).tolist() == [8, 4, 8]
    tower = Point(0, 0).buffer(5, quad_segs=64)  # 256 vertices, each 0.4 mm from the line between its neighbours
    assert 12 <= shapes.corners(array(tower))[0] <= 100
    assert shapes.vertex_ratio(array(yard), array(SQUARE))[0] == 2


def test_offsets_and_areas_of_a_moved_and_grown_copy() -> None:
    x, y = shapes.centroid_offset(array(translate(SQUARE, 1.5, -2)), array(SQUARE))
    assert (x[0], y[0]) == (1.5, -2)
    assert shapes.area_ratio(array(box(0, 0, 4, 5)), array(SQUARE))[0] == 1.25


def test_kernels_give_the_same_without_the_compiler() -> None:
    sides = [outlines_of(array(*(anything(seed) for seed in range(start, start + 6)))) for start in (0, 6)]
    rings = [(side.xy, side.rings, side.polygons) for side in sides]
    pairs = np.arange(6)
    full = [(side.xy, side.sign, side.rings, side.polygons) for side in sides]
    calls = [
        (kernels.shared_areas, (*full[0], *full[1], pairs, pairs, 10_000)),
        (kernels.vertex_distances, (*rings[0], *rings[1], pairs, pairs)),
        (kernels.farthest_distances, (*rings[0], *rings[1], pairs, pairs, 1e-3)),
        (kernels.directions, rings[0]),
        (kernels.count_corners, (*rings[0], 0.01)),
    ]
    for kernel, arguments in calls:
        compiled, plain = kernel(*arguments), getattr(kernel, "py_func", kernel)(*arguments)
        np.testing.assert_allclose(compiled, plain, rtol=1e-12, atol=1e-9)  # the compiler may fuse a product and a sum
