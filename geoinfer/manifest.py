"""What `run.json` says: the job, the versions that made it, and how the run went.

The job's description is the part that decides the output; everything else here is for the reader.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geoinfer
from geoinfer.accounts import Accounts
from geoinfer.detection import TileRecord
from geoinfer.job import Execution
from geoinfer.merge import Counts

STATUSES = ("done", "nodata", "masked", "failed")
STAGES = ("read", "predict", "polygonize")


def opening(description: dict[str, Any], mark: str, execution: Execution, covers: float) -> dict[str, Any]:
    """The manifest of a run that begins or goes on; `covers` is the share of the region that the imagery covers."""
    return {
        "state": "running",
        "fingerprint": mark,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "region_covers": covers,
        "versions": versions(),
        "execution": asdict(execution),
        "job": description,
    }


def closing(
    records: Sequence[TileRecord],
    resumed: int,
    counts: Counts,
    accounts: Accounts,
    mask_alarm: float,
    outputs: dict[str, dict[str, object]],
    tiles_s: float,
    total_s: float,
) -> dict[str, Any]:
    """What a run adds to its manifest when all tiles have come to an end."""
    area = {status: sum(getattr(record, f"{status}_m2") for record in records) for status in STATUSES}
    asked = sum(record.area_m2 for record in records)
    footprints: dict[str, Any] = {"raw": counts.raw, "accepted": counts.accepted, "rejected": counts.rejected}
    masks: dict[str, Any] = {}
    if accounts.layers:
        footprints["rejected_by_layer"] = accounts.removed
        masks = {"masks": accounts.report(mask_alarm), "false_positive_meter": accounts.meters()}
    stages = {stage: round(sum(getattr(r, f"{stage}_s") for r in records), 3) for stage in STAGES}
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
            **stages,  # summed over tiles, so more than `tiles` where they ran side by side
            "tiles": round(tiles_s, 3),
            "merge": round(total_s - tiles_s, 3),
            "total": round(total_s, 3),
        },
        "km2_per_s": round(asked / 1e6 / max(total_s, 1e-9), 6),
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
