"""The Python names that a notebook uses, with what a notebook has in hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine

import geoinfer as gi
import geoinfer.pipeline
from geoinfer.errors import ConfigError, Interrupted
from tests.standins import StandIn, paint, spec_of, write_scene

pytestmark = pytest.mark.fast

HALF = shapely.box(700_013.5, 619_900.0, 700_060.0, 620_007.0)
"""Of the scene, in its own coordinate system."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("api é") / "scene.tif", paint(200, 210, 4))


@pytest.mark.parametrize("name", gi.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(gi, name) is not None


def test_a_region_may_be_whatever_holds_polygons(scene: Path, tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[HALF], crs=32630)
    path = tmp_path / "half.gpkg"
    frame.to_file(path)
    shapes: list[dict[str, Any]] = [
        {"region": path},
        {"region": str(path)},
        {"region": frame},
        {"region": frame.geometry},
        {"region": HALF, "bbox_crs": "EPSG:32630"},
        {"region": gi.Region.from_geometry(frame)},
        {"bbox": HALF.bounds, "bbox_crs": 32630},
        {"bbox": list(HALF.bounds), "bbox_crs": frame.crs},
        {"bbox": ",".join(map(str, HALF.bounds)), "bbox_crs": "EPSG:32630"},
    ]
    found = [gi.detect(scene, model=StandIn(), **shape) for shape in shapes]
    assert 0 < len(found[0]) < len(gi.detect([scene], model=StandIn()))
    for other in found[1:]:
        assert other.equals(found[0])


def test_geojson_in_hand_is_in_degrees(scene: Path) -> None:
    lonlat = gpd.GeoSeries([HALF], crs=32630).to_crs(4326)
    as_dict = shapely.geometry.mapping(lonlat[0])
    assert gi.detect(scene, model=StandIn(), region=as_dict).equals(gi.detect(scene, model=StandIn(), region=lonlat[0]))


@pytest.mark.parametrize("region", [42, [HALF], gpd.GeoDataFrame(geometry=[HALF])])
def test_a_region_that_is_none_is_told(scene: Path, region: object) -> None:
    with pytest.raises(ConfigError, match="region"):
        gi.detect(scene, model=StandIn(), region=region)


def test_imagery_opens_on_a_models_grid_without_numbers(scene: Path) -> None:
    model = StandIn()
    source = gi.open_raster(scene, model=model)
    assert source.grid == gi.open_raster([str(scene)], gsd=model.spec.gsd, core=model.spec.chips.core).grid
    assert gi.open_raster(scene).grid.pixel_size == pytest.approx(0.3)  # of the default model
    assert "scene.tif" in repr(source)
    assert len(repr(source)) < 200
    assert gi.detect(source, model=model).equals(gi.detect(scene, model=model))


def test_imagery_opened_for_another_model_is_refused(scene: Path) -> None:
    coarse, model = gi.open_raster(scene, gsd=1.0), StandIn()
    with pytest.raises(ConfigError, match="not opened for model stand-in"):
        gi.predict(coarse, gi.Window(0, 0, 8, 8), model)
    with pytest.raises(ConfigError, match="not opened for model stand-in"):
        gi.detect(coarse, model=model)
    off_lattice = gi.open_raster(scene, gsd=0.5, core=model.spec.chips.core + 1)
    with pytest.raises(ConfigError, match="open_raster"):
        gi.predict(off_lattice, gi.Window(0, 0, 8, 8), model)


def test_bands_that_do_not_fit_the_model_are_told_before_anything_runs(scene: Path) -> None:
    with pytest.raises(ConfigError, match="imagery of 2 bands: model stand-in expects 3 bands"):
        gi.detect(scene, model=StandIn(spec_of()), bands=(1, 2))
    assert len(gi.detect(scene, model=StandIn(), bands=[3, 2, 1]))


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda _: gi.detect(5, StandIn()), "source 5"),
        (lambda _: gi.detect(None, StandIn()), "source None"),
        (lambda scene: gi.detect([scene, 7], StandIn()), "source 7"),
        (lambda _: gi.detect(b"scene.tif", StandIn()), "source 115"),
        (lambda _: gi.detect("", StandIn()), "an empty source"),
        (lambda scene: gi.detect(scene, StandIn(), imagery={"prefer": "newest"}), "use geoinfer.SourceOptions"),
        (lambda scene: gi.detect(scene, StandIn(), domain="strict"), "domain 'strict': use one of warn, mark"),
        (lambda _: gi.SourceOptions(prefer="newst"), "prefer 'newst': use one of given, newest"),
        (lambda _: gi.SourceOptions(changed="no"), "changed 'no': use one of fail, warn"),
        (lambda _: gi.SourceOptions(scaling="x"), "scaling 'x': use one of"),
        (lambda _: gi.SourceOptions(on_error="x"), "on_error 'x': use one of"),
        (lambda _: gi.Access(hosts="10.0.0.7"), "hosts '10.0.0.7': give a tuple"),
        (lambda _: gi.Search(collections="naip"), "collections 'naip': give a tuple"),
        (lambda _: gi.Service(placeholders="a.png"), "placeholders 'a.png': give a tuple"),
    ],
)
def test_a_mistake_about_imagery_is_told_in_a_line(mistake: Callable[[Path], object], told: str, scene: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        mistake(scene)
    assert told in str(caught.value)


def test_polygonize_takes_lists_and_leaves_masked_pixels_out() -> None:
    assert len(gi.polygonize([[1, 0, 1]])) == 2
    masked = np.ma.masked_array(np.ones((2, 3), np.bool_), mask=[[0, 1, 0], [0, 1, 0]])
    assert gi.polygonize(masked).pixels.tolist() == [2, 2]
    frame = gi.polygonize(masked, Affine(2, 0, 10, 0, -2, 20)).to_geopandas("EPSG:32630")
    assert frame.total_bounds.tolist() == [10, 16, 16, 20]
    with pytest.raises(ConfigError, match="Affine"):
        gi.polygonize(masked, (10, 2, 0, 20, 0, -2))  # GDAL's order would be taken for another


@pytest.mark.parametrize("settings", [{"tile": 2.5}, {"tile": 0}, {"batch_size": "many"}, {"batch_size": 0}])
def test_how_to_work_is_checked_too(scene: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        gi.detect(scene, model=StandIn(), **settings)


def test_being_interrupted_is_an_error_with_a_status() -> None:
    assert geoinfer.pipeline.Interrupted is Interrupted is gi.Interrupted
    assert Interrupted.exit_code == 130
