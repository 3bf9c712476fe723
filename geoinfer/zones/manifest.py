"""What `run.json` says of a run over several zones: the sums of what its zones say, and where these are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from geoinfer.accounts import alarms
from geoinfer.earth import Bounds
from geoinfer.job import Execution
from geoinfer.manifest import versions
from geoinfer.store import Json
from geoinfer.zones.join import Joined

_OF_FIRST = ("geoinfer", "model")
"""Of a job, equal in all zones, as its `config` but for `crs`."""

_COUNTED = (
    *("features", "repaired", "dropped", "pieces", "tested", "removed", "removed_area_m2", "flagged", "clipped"),
    *("clipped_area_m2", "area_m2", "skipped_cores", "skipped_m2", "opened_cores", "device_s_saved"),
)
"""Of a layer, what adds up over zones."""


def opening(frame: Json, execution: Execution, covers: float) -> Json:
    """The manifest of a run that begins: its fingerprint is known when all zones are done."""
    return {
        "state": "running",
        "fingerprint": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "region_covers": covers,
        "versions": versions(),
        "execution": asdict(execution),
        "job": frame,
    }


def describe(frame: Json, jobs: Sequence[Json], marks: Sequence[str]) -> Json:
    """The whole job, from the descriptions of its zones' jobs and their fingerprints.

    Args:
        frame: What is known before any zone ran: region, zones, margin and output's system.
        jobs: As in the zones' manifests.
        marks: Their fingerprints, which hold everything else.
    """
    imagery: list[Any] = []
    for job in jobs:
        imagery += [entry for entry in job["imagery"] if entry not in imagery]
    first = jobs[0]
    whole = {name: first[name] for name in _OF_FIRST} | {
        "imagery": imagery,
        "config": {**first["config"], "crs": frame["crs"]},
    }
    if "masks" in first:
        whole["masks"] = first["masks"]
    zones = [{**zone, "fingerprint": mark} for zone, mark in zip(frame["zones"], marks, strict=True)]
    return {**whole, **frame, "zones": zones}


def closing(
    zones: Sequence[Json], labels: Sequence[str], joined: Joined, bounds: Bounds, mask_alarm: float, join_s: float
) -> Json:
    """What the run adds to its manifest in the end.

    Args:
        zones: The manifests of the zones' runs.
        labels: Their names.
        joined: What came of joining them.
        bounds: Of all that is asked for, degrees.
        mask_alarm: As in `Execution`.
        join_s: Seconds that joining took.
    """
    footprints: Json = {
        "raw": joined.counts.raw,
        "accepted": joined.counts.accepted,
        "rejected": dict(sorted(joined.counts.rejected.items())),
    }
    found: Json = {}
    if "masks" in zones[0]:
        footprints["rejected_by_layer"] = _sum([zone["footprints"]["rejected_by_layer"] for zone in zones])
        layers = zip(*(zone["masks"] for zone in zones), strict=True)
        found["masks"] = [_layer(entries, bounds, mask_alarm) for entries in layers]
        meters = [
            (label, meter) for label, zone in zip(labels, zones, strict=True) for meter in zone["false_positive_meter"]
        ]
        found["false_positive_meter"] = [{**meter, "zone": label} for label, meter in meters]
    sums = _sum([{name: zone[name] for name in ("tiles", "chips", "timings_s", "stages_s", "decoded")} for zone in zones])
    sums |= _sum([{name: zone[name] for name in ("remote", "requests") if name in zone} for zone in zones])
    sums["timings_s"] = {name: round(seconds, 3) for name, seconds in sums["timings_s"].items()}
    sums["timings_s"]["merge"] = round(sums["timings_s"]["merge"] + join_s, 3)
    sums["timings_s"]["total"] = round(sums["timings_s"]["total"] + join_s, 3)
    sums["stages_s"] = {name: round(seconds, 3) for name, seconds in sums["stages_s"].items()} | {"join": round(join_s, 3)}
    asked = sum(joined.area_m2.values())
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **sums,
        "area_m2": {"asked": asked, **joined.area_m2},
        "footprints": footprints,
        **found,
        "device": _device(zones),
        "km2_per_s": round(asked / 1e6 / max(sums["timings_s"]["total"], 1e-9), 6),
        "outputs": joined.outputs,
    }


def _layer(entries: Sequence[Json], bounds: Bounds, mask_alarm: float) -> Json:
    """What a mask layer did in all zones. Borders are looked at from both sides, so areas there count twice."""
    first = next((entry for entry in entries if entry["pieces"]), entries[0])
    sums: Json = {name: sum(entry[name] or 0 for entry in entries) for name in _COUNTED if name in first}
    share = sums["removed"] / sums["tested"] if sums["tested"] else 0.0
    whole = {**first, **sums, "share_removed": share, "region_bounds": list(bounds), "region_crs": "EPSG:4326"}
    return {**whole, "alarms": alarms(whole, mask_alarm)}


def _device(zones: Sequence[Json]) -> Json:
    """As in one run's manifest; the busy share weighs zones by the time their tiles took."""
    devices = [zone["device"] for zone in zones]
    known = [(device["busy_share"], zone["timings_s"]["tiles"]) for device, zone in zip(devices, zones, strict=True)]
    weighed = [(share, seconds) for share, seconds in known if share is not None]
    seconds = sum(seconds for _, seconds in weighed)
    return {
        "kind": devices[0]["kind"],
        "at_once": max(device["at_once"] for device in devices),
        "busy_s": round(sum(device["busy_s"] for device in devices), 3),
        "busy_share": round(sum(share * s for share, s in weighed) / seconds, 4) if seconds else None,
    }


def _sum(values: Sequence[Any]) -> Any:
    """Numbers are added, objects name by name; of anything else the first stays."""
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(value for value in values if value is not None)
    return first
