"""The files about an assessment or a comparison: JSON, a row a footprint in GeoParquet, one page. Computes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd

import geoinfer
from geoinfer.errors import OutputError
from geoinfer.evaluation.chips import chips
from geoinfer.evaluation.objects import Objects
from geoinfer.imagery.source import Source
from geoinfer.store import output_errors

if TYPE_CHECKING:
    from geoinfer.evaluation.assess import Assessment
    from geoinfer.evaluation.compare import Comparison
    from geoinfer.evaluation.report_html import Pictures

ASSESSMENT_FILES = ("evaluation.json", "objects.parquet", "report.html")
COMPARISON_FILES = ("comparison.json", "objects.parquet", "report.html")


def write_report(
    assessment: Assessment,
    folder: str | Path,
    imagery: Source | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    title: str = "Evaluation of building footprints",
    overwrite: bool = False,
) -> list[Path]:
    """Write evaluation.json, objects.parquet and report.html.

    Args:
        assessment: What to tell.
        folder: Where to; made if it is not there.
        imagery: For pictures of the worst mistakes.
        inputs: What was compared, in words: name -> file.
        title: Of the page.
        overwrite: Replace files that are there.

    Returns:
        The files.

    Raises:
        OutputError: They exist, or cannot be written.
    """
    from geoinfer.evaluation.report_html import render

    named = dict(inputs or {})
    page = render(assessment, title=title, inputs=named, pictures=_pictures(assessment.objects, imagery))
    told = {**assessment.to_json(), "inputs": named, "geoinfer": geoinfer.__version__}
    return _write_all(Path(folder), ASSESSMENT_FILES, told, objects_table(assessment.objects), page, overwrite)


def write_comparison(
    comparison: Comparison,
    folder: str | Path,
    imagery: Source | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write comparison.json, objects.parquet and report.html; arguments and errors as `write_report`.

    The labels of the comparison stand in all three: in the table as the column `labels`.
    """
    from geoinfer.evaluation.compare_html import render

    named = dict(inputs or {})
    page = render(comparison, inputs=named, pictures=_pictures(comparison.objects, imagery))
    table = objects_table(comparison.objects, ("a", "b"), {"tp": "both", "fp": "only_a", "fn": "only_b"})
    table["labels"] = "; ".join(comparison.labels)
    told = {**comparison.to_json(), "inputs": named, "geoinfer": geoinfer.__version__}
    return _write_all(Path(folder), COMPARISON_FILES, told, table, page, overwrite)


def objects_table(
    objects: Objects, sides: tuple[str, str] = ("pred", "truth"), outcomes: Mapping[str, str] | None = None
) -> gpd.GeoDataFrame:
    """One row a footprint of either side, the predicted ones first; in the plane that everything was measured in.

    Args:
        objects: Both sides after matching.
        sides: What the column `side` calls them.
        outcomes: Other words for the outcomes tp, fp, fn.
    """
    parts = [
        table.assign(side=side).astype({"outcome": "string", "reason": "string"})
        for side, table in zip(sides, (objects.pred, objects.truth), strict=True)
    ]
    both = pd.concat(parts, ignore_index=True)
    if outcomes is not None:
        both["outcome"] = both["outcome"].replace(dict(outcomes))
    for flag in ("is_merge", "is_split"):  # each side has one of them
        both[flag] = both[flag].astype("boolean")
    front = ["side", "row", "outcome", "reason", "iou", "best_iou", "partner", "confidence", "area_m2"]
    return gpd.GeoDataFrame(both[[*front, *(name for name in both.columns if name not in front)]], crs=objects.plane)


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities, which it lacks, become null; NumPy's scalars their own kind."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is pd.NA or value is pd.NaT:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pictures(objects: Objects, imagery: Source | None) -> Pictures | None:
    if imagery is None:
        return None
    from geoinfer.evaluation.report_html import Pictures

    return Pictures(list(chips(objects, imagery, "fp")), list(chips(objects, imagery, "fn")))


def check_targets(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """None of the files is there, or may be replaced.

    Raises:
        OutputError: One is.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; give a folder for {', '.join(names)}")
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is not None and not overwrite:
        raise OutputError(f"{found}: exists; replace it with --overwrite (overwrite=True)")


def _write_all(
    folder: Path, names: Sequence[str], told: Mapping[str, Any], table: gpd.GeoDataFrame, page: str, overwrite: bool
) -> list[Path]:
    """The three files, each whole or not at all: written beside its place, then moved there."""
    check_targets(folder, names, overwrite)
    targets = [folder / name for name in names]
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = [target.with_name(f".{target.name}.partial") for target in targets]
        try:
            scratch[0].write_text(json.dumps(plain(told), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            table.to_parquet(scratch[1], compression="zstd", write_covering_bbox=True, schema_version="1.1.0")
            scratch[2].write_text(page, encoding="utf-8")
            for path, target in zip(scratch, targets, strict=True):
                path.replace(target)
        finally:
            for path in scratch:
                path.unlink(missing_ok=True)
    return targets
