"""Targets say where buildings end, crops keep image and labels together, and a fit can be stopped and go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2", reason="the extra `train`")
torch = pytest.importorskip("torch")

from geoinfer.errors import ConfigError, SourceError  # noqa: E402
from geoinfer.training.augment import augmented_crop, draw_crop  # noqa: E402
from geoinfer.training.fit import _train, fit, loss_of, loss_to_teacher, main_recipe  # noqa: E402
from geoinfer.training.publish import write_bundle  # noqa: E402
from geoinfer.training.recipe import Recipe, read_recipe  # noqa: E402
from geoinfer.training.samples import scene_from_arrays  # noqa: E402
from geoinfer.training.targets import BODY, CONTACT, CORE, VALID, encode_targets  # noqa: E402

RECIPE = Recipe.model_validate(
    {
        "gsd": 0.5,
        "crop": 64,
        "batch": 2,
        "steps": 6,
        "learning_rate": 0.01,
        "checkpoint": 3,
        "network": {"architecture": "tiny", "arguments": {"channels": 4}},
        "generated": {"weight": 1, "scenes": 1, "size": 160},
    }
)


def two_rooms(gap: int) -> np.ndarray:
    instances = np.zeros((60, 80), np.int32)
    instances[10:50, 10:38] = 1
    instances[10:50, 38 + gap : 70] = 2
    return instances


@pytest.mark.parametrize("gap", [0, 1, 2, 4])
def test_cores_of_neighbours_never_touch(gap: int) -> None:
    bits = encode_targets(two_rooms(gap), np.ones((60, 80), bool), 0.3)
    count, _ = cv2.connectedComponents((bits & CORE > 0).astype(np.uint8), connectivity=8)
    assert count == 3
    assert not ((bits & CORE > 0) & (bits & BODY == 0)).any()


@pytest.mark.parametrize(("gap", "expected"), [(0, True), (2, True), (12, False)])
def test_contact_lies_between_near_neighbours_only(gap: int, expected: bool) -> None:
    bits = encode_targets(two_rooms(gap), np.ones((60, 80), bool), 0.3)
    assert bool((bits & CONTACT).any()) is expected
    if expected:
        parted = (bits & BODY > 0) & (bits & CONTACT == 0)
        assert cv2.connectedComponents(parted.astype(np.uint8), connectivity=4)[0] == 3


def test_small_buildings_keep_a_core() -> None:
    instances = np.zeros((20, 20), np.int32)
    instances[8:11, 8:11] = 1
    assert (encode_targets(instances, np.ones((20, 20), bool), 0.3) & CORE).any()


@given(seed=st.integers(0, 1000))
def test_a_crop_keeps_pixels_and_targets_together(seed: int) -> None:
    """White squares on black: wherever the crop lands, bright is body."""
    instances = np.zeros((200, 200), np.int32)
    for i in range(5):
        instances[20 + 35 * i : 40 + 35 * i, 30 + 25 * i : 60 + 25 * i] = i + 1
    pixels = np.where(instances[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, 2)
    scene = scene_from_arrays(pixels, instances, 0.3)
    crop, bits = draw_crop(scene, 96, 0.3, np.random.default_rng(seed))
    known = bits & VALID > 0
    agree = ((crop[..., 0] > 127) == (bits & BODY > 0))[known]
    assert agree.mean() > 0.97  # the rest are edge pixels: bilinear image, nearest targets


def test_crops_are_a_function_of_their_seed() -> None:
    rng = np.random.default_rng(0)
    scene = scene_from_arrays(
        rng.integers(0, 256, (150, 150, 3), np.uint8), two_rooms(2).repeat(2, 0)[:150, :80].repeat(2, 1)[:, :150], 0.3
    )
    first, second = (augmented_crop(scene, 64, 0.3, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_the_loss_ignores_unknown_pixels() -> None:
    logits = torch.randn(1, 3, 32, 32)
    bits = torch.zeros((1, 32, 32), dtype=torch.uint8)
    bits[:, :, :16] = VALID | BODY
    changed = logits.clone()
    changed[..., 16:] += 5
    assert loss_of(logits, bits) == loss_of(changed, bits)


def test_a_stopped_fit_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = torch.load(fit(RECIPE, None, tmp_path / "whole", log=lambda _: None), weights_only=True)
    half = RECIPE.model_copy(update={"steps": 6})
    # stop after three steps, at the checkpoint: the schedule is that of six
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geoinfer.training.fit._follow", _stop_after(3))
        with pytest.raises(KeyboardInterrupt):
            fit(half, None, stopped, log=lambda _: None)
    assert (stopped / "checkpoint.pt").exists()
    resumed = torch.load(fit(half, None, stopped, log=lambda _: None), weights_only=True)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def _stop_after(steps: int):  # type: ignore[no-untyped-def]
    from geoinfer.training import fit as module

    real, calls = module._follow, 0

    def follow(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    return follow


def test_a_fit_can_start_from_anothers_weights(tmp_path: Path) -> None:
    first = fit(RECIPE, None, tmp_path / "first", log=lambda _: None)
    still = RECIPE.model_copy(update={"start": str(first), "learning_rate": 1e-12, "steps": 1})
    second = torch.load(fit(still, None, tmp_path / "second", log=lambda _: None), weights_only=True)
    assert torch.allclose(torch.load(first, weights_only=True)["layers.0.weight"], second["layers.0.weight"], atol=1e-6)


def test_a_frozen_encoder_keeps_its_weights(tmp_path: Path) -> None:
    unet = {"architecture": "unet-lite0", "arguments": {"width": 0.25, "outputs": 3, "decoder": [8, 8, 8, 8]}}
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "network": unet, "encoder_rate": 0, "steps": 1})
    first = torch.load(fit(recipe, None, tmp_path / "one", log=lambda _: None), weights_only=True)
    second = torch.load(
        fit(recipe.model_copy(update={"steps": 2}), None, tmp_path / "two", log=lambda _: None), weights_only=True
    )
    moved = {name for name in first if name.endswith("weight") and not torch.equal(first[name], second[name])}
    assert moved
    assert all(name.startswith(("ups.", "head.")) for name in moved)


def test_a_teacher_pulls_every_pixel_towards_its_probabilities(tmp_path: Path) -> None:
    taught = torch.randn(2, 3, 8, 8)
    same, other = taught.clone().requires_grad_(), (taught + torch.randn_like(taught)).requires_grad_()
    loss_to_teacher(same, taught).backward()
    assert same.grad.abs().max() < 1e-7  # the least cross-entropy is at the teacher's own logits
    assert loss_to_teacher(other, taught) > loss_to_teacher(same, taught)
    alone = torch.load(fit(RECIPE, None, tmp_path / "alone", log=lambda _: None), weights_only=True)
    recipe = RECIPE.model_copy(update={"teacher": "tiny"})
    helped = torch.load(fit(recipe, None, tmp_path / "taught", log=lambda _: None), weights_only=True)
    assert not torch.equal(alone["layers.0.weight"], helped["layers.0.weight"])


def test_two_processes_train_together(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"processes": 2, "steps": 2})
    state = torch.load(fit(recipe, None, tmp_path), weights_only=True)
    assert all(torch.isfinite(v).all() for v in state.values())


def test_no_thread_of_the_process_group_outlives_the_fit(tmp_path: Path) -> None:
    """One that does aborts the interpreter now and then: it asks for Python while Python ends."""
    recipe = RECIPE.model_copy(update={"processes": 2, "steps": 1})
    torch.multiprocessing.spawn(_train_and_look, args=(recipe, tmp_path, f"file://{tmp_path}/meet"), nprocs=2)


def _train_and_look(rank: int, recipe: Recipe, out: Path, meet: str) -> None:
    _train(rank, recipe, None, out, meet, lambda _: None)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], names


def test_a_trained_bundle_loads_and_predicts(tmp_path: Path) -> None:
    from geoinfer.model.predictor import load_predictor

    state = torch.load(fit(RECIPE, None, tmp_path / "fit", log=lambda _: None), weights_only=True)
    folder = write_bundle(
        tmp_path / "mine", state, RECIPE, name="mine", version="1", licence="CC0-1.0", description="test", chip=64, margin=8,
        stride=2, probability="parted", threshold=0.4, min_area_m2=5, simplify_m=0.5, grow_m=0.3,
    )  # fmt: skip
    predictor = load_predictor(folder, device="cpu")
    assert predictor.spec.threshold == 0.4
    assert predictor.predict(np.zeros((1, 3, 64, 64), np.uint8)).shape == (1, 64, 64)


def test_wrong_recipes_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("gsd: -1\ncrop: 64\nbatch: 1\nsteps: 1\nlearning_rate: 0.1\n")
    with pytest.raises(ConfigError, match="gsd"):
        read_recipe(path)
    path.write_text("gsd: [")
    with pytest.raises(SourceError, match=r"recipe\.yaml"):
        read_recipe(path)
    path.write_text("gsd: 1\ncrop: 64\nbatch: 1\nsteps: 1\nlearning_rate: 0.1\nsources: [{prefix: a, weight: 1}]\n")
    with pytest.raises(ConfigError, match="--data"):
        main_recipe(path, data=None, out=tmp_path)
    with pytest.raises(SourceError, match=r"split\.csv"):
        main_recipe(path, data=tmp_path, out=tmp_path)
