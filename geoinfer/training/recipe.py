"""A recipe: everything that decides what a training run makes, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geoinfer.errors import ConfigError, SourceError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceRecipe(_Strict):
    """Which rows of the table form a source, and how often it is drawn."""

    prefix: str
    weight: float = Field(gt=0)
    kind: Literal["buildings", "negative"] = "buildings"
    """`negative`: inside the mask's class 2, or the water polygons, there is no building; nothing else is known."""
    split: str = "train"


class GeneratedRecipe(_Strict):
    """Scenes made by `geoinfer.scenes`, with exact truth."""

    weight: float = Field(ge=0)
    scenes: int = Field(ge=0)
    size: int = 640


class NetworkRecipe(_Strict):
    """An architecture of `model.networks` and its arguments."""

    architecture: str = "unet-lite0"
    arguments: dict[str, Any] = {}
    pretrained: bool = False
    """Start the encoder from ImageNet."""


class Recipe(_Strict):
    """What to train on, and how."""

    gsd: float = Field(gt=0)
    """Metres a pixel of a crop."""
    crop: int = Field(gt=0, multiple_of=32)
    """Side of a crop, pixels."""
    batch: int = Field(gt=0)
    """Crops a step, over all processes."""
    processes: int = Field(default=1, gt=0)
    """Processes of one thread that share each step; 1 uses all threads."""
    steps: int = Field(gt=0)
    """Length of the schedule."""
    minutes: float = Field(default=float("inf"), gt=0)
    """Ends the schedule early; the learning rate follows whichever of the two is further."""
    learning_rate: float = Field(gt=0)
    """Peak of the cosine, after 150 steps of warming up."""
    encoder_rate: float = Field(default=0.5, ge=0)
    """Share of it that the encoder gets; 0 freezes its weights and saves their backward pass."""
    weight_decay: float = Field(default=0.02, ge=0)
    """Of AdamW (Loshchilov & Hutter 2019)."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the averaged weights, a step."""
    checkpoint: int = Field(default=250, gt=0)
    """Steps between checkpoints."""
    seed: int = 0
    start: str | None = None
    """Weights to start from: an `average.pt` of another fit of the same network, relative to the working folder."""
    teacher: str | None = None
    """A model, by name or folder, whose probabilities are a second target of every pixel, known or not."""
    network: NetworkRecipe = NetworkRecipe()
    sources: tuple[SourceRecipe, ...] = ()
    generated: GeneratedRecipe = GeneratedRecipe(weight=0, scenes=0)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        SourceError: The file cannot be read.
        ConfigError: A key is unknown or a value does not fit; the message names it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: cannot be read as a recipe: {error}") from error
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where or 'recipe'}: {first['msg']} (got {first['input']!r})") from error
