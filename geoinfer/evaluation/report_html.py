"""The page about one assessment: what each section of it says. Elements are `page`'s, charts `svg`'s, pictures `chips`'.

Every picture and chart stands beside its numbers or its words, so that nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geoinfer.evaluation.chips import Chip
from geoinfer.evaluation.objects import Objects
from geoinfer.evaluation.page import (
    Column,
    Html,
    Row,
    Section,
    document,
    figures,
    join,
    number,
    pairs,
    table,
    tag,
    text_of,
    void,
)
from geoinfer.evaluation.svg import Axis, Line, line_chart
from geoinfer.evaluation.wording import MATCHINGS, MEASURES, OUTCOMES, REASONS, UNITS

if TYPE_CHECKING:
    import pandas as pd

    from geoinfer.evaluation.assess import Assessment, Curves, Difference
    from geoinfer.evaluation.measures import Measure

MOST_POINTS = 25
"""Rows of numbers below a chart, about."""
MOST_ROWS = 200
"""Rows of a table of slices that a page shows; the files have all."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Chips of the worst mistakes, and which imagery they were cut from."""

    false_positives: Sequence[Chip]
    misses: Sequence[Chip]


def render(
    assessment: Assessment,
    *,
    title: str,
    inputs: Mapping[str, str],
    pictures: Pictures | None = None,
    labels: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        assessment: What it tells.
        title: Its heading.
        inputs: What was compared: name -> file, in order.
        pictures: The worst mistakes, where there was imagery.
        labels: What a reader must know before anything else.
    """
    total = assessment.evaluation
    counts = f"{total.tp:,} pairs, {total.fp:,} false positives, {total.fn:,} misses"
    lead = join(
        (
            *(tag("p", label, class_="label", role="note") for label in labels),
            pairs(inputs.items()),
            headline(assessment.measures, ("precision", "recall", "f1")),
            tag("p", f"{counts}. IoU {total.iou:g}; matching {total.matching}: {MATCHINGS[total.matching]}.", class_="note"),
            *(tag("p", note, class_="note") for note in assessment.objects.notes),
        )
    )
    sections: list[Section] = [
        ("measures", "Measures", measures_table(assessment.measures)),
        ("curves", "Curves", curves(assessment.curves)),
        ("reasons", "Why they have no partner", reasons_table(assessment.objects)),
    ]
    if len(assessment.slices) > 1:
        sections.append(("slices", "Slices", slices_tables(assessment.slices)))
    if len(assessment.bias):
        sections.append(("bias", "Gaps to the whole", bias_tables(assessment.bias)))
    if pictures is not None:
        sections.append(("worst", "The worst mistakes", worst(pictures)))
    sections.append(("settings", "How it was computed", settings(assessment)))
    return document(title, lead, sections)


def headline(measures: Mapping[str, Measure], names: Iterable[str]) -> Html:
    """The figures to see first."""
    titles = {name: title for group in MEASURES.values() for name, title in group.items()}
    return figures((titles[name], measures[name].value, interval(measures[name])) for name in names)


def interval(one: Measure | Difference) -> str:
    """`0.81 to 0.86`, or nothing."""
    return "" if one.low is None or one.high is None else f"{number(one.low)} to {number(one.high)}"


def measures_table(measures: Mapping[str, Measure]) -> Html:
    """All measures in their groups, each with n, unit, interval and source."""
    columns = [
        Column("Measure", False), Column("Value"), Column("Unit", False), Column("95 % interval"), Column("n"),
        Column("Source and notes", False),
    ]  # fmt: skip
    known = {name for group in MEASURES.values() for name in group}
    groups = {**MEASURES, "Other": {name: name for name in measures if name not in known}}
    rows = []
    for heading, titles in groups.items():
        present = [name for name in titles if name in measures]
        if present:
            rows.append(Row([heading], "group"))
        for name in present:
            one = measures[name]
            about = one.source if one.note is None else join((one.source, Html("<br>"), one.note))
            rows.append(Row([titles[name], one.value, UNITS.get(one.unit, one.unit), interval(one), one.n, about]))
    return table("Every measure, what it was computed from, and where its formula is from", columns, rows)


def curves(found: Curves) -> Html:
    """Charts of what the confidences are worth, each with its numbers below."""
    parts: list[object] = [] if found.note is None else [tag("p", f"{found.note[:1].upper()}{found.note[1:]}.")]
    ranked, by_threshold, reliable = found.precision_recall, found.f1_by_threshold, found.reliability
    if len(ranked):
        line = Line("precision", ranked["recall"], ranked["precision"])
        told = (
            f"Recall reaches {number(ranked['recall'].iloc[-1])}, where precision is {number(ranked['precision'].iloc[-1])}."
        )
        chart = line_chart("Precision and recall", told, [line], Axis("Recall"), Axis("Precision"))
        parts.append(
            _figure(
                "Precision and recall",
                chart,
                f"{told} Each point takes in the predictions of at least one confidence.",
                ranked,
            )
        )
    if len(by_threshold):
        best = by_threshold.iloc[int(by_threshold["f1"].to_numpy().argmax())]
        told = f"F1 is greatest, {number(best['f1'])}, for predictions of confidence {best['threshold']:g} and above."
        judged = by_threshold[by_threshold["n_pred"] > 0]  # elsewhere precision is 0 by rule, not measured
        lines = [
            Line("f1", by_threshold["threshold"], by_threshold["f1"]),
            Line("precision", judged["threshold"], judged["precision"]),
            Line("recall", by_threshold["threshold"], by_threshold["recall"]),
        ]
        chart = line_chart("F1 by threshold", told, lines, Axis("Least confidence"), Axis("F1, precision, recall"))
        parts.append(
            _figure("F1 by threshold", chart, f"{told} Chosen on the same footprints, so a little flattering.", by_threshold)
        )
    if reliable.n:
        bins = reliable.table
        told = (
            f"Expected calibration error {text_of(reliable.ece)}, Brier score {text_of(reliable.brier)}, n {reliable.n:,}."
        )
        line = Line("share that is true", bins["mean_prob"], bins["share_true"], is_dotted=True)
        axes = Axis("Mean confidence"), Axis("Share that has a partner")
        chart = line_chart("Reliability of the confidence", told, [line], *axes, is_diagonal=True)
        parts.append(
            _figure(
                "Reliability of the confidence",
                chart,
                f"{told} On the dotted line, a confidence of 0.8 is right in 80 % of cases.",
                bins,
            )
        )
    return join(parts)


def _figure(heading: str, chart: Html, told: str, numbers: pd.DataFrame) -> Html:
    """A chart, what it shows in words, and its numbers, some of them where there are many."""
    step = max(1, math.ceil(len(numbers) / MOST_POINTS))
    columns = [Column(str(name).replace("_", " ")) for name in numbers]
    rows = [Row(row) for row in numbers.iloc[::step].astype(object).itertuples(index=False, name=None)]
    details = tag("details", tag("summary", "The numbers"), table(f"{heading}: numbers", columns, rows))
    return join((tag("h3", heading), tag("figure", chart, tag("figcaption", told)), details))


def reasons_table(objects: Objects) -> Html:
    """How many false positives and misses there are of each reason."""
    rows = []
    for outcome, heading in OUTCOMES.items():
        counted: Counter[str] = Counter()
        for side in (objects.pred, objects.truth):
            counted.update(side["reason"][side["outcome"] == outcome].tolist())
        if not counted:
            continue
        whole = sum(counted.values())
        rows.append(Row([heading], "group"))
        rows += [
            Row([REASONS.get(reason, reason), counted[reason], _share(counted[reason] / whole)])
            for reason in sorted(counted, key=lambda word: (-counted[word], word))
        ]
    if not rows:
        return tag("p", "Every footprint has a partner.")
    columns = [Column("Reason", False), Column("Footprints"), Column("Share")]
    return table("The first reason that holds for each footprint without a partner", columns, rows)


def slices_tables(slices: pd.DataFrame) -> Html:
    """A table a kind of slice; small slices are marked and not ranked, empty ones only named."""
    columns = [
        Column("Slice", False), Column("Predicted"), Column("True"), Column("Precision"), Column("Recall"), Column("F1"),
        Column("95 % interval of F1"), Column("Rank"),
    ]  # fmt: skip
    whole = slices.iloc[0]
    parts: list[object] = [
        tag("p", "Pairs, false positives and misses of the slices of one kind add up to the whole. Rank 1 is the worst. ",
            "Slices of too few footprints are in italics and have no rank.", class_="note"),
    ]  # fmt: skip
    for name, group in slices.iloc[1:].groupby("slice", sort=False):
        held = group[(group["n_pred"] > 0) | (group["n_truth"] > 0)].head(MOST_ROWS)
        rows = [_slice_row(row) for row in held.to_dict("records")]
        rows.append(_slice_row({**whole.to_dict(), "value": "the whole"}))
        parts.append(table(f"By {name}", columns, rows))
        parts += _footnotes(group, held, "note")
    return join(parts)


def _footnotes(group: pd.DataFrame, held: pd.DataFrame, column: str) -> list[Html]:
    """What a column says of slices, once for all that it holds for; and which slices are not in the table."""
    said: dict[str, list[str]] = {}
    for value, note in zip(held["value"], held[column], strict=True):
        for part in filter(None, str(note).split("; ")):
            said.setdefault(part, []).append(str(value))
    lines = [(note, "every slice" if len(values) == len(held) else ", ".join(values)) for note, values in said.items()]
    empty = group.loc[(group["n_pred"] == 0) & (group["n_truth"] == 0), "value"]
    if len(empty):
        lines.append(("no footprint on either side", ", ".join(map(str, empty))))
    if len(group) - len(empty) > len(held):
        lines.append(("in evaluation.json only", f"{len(group) - len(empty) - len(held)} more slices"))
    return [tag("ul", *(tag("li", f"{who}: {note}") for note, who in lines), class_="note")] if lines else []


def _slice_row(row: Mapping[Any, Any]) -> Row:
    figures = [row["precision"], row["recall"], row["f1"]]
    cells = [str(row["value"]), int(row["n_pred"]), int(row["n_truth"]), *figures, _range(row, "f1"), _rank(row)]
    return Row(cells, "small" if row["is_small"] else None)


def bias_tables(bias: pd.DataFrame) -> Html:
    """How far each slice is from the whole, and its share among the training footprints."""
    has_training = bool(bias["share_training"].notna().any())
    columns = [
        Column("Slice", False), Column("Precision gap"), Column("95 % interval"), Column("Recall gap"),
        Column("95 % interval"), Column("Share here"), *([Column("In training")] if has_training else []),
    ]  # fmt: skip
    parts: list[object] = [
        tag("p", "Each slice minus the whole, drawn from the same blocks of ground. Each row stands on its own: of twenty ",
            "slices that do not differ, one will seem to.", class_="note"),
    ]  # fmt: skip
    for name, group in bias.groupby("slice", sort=False):
        held = group[(group["n_pred"] > 0) | (group["n_truth"] > 0)].head(MOST_ROWS)
        rows = []
        for row in held.to_dict("records"):
            gaps = [_signed(row["precision_gap"]), _range(row, "precision_gap"), _signed(row["recall_gap"])]
            shares = [_share(row["share_truth"]), *([_share(row["share_training"])] if has_training else [])]
            cells = [str(row["value"]), *gaps, _range(row, "recall_gap"), *shares]
            rows.append(Row(cells, "small" if row["is_small"] else None))
        parts.append(table(f"Gaps by {name}", columns, rows))
        parts += _footnotes(group, held, "finding")
    return join(parts)


KEY: Mapping[str, str] = {
    "fp": "False positives", "fn": "Misses", "tp": "Predictions with a partner", "truth": "True footprints that were found",
}  # fmt: skip
"""What the colours of outlines mean; the first two are the headings."""


def worst(pictures: Pictures, key: Mapping[str, str] = KEY) -> Html:
    """The worst false positives and misses as pictures; `key` has other words for other sides."""
    fp, fn = key["fp"], key["fn"]
    keys = [tag("li", tag("span", class_=f"key {kind}", aria_hidden="true"), word) for kind, word in key.items()]
    parts: list[object] = [tag("ul", *keys, class_="keys", aria_label="Colours of the outlines")]
    for heading, order, some in (
        (fp, "the most confident first; where no confidence is known, the largest", pictures.false_positives),
        (fn, "the largest first", pictures.misses),
    ):
        parts.append(tag("h3", heading))
        if not some:
            parts.append(tag("p", "None that the imagery shows.", class_="note"))
            continue
        parts.append(tag("p", f"{len(some)}, {order}. Each lies in the middle of its picture.", class_="note"))
        parts.append(tag("ul", *(tag("li", _picture(chip, heading)) for chip in some), class_="chips"))
    return join(parts)


def _picture(chip: Chip, heading: str) -> Html:
    area = f"{chip.area_m2:,.1f}\u00a0m²"
    first = area if chip.confidence != chip.confidence else f"confidence {chip.confidence:.2f}, {area}"
    reason = REASONS.get(chip.reason, chip.reason)
    why = f"{reason} (IoU {chip.best_iou:.3f})" if chip.best_iou > 0 else reason
    place = f"{chip.lat:.5f}, {chip.lon:.5f}"
    alt = f"{heading}: {first}; {why}. Imagery {chip.side_m:.0f} m wide around latitude, longitude {place}."
    image = void("img", src=chip.image, alt=alt, width=240, height=240, loading="lazy")
    lines = tag("strong", first), Html("<br>"), why, Html("<br>"), f"row {chip.row}, at {place}, {chip.side_m:.0f} m wide"
    return tag("figure", image, tag("figcaption", *lines))


def settings(assessment: Assessment) -> Html:
    """Rules and settings, so that the page can be understood without us."""
    objects, total = assessment.objects, assessment.evaluation
    area = None if total.aoi_area_m2 is None else f"{total.aoi_area_m2 / 1e6:.3f} km²"
    rules = [
        "Both sides are clipped to the area of interest. A footprint of which less than half lies inside counts when it "
        "finds a partner and is ignored when it does not.",
        "Intervals are 95 % intervals of a bootstrap over blocks of ground, since neighbouring buildings are alike.",
        "Average precision has no interval: it is no ratio of sums over footprints.",
        "A dash stands where a figure cannot be computed; the notes say why.",
    ]
    facts = {
        "Plane": objects.plane.name,
        "Area of interest": area or "none given: everything counts",
        "Ignored at its border": f"{total.ignored_pred:,} predictions, {total.ignored_truth:,} true footprints",
        **{key.replace("_", " "): text_of(value) for key, value in assessment.settings.items()},
    }
    return join((tag("ul", *(tag("li", rule) for rule in rules)), pairs(facts.items())))


def _range(row: Mapping[Any, Any], figure: str) -> str:
    low, high = row[f"{figure}_low"], row[f"{figure}_high"]
    return f"{number(low)} to {number(high)}" if low == low and high == high else ""


def _rank(row: Mapping[Any, Any]) -> object:
    rank = row["rank"]
    return int(rank) if isinstance(rank, int | float) and rank == rank else ""


def _signed(value: float) -> str:
    return text_of(None) if value != value else ("+" if value > 0 else "") + number(value)


def _share(value: float) -> str:
    return text_of(None) if value != value else f"{100 * value:.1f} %"
