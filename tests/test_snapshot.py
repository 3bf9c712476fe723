"""A snapshot names imagery by what it is: not by order, place or time; and what is no longer so is noticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod

from geoinfer.cli.main import main
from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.changes import diff
from geoinfer.imagery.extent import bounds_lonlat, covered_km2, outline_lonlat
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.snapshot import MARK, Entry, Snapshot, check_snapshot, open_snapshot, read_snapshot
from geoinfer.imagery.taking import take
from geoinfer.remote.access import Access
from tests.faultserver import faulty
from tests.rasters import at_place, pattern, write

OPTIONS = SourceOptions()


def rasters(folder: Path, count: int = 3, size: int = 64) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    transforms = [at_place("EPSG:32630", (0.3, 0.3)) @ Affine.translation(size * n, 0) for n in range(count)]
    return [
        write(
            folder / f"{n}.tif",
            pattern(size, size, seed=n),
            transform=transform,
            tags={"TIFFTAG_DATETIME": "2024:05:01 10:00:00"},
        )
        for n, transform in enumerate(transforms)
    ]


def taken(paths: list[Path], strict: bool = False, folder: Path | None = None) -> Snapshot:
    return take([Scene(str(path)) for path in paths], OPTIONS, strict=strict, folder=None if folder is None else str(folder))


def saved(snapshot: Snapshot, path: Path) -> Path:
    path.write_text(snapshot.to_text())
    return path


# ---------------------------------------------------------------- identity


@given(st.permutations(range(3)), st.booleans())
def test_the_id_is_one_of_the_set(tmp_path_factory: pytest.TempPathFactory, order: list[int], strict: bool) -> None:
    paths = rasters(tmp_path_factory.mktemp("set"))
    assert taken([paths[n] for n in order], strict).id == taken(paths, strict).id


@pytest.mark.parametrize("strict", [False, True])
def test_the_id_does_not_depend_on_where_or_when(tmp_path: Path, strict: bool) -> None:
    paths = rasters(tmp_path / "here")
    before = taken(paths, strict, tmp_path)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for path in paths:
        os.utime(path, (1, 1))
    moved = [tmp_path / "there" / path.name for path in paths]
    assert taken(paths, strict).id == before.id == taken(moved, strict, tmp_path / "there").id


def test_the_id_changes_with_any_fact_of_any_raster(tmp_path: Path) -> None:
    snapshot = taken(rasters(tmp_path))
    entry = snapshot.entries[1]
    for field in dataclasses.fields(Entry):
        value = getattr(entry, field.name)
        other = {"address": "elsewhere/other.tif", "order": (1,)}.get(
            field.name, (*value, 7) if isinstance(value, tuple) else 7
        )
        changed = (snapshot.entries[0], dataclasses.replace(entry, **{field.name: other}), snapshot.entries[2])
        assert Snapshot(changed).id != snapshot.id, field.name
    assert Snapshot(snapshot.entries[:2]).id != snapshot.id


def test_a_strict_snapshot_is_the_same_over_http_and_names_the_content(tmp_path: Path) -> None:
    paths = rasters(tmp_path)
    local = taken(paths, strict=True)
    assert [entry.sha256 for entry in local.entries] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    with faulty(tmp_path) as server:
        options = SourceOptions(access=Access(hosts=(server.host,)))
        remote = take([Scene(server.url(f"/{path.name}")) for path in paths], options, strict=True)
        fast = take([Scene(server.url(f"/{path.name}?sig=topsecret")) for path in paths], options)
    assert remote.id == local.id
    assert fast.id != taken(paths).id  # the server's ETag is what tells versions apart there
    assert "topsecret" not in fast.to_text()
    assert all(entry.etag and entry.head for entry in fast.entries)


# ---------------------------------------------------------------- the file


def test_a_snapshot_reads_back_as_it_was_written_one_raster_a_line(tmp_path: Path) -> None:
    paths = rasters(tmp_path / "imagery")
    snapshot = taken([paths[2], paths[0], paths[1]], folder=tmp_path)
    path = saved(snapshot, tmp_path / "s.json")
    lines = path.read_text().splitlines()
    assert sum(line.startswith("{") and len(line) > 1 for line in lines) == 3
    assert all(str(tmp_path) not in line for line in lines)
    back = read_snapshot(path)
    assert back.entries == snapshot.entries
    assert [Path(scene.address) for scene in back.scenes()] == [paths[2], paths[0], paths[1]]
    shutil.move(tmp_path / "imagery", tmp_path / "moved" / "imagery")
    shutil.move(path, tmp_path / "moved" / "s.json")
    assert len(open_snapshot(str(tmp_path / "moved" / "s.json"))) == 3


def test_an_entry_says_what_the_file_says(tmp_path: Path) -> None:
    [path] = rasters(tmp_path, 1)
    [entry] = taken([path]).entries
    assert (entry.size, entry.height, entry.width, entry.count, entry.dtype) == (path.stat().st_size, 64, 64, 3, "uint8")
    assert (entry.crs, entry.bands, entry.datetime) == ("EPSG:32630", (1, 2, 3), "2024-05-01T10:00:00")
    assert entry.gsd == pytest.approx(0.3, rel=1e-3)
    west, south, east, north = entry.bounds
    assert (west, north) == (pytest.approx(-0.20, abs=1e-4), pytest.approx(5.58, abs=1e-4))
    assert Geod(ellps="WGS84").inv(west, south, east, south)[2] == pytest.approx(64 * 0.3, rel=2e-2)
    tagged = write(tmp_path / "tagged.tif", pattern(16, 16), tags={"Satellite": "WV-2"})
    assert taken([tagged]).entries[0].platform == "WV-2"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop(MARK), "not a snapshot"),
        (lambda d: d.update({MARK: 99}), "version 99"),
        (lambda d: d["entries"].pop(), "its id is not"),
        (lambda d: d["entries"][0].update(size=1), "its id is not"),
        (lambda d: d["entries"][0].update(surprise=1), "damaged snapshot.*surprise"),
        (lambda d: d["entries"][0].update(transform=[1]), "damaged snapshot"),
        (lambda d: d.update(order=[0, 0, 1]), "order does not name each raster once"),
        (lambda d: d.update(entries=[]), "no raster"),
    ],
)
def test_what_is_no_snapshot_is_told_in_a_line(tmp_path: Path, edit: object, message: str) -> None:
    document = json.loads(taken(rasters(tmp_path)).to_text())
    edit(document)  # type: ignore[operator]
    (tmp_path / "s.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match=message):
        read_snapshot(tmp_path / "s.json")


@pytest.mark.parametrize("address", ["/vsicurl/http://a/b.tif", "file:///etc/passwd", "gopher://a/b", "/vsizip/a.zip/b.tif"])
def test_a_snapshot_leads_to_no_place_but_files_and_stores(tmp_path: Path, address: str) -> None:
    snapshot = taken(rasters(tmp_path, 1))
    forged = Snapshot((dataclasses.replace(snapshot.entries[0], address=address),))
    with pytest.raises(SafetyError, match="refused"):
        read_snapshot(saved(forged, tmp_path / "s.json"))


def test_a_snapshot_opens_no_private_host_on_its_own(tmp_path: Path) -> None:
    from geoinfer.imagery.mosaic import open_scenes

    rasters(tmp_path, 1)
    with faulty(tmp_path) as server:
        options = SourceOptions(access=Access(hosts=(server.host,)))
        snapshot = take([Scene(server.url("/0.tif"))], options)
        path = saved(snapshot, tmp_path / "s.json")
        before = server.count("/0.tif")
        with pytest.raises(SafetyError):
            open_scenes(open_snapshot(str(path)), OPTIONS, gsd=0.3, core=64)
        assert server.count("/0.tif") == before
        open_scenes(open_snapshot(str(path)), options, gsd=0.3, core=64)


# ---------------------------------------------------------------- what changed


@pytest.mark.parametrize("strict", [False, True])
def test_a_local_file_that_changed_is_noticed_when_the_snapshot_is_opened(tmp_path: Path, strict: bool) -> None:
    paths = rasters(tmp_path)
    path = saved(taken(paths, strict, tmp_path), tmp_path / "s.json")
    assert check_snapshot(str(path))[1] == []
    for file in paths:
        os.utime(file, (1, 1))  # time alone is no change
    assert check_snapshot(str(path))[1] == []
    write(paths[1], pattern(64, 64, seed=99), transform=at_place("EPSG:32630", (0.3, 0.3)))
    with pytest.raises(SourceError, match=r"1\.tif changed since the snapshot") as caught:
        open_snapshot(str(path))
    assert "--changed warn" in str(caught.value)
    scenes, changes = check_snapshot(str(path), SourceOptions(changed="warn"))
    assert [scene.expected is None for scene in scenes] == [False, True, False]
    assert len(changes) == 1
    paths[2].unlink()
    with pytest.raises(SourceError, match=r"and 1 more"):
        open_snapshot(str(path))


def test_what_fast_misses_strict_sees(tmp_path: Path) -> None:
    path = write(tmp_path / "big.tif", pattern(300, 300), transform=at_place("EPSG:32630", (0.3, 0.3)))  # not compressed
    fast, strict = (saved(taken([path], mode, tmp_path), tmp_path / f"{mode}.json") for mode in (False, True))
    content = bytearray(path.read_bytes())
    content[200_000] ^= 1
    path.write_bytes(content)
    assert check_snapshot(str(fast))[1] == []
    with pytest.raises(SourceError, match="another SHA-256"):
        check_snapshot(str(strict))


def test_a_remote_file_that_changed_is_noticed_when_it_is_opened(tmp_path: Path) -> None:
    from geoinfer.imagery.mosaic import open_scenes

    paths = rasters(tmp_path)
    with faulty(tmp_path) as server:
        options = SourceOptions(access=Access(hosts=(server.host,)))
        snapshot = take([Scene(server.url(f"/{file.name}")) for file in paths], options)
        path = saved(snapshot, tmp_path / "s.json")
        server.fault("/1.tif", etag='"another"')
        with pytest.raises(SourceError, match=r"1\.tif.*changed since the snapshot"):
            open_scenes(open_snapshot(str(path), options), options, gsd=0.3, core=64)
        lenient = dataclasses.replace(options, changed="warn")
        scenes, changes = check_snapshot(str(path), lenient)
        assert len(changes) == 1
        assert "another ETag" in changes[0]
        open_scenes(scenes, lenient, gsd=0.3, core=64)


# ---------------------------------------------------------------- difference


def test_the_difference_of_two_snapshots_by_sets(tmp_path: Path) -> None:
    paths = rasters(tmp_path, 4)
    before = taken(paths[:3], folder=tmp_path)
    assert diff(before, before).is_empty
    write(paths[1], pattern(64, 64, seed=50), transform=at_place("EPSG:32630", (0.3, 0.3)) @ Affine.translation(64, 0))
    after = taken(paths[1:], folder=tmp_path)
    found = diff(before, after)
    assert [entry.name for entry in found.added] == ["3.tif"]
    assert [entry.name for entry in found.removed] == ["0.tif"]
    assert [(change.after.name, change.fields) for change in found.changed] == [("1.tif", ("content", "datetime"))]
    assert found.equal == 1
    assert found.area_km2 == pytest.approx(3 * (64 * 0.3) ** 2 / 1e6, rel=2e-3)  # a UTM zone's scale, and one raster of two
    assert diff(after, before).area_km2 == pytest.approx(found.area_km2)


def test_rasters_that_moved_are_the_same_rasters(tmp_path: Path) -> None:
    paths = rasters(tmp_path / "here")
    before = taken(paths, folder=tmp_path)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert diff(before, taken([tmp_path / "there" / path.name for path in paths], folder=tmp_path)).is_empty
    fast_and_strict = diff(taken(paths), taken(paths, strict=True))
    assert fast_and_strict.is_empty  # size is all that both know


degrees = st.tuples(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 2), st.floats(0.01, 2))


@given(degrees)
def test_an_area_is_that_of_the_ellipsoid_wherever_it_lies(box: tuple[float, float, float, float]) -> None:
    lon, lat, wide, high = box
    transform = Affine(wide / 100, 0, lon, 0, -high / 100, lat)
    crs = CRS.from_epsg(4326)
    found = covered_km2([outline_lonlat(crs, transform, 100, 100)] * 2)
    xs = np.linspace(lon, lon + wide, 400)
    ring = np.concatenate([np.column_stack([xs, np.full(400, lat)]), np.column_stack([xs[::-1], np.full(400, lat - high)])])
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(*ring.T)
    assert found == pytest.approx(abs(area) / 1e6, rel=1e-4)
    west, south, east, north = bounds_lonlat(crs, transform, 100, 100)
    assert (west > east) == (lon < 180 < lon + wide - 1e-7)
    assert (south, north) == (pytest.approx(lat - high, abs=1e-6), pytest.approx(lat, abs=1e-6))


# ---------------------------------------------------------------- the verb


def test_the_verb_takes_shows_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = rasters(tmp_path / "imagery")
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert main(["snapshot", *map(str, paths), "-o", str(a)]) == 0
    assert main(["snapshot", *map(str, paths), "-o", str(a)]) == 3  # is there already
    assert main(["snapshot", str(tmp_path / "imagery"), "-o", str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == read_snapshot(a).id
    assert main(["snapshot", "diff", str(a), str(b), "--exit-code"]) == 0
    write(paths[0], pattern(64, 64, seed=5), transform=at_place("EPSG:32630", (0.3, 0.3)))
    assert main(["snapshot", *map(str, paths), "-o", str(b), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["snapshot", "diff", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "~ imagery/0.tif: content" in out
    assert "0 added, 0 removed, 1 changed, 2 equal" in out
    assert main(["snapshot", "diff", str(a), str(b), "--exit-code", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["changed"] == [
        {"address": "imagery/0.tif", "fields": ["content", "datetime"]}
    ]
    assert main(["snapshot", str(tmp_path / "nothing.tif")]) == 4
    assert main(["snapshot", str(paths[0]), "--exit-code"]) == 2
    capsys.readouterr()
    assert main(["snapshot", "diff", str(a)]) == 2
    assert "takes two snapshots" in capsys.readouterr().err


def test_the_verb_heeds_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path, *_) = rasters(tmp_path / "imagery")
    monkeypatch.setenv("GEOINFER_BANDS", "1,x")
    assert main(["snapshot", str(path)]) == 2
    assert "GEOINFER_BANDS 1,x" in capsys.readouterr().err
