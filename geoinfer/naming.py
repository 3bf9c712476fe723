"""The job's description and fingerprint, taken beside the first tiles: hashing a large image must not hold a run up.

A run directory belongs to a job once `run.json` says so. Until the imagery is hashed it cannot, so a run that dies before
that leaves tiles of nobody, which the next one drops; whatever ends it in order waits and writes `run.json` first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from geoinfer.job import Job, fingerprint
from geoinfer.store import Json
from geoinfer.trace import span

PATIENCE_S = 0.05
"""Imagery that is hashed within this time is named before the first tile."""


class Naming:
    """Describes a job on a thread of its own, for as long as the block lasts."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="geoinfer-snapshot")
        self._future: Future[tuple[Json, str]]
        self._open: Callable[[Json, str], Json] | None = None
        self._opened: Json | None = None

    def __enter__(self) -> Naming:
        self._future = self._pool.submit(self._describe)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()

    def _describe(self) -> tuple[Json, str]:
        with span("hash"):
            description = self._job.describe()
        return description, fingerprint(description)

    def result(self) -> tuple[Json, str]:
        """The description and its fingerprint; waits for them.

        Raises:
            SourceError: The imagery cannot be read, or changed meanwhile.
        """
        with span("snapshot"):
            return self._future.result()

    def then(self, open_run: Callable[[Json, str], Json]) -> None:
        """What to do with them, once; it is done now if they are known soon."""
        self._open = open_run
        with span("snapshot"):
            wait([self._future], PATIENCE_S)
        self.look()

    def look(self) -> None:
        """Do it if they are known by now and it was not done yet."""
        if self._opened is None and self._future.done():
            self.finish()

    def finish(self) -> Json:
        """Do it, if it was not done yet; what it gave."""
        if self._opened is None:
            assert self._open is not None
            self._opened = self._open(*self.result())
        return self._opened
