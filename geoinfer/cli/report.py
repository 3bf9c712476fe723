"""What the end of a run says of its mask layers and its time: a line a layer, a line a meter, and what must not be missed.

Reads what `run.json` holds of them, so that a run found finished tells the same as the one that did the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from geoinfer.cli.printing import bytes_text, duration_text

Json = Mapping[str, Any]


def layer_line(layer: Json) -> str:
    """`mask layer water (drop): 7 features, 0.39 km² of the region; 812 footprints tested, 15 removed`, ..."""
    share = f"{100 * layer['share_removed']:.3g} %, " if layer["removed"] else ""
    met = f"{layer['features']} features, {(layer['area_m2'] or 0) / 1e6:.3g} km² of the region"
    parts = [
        f"{layer['tested']} footprints tested",
        f"{layer['removed']} removed ({share}{layer['removed_area_m2']:.0f} m²)",
        f"{layer['flagged']} flagged",
    ]
    if layer["clipped"]:
        parts.append(f"{layer['clipped']} clipped by {layer['clipped_area_m2']:.0f} m²")
    if layer["action"] == "skip":
        seconds = layer["device_s_saved"]
        saved = f"{seconds:.2g} s" if seconds < 10 else duration_text(seconds)
        parts.append(f"{layer['skipped_cores']} cores skipped, which saved the device {saved}")
    return f"mask layer {layer['name']} ({layer['action']}): {met}; {', '.join(parts)}"


def meter_line(meter: Json) -> str:
    """`false positives by water: inside it 38 candidates a km² (...), outside ...`."""
    return f"false positives by {meter['layer']}: {_side(meter['inside'], 'inside')}; {_side(meter['outside'], 'outside')}"


def _side(side: Json, where: str) -> str:
    if not side["area_km2"]:
        return f"nothing looked at {where} it"
    low, high = side["interval_95"]
    return (
        f"{where} it {side['kept_per_km2']:.3g} kept a km² ({low:.3g} to {high:.3g} with 95 %) "
        f"of {side['raw_per_km2']:.3g} raw, on {side['area_km2']:.3g} km²"
    )


def lines(manifest: Json) -> Iterator[str]:
    """The whole report, alarms left out."""
    yield from map(layer_line, manifest.get("masks", ()))
    yield from map(meter_line, manifest.get("false_positive_meter", ()))


def time_lines(manifest: Json) -> Iterator[str]:
    """`where the time went: predict 91 %, read 5 %, ...` and how busy the network was; nothing for older runs."""
    stages, total = manifest.get("stages_s", {}), manifest["timings_s"]["total"]
    spent = sorted(((seconds, stage) for stage, seconds in stages.items() if seconds >= 0.005 * total), reverse=True)
    if spent and total:
        parts = ", ".join(f"{stage} {seconds / total:.0%}" for seconds, stage in spent)
        yield f"where the {duration_text(total)} went: {parts}"
    busy = manifest.get("device", {}).get("busy_share")
    if busy is not None:
        device, decoded = manifest["device"], manifest["decoded"]
        yield (
            f"network on {device['kind']}, {device['at_once']} at once: busy {busy:.1%} while tiles were done; "
            f"{manifest['km2_per_s']:.3g} km²/s, {bytes_text(decoded['bytes'])} of imagery decoded"
        )


def alarms(manifest: Json) -> list[str]:
    """What must not be missed, of all layers."""
    return [alarm for layer in manifest.get("masks", ()) for alarm in layer["alarms"]]
