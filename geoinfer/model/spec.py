"""The card of a model as values: what goes in, what comes out, and what is done with it. No torch, no files.

On disk a card is a STAC item with the Machine Learning Model extension (MLM 1.5); what MLM has no word for stands under
`geoinfer:` in its properties. `registry` finds the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from geoinfer.errors import SourceError
from geoinfer.grid import ChipSpec

PROBABILITIES = ("body", "core", "parted")
"""How the network's planes become one probability: the first plane, the second, or body x (1 - contact)."""


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
