"""The benchmarks run, say what they found in rows, and append to a file of results without touching what is there."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from benchmarks import __main__ as command
from benchmarks import evaluation, gpu, memory, nonetwork, scale
from benchmarks.imagery import write_raster
from benchmarks.machine import machine
from benchmarks.peers import compare
from benchmarks.rows import Row, append, from_json, table, to_json
from geoinfer.model.folding import fold
from geoinfer.model.networks import build_network
from geoinfer.model.predictor import load_predictor, probability
from geoinfer.model.registry import find_model, resolve_model
from geoinfer.model.spec import PROBABILITIES
from geoinfer.scenes import generate_scene

ROWS = [
    Row("whole run", 3.0, "Mpx/s", 2.0, "network alone", 0.9),
    Row("start", 6.0, "s", target=5, at_most=True),
    Row("polygons", 831.0, "Mpx/s", 27.0, "rasterio", 900, "value"),
    Row("busy", 0.97, ""),
]


def test_the_machine_says_what_it_is_in_one_line() -> None:
    text = str(machine())
    assert "\n" not in text
    assert f"{machine().cores} cores" in text
    assert "load" in text


def test_a_target_is_met_by_ratio_or_by_value_from_below_or_from_above() -> None:
    assert [row.is_met for row in ROWS] == [True, False, False, None]
    assert Row("memory", 105.0, "MB", 100.0, "small", 1.1, at_most=True).is_met
    assert not Row("memory", 115.0, "MB", 100.0, "small", 1.1, at_most=True).is_met
    assert Row("nothing to compare with", 1.0, "s", 0.0, "nothing").ratio is None


def test_a_table_has_a_line_for_each_row_and_as_many_cells_in_each() -> None:
    lines = table(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert {line.count("|") for line in lines} == {7}
    assert lines[2] == "| whole run | 3 Mpx/s | 2 Mpx/s (network alone) | 1.5 | at least 0.9 × | yes |"


def test_rows_survive_the_way_between_processes() -> None:
    assert from_json(to_json(ROWS)) == ROWS
    assert "\n" not in to_json(ROWS)


def test_appending_leaves_every_byte_that_is_there(tmp_path: Path) -> None:
    path, before = tmp_path / "RESULTS.md", b"# Results\n\nNo newline at the end, and \xff no UTF-8"
    path.write_bytes(before)
    for _ in range(2):
        append(path, "All parts", "machine", [("The ceiling", ROWS)], "3 targets")
        after = path.read_bytes()
        assert after.startswith(before)
        assert after.count(b"## All parts\n") == after.count(b"### The ceiling\n\n| what |")
        before = after
    assert before.count(b"\n## All parts\n") == 2


def test_the_command_writes_no_results_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(command, "measure", lambda part, *_: None if part == "scale" else ROWS)
    argv = ["--only", "memory", "scale", "--results", str(results)]
    assert command.main(argv) == 1
    assert not results.exists()
    assert command.main([*argv, "--append", "--quick"]) == 1
    written = results.read_text()
    assert "1 of 3 targets met; failed: scale" in written
    assert "not to be quoted" in written
    assert table(ROWS) in written
    assert table(ROWS) in capsys.readouterr().out


def test_each_part_that_the_command_knows_is_there() -> None:
    folder = Path(command.__file__).parent
    for part in command.PARTS:
        path = folder.parent / (command.HOMES.get(part, f"benchmarks.{part}").replace(".", "/") + ".py")
        assert "\ndef rows(quick: bool" in path.read_text(), part


def test_a_part_runs_in_a_process_of_its_own_and_its_failure_stays_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert command.measure("memory", True, {"PYTHONHASHSEED": "no number"}) is None
    capfd.readouterr()


def test_a_raster_is_its_scene_and_mirror_images_that_meet_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = generate_scene(1, 128).image
    monkeypatch.setattr("benchmarks.imagery.SCENE", 128)
    monkeypatch.setattr("benchmarks.imagery.scene", lambda **_: part)
    ratio = write_raster(tmp_path / "scene.tif", 200)
    with rasterio.open(tmp_path / "scene.tif") as file:
        pixels = file.read()
        assert file.profile["interleave"] == "pixel"
    assert ratio > 1
    np.testing.assert_array_equal(pixels[:, :128, :128], part)
    np.testing.assert_array_equal(pixels[:, :128, 128], pixels[:, :128, 127])
    np.testing.assert_array_equal(pixels[:, 128, :128], pixels[:, 127, :128])


def test_a_constant_has_the_roofs_it_was_asked_for_and_goes_on_from_core_to_core() -> None:
    spec = resolve_model("buildings")
    core, margin = spec.chips.core, spec.chips.margin
    plane = nonetwork.constant(spec, 400).plane
    assert plane.shape == (spec.chips.chip, spec.chips.chip)
    np.testing.assert_array_equal(plane[:, : 2 * margin], plane[:, core:])
    np.testing.assert_array_equal(plane[: 2 * margin], plane[core:])
    assert 0 < (plane > 0).mean() < 0.2
    assert not nonetwork.constant(spec, 0).plane.any()


def test_a_run_without_a_network_over_four_tiles_finds_the_constants_roofs(tmp_path: Path) -> None:
    side = 5 * resolve_model("buildings").chips.core  # tiles have four cores a side: two a side, four in all
    write_raster(tmp_path / "scene.tif", side)
    done = nonetwork.turn(tmp_path / "scene.tif", 1, 400)
    expected = 400 * (side * 0.3) ** 2 / 1e6
    assert 0.5 * expected < done["footprints"] <= 1.1 * expected
    assert all(seconds > 0 for key in ("decode_s", "run_s", "again_s") for seconds in done[key])
    assert done["decoded_per_pixel"] < 1.2


def test_the_gpu_command_goes_through_all_of_it_on_a_cpu(tmp_path: Path) -> None:
    card = find_model("tiny").folder
    setting = gpu.Setting("cpu", str(card), 2 * resolve_model("tiny").chips.core, 1, True, price_per_hour=2.0)
    said: list[str] = []
    rows = gpu.measure(setting, said.append)
    named = {row.name.split(",")[0] for row in rows}
    assert {"whole run", "batch", "delivered", "its cost at 2 an hour", "a million km2"} <= named
    judged = [row for row in rows if row.is_met is not None and not row.name.startswith("whole run")]
    assert len(judged) >= 4
    assert all(row.is_met for row in judged), table(rows)
    assert any("network alone" in line for line in said)


def test_the_gpu_command_goes_on_with_random_weights_where_the_model_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, network = gpu.open_network("no-such-model")
    assert spec == gpu.UNTRAINED
    assert not network.training
    assert "going on with random weights" in capsys.readouterr().err
    again = gpu.open_network(None)[1]
    assert all((a == b).all() for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("how", PROBABILITIES)
@pytest.mark.parametrize("is_folded", [False, True])
def test_what_peers_are_given_is_the_models_probability(how: str, is_folded: bool) -> None:
    spec = replace(resolve_model("tiny"), probability=how)
    torch.manual_seed(0)
    network = build_network("tiny", bands=3, outputs=3).eval()
    chip = torch.from_numpy(generate_scene(2, 128).image[None])
    with torch.inference_mode():
        found = compare.Exported(spec, fold(network, spec) if is_folded else network)(chip)[:, 0]
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
        expected = probability(network((chip.float() - mean) / std), how)
    assert (255 * found - expected).abs().max() <= 0.501  # rounded, after sums in another order
    assert expected.min() < expected.max()


def test_a_model_is_exported_as_torchscript(tmp_path: Path) -> None:
    spec = compare.export("tiny", tmp_path / "model.pt", is_folded=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, by another kind of warning in each version
        exported = torch.jit.load(str(tmp_path / "model.pt"))
    chip = generate_scene(2, compare.CHIP).image[None]
    expected = load_predictor("tiny", device="cpu", precision="fp32").predict(chip)
    assert spec == resolve_model("tiny")
    assert np.abs(255 * exported(torch.from_numpy(chip)).numpy()[:, 0] - expected).max() <= 0.501


def test_ratios_are_of_work_and_the_best_peer_is_the_fastest() -> None:
    def runs(work_s: float, version: str) -> list[dict[str, object]]:
        return [{"work_s": work_s, "process_s": work_s + 2, "polygons": 3, "version": version}]

    found = {
        "fp32": runs(2.0, "1.0 fp32"),
        "auto": runs(1.0, "1.0 bf16"),
        "anywhere": runs(1.5, "1.0 bf16"),
        "geo_inference": runs(30.0, "3.2.4"),
        "torchgeo_loop": runs(4.0, "0.8.1"),
    }
    rows = compare.to_rows(found, 1000)
    by_target = {row.target: row for row in rows if row.target is not None}
    assert {target: row.ratio for target, row in by_target.items()} == pytest.approx({10.0: 15.0, 20.0: 30.0, 2.0: 4.0})
    assert "torchgeo_loop" in by_target[2.0].against


def test_without_peers_ours_alone_is_measured() -> None:
    run = [{"work_s": 1.0, "process_s": 2.0, "polygons": 0, "version": "1.0 fp32"}]
    rows = compare.to_rows({"fp32": run, "auto": run, "anywhere": run}, 1000)
    assert all(row.reference is None for row in rows)


def test_memory_is_the_largest_against_the_smallest() -> None:
    small = {"megapixels": 100, "driver_mb": 300, "worker_mb": 0}
    large = {"megapixels": 1000, "driver_mb": 320, "worker_mb": 0}
    rows = memory.to_rows([small, large])
    assert [row.ratio for row in rows] == pytest.approx([320 / 300] * 2)
    assert rows[-1].is_met


def test_matching_counts_what_the_plain_loop_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row.name for row in evaluation.rows(True)] == ["matching", "whole evaluate, validity and unions included"]
    monkeypatch.setattr(evaluation, "matched", lambda *_: (0, 0, 0))
    with pytest.raises(AssertionError, match="plain loop"):
        evaluation.rows(True)


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in command.PARTS if part != "gpu"])
def test_each_part_runs_for_real(part: str) -> None:
    rows = command.measure(part, True, {})
    assert rows
    assert all(np.isfinite(row.value) and row.value >= 0 for row in rows)


@pytest.mark.slow
def test_two_workers_are_measured_against_one() -> None:
    assert len(scale._rows(2, 1, 1, "auto")) == 2
