"""Map tiles kept on disk between runs, as long as the server allows it. Knows answers, not images.

One file an answer, named by the sha256 of its address (so nobody reads an address or a key from the cache), a line of JSON
before the content. Files are written aside and renamed; one whose content does not have the hash that it names counts as
missing. The folder is bounded: what was used least lately goes. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

KEEP_S = 7 * 86_400.0
"""How long an answer is kept whose server says nothing about it."""
KEEP_EMPTY_S = 86_400.0
"""The same for 'nothing here'."""
MOST_S = 365 * 86_400.0
LIMIT_BYTES = 4 * 2**30
"""Size of the folder."""
_SWEEP_EVERY = 512
"""Writes of a process between two looks at the size of the folder."""
_FRESH_USE_S = 3_600.0
_TEMPORARY = ".part"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said for an address."""

    status: int
    content: bytes
    sha256: str
    """Of `content`, hexadecimal."""
    etag: str | None
    modified: str | None
    stored: float
    """Seconds since 1970, when the server last said so."""
    expires: float
    """Until when it need not be asked again."""

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], content: bytes, now: float) -> Answer:
        """From what came over the network; header names in lower case."""
        digest = hashlib.sha256(content).hexdigest()
        etag, modified = headers.get("etag"), headers.get("last-modified")
        return cls(status, content, digest, etag, modified, now, now + lifetime(headers, now, is_empty=status != 200))

    def renewed(self, headers: Mapping[str, str], now: float) -> Answer:
        """The server said 304: it is still so."""
        until = now + lifetime(headers, now, is_empty=self.status != 200)
        return replace(self, stored=now, expires=until, etag=headers.get("etag") or self.etag)


def may_keep(headers: Mapping[str, str]) -> bool:
    """The server does not forbid to store its answer."""
    return "no-store" not in headers.get("cache-control", "").lower()


def lifetime(headers: Mapping[str, str], now: float, *, is_empty: bool) -> float:
    """Seconds for which an answer may be used without asking (RFC 9111, as a private cache).

    Args:
        headers: Names in lower case.
        now: Seconds since 1970.
        is_empty: It says 'nothing here'.
    """
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    if found := re.search(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,12})", control):
        age = headers.get("age", "")
        return min(max(0.0, float(found[1]) - (float(age) if age.isdigit() else 0.0)), MOST_S)
    if "expires" in headers:
        try:
            until = email.utils.parsedate_to_datetime(headers["expires"]).timestamp()
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(0.0, until - now), MOST_S)
    return KEEP_EMPTY_S if is_empty else KEEP_S


def default_folder() -> Path:
    """By the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoinfer" / "tiles"


def key_of(url: str) -> str:
    """Name of an address in the cache."""
    return hashlib.sha256(url.encode()).hexdigest()


def load(folder: Path, key: str) -> Answer | None:
    """What is kept for a key; None where nothing is, or where it is damaged."""
    path = path_of(folder, key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head, _, content = data.partition(b"\n")
    try:
        facts = json.loads(head)
        answer = Answer(
            int(facts["status"]),
            content,
            str(facts["sha256"]),
            facts["etag"],
            facts["modified"],
            float(facts["stored"]),
            float(facts["expires"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if hashlib.sha256(content).hexdigest() != answer.sha256:
        return None
    with contextlib.suppress(OSError):  # the time of the file says when it was used last
        now = time.time()
        if now - path.stat().st_mtime > _FRESH_USE_S:
            os.utime(path, (now, now))
    return answer


class Counter:
    """Writes of this process; how `save` knows when to look at the folder's size."""

    writes = 0


def save(folder: Path, key: str, answer: Answer, limit: int = LIMIT_BYTES) -> None:
    """Keep an answer; silently not where the folder cannot be written."""
    facts = {
        "status": answer.status,
        "sha256": answer.sha256,
        "etag": answer.etag,
        "modified": answer.modified,
        "stored": answer.stored,
        "expires": answer.expires,
    }
    path = path_of(folder, key)
    aside = path.with_name(f"{key}.{uuid4().hex[:8]}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(json.dumps(facts).encode() + b"\n" + answer.content)
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        return
    Counter.writes += 1
    if Counter.writes % _SWEEP_EVERY == 1:
        sweep(folder, limit)


def sweep(folder: Path, limit: int = LIMIT_BYTES) -> None:
    """Bring the folder below its size, the longest unused first; and remove what a killed process left half written."""
    files, total, now = [], 0, time.time()
    for shelf in _entries(folder):
        for entry in _entries(Path(shelf.path)) if shelf.is_dir(follow_symlinks=False) and len(shelf.name) == 2 else ():
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_TEMPORARY) and now - status.st_mtime > _FRESH_USE_S:
                    os.unlink(entry.path)
                    continue
                files.append((status.st_mtime, status.st_size, entry.path))
                total += status.st_size
    if total <= limit:
        return
    for _, size, path in sorted(files):
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
        if total <= limit * 0.9:
            break


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def path_of(folder: Path, key: str) -> Path:
    """The file of a key."""
    return folder / key[:2] / key[2:]
