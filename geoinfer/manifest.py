"""What `run.json` says: the job, the versions that made it, and how the run went.

The job's description is the part that decides the output; everything else here is for the reader.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geoinfer
from geoinfer.accounts import Accounts
from geoinfer.detection import TileRecord
from geoinfer.job import Execution
from geoinfer.merge import Counts
from geoinfer.trace import Stages

STATUSES = ("done", "nodata", "masked", "failed")
BEFORE = ("snapshot", "masks", "open")
"""Stages of the driver before the tiles, ..."""
TILE = ("load", "read", "predict", "polygonize", "commit")
"""... of whoever does tiles, ..."""
AFTER = ("stitch", "finish", "write")
"""... and of the driver after them."""


@dataclass(frozen=True, slots=True)
class Times:
    """When a process worked on a run, and on what."""

    stages: Stages
    device: str
    """`cpu`, `cuda` or `cuda:N`."""
    tiles_s: float
    """Wall clock from the first tile handed out to the last one back."""
    total_s: float
    """Wall clock of all of it."""

    def by_stage(self) -> dict[str, float]:
        """Seconds of the wall clock by stage; they add up to `total_s` but for what no stage has.

        While tiles are done, each of the threads that do them is in one stage at any time, so a stage's share of the wall
        clock is its share of their time; `wait` is what is left of it: a thread had no tile.
        """
        lanes = max(1, self.stages.threads("read"))
        seconds = {name: self.stages.seconds(name) for name in (*BEFORE, *TILE, *AFTER)}
        seconds |= {name: seconds[name] / lanes for name in TILE}
        seconds["load"] = self.stages.seconds("load") / max(1, self.stages.threads("load"))  # one in a process; others wait
        seconds["wait"] = max(0.0, self.tiles_s - sum(seconds[name] for name in TILE))
        return {name: round(value, 3) for name, value in seconds.items()}

    def of_device(self) -> dict[str, Any]:
        """How busy the network was while tiles were done; None where a model does not tell."""
        busy_s = self.stages.seconds("forward")
        count = self.stages.threads if self.device == "cpu" else self.stages.processes
        at_once = count("forward")
        share = busy_s / (at_once * self.tiles_s) if at_once and self.tiles_s else None
        return {
            "kind": self.device.partition(":")[0],
            "at_once": at_once,
            "busy_s": round(busy_s, 3),
            "busy_share": None if share is None else round(share, 4),
        }


def opening(
    description: dict[str, Any],
    mark: str,
    execution: Execution,
    covers: float,
    placement: dict[str, Any] | None,
    updated: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run that begins or goes on.

    Args:
        description: Of the job.
        mark: Its fingerprint.
        execution: How it is cut.
        covers: Share of the region that the imagery covers.
        placement: Where the rasters of `job.imagery` lie; `keeping` reads it.
        updated: Where tiles of a run on other imagery were kept: that run's fingerprint, and how many.
    """
    return {
        "state": "running",
        "fingerprint": mark,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "region_covers": covers,
        "versions": versions(),
        "execution": asdict(execution),
        **({} if updated is None else {"updated": updated}),
        **({} if placement is None else {"placement": placement}),
        "job": description,
    }


def closing(
    records: Sequence[TileRecord],
    resumed: int,
    counts: Counts,
    accounts: Accounts,
    mask_alarm: float,
    outputs: dict[str, dict[str, object]],
    times: Times,
    headers: tuple[int, int],
) -> dict[str, Any]:
    """What a run adds to its manifest when all tiles have come to an end.

    Args:
        headers: Requests and bytes that opening the imagery took over networks.
    """
    area = {status: sum(getattr(record, f"{status}_m2") for record in records) for status in STATUSES}
    asked = sum(record.area_m2 for record in records)
    footprints: dict[str, Any] = {"raw": counts.raw, "accepted": counts.accepted, "rejected": counts.rejected}
    masks: dict[str, Any] = {}
    if accounts.layers:
        footprints["rejected_by_layer"] = accounts.removed
        masks = {"masks": accounts.report(mask_alarm), "false_positive_meter": accounts.meters()}
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiles": {
            "total": len(records),
            "resumed": resumed,
            **{status: sum(record.status == status for record in records) for status in STATUSES},
        },
        "chips": sum(record.chips for record in records),
        "area_m2": {"asked": asked, **area},
        "footprints": footprints,
        **masks,
        "timings_s": {
            "tiles": round(times.tiles_s, 3),
            "merge": round(sum(times.stages.seconds(stage) for stage in AFTER), 3),
            "total": round(times.total_s, 3),
        },
        "stages_s": times.by_stage(),
        "device": times.of_device(),
        "decoded": {
            "pixels": sum(record.decoded_pixels for record in records),
            "bytes": sum(record.decoded_bytes for record in records),
        },
        "fetched": {
            "requests": headers[0] + sum(record.requests for record in records),
            "bytes": headers[1] + sum(record.fetched_bytes for record in records),
            "retries": sum(record.retries for record in records),
        },
        "km2_per_s": round(asked / 1e6 / max(times.total_s, 1e-9), 6),
        "outputs": outputs,
    }


def versions() -> dict[str, str | None]:
    """The software that a run was made with."""
    import rasterio

    found: dict[str, str | None] = {"geoinfer": geoinfer.__version__, "git": _git_commit()}
    found["python"] = platform.python_version()
    for package in ("torch", "numba", "numpy", "shapely", "pyproj", "distributed"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["gdal"] = rasterio.__gdal_version__
    return found


def _git_commit() -> str | None:
    """The commit of a working copy; None for an installed package, or where git is not there."""
    home = Path(geoinfer.__file__).parents[1]
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
