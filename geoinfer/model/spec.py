"""The card of a model as values: what goes in, what comes out, and what is done with it. No torch, no files.

On disk a card is a STAC item with the Machine Learning Model extension (MLM 1.5); what MLM has no word for stands under
`geoinfer:` in its properties. `registry` finds the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from geoinfer.errors import ConfigError, SourceError
from geoinfer.grid import ChipSpec

CALIBRATIONS = "geoinfer:calibration"
"""Property of the item that holds, by region, what was chosen there. It is no part of `ModelSpec`: what a run uses of it
stands in its job as the threshold and the least area that it was told."""
DOMAIN = "geoinfer:domain"
"""Property of the item that tells what imagery the model was made for: see `domain`. It acts on no footprint."""
PLANES: dict[str, tuple[int, ...]] = {"body": (0,), "core": (1,), "parted": (0, 2)}
"""Planes of the network that each kind of probability is made of: body, core, or body x (1 - contact)."""
PROBABILITIES = tuple(PLANES)
"""How the network's planes become one probability."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model that can change a footprint. Floats are finite and checked when read."""

    name: str
    version: str
    gsd: float
    """Metres a pixel that the imagery is resampled to."""
    chips: ChipSpec
    bands: tuple[str, ...]
    """Common names of the input bands in order, as in the STAC eo extension."""
    mean: tuple[float, ...]
    """One a band, in units of the uint8 input."""
    std: tuple[float, ...]
    """One a band, in units of the uint8 input."""
    architecture: str
    """A key of `networks.NETWORKS`."""
    arguments: Mapping[str, Any]
    """Its arguments."""
    probability: str
    """One of `PROBABILITIES`."""
    threshold: float
    """Probability from which a pixel counts as building, 0..1."""
    min_area_m2: float
    """Footprints with a smaller ground area are rejected."""
    simplify_m: float
    """Tolerance of the outline's simplification, metres."""
    grow_m: float
    """How far each whole footprint is grown, metres: what the network was taught to leave off."""
    weights_sha256: str
    """Of the whole weights file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the job and its fingerprint."""
        return {**asdict(self), "arguments": dict(self.arguments)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was chosen for a region on labelled places of it. A run does not act on it unless it is told the region."""

    region: str
    threshold: float
    """Probability from which a pixel counts as building there, 0..1."""
    min_area_m2: float
    """Smaller footprints are rejected there."""
    temperature: float | None
    """Logits of the probabilities are to be divided by it; None where it was not fitted."""
    objective: str
    """What was maximised, as `f1` or `recall,precision>=0.9`."""
    evidence: Mapping[str, Any]
    """What it was chosen from and what came of it, for people: places, counts, figures before and after."""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and self.min_area_m2 >= 0 and (self.temperature is None or self.temperature > 0)):
            raise ConfigError(
                f"calibration of {self.region}: threshold must lie in 0..1, min_area_m2 at or above 0, temperature above 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the card, without the region, which is the key."""
        entry = {**asdict(self), "evidence": dict(self.evidence)}
        del entry["region"]
        return entry


def parse_card(item: Mapping[str, Any], where: str) -> ModelSpec:
    """A card from the JSON of its STAC item.

    Args:
        item: The item.
        where: Name of the file, for errors.

    Raises:
        SourceError: A field is missing or does not fit; the message names it.
    """
    try:
        p = item["properties"]
        inputs, own = p["mlm:input"][0], p["geoinfer:model"]
        scaling = inputs["value_scaling"]
        checksum = str(item["assets"]["weights"]["file:checksum"])
        spec = ModelSpec(
            name=str(p["mlm:name"]),
            version=str(p["version"]),
            gsd=float(own["gsd"]),
            chips=ChipSpec(int(inputs["input"]["shape"][-1]), int(own["margin"]), int(own["stride"])),
            bands=tuple(b["name"] if isinstance(b, Mapping) else str(b) for b in inputs["bands"]),
            mean=tuple(float(s["mean"]) for s in scaling),
            std=tuple(float(s["stddev"]) for s in scaling),
            architecture=str(p["mlm:architecture"]),
            arguments=dict(own["arguments"]),
            probability=str(own["probability"]),
            threshold=float(own["threshold"]),
            min_area_m2=float(own["min_area_m2"]),
            simplify_m=float(own["simplify_m"]),
            grow_m=float(own["grow_m"]),
            weights_sha256=checksum.removeprefix("1220"),  # multihash: sha2-256, 32 bytes
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SourceError(f"{where}: not a model card that geoinfer understands: {type(error).__name__} {error}") from error
    if spec.probability not in PROBABILITIES:
        raise SourceError(
            f"{where}: geoinfer:model.probability {spec.probability!r} is not one of {', '.join(PROBABILITIES)}"
        )
    if not (0 < spec.threshold < 1 and spec.gsd > 0 and min(spec.min_area_m2, spec.simplify_m, spec.grow_m) >= 0):
        raise SourceError(
            f"{where}: threshold must lie in 0..1, gsd above 0, min_area_m2, simplify_m and grow_m at or above 0"
        )
    if not len(spec.bands) == len(spec.mean) == len(spec.std):
        raise SourceError(f"{where}: {len(spec.bands)} bands, but value_scaling of {len(spec.mean)}; give one each")
    return spec


def parse_calibrations(item: Mapping[str, Any], where: str) -> dict[str, Calibration]:
    """What was chosen per region, from the JSON of a card; empty for a card that was never calibrated.

    Args:
        item: The STAC item.
        where: Name of the file, for errors.

    Raises:
        SourceError: An entry that does not fit; the message names its region.
    """
    entries = item["properties"].get(CALIBRATIONS, {})
    if not isinstance(entries, Mapping):
        raise SourceError(f"{where}: {CALIBRATIONS} must be an object of one entry a region")
    found = {}
    for region, entry in entries.items():
        try:
            heat = entry.get("temperature")
            found[str(region)] = Calibration(
                region=str(region),
                threshold=float(entry["threshold"]),
                min_area_m2=float(entry["min_area_m2"]),
                temperature=None if heat is None else float(heat),
                objective=str(entry["objective"]),
                evidence=dict(entry.get("evidence", {})),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{where}: {CALIBRATIONS} of {region!r} does not fit: {type(error).__name__} {error}; "
                "write it again with `geoinfer calibrate --write`"
            ) from error
    return found
