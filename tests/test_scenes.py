"""Generated scenes: the same for the same seed, and with a truth that is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from geoinfer.errors import ConfigError, OutputError
from geoinfer.scenes import STYLES, generate_scene, write_scene


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(sorted(STYLES)), st.sampled_from([0.15, 0.3, 1.0]), st.integers(40, 200))
def test_truth_is_exact(seed: int, style: str, gsd: float, size: int) -> None:
    scene = generate_scene(seed, (size, size + 17), gsd, style=style)
    assert scene.image.shape == (3, size, size + 17)
    assert scene.image.dtype == np.uint8
    assert scene.instances.max() <= len(scene.buildings)
    assert all(shape.is_valid and shape.area > 0 for shape in scene.buildings)
    # No two footprints share area, beyond rounding of party walls.
    outlines = np.array(scene.buildings, dtype=object)
    if len(outlines):
        a, b = shapely.STRtree(outlines).query(outlines, predicate="intersects")
        shared = shapely.area(shapely.intersection(outlines[a], outlines[b]))[a != b]
        assert shared.max(initial=0) < 1e-5
        # The raster of the polygons is the raster of numbers, but for centres that lie on an outline.
        again = rasterize(
            ((shape, number) for number, shape in enumerate(scene.buildings, 1)),
            scene.instances.shape,
            transform=scene.transform,
        )
        assert (again != scene.instances).mean() < 1e-3
    inside = shapely.box(*rasterio.transform.array_bounds(size, size + 17, scene.transform)).buffer(1e-6)
    assert all(inside.covers(shape) for shape in (*scene.buildings, *scene.water))


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    one, again, other = (generate_scene(seed, 96, 0.5) for seed in (7, 7, 8))
    assert (one.image == again.image).all()
    assert (one.instances == again.instances).all()
    assert one.buildings == again.buildings
    assert (one.image != other.image).any()


def test_buildings_can_be_seen() -> None:
    """Roofs and ground differ in their mean colour or in their light: there is something to learn."""
    scene = generate_scene(3, 256, 0.3, style="suburb", water="none")
    assert len(scene.buildings) > 5
    edge = np.abs(np.diff(scene.image.astype(int), axis=2)).sum(axis=0)
    outline = scene.instances[:, 1:] != scene.instances[:, :-1]
    assert edge[outline].mean() > 2 * edge[~outline].mean()


def test_sea_holds_no_building() -> None:
    scene = generate_scene(1, 128, 0.5, water="sea")
    assert not scene.buildings
    assert not scene.instances.any()
    assert shapely.union_all(scene.water).area == pytest.approx(64 * 64)


def test_water_and_buildings_do_not_meet() -> None:
    scene = generate_scene(2, 200, 0.5, style="rows", water="river")
    assert scene.water
    wet = shapely.union_all(scene.water)
    assert shapely.intersection(shapely.union_all(scene.buildings), wet).area < 1


def test_a_written_scene_reads_back_with_its_place_on_earth(tmp_path: Path) -> None:
    scene = generate_scene(5, 64, 0.3)
    write_scene(scene, tmp_path / "scene.tif")
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert (file.read() == scene.image).all()
        assert file.crs == rasterio.CRS.from_user_input(scene.crs)
        assert file.transform == scene.transform
    truth = scene.truth()
    assert truth.crs == scene.crs
    assert list(truth.columns) == ["id", "geometry"]
    with pytest.raises(OutputError, match="cannot write the scene"):
        write_scene(scene, tmp_path / "missing" / "scene.tif")


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="style 'castle' is unknown"):
        generate_scene(1, 64, style="castle")
    with pytest.raises(ConfigError, match="must be positive"):
        generate_scene(1, 0)
