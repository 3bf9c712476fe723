"""What each block of ground adds to average precision, which is no ratio of sums: counts by rank, for its interval alone.

Ranks are put into `GROUPS` groups of equal size, from the most to the least confident; what a block adds to each is all that
a draw of blocks needs. A draw's value is the area below the envelope of precision in so many steps, a little off COCO's 101
recalls; an interval is moved by that difference, so that it belongs to the value that `ranking` gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoinfer.evaluation.blocks import Floats, Indices
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.ranking import IOUS, is_ranked, rank
from geoinfer.evaluation.sums import Ground

GROUPS = 256
"""Steps of a draw's precision-recall curve."""
NAMES = ("ap", "ap50", "ap75")


@dataclass(frozen=True, slots=True, eq=False)
class RankSums:
    """What each block adds."""

    blocks: Indices
    """(B,) identifiers of the blocks."""
    sums: Floats
    """(B, k): for each of `IOUS` the true predictions of each group, then all of each; last the true footprints."""

    def on(self, blocks: Indices) -> Floats:
        """(len(blocks), k) the sums on other blocks, which include its own."""
        spread = np.zeros((len(blocks), self.sums.shape[1]))
        spread[np.searchsorted(blocks, self.blocks)] = self.sums
        return spread


def sum_ranks(found: Objects, ground: Ground) -> RankSums | None:
    """What each block adds to average precision; None where that has no value.

    Args:
        found: The comparison.
        ground: Its blocks.
    """
    needed = ~found.truth["is_border"].to_numpy()
    if not is_ranked(found) or not needed.any():
        return None
    count = len(ground.blocks)
    columns: list[NDArray[np.float64]] = []
    for iou in IOUS:
        ranked = rank(found, iou)
        number = len(ranked.at)
        at = ground.pred[ranked.at] * GROUPS + np.arange(number) * GROUPS // max(number, 1)
        for weights in (ranked.is_true.astype(np.float64), None):
            columns.append(np.bincount(at, weights, minlength=count * GROUPS).reshape(count, GROUPS).astype(np.float64))
    truth = np.bincount(ground.truth[needed], minlength=count).astype(np.float64)
    return RankSums(ground.blocks, np.column_stack([*columns, truth]))


def average_precisions(sums: Floats) -> Floats:
    """(R, k) sums -> (R, 3) average precision over all IoUs, at 0.5 and at 0.75."""
    counts = sums[:, :-1].reshape(len(sums), len(IOUS), 2, GROUPS).cumsum(axis=-1)
    true, every = counts[:, :, 0], counts[:, :, 1]  # (R, T, GROUPS)
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = true / sums[:, -1, np.newaxis, np.newaxis]
    below = (np.diff(recall, prepend=0.0) * envelope).sum(axis=-1)  # (R, T)
    return np.stack([below.mean(axis=1), below[:, IOUS.index(0.5)], below[:, IOUS.index(0.75)]], axis=1)
