"""What the confidences are worth: average precision, the precision-recall curve, F1 over the threshold.

Average precision matches as COCO does (Lin et al. 2014, "Microsoft COCO: Common Objects in Context", and the evaluation
that came with it): predictions in order of their confidence, equal ones in file order, each takes the free true footprint
of the greatest IoU at or above the threshold. What lies mostly outside the area of interest is COCO's `ignore`: such a true
footprint need not be found, a prediction that takes it is not judged, and such a prediction alone is not judged either.

Predictions without a confidence come last, as if it were 0. Where none has one there is nothing to rank, and no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geoinfer.evaluation.kernels import take_in_order
from geoinfer.evaluation.matching import ROUNDING, Indices, match, starts_of
from geoinfer.evaluation.metrics import ratio
from geoinfer.evaluation.objects import Objects

Floats = NDArray[np.float64]

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""COCO's thresholds: 0.5, 0.55 ... 0.95."""
RECALLS = np.linspace(0, 1, 101)
"""COCO's recalls, at which the precision is averaged."""
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(101))
"""Of the confidence."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Predictions from the most to the least confident; those that are not judged are left out."""

    confidence: Floats
    """(K,) 0 where unknown."""
    is_true: NDArray[np.bool_]
    """(K,) it has a partner."""
    n_truth: int
    """True footprints that should be found."""
    at: Indices
    """(K,) position of each in `Objects.pred`."""

    @property
    def recall(self) -> Floats:
        """(K,) share of the true footprints found by this prediction and those before it."""
        found: Floats = np.cumsum(self.is_true) / max(self.n_truth, 1)
        return found

    @property
    def precision(self) -> Floats:
        """(K,) share of this prediction and those before it that are true."""
        found: Floats = np.cumsum(self.is_true) / np.arange(1, len(self.is_true) + 1)
        return found


def is_ranked(objects: Objects) -> bool:
    """Some prediction has a confidence."""
    return bool(np.isfinite(objects.pred["confidence"].to_numpy()).any())


def rank(objects: Objects, iou: float = 0.5) -> Ranked:
    """Match in order of the confidence, as COCO does.

    Args:
        objects: The comparison; its own matching plays no part.
        iou: Threshold.
    """
    confidence = _confidence(objects)
    order = np.argsort(-confidence, kind="stable")
    needed = ~objects.truth["is_border"].to_numpy()
    pairs = objects.overlap.take(objects.overlap.iou >= iou * (1 - ROUNDING))
    takes = take_in_order(order, starts_of(pairs, len(order)), pairs.truth, pairs.iou, needed)[order]
    found = takes >= 0
    is_judged = ~objects.pred["is_border"].to_numpy()[order]
    is_judged[found] = needed[pairs.truth[takes[found]]]
    return Ranked(confidence[order][is_judged], found[is_judged], int(needed.sum()), order[is_judged])


def average_precision(
    objects: Objects, ious: Sequence[float] = IOUS, *, method: Literal["coco", "area"] = "coco"
) -> Floats | None:
    """Average precision at each IoU threshold. AP is the mean of the ten, AP50 and AP75 are those at 0.5 and 0.75.

    Args:
        objects: The comparison.
        ious: Thresholds.
        method: `coco`: mean of the envelope of precision at 101 recalls (0, 0.01 ... 1), as in COCO's evaluation. `area`:
            the exact area below the envelope (Everingham et al. 2015, "The Pascal Visual Object Classes Challenge: A
            Retrospective", section 4.2). They differ by at most 0.01.

    Returns:
        (len(ious),) 0..1; None where no prediction has a confidence, or nothing true is there to be found.
    """
    if not is_ranked(objects) or objects.truth["is_border"].all():
        return None
    return np.array([_below(rank(objects, iou), method) for iou in ious])


def _below(ranked: Ranked, method: str) -> float:
    """Area below the envelope: the greatest precision at a recall or any greater one."""
    envelope = np.maximum.accumulate(ranked.precision[::-1])[::-1]
    if method == "area":
        return float((np.diff(ranked.recall, prepend=0.0) * envelope).sum())
    at = np.searchsorted(ranked.recall, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[at].mean())


def precision_recall_curve(objects: Objects, iou: float = 0.5) -> pd.DataFrame:
    """Precision and recall of the predictions at and above each confidence that occurs.

    Args:
        objects: The comparison.
        iou: Threshold of the matching, which is that of `average_precision`.

    Returns:
        `confidence` (falling), `precision`, `recall` (rising); no row where no prediction has a confidence.
    """
    ranked = rank(objects, iou)
    last = np.append(ranked.confidence[1:] != ranked.confidence[:-1], True)[: len(ranked.confidence)]
    if not is_ranked(objects):
        last[:] = False
    columns = {"confidence": ranked.confidence, "precision": ranked.precision, "recall": ranked.recall}
    return pd.DataFrame({name: values[last] for name, values in columns.items()})


def f1_by_threshold(objects: Objects, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """What `evaluate` says when only predictions of at least some confidence are there, exactly: they are matched anew.

    Args:
        objects: The comparison.
        thresholds: Of the confidence. At 0 all take part, with a known confidence or not.

    Returns:
        A row a threshold: `threshold`, `precision`, `recall`, `f1`, `tp`, `n_pred`, `n_truth`; no row where no prediction
        has a confidence.
    """
    iou, matching = objects.evaluation.iou, objects.evaluation.matching
    confidence = _confidence(objects)
    inner_pred, inner_truth = (~side["is_border"].to_numpy() for side in (objects.pred, objects.truth))
    pairs = objects.overlap.take(objects.overlap.iou >= iou * (1 - ROUNDING))
    # A pair whose two footprints have no other candidate is matched whenever it is there.
    alone = (np.bincount(pairs.pred)[pairs.pred] == 1) & (np.bincount(pairs.truth)[pairs.truth] == 1)
    sure, open_pairs = match(pairs.take(alone), iou, matching), pairs.take(~alone)
    rows = []
    for threshold in thresholds if is_ranked(objects) else ():
        there = confidence >= threshold
        chosen = match(open_pairs.take(there[open_pairs.pred]), iou, matching)
        kept = sure.take(there[sure.pred])
        tp = len(kept) + len(chosen)
        n_pred = int((there & inner_pred).sum() + (~inner_pred[kept.pred]).sum() + (~inner_pred[chosen.pred]).sum())
        n_truth = int(inner_truth.sum() + (~inner_truth[kept.truth]).sum() + (~inner_truth[chosen.truth]).sum())
        empty = not n_pred + n_truth
        shares = ratio(tp, n_pred, empty), ratio(tp, n_truth, empty), ratio(2 * tp, n_pred + n_truth, empty)
        rows.append((threshold, *shares, tp, n_pred, n_truth))
    return pd.DataFrame(rows, columns=["threshold", "precision", "recall", "f1", "tp", "n_pred", "n_truth"])


def _confidence(objects: Objects) -> Floats:
    """(P,) 0 where unknown."""
    confidence: Floats = np.nan_to_num(objects.pred["confidence"].to_numpy(np.float64), nan=0.0)
    return confidence
