"""Where models are: a static catalog of folders `<name>/{item.json, weights.safetensors, README.md}`. No torch.

A model is named, or given as a folder. Names are looked up in the package, then beside it (a checkout).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from geoinfer.errors import ConfigError, OutputError, SourceError
from geoinfer.model.domain import Domain, parse_domain
from geoinfer.model.spec import CALIBRATIONS, Calibration, ModelSpec, parse_calibrations, parse_card

CARD, WEIGHTS = "item.json", "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model and where its files are."""

    spec: ModelSpec
    folder: Path
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """By region, what was chosen there."""
    domain: Domain | None = None
    """What imagery it was made for, as far as its card tells."""

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS


def model_directories() -> list[Path]:
    """Folders that hold models, in the order they are searched."""
    package = Path(__file__).parents[1]
    return [d for d in (package / "_models", package.parent / "models") if d.is_dir()]


def list_models() -> dict[str, Path]:
    """Name and folder of every model that can be named."""
    found: dict[str, Path] = {}
    for directory in model_directories():
        for card in sorted(directory.glob(f"*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)
    return found


def find_model(name: str | Path) -> Bundle:
    """The model of a name, or in a folder; its weights are not read yet.

    Raises:
        ConfigError: There is none; the message lists those there are.
        SourceError: Its card cannot be read.
    """
    folder = Path(name)
    if not (folder / CARD).is_file():
        known = list_models()
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            names = ", ".join(known) or "none"
            raise ConfigError(f"model {str(name)!r}: {hint}known models are {names}; or give a folder that holds {CARD}")
        folder = known[str(name)]
    card = folder / CARD
    try:
        item = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{card}: cannot be read as a model card: {error}") from error
    where = str(card)
    return Bundle(parse_card(item, where), folder.resolve(), parse_calibrations(item, where), parse_domain(item, where))


def resolve_model(name: str | Path) -> ModelSpec:
    """The card of a model by name or folder; see `find_model`."""
    return find_model(name).spec


def verify_weights(bundle: Bundle) -> bytes:
    """The bytes of the weights file, once their sha256 is the card's.

    Raises:
        SourceError: The file is missing, or is not the one that the card was written for.
    """
    try:
        content = bundle.weights.read_bytes()
    except OSError as error:
        raise SourceError(f"{bundle.weights}: cannot be read: {error.strerror or error}; install the model again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != bundle.spec.weights_sha256:
        raise SourceError(
            f"{bundle.weights}: sha256 {found[:12]}… is not the card's {bundle.spec.weights_sha256[:12]}…: "
            "the weights are damaged or were changed; install the model again, or write a card for the new weights"
        )
    return content


def write_calibration(bundle: Bundle, calibration: Calibration) -> Path:
    """Put what was chosen for a region into a model's card, in place of an older entry; all else in it stays as it is.

    Returns:
        The card.

    Raises:
        SourceError: The card cannot be read.
        OutputError: It cannot be written.
    """
    card = bundle.folder / CARD
    try:
        item = json.loads(card.read_text(encoding="utf-8"))
        parse_card(item, str(card))
    except (OSError, ValueError) as error:
        raise SourceError(f"{card}: cannot be read as a model card: {error}") from error
    entries = {**item["properties"].get(CALIBRATIONS, {}), calibration.region: calibration.to_dict()}
    item["properties"][CALIBRATIONS] = dict(sorted(entries.items()))
    beside = card.with_suffix(f".{os.getpid()}.tmp")
    try:  # a reader sees the old card or the new one
        beside.write_text(json.dumps(item, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        beside.replace(card)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(
            f"{card}: cannot be written: {error.strerror or error}; copy the model's folder and give the copy as --model"
        ) from error
    return card
