"""Charts as inline SVG: lines over two axes, and bars of a histogram. Numbers in, markup out; colours are the page's.

Every chart has a title and a description for those who do not see it, and lines differ by their dashes as well as by colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoinfer.evaluation.page import Html, join, tag

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 26, 46
MOST_POINTS = 400
"""A line of more points is thinned: no screen shows them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    x: ArrayLike
    """(N,)."""
    y: ArrayLike
    """(N,); the line breaks where it is not finite."""
    is_dotted: bool = False
    """Marks each point."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says, and from where to where it goes."""

    label: str
    low: float = 0.0
    high: float = 1.0


def line_chart(title: str, description: str, lines: Sequence[Line], x: Axis, y: Axis, *, is_diagonal: bool = False) -> Html:
    """Lines over two axes.

    Args:
        title: Read out first.
        description: What is to be seen, in words.
        lines: At most three.
        x, y: The axes.
        is_diagonal: Draw where x equals y.
    """
    parts = [_frame(x, y)]
    if is_diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(_path([low, high], [low, high], x, y, "ideal"))
    for index, line in enumerate(lines):
        at_x, at_y = _thinned(np.asarray(line.x, float), np.asarray(line.y, float))
        parts.append(_path(at_x, at_y, x, y, f"s{index}"))
        if line.is_dotted or np.isfinite(at_y).sum() == 1:
            dots = [
                tag("circle", cx=_n(_px(u, x)), cy=_n(_py(v, y)), r=3.5, class_=f"d{index}")
                for u, v in zip(at_x, at_y, strict=True)
                if math.isfinite(u) and math.isfinite(v)
            ]
            parts += dots
        if len(lines) > 1:
            left = LEFT + 150 * index
            parts.append(tag("line", x1=left, x2=left + 26, y1=13, y2=13, class_=f"s{index}"))
            parts.append(tag("text", line.name, x=left + 32, y=17))
    return _chart(title, description, parts)


def histogram(title: str, description: str, edges: ArrayLike, counts: ArrayLike, label: str) -> Html:
    """Bars of counts.

    Args:
        title: Read out first.
        description: What is to be seen, in words.
        edges: (N + 1,).
        counts: (N,).
        label: Of the horizontal axis.
    """
    at, height = np.asarray(edges, float), np.asarray(counts, float)
    x = Axis(label, float(at[0]), float(at[-1]))
    y = Axis("pairs", 0.0, _round_up(float(height.max(initial=1.0))))
    bars = [
        tag(
            "rect", x=_n(_px(left, x) + 0.5), y=_n(_py(count, y)), width=_n(max(0.5, _px(right, x) - _px(left, x) - 1)),
            height=_n(_py(0.0, y) - _py(count, y)), class_="bar",
        )
        for left, right, count in zip(at[:-1], at[1:], height, strict=True)
    ]  # fmt: skip
    return _chart(title, description, [_frame(x, y), *bars])


def _chart(title: str, description: str, parts: Sequence[Html]) -> Html:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower())  # unique on a page, as titles are, and the same each time
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-text"),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
    )


def _frame(x: Axis, y: Axis) -> Html:
    """Grid lines, ticks, labels."""
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(x.low, x.high):
        at = _n(_px(value, x))
        parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="grid"))
        parts.append(tag("text", _tick(value), x=at, y=bottom + 16, text_anchor="middle", class_="tick"))
    for value in ticks(y.low, y.high):
        at = _n(_py(value, y))
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", _tick(value), x=left - 7, y=at, dy="0.32em", text_anchor="end", class_="tick"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("line", x1=left, x2=left, y1=TOP, y2=bottom, class_="axis"))
    middle = (TOP + bottom) / 2
    parts.append(tag("text", x.label, x=_n((left + right) / 2), y=HEIGHT - 8, text_anchor="middle"))
    parts.append(tag("text", y.label, x=15, y=_n(middle), text_anchor="middle", transform=f"rotate(-90 15 {_n(middle)})"))
    return join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, four to nine of them: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(size for size in (power, 2 * power, 5 * power) if size <= (high - low) / 4 * (1 + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def _path(at_x: ArrayLike, at_y: ArrayLike, x: Axis, y: Axis, kind: str) -> Html:
    """A line through the points that are finite, broken where one is not."""
    words, pen = [], "M"
    for u, v in zip(np.asarray(at_x, float).tolist(), np.asarray(at_y, float).tolist(), strict=True):
        if math.isfinite(u) and math.isfinite(v):
            words.append(f"{pen}{_n(_px(u, x))} {_n(_py(v, y))}")
        pen = "L" if math.isfinite(u) and math.isfinite(v) else "M"
    return tag("path", d=" ".join(words), class_=kind)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[kept], y[kept]


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(size * power for size in (1, 2, 5, 10) if size * power >= value * (1 - 1e-9))


def _px(value: float, axis: Axis) -> float:
    return LEFT + (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _py(value: float, axis: Axis) -> float:
    share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:,g}"
