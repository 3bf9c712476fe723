"""The predictor gives one answer whatever the batch, the threads and the order; the registry trusts no file."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geoinfer.errors import ConfigError, GeoinferError, ResourceError, SourceError
from geoinfer.model.folding import fold, four_at_once, sum_taps
from geoinfer.model.networks import UNetLite0, build_network
from geoinfer.model.predictor import Predictor, load_network, load_predictor, probability
from geoinfer.model.registry import find_model, list_models, resolve_model
from geoinfer.model.spec import PLANES


def noise(n: int, side: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), np.uint8)


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    return load_predictor("tiny", device="cpu", precision="fp32", batch_size=1)


@pytest.fixture(scope="module")
def deep() -> Predictor:
    spec = resolve_model("tiny")
    return Predictor(spec, fold(random_network(1), spec), precision="fp32", batch_size=1)


def random_network(seed: int) -> UNetLite0:
    """Small, with statistics as after training, not the identity."""
    torch.manual_seed(seed)
    network = UNetLite0(outputs=3, width=0.25)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return network.eval()


@given(batch=st.integers(1, 6), threads=st.integers(1, 3), precision=st.sampled_from(["fp32", "bf16"]))
@settings(max_examples=8)
def test_batch_size_and_threads_change_no_digit(deep: Predictor, batch: int, threads: int, precision: str) -> None:
    chips = noise(5)
    network = copy.deepcopy(deep._network)
    expected = Predictor(deep.spec, network, precision=precision, batch_size=1).predict(chips)
    other = Predictor(deep.spec, network, precision=precision, batch_size=batch, threads=threads)
    assert np.array_equal(other.predict(chips), expected)


def test_order_of_chips_does_not_matter(tiny: Predictor) -> None:
    chips = noise(4)
    assert np.array_equal(tiny.predict(chips[::-1]), tiny.predict(chips)[::-1])


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 9), c_in=st.integers(1, 4), c_out=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_summed_taps_are_doubling_and_a_convolution(rows: int, cols: int, c_in: int, c_out: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(2, c_in, rows, cols).double(), torch.randn(c_out, c_in, 3, 3).double()
    doubled = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = nn.functional.conv2d(doubled, weight, padding=1)
    found = nn.functional.conv_transpose2d(x, sum_taps(weight), stride=2, padding=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)  # float64 sums in another order


@given(half=st.integers(1, 6), planes=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_head_of_four_pixels_at_once_is_the_head(half: int, planes: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, head = torch.randn(2, 5, 2 * half, 4).double(), nn.Conv2d(5, 4 * planes, 3, padding=1).double()
    with torch.inference_mode():
        expected = nn.functional.pixel_shuffle(head(x), 2)
        found = nn.functional.pixel_shuffle(four_at_once(head)(x), 4)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("probability", PLANES)
@pytest.mark.parametrize("side", [64, 96, 160])
def test_folding_keeps_the_function(side: int, probability: str) -> None:
    spec = dataclasses.replace(resolve_model("tiny"), probability=probability)
    for network in (random_network(side), build_network("tiny").eval()):
        x = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            expected, found = network(x)[:, PLANES[probability]], fold(network, spec)(x)
        # float32 sums in another order through 60 layers: rounding, whatever the size of the logits
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_folding_leaves_the_network_as_it_was() -> None:
    network = random_network(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fold(network, resolve_model("tiny"))
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folding_costs_no_accuracy_in_half_precision() -> None:
    """Rounding to bfloat16 moves probabilities; after folding not more of them than before."""
    bundle = find_model("buildings")
    network, chips = load_network(bundle), pictures(2, 256)
    exact = Predictor(bundle.spec, copy.deepcopy(network), precision="fp32", batch_size=1).predict(chips).astype(int)
    plain = Predictor(bundle.spec, copy.deepcopy(network), precision="bf16", batch_size=1).predict(chips)
    folded = Predictor(bundle.spec, fold(network, bundle.spec), precision="bf16", batch_size=1).predict(chips)
    limit = bundle.spec.threshold * 255
    for wrong in (lambda p: abs(p - exact) > 12, lambda p: (p >= limit) != (exact >= limit)):
        # two ways of rounding differ by chance: a quarter more, and 50 of 131072 pixels
        assert wrong(folded).sum() <= 1.25 * wrong(plain).sum() + 50
    assert (exact >= limit).any()


def pictures(n: int, side: int) -> np.ndarray:
    from geoinfer.scenes import generate_scene

    return np.stack([generate_scene(seed, size=side, gsd=0.3).image for seed in range(n)])


def test_nothing_looks_at_the_whole_chip(deep: Predictor) -> None:
    chips = noise(1, side=2048)
    changed = chips.copy()
    changed[:, :, :32, :32] ^= 255
    far = np.s_[:, -512:, -512:]
    assert np.array_equal(deep.predict(chips)[far], deep.predict(changed)[far])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_pixel_stays_one_pixel(tiny: Predictor, poison: float) -> None:
    chips = noise(2).astype(np.float32)
    poisoned = chips.copy()
    poisoned[1, 0, 40, 41] = poison
    clean, found = tiny.predict(chips), tiny.predict(poisoned)
    assert found[1, 40, 41] == 0
    row, col = np.nonzero(clean[1] != found[1])
    assert max(abs(row - 40).max(), abs(col - 41).max()) <= 20  # what the tiny network sees around a pixel
    assert np.array_equal(clean[0], found[0])


def test_invalid_pixels_have_probability_zero(tiny: Predictor) -> None:
    valid = np.random.default_rng(1).random((2, 96, 96)) > 0.3
    assert not tiny.predict(noise(2), valid)[~valid].any()


class Hungry(nn.Module):
    """Runs out of memory above a batch size, as a GPU does."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("not enough")
        return x.mean(1, keepdim=True) * 3


def test_out_of_memory_halves_the_batch_and_gives_the_same() -> None:
    spec = resolve_model("tiny")
    chips = noise(11)
    expected = Predictor(spec, Hungry(99), batch_size=16).predict(chips)
    hungry = Hungry(3)
    predictor = Predictor(spec, hungry, batch_size=16)
    with pytest.warns(ResourceWarning, match="out of memory at batch size"):
        assert np.array_equal(predictor.predict(chips), expected)
    assert predictor.batch_size == 2
    with pytest.raises(ResourceError, match="one chip"), pytest.warns(ResourceWarning):
        Predictor(spec, Hungry(0), batch_size=2).predict(chips)


def test_auto_batch_size_is_found_once() -> None:
    predictor = load_predictor("tiny", device="cpu", batch_size="auto")
    predictor.predict(noise(2))
    assert isinstance(predictor.batch_size, int)
    assert predictor.batch_size >= 1


def test_probabilities_round_to_bytes() -> None:
    z = torch.tensor([-20.0, 0.0, 20.0]).view(1, 1, 1, 3)
    assert probability(z, "body").tolist() == [[[0, 128, 255]]]
    three = torch.cat((z, z, z), 1)
    assert probability(three, "core").tolist() == [[[0, 128, 255]]]
    assert probability(three, "parted").tolist() == [[[0, 64, 0]]]


@pytest.mark.parametrize("how", PLANES)
def test_a_probability_takes_all_planes_or_only_its_own(how: str) -> None:
    logits = torch.randn(2, 3, 8, 8)
    assert torch.equal(probability(logits, how), probability(logits[:, PLANES[how]], how))


def test_a_card_that_needs_more_planes_than_there_are_is_refused(copy_of_tiny: Path) -> None:
    from geoinfer.training.publish import write_bundle
    from geoinfer.training.recipe import read_recipe

    recipe = read_recipe(find_model("tiny").folder / "recipe.yaml")
    recipe = recipe.model_copy(update={"network": recipe.network.model_copy(update={"arguments": {"outputs": 2}})})
    state = build_network("tiny", outputs=2).state_dict()
    write_bundle(
        copy_of_tiny, state, recipe, name="tiny", version="9", licence="CC0-1.0", description="narrow", chip=96, margin=16,
        stride=2, probability="parted", threshold=0.5, min_area_m2=1, simplify_m=0, grow_m=0,
    )  # fmt: skip
    with pytest.raises(SourceError, match="2 planes"):
        load_predictor(copy_of_tiny)


def test_wrong_chips_are_refused(tiny: Predictor) -> None:
    with pytest.raises(ConfigError, match="takes"):
        tiny.predict(np.zeros((1, 4, 96, 96), np.uint8))
    with pytest.raises(ConfigError, match="multiples"):
        tiny.predict(np.zeros((1, 3, 95, 95), np.uint8))


def test_an_unknown_model_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'tiny'.*known models are"):
        resolve_model("tinny")
    assert {"tiny", "buildings"} <= set(list_models())


@pytest.fixture
def copy_of_tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(find_model("tiny").folder, folder)
    return folder


def test_one_flipped_bit_refuses_to_load(copy_of_tiny: Path) -> None:
    weights = copy_of_tiny / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SourceError, match="sha256"):
        load_predictor(copy_of_tiny)


def test_missing_weights_and_broken_cards_are_one_clear_error(copy_of_tiny: Path) -> None:
    card = copy_of_tiny / "item.json"
    good = json.loads(card.read_text())
    (copy_of_tiny / "weights.safetensors").rename(copy_of_tiny / "elsewhere")
    with pytest.raises(SourceError, match="cannot be read"):
        load_predictor(copy_of_tiny)
    for change in (
        lambda p: p.pop("mlm:input"),
        lambda p: p["geoinfer:model"].update(threshold=1.5),
        lambda p: p["geoinfer:model"].update(probability="magic"),
        lambda p: p["geoinfer:model"].update(margin=48),
    ):
        item = json.loads(json.dumps(good))
        change(item["properties"])
        card.write_text(json.dumps(item))
        with pytest.raises(SourceError, match=r"item\.json"):
            find_model(copy_of_tiny)
    card.write_text("{")
    with pytest.raises(SourceError, match=r"item\.json"):
        find_model(copy_of_tiny)


def test_weights_that_give_nan_are_refused(copy_of_tiny: Path) -> None:
    from geoinfer.training.publish import write_bundle
    from geoinfer.training.recipe import read_recipe

    recipe = read_recipe(find_model("tiny").folder / "recipe.yaml")
    state = build_network("tiny", **recipe.network.arguments).state_dict()
    state["layers.6.weight"][:] = float("nan")
    spec = resolve_model("tiny")
    write_bundle(
        copy_of_tiny, state, recipe, name="tiny", version="9", licence="CC0-1.0", description="broken", chip=96, margin=16,
        stride=2, probability=spec.probability, threshold=0.5, min_area_m2=1, simplify_m=0, grow_m=0,
    )  # fmt: skip
    with pytest.raises(SourceError, match="NaN"):
        load_predictor(copy_of_tiny, precision="fp32")


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "cuda:99"},
        {"device": "tpu"},
        {"precision": "fp8"},
        {"precision": "fp16", "device": "cpu"},
        {"batch_size": 0},
    ],
)
def test_settings_that_cannot_work_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(arguments.values())))):
        load_predictor("tiny", **arguments)


def test_errors_survive_pickling_as_workers_do_it() -> None:
    from tblib import pickling_support  # what distributed installs

    pickling_support.install()
    for kind in GeoinferError.__subclasses__():
        error = pickle.loads(pickle.dumps(kind("the thing, the value, the remedy")))
        assert type(error) is kind
        assert str(error) == "the thing, the value, the remedy"
