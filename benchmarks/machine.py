"""What the machine is that measures: every figure names it, since a rate without its machine says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware and the few versions that decide a rate, and how busy it was."""

    cpu: str
    """Model name."""
    cores: int
    """That this process may use."""
    memory_gb: float
    """GiB, or the control group's limit where that is less."""
    gpu: str | None
    """Name, memory and driver of each, or None."""
    python: str
    torch: str
    load: float
    """Processes that wanted to run in the last minute, on average: above a few tenths, wall clocks are not to be trusted."""

    def __str__(self) -> str:
        gpu = f"; {self.gpu}" if self.gpu else ", no GPU"
        versions = f"Python {self.python}, torch {self.torch}"
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GiB{gpu}; {versions}; load {self.load:.1f}"


def machine() -> Machine:
    """The one at hand, now."""
    from importlib.metadata import version  # torch itself takes two seconds to import, its version none

    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=_memory_bytes() / 2**30,
        gpu=_gpu(),
        python=platform.python_version(),
        torch=version("torch"),
        load=os.getloadavg()[0],
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{models[0] if models else platform.machine()} ({', '.join(wide)})"


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(found.splitlines()) or None
