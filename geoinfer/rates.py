"""How fast networks are on this machine, as its own runs measured it; kept from one process to the next.

One line a model, device and precision, in the user's cache directory. Forgetting it costs nothing but a rougher plan, and
so a file that cannot be read or written is no error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geoinfer.job import Job

LEAST_CHIPS = 16
"""Runs of fewer chips say more about starting than about the network."""
_ASSUMED_CPU_MPX_S = 1.6
"""Of a core in fp32, million chip pixels a second: half of what a core of a server of 2024 does in bf16."""
_ASSUMED_GPU_MPX_S = 100.0
"""A cautious guess at a current card."""
_MOST = 200
"""Lines kept; the oldest go."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a network works."""

    mpx_s: float
    """Million pixels of chips a second, margins included; of a device, or of all cores of this machine."""
    origin: Literal["measured", "assumed"]


def rate_of(job: Job) -> Rate:
    """What a job's network does here: as earlier runs measured it, else a round number."""
    known = _read().get(_key(job))
    if known is not None:
        return Rate(known, "measured")
    cores = len(os.sched_getaffinity(0))
    return Rate(_ASSUMED_GPU_MPX_S if job.device.startswith("cuda") else _ASSUMED_CPU_MPX_S * cores, "assumed")


def remember(job: Job, chips: int, seconds: float, devices: int = 1) -> None:
    """Keep what a run measured, where it says anything.

    Args:
        job: What was done.
        chips: Inferred by this process and its workers.
        seconds: Wall clock in which that was done.
        devices: GPUs at work; the rate is that of one.
    """
    if not isinstance(job.model, str) or chips < LEAST_CHIPS or seconds <= 0:
        return
    rate = chips * job.spec.chips.chip**2 / seconds / 1e6 / max(1, devices if job.device.startswith("cuda") else 1)
    known = _read()
    known.pop(_key(job), None)
    lines = dict(list({**known, _key(job): round(rate, 4)}.items())[-_MOST:])
    file = _file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        scratch.write_text(json.dumps(lines, indent=0), encoding="utf-8")
        scratch.replace(file)


def _read() -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {str(key): float(rate) for key, rate in content.items() if _is_rate(rate)}
    return {}


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _key(job: Job) -> str:
    """Which network, on what kind of device; a CPU's rate is that of the cores which the process may use."""
    kind = job.device.partition(":")[0]
    cores = "" if kind == "cuda" else f" x{len(os.sched_getaffinity(0))}"
    return f"{job.spec.name}@{job.spec.version} {job.spec.weights_sha256[:12]} {kind}{cores} {job.precision}"


def _file() -> Path:
    """By the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoinfer" / "rates.json"
