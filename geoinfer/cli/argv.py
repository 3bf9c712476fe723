"""Spellings that the option parser alone would not take: `--bbox` as four values, underscores, `--debug` anywhere."""

from __future__ import annotations

from collections.abc import Sequence


def normalise(argv: Sequence[str]) -> list[str]:
    """The same arguments in the one spelling that the parser knows.

    `--bbox -1 2 3 4` becomes `--bbox=-1,2,3,4`, `--min_area` becomes `--min-area`, and `--debug` moves to the front, where
    it belongs to the program and not to a verb. What stands after `--` is left alone.
    """
    tokens = list(argv)
    stop = tokens.index("--") if "--" in tokens else len(tokens)
    head, tail = tokens[:stop], tokens[stop:]
    debug = ["--debug"] if "--debug" in head else []
    head = [_dashed(token) for token in head if token != "--debug"]
    return debug + list(_join_bbox(head)) + tail


def _dashed(token: str) -> str:
    """`--min_area=3` -> `--min-area=3`; the value is not touched."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _join_bbox(tokens: list[str]) -> list[str]:
    """Four values after `--bbox` become one, whatever their signs."""
    joined: list[str] = []
    at = 0
    while at < len(tokens):
        name, equals, value = tokens[at].partition("=")
        at += 1
        if name != "--bbox":
            joined.append(tokens[at - 1])
            continue
        parts = [value] if equals else []
        if not parts and at < len(tokens) and "," in tokens[at]:
            parts, at = [tokens[at]], at + 1
        while len(parts) < 4 and not any("," in part for part in parts) and at < len(tokens) and _is_number(tokens[at]):
            parts, at = [*parts, tokens[at]], at + 1
        joined.append(f"--bbox={','.join(parts)}" if parts else "--bbox")
    return joined


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
