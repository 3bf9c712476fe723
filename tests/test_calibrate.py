"""Temperature and reliability against formulas, the choice of a threshold against brute force, the card, and the verb."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.cli.main import main
from geoinfer.errors import ConfigError, SourceError
from geoinfer.evaluation import evaluate
from geoinfer.evaluation.calibrate import calibrate, choose
from geoinfer.evaluation.objective import parse_objective
from geoinfer.evaluation.places import Place, read_places, refuse_test
from geoinfer.evaluation.reliability import LEVELS, count_levels, fit_temperature, heat, level_reliability, reliability
from geoinfer.evaluation.sweep import Sweep, sweep
from geoinfer.job import make_job
from geoinfer.model.registry import find_model, write_calibration
from geoinfer.model.spec import CALIBRATIONS, Calibration, parse_calibrations
from tests.standins import StandIn, paint, spec_of, write_scene

MODELS = Path(__file__).parents[1] / "models"


# Reliability and temperature


def pixels(temperature: float, seed: int = 0, n: int = 400_000) -> np.ndarray:
    """(256, 2) levels of a network that is too sure (temperature > 1) or not sure enough."""
    rng = np.random.default_rng(seed)
    right = 1 / (1 + np.exp(-rng.normal(-0.5, 0.8, n)))  # what a calibrated network would say
    said = heat(right, 1 / temperature)
    return count_levels(np.rint(said * 255).astype(np.uint8), rng.random(n) < right, np.ones(n, bool))


@pytest.mark.parametrize("planted", [0.5, 0.8, 1.0, 1.7, 3.0])
def test_a_planted_temperature_is_recovered_and_mends_the_reliability(planted: float) -> None:
    counts = pixels(planted)
    found = fit_temperature(counts)
    assert found == pytest.approx(planted, rel=0.03)  # uint8 hides how sure the surest were
    before, after = level_reliability(counts), level_reliability(counts, found)
    assert after.ece is not None
    assert before.ece is not None
    assert after.ece < 0.01
    if planted != 1.0:
        assert after.ece < before.ece / 2
        assert after.brier < before.brier


def test_the_fitted_temperature_has_the_greatest_likelihood() -> None:
    counts = pixels(1.6, 3, 20_000)

    def likelihood(temperature: float) -> float:
        p = heat(LEVELS, temperature)
        return float((counts[:, 0] * np.log(p) + (counts[:, 1] - counts[:, 0]) * np.log(1 - p)).sum())

    best = fit_temperature(counts)
    assert all(likelihood(best) >= likelihood(best * step) for step in (0.9, 0.99, 1.01, 1.1))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_ece_and_brier_are_their_formulas(rows: list) -> None:
    prob, true = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = reliability(prob, true, bins=10)
    assert found.brier == pytest.approx(np.mean((prob - true) ** 2), abs=1e-12)
    bins = [[at for at in range(len(rows)) if min(int(prob[at] * 10), 9) == number] for number in range(10)]
    gaps = [len(part) / len(rows) * abs(prob[part].mean() - true[part].mean()) for part in bins if part]
    assert found.ece == pytest.approx(sum(gaps), abs=1e-12)
    assert found.table["n"].sum() == found.n == len(rows)


def test_unknown_confidences_take_no_part() -> None:
    found = reliability(np.array([0.9, np.nan]), np.array([True, False]))
    assert (found.n, found.brier) == (1, pytest.approx(0.01))
    assert reliability(np.array([np.nan]), np.array([True])).ece is None


@pytest.mark.parametrize("rows", [[], [(200, True)], [(30, False)], [(30, True), (220, False)]])
def test_pixels_that_fit_no_temperature_are_refused(rows: list) -> None:
    prob, truth = np.array([row[0] for row in rows], np.uint8), np.array([row[1] for row in rows], bool)
    with pytest.raises(ConfigError, match="temperature"):
        fit_temperature(count_levels(prob, truth, np.ones(len(rows), bool)))


# The objective and the choice


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("f1", "f1"),
        ("precision>=0.9", "recall,precision>=0.9"),
        ("recall >= .8", "precision,recall>=0.8"),
        ("f1, precision>=0.8", "f1,precision>=0.8"),
    ],
)
def test_objectives_in_words(text: str, told: str) -> None:
    assert str(parse_objective(text)) == told
    assert str(parse_objective(told)) == told


@pytest.mark.parametrize("text", ["", "iou", "f1,recall", "precision>=1.5", "precision>0.9", "f1>=0.5"])
def test_objectives_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        parse_objective(text)


counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=6, max_size=6)


@given(counts, st.sampled_from(["f1", "precision>=0.6", "recall>=0.5", "f1,precision>=0.7"]))
def test_the_choice_is_the_best_of_all_that_keep_the_guards(rows: list, text: str) -> None:
    candidates = ((0.5, 10.0), (0.3, 0.0), (0.3, 10.0), (0.5, 0.0), (0.7, 0.0), (0.7, 10.0))
    found, objective = Sweep(candidates, np.array([rows], float), np.zeros((256, 2), np.int64)), parse_objective(text)

    def figure(name: str, row: tuple) -> float:
        tp, fp, fn = row
        part, whole = {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}[name]
        return part / whole if whole else -1.0

    keeps = [row for row in rows if all(figure(name, row) >= least for name, least in objective.guards)]
    best = max((figure(objective.maximise, row) for row in keeps), default=-1.0)
    if best < 0 or not rows[0][0] + rows[0][2]:
        with pytest.raises(ConfigError):
            choose(found, objective, replicates=100)
        return
    choice = choose(found, objective, replicates=100)
    assert choice.chosen[objective.maximise] == pytest.approx(best)
    if figure(objective.maximise, rows[0]) == best and rows[0] in keeps:
        assert (choice.threshold, choice.min_area_m2) == candidates[0]  # nothing is changed without a reason


def test_a_guard_out_of_reach_says_how_near_it_is() -> None:
    found = Sweep(((0.5, 0.0),), np.array([[[6.0, 4.0, 2.0]]]), np.zeros((256, 2), np.int64))
    with pytest.raises(ConfigError, match=r"reaches precision 0\.9, the most is 0\.600; try higher thresholds"):
        choose(found, parse_objective("precision>=0.9"))


def test_a_gain_that_is_luck_is_told_and_the_held_out_halves_see_through_it() -> None:
    rng = np.random.default_rng(1)
    tp = rng.binomial(20, 0.6, (40, 30)).astype(float)  # 30 candidates of which none is better
    sums = np.stack([tp, np.full_like(tp, 8), 20 - tp], axis=2)
    found = Sweep(tuple((0.2 + 0.02 * at, 0.0) for at in range(30)), sums, np.zeros((256, 2), np.int64))
    choice = choose(found, parse_objective("f1"), replicates=300)
    assert choice.held_out is not None
    assert float(choice.chosen["f1"] or 0) > float(choice.held_out["f1"] or 0)
    expected = 2 * 12 / (2 * 12 + 8 + 8)
    assert choice.held_out["f1"] == pytest.approx(expected, abs=0.03)


# Places


def scene(folder: Path, seed: int = 0, name: str = "scene") -> tuple[Path, Path, gpd.GeoDataFrame]:
    """Imagery with bright roofs, and the roofs."""
    pixels = paint(256, 256, seed, roofs=30)
    path = write_scene(folder / f"{name}.tif", pixels)
    rows, cols = np.nonzero(pixels[0] >= 150)
    squares = shapely.box(
        700_013.5 + cols * 0.5, 620_007 - (rows + 1) * 0.5, 700_013.5 + (cols + 1) * 0.5, 620_007 - rows * 0.5
    )
    roofs = gpd.GeoDataFrame(geometry=[*shapely.get_parts(shapely.union_all(squares))], crs="EPSG:32630")
    roofs.to_file(folder / f"{name}.geojson")
    return path, folder / f"{name}.geojson", gpd.read_file(folder / f"{name}.geojson")


def test_a_sweep_counts_what_evaluate_counts(tmp_path: Path) -> None:
    import geoinfer as gi

    image, _, roofs = scene(tmp_path)
    west, south, east, north = roofs.total_bounds
    aoi = gpd.GeoDataFrame(geometry=[shapely.box(west + 10, south + 5, east - 10, north - 20)], crs=roofs.crs)
    predictor = StandIn(spec_of(threshold=0.5, min_area_m2=20.0))
    table = sweep([Place("s", image, roofs, aoi)], predictor, thresholds=[0.4, 0.6], min_areas=[0.0, 20.0, 60.0]).table()
    assert table.loc[0, ["threshold", "min_area_m2"]].tolist() == [0.5, 20.0]
    for row in table.itertuples():
        model = StandIn(spec_of(threshold=row.threshold, min_area_m2=row.min_area_m2))
        found = evaluate(gi.detect(image, model=model), roofs, aoi=aoi)
        assert (row.tp, row.fp, row.fn) == (found.tp, found.fp, found.fn)


def test_each_place_is_predicted_once(tmp_path: Path) -> None:
    image, _, roofs = scene(tmp_path)
    predictor = StandIn()
    sweep([Place("s", image, roofs, None)], predictor, thresholds=[0.5])
    once = sum(predictor.calls)
    predictor.calls.clear()
    sweep([Place("s", image, roofs, None)], predictor, thresholds=[0.3, 0.4, 0.5, 0.6, 0.7])
    assert sum(predictor.calls) == once


def test_calibration_brings_a_wrong_threshold_back(tmp_path: Path) -> None:
    image, _, roofs = scene(tmp_path)
    predictor = StandIn(spec_of(threshold=0.95, min_area_m2=2.0))
    found, _ = calibrate("here", [Place("s", image, roofs, None)], predictor, thresholds=[0.4, 0.6, 0.8], replicates=100)
    assert found.threshold in (0.4, 0.6)
    assert found.evidence["chosen"]["f1"] > found.evidence["before"]["f1"] + 0.2


def test_pixels_without_imagery_say_nothing_about_the_probabilities(tmp_path: Path) -> None:
    pixels = paint(256, 256, 0)
    pixels[:, :, 128:] = 0
    image = write_scene(tmp_path / "half.tif", pixels, nodata=0)
    roofs = gpd.GeoDataFrame(geometry=[shapely.box(700_020, 619_900, 700_060, 619_990)], crs="EPSG:32630")
    found = sweep([Place("s", image, roofs, None)], StandIn(), thresholds=[0.5])
    assert 0 < found.levels[:, 1].sum() <= 256 * 128


def listing(folder: Path, text: str, name: str = "split.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_places_kept_for_testing_are_refused_wherever_it_is_said(tmp_path: Path) -> None:
    image, labels, _ = scene(tmp_path)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    shutil.copy(image, inner / "deep.tif")
    listing(tmp_path, "image,split\nscene.tif,val\na/b/deep.tif,water_test\n")
    refuse_test(image)
    with pytest.raises(ConfigError, match="split water_test"):
        refuse_test(inner / "deep.tif")
    rows = listing(tmp_path, f"image,labels,split\n{image.name},{labels.name},test\n", "places.csv")
    with pytest.raises(ConfigError, match="split test"):
        read_places(rows, "here")


def test_places_of_a_csv_by_region(tmp_path: Path) -> None:
    for name in ("one", "two"):
        scene(tmp_path, name=name)
    rows = listing(
        tmp_path, "image,labels,aoi,region\none.tif,one.geojson,,west\ntwo.tif,two.geojson,one.geojson,east\n", "places.csv"
    )
    found = read_places(rows)
    assert {region: [place.name for place in places] for region, places in found.items()} == {
        "west": ["one.tif"],
        "east": ["two.tif"],
    }
    assert found["west"][0].aoi is None
    assert found["east"][0].aoi is not None
    assert list(read_places(rows, "west")) == ["west"]
    with pytest.raises(ConfigError, match="there are east, west"):
        read_places(rows, "north")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("image,label\na.tif,b\n", ConfigError, "columns image,labels"),
        ("image,labels\n", ConfigError, "and a row"),
        ("image,labels\n,b\n", ConfigError, "lacks its image"),
        ("image,labels\ngone.tif,gone.gpkg\n", SourceError, "no such file"),
    ],
)
def test_a_csv_that_cannot_work_is_one_clear_line(tmp_path: Path, text: str, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        read_places(listing(tmp_path, text, "places.csv"), "here")


# The card


def entry(**changes: object) -> Calibration:
    return replace(Calibration("Accra", 0.4, 15.0, 1.2, "f1", {"n": 1}), **changes)  # type: ignore[arg-type]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "tiny", tmp_path / "tiny"))


def test_cards_that_were_never_calibrated_are_read_as_before() -> None:
    assert find_model("tiny").calibrations == {}
    assert find_model("buildings").spec.threshold == 0.45


def test_what_is_written_into_a_card_is_read_back_and_changes_nothing_else(card: Path) -> None:
    before = json.loads((card / "item.json").read_text())
    bundle = find_model(card)
    for one in (entry(), entry(region="Boston", temperature=None), entry(threshold=0.6)):
        write_calibration(bundle, one)
    again = find_model(card)
    assert again.calibrations == {"Accra": entry(threshold=0.6), "Boston": entry(region="Boston", temperature=None)}
    assert again.spec == bundle.spec  # so no job and no fingerprint knows of it
    after = json.loads((card / "item.json").read_text())
    del after["properties"][CALIBRATIONS]
    assert after == before
    assert sorted(path.name for path in card.iterdir()) == sorted(path.name for path in (MODELS / "tiny").iterdir())


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"min_area_m2": -1}, {"temperature": 0}, {"threshold": "high"}, "none"]
)
def test_an_entry_that_does_not_fit_names_its_region_and_the_remedy(wrong: object) -> None:
    value = wrong if isinstance(wrong, str) else {**entry().to_dict(), **wrong}  # type: ignore[dict-item]
    with pytest.raises(SourceError, match=r"'Accra' does not fit.*geoinfer calibrate"):
        parse_calibrations({"properties": {CALIBRATIONS: {"Accra": value}}}, "item.json")


# The verb


def test_a_run_takes_a_regions_settings_when_it_is_told_the_region(tmp_path: Path, card: Path) -> None:
    bundle = find_model(card)
    write_calibration(bundle, Calibration("here", 0.25, 7.0, None, "f1", {}))
    image = write_scene(tmp_path / "scene.tif", np.full((3, 400, 400), 90, np.uint8))
    plain, there = make_job(str(image), model=card), make_job(str(image), model=card, calibrated="here")
    assert (plain.threshold, plain.min_area_m2) == (bundle.spec.threshold, bundle.spec.min_area_m2)
    assert (there.threshold, there.min_area_m2) == (0.25, 7.0)
    assert make_job(str(image), model=card, calibrated="here", threshold=0.5).threshold == 0.5
    with pytest.raises(ConfigError, match=r"'nowhere': the card of model .* has here"):
        make_job(str(image), model=card, calibrated="nowhere")


def test_the_verb_writes_only_when_it_is_told_to(tmp_path: Path, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, labels, _ = scene(tmp_path)
    untouched = (card / "item.json").read_bytes()
    command = [
        "calibrate",
        str(image),
        str(labels),
        "--region",
        "here",
        "--model",
        str(card),
        "--thresholds",
        "0.3,0.5,0.7",
        "--json",
    ]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)["regions"][0]
    assert told["card"] is None
    assert (card / "item.json").read_bytes() == untouched
    assert {"before", "after"} == set(told["reliability"])
    assert len(told["tried"]) == 3 * 4
    assert main([*command, "--write"]) == 0
    capsys.readouterr()
    assert find_model(card).calibrations["here"].threshold == told["threshold"]
    assert main(["models", "show", str(card)]) == 0
    assert "in here: threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no place"),
        (["a.tif", "b.gpkg"], "--region NAME"),
        (["a.tif", "b.gpkg", "--places", "c.csv"], "not both"),
        (["a.tif", "b.gpkg", "--region", "x", "--objective", "iou"], "objective 'iou'"),
        (["a.tif", "b.gpkg", "--region", "x", "--thresholds", "high"], "--thresholds high"),
    ],
)
def test_a_users_mistakes_are_one_line(arguments: list, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.strip().splitlines()) == 1


def test_the_verb_refuses_test_places(tmp_path: Path, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, labels, _ = scene(tmp_path)
    listing(tmp_path, "image,split\nscene.tif,test\n")
    assert main(["calibrate", str(image), str(labels), "--region", "here", "--model", str(card), "--write"]) == 2
    assert "split test" in capsys.readouterr().err
    assert find_model(card).calibrations == {}


def test_half_of_the_probabilities_stay_half() -> None:
    assert heat(np.array([0.5]), 3.0)[0] == 0.5
    assert math.isclose(heat(np.array([0.9]), 1.0)[0], 0.9)
