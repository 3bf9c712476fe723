"""Values that are costly to make, kept while there is room; each is made once, however many threads want it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from copy import copy
from functools import partial
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Cache(Generic[_Key, _Value]):
    """The values used last, shared by the threads of a process and bounded in bytes; travels empty.

    A thread that wants what another one is making waits for it. A value may ask another cache for what it is made of, never
    its own: so nobody can wait in a circle.
    """

    def __init__(self, capacity: int, size_of: Callable[[_Value], int]) -> None:
        """An empty cache.

        Args:
            capacity: Bytes; exceeded by a single value that is larger, and by what is in use or being made.
            size_of: Bytes of a value; a module's function, so that it can be pickled. Values of 0 bytes are not kept.
        """
        self._capacity, self._size_of = capacity, size_of
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._making: dict[_Key, Future[_Value]] = {}
        self._size = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache[_Key, _Value]], tuple[int, Callable[[_Value], int]]]:
        return Cache, (self._capacity, self._size_of)

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._size

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """The value of a key; made, outside the lock, where it is not there.

        Raises:
            Exception: What `make` raises, in each thread that waits for it. Failures are not kept.
        """
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                pending = self._making.get(key)
                if pending is None:
                    mine = self._making[key] = Future()
                    break
            try:
                return pending.result()
            except CancelledError:  # the maker was interrupted: that says nothing about the value
                continue
            except Exception as error:  # noqa: BLE001  # raised below
                fault = copy(error)  # each thread raises its own: tracebacks grow as exceptions travel
            raise fault
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, value)
        mine.set_result(value)
        return value

    def get_all(self, keys: Sequence[_Key], make: Callable[[list[_Key]], Sequence[_Value]]) -> list[_Value]:
        """The values of several keys, those that nobody has or makes made together by one call outside the lock.

        All of them are made before any that others make is waited for, so two threads cannot wait for each other.

        Raises:
            Exception: What `make` raises, in each thread that waits for one of its values.
        """
        found: dict[_Key, _Value] = {}
        mine: dict[_Key, Future[_Value]] = {}
        with self._lock:
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
                elif key not in self._making and key not in mine:
                    mine[key] = Future()
            self._making.update(mine)
        if mine:
            try:
                made = make(list(mine))
            except BaseException as error:
                with self._lock:
                    for key in mine:
                        del self._making[key]
                for future in mine.values():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                    else:
                        future.cancel()
                raise
            with self._lock:
                for key, value in zip(mine, made, strict=True):
                    del self._making[key]
                    self._keep(key, value)
                    found[key] = value
            for key, future in mine.items():
                future.set_result(found[key])
        return [found[key] if key in found else self.get(key, partial(_make_one, make, key)) for key in keys]

    def missing(self, keys: Iterable[_Key]) -> list[_Key]:
        """Those that are neither kept nor being made, at this moment."""
        with self._lock:
            return [key for key in keys if key not in self._values and key not in self._making]

    def put(self, key: _Key, value: _Value) -> None:
        """Keep a value that was made elsewhere, in place of what was kept."""
        self.drop([key])
        with self._lock:
            self._keep(key, value)

    def discard(self, is_stale: Callable[[_Key], bool]) -> None:
        """Forget the values of all keys of which something is true."""
        with self._lock:
            stale = [key for key in self._values if is_stale(key)]
        self.drop(stale)

    def resize(self, capacity: int) -> None:
        """Another capacity, bytes; forgets everything."""
        with self._lock:
            self._capacity, self._size = capacity, 0
            self._values.clear()

    def drop(self, keys: Iterable[_Key]) -> None:
        """Forget values that nobody will ask for again; those that are not kept do not matter."""
        with self._lock:
            for key in keys:
                value = self._values.pop(key, None)
                if value is not None:
                    self._size -= self._size_of(value)

    def grow(self, capacity: int) -> None:
        """At least this capacity, bytes; forgets nothing."""
        with self._lock:
            self._capacity = max(self._capacity, capacity)

    def _keep(self, key: _Key, value: _Value) -> None:
        size = self._size_of(value)
        if size:
            self._values[key] = value
            self._size += size
        while self._size > self._capacity and len(self._values) > 1:
            self._size -= self._size_of(self._values.popitem(last=False)[1])


def _make_one(make: Callable[[list[_Key]], Sequence[_Value]], key: _Key) -> _Value:
    return make([key])[0]
