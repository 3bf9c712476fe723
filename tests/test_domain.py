"""Whether imagery is what a model was made for: measures, limits, and what follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasters import at_place, pattern, write
from standins import StandIn, spec_of

from geoinfer.errors import SourceError
from geoinfer.grid import Window
from geoinfer.imagery import open_raster
from geoinfer.imagery.survey import MOST_RASTERS, MOST_WINDOWS, survey, surveyed, windows_of
from geoinfer.job import Job, make_job
from geoinfer.model.domain import (
    LEAST_PIXELS,
    MEASURES,
    Domain,
    Patch,
    Trial,
    check_domain,
    measure,
    parse_domain,
    saturation,
)
from geoinfer.model.registry import find_model, verify_weights
from geoinfer.model.spec import DOMAIN
from geoinfer.region import GridRegion, Region, region_on
from geoinfer.trust import judge_domain, trusted

PLACES = {"boston_massachusetts/test/23429035.tif": None, "accra_ghana_opencities/accra_test.tif": None}


def patches_of(*images: NDArray[np.uint8]) -> list[Patch]:
    return [(image, np.ones(image.shape[1:], np.bool_)) for image in images]


def a_domain(*images: NDArray[np.uint8], **changes: Any) -> Domain:
    """Around images of one source each, with one test: that the dark parts are dark."""
    found = np.stack([m for image in images if (m := measure(patches_of(image))) is not None])
    domain = Domain(
        gsd=(0.1, 1.0),
        mean=found.mean(axis=0),
        std=found.std(axis=0) + 0.5,
        places=np.zeros((len(images), len(MEASURES))),
        sources=tuple(f"s{i}" for i in range(len(images))),
        limit=8.0,
        trials=(Trial("bright", "too light", np.eye(len(MEASURES))[0], 0.0, 4.0),),
    )
    return replace(domain, places=domain.standardise(found), **changes)


def codes(
    domain: Domain | None, *images: NDArray[np.uint8], gsd: float = 0.3, bands: tuple[int, ...] = (1, 2, 3)
) -> list[str]:
    patches = patches_of(*images)
    found = check_domain(
        domain,
        model_gsd=0.3,
        model_bands=3,
        gsd=gsd,
        bands=bands,
        measures=measure(patches),
        saturated=saturation(patches),
    )
    return [finding.code for finding in found]


def image(seed: int, side: int = 160) -> NDArray[np.uint8]:
    """Coloured, with detail, no band saturated."""
    base = pattern(side, side, seed=seed).astype(np.float64)
    return (base * [[[0.8]], [[0.9]], [[0.6]]] + 10).clip(1, 254).astype(np.uint8)


# -- measures ------------------------------------------------------------------------------------------------------------


def test_measures_of_dark_and_light_are_what_numpy_says() -> None:
    pixels = image(1)
    found = dict(zip(MEASURES, measure(patches_of(pixels)), strict=True))  # type: ignore[arg-type]
    red, green, blue = pixels[:, ::4, ::4].reshape(3, -1).astype(float)
    light = (red + 2 * green + blue) / 4
    assert [found[f"p{p}"] for p in (2, 15, 50, 85, 98)] == pytest.approx(np.percentile(light, (2, 15, 50, 85, 98)).tolist())
    assert found["warmth"] == pytest.approx((red - blue).mean())
    assert found["saturation"] == pytest.approx(np.log(np.ptp(np.stack([red, green, blue]), axis=0).mean()))
    assert found["red_green"] == pytest.approx(np.log(1.001 - np.corrcoef(red, green)[0, 1]))
    rows = (pixels[0].astype(float) + 2.0 * pixels[1] + pixels[2]) / 4
    assert found["gradient"] == pytest.approx(np.log(np.abs(np.diff(rows, axis=1)).mean() / light.std()))


@given(seed=st.integers(0, 5), junk=st.integers(0, 255))
def test_invalid_pixels_and_the_order_of_patches_do_not_count(seed: int, junk: int) -> None:
    first, second = image(seed), image(seed + 7)
    mask = np.random.default_rng(seed).random((160, 160)) < 0.995
    spoiled = np.where(mask, first, junk).astype(np.uint8)
    plain = [(first, mask), *patches_of(second)]
    found, other = measure(plain), measure([*patches_of(second), (spoiled, mask)])
    assert found is not None
    assert other is not None
    assert np.allclose(found, other, rtol=1e-9, atol=1e-9)
    assert saturation(plain) == saturation([(spoiled, mask), *patches_of(second)])


def test_a_few_pixels_say_nothing() -> None:
    side = int(LEAST_PIXELS**0.5)
    pixels, mask = image(0, side), np.ones((side, side), np.bool_)
    assert measure([(pixels, mask)]) is not None
    mask[0, 0] = False
    assert measure([(pixels, mask)]) is None
    assert measure([]) is None
    assert saturation([]) == 0.0


@pytest.mark.parametrize("value", [0, 127, 255])
def test_an_image_without_detail_has_finite_measures(value: int) -> None:
    found = measure(patches_of(np.full((3, 200, 200), value, np.uint8)))
    assert found is not None
    assert np.isfinite(found).all()


# -- findings ------------------------------------------------------------------------------------------------------------


def test_each_way_to_be_outside_has_its_finding() -> None:
    images = [image(seed) for seed in range(4)]
    domain = a_domain(*images)
    assert codes(domain, image(9)) == []
    assert codes(domain, image(9), gsd=1.2) == ["pixel_size"]
    assert codes(domain, image(9), gsd=0.05) == ["pixel_size"]
    assert codes(domain, image(9), bands=(1, 1, 1)) == ["bands"]
    assert codes(domain, np.repeat(image(9)[:1], 3, axis=0)) == ["grey"]
    assert codes(domain, (image(9) // 2 + 127).astype(np.uint8)) == ["bright"]
    assert codes(replace(domain, trials=(replace(domain.trials[0], limit=99.0),)), 255 - image(9)) == ["unlike"]
    burnt = image(9)
    burnt[2, :, :40] = 255
    assert codes(a_domain(burnt), burnt) == ["saturated"]


@pytest.mark.parametrize(("gsd", "expected"), [(0.074, ["pixel_size"]), (0.076, []), (1.19, []), (1.21, ["pixel_size"])])
def test_a_card_without_a_domain_is_judged_by_pixel_size_and_bands(gsd: float, expected: list[str]) -> None:
    assert codes(None, 255 - image(9), gsd=gsd) == expected


def test_a_left_out_source_is_not_near() -> None:
    domain = a_domain(image(0), image(1), (image(2) // 3).astype(np.uint8))
    found = measure(patches_of(image(0)))
    assert found is not None
    assert domain.distance(found) == pytest.approx(0.0, abs=1e-9)
    assert domain.distance(found, without="s0") > 0.1


# -- the survey ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_survey_is_bounded_and_stays_within_the_region(data: st.DataObject) -> None:
    side = st.integers(1, 5000)
    whole = Window(data.draw(side), data.draw(side), data.draw(side), data.draw(side))
    region = GridRegion(whole, 1.0, None)
    found = windows_of(region, Window(0, 0, 6000, 6000))
    assert 1 <= len(found) <= MOST_WINDOWS
    assert len(set(found)) == len(found)
    assert all(window.intersection(whole) == window and not window.is_empty for window in found)
    assert windows_of(region, Window(whole.stop_row, 0, 10, 10_000)) == []


def test_a_thin_region_is_looked_at_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros((3, 4000, 4000), np.uint8), sparse_ok=True, tiled=True)
    source = open_raster(path, gsd=0.3)
    left, bottom, right, top = source.bounds
    line = shapely.LineString([(left, bottom), (right, top)]).buffer(5.0)
    region = region_on(Region(line, source.grid.crs), source.grid, source.bounds)
    found = windows_of(region, region.window)
    assert MOST_WINDOWS / 2 <= len(found) <= MOST_WINDOWS
    assert all(region.touches(window) for window in found)


def test_many_rasters_are_looked_at_evenly(tmp_path: Path) -> None:
    paths = []
    for i in range(MOST_RASTERS + 6):
        transform = at_place("EPSG:32630", (0.3, 0.3)) * type(at_place("EPSG:32630", (0.3, 0.3))).translation(32 * i, 0)
        paths.append(write(tmp_path / f"{i}.tif", pattern(32, 32, seed=i), transform=transform))
    source = open_raster(paths, gsd=0.3)
    region = region_on(None, source.grid, source.bounds)
    chosen = surveyed(source, region)
    assert len(chosen) == len(set(chosen)) == MOST_RASTERS
    assert chosen[0] == 0
    assert max(np.diff(chosen)) == 2
    [(pixels, valid)] = survey(source, chosen[-1], region)
    assert np.array_equal(pixels[:, valid], pattern(32, 32, seed=chosen[-1]).reshape(3, -1))


# -- the card ------------------------------------------------------------------------------------------------------------


def test_the_shipped_card_tells_its_domain_and_the_weights_are_untouched() -> None:
    bundle = find_model("buildings")
    assert bundle.domain is not None
    assert bundle.spec.version == "1.2.0"
    assert bundle.domain.places.shape == (len(bundle.domain.sources), len(MEASURES))
    assert len(set(bundle.domain.sources)) == 9
    assert {"bright", "dark", "inverted", "noisy"} <= {trial.code for trial in bundle.domain.trials}
    assert verify_weights(bundle)  # sha256 is the card's
    assert bundle.spec.weights_sha256.startswith("497aea17")
    assert find_model("tiny").domain is None


def test_every_training_place_is_within_the_limits_of_the_card() -> None:
    domain = find_model("buildings").domain
    assert domain is not None
    for place, source in zip(domain.places, domain.sources, strict=True):
        found = place * domain.std + domain.mean
        assert domain.distance(found, without=source) <= domain.limit
        assert all(score <= trial.limit for score, trial in zip(domain.scores(found), domain.trials, strict=True))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("gsd",), [1.0, 0.1], "gsd must be two positive numbers"),
        (("limit",), "far", "could not convert"),
        (("measures", "std"), "1 2 3", "3 numbers where 38"),
        (("measures", "names"), "p2", "not those of this version"),
        (("tests", "bright", "weights"), "nan " * 38, "38 numbers where 38 finite"),
        (("places",), {}, "need at least one array"),
        (("places",), [], "AttributeError"),
    ],
)
def test_a_domain_that_does_not_fit_is_an_error(path: tuple[str, ...], value: Any, message: str) -> None:
    item = json.loads((find_model("buildings").folder / "item.json").read_text(encoding="utf-8"))
    part = item["properties"][DOMAIN]
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(SourceError, match=f"card.json: geoinfer:domain does not fit.*{message}"):
        parse_domain(item, "card.json")


# -- a job ---------------------------------------------------------------------------------------------------------------


class Knowing(StandIn):
    """A predictor that knows its domain."""

    domain = a_domain(*(image(seed) for seed in range(4)))


def job_of(*paths: Path, predictor: StandIn | None = None, **asked: Any) -> Job:
    return make_job(list(paths), model=predictor or Knowing(spec_of(gsd=0.3)), **asked)


def test_what_was_found_warns_marks_refuses_or_is_ignored(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tif", image(9))
    light = write(tmp_path / "light.tif", (image(5) // 2 + 127).astype(np.uint8))
    job = job_of(good, light)
    warned, lines = trusted(job, "warn")
    assert warned.low_trust is None
    assert any("light.tif of 2: too light (bright " in line for line in lines)
    assert "good.tif" not in " ".join(lines)
    assert warned.domain is not None
    assert {finding["raster"] for finding in warned.domain["findings"]} == {1}
    assert json.loads(json.dumps(warned.domain)) == warned.domain
    marked, _ = trusted(job, "mark")
    assert marked.low_trust == (False, True)
    assert trusted(job, "ignore") == (job, [])
    with pytest.raises(SourceError, match=r"light\.tif of 2: too light.*--domain"):
        trusted(job, "refuse")
    assert trusted(job_of(good), "refuse")[1] == []


def test_a_run_that_only_warns_keeps_its_fingerprint(tmp_path: Path) -> None:
    job = job_of(write(tmp_path / "a.tif", (image(5) // 2 + 127).astype(np.uint8)))
    assert trusted(job, "warn")[0].describe() == job.describe()
    assert trusted(job, "mark")[0].describe() != job.describe()


def test_only_rasters_in_the_region_are_judged(tmp_path: Path) -> None:
    here = write(tmp_path / "here.tif", image(9))
    far = at_place("EPSG:32630", (0.3, 0.3)) * type(at_place("EPSG:32630", (0.3, 0.3))).translation(5000, 0)
    there = write(tmp_path / "there.tif", (image(5) // 2 + 127).astype(np.uint8), transform=far)
    whole = judge_domain(job_of(here, there))
    assert whole.low_trust == (False, True)
    bounds = open_raster(here, gsd=0.3).bounds
    part = judge_domain(job_of(here, there, bbox=bounds, bbox_crs="EPSG:32630"))
    assert part.is_clean
    assert (part.asked, part.surveyed) == (1, 1)


def test_values_lost_by_a_wrong_stretch_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", image(9).astype(np.uint16) * 40)
    plain = StandIn(spec_of(gsd=0.3))
    lost = judge_domain(job_of(path, predictor=plain, stretch=(0, 255)))
    assert [judged.finding.code for judged in lost.findings] == ["saturated"]
    assert "--stretch" in lost.lines()[0]
    assert judge_domain(job_of(path, predictor=plain)).is_clean


def test_imagery_of_the_wrong_size_or_one_band_is_reported(tmp_path: Path) -> None:
    coarse = write(tmp_path / "coarse.tif", image(9), transform=at_place("EPSG:32630", (3.0, 3.0)))
    assert [j.finding.code for j in judge_domain(job_of(coarse, predictor=StandIn(spec_of(gsd=0.3)))).findings] == [
        "pixel_size"
    ]
    grey = job_of(write(tmp_path / "a.tif", image(9)[:1]), bands=(1, 1, 1))
    assert {judged.finding.code for judged in judge_domain(grey).findings} == {"bands", "grey"}


# -- real imagery --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("name", PLACES)
def test_places_that_were_never_used_pass_and_altered_ones_do_not(tmp_path: Path, data_folder: Path, name: str) -> None:
    import rasterio

    path = data_folder / name
    assert judge_domain(make_job(path)).is_clean
    with rasterio.open(path) as file:
        pixels, mask = file.read((1, 2, 3)), file.read_masks(1) != 0
        transform, crs = file.transform, file.crs.to_string()
    curve = np.rint(255 * (np.arange(256) / 255) ** 0.4).astype(np.uint8)
    dark = (pixels * 0.15).astype(np.uint8)
    grey = np.repeat(pixels.mean(axis=0, keepdims=True).astype(np.uint8), 3, axis=0)
    for change, altered in {"light": curve[pixels], "dark": dark, "grey": grey, "haze": pixels // 3 + 150}.items():
        report = judge_domain(make_job(write(tmp_path / f"{change}.tif", altered, crs, transform, mask=mask)))
        assert report.low_trust == (True,), change
