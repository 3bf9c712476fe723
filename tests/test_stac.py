"""STAC: filters, items, links, paging and signing; and searches against a real API, compared with pystac-client."""

from __future__ import annotations

import copy
import datetime as dt
import http.server
import json
import math
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import geopandas as gpd
import numpy as np
import pytest
from faultserver import faulty
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import at_place, pattern, write
from stacserver import StacServer, collection_of, item_of, stac_server

from geoinfer.cli.main import main
from geoinfer.errors import ConfigError, GeoinferError, RemoteError, SafetyError, SourceError
from geoinfer.grid import Window
from geoinfer.imagery import stac
from geoinfer.imagery.locate import find
from geoinfer.imagery.options import Search, SourceOptions
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.stac.filter import Condition, Wanted, boxes_of, parse_condition, parse_interval, split_box, text_of
from geoinfer.imagery.stac.io import pystac, quiet
from geoinfer.imagery.stac.items import Item, choose_asset, scene_of
from geoinfer.imagery.stac.links import Origin, resolve
from geoinfer.region import Region
from geoinfer.remote import signing
from geoinfer.remote.access import Access

HERE = Origin("https://example.com/stac/items/a.json", None)
TIFF = "image/tiff; application=geotiff"
PLACES = {"accra": (-0.2, 5.58), "kumasi": (-1.62, 6.69), "suva": (179.999, -18.1), "taveuni": (-179.999, -16.8)}


def bare(**search: Any) -> SourceOptions:
    return SourceOptions(search=Search(**search), access=Access(hosts=("127.0.0.1",), tries=3))


def an_item(
    name: str = "a", *, collection: str | None = "c", assets: dict[str, Any] | None = None, **rest: Any
) -> dict[str, Any]:
    """A small item: a degree's square around (0.5, 0.5)."""
    square = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2024-05-06T07:08:09Z", **rest.pop("properties", {})},
        "links": [],
        "assets": {"visual": {"href": f"{name}.tif", "type": TIFF}} if assets is None else assets,
        **rest,
    }


def scene(value: dict[str, Any], options: SourceOptions | None = None, origin: Origin = HERE) -> Scene:
    return scene_of(Item(pystac.Item.from_dict(value), origin), options or SourceOptions())


# --- a small server whose answers a test writes ------------------------------------------------------------------------


@dataclass
class Answers:
    """An HTTP server: path and query -> status and document."""

    answer: Callable[[str, dict[str, str]], tuple[int, Any]]
    address: str = ""
    hits: list[str] = field(default_factory=list)


@contextmanager
def answering(answer: Callable[[str, dict[str, str]], tuple[int, Any]]) -> Iterator[Answers]:
    served = Answers(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.hits.append(self.path)
            parts = urlsplit(self.path)
            status, document = served.answer(parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()})
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", document)
                document = {}
            body = json.dumps(document).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def always(document: Any) -> Callable[[str, dict[str, str]], tuple[int, Any]]:
    return lambda _path, _query: (200, document)


def landing(address: str) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "api",
        "description": "x",
        "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
        "links": [{"rel": "search", "href": f"{address}/search", "type": "application/geo+json", "method": "GET"}],
    }


def page(items: list[dict[str, Any]], following: str | None = None) -> dict[str, Any]:
    links = [{"rel": "next", "href": following, "type": "application/geo+json", "method": "GET"}] if following else []
    return {"type": "FeatureCollection", "features": items, "links": links}


def ids(items: list[Item]) -> list[str]:
    return [item.value.id for item in items]


# --- filters -----------------------------------------------------------------------------------------------------------


@given(
    st.from_regex(r"[a-z][a-z_:]{0,12}", fullmatch=True),
    st.sampled_from(["<", "<=", ">", ">=", "=", "!="]),
    st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), st.booleans()),
    st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6), st.booleans(), st.none()),
)
def test_a_condition_compares_as_python_does(name: str, operator: str, value: Any, found: Any) -> None:
    condition = parse_condition(f"{name}{operator}{json.dumps(value)}")
    python = {"=": "==", "!=": "!="}.get(operator, operator)
    kinds = {isinstance(side, bool) for side in (value, found)}
    if found is None:
        wanted = False
    elif len(kinds) == 2:
        wanted = operator == "!="
    else:
        wanted = eval(f"found {python} value", {"found": found, "value": value})
    assert condition.meets({name: found}) == wanted


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("eo:cloud_cover<10", Condition("eo:cloud_cover", "lt", 10)),
        (" gsd <= 0.5 ", Condition("gsd", "lte", 0.5)),
        ("platform=sentinel-2b", Condition("platform", "eq", "sentinel-2b")),
        ('mgrs:utm_zone="30"', Condition("mgrs:utm_zone", "eq", "30")),
        ("proj:code<>EPSG:32630", Condition("proj:code", "neq", "EPSG:32630")),
        ("flag==true", Condition("flag", "eq", True)),
    ],
)
def test_what_a_condition_means(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    "text", ["", "a", "a<", "<3", "a<3 and b>2", "a<=<3", "a;b<1", "a<nan", "a<inf", "a(b)=1", "a=1=2", "s LIKE x", "a<\n"]
)
def test_what_is_no_condition_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="--query"):
        parse_condition(text)


def test_a_range_of_times_is_that_of_pystac_client() -> None:
    from pystac_client import ItemSearch

    for text in (
        "2024",
        "2024-05",
        "2024-05-06",
        "2023-11/2024-02",
        "2024-05-06T07:08:09Z",
        "../2024",
        "2024-02-28/..",
        "2024/",
    ):
        theirs = ItemSearch("https://example.com/search", datetime=text)._parameters["datetime"].split("/")
        ours = [None if moment is None else text_of(moment) for moment in parse_interval(text)]
        seconds = [(value or "..").replace(".999999Z", "Z") for value in ours]  # theirs end a second early
        assert seconds == (theirs if len(theirs) == 2 else theirs * 2)


@pytest.mark.parametrize("text", ["", "..", "../..", "2024/2023", "2024-13", "2024-02-30", "yesterday", "1/2/3", "24-05"])
def test_what_is_no_range_of_times_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="--datetime"):
        parse_interval(text)


@given(st.floats(-180, 180), st.floats(0.001, 90), st.floats(-80, 80))
def test_a_box_over_the_antimeridian_is_two(west: float, width: float, south: float) -> None:
    east = west + width
    wrapped = east - 360 if east > 180 else east
    parts = split_box([west, south, wrapped, south + 1])
    assert len(parts) == (2 if east > 180 else 1)
    assert all(-180 <= part[0] <= part[2] <= 180 for part in parts)
    assert math.isclose(sum(part[2] - part[0] for part in parts), width, abs_tol=1e-6)


def test_a_region_over_the_antimeridian_is_searched_in_two_boxes() -> None:
    assert boxes_of(Region.from_bbox("170,-20,-170,-10")) == ((-180.0, -20.0, -170.0, -10.0), (170.0, -20.0, 180.0, -10.0))
    (box,) = boxes_of(Region.from_bbox("700000,610000,710000,620000", "EPSG:32630"))
    assert box[0] < -1.19 < box[2]
    assert box[1] < 5.56 < box[3]


def test_an_item_with_a_span_of_time_is_found_by_any_moment_in_it() -> None:
    spanning = an_item(
        properties={"datetime": None, "start_datetime": "2023-01-01T00:00:00Z", "end_datetime": "2023-12-31T00:00:00Z"}
    )
    item = pystac.Item.from_dict(spanning)
    assert Wanted.of(Search(datetime="2023-06"), None).meets(item)
    assert not Wanted.of(Search(datetime="2024"), None).meets(item)
    assert scene(spanning).datetime == "2023-01-01T00:00:00Z"


# --- an item as a raster -----------------------------------------------------------------------------------------------


def declared(version: str) -> dict[str, Any]:
    """The same asset in STAC 1.0 and in 1.1: blue, green, red and infrared, scaled reflectance."""
    statistics = [{"minimum": 10 * at + 1, "maximum": 10 * at + 900} for at in range(4)]
    scaled = {"scale": 0.0001, "offset": -0.1}
    names = ("blue", "green", "red", "nir")
    asset = {
        "href": "../imagery/a.tif",
        "type": TIFF,
        "proj:shape": [200, 300],
        "proj:transform": [0.5, 0, 700000, 0, -0.5, 620000, 0, 0, 1],
        "file:size": 12345,
        "file:checksum": "1220" + "ab" * 32,
    }
    if version == "1.0.0":
        asset["eo:bands"] = [{"name": f"B{at}", "common_name": name} for at, name in enumerate(names)]
        asset["raster:bands"] = [{"data_type": "uint16", "nodata": 0, "statistics": value, **scaled} for value in statistics]
        asset["proj:epsg"] = 32630
        extensions = ("eo/v1.1.0", "raster/v1.1.0", "projection/v1.1.0")
    else:
        asset["bands"] = [
            {
                "name": f"B{at}",
                "eo:common_name": name,
                "statistics": statistics[at],
                **{f"raster:{key}": value for key, value in scaled.items()},
            }
            for at, name in enumerate(names)
        ]
        asset |= {"data_type": "uint16", "nodata": 0, "proj:code": "EPSG:32630"}
        extensions = ("eo/v2.0.0", "raster/v2.0.0", "projection/v2.0.0")
    return an_item(
        assets={"data": asset},
        stac_version=version,
        stac_extensions=[f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        properties={"eo:cloud_cover": 12.5, "platform": "skysat"},
    )


def test_stac_1_0_and_1_1_declare_the_same_raster() -> None:
    old, new = scene(declared("1.0.0")), scene(declared("1.1.0"))
    assert old == new
    assert old.address == "https://example.com/stac/imagery/a.tif"
    assert not old.is_typed
    assert (old.item, old.collection, old.datetime, old.cloud_cover) == ("a", "c", "2024-05-06T07:08:09Z", 12.5)
    assert old.bands == (3, 2, 1)
    assert old.scale == (0.0001,) * 3
    assert old.offset == (-0.1,) * 3
    assert old.limits == ((21, 920), (11, 910), (1, 900))
    assert old.nodata == 0
    assert old.platform == "skysat"
    assert old.expected is not None
    assert (old.expected.size, old.expected.sha256) == (12345, "ab" * 32)
    assert old.header is not None
    assert (old.header.height, old.header.width, old.header.count, old.header.dtype) == (200, 300, 4, "uint16")
    assert old.header.crs.to_epsg() == 32630
    assert tuple(old.header.transform)[:6] == (0.5, 0, 700000, 0, -0.5, 620000)


def test_the_users_bands_win_and_bring_their_own_scale() -> None:
    value = declared("1.0.0")
    value["assets"]["data"]["raster:bands"][3]["scale"] = 0.5
    found = scene(value, SourceOptions(bands=(4, 3, 2)))
    assert found.bands == (4, 3, 2)
    assert found.scale == (0.5, 0.0001, 0.0001)


@pytest.mark.parametrize(
    "wrong",
    [
        {"proj:epsg": 999999},
        {"proj:shape": [0, 3]},
        {"proj:shape": [2**40, 3]},
        {"proj:shape": "x"},
        {"proj:transform": [0, 0, 0, 0, 0, 0]},
        {"proj:transform": [1, 2]},
        {"proj:transform": [float("nan"), 0, 0, 0, -1, 0]},
        {"file:size": -3, "file:checksum": "1220zz"},
    ],
)
def test_what_is_declared_wrongly_is_left_out(wrong: dict[str, Any]) -> None:
    value = declared("1.0.0")
    value["assets"]["data"] |= wrong
    found = scene(value)
    assert (found.expected if "file:size" in wrong else found.header) is None


def test_nan_is_a_nodata_and_a_box_serves_for_a_transform() -> None:
    value = declared("1.0.0")
    asset = value["assets"]["data"]
    for band in asset["raster:bands"]:
        band["nodata"] = "nan"
    del asset["proj:transform"]
    asset["proj:bbox"] = [0, 0, 150, 100]
    found = scene(value)
    assert found.nodata is not None
    assert math.isnan(found.nodata)
    assert found.header is not None
    assert tuple(found.header.transform)[:6] == (0.5, 0, 0, 0, -0.5, 100)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a document."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


@settings(max_examples=300)
@given(
    st.sampled_from(["1.0.0", "1.1.0"]),
    st.randoms(use_true_random=False),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("nan"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=4,
    ),
)
def test_any_damage_to_an_item_gives_a_raster_or_an_error_of_ours(version: str, random: Random, damage: Any) -> None:
    value = declared(version)
    way = random.choice(list(leaves(value)))
    place = value
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = damage
    wanted = Wanted.of(Search(datetime="2024", query=("eo:cloud_cover<50",)), Region.from_bbox("0,0,1,1"))
    with quiet(), suppress(GeoinferError):
        item = stac._item(value, HERE, is_own=True)
        wanted.meets(item.value)
        pickle.loads(pickle.dumps(scene_of(item, SourceOptions())))


def assets(**kinds: str) -> dict[str, Any]:
    """Key -> role, bands: `data:rgb`, `data:r`, `visual`, `png`."""
    colours = {"r": "red", "g": "green", "b": "blue"}
    made: dict[str, Any] = {}
    for key, kind in kinds.items():
        role, _, bands = kind.partition(":")
        made[key] = {"href": f"{key}.tif", "type": "image/png" if role == "png" else TIFF, "roles": [role]}
        if bands:
            made[key]["eo:bands"] = [{"name": letter, "common_name": colours[letter]} for letter in bands]
    return made


@pytest.mark.parametrize(
    ("kinds", "wanted", "chosen"),
    [
        ({"visual": "data:rgb", "B04": "data:r"}, (), "visual"),
        ({"image": "data:rgb", "thumbnail": "thumbnail:rgb", "scl": "data:r"}, (), "image"),
        ({"image": "data", "udm": "cloud"}, (), "image"),
        ({"anything": "other", "preview": "png"}, (), "anything"),
        ({"a": "data:rgb", "b": "data:rgb"}, ("b",), "b"),
        ({"a": "data:rgb", "b": "data:rgb"}, ("zz", "a"), "a"),
    ],
)
def test_which_asset_is_read(kinds: dict[str, str], wanted: tuple[str, ...], chosen: str) -> None:
    assert choose_asset(pystac.Item.from_dict(an_item(assets=assets(**kinds))), wanted) == chosen


@pytest.mark.parametrize(
    ("kinds", "wanted", "said"),
    [
        ({"a": "data:rgb", "b": "data:rgb"}, (), "--asset"),
        ({"red": "data:r", "green": "data:g", "blue": "data:b"}, (), "one file"),
        ({"red": "data:r", "visual": "data:rgb"}, ("red",), "one file"),
        ({"a": "png"}, (), "no asset is a GeoTIFF"),
        ({"a": "png"}, ("a",), "image/png"),
        ({"a": "data:rgb"}, ("b",), "it has a"),
        ({}, (), "it has none"),
    ],
)
def test_an_asset_that_cannot_be_chosen_is_an_error_that_says_why(
    kinds: dict[str, str], wanted: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        choose_asset(pystac.Item.from_dict(an_item(assets=assets(**kinds))), wanted)


# --- where links may lead (rows 60 and 63) -----------------------------------------------------------------------------

EVIL = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://example.com/x.tif",
    "ftp://example.com/x.tif",
    "dict://127.0.0.1:11211/",
    "data:image/tiff;base64,AAAA",
    "/vsicurl/http://127.0.0.1/x.tif",
    "/vsizip//vsicurl/http://example.com/a.zip/x.tif",
    "//vsis3/bucket/x.tif",
    "vsimem/x.tif",
    "GTIFF_RAW:x.tif",
    "WMTS:http://127.0.0.1/x",
    "<VRTDataset/>",
    '{"type": "cog"}',
    "http://169.254.169.254/latest/meta-data/x.tif",
    "http://metadata@169.254.169.254/x.tif",
    "http://127.0.0.1/x.tif",
    "http://127.1/x.tif",
    "http://2130706433/x.tif",
    "http://0x7f000001/x.tif",
    "http://[::1]/x.tif",
    "http://[::ffff:127.0.0.1]/x.tif",
    "http://10.0.0.7/x.tif",
    "http://192.168.1.1/x.tif",
    "http://localhost/x.tif",
    "//127.0.0.1/x.tif",
    "//169.254.169.254/x.tif",
]


@pytest.mark.parametrize("href", EVIL)
@pytest.mark.parametrize("base", ["https://example.com/a/item.json", "{folder}/item.json"])
def test_an_item_may_not_lead_into_this_machine_or_its_network(href: str, base: str, tmp_path: Path) -> None:
    origin = Origin.typed(base.format(folder=tmp_path))
    if not base.startswith("https") and href.startswith(("//127", "//169")):
        href = ".." + href  # of a local document that is a path
    with pytest.raises(SafetyError, match="refused"):
        resolve(href, origin, Access())


@pytest.mark.parametrize("href", ["../x.tif", "/etc/passwd", "a/../../x.tif", "link/x.tif", "link.tif"])
def test_a_local_document_leads_only_to_files_in_its_folder(href: str, tmp_path: Path) -> None:
    inside, outside = tmp_path / "catalog", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.tif").write_bytes(b"II*\0")
    (inside / "link").symlink_to(outside)
    (inside / "link.tif").symlink_to(outside / "x.tif")
    with pytest.raises(SafetyError, match="outside the folder"):
        resolve(href, Origin.typed(str(inside / "catalog.json")), Access())


@given(st.text(min_size=1, max_size=40))
def test_whatever_a_link_says_it_stays_inside_or_is_refused(href: str) -> None:
    origin = Origin("/data/catalog/item.json", "/data/catalog")
    try:
        address = resolve(href, origin, Access())
    except GeoinferError:
        return
    assert address.startswith(("/data/catalog", "http", "s3", "gs", "az", "abfs", "gcs"))


def test_relative_links_are_of_the_document() -> None:
    local = Origin.typed("/data/catalog/2024/item.json")
    bucket = Origin("s3://bucket/stac/item.json", None)
    assert resolve("./a.tif", local, Access()) == "/data/catalog/2024/a.tif"
    assert resolve("./img/a.tif", bucket, Access()) == "s3://bucket/stac/img/a.tif"
    assert resolve("../a.tif", HERE, Access()) == "https://example.com/stac/a.tif"
    assert resolve("/a.tif?sig=1", HERE, Access()) == "https://example.com/a.tif?sig=1"


def test_a_refused_address_is_never_asked() -> None:
    with answering(always({})) as victim:
        port = victim.address.rpartition(":")[2]
        hostile = an_item(assets={"visual": {"href": f"{victim.address}/x.tif", "type": TIFF}})

        def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
            if path == "/redirect":
                return 302, f"{victim.address}/item.json"
            if path == "/child":
                return 200, {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "x",
                             "links": [{"rel": "item", "href": f"{victim.address}/item.json"}]}  # fmt: skip
            if path == "/page":
                return 200, page([an_item()], f"http://localhost:{port}/next")
            return 200, hostile

        with answering(answer) as server:
            allowed = Access(hosts=(server.address.partition("//")[2],), tries=2)
            for path in ("item", "redirect", "child", "page"):
                with pytest.raises(SafetyError, match="refused"):
                    stac.scenes_of(f"stac+{server.address}/{path}", SourceOptions(access=allowed))
            named = replace(allowed, hosts=(*allowed.hosts, victim.address.partition("//")[2]))
            assert len(stac.scenes_of(f"{server.address}/item", SourceOptions(access=named))) == 1  # --allow-host
        assert victim.hits == []


def test_identifiers_are_text_and_no_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    evil = an_item("../../evil", collection="../../../c")
    (folder / "item.json").write_text(json.dumps(evil))
    assert scene(evil).item == "../../evil"
    assert main(["search", str(folder / "item.json"), "--save", str(folder / "found.json")]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["found.json", "item.json"]


# --- paging (row 24) ---------------------------------------------------------------------------------------------------


def paged(pages: list[dict[str, Any]], *, failing: int | None = None) -> Callable[[str, dict[str, str]], tuple[int, Any]]:
    """An API of these pages; the one that fails says 502 once."""
    failed: list[int] = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == "/":
            return 200, landing("")
        number = int(query.get("token", "0"))
        if number == failing and not failed:
            failed.append(number)
            return 502, {"detail": "bad gateway"}
        return 200, pages[min(number, len(pages) - 1)]

    return answer


def test_items_that_come_twice_count_once_and_a_bad_gateway_is_asked_again() -> None:
    pages = [
        page([an_item("a"), an_item("b")], "/search?token=1"),
        page([an_item("b"), an_item("a", collection="d")], "/search?token=2"),
        page([an_item("c"), an_item("a")]),
    ]
    with answering(paged(pages, failing=2)) as server:
        items = stac.search(server.address + "/", bare())
        assert [item.key for item in items] == [("c", "a"), ("c", "b"), ("c", "c"), ("d", "a")]
        assert len(server.hits) == 5  # landing page, three pages, one of them twice
        assert stac.count(server.address + "/", bare(max_items=1)) == 4


@pytest.mark.parametrize("token", ["1", "{}"], ids=["itself", "always another"])
def test_pages_without_end_are_an_error(token: str) -> None:
    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        following = token.format(int(query.get("token", "0")) + 1)
        return 200, landing("") if path == "/" else page([an_item("a"), an_item("b")], f"/search?token={following}")

    with answering(answer) as server:
        with pytest.raises(SourceError, match=r"no end.*--max-items"):
            stac.search(server.address + "/", bare())
        assert len(server.hits) < 20
        assert ids(stac.search(server.address + "/", bare(max_items=2))) == ["a", "b"]


def test_nothing_found_is_an_error_with_status_4(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(paged([page([])])) as server:
        with pytest.raises(SourceError, match=r"0 items matched.*collections c"):
            stac.scenes_of(server.address + "/", bare(collections=("c",)))
        assert main(["search", f"stac+{server.address}/", "--query", "a<1"]) == 4
        assert "0 items matched" in capsys.readouterr().err
        assert main(["search", f"stac+{server.address}/", "--matched"]) == 0
        assert capsys.readouterr().out == "0 items matched\n"


def test_what_an_api_cannot_filter_is_filtered_here() -> None:
    cloudy = [an_item(f"i{at}", properties={"eo:cloud_cover": 10 * at}) for at in range(6)]
    with answering(paged([page(cloudy[:3], "/search?token=1"), page(cloudy[3:])])) as server:
        found = stac.search(server.address + "/", bare(query=("eo:cloud_cover>=20", "eo:cloud_cover<50")))
        assert ids(found) == ["i2", "i3", "i4"]
        assert not any("query" in hit for hit in server.hits)
        assert ids(stac.search(server.address + "/", bare(query=("eo:cloud_cover>20",), max_items=1))) == ["i3"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"type": "FeatureCollection"},
        {"type": "FeatureCollection", "features": [3]},
        {"type": "Feature"},
        {"type": "Feature", "id": "a", "stac_version": "1.0.0", "assets": []},
        {"type": "Feature", "id": "a", "stac_version": "1.0.0", "assets": {"a": 3}, "properties": {}, "links": 3},
        {"type": "Catalog", "stac_version": "1.0.0", "id": "c"},
        {"type": "Catalog", "stac_version": 3, "id": 4, "links": 5},
        {"type": "Collection", "id": "c", "stac_version": "1.0.0", "links": [], "extent": 3},
        {"type": "Topology"},
    ],
)
def test_what_is_not_stac_is_an_error_in_one_line(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SourceError) as caught:
        stac.scenes_of(str(path), SourceOptions())
    assert "x.json" in str(caught.value)


@settings(max_examples=150)
@given(
    st.sampled_from(["/", "/search", "/collection", "/listed"]),
    st.randoms(use_true_random=False),
    st.sampled_from([None, True, 3, 2**70, math.nan, "", "x", "http://[", "POST", [], {}, [None], [[]], {"a": 1}, ["a"]]),
)
def test_any_damage_to_an_api_or_a_catalog_gives_items_or_an_error_of_ours(path: str, random: Random, damage: Any) -> None:
    documents = {
        "/": landing(""),
        "/search": page([an_item("a")], "/search?token=1"),
        "/collection": collection_of("c") | {"links": [{"rel": "item", "href": "/item"}, {"rel": "root", "href": "/"}]},
        "/listed": collection_of("c") | {"links": [{"rel": "items", "href": "/search"}]},
        "/item": an_item("b"),
    }
    place: Any = documents[path]
    way = random.choice(list(leaves(place)))
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = damage

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        return (200, page([])) if "token" in query else (200 if path in documents else 404, documents.get(path, {}))

    with answering(answer) as server:
        for ask in (stac.search, stac.count):
            with suppress(GeoinferError):
                ask(server.address + ("/" if path == "/search" else path), bare(), Region.from_bbox("0,0,1,1"))


def test_a_document_that_cannot_be_parsed_is_an_error(tmp_path: Path) -> None:
    for content in (b"", b"<html>", b"[" * 100_000, b"\xff\xfe", b"PAR1nonsense"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(SourceError, match=r"x\.json"):
            stac.scenes_of(str(tmp_path / "x.json"), SourceOptions())
    with pytest.raises(SourceError, match="no such file"):
        stac.scenes_of(str(tmp_path / "missing.json"), SourceOptions())


def test_catalogs_that_contain_each_other_end(tmp_path: Path) -> None:
    link = {"rel": "child", "href": "./b.json"}, {"rel": "child", "href": "./a.json"}
    for name, links in (("a", [link[0]]), ("b", [link[1], {"rel": "item", "href": "i.json"}])):
        catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": name, "description": "x", "links": links}
        (tmp_path / f"{name}.json").write_text(json.dumps(catalog))
    (tmp_path / "i.json").write_text(json.dumps(an_item()))
    assert ids(stac.search(str(tmp_path / "a.json"), SourceOptions())) == ["a"]


def test_items_without_an_asset_are_skipped_when_asked_to(tmp_path: Path) -> None:
    document = page([an_item("good"), an_item("bad", assets={})])
    (tmp_path / "items.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="'bad'"):
        stac.scenes_of(str(tmp_path / "items.json"), SourceOptions())
    scenes, skipped = stac.scenes_and_skipped(str(tmp_path / "items.json"), SourceOptions(on_error="skip"))
    assert [found.item for found in scenes] == ["good"]
    assert "'bad'" in skipped[0]


# --- signing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_tokens() -> Iterator[None]:
    signing._tokens.clear()
    yield
    signing._tokens.clear()


@pytest.mark.usefixtures("no_tokens")
def test_tokens_of_the_planetary_computer_are_asked_for_once_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=45)).isoformat().replace("+00:00", "Z")

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        return 200, {"token": f"sig={path.strip('/').replace('/', '-')}", "msft:expiry": soon}

    with answering(answer) as service:
        monkeypatch.setenv("PC_SDK_SAS_URL", service.address)
        access = Access(signer="planetary-computer")
        threads = [
            threading.Thread(target=signing.sign, args=("https://naip.blob.core.windows.net/v2/x.tif", access))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (
            signing.sign("https://naip.blob.core.windows.net/v2/a.tif", access)
            == "https://naip.blob.core.windows.net/v2/a.tif?sig=naip-v2"
        )
        assert service.hits == ["/naip/v2"]
        assert signing.sign("https://naip.blob.core.windows.net/other/a.tif", access).endswith("?sig=naip-other")
        for other in (
            "https://example.com/a.tif",
            "https://naip.blob.core.windows.net/v2/a.tif?sig=own",
            "s3://bucket/a.tif",
        ):
            assert signing.sign(other, access) == other
        assert len(service.hits) == 2


@pytest.mark.usefixtures("no_tokens")
def test_a_token_that_was_refused_or_runs_out_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = [0.5, 45.0, 45.0]
    given_out: list[int] = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        given_out.append(len(given_out))
        expiry = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes[given_out[-1]])
        return 200, {"token": f"sig={given_out[-1]}", "msft:expiry": expiry.isoformat()}

    url, access = "https://naip.blob.core.windows.net/v2/a.tif", Access(signer="planetary-computer")
    with answering(answer) as service:
        monkeypatch.setenv("PC_SDK_SAS_URL", service.address)
        assert signing.sign(url, access).endswith("sig=0")
        assert signing.sign(url, access).endswith("sig=1")  # the first has less than a minute left
        assert signing.resign(url + "?sig=1", access).endswith("a.tif?sig=1")  # just renewed by another
        monkeypatch.setattr(signing, "_FRESH_S", -1.0)
        assert signing.resign(url + "?sig=1", access).endswith("a.tif?sig=2")


@pytest.mark.usefixtures("no_tokens")
def test_a_service_that_gives_no_token_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(always({"no": "token"})) as service:
        monkeypatch.setenv("PC_SDK_SAS_URL", service.address)
        with pytest.raises(SourceError, match="gave no token"):
            signing.resign("https://naip.blob.core.windows.net/v2/a.tif?sig=old", Access(signer="planetary-computer"))


def test_a_users_own_function_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_signer.py").write_text(
        "def sign(url):\n    return url + '?key=secret'\n\nword = 3\n\ndef bad(url):\n    return None\n"
        "def takes_none():\n    return ''\n\ndef offline(url):\n    raise TimeoutError('no token')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        signing.sign("https://example.com/a.tif", Access(signer="my_signer:sign")) == "https://example.com/a.tif?key=secret"
    )
    assert signing.sign("https://example.com/a.tif", Access()) == "https://example.com/a.tif"
    for name in ("my_signer", "my_signer:none", "no_such_module:sign", "my_signer:word", ":", "a:b:c"):
        with pytest.raises(ConfigError, match="--sign"):
            signing.sign("https://example.com/a.tif", Access(signer=name))
        with pytest.raises(ConfigError, match="--sign"):  # known before any address is
            find(["a.tif"], SourceOptions(access=Access(signer=name)))
    with pytest.raises(ConfigError, match=r"takes_none.*fails: TypeError"):
        signing.sign("https://example.com/a.tif", Access(signer="my_signer:takes_none"))
    with pytest.raises(RemoteError, match=r"offline failed: TimeoutError: no token"):
        signing.sign("https://example.com/a.tif", Access(signer="my_signer:offline"))
    with pytest.raises(SourceError, match="no address"):
        signing.sign("https://example.com/a.tif", Access(signer="my_signer:bad"))


@pytest.mark.parametrize("accepted", ["1", "never"])
def test_an_address_that_is_refused_is_signed_once_more(
    accepted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from itertools import count\nnumbers = count()\ndef sign(url):\n    return f'{url}?sig={next(numbers)}'\n"
    (tmp_path / f"signer_{accepted}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    def answer(_path: str, query: dict[str, str]) -> tuple[int, Any]:
        return (200, an_item()) if query.get("sig") == accepted else (403, {})

    with answering(answer) as server:
        options = SourceOptions(access=Access(hosts=("127.0.0.1",), signer=f"signer_{accepted}:sign"))
        if accepted == "1":
            (found,) = stac.scenes_of(f"{server.address}/item.json", options)
            assert found.address == f"{server.address}/a.tif"  # signed when it is read, so that it stays the same raster
        else:
            with pytest.raises(SourceError, match="403") as caught:
                stac.scenes_of(f"{server.address}/item.json", options)
            assert "sig=" not in str(caught.value)
        assert server.hits == ["/item.json?sig=0", "/item.json?sig=1"]


def test_no_secret_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hostile = {"visual": {"href": "gopher://me:hunter2@example.com/x.tif?sig=hunter2", "type": TIFF}}

    def answer(path: str, _query: dict[str, str]) -> tuple[int, Any]:
        return {"/gone": (404, {}), "/none": (200, page([]))}.get(path, (200, an_item(assets=hostile)))

    with answering(answer) as server:
        for path, status in (("gone", 4), ("none", 4), ("item", 8)):
            source = f"stac+{server.address.replace('//', '//me:hunter2@')}/{path}?token=hunter2"
            assert main(["run", source, "--model", "tiny", "-o", str(tmp_path / "run")]) == status
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    assert said.err.count("error") == 3


def test_without_the_optional_packages_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['pystac'] = None; from geoinfer.cli.main import main; sys.exit(main(['search', 'stac+https://example.com']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "geoinfer[stac]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- a real API --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api() -> Iterator[StacServer]:
    with stac_server() as server:
        yield server


@pytest.fixture(scope="module")
def loaded(api: StacServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[StacServer, list[dict[str, Any]]]:
    """Generated rasters of four places, at several times and with several covers of clouds."""
    folder = tmp_path_factory.mktemp("imagery")
    items = []
    for at in range(24):
        name, lonlat = list(PLACES.items())[at % 4]
        crs = {"accra": "EPSG:32630", "kumasi": "EPSG:32630", "suva": "EPSG:32760", "taveuni": "EPSG:32701"}[name]
        path = write(folder / f"{name}_{at:02}.tif", pattern(64, 64, seed=at), crs, at_place(crs, (0.5, 0.5), lonlat))
        items.append(
            item_of(
                path,
                f"https://example.com/{path.name}",
                "drone" if at % 3 else "plane",
                f"2024-{at % 12 + 1:02}-15T10:00:00Z",
                **{"eo:cloud_cover": 4 * at, "platform": "a" if at % 2 else "b"},
            )
        )
    api.load([collection_of("drone"), collection_of("plane")], copy.deepcopy(items))
    return api, items


SEARCHES: list[dict[str, Any]] = [
    {},
    {"collections": ("drone",)},
    {"collections": ("drone", "plane"), "datetime": "2024-03/2024-06"},
    {"datetime": "2024-05-15T10:00:00Z"},
    {"query": ("eo:cloud_cover<30",)},
    {"query": ("eo:cloud_cover>=20", "eo:cloud_cover<=60", "platform=a"), "collections": ("plane",)},
    {"query": ("platform!=a",), "datetime": "../2024-06-30"},
]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("bbox", [None, (-1, 5, 1, 6), (179.9, -19, -179.9, -16)], ids=["anywhere", "accra", "antimeridian"])
def test_a_search_finds_what_pystac_client_finds(
    loaded: tuple[StacServer, list[dict[str, Any]]], search: dict[str, Any], bbox: tuple[float, ...] | None
) -> None:
    from pystac_client import Client

    api, _ = loaded
    region = None if bbox is None else Region.from_bbox(bbox)
    ours = stac.search(api.address, bare(**search), region)
    theirs = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client.open(api.address)
        for box in (None,) if region is None else boxes_of(region):
            query = {}
            for condition in map(parse_condition, search.get("query", ())):
                query.setdefault(condition.name, {})[condition.operator] = condition.value
            asked = client.search(
                method="POST",
                collections=search.get("collections"),
                datetime=search.get("datetime"),
                query=query or None,
                bbox=box,
            )
            theirs |= {(item.collection_id, item.id) for item in asked.items()}
    assert {item.key for item in ours} == theirs
    assert len(ours) == len(theirs)
    assert stac.count(api.address, bare(**search), region) == len(ours)
    times = [item.datetime for item in ours]
    assert times == sorted(times, key=str, reverse=True)


def test_every_kind_of_document_gives_the_same_rasters(
    loaded: tuple[StacServer, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from stac_geoparquet.arrow import parse_stac_items_to_parquet

    api, items = loaded
    options = bare(query=("eo:cloud_cover<50",), collections=("drone",))
    region = Region.from_bbox((-2, 5, 1, 7))
    wanted = stac.scenes_of(f"stac+{api.address}", options, region)
    assert len(wanted) > 3
    assert all(found.header is not None and found.bands == (1, 2, 3) for found in wanted)
    saved = tmp_path / "found.json"
    assert main(["search", f"stac+{api.address}", "--save", str(saved), "-q"]) == 0
    parse_stac_items_to_parquet(items, output_path=tmp_path / "items.parquet")
    catalog = static_catalog(tmp_path / "catalog", items)
    with served(tmp_path) as address:
        for text in (
            str(saved),
            str(tmp_path / "items.parquet"),
            str(catalog),
            f"stac+{address}/found.json",
            f"stac+{address}/items.parquet",
            f"stac+{address}/catalog/catalog.json",
        ):
            found = stac.scenes_of(text, options, region)
            assert sorted(found, key=str) == sorted(wanted, key=str), text
    one = f"{api.address}/collections/drone/items/{wanted[0].item}"
    assert stac.scenes_of(one, bare()) == wanted[:1]
    listed = stac.scenes_of(f"{api.address}/collections/drone", options, region)
    assert listed == wanted


def static_catalog(folder: Path, items: list[dict[str, Any]]) -> Path:
    """A catalog of collections of items, by pystac."""
    catalog = pystac.Catalog("all", "Imagery for tests")
    for name in sorted({item["collection"] for item in items}):
        collection = pystac.Collection.from_dict(collection_of(name))
        collection.add_items([pystac.Item.from_dict(item) for item in items if item["collection"] == name])
        catalog.add_child(collection)
    catalog.normalize_hrefs(str(folder))
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with faulty(folder) as server:
        yield server.url("/").rstrip("/")


def test_the_command_line_searches(
    loaded: tuple[StacServer, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api, _ = loaded
    source = [
        "search",
        f"stac+{api.address}",
        "-c",
        "drone",
        "--datetime",
        "2024-01/2024-06",
        "--query",
        "eo:cloud_cover<60",
    ]
    assert main([*source, "--matched"]) == 0
    number = int(capsys.readouterr().out.split()[0])
    assert main([*source, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["items"]
    assert len(listed) == number > 2
    assert main([*source, "--max-items", "2", "--save", str(tmp_path / "two.json")]) == 0
    assert capsys.readouterr().out == ""
    assert len(json.loads((tmp_path / "two.json").read_text())["features"]) == 2
    assert main([*source, "--bbox", "-1", "5", "1", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["collection", "id", "datetime", "cloud_cover", "assets"]
    assert all("accra" in line for line in lines[1:])
    (tmp_path / "other.json").write_text("{}")
    assert main([*source, "--save", str(tmp_path / "other.json")]) == 3
    assert main([*source, "--save", str(tmp_path / "two.json")]) == 0  # an older item collection is replaced
    assert main([*source, "--datetime", "soon"]) == 2
    assert main(["search", f"stac+{api.address}", "--bbox", "1,2,3,4", "--region", "x.geojson"]) == 2


def test_a_local_catalog_with_relative_imagery_is_a_source(tmp_path: Path) -> None:
    from geoinfer.imagery.locate import open_source

    folder = tmp_path / "catalog"
    folder.mkdir()
    path = write(folder / "a.tif", pattern(96, 96))
    item = item_of(path, "./a.tif", "c", "2024-01-01T00:00:00Z")
    (folder / "item.json").write_text(json.dumps(item))
    ours = open_source([str(folder / "item.json")], gsd=0.3, core=64)
    theirs = open_source([str(path)], gsd=0.3, core=64)
    window = theirs.grid.window
    assert ours.grid == theirs.grid
    assert np.array_equal(ours.read(window).pixels, theirs.read(window).pixels)
    saved = tmp_path / "catalog" / "saved.json"
    assert main(["search", str(folder / "item.json"), "--save", str(saved), "-q"]) == 0
    assert str(tmp_path) not in saved.read_text()
    assert open_source([str(saved)], gsd=0.3, core=64).grid == theirs.grid


def test_a_run_over_a_search_finds_what_a_run_over_the_file_finds(api: StacServer, tmp_path: Path) -> None:
    from geoinfer.model.registry import resolve_model
    from geoinfer.scenes import generate_scene, write_scene

    folder = tmp_path / "imagery"
    folder.mkdir()
    write_scene(generate_scene(3, 256, gsd=resolve_model("tiny").gsd, water="none"), folder / "scene.tif")
    rest = ["--model", "tiny", "--workers", "0", "-q", "-o"]
    assert main(["run", str(folder / "scene.tif"), *rest, str(tmp_path / "local")]) == 0
    with served(folder) as files:
        item = item_of(folder / "scene.tif", f"{files}/scene.tif", "generated", "2024-01-01T00:00:00Z")
        api.load([collection_of("generated")], [item])
        search = ["run", f"stac+{api.address}", "-c", "generated", *rest]
        assert main([*search, str(tmp_path / "refused")]) == 8
        assert main([*search, str(tmp_path / "found"), "--allow-host", files.partition("//")[2]]) == 0
    local, found = (gpd.read_parquet(tmp_path / run / "footprints.parquet") for run in ("local", "found"))
    assert len(local) > 0
    assert found.geometry.equals(local.geometry)
    assert set(found["imagery"]) == {"scene"}
    assert set(found["datetime"].astype(str)) == {"2024-01-01T00:00:00Z"}


# --- real imagery ------------------------------------------------------------------------------------------------------

REAL = {
    "boston": "boston_massachusetts/*/*.tif",
    "accra": "accra_ghana_opencities/*.tif",
    "banepa": "banepa_nepal_oam/banepa.tif",
}


@pytest.mark.realdata
@pytest.mark.timeout(300)
def test_the_shared_imagery_is_found_through_a_real_api(
    api: StacServer, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from geoinfer.imagery.locate import open_source
    from geoinfer.imagery.raster import inspect

    with served(data_folder) as files:
        paths = {place: sorted(data_folder.glob(names)) for place, names in REAL.items()}
        items = [
            item_of(path, f"{files}/{path.relative_to(data_folder)}", place, "2019-07-01T00:00:00Z")
            for place, found in paths.items()
            for path in found
        ]
        api.load(map(collection_of, REAL), items)
        hosts = (files.partition("//")[2], api.address.partition("//")[2])
        for place, found in paths.items():
            assert main(["search", f"stac+{api.address}", "-c", place, "--matched"]) == 0
            assert capsys.readouterr().out == f"{len(found)} items matched\n"
            options = SourceOptions(search=Search(collections=(place,)), access=Access(hosts=hosts))
            scenes = stac.scenes_of(f"stac+{api.address}", options)
            assert len(scenes) == len(found)
            for scene in scenes:
                header, local = scene.header, inspect(next(path for path in found if path.stem == scene.item))
                assert header is not None
                assert (header.crs, header.height, header.width) == (local.crs, local.height, local.width)
                assert header.transform.almost_equals(local.transform, precision=1e-6)
        middle = json.loads((data_folder / "banepa_nepal_oam" / "aoi.geojson").read_text())["features"][0]["geometry"]
        bbox = ",".join(map(str, Region.from_geometry(middle).geometry.bounds))
        assert main(["search", f"stac+{api.address}", "--bbox", bbox, "-c", "banepa", "-c", "accra", "--json"]) == 0
        assert [item["id"] for item in json.loads(capsys.readouterr().out)["items"]] == ["banepa"]
        options = SourceOptions(search=Search(collections=("banepa",)), access=Access(hosts=hosts))
        ours = open_source([f"stac+{api.address}"], options, gsd=0.3, core=256, region=Region.from_bbox(bbox))
        theirs = open_source([str(paths["banepa"][0])], gsd=0.3, core=256)
        assert ours.grid == theirs.grid
        window = Window(1024, 1024, 1536, 1536)
        assert np.array_equal(ours.read(window).pixels, theirs.read(window).pixels)
