"""The predictor: chips in, uint8 probabilities out, the same for every batch size and number of threads.

Owns the one loaded network of a process, its device and its lock. What it does not know: files of imagery, tiles, polygons.

On a CPU each chip is one forward pass on one intra-op thread: oneDNN's sums depend on the number of threads in float32
(measured: probabilities differ by 1/255), so threads are spent on chips side by side, which is also faster. On a GPU chips
go in batches, through pinned memory on a stream of the calling thread.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from geoinfer.errors import ConfigError, ResourceError, SourceError
from geoinfer.model.networks import NETWORKS, build_network
from geoinfer.model.registry import Bundle, find_model, verify_weights
from geoinfer.model.spec import ModelSpec

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FILL = 127
"""Value of pixels that hold no imagery, as in `imagery`."""
_AUTO_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Predictor:
    """A loaded model on a device. Safe to call from several threads; the forward pass takes turns."""

    def __init__(
        self,
        spec: ModelSpec,
        network: nn.Module,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Put a network on a device. Most callers want `load_predictor`.

        Args:
            spec: The card; says what the planes mean.
            network: (N, B, S, S) normalised float -> (N, K, S, S) logits, in eval mode.
            device: `cpu` or `cuda:N`.
            precision: `fp32`, `bf16` or `fp16`.
            batch_size: Chips a forward pass; None measures it at the first call.
            threads: Chips side by side on a CPU; default 1.
        """
        self.spec = spec
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.threads = max(1, threads or 1)
        self._dtype = PRECISIONS[precision]
        self._network = network.to(torch.device(device), self._dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def predict(self, chips: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """(N, S, S) uint8 probabilities, 0 where invalid.

        Args:
            chips: (N, C, S, S) uint8 in the card's band order, or float in the same range; NaN and infinite values are
                filled and marked invalid before the forward pass.
            valid: (N, S, S) bool, pixels that hold imagery; None means all.

        Raises:
            ConfigError: The chips do not have the card's bands, or their sides are no multiple of its stride.
            ResourceError: The device's memory does not hold a single chip.
        """
        chips, valid = self._sanitise(chips, valid)
        prob = np.empty((len(chips), *chips.shape[2:]), np.uint8)
        with self._lock:
            self._forward_all(chips, prob)
        if valid is not None:
            prob[~valid] = 0
        return prob

    def _sanitise(
        self, chips: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if chips.ndim != 4 or chips.shape[1] != len(self.spec.bands):
            raise ConfigError(
                f"chips have shape {chips.shape}; model {self.spec.name} takes (N, {len(self.spec.bands)}, S, S)"
            )
        if chips.shape[2] % self.spec.chips.stride or chips.shape[3] % self.spec.chips.stride:
            raise ConfigError(
                f"chips of {chips.shape[2]}x{chips.shape[3]} px: sides must be multiples of {self.spec.chips.stride}"
            )
        if chips.dtype != np.uint8:
            finite = np.isfinite(chips).all(axis=1)  # (N, S, S)
            chips = np.clip(np.rint(np.where(finite[:, None], chips, FILL)), 0, 255).astype(np.uint8)
            valid = finite if valid is None else valid & finite
        return chips, valid

    def _forward_all(self, chips: NDArray[np.uint8], prob: NDArray[np.uint8]) -> None:
        if self.batch_size is None and len(chips):
            self.batch_size = self._measure_batch_size(chips[:1])
        if self.device == "cpu":
            self._forward_cpu(chips, prob)
            return
        at = 0
        while at < len(chips):
            size = self.batch_size or 1
            try:
                prob[at : at + size] = self._forward(chips[at : at + size])
            except torch.OutOfMemoryError as error:
                self._halve(error)
            else:
                at += size

    def _forward_cpu(self, chips: NDArray[np.uint8], prob: NDArray[np.uint8]) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            todo = list(range(len(chips)))
            while todo:
                size = self.batch_size or 1
                parts = [todo[i : i + size] for i in range(0, len(todo), size)]
                done: list[int] = []
                try:
                    for part, result in zip(parts, self._map(chips, parts), strict=True):
                        prob[part] = result
                        done += part
                except torch.OutOfMemoryError as error:
                    self._halve(error)
                todo = todo[len(done) :]
        finally:
            torch.set_num_threads(before)

    def _map(self, chips: NDArray[np.uint8], parts: Sequence[list[int]]) -> Any:
        if self.threads == 1 or len(parts) == 1:
            return (self._forward(chips[part]) for part in parts)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.threads, thread_name_prefix="geoinfer-forward", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self._pool.map(lambda part: self._forward(chips[part]), parts)

    def _forward(self, chips: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            x = torch.from_numpy(chips)  # (N, C, S, S) uint8
            if self.device != "cpu":
                x = x.pin_memory().to(self.device, non_blocking=True)
            x = ((x.float() - self._mean) / self._std).to(self._dtype).contiguous(memory_format=torch.channels_last)
            logits = self._network(x)  # (N, K, S, S) of the precision
            return probability(logits, self.spec.probability).cpu().numpy()  # (N, S, S) uint8

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        size = self.batch_size or 1
        if size == 1:
            raise ResourceError(
                f"{self.device}: out of memory for one chip of {self.spec.chips.chip} px; use --device cpu or a larger one"
            ) from error
        self.batch_size = size // 2
        warnings.warn(
            f"{self.device}: out of memory at batch size {size}, going on with {size // 2}", ResourceWarning, stacklevel=4
        )
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def _measure_batch_size(self, chip: NDArray[np.uint8]) -> int:
        """The smallest batch within 5 % of the best rate among powers of two."""
        before = torch.get_num_threads()
        if self.device == "cpu":
            torch.set_num_threads(1)
        best, rates = 1, {}
        try:
            self._forward(chip)  # warm up: kernels are made at the first call
            for size in _AUTO_BATCHES:
                batch = np.repeat(chip, size, axis=0)
                start = time.perf_counter()
                self._forward(batch)
                rates[size] = size / (time.perf_counter() - start)
                if rates[size] > 1.05 * rates[best]:
                    best = size
                elif rates[size] < 0.9 * rates[best] or self.device == "cpu":
                    break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        finally:
            torch.set_num_threads(before)
        return best


def probability(logits: Tensor, how: str) -> Tensor:
    """(N, K, S, S) logits -> (N, S, S) uint8 probabilities, on the device; `how` is one of `spec.PROBABILITIES`."""
    z = logits.float()
    if how == "body":
        p = z[:, 0].sigmoid()
    elif how == "core":
        p = z[:, 1].sigmoid()
    else:
        p = z[:, 0].sigmoid() * (-z[:, 2]).sigmoid()
    return (p * 255).round().to(torch.uint8)


def fold_normalisation(network: nn.Module) -> nn.Module:
    """The same function with each batch normalisation folded into the convolution before it, in place."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                first, second = module[i], module[i + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[i] = torch.nn.utils.fuse_conv_bn_eval(first, second)
                    module[i + 1] = nn.Identity()
    return network


def load_network(bundle: Bundle) -> nn.Module:
    """The network of a bundle with its verified weights, in eval mode, float32, normalisation folded.

    Raises:
        ConfigError: The card names an architecture that this version does not have.
        SourceError: The weights are missing, changed, or do not fit the architecture.
    """
    spec = bundle.spec
    if spec.architecture not in NETWORKS:
        raise ConfigError(f"{bundle.folder}: architecture {spec.architecture!r} is not one of {', '.join(NETWORKS)}")
    content = verify_weights(bundle)
    try:
        state = {name: tensor.float() for name, tensor in load_safetensors(content).items()}
        network = build_network(spec.architecture, **spec.arguments)
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{bundle.weights}: weights do not fit architecture {spec.architecture}: {reason}") from error
    return fold_normalisation(network.eval())


def resolve_device(device: str) -> str:
    """`auto` becomes the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: No such device here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = "cuda:0"
    if device == "cpu":
        return device
    count = torch.cuda.device_count()
    if not device.startswith("cuda:") or not device[5:].isdigit() or int(device[5:]) >= count:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ConfigError(f"device {device!r} is not one of auto, {here}")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` becomes bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: No such precision, or not on this device.
    """
    if precision == "auto":
        if device == "cpu":
            return "bf16" if _cpu_has_bf16() else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of auto, {', '.join(PRECISIONS)}")
    if precision == "fp16" and device == "cpu":
        raise ConfigError("precision 'fp16' is for GPUs; use bf16 or fp32 with --device cpu")
    return precision


def _cpu_has_bf16() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def load_predictor(
    model: str | Path = "buildings",
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | str = "auto",
    threads: int | None = None,
) -> Predictor:
    """Load a model by name or folder onto a device.

    Args:
        model: A name that `geoinfer models list` shows, or a folder with a card and weights.
        device: `auto`, `cpu` or `cuda:N`.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        batch_size: Chips a forward pass, or `auto` to measure it. Cannot change a result.
        threads: Chips side by side on a CPU; default one for each core that torch may use. Cannot change a result.

    Raises:
        ConfigError: Unknown model, device or precision.
        SourceError: The card or the weights cannot be read, were changed, or give no finite numbers.
    """
    bundle = find_model(model)
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ConfigError(f"batch size {batch_size!r} must be 'auto' or a whole number from 1")
    network = load_network(bundle)
    predictor = Predictor(
        bundle.spec,
        network,
        device=device,
        precision=precision,
        batch_size=None if batch_size == "auto" else int(batch_size),
        threads=threads or torch.get_num_threads(),
    )
    _smoke_test(predictor, bundle)
    return predictor


def _smoke_test(predictor: Predictor, bundle: Bundle) -> None:
    """One small chip of noise: catches weights that load and then give NaN or the wrong planes."""
    side = 2 * bundle.spec.chips.stride
    noise = np.random.default_rng(0).integers(0, 256, (1, len(bundle.spec.bands), side, side), np.uint8)
    with torch.inference_mode():
        x = ((torch.from_numpy(noise).to(predictor.device).float() - predictor._mean) / predictor._std).to(predictor._dtype)
        logits = predictor._network(x)
    planes = {"body": 1, "core": 2, "parted": 3}[bundle.spec.probability]
    if logits.shape[2:] != (side, side) or logits.shape[1] < planes or not torch.isfinite(logits).all():
        raise SourceError(
            f"{bundle.weights}: the network gives {tuple(logits.shape)} with NaN or too few planes for probability "
            f"{bundle.spec.probability!r}; the weights or the card are wrong"
        )
