"""What a benchmark says: rows of a value, what it is held against and the target, as one table and as a section of a file.

Each module of `benchmarks` that `python -m benchmarks` runs has a function `rows(quick: bool) -> list[Row]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured."""

    name: str
    """What, in a few words: `whole run, bf16, 2 threads`."""
    value: float
    unit: str
    """Of value and reference: `Mpx/s`, `s`, `MB`; `` for a share."""
    reference: float | None = None
    """What it is held against, in the same unit, from the same run of the benchmark."""
    against: str = ""
    """What the reference is."""
    target: float | None = None
    """What should be reached."""
    judged: Literal["ratio", "value"] = "ratio"
    """What the target is about; the value where there is no reference."""
    at_most: bool = False
    """The target is an upper bound, and a small number a good one."""

    @property
    def ratio(self) -> float | None:
        """Value by reference; None where there is none."""
        return self.value / self.reference if self.reference else None

    @property
    def is_met(self) -> bool | None:
        """The target is reached; None where there is none."""
        if self.target is None:
            return None
        measured = self.value if self.judged == "value" or self.ratio is None else self.ratio
        return measured <= self.target if self.at_most else measured >= self.target


HEAD = "| what | value | reference | ratio | target | met |\n|---|--:|--:|--:|--:|---|"


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown, a line a row."""
    return "\n".join([HEAD, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    reference = "" if row.reference is None else f"{_number(row.reference)} {row.unit} ({row.against})"
    ratio = "" if row.ratio is None else _number(row.ratio)
    bound = "at most " if row.at_most else "at least "
    about = row.unit if row.judged == "value" or row.reference is None else "×"
    target = "" if row.target is None else f"{bound}{row.target:g} {about}".rstrip()
    met = {None: "", True: "yes", False: "**no**"}[row.is_met]
    return f"| {row.name} | {_number(row.value)} {row.unit} | {reference} | {ratio} | {target} | {met} |".replace(
        "  |", " |"
    )


def _number(value: float) -> str:
    """Three digits that count, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def to_json(rows: Sequence[Row]) -> str:
    """One line, as a part that runs in a process of its own sends its rows back."""
    return json.dumps([asdict(row) for row in rows])


def from_json(text: str) -> list[Row]:
    """The inverse of `to_json`."""
    return [Row(**fields) for fields in json.loads(text)]


def append(path: Path, title: str, about: str, parts: Sequence[tuple[str, Sequence[Row]]], notes: str = "") -> None:
    """Add a section at the end of a file of results. What stands there is never touched.

    Args:
        path: The file; made where it is missing.
        title: Of the section.
        about: The machine, and how it was measured.
        parts: Name and rows of each part.
        notes: What the table does not say.
    """
    text = [f"\n## {title}", about]
    for name, rows in parts:
        text.append(f"### {name}\n\n{table(rows)}")
    if notes:
        text.append(notes)
    with path.open("a", encoding="utf-8") as file:  # "a": the kernel writes at the end, whoever else writes there
        file.write("\n\n".join(text) + "\n")
