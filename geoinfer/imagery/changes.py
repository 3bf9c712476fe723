"""What differs between two snapshots: rasters that came, went or changed, and how much ground that touches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from affine import Affine
from pyproj import CRS

from geoinfer.imagery.extent import covered_km2, outline_lonlat
from geoinfer.imagery.snapshot import Entry, Snapshot

CONTENT = ("sha256", "etag", "head")
"""What tells contents apart, the surest first: two entries are compared by the first that both have."""


@dataclass(frozen=True, slots=True)
class Change:
    """A raster that is in both snapshots and not the same in both."""

    before: Entry
    after: Entry
    fields: tuple[str, ...]
    """Names of what differs; `content` where the bytes do."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs; all empty where nothing does."""

    added: tuple[Entry, ...]
    removed: tuple[Entry, ...]
    changed: tuple[Change, ...]
    equal: int
    """Rasters that are the same in both."""
    area_km2: float
    """Ground under rasters that were added, removed or changed, before or after; counted once."""

    @property
    def is_empty(self) -> bool:
        """Nothing differs."""
        return not (self.added or self.removed or self.changed)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "added": [entry.address for entry in self.added],
            "removed": [entry.address for entry in self.removed],
            "changed": [{"address": change.after.address, "fields": list(change.fields)} for change in self.changed],
            "equal": self.equal,
            "area_km2": round(self.area_km2, 6),
        }


def diff(before: Snapshot, after: Snapshot) -> Difference:
    """What differs. Entries are matched by address, then by where the address leads, then by a name that is unique."""
    pairs, removed, added = _match(before, after)
    changed = [Change(old, new, fields) for old, new in pairs if (fields := tuple(_differing(old, new)))]
    touched = [*removed, *added, *(change.before for change in changed), *(change.after for change in changed)]
    area = covered_km2([_outline(entry) for entry in touched])
    return Difference(tuple(added), tuple(removed), tuple(changed), len(pairs) - len(changed), area)


def _match(before: Snapshot, after: Snapshot) -> tuple[list[tuple[Entry, Entry]], list[Entry], list[Entry]]:
    """Pairs of one raster, and what is left of each."""
    old, new = list(before.entries), list(after.entries)
    pairs: list[tuple[Entry, Entry]] = []
    keys: list[tuple[Callable[[Entry], str], Callable[[Entry], str]]] = [
        (lambda entry: entry.address, lambda entry: entry.address),
        (before.address_of, after.address_of),
        (lambda entry: entry.name, lambda entry: entry.name),
    ]
    for old_key, new_key in keys:
        ours, theirs = _unique(old, old_key), _unique(new, new_key)
        for key in ours.keys() & theirs.keys():
            pairs.append((ours[key], theirs[key]))
            old.remove(ours[key])
            new.remove(theirs[key])
    return sorted(pairs, key=lambda pair: pair[1].address), old, new


def _unique(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, Entry]:
    known = [(key(entry), entry) for entry in entries]
    counts = Counter(name for name, _ in known)
    return {name: entry for name, entry in known if counts[name] == 1}


def _differing(old: Entry, new: Entry) -> Iterator[str]:
    if _is_other_content(old, new):
        yield "content"
    left, right = old.to_json(), new.to_json()
    for name in sorted(left.keys() | right.keys() - {"address", "size", "modified", *CONTENT}):
        if name not in ("address", "size", "modified", *CONTENT) and left.get(name) != right.get(name):
            yield name


def _is_other_content(old: Entry, new: Entry) -> bool:
    if old.size != new.size:
        return True
    for name in CONTENT:
        ours, theirs = getattr(old, name), getattr(new, name)
        if ours is not None and theirs is not None:
            if ours != theirs:
                return True
            if name == "sha256":
                return False
    return None not in (old.modified, new.modified) and old.modified != new.modified


def _outline(entry: Entry) -> Any:
    return outline_lonlat(CRS.from_user_input(entry.crs), Affine(*entry.transform), entry.height, entry.width)


def lines(found: Difference, most: int = 50) -> Iterator[str]:
    """The difference for people: a line a raster, at most so many of each kind."""
    yield from _some("+", [entry.address for entry in found.added], most)
    yield from _some("-", [entry.address for entry in found.removed], most)
    yield from _some("~", [f"{change.after.address}: {', '.join(change.fields)}" for change in found.changed], most)


def _some(sign: str, texts: Sequence[str], most: int) -> Iterator[str]:
    yield from (f"{sign} {text}" for text in texts[:most])
    if len(texts) > most:
        yield f"{sign} ... and {len(texts) - most} more"
