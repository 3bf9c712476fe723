"""The command line: spellings, precedence, streams, exit statuses, and the verbs end to end with the model for tests."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from geoinfer.cli.argv import normalise
from geoinfer.cli.interrupt import soft_stop
from geoinfer.cli.main import main
from geoinfer.cli.options import resolve
from geoinfer.cli.printing import one_line, redact
from geoinfer.cli.progress import shown
from geoinfer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "geoinfer.cli.main"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated scene, large enough for several tiles of the model for tests."""
    from geoinfer.model.registry import resolve_model
    from geoinfer.scenes import generate_scene, write_scene

    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_scene(generate_scene(3, 320, gsd=resolve_model("tiny").gsd, water="none"), path)
    return path


@pytest.fixture(scope="module")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it."""
    out = tmp_path_factory.mktemp("run") / "RUN"
    assert main(["run", str(scene), "--model", "tiny", "-o", str(out), "--workers", "0", "--tile", "2", "-q"]) == 0
    return out


# --- spellings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ["--bbox", "-1.5,2,-1,3"],
        ["--bbox=-1.5,2,-1,3"],
        ["--bbox", "-1.5", "2", "-1", "3"],
        ["--bbox=-1.5", "2", "-1", "3"],
    ],
)
def test_a_bbox_may_be_one_value_or_four_and_negative(given: list[str]) -> None:
    assert normalise(["run", "a.tif", *given, "-o", "RUN"]) == ["run", "a.tif", "--bbox=-1.5,2,-1,3", "-o", "RUN"]


def test_four_values_leave_the_sources_after_them_alone() -> None:
    assert normalise(["run", "--bbox", "1", "2", "3", "4", "5.tif"]) == ["run", "--bbox=1,2,3,4", "5.tif"]


def test_underscores_debug_anywhere_and_nothing_after_two_dashes() -> None:
    assert normalise(["run", "--min_area=a_b", "--debug"]) == ["--debug", "run", "--min-area=a_b"]
    assert normalise(["run", "--", "--min_area", "--debug"]) == ["run", "--", "--min_area", "--debug"]


# --- settings --------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump({"sources": ["a.tif"], "threshold": 0.3, "min-area": 5, "tile": 2, "bbox": [1, 2, 3, 4]})
    )
    options = resolve({"threshold": "0.7"}, {"GEOINFER_THRESHOLD": "0.6", "GEOINFER_MIN_AREA": "8"}, config)
    assert (options.threshold, options.min_area, options.tile) == (0.7, 8.0, 2)
    assert (options.source, options.bbox) == (("a.tif",), (1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"threshold": "1.5"}, "--threshold 1.5: expected a probability above 0, at most 1"),
        ({"threshold": "nan"}, "--threshold nan: expected a probability"),
        ({"bbox": "1,2,3"}, "--bbox 1,2,3: expected four numbers W,S,E,N"),
        ({"tile": "0"}, "--tile 0: expected cores on a side"),
        ({"max_failed": "200%"}, "--max-failed 200%: expected a share"),
        ({"max_failed": "x%"}, "--max-failed x%: expected a share"),
        ({"device": "gpu"}, "--device gpu: expected auto, cpu or cuda:N"),
        ({"batch_size": "-1"}, "--batch-size -1: expected a number of chips, or auto"),
        ({"min_area": "inf"}, "--min-area inf: expected square metres"),
    ],
)
def test_a_value_that_cannot_be_names_the_flag_the_value_and_what_would_do(flags: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"source": ["a.tif"], **flags}, {})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("treshold: 0.5", "unknown key 'treshold'; did you mean 'threshold'?"),
        ("x: !!python/object/apply:os.system ['true']", "is not plain YAML"),
        ("- 1", "holds a list"),
        ("threshold: .nan", "expected a probability"),
        ("threshold: 1e308", "expected a probability"),
        ("min-area: 1\nmin_area: 2", "stands there twice"),
    ],
)
def test_a_settings_file_that_cannot_be_says_so(tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve({"source": ["a.tif"]}, {}, config)
    assert told in str(caught.value)


def test_a_day_in_a_settings_file_is_a_time(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("datetime: 2024-01-31")
    assert resolve({"source": ["a.tif"]}, {}, config).datetime == "2024-01-31"


@pytest.mark.parametrize("verb", ["run", "plan", "info", "snapshot"])
def test_an_unset_variable_of_the_shell_is_no_folder(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "", *(["-o", "RUN"] if verb in ("run", "plan") else [])]) == 2
    assert "an empty source" in capsys.readouterr().err


def test_a_percentage_is_a_share() -> None:
    assert resolve({"source": ["a.tif"], "max_failed": "1%"}, {}).max_failed == pytest.approx(0.01)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_the_version_is_data_and_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("geoinfer 0.")
    assert main(["run", "a.tif", "--treshold", "0.5"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("geoinfer: error: ")
    assert err.count("\n") == 1
    assert "--threshold" in err


def test_an_error_of_ours_is_one_line_and_debug_shows_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(tmp_path / "no\x1b[31m.tif"), "--model", "tiny", "-o", str(tmp_path / "RUN")]
    assert main(arguments) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert main([*arguments, "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr("geoinfer.cli.options.resolve", explode)
    assert main(["run", "a.tif"]) == 1
    assert (
        capsys.readouterr().err
        == "geoinfer: error: internal: RuntimeError: boom second line; run again with --debug to see where\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/a.tif", "https://host/a.tif"),
        ("https://host/a.tif?sig=abc%2F&se=1", "https://host/a.tif?***"),
        ("s3://b/a.tif?X-Amz-Signature=abc&X-Amz-Credential=AKIA", "s3://b/a.tif?***"),
    ],
)
def test_what_opens_doors_is_not_printed(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_control_characters_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\x07\n c") == "a\\x1b[2Jb\\x07 c"


def test_progress_in_a_log_is_a_few_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from geoinfer.pipeline import Progress

    clock = iter(range(1000))
    monkeypatch.setattr("geoinfer.cli.progress.time.monotonic", lambda: float(next(clock)))
    with shown(quiet=False) as show:
        for done in range(1, 201):
            show(Progress(done, 200, 0, 3 * done, 1e4 * done, 2.0 * done))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[-1] == "100% 200/200 tiles, 0.005 km²/s, 600 footprints, 0 s left"
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_progress_is_quiet_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    from geoinfer.pipeline import Progress

    with shown(quiet=True) as show:
        show(Progress(1, 1, 0, 0, 0.0, 0.0))
    assert capsys.readouterr().err == ""


# --- verbs -----------------------------------------------------------------------------------------------------------


def test_a_run_tells_one_object_and_is_found_finished_the_second_time(
    scene: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scene), "--model", "tiny", "-o", str(finished), "--workers", "0", "--tile", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(finished)
    assert told["tiles"]["failed"] == 0
    assert told["resumed"] == told["tiles"]["total"] > 1
    assert (finished / "_SUCCESS").exists()


def test_four_values_and_a_configuration_file_reach_the_pipeline(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import rasterio

    with rasterio.open(scene) as file:
        west, south, east, north = file.bounds
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"model": "tiny", "bbox-crs": "EPSG:32637", "workers": 0, "source": str(scene)}))
    box = [str(v) for v in (west, (south + north) / 2, (west + east) / 2, north)]
    assert main(["run", "--config", str(config), "--bbox", *box, "-o", str(tmp_path / "RUN"), "--json"]) == 0
    area_km2 = json.loads(capsys.readouterr().out)["area_km2"]
    assert area_km2 == pytest.approx(
        (east - west) * (north - south) / 4e6, rel=0.03
    )  # whole pixels, and UTM's scale of 0.9996


def test_plan_and_dry_run_say_the_same_and_write_nothing(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(scene), "--model", "tiny", "--tile", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["run", str(scene), "--model", "tiny", "--tile", "2", "-n", "-o", str(tmp_path / "RUN"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert planned["tiles"] > 1
    assert not (tmp_path / "RUN").exists()
    assert main(["plan", str(scene), "--model", "tiny"]) == 0
    assert "read bytes" in capsys.readouterr().out


def test_info_describes_a_raster(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scene), "--model", "tiny", "--json"]) == 0
    assert "32637" in json.dumps(json.loads(capsys.readouterr().out))
    assert main(["info", str(scene), "--model", "tiny"]) == 0
    assert "crs" in capsys.readouterr().out


def test_info_takes_what_run_takes_of_where_imagery_is(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scene), "--prefer", "newest", "--bands", "3,2,1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["bands"] == [3, 2, 1]
    assert main(["info", str(scene), "--zoom", "99"]) == 2
    assert main(["info", str(scene), "-c", "naip"]) == 2  # acts on nothing


def test_export_writes_other_formats_and_does_not_overwrite(finished: Path, tmp_path: Path) -> None:
    import geopandas

    out = tmp_path / "with space"
    assert main(["export", str(finished), "-f", "gpkg,geojson,fgb", "-o", str(out)]) == 0
    found = geopandas.read_parquet(finished / "footprints.parquet")
    for name in ("gpkg", "geojson", "fgb"):
        assert len(geopandas.read_file(out / f"footprints.{name}")) == len(found)
    assert main(["export", str(finished), "-f", "gpkg", "-o", str(out)]) == 3
    assert main(["export", str(finished), "-f", "gpkg", "-o", str(out), "--overwrite"]) == 0
    assert main(["export", str(finished), "-f", "shp", "-o", str(out)]) == 2
    assert main(["export", str(finished), "-f", "gpkg,shp", "-o", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    assert main(["export", str(tmp_path), "-f", "gpkg"]) == 4


def test_evaluate_against_itself_is_perfect(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), str(finished / "footprints.parquet"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["f1"] == 1.0
    assert scores["pixel_iou"] == pytest.approx(1.0)  # areas are sums of doubles


def test_verify_notices_a_changed_file(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "RUN"
    shutil.copytree(finished, copy)
    assert main(["verify", str(copy)]) == 0
    with (copy / "coverage.parquet").open("ab") as file:
        file.write(b"x")
    capsys.readouterr()
    assert main(["verify", str(copy), "--json"]) == 5
    assert "coverage.parquet" in json.loads(capsys.readouterr().out)["faults"][0]


def test_models_are_listed_shown_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert "tiny" in [model["name"] for model in json.loads(capsys.readouterr().out)["models"]]
    assert main(["models", "list"]) == 0
    assert main(["models", "show", "tiny"]) == 0
    assert "weights_sha256" in capsys.readouterr().out
    assert main(["models", "verify", "tiny"]) == 0


def test_doctor_names_versions_drivers_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEOINFER_TILE", "3")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "missing" not in report["packages"].values()
    assert {"GTiff", "GPKG", "FlatGeobuf", "GeoJSON"} <= set(report["gdal"]["drivers"])
    assert report["options"]["GEOINFER_TILE"] == "3"
    assert main(["doctor"]) == 0


def test_demo_leaves_a_run_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("geoinfer.cli.demo.MODEL", "tiny")
    monkeypatch.setattr("geoinfer.cli.demo.SIZE", 256)
    assert main(["demo", "-o", str(tmp_path / "demo"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["picture"]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "run" / "footprints.parquet").exists()
    assert main(["demo", "-o", str(tmp_path / "demo"), "-q"]) == 0  # a second time


# --- processes -------------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from geoinfer.cli.main import main; status = main(['run', '--help']); "
        "heavy = {'torch', 'rasterio', 'numba', 'distributed', 'dask', 'geopandas', 'pandas', 'numpy'} & set(sys.modules); "
        "sys.exit(status or (f'loaded {heavy}' if heavy else 0))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout
    assert time.monotonic() - started < 5  # under a second on an idle core; generous, since a busy one is no fault of ours


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" models show tiny | true', "-", *PROGRAM],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_tells_which_it_was(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with soft_stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.event.wait(5)
    assert stop.status == 128 + number
    assert signal.getsignal(number) is before
    assert "once more stops at once" in capsys.readouterr().err


def test_the_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import os, signal, time\nfrom geoinfer.cli.interrupt import soft_stop\n"
        "with soft_stop():\n    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, cwd=ROOT, check=False)
    assert done.returncode == 130


@pytest.mark.kill
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_prints_the_command_that_resumes_and_resumes_to_the_same_rows(
    scene: Path, finished: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "RUN"
    arguments = ["run", str(scene), "--model", "tiny", "-o", str(out), "--workers", "0", "--tile", "1", "--batch_size", "1"]
    # Stop as soon as a tile is committed: the driver sends itself the signal, so no sleep has to be long enough.
    script = (
        "import os, sys\nfrom geoinfer.cli import progress\nfrom geoinfer.cli.main import main\n"
        "line = progress.Speed.text\n"
        "def text(self, update):\n"
        f"    if update.done == 2: os.kill(os.getpid(), {int(number)})\n"
        "    return line(self, update)\n"
        "progress.Speed.text = text\nsys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--overwrite"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == shlex.join(["geoinfer", *arguments]).replace("_size", "-size")
    assert not (out / "_SUCCESS").exists()
    committed = len(list((out / "tiles").iterdir()))
    assert committed >= 2
    assert main([*arguments, "-q"]) == 0
    assert (out / "footprints.parquet").read_bytes() == (finished / "footprints.parquet").read_bytes()


@pytest.mark.kill
def test_workers_started_by_the_command_line_give_the_same_rows(scene: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    arguments = ["run", str(scene), "--model", "tiny", "-o", str(out), "--workers", "2", "--tile", "1"]
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "footprints on" in done.stderr.splitlines()[-1]
    assert (out / "footprints.parquet").read_bytes() == (finished / "footprints.parquet").read_bytes()
