"""What a report calls things: measures in groups, outcomes and reasons, in the words of docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Mapping

MEASURES: Mapping[str, Mapping[str, str]] = {
    "Objects found": {
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1",
        "ap": "AP, IoU 0.5 to 0.95",
        "ap50": "AP, IoU 0.5",
        "ap75": "AP, IoU 0.75",
        "split_rate": "Split rate",
        "merge_rate": "Merge rate",
        "fp_per_km2": "False positives",
        "fp_per_km2_water": "False positives in water",
    },
    "Area covered": {
        "pixel_iou": "Area IoU",
        "pixel_precision": "Area precision",
        "pixel_recall": "Area recall",
        "area_bias": "Area bias of pairs",
    },
    "Shape of pairs": {
        "boundary_iou": "Boundary IoU",
        "polis_m": "PoLiS distance",
        "hausdorff_m": "Hausdorff distance",
        "rotation_error_deg": "Rotation error",
        "vertex_ratio": "Vertex ratio (N-ratio)",
    },
    "Place of pairs (registration)": {
        "offset_x_m": "Offset east",
        "offset_y_m": "Offset north",
        "offset_m": "Length of the offset",
    },
}
"""Group -> measure -> title; a measure that is not here is shown at the end, by its own name."""

UNITS: Mapping[str, str] = {"m": "m", "deg": "°", "1/km2": "/km²", "": ""}

OUTCOMES: Mapping[str, str] = {"fp": "False positives", "fn": "Misses", "ignored": "Ignored"}

REASONS: Mapping[str, str] = {
    "alone": "shares area with nothing",
    "duplicate": "its partner has a better one",
    "merged": "one prediction over several true footprints",
    "split": "one true footprint in several predictions",
    "low_iou": "overlaps too little",
    "border": "mostly outside the area of interest",
}

MATCHINGS: Mapping[str, str] = {
    "optimal": "one to one, the greatest total IoU, each pair at or above the threshold",
    "spacenet": "greedy in the order of the file, each pair strictly above the threshold",
}
