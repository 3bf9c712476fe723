"""Files behind addresses, by ranges of bytes: opened with one request, read by several at a time, always the same version.

Every answer is of the version that was opened, or there is an error. Nothing is kept: who asks twice fetches twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

from geoinfer.errors import SafetyError, SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import basename, shown
from geoinfer.remote.asking import SPAN, Range, ask, changed
from geoinfer.remote.http import Answer
from geoinfer.remote.meter import Sent, count_sent, sent

GAP_BYTES = 2**15
"""Ranges that lie no further apart are asked for as one."""
LONGEST_BYTES = 2**23
"""Ranges are not joined beyond this length."""
_HELPERS = 32
_ADVICE = "reading in place needs range requests, so download it first"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One version of a file on a server."""

    url: str = field(repr=False)
    """As it was given, with what may be secret."""
    size: int
    """Bytes."""
    etag: str | None
    """Without quotes and the mark of weak ones."""
    modified: str | None
    """`Last-Modified`, as the server writes it."""
    access: Access = field(repr=False)
    has_ranges: bool = True
    """The server gives parts of it; `open_file` lets no others through unless told so."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return basename(self.url)

    @property
    def shown(self) -> str:
        """The address without secrets, for messages."""
        return shown(self.url)

    @property
    def version(self) -> str:
        """What tells this version from others; `size:...` alone where the server says nothing better."""
        if self.etag is not None:
            return f"etag:{self.etag}"
        return f"size:{self.size}" if self.modified is None else f"modified:{self.modified};{self.size}"

    def check_ranges(self) -> None:
        """Refuse to read parts where there are none.

        Raises:
            SourceError: The server gives whole files only.
        """
        if not self.has_ranges:
            raise SourceError(f"{self.shown}: the server gives whole files only; {_ADVICE}")


def open_file(url: str, access: Access, head: int = 65536, *, is_whole_ok: bool = False) -> tuple[RemoteFile, bytes]:
    """Size, version and first bytes of a file, by one request.

    Args:
        url: http(s), s3, gs or az.
        access: By what right.
        head: Bytes from the beginning, at most.
        is_whole_ok: A server that gives no parts will do; the size is then -1 where it does not say one.

    Raises:
        SourceError: No such file, an empty one, no right to it, or a server that gives no parts of files.
        SafetyError: An address that may not be reached.
        RemoteError: No answer after all tries.
        ConfigError: An object store, and what reads those is not installed.
    """
    answer = ask(url, access, (0, head), head)
    if answer.status == 416:
        raise SourceError(f"{shown(url)}: empty file (0 bytes)")
    etag, modified = _version_of(answer.headers)
    if answer.status != 206:
        length = len(answer.body) if answer.is_whole else int(answer.headers.get("Content-Length") or -1)
        file = RemoteFile(url, length, etag, modified, access, has_ranges=False)
        if not is_whole_ok:
            file.check_ranges()
        return file, answer.body
    found = SPAN.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None:
        raise SourceError(f"{shown(url)}: the server does not say how long the file is; {_ADVICE}")
    return RemoteFile(url, int(found[3]), etag, modified, access), answer.body


def read_ranges(file: RemoteFile, ranges: Sequence[Range]) -> list[bytes]:
    """Parts of a file, in the order asked for; near ones by one request, requests side by side.

    Args:
        file: From `open_file`.
        ranges: (start, stop), within the file, in any order; they may overlap.

    Raises:
        SourceError: The file changed since it was opened, or is gone.
        SafetyError: The server redirects to what may not be reached.
        RemoteError: No answer after all tries.
    """
    return [bytes(part) for part in read_views(file, ranges)]


def read_views(file: RemoteFile, ranges: Sequence[Range]) -> list[memoryview]:
    """`read_ranges` without a copy: parts of one answer share its memory, all of which stays as long as any of them."""
    file.check_ranges()
    for start, stop in ranges:
        if not 0 <= start <= stop <= file.size:
            raise ValueError(f"bytes {start}-{stop} of a file of {file.size}")
    spans = join_ranges(ranges)
    parts = [_read(file, span) for span in spans] if len(spans) < 2 else _side_by_side(file, spans)
    content = {span: memoryview(part) for span, part in zip(spans, parts, strict=True)}
    return [_cut(content, spans, span) for span in ranges]


def join_ranges(ranges: Sequence[Range], gap: int = GAP_BYTES, longest: int = LONGEST_BYTES) -> list[Range]:
    """The requests that `read_ranges` makes: sorted, near ranges joined, none twice."""
    joined: list[Range] = []
    for start, stop in sorted({span for span in ranges if span[1] > span[0]}):
        if joined:
            first, last = joined[-1]
            if stop <= last:
                continue
            if start < last or (start <= last + gap and stop - first <= longest):
                joined[-1] = (first, stop)
                continue
        joined.append((start, stop))
    return joined


def read_all(file: RemoteFile, *, limit: int) -> bytes:
    """A file from its beginning to its end, whether or not the server gives parts.

    Raises:
        SourceError: The file changed since it was opened, or is gone.
        SafetyError: Larger than `limit` bytes.
        RemoteError: No answer after all tries.
    """
    answer = ask(file.url, file.access, None, limit)
    _check_version(file, answer)
    if not answer.is_whole:
        raise SafetyError(f"{file.shown}: refused, larger than {limit:,} bytes")
    return answer.body


def read_whole(
    url: str, access: Access, *, limit: int, accept: Sequence[str] = (), headers: Mapping[str, str] | None = None
) -> bytes:
    """A document from its beginning to its end.

    Args:
        url: http(s), s3, gs or az.
        access: By what right.
        limit: Bytes, at most, also of what was compressed on the way.
        accept: Media types to ask for.
        headers: Beside our own.

    Raises:
        SourceError: No such file, or no right to it.
        SafetyError: Larger than `limit`, or an address that may not be reached.
        RemoteError: No answer after all tries.
    """
    asked = {**({"Accept": ", ".join(accept)} if accept else {}), **(headers or {})}
    answer = ask(url, access, None, limit, asked)
    if not answer.is_whole:
        raise SafetyError(f"{shown(url)}: refused, larger than the {limit:,} bytes that a document may have")
    return answer.body


def _read(file: RemoteFile, span: Range) -> bytes:
    answer = ask(file.url, file.access, span, span[1] - span[0])
    _check_version(file, answer)
    if answer.status != 206:
        raise SourceError(f"{file.shown}: the server stopped giving parts of the file; {_ADVICE}")
    found = SPAN.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None or int(found[3]) != file.size:
        raise changed(file.url)
    return answer.body


def _check_version(file: RemoteFile, answer: Answer) -> None:
    etag, modified = _version_of(answer.headers)
    is_other = file.etag is not None and etag is not None and etag != file.etag
    if file.etag is None and modified is not None and file.modified is not None:
        is_other = modified != file.modified
    if is_other or answer.status == 416:
        raise changed(file.url)


def _cut(content: Mapping[Range, memoryview], spans: Sequence[Range], span: Range) -> memoryview:
    if span in content:
        return content[span]
    if span[0] == span[1]:
        return memoryview(b"")
    start, part = next((first, content[first, stop]) for first, stop in spans if first <= span[0] and span[1] <= stop)
    return part[span[0] - start : span[1] - start]


def _version_of(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """ETag and date of last change."""
    etag = (headers.get("ETag") or "").strip().removeprefix("W/").strip('"')
    return etag or None, headers.get("Last-Modified")


# --- side by side: state of the process -------------------------------------------------------------------------------


def _side_by_side(file: RemoteFile, spans: Sequence[Range]) -> list[bytes]:
    """Helpers fetch all but the last; what they counted is counted here, whether or not one failed."""

    def fetch(span: Range) -> bytes:
        before = sent()
        try:
            return _read(file, span)
        finally:
            tallies.append(Sent(*(after - known for after, known in zip(sent(), before, strict=True))))

    tallies: list[Sent] = []
    waiting: list[Future[bytes]] = [_helpers(os.getpid()).submit(fetch, span) for span in spans[:-1]]
    try:
        last = _read(file, spans[-1])
        return [*(future.result() for future in waiting), last]
    except Exception:
        for future in waiting:
            if not future.cancel():
                future.exception()  # waits: nothing is asked for behind the caller's back. An interrupt does not wait
        raise
    finally:
        for future in waiting:
            future.cancel()
        for tally in list(tallies):
            count_sent(*tally)


@lru_cache(maxsize=1)
def _helpers(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_HELPERS, "geoinfer-remote")


def _forget() -> None:
    """In a forked process: the parent's threads are not ours."""
    _helpers.cache_clear()


os.register_at_fork(after_in_child=_forget)
