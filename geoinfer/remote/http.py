"""One GET over http or https: time limits, redirects one by one, hosts judged before anything is sent. Never tries twice.

A connection belongs to one of two kinds of pools. In the guarded one every address that a name leads to is judged right
before it is connected to, so a name that changes its meaning between check and use (DNS rebinding) leads nowhere. Hosts that
the user named use the other one. What drips slower than `FLOOR_BYTES_S` is cut off, headers and bodies alike, so a request
has an end whatever the server does.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, SSLError

from geoinfer.errors import SafetyError, SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import WEB, check_address, check_host, host_port_of, is_allowed, scheme_of, shown
from geoinfer.remote.meter import count_sent
from geoinfer.remote.retry import Passing, asked_wait_s, is_passing

FLOOR_BYTES_S = 2**10
"""Slower than this, after the first `Access.stall_s` seconds, counts as a stall."""
_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_REDIRECT_BYTES = 2**12
_KEPT = 64
"""Connections to one host that are kept open."""
_HEADERS = {"User-Agent": "geoinfer", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    url: str
    """After redirects; may hold secrets."""
    status: int
    headers: Mapping[str, str]
    """Whatever the case of the names."""
    body: bytes
    is_whole: bool
    """The body ended within the limit."""


def get(
    url: str,
    access: Access,
    *,
    limit: int,
    headers: Mapping[str, str] | None = None,
    is_gzip_ok: bool = False,
) -> Answer:
    """Ask once.

    Args:
        url: http or https.
        access: Hosts and time limits.
        limit: Bytes of the body to read, at most.
        headers: Beside our own.
        is_gzip_ok: The body may travel compressed; `limit` then holds for what comes out.

    Raises:
        Passing: No answer, one that breaks off, or a status that may pass.
        SafetyError: The address, or one that it redirects to, may not be reached.
        SourceError: No address, a certificate that is not trusted, or no end of redirects.
    """
    asked = {**_HEADERS, **(headers or {})}
    if is_gzip_ok:
        asked["Accept-Encoding"] = "gzip"
    place = url
    for _ in range(_REDIRECTS + 1):
        check_host(place, access)
        with slots(host_port_of(place), access.concurrency):
            response = _send(place, access, asked)
            try:
                target = response.headers.get("Location") if response.status in _MOVED else None
                if target is None:
                    return _answer_of(place, response, limit, is_gzip_ok)
                with suppress(HTTPError, OSError):
                    response.read(_REDIRECT_BYTES)  # so that the connection can be used again
            finally:
                response.close()  # only what was not read to its end
        before, place = place, urljoin(place, target)
        if scheme_of(place) not in WEB:
            raise SafetyError(f"{shown(before)}: refused, it redirects to what is no http(s) address")
        if host_port_of(place) != host_port_of(before):
            asked.pop("Authorization", None)
    raise SourceError(f"{shown(url)}: redirects more than {_REDIRECTS} times; check the address")


def _send(url: str, access: Access, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
    parts = urlsplit(url)
    sent = dict(headers)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent |= urllib3.util.make_headers(basic_auth=pair)
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    count_sent(requests=1)
    try:
        return _pool(url, access).request(
            "GET",
            url.partition("#")[0],
            headers=sent,
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(connect=access.connect_s, read=access.stall_s),
        )
    except (HTTPError, OSError) as error:
        raise _fault(url, error) from None


def _answer_of(url: str, response: urllib3.BaseHTTPResponse, limit: int, is_gzip_ok: bool) -> Answer:
    status = response.status
    if is_passing(status):
        raise Passing(f"{status} {response.reason or ''}".strip(), asked_wait_s(response.headers.get("Retry-After")))
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    is_packed = encoding in ("gzip", "x-gzip")
    if status < 300 and encoding != "identity" and not (is_gzip_ok and is_packed):
        raise SourceError(f"{shown(url)}: the server compresses the file ({encoding}), so parts of it cannot be read")
    try:
        if encoding == "identity" and 0 <= (response.length_remaining or -1) <= limit:
            body = response.read(decode_content=False)  # as it comes: with a limit urllib3 copies all of it once more
        else:
            body = response.read(limit + 1, decode_content=is_packed and is_gzip_ok)
    except (HTTPError, OSError) as error:
        raise _fault(url, error) from None
    count_sent(bytes=len(body))
    return Answer(url, status, response.headers, body[:limit], len(body) <= limit)


def _fault(url: str, error: BaseException) -> Exception:
    """A failure to connect or to read, as one that passes or not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SafetyError):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceError(
                f"{shown(url)}: its certificate is not trusted ({cause.verify_message}); name the authority in SSL_CERT_FILE"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, urllib3.exceptions.LocationParseError | urllib3.exceptions.LocationValueError):
        return SourceError(f"{shown(url)}: not an address")
    return Passing(_reason(error))


def _reason(error: BaseException) -> str:
    """In a few words, without the address."""
    if isinstance(error, NameResolutionError):
        return "no such host"
    if isinstance(error, urllib3.exceptions.ProxyError):
        return "the proxy does not answer"
    if isinstance(error, NewConnectionError):
        return "connection refused"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, TimeoutError | urllib3.exceptions.ReadTimeoutError):
        return "the server stalls"
    if isinstance(error, urllib3.exceptions.IncompleteRead) or "IncompleteRead" in str(error):
        return "the answer breaks off"
    if isinstance(error, SSLError | ssl.SSLError):
        return "no secure connection"
    if isinstance(error, ConnectionError | urllib3.exceptions.ProtocolError):
        return "the connection breaks off"
    return type(error).__name__


# --- connections ------------------------------------------------------------------------------------------------------


class _Paced(io.RawIOBase):
    """A socket's bytes, and an end to them where they come too slowly."""

    def __init__(self, inner: io.RawIOBase, stall_s: float) -> None:
        self._inner, self._stall_s = inner, stall_s
        self._began, self._count = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        late = time.monotonic() - self._began - self._stall_s
        if late > 0 and self._count < late * FLOOR_BYTES_S:
            raise TimeoutError(f"{self._count} bytes in {late + self._stall_s:.0f} s")
        count = self._inner.readinto(buffer)
        self._count += count or 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        stall_s = sock.gettimeout()
        if stall_s:
            raw: Any = self.fp.detach()
            self.fp = io.BufferedReader(_Paced(raw, stall_s), 2**16)


class _Plain(HTTPConnection):
    response_class = _Response


class _Secure(HTTPSConnection):
    response_class = _Response


class _Guard:
    """Connects to public addresses only."""

    def _new_conn(self) -> socket.socket:
        conn: Any = self
        host = conn._dns_host.strip("[]")
        try:
            found = socket.getaddrinfo(host, conn.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NameResolutionError(conn.host, conn, socket.gaierror(str(error))) from None
        end, fault = time.monotonic() + float(conn.timeout or 0), OSError("no address")
        for *_, address in found:
            check_address(str(address[0]), f"{conn.host}:{conn.port}")
        for family, kind, protocol, _, address in found:
            left = end - time.monotonic()
            if left <= 0:
                raise urllib3.exceptions.ConnectTimeoutError(conn, "timed out")
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(left)
                sock.connect(address)
                return sock
            except OSError as error:
                fault = error
                sock.close()
        if isinstance(fault, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(conn, "timed out")
        raise NewConnectionError(conn, str(fault))


class _GuardedPlain(_Guard, _Plain):
    pass


class _GuardedSecure(_Guard, _Secure):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class _GuardedPlainPool(HTTPConnectionPool):
    ConnectionCls = _GuardedPlain


class _GuardedSecurePool(HTTPSConnectionPool):
    ConnectionCls = _GuardedSecure


_OPEN = {"http": _PlainPool, "https": _SecurePool}
_GUARDED = {"http": _GuardedPlainPool, "https": _GuardedSecurePool}
_LOCK = threading.Lock()


def _pool(url: str, access: Access) -> urllib3.PoolManager:
    proxy = _proxy_of(url)
    return _manager(proxy, proxy is None and not is_allowed(host_port_of(url), access))


@lru_cache(maxsize=8)
def _manager(proxy: str | None, is_guarded: bool) -> urllib3.PoolManager:
    """Of this process; connections are kept by host."""
    authorities = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    options: Any = {"num_pools": 64, "maxsize": _KEPT, "ca_certs": authorities}
    manager = urllib3.PoolManager(**options) if proxy is None else urllib3.ProxyManager(proxy, **options)
    manager.pool_classes_by_scheme = dict(_GUARDED if is_guarded else _OPEN)
    return manager


def _proxy_of(url: str) -> str | None:
    """As the environment says; never for what is this machine by name."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return None
    proxies = urllib.request.getproxies()
    if not proxies or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


@lru_cache(maxsize=4096)
def _semaphore(_host_port: str, count: int) -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(count)


def slots(host_port: str, count: int) -> threading.BoundedSemaphore:
    """Requests to one host at a time."""
    with _LOCK:
        return _semaphore(host_port, count)


def _forget() -> None:
    """In a forked process: the parent's connections and locks are not ours."""
    global _LOCK
    _LOCK = threading.Lock()
    _manager.cache_clear()
    _semaphore.cache_clear()


os.register_at_fork(after_in_child=_forget)
