"""Map tiles from memory, from disk or over the network, as politely as user and server ask. Knows addresses, not images.

All threads of a process share one small pool for each service, and processes take turns (`queue`): so many requests are
under way at a time, however many threads want tiles, and each tile is asked for once. Within a process an answer stays what
it was: how long the server lets it be kept counts from one run to the next, so that a run sees one state.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from geoinfer.errors import SafetyError, SourceError
from geoinfer.imagery.tiles.cache import Answer, default_folder, key_of, load, may_keep, path_of, save
from geoinfer.imagery.tiles.image import driver_of
from geoinfer.imagery.tiles.queue import turn
from geoinfer.remote.access import Access
from geoinfer.remote.address import shown
from geoinfer.remote.http import Answer as Received
from geoinfer.remote.http import get
from geoinfer.remote.meter import count_sent, sent
from geoinfer.remote.retry import persist

LARGEST_BYTES = 16 * 2**20
"""Of a tile, as it comes."""
_MEMORY_BYTES = 32 * 2**20
_SUSPICIOUS = 3
"""So many places with the same bytes: no camera sees the same twice."""
_MOST_SEEN = 4096
"""Contents whose places are remembered; those seen once go first."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How a service is asked. Enters no fingerprint, but for `empty`."""

    service: str
    """What shares one pool and one rate: the host."""
    access: Access
    concurrency: int
    rate: float | None
    """Requests a second, at most."""
    cache: str | None
    empty: tuple[int, ...]
    """Statuses that mean 'nothing here'."""

    @property
    def folder(self) -> Path:
        """Of the cache."""
        return default_folder() if self.cache is None else Path(self.cache)


@dataclass(frozen=True, slots=True)
class Tile:
    """What is at an address."""

    content: bytes | None
    """None: nothing here."""
    sha256: str


def fetch(urls: Sequence[str], manners: Manners, *, anew: bool = False) -> list[Tile]:
    """The tiles at some addresses, in their order.

    Args:
        urls: Each is asked for once, whoever else wants it.
        manners: How.
        anew: Ask the server, whatever is kept.

    Raises:
        SourceError, RemoteError, SafetyError: As `remote.client` does.
    """
    state = _state()
    waiting = [state.begin(url, manners, anew) for url in urls]
    tiles = []
    try:
        for url, pending in zip(urls, waiting, strict=True):
            try:
                got = pending.future.result()
            except CancelledError:  # who asked for it was interrupted: that says nothing about the tile
                tiles += fetch([url], manners, anew=anew)
                continue
            if pending.is_mine:
                count_sent(requests=got.requests, bytes=got.bytes, retries=got.retries)
            tiles.append(got.tile)
    except BaseException:
        for pending in waiting:
            if pending.is_mine:
                pending.future.cancel()
        raise
    return tiles


def is_kept(url: str, manners: Manners) -> bool:
    """It is on disk, fresh or not."""
    return path_of(manners.folder, key_of(url)).exists()


def note(tile: Tile, url: str) -> None:
    """A tile was taken for imagery."""
    _state().note(tile.sha256, url)


def suspects() -> list[str]:
    """One line for each content that this process took for imagery at several places: it may mean 'nothing here'."""
    return [
        f"{first}: the same tile at {_SUSPICIOUS} places or more; if it means 'nothing here', give --placeholder {sha256}"
        for sha256, first in _state().repeated()
    ]


class _Got(NamedTuple):
    """A tile, and what it took."""

    tile: Tile
    requests: int = 0
    bytes: int = 0
    retries: int = 0


class _Pending(NamedTuple):
    """A tile that is there or on its way."""

    future: Future[_Got]
    is_mine: bool
    """This caller caused it, so it counts as his."""


class _Gate:
    """Lets through so many a second."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self, rate: float) -> None:
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + 1.0 / rate
        time.sleep(max(0.0, turn - time.monotonic()))


class _State:
    """What this process knows of tiles."""

    def __init__(self) -> None:
        self._began = time.time()
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, int], ThreadPoolExecutor] = {}
        self._gates: dict[str, _Gate] = {}
        self._memory: OrderedDict[str, Tile] = OrderedDict()
        self._held = 0
        self._pending: dict[str, Future[_Got]] = {}
        self._seen: OrderedDict[str, list[str]] = OrderedDict()

    def begin(self, url: str, manners: Manners, anew: bool) -> _Pending:
        """A tile from memory or disk, or a request for it."""
        key = key_of(url)
        if anew:
            return self._submit(url, key, manners, anew)
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return _Pending(_done(self._memory[key]), False)
        tile = self._from_disk(key, manners)
        if tile is not None:
            return _Pending(_done(tile), False)
        return self._submit(url, key, manners, anew)

    def note(self, sha256: str, url: str) -> None:
        with self._lock:
            places = self._seen.setdefault(sha256, [])
            self._seen.move_to_end(sha256)
            if len(places) < _SUSPICIOUS and url not in places:
                places.append(url)
            if len(self._seen) > _MOST_SEEN:
                once = next((known for known, where in self._seen.items() if len(where) < _SUSPICIOUS), None)
                self._seen.pop(once) if once is not None else self._seen.popitem(last=False)

    def repeated(self) -> list[tuple[str, str]]:
        with self._lock:
            found = [(sha256, where[0]) for sha256, where in self._seen.items() if len(where) >= _SUSPICIOUS]
        return [(sha256, shown(url)) for sha256, url in sorted(found)]

    def _submit(self, url: str, key: str, manners: Manners, anew: bool) -> _Pending:
        with self._lock:
            if key in self._pending and not anew:
                return _Pending(self._pending[key], False)
            if key in self._memory and not anew:  # it arrived since `begin` looked
                return _Pending(_done(self._memory[key]), False)
            name = (manners.service, manners.concurrency)
            if name not in self._pools:
                self._pools[name] = ThreadPoolExecutor(manners.concurrency, "geoinfer-tiles")
            gate = self._gates.setdefault(manners.service, _Gate())
            future = self._pending[key] = self._pools[name].submit(self._get, url, key, manners, anew, gate)
        future.add_done_callback(lambda done: self._arrived(key, done))
        return _Pending(future, True)

    def _from_disk(self, key: str, manners: Manners) -> Tile | None:
        """Where nobody need be asked."""
        answer = load(manners.folder, key)
        if answer is None or not _is_usable(answer, manners):
            return None
        if answer.expires <= time.time() and answer.stored < self._began:
            return None
        tile = _tile_of(answer)
        self._remember(key, tile)
        return tile

    def _get(self, url: str, key: str, manners: Manners, anew: bool, gate: _Gate) -> _Got:
        """In a thread of the pool."""
        if manners.rate is not None:
            gate.wait(manners.rate)
        with turn(manners.folder, manners.service, manners.concurrency, manners.rate):
            known = None if anew else self._from_disk(key, manners)
            if known is not None:  # another process was faster
                return _Got(known)
            before = sent()
            tile = _request(url, key, manners, anew)
            after = sent()
        self._remember(key, tile)
        return _Got(tile, after.requests - before.requests, after.bytes - before.bytes, after.retries - before.retries)

    def _arrived(self, key: str, done: Future[_Got]) -> None:
        with self._lock:
            if self._pending.get(key) is done:
                del self._pending[key]

    def _remember(self, key: str, tile: Tile) -> None:
        with self._lock:
            old = self._memory.pop(key, None)
            self._memory[key] = tile
            self._held += _size_of(tile) - (0 if old is None else _size_of(old))
            while self._held > _MEMORY_BYTES:
                self._held -= _size_of(self._memory.popitem(last=False)[1])


def _request(url: str, key: str, manners: Manners, anew: bool) -> Tile:
    """Ask the server; only whether it changed, where an old answer is kept."""
    kept = None if anew else load(manners.folder, key)
    headers: dict[str, str] = {"cache-control": "no-cache"} if anew else {}
    statuses = {200, *manners.empty}
    if kept is not None and _is_usable(kept, manners) and (kept.etag or kept.modified):
        statuses.add(304)
        headers |= {"if-none-match": kept.etag} if kept.etag else {"if-modified-since": kept.modified or ""}
    got = _ask(url, manners.access, headers, statuses)
    now = time.time()
    if got.status == 304 and kept is not None:
        answer = kept.renewed(got.headers, now)
    else:
        answer = Answer.of(got.status, got.headers, got.body if got.status == 200 else b"", now)
    if may_keep(got.headers) and (answer.status != 200 or driver_of(answer.content) is not None):
        save(manners.folder, key, answer)
    return _tile_of(answer)


def _ask(url: str, access: Access, headers: dict[str, str], statuses: set[int]) -> Received:
    """An answer of one of these statuses, after as many tries as it may take."""

    def once(attempt: int) -> Received:
        anew = {"cache-control": "no-cache"} if attempt else {}
        return get(url, access, limit=LARGEST_BYTES, headers=headers | anew, is_gzip_ok=True)

    got = persist(url, access, once)
    if got.status not in statuses:
        raise SourceError(f"{shown(url)}: the server says {got.status}; {_advice(got.status)}")
    if not got.is_whole:
        raise SafetyError(f"{shown(url)}: refused, a tile of more than {LARGEST_BYTES // 2**20} MiB")
    return got


def _advice(status: int) -> str:
    if status in (401, 403):
        return "does the address hold a key, and is it still good?"
    return "check the address and the zoom"


def _is_usable(answer: Answer, manners: Manners) -> bool:
    """This user takes such an answer: it may be another's who shares the cache."""
    return answer.status == 200 or answer.status in manners.empty


def _tile_of(answer: Answer) -> Tile:
    return Tile(answer.content if answer.status == 200 else None, answer.sha256)


def _size_of(tile: Tile) -> int:
    """In memory, with what holds it."""
    return 512 + len(tile.content or b"")


def _done(tile: Tile) -> Future[_Got]:
    future: Future[_Got] = Future()
    future.set_result(_Got(tile))
    return future


_STATES: dict[int, _State] = {}
_MAKING = threading.Lock()


def _state() -> _State:
    """Of this process: what was forked has no threads, so it begins anew."""
    process = os.getpid()
    if process not in _STATES:
        with _MAKING:
            _STATES.setdefault(process, _State())
    return _STATES[process]
