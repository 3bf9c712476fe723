"""Two sets of footprints against each other: what only one has, what both have, and how far those lie apart.

Neither side is the truth. A truth can be added: then both are assessed against it, and their difference has an interval from
the same blocks of ground. Writes nothing; `compare_report` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoinfer.errors import SourceError
from geoinfer.evaluation.objects import Objects, objects
from geoinfer.evaluation.sides import Matching

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

    from geoinfer.evaluation.assess import Assessment, Difference

Floats = NDArray[np.float64]

PARTNER_IOU = 0.1
"""Footprints of a and b that are each other's best, at this IoU or above, are taken for the same building when their offset
is measured: at the threshold of a match, those shifted most would be left out, and the shift be underestimated."""
QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
BINS = 20
DISTRIBUTIONS = ("iou", "offset_x_m", "offset_y_m", "offset_m", "area_ratio")
"""Fields of a comparison that are distributions."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A quantity over pairs of footprints."""

    n: int
    mean: float | None
    """None, like all others, where there is no pair."""
    p05: float | None
    p25: float | None
    median: float | None
    p75: float | None
    p95: float | None
    edges: tuple[float, ...]
    """Of the histogram."""
    counts: tuple[int, ...]
    """Pairs in each of its bins, one fewer than edges; what lies beyond the last edge is in the last bin."""

    @classmethod
    def of(cls, values: Floats, low: float, high: float) -> Distribution:
        """Of values (N,), with a histogram from `low` to `high`."""
        edges = np.linspace(low, high, BINS + 1)
        counts = np.histogram(np.clip(values, low, high), edges)[0]
        told = dict.fromkeys(("mean", *QUANTILES)) if not len(values) else _told(values)
        return cls(len(values), **told, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _told(values: Floats) -> dict[str, float | None]:
    """Mean and quantiles of at least one value."""
    quantiles = np.quantile(values, [*QUANTILES.values()]).tolist()
    return {"mean": float(values.mean()), **dict(zip(QUANTILES, quantiles, strict=True))}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """How two sets of footprints agree."""

    names: tuple[str, str]
    """What a and b are called."""
    objects: Objects
    """Its `pred` is a, its `truth` is b: outcome tp is both, fp only a, fn only b."""
    iou: Distribution
    """IoU of the pairs that are each other's best."""
    offset_x_m: Distribution
    """Centroid of b minus that of a, east, metres on the ground."""
    offset_y_m: Distribution
    """The same, north."""
    offset_m: Distribution
    """Length of the offset."""
    area_ratio: Distribution
    """Area of b over that of a."""
    truth: tuple[Assessment, Assessment] | None = None
    """a and b against the truth, where one was given."""
    differences: Mapping[str, Difference] | None = None
    """Measure -> b minus a, where a truth was given."""
    labels: tuple[str, ...] = ()
    """What a reader must know before anything else, such as different imagery; on top of every output."""

    @property
    def only_a(self) -> int:
        """Footprints of a without a partner in b."""
        return self.objects.evaluation.fp

    @property
    def only_b(self) -> int:
        """Footprints of b without a partner in a."""
        return self.objects.evaluation.fn

    @property
    def both(self) -> int:
        """Pairs at or above the threshold."""
        return self.objects.evaluation.tp

    def to_json(self) -> dict[str, Any]:
        """Everything but the footprints, ready for JSON."""
        total = self.objects.evaluation
        found: dict[str, Any] = {
            "a": self.names[0],
            "b": self.names[1],
            "labels": list(self.labels),
            "only_a": self.only_a,
            "only_b": self.only_b,
            "both": self.both,
            "ignored_a": total.ignored_pred,
            "ignored_b": total.ignored_truth,
            "share_of_a_in_b": total.precision if total.n_pred else None,
            "share_of_b_in_a": total.recall if total.n_truth else None,
            "pixel_iou": total.pixel_iou,
            "area_a_m2": total.pred_area_m2,
            "area_b_m2": total.truth_area_m2,
            "aoi_area_m2": total.aoi_area_m2,
            "iou_threshold": total.iou,
            "matching": total.matching,
            "partner_iou": PARTNER_IOU,
            "notes": list(self.objects.notes),
        }
        found |= {name: asdict(getattr(self, name)) for name in DISTRIBUTIONS}
        if self.truth is not None and self.differences is not None:
            found["truth"] = {"a": self.truth[0].to_json(), "b": self.truth[1].to_json()}
            found["differences"] = {name: asdict(value) for name, value in self.differences.items()}
        return found


def compare(
    a: GeoDataFrame | GeoSeries,
    b: GeoDataFrame | GeoSeries,
    truth: GeoDataFrame | GeoSeries | None = None,
    *,
    aoi: GeoDataFrame | GeoSeries | None = None,
    iou: float = 0.5,
    matching: Matching = "optimal",
    names: tuple[str, str] = ("a", "b"),
    labels: tuple[str, ...] = (),
) -> Comparison:
    """Compare two sets of footprints, and both with the truth where there is one.

    Args:
        a: Polygons, with a coordinate system; for instance the previous production, or another provider's.
        b: Polygons, with a coordinate system, the same or another.
        truth: True polygons.
        aoi: Where to compare; without it everywhere.
        iou: Least IoU for two footprints to be the same building.
        matching: As for `evaluate`.
        names: What to call them.
        labels: What a reader must know before anything else.

    Raises:
        ConfigError, RegionError: As `evaluate`.
    """
    found = objects(a, b, aoi=aoi, iou=iou, matching=matching)
    at_a, at_b, best = _partners(found)
    shapes = [np.asarray(t.geometry.array, dtype=object)[at] for t, at in ((found.pred, at_a), (found.truth, at_b))]
    centres = [shapely.get_coordinates(shapely.centroid(side)) for side in shapes]
    offset = (centres[1] - centres[0]) * np.sqrt(found.unit_m2)  # (N, 2) metres on the ground
    length = np.hypot(offset[:, 0], offset[:, 1])
    ratio = shapely.area(shapes[1]) / shapely.area(shapes[0])
    reach = float(np.ceil(np.quantile(length, 0.99))) if len(length) else 1.0
    reach = max(reach, 1.0)
    assessed: tuple[Assessment, Assessment] | None = None
    differences: Mapping[str, Difference] | None = None
    if truth is not None:
        from geoinfer.evaluation.assess import assess, compare_models

        one = assess(a, truth, aoi=aoi, iou=iou, matching=matching)
        other = assess(b, truth, aoi=aoi, iou=iou, matching=matching, block_m=float(one.settings["block_m"]))
        assessed, differences = (one, other), compare_models(one, other)
    return Comparison(
        names=names,
        objects=found,
        iou=Distribution.of(best, 0.0, 1.0),
        offset_x_m=Distribution.of(offset[:, 0], -reach, reach),
        offset_y_m=Distribution.of(offset[:, 1], -reach, reach),
        offset_m=Distribution.of(length, 0.0, reach),
        area_ratio=Distribution.of(ratio, 0.0, 2.0),
        truth=assessed,
        differences=differences,
        labels=labels,
    )


def _partners(found: Objects) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Positions in both tables and IoU of pairs that are each other's best; none that the border of the area cut."""
    pairs = found.overlap
    best_a, best_b = (np.zeros(len(table)) for table in (found.pred, found.truth))
    np.maximum.at(best_a, pairs.pred, pairs.iou)
    np.maximum.at(best_b, pairs.truth, pairs.iou)
    mutual = (pairs.iou == best_a[pairs.pred]) & (pairs.iou == best_b[pairs.truth]) & (pairs.iou >= PARTNER_IOU)
    mutual &= ~found.pred["is_cut"].to_numpy()[pairs.pred] & ~found.truth["is_cut"].to_numpy()[pairs.truth]
    return pairs.pred[mutual], pairs.truth[mutual], pairs.iou[mutual]


def imagery_differences(a: Path, b: Path) -> list[str]:
    """How the imagery of two run directories differs: one line a file; empty when both read the same pixels.

    Files are told by their content, not by name; how they were read (bands, stretch) counts too.

    Raises:
        SourceError: A run without a manifest that can be read.
    """
    here, there = _imagery(a), _imagery(b)
    lines = [f"only in {a.name}: {_named(item)}" for key, item in here.items() if key not in there]
    return lines + [f"only in {b.name}: {_named(item)}" for key, item in there.items() if key not in here]


def _imagery(run: Path) -> dict[str, dict[str, Any]]:
    """The snapshot of a run's imagery, by everything that decides its pixels."""
    try:
        files = json.loads((run / "run.json").read_text(encoding="utf-8"))["job"]["imagery"]
        return {json.dumps({**item, "name": None}, sort_keys=True): item for item in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{run}: its run.json does not tell the imagery; compare its footprints.parquet as a file"
        ) from error


def _named(item: Mapping[str, Any]) -> str:
    return f"{item.get('name', 'imagery')} (sha256 {str(item.get('sha256', 'unknown'))[:12]})"


def is_same_region(a: Path, b: Path) -> bool:
    """Two runs were asked for the same place: so both looked wherever the other did."""
    regions = [json.loads((run / "run.json").read_text(encoding="utf-8"))["job"].get("region") for run in (a, b)]
    return bool(regions[0] == regions[1])
