"""`geoinfer train`: a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoinfer.cli.printing import say
from geoinfer.errors import ConfigError


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: a YAML file that says what to train on, and how.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for checkpoints, log and weights; resumes what is there.")
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of imagery and labels with split.csv.", envvar="GEOINFER_DATA")
    ] = None,
) -> None:
    """Train a model by a recipe (needs the extra `train`)."""
    try:
        from geoinfer.training.fit import main_recipe
    except ModuleNotFoundError as error:
        raise ConfigError(f"training needs {error.name}: install the extra, pip install 'geoinfer[train]'") from error
    say(f"weights: {main_recipe(recipe, data=data, out=output)}")
