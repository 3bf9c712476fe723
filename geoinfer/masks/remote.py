"""Files behind http and https: which version they are, and their bytes by range. Knows no format.

Everything has a time limit and a few tries. A redirect may lead to another http(s) address and nowhere else: no handler for
any other scheme is installed, and libcurl, which GDAL reads with, refuses others on its own.
"""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from geoinfer.errors import RemoteError, SafetyError, SourceError

TIMEOUT_S = 30
"""Longest wait for an answer or for the next bytes, seconds."""
_TRIES = 3
_PAUSE_S = 0.5
_CHUNK = 2**16
_SLOWEST_BYTES_S = 2**10
_HEAD_BYTES = 2**10


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on a server, as it was when looked at."""

    url: str
    """After redirects."""
    size: int
    """Bytes."""
    version: str
    """etag:... or modified:...;bytes."""
    head: bytes
    """First bytes."""
    ranges: bool
    """The server gives parts of the file."""


def shown(url: str) -> str:
    """A URL without what may be a secret: user and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def look(url: str) -> Remote:
    """Ask for the first bytes.

    Raises:
        SourceError: The server says that there is no such file, or cannot tell versions apart.
        RemoteError: No answer after several tries.
    """
    with _ask(url, (0, _HEAD_BYTES)) as answer:
        head = answer.read(_HEAD_BYTES)
        ranges = answer.status == 206
        length = str(answer.headers.get("Content-Range" if ranges else "Content-Length", "")).rpartition("/")[2]
        size = int(length) if length.isdigit() else len(head) if len(head) < _HEAD_BYTES else -1
        return Remote(answer.url, size, _version_of(url, answer, size), head, ranges)


def open_stream(remote: Remote) -> io.BufferedIOBase:
    """The whole file from its beginning, as it comes; close it."""
    answer: io.BufferedIOBase = _ask(remote.url, None)
    _check_version(remote, answer)
    return answer


def open_ranges(remote: Remote) -> io.BufferedReader:
    """A seekable file over range requests.

    Raises:
        SourceError: The server has no ranges.
    """
    if not remote.ranges or remote.size < 0:
        raise SourceError(f"{shown(remote.url)}: the server gives no parts of a file (no range requests); download it first")
    return io.BufferedReader(_Ranges(remote), 2**18)


def vsi_path(remote: Remote) -> str:
    """What GDAL reads a URL with, its limits in the path: GDAL's own options would be those of the whole process."""
    options = f"max_retry={_TRIES - 1}&retry_delay=1&connecttimeout={TIMEOUT_S}&timeout={4 * TIMEOUT_S}"
    return f"/vsicurl?{options}&use_head=no&empty_dir=yes&url={quote(remote.url, safe='')}"


class _Ranges(io.RawIOBase):
    """Reads parts of one version of a file."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._at = remote, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._remote.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._remote.size - self._at)
        if wanted <= 0:
            return 0
        content = _get(self._remote, self._at, self._at + wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _get(remote: Remote, start: int, stop: int) -> bytes:
    for attempt in range(_TRIES):
        began, parts, count = time.monotonic(), [], 0
        try:
            with _ask(remote.url, (start, stop)) as answer:
                _check_version(remote, answer)
                if answer.status != 206:
                    raise SourceError(f"{shown(remote.url)}: the server stopped giving parts of the file; download it first")
                while count < stop - start and (part := answer.read(min(_CHUNK, stop - start - count))):
                    parts.append(part)
                    count += len(part)
                    late = time.monotonic() - began - TIMEOUT_S
                    if late > 0 and count < late * _SLOWEST_BYTES_S:
                        raise TimeoutError(f"{count} bytes in {late + TIMEOUT_S:.0f} s")
            if count == stop - start:
                return b"".join(parts)
            cause: Exception = EOFError(f"{count} of {stop - start} bytes")
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            cause = error
        time.sleep(_PAUSE_S * 2**attempt)
    raise RemoteError(f"{shown(remote.url)}: broke off {_TRIES} times ({cause}); try again later") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, with a message of our own."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise SafetyError(f"{shown(req.full_url)}: refused, it redirects to what is no http(s) address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _ask(url: str, span: tuple[int, int] | None) -> Any:
    """The answer to a GET, of bytes start..stop-1 where given."""
    headers = {"User-Agent": "geoinfer", "Accept-Encoding": "identity"}
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        try:
            return _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    raise SourceError(f"{shown(url)}: empty file (0 bytes)") from None
                if 300 <= error.code < 400:  # urllib's own handler gave up
                    raise SafetyError(f"{shown(url)}: refused, it redirects to what is no http(s) address") from None
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise SourceError(
                        f"{shown(url)}: the server says {error.code} {error.reason}; check the address"
                    ) from None
                reason = f"{error.code} {error.reason}"
        except (SourceError, SafetyError):
            raise
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            raise SourceError(f"{shown(url)}: not an address: {error}") from error
    raise RemoteError(f"{shown(url)}: no answer after {_TRIES} tries ({reason}); check the address or try again later")


def _version_of(url: str, answer: Any, size: int) -> str:
    if etag := answer.headers.get("ETag"):
        return "etag:" + str(etag).removeprefix("W/").strip('"')
    if (modified := answer.headers.get("Last-Modified")) and size >= 0:
        return f"modified:{modified};{size}"
    raise SourceError(f"{shown(url)}: neither ETag nor Last-Modified, so its version cannot be told; download it first")


def _check_version(remote: Remote, answer: Any) -> None:
    size = remote.size if answer.status == 206 else int(answer.headers.get("Content-Length", remote.size))
    if _version_of(remote.url, answer, size) != remote.version:
        answer.close()
        raise SourceError(f"{shown(remote.url)}: changed while it was read; start again")
