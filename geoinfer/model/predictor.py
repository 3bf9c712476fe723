"""The predictor: chips in, uint8 probabilities out, the same for every batch size and number of threads.

Owns the one loaded network of a process, its device and its lock. What it does not know: files of imagery, tiles, polygons.

On a CPU each batch is one forward pass on one intra-op thread: oneDNN's sums depend on the number of threads in float32
(measured: probabilities differ by 1/255), so threads are spent on batches side by side, which is also faster; all tiles
share one pool of them. On a GPU the calling thread stages its chips in pinned memory and copies them on a stream of its own,
while the network works for another one; the lock is held only to queue a forward pass. Batches there have one shape, filled
up with repeats, and cuDNN may neither time its algorithms nor use inexact ones, so two runs on one kind of card agree to the
bit.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch: huge pages for tensors, a sixth faster (RESULTS.md)
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from geoinfer.errors import ConfigError, ResourceError, SourceError
from geoinfer.model.folding import fold
from geoinfer.model.networks import NETWORKS, build_network
from geoinfer.model.registry import Bundle, find_model, verify_weights
from geoinfer.model.spec import PLANES, ModelSpec
from geoinfer.trace import note, span

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FILL = 127
"""Value of pixels that hold no imagery, as in `imagery`."""
GPU_CHIPS = 16
"""Chips of a forward pass on a GPU at most: 26 Mpx, more than any card needs to be busy."""
_BYTES_A_PIXEL = 300
"""Upper bound of the memory that a forward pass takes for each pixel of a batch, for choosing its size."""


class Predictor:
    """A loaded model on a device. Safe to call from several threads, which is how the device is kept busy."""

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
            batch_size: Chips a forward pass; None: 1 on a CPU, on a GPU what a quarter of its memory holds, up to 16.
            threads: Batches side by side on a CPU; default 1.
        """
        self.spec = spec
        self.device = device
        self.precision = precision
        self.batch_size = batch_size or _usual_batch(device, spec.chips.chip)
        self.threads = max(1, threads or 1)
        self._dtype = PRECISIONS[precision]
        self._network = network.to(torch.device(device), self._dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._copies = _OwnStream(device)
        self._compute: Any = None
        if device != "cpu":
            self._compute = torch.cuda.Stream(device)
            torch.cuda.synchronize(device)  # the weights were laid out on another stream

    @property
    def chips_at_once(self) -> int:
        """How many chips a call should bring, so that all threads, or a whole batch, have work."""
        return self.batch_size * (2 * self.threads if self.device == "cpu" else 1)

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
        todo = list(range(len(chips)))
        while todo:
            size = self.batch_size
            parts = [todo[i : i + size] for i in range(0, len(todo), size)]
            done = 0
            try:
                for part, found in zip(parts, self._forward_each(chips, parts, size), strict=True):
                    prob[part] = found
                    done += len(part)
            except torch.OutOfMemoryError as error:
                self._halve(size, error)
            todo = todo[done:]
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

    def _forward_each(self, chips: NDArray[np.uint8], parts: Sequence[list[int]], size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, S, S) of each part, in order."""
        if self.device != "cpu":
            return (self._forward_gpu(chips[part], size) for part in parts)
        if self.threads == 1:
            return (self._forward_here(chips[part]) for part in parts)
        return self._workers().map(lambda part: self._forward(chips[part]), parts)

    def _workers(self) -> ThreadPoolExecutor:
        """The threads of the network, made at the first call; tiles that are done side by side share them."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self.threads, thread_name_prefix="geoinfer-forward", initializer=torch.set_num_threads, initargs=(1,)
                )
            return self._pool

    def _forward_here(self, chips: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A forward pass on the calling thread: on a CPU with one thread to give, callers take turns."""
        with self._lock:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return self._forward(chips)
            finally:
                torch.set_num_threads(before)

    def _forward(self, chips: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with span("forward"), torch.inference_mode():
            return self._probabilities(torch.from_numpy(chips)).numpy()

    def _probabilities(self, x: Tensor) -> Tensor:
        """(N, C, S, S) uint8 -> (N, S, S) uint8, on the device."""
        x = ((x.float() - self._mean) / self._std).to(self._dtype).contiguous(memory_format=torch.channels_last)
        return probability(self._network(x), self.spec.probability)

    def _forward_gpu(self, chips: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Stage on this thread, queue the network's work under the lock, wait outside it while another thread queues."""
        count = len(chips)
        staged = torch.empty((size, *chips.shape[1:]), dtype=torch.uint8, pin_memory=True)
        staged[:count] = torch.from_numpy(chips)
        staged[count:] = staged[0]  # one shape for all batches: cuDNN picks its algorithm by the shape
        mine, shared = self._copies.get(), self._compute
        with torch.inference_mode():
            with torch.cuda.stream(mine):
                x = staged.to(self.device, non_blocking=True)
            with self._lock, exact_kernels(), torch.cuda.stream(shared):
                shared.wait_stream(mine)
                x.record_stream(shared)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record(shared)
                prob = self._probabilities(x)
                end.record(shared)
            with torch.cuda.stream(mine):
                mine.wait_event(end)
                prob.record_stream(mine)
                found = torch.empty(prob.shape, dtype=torch.uint8, pin_memory=True)
                found.copy_(prob, non_blocking=True)
            mine.synchronize()
            busy_ns = int(begin.elapsed_time(end) * 1e6)
            note("forward", time.time_ns() - busy_ns, busy_ns)
        return found[:count].numpy()

    def _halve(self, size: int, error: torch.OutOfMemoryError) -> None:
        """Go on with half the batch, unless another thread has seen to it."""
        if size == 1:
            raise ResourceError(
                f"{self.device}: out of memory for one chip of {self.spec.chips.chip} px; use --device cpu or a larger one"
            ) from error
        with self._lock:
            if self.batch_size < size:
                return
            self.batch_size = size // 2
        warnings.warn(
            f"{self.device}: out of memory at batch size {size}, going on with {size // 2}", ResourceWarning, stacklevel=4
        )
        if self.device != "cpu":
            torch.cuda.empty_cache()


class _OwnStream(threading.local):
    """A CUDA stream of each thread, for its copies."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream: Any = None

    def get(self) -> Any:
        """Made at the first call of a thread."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream


@contextmanager
def exact_kernels() -> Iterator[None]:
    """CuDNN and cuBLAS without timing runs, atomics or TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _usual_batch(device: str, chip: int) -> int:
    """Chips a forward pass: by the card's memory, not by timing, so that the next run on such a card does the same."""
    if device == "cpu":
        return 1
    memory = torch.cuda.get_device_properties(device).total_memory
    fits = memory // 4 // (_BYTES_A_PIXEL * chip * chip)
    return max(1, min(GPU_CHIPS, 2 ** (int(fits).bit_length() - 1) if fits else 1))


def probability(logits: Tensor, how: str) -> Tensor:
    """The probability of a network's planes, on their device.

    Args:
        logits: (N, K, S, S), all planes of a network, or only `PLANES[how]` in that order as a folded one gives them.
        how: One of `spec.PROBABILITIES`.

    Returns:
        (N, S, S) uint8: sigmoid x 255, rounded; `parted` is body x (1 - contact).
    """
    planes = PLANES[how]
    if logits.shape[1] > len(planes):
        logits = logits[:, planes]
    p = logits[:, 0].float().sigmoid()
    if how == "parted":
        p.mul_((-logits[:, 1].float()).sigmoid())
    return p.mul_(255).round_().to(torch.uint8)


def load_network(bundle: Bundle) -> nn.Module:
    """The network of a bundle with its verified weights, in eval mode, float32, as it was trained: `fold` makes it fast.

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
    return network.eval()


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
        batch_size: Chips a forward pass, or `auto`: see `Predictor`. Cannot change a result on a CPU; on a GPU another shape
            may round otherwise.
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
    network = fold(load_network(bundle), bundle.spec)
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
    if logits.shape != (1, len(PLANES[bundle.spec.probability]), side, side) or not torch.isfinite(logits).all():
        raise SourceError(
            f"{bundle.weights}: the network gives {tuple(logits.shape)} or NaN for probability "
            f"{bundle.spec.probability!r}; the weights or the card are wrong"
        )
