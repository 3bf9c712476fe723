"""What the program says: data on stdout, talk on stderr, nothing secret in either.

Knows streams and words; what is said comes from the verbs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from geoinfer.remote.address import redact


def one_line(text: object) -> str:
    """One printable line: line breaks become spaces, control characters (a file's name may hold any) are escaped."""
    flat = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(flat))


def say(text: object = "") -> None:
    """A line of talk, on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def warn(text: object) -> None:
    """A line that must not be missed, though the work goes on."""
    say(f"geoinfer: warning: {one_line(text)}")


def fail(text: object) -> None:
    """The one line that tells what went wrong."""
    say(f"geoinfer: error: {one_line(text)}")


def emit(text: str) -> None:
    """A line of data, on stdout; nobody there to read it (`geoinfer info x | head -1`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit


def emit_json(value: object) -> None:
    """One machine-readable object, on stdout."""
    emit(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str))


def emit_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values in two columns, on stdout."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        emit(f"{name.ljust(width)}  {plain(value)}")


def emit_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Columns that line up, on stdout; plain text, so that it can be piped."""
    lines = [list(header), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        emit("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(value: Any) -> str:
    """A value as a person would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "-"
    return one_line(value)


def bytes_text(count: float) -> str:
    """`1.5 GB`: bytes in the unit that gives a short number."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """`1:02:03`, or `42 s` below a minute."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def talks_to_a_person() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"
