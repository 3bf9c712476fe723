"""The page about one comparison: what only one side has, what both have, how far apart that is, who is closer to a truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from geoinfer.evaluation.compare import PARTNER_IOU, Comparison, Distribution
from geoinfer.evaluation.page import Column, Html, Row, Section, document, figures, join, number, pairs, table, tag, text_of
from geoinfer.evaluation.report_html import Pictures, interval, worst
from geoinfer.evaluation.svg import histogram
from geoinfer.evaluation.wording import MATCHINGS, MEASURES, UNITS

if TYPE_CHECKING:
    from geoinfer.evaluation.assess import Assessment, Difference

KEY: Mapping[str, str] = {"fp": "Only in a", "fn": "Only in b", "tp": "Of a, in both", "truth": "Of b, in both"}
"""What the colours of outlines mean."""
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "iou": ("IoU", ""),
    "offset_x_m": ("Offset east, b − a", "m"),
    "offset_y_m": ("Offset north, b − a", "m"),
    "offset_m": ("Length of the offset", "m"),
    "area_ratio": ("Area of b over area of a", ""),
}
"""Field of a comparison -> title and unit."""


def render(comparison: Comparison, *, inputs: Mapping[str, str], pictures: Pictures | None = None) -> str:
    """The whole page; arguments as `report_html.render`."""
    a, b = comparison.names
    total = comparison.objects.evaluation
    both = f"{number(comparison.iou.median)} median IoU" if comparison.iou.median is not None else "no pair"
    lead = join(
        (
            *(tag("p", label, class_="label", role="note") for label in comparison.labels),
            pairs({"a": a, "b": b, **inputs}.items()),
            figures(
                (
                    ("Only in a", comparison.only_a, f"of {total.n_pred:,}"),
                    ("In both", comparison.both, both),
                    ("Only in b", comparison.only_b, f"of {total.n_truth:,}"),
                )
            ),
            tag("p", shift(comparison)),
            tag("p", f"Neither side is the truth. IoU {total.iou:g}; {total.matching}: {MATCHINGS[total.matching]}.",
                class_="note"),
            *(tag("p", note, class_="note") for note in comparison.objects.notes),
        )
    )  # fmt: skip
    sections: list[Section] = [("apart", "How far they lie apart", distributions(comparison))]
    if comparison.truth is not None and comparison.differences is not None:
        sections.append(("truth", "Against the truth", differences(comparison.truth, comparison.differences)))
    if pictures is not None:
        sections.append(("pictures", "What only one has", worst(pictures, KEY)))
    title = f"{a} and {b} compared"
    return document(title, lead, sections)


def shift(comparison: Comparison) -> str:
    """`b lies 1.02 m east and 0.31 m south of a`, by the medians."""
    x, y = comparison.offset_x_m.median, comparison.offset_y_m.median
    if x is None or y is None:
        return f"No footprint of one overlaps one of the other at IoU {PARTNER_IOU:g} or more, so no offset can be told."
    east = f"{abs(x):.2f} m {'east' if x >= 0 else 'west'}"
    north = f"{abs(y):.2f} m {'north' if y >= 0 else 'south'}"
    return f"b lies {east} and {north} of a (medians over {comparison.offset_m.n:,} pairs)."


def distributions(comparison: Comparison) -> Html:
    """Quantiles in a table, then IoU and offset as histograms."""
    columns = [
        Column("Quantity", False), Column("n"), Column("Mean"), Column("5 %"), Column("25 %"), Column("Median"),
        Column("75 %"), Column("95 %"),
    ]  # fmt: skip
    rows = []
    for name, (title, unit) in QUANTITIES.items():
        one: Distribution = getattr(comparison, name)
        quantiles = [one.mean, one.p05, one.p25, one.median, one.p75, one.p95]
        rows.append(Row([f"{title} ({unit})" if unit else title, one.n, *quantiles]))
    parts: list[object] = [
        tag("p", f"Over footprints that are each other's best, from IoU {PARTNER_IOU:g} on: also those shifted too far to ",
            "be matched. Footprints that the border of the area cuts are left out.", class_="note"),
        table("Quantiles over pairs of footprints", columns, rows),
    ]  # fmt: skip
    for name, label in (("iou", "IoU of a pair"), ("offset_m", "Offset of a pair, metres")):
        one = getattr(comparison, name)
        if one.n:
            told = (
                f"{one.n:,} pairs; median {text_of(one.median)}, half of them from {text_of(one.p25)} to {text_of(one.p75)}."
            )
            parts.append(tag("h3", label))
            parts.append(tag("figure", histogram(label, told, one.edges, one.counts, label), tag("figcaption", told)))
    return join(parts)


def differences(assessed: tuple[Assessment, Assessment], found: Mapping[str, Difference]) -> Html:
    """Both sides' measures and b minus a, with its interval."""
    columns = [
        Column("Measure", False), Column("a"), Column("b"), Column("b − a"), Column("95 % interval"), Column("Notes", False),
    ]  # fmt: skip
    titles = {name: title for group in MEASURES.values() for name, title in group.items()}
    rows = []
    for name, one in found.items():
        a, b = (side.measures[name] for side in assessed)
        unit = UNITS.get(a.unit, a.unit)
        title = f"{titles.get(name, name)} ({unit})" if unit else titles.get(name, name)
        rows.append(Row([title, a.value, b.value, one.value, interval(one), one.note or ""]))
    note = tag("p", "The difference is drawn from the same blocks of ground for both, so what is hard for both cancels. ",
               "Where its interval holds 0, the two cannot be told apart.", class_="note")  # fmt: skip
    return join((note, table("Measures of a and b against the truth", columns, rows)))
