"""From averaged weights to a bundle: safetensors in half precision, their sha256, and the card that names it.

Half precision costs nothing that a score can see (three significant digits) and halves what a repository carries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from geoinfer.model.registry import CARD, WEIGHTS
from geoinfer.training.recipe import Recipe

MLM = "https://stac-extensions.github.io/mlm/v1.5.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
CHANNEL = {"type": "z-score", "mean": 127.5, "stddev": 127.5}


def write_bundle(
    folder: Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    name: str,
    version: str,
    licence: str,
    description: str,
    chip: int,
    margin: int,
    stride: int,
    probability: str,
    threshold: float,
    min_area_m2: float,
    simplify_m: float,
    grow_m: float,
    when: datetime | None = None,
) -> Path:
    """Write `weights.safetensors` and `item.json` into a folder, and return it.

    Args:
        folder: Made where it does not exist; its other files (README.md, recipe.yaml) are left alone.
        state: Averaged weights, as `fit` saves them.
        recipe: What they were made with.
        when: Time stamp of the card; now, unless given.

    The other arguments are the fields of `model.spec.ModelSpec`, and the card's licence (SPDX) and description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        k: v.detach().to("cpu", torch.float16).contiguous()
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
    counters = {k: torch.zeros((), dtype=torch.int64) for k in state if k.endswith("num_batches_tracked")}
    content = save({**half, **counters})
    (folder / WEIGHTS).write_bytes(content)
    bands = ["red", "green", "blue"]
    properties: dict[str, Any] = {
        "datetime": (when or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": version,
        "license": licence,
        "description": description,
        "mlm:name": name,
        "mlm:architecture": recipe.network.architecture,
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "pytorch",
        "mlm:total_parameters": sum(v.numel() for v in half.values()),
        "mlm:pretrained": name != "tiny",
        "mlm:input": [
            {
                "name": "chips",
                "bands": [{"name": b} for b in bands],
                "input": {
                    "shape": [-1, len(bands), chip, chip],
                    "dim_order": ["batch", "bands", "height", "width"],
                    "data_type": "uint8",
                },
                "value_scaling": [CHANNEL] * len(bands),
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "probability",
                "tasks": ["semantic-segmentation"],
                "result": {"shape": [-1, chip, chip], "dim_order": ["batch", "height", "width"], "data_type": "uint8"},
                "classification:classes": [{"value": 1, "name": "building", "description": "a roof"}],
            }
        ],
        "geoinfer:model": {
            "gsd": recipe.gsd,
            "margin": margin,
            "stride": stride,
            "arguments": recipe.network.arguments,
            "probability": probability,
            "threshold": threshold,
            "min_area_m2": min_area_m2,
            "simplify_m": simplify_m,
            "grow_m": grow_m,
        },
    }
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, FILE],
        "id": f"{name}-{version}",
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {
            "weights": {
                "href": f"./{WEIGHTS}",
                "type": "application/octet-stream; application=safetensors",
                "title": "Weights",
                "roles": ["mlm:model", "mlm:weights"],
                "file:size": len(content),
                "file:checksum": "1220" + hashlib.sha256(content).hexdigest(),
            }
        },
    }
    (folder / CARD).write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")
    return folder
