"""The written report: what its three files hold, and a page that asks no server, escapes everything and can be read out."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from shapely.geometry import box

import geoinfer as gi
from geoinfer.errors import OutputError
from geoinfer.evaluation.assess import assess
from geoinfer.evaluation.chips import COLOURS, LEAST_M, chips, worst_rows
from geoinfer.evaluation.objects import objects
from geoinfer.evaluation.page import STYLE, Html, escape, number, tag, text_of
from geoinfer.evaluation.report import objects_table, plain, write_report
from geoinfer.evaluation.svg import Axis, Line, histogram, line_chart, ticks
from geoinfer.imagery import open_raster

UTM = "EPSG:32630"
ORIGIN = (700_000.0, 620_000.0)
SCRIPT = "<script>alert('x')</script>"
COLUMN = 'roof" onfocus="x'
HOSTILE = [SCRIPT, '"><img src=x onerror=alert(1)>', "</style></table><b>", "plain"]


def town(seed: int = 0, count: int = 120) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Predicted and true squares: most in pairs, some false, some missed, with attributes that nobody should trust."""
    rng = np.random.default_rng(seed)
    at = [(ORIGIN[0] + 20 * (k % 12) + 4, ORIGIN[1] - 20 * (k // 12) - 16) for k in range(count)]
    sides = rng.uniform(5, 12, count)
    truth = [box(x, y, x + side, y + side) for (x, y), side in zip(at, sides, strict=True)]
    pred = [shapely.affinity.translate(shape, *rng.normal(0, 0.4, 2)) for shape in truth[: count - 20]]
    pred += [box(x + 40_000, y, x + 40_006, y + 6) for x, y in at[:15]]  # far from all imagery
    pred += [box(x + 13, y, x + 15, y + 2) for x, y in at[:15]]  # between the houses
    confidence = rng.uniform(0.3, 1.0, len(pred))
    table = gpd.GeoDataFrame(
        {"confidence": confidence, COLUMN: rng.choice(HOSTILE, len(pred))}, geometry=pred, crs=UTM
    )  # fmt: skip
    return table, gpd.GeoDataFrame(geometry=truth, crs=UTM)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, and hostile words wherever words are taken in."""
    import rasterio
    from affine import Affine

    folder = tmp_path_factory.mktemp("report")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 480, 560), np.uint8)
    settings = {"crs": UTM, "transform": Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1]), "dtype": "uint8"}
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", count=3, height=480, width=560, **settings) as file:
        file.write(pixels)
    pred, truth = town()
    assessment = assess(pred, truth, slices=("size", COLUMN, "confidence"))
    source = open_raster([str(folder / "scene.tif")], gsd=0.5, core=256)
    write_report(assessment, folder, source, inputs={f"Predicted {SCRIPT}": f"{SCRIPT}.gpkg"}, title=f"Report {SCRIPT}")
    return folder / "report.html"


class Document(HTMLParser):
    """Elements in order, and whether each was closed where it should be."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, words: str) -> None:
        self.words.append(words)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


# --- the page ----------------------------------------------------------------------------------------------------------


def test_every_element_is_closed_and_nothing_is_asked_for(page: Path) -> None:
    text = page.read_text()
    found = Document(text)
    assert found.open == []
    names = {name for name, _ in found.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "b"}
    for name, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], name
        for key in ("src", "href", "srcset", "action", "data", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,", "data:,")), (name, value)
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert not re.search(r"https?://", text)


def test_what_came_in_as_words_stays_words(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text.replace("&quot;&gt;&lt;img src=x onerror=alert(1)&gt;", "")
    words = " ".join(Document(text).words)
    for hostile in HOSTILE:
        assert hostile in words  # shown as it is, not swallowed


def test_the_policy_allows_our_style_and_nothing_else(page: Path) -> None:
    text = page.read_text()
    policy = next(m["content"] for m in Document(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": f"'sha256-{digest}'", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip


def test_it_can_be_read_out(page: Path) -> None:
    text = page.read_text()
    found = Document(text)
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("h1")) == 1
    assert len(found.all("img")) == 24
    for image in found.all("img"):
        assert len(str(image["alt"])) > 40
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert len(tables) > 6
    for table in tables:
        assert table.startswith("<table><caption>")
        assert re.search(r'<thead><tr>(<th scope="col"[^>]*>[^<]+</th>)+</tr></thead>', table)
        assert all('scope="row' in row for row in re.findall(r"<tr[^>]*>.*?</tr>", table.split("<tbody>")[1], re.DOTALL))
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert re.match(r'<svg [^>]*role="img" aria-labelledby="(\S+) (\S+)"', chart)
        assert re.search(r"<title id=[^>]+>[^<]+</title><desc id=[^>]+>[^<]+</desc>", chart)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in found.all("a")} <= {f"#{name}" for name in ids}


def test_a_report_is_the_same_each_time(page: Path, tmp_path: Path) -> None:
    pred, truth = town()
    for name in ("one", "two"):
        write_report(assess(pred, truth, slices=("size",)), tmp_path / name)
    for file in ("evaluation.json", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_asks_for_the_page_alone(page: Path, tmp_path: Path) -> None:
    asked = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"] + self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Server(*args, directory=str(page.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        quiet.append("--disable-features=NetworkTimeServiceQuerying")
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path}",
             f"--host-resolver-rules=MAP * {address}", "--enable-logging=stderr", "--dump-dom", f"http://{address}/report.html"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        server.shutdown()
    assert asked == [f"{address}/report.html"]
    assert "Content Security Policy" not in done.stderr  # nothing was even tried
    assert "The worst mistakes" in done.stdout


# --- the files ---------------------------------------------------------------------------------------------------------


def test_json_has_the_figures_of_evaluate_at_the_top(page: Path) -> None:
    pred, truth = town()
    told = json.loads((page.parent / "evaluation.json").read_text(), parse_constant=pytest.fail)
    expected = gi.evaluate(pred, truth).to_dict()
    assert {key: told[key] for key in expected} == expected
    assert {"precision", "recall", "f1", "measures", "slices", "curves", "bias", "settings", "inputs", "geoinfer"} <= set(
        told
    )


def test_the_table_holds_every_footprint_with_its_outcome(page: Path) -> None:
    pred, truth = town()
    table = gpd.read_parquet(page.parent / "objects.parquet")
    total = gi.evaluate(pred, truth)
    assert table.groupby(["side", "outcome"]).size().to_dict() == {
        ("pred", "tp"): total.tp, ("pred", "fp"): total.fp, ("truth", "tp"): total.tp, ("truth", "fn"): total.fn,
    }  # fmt: skip
    assert table.crs == UTM
    mine = table[table["side"] == "pred"].set_index("row")
    assert np.array_equal(mine["confidence"].to_numpy(), pred["confidence"].to_numpy()[mine.index])
    pairs = mine[mine["outcome"] == "tp"]
    theirs = table[table["side"] == "truth"].set_index("row").loc[pairs["partner"]]
    assert np.array_equal(theirs["partner"].to_numpy(), pairs.index.to_numpy())
    assert np.array_equal(theirs["iou"].to_numpy(), pairs["iou"].to_numpy())
    assert set(mine.loc[mine["outcome"] == "fp", "reason"]) == {"alone"}


@pytest.mark.parametrize("no_pred", [True, False])
@pytest.mark.parametrize("no_truth", [True, False])
def test_an_empty_side_is_a_report(no_pred: bool, no_truth: bool, tmp_path: Path) -> None:
    pred, truth = town()
    pred, truth = pred.iloc[:0] if no_pred else pred, truth.iloc[:0] if no_truth else truth
    files = write_report(assess(pred, truth, slices=("size",)), tmp_path)
    told = json.loads(files[0].read_text(), parse_constant=pytest.fail)
    assert told["f1"] == gi.evaluate(pred, truth).f1
    for name, one in told["measures"].items():
        assert one["value"] is not None or one["note"], name
    assert len(gpd.read_parquet(files[1])) == len(pred) + len(truth)
    words = " ".join(Document(files[2].read_text()).words)
    assert not re.search(r"\b(nan|None|inf|NaT)\b", words)


def test_files_that_are_there_are_not_replaced_unasked_nor_left_half_written(tmp_path: Path) -> None:
    pred, truth = town(count=30)
    found = assess(pred, truth)
    write_report(found, tmp_path)
    with pytest.raises(OutputError, match=r"evaluation.json: exists; replace it with --overwrite"):
        write_report(found, tmp_path)
    write_report(found, tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "objects.parquet", "report.html"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        write_report(found, tmp_path / "file")


def test_plain_has_no_number_that_json_lacks() -> None:
    given = {
        "a": np.float64("nan"),
        "b": [np.int64(3), float("inf")],
        3: np.array([1.5, np.nan]),
        "c": (True, np.bool_(False)),
    }
    assert plain(given) == {"a": None, "b": [3, None], "3": [1.5, None], "c": [True, False]}


# --- the pictures ------------------------------------------------------------------------------------------------------


def test_the_worst_come_first_and_those_outside_the_imagery_are_left_out(page: Path) -> None:
    pred, truth = town()
    found = objects(pred, truth)
    fp, fn = worst_rows(found, "fp"), worst_rows(found, "fn")
    assert (np.diff(found.pred["confidence"].to_numpy()[fp]) <= 0).all()
    assert (np.diff(found.truth["area_m2"].to_numpy()[fn]) <= 0).all()
    assert Counter(found.pred["outcome"].iloc[fp]) == {"fp": len(fp)}
    source = open_raster([str(page.parent / "scene.tif")], gsd=0.5, core=256)
    assert len(list(chips(found, source, "fp", 99))) == 15  # the others lie 40 km to the east
    shown = list(chips(found, source, "fn", 5))
    assert [chip.area_m2 for chip in shown] == found.truth["area_m2"].iloc[fn[:5]].tolist()
    without = objects(pred.drop(columns="confidence"), truth)
    areas = without.pred["area_m2"].to_numpy()[worst_rows(without, "fp")]
    assert (np.diff(areas) <= 0).all()


def test_a_picture_shows_its_footprint_in_the_middle(tmp_path: Path, write_raster) -> None:
    scene = write_raster(pixels=np.full((3, 400, 400), 90, np.uint8), gsd=0.5, origin=ORIGIN)
    x, y = ORIGIN[0] + 100, ORIGIN[1] - 100
    truth = gpd.GeoDataFrame(geometry=[box(x - 5, y - 5, x + 5, y + 5)], crs=UTM)
    source = open_raster([str(scene)], gsd=0.5, core=256)
    found = objects(truth.iloc[:0], truth.to_crs(4326))
    (chip,) = chips(found, source, "fn")
    with MemoryFile(base64.b64decode(chip.image.partition(",")[2])) as memory, memory.open() as file:
        picture = file.read()  # (3, S, S)
    pixel = chip.side_m / picture.shape[2]
    assert chip.side_m == LEAST_M
    off = np.abs(picture.astype(int) - np.array(COLOURS["fn"])[:, None, None]).max(axis=0)
    drawn = np.argwhere(off < 60)  # JPEG blurs; the ground differs by more than 100
    middle = (drawn.min(axis=0) + drawn.max(axis=0)) / 2
    assert np.abs(middle - picture.shape[1] / 2).max() * pixel < 1.0  # the window lies on whole pixels of 0.5 m
    assert np.ptp(drawn, axis=0) * pixel == pytest.approx(10.0, abs=1.0)  # of the outline, some pixels wide


# --- the parts ---------------------------------------------------------------------------------------------------------


@given(st.text("<>&\"'=/ ab;"), st.text("<>&\"'=/ ab;"))
def test_text_is_escaped_wherever_it_stands(text: str, other: str) -> None:
    found = Document(tag("p", text, tag("em", other), title=other))
    assert found.elements == [("p", {"title": other}), ("em", {})]
    assert "".join(found.words) == text + other
    assert found.open == []
    assert escape(Html("<em>")) == "<em>"


@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e6))
def test_ticks_are_round_and_within(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-6 * width <= value <= (low + width) + 1e-6 * width for value in found)
    assert np.allclose(np.diff(found), found[1] - found[0], rtol=1e-5)


def test_a_line_breaks_where_there_is_no_number_and_stays_in_its_frame() -> None:
    chart = line_chart("T", "d", [Line("l", [0, 0.5, 0.7, 1], [0.2, np.nan, 5.0, -5.0])], Axis("x"), Axis("y"))
    path = re.search(r'<path d="([^"]*)" class="s0">', chart)
    assert path is not None
    assert [step[0] for step in path[1].split(" ") if step[0] in "ML"] == ["M", "M", "L"]
    assert "nan" not in chart
    heights = [float(value) for value in re.findall(r"[ML]\S+ (\S+)", path[1])]
    assert min(heights) >= 0


def test_bars_have_the_heights_of_their_counts() -> None:
    chart = histogram("T", "d", [0, 1, 2, 3], [1, 0, 4], "metres")
    heights = [float(value) for value in re.findall(r'height="([\d.]+)" class="bar"', chart)]
    assert heights[0] * 4 == pytest.approx(heights[2], abs=0.3)  # drawn to a tenth of a pixel
    assert heights[1] == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.0, "0"), (0.81234, "0.812"), (12.345, "12.35"), (-3.0, "−3.000"),
     (1234567.0, "1,234,567"), (0.0002, "0.0002"), (np.int64(12345), "12,345"), (True, "yes"), ("word", "word")],
)  # fmt: skip
def test_values_are_written_for_a_person(value: object, text: str) -> None:
    assert text_of(value) == text


def test_small_numbers_keep_their_sign() -> None:
    assert number(-0.00004) == "−4e-05"


def test_other_words_for_the_sides(tmp_path: Path) -> None:
    pred, truth = town(count=30)
    table = objects_table(objects(pred, truth), ("a", "b"), {"tp": "both"})
    assert set(table["side"]) == {"a", "b"}
    assert "both" in set(table["outcome"])
