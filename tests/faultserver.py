"""An HTTP file server with bad manners on demand: what it does wrong is said by path, and it keeps a log of every request.

    with faulty({"/a.tif": content}) as server:
        server.fault("/a.tif", status=503, times=2)     # two answers, then good manners
        url = server.url("/a.tif")

The server runs in threads of this process on a port of its own; `python tests/faultserver.py FOLDER [LATENCY_S]` serves a
folder from a process of its own (for readers that hold Python's lock, and for benchmarks) and prints its port.
"""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_DATE = 1_700_000_000


@dataclass(slots=True)
class Fault:
    """What goes wrong; everything that is set happens."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside or instead of the usual, such as `Retry-After` or `Location`."""
    body: bytes | None = None
    """Sent in place of the content, with a good status."""
    short: int | None = None
    """Bytes of the body before the connection is closed, though `Content-Length` promised all."""
    reset: int | None = None
    """As `short`, with a TCP reset."""
    stall: int | None = None
    """Bytes of the body before nothing comes any more, until the server stops or `stall_s` are over."""
    stall_s: float = 600.0
    drip_s: float | None = None
    """Seconds between single bytes of the body."""
    drip_head_s: float | None = None
    """Seconds between single bytes of a header that has no end."""
    corrupt: tuple[int, int] | None = None
    """Bytes (start, stop) of the file that are inverted, whatever the range asked for."""
    no_range: bool = False
    """`Range` is ignored: 200 and everything."""
    no_etag: bool = False
    no_date: bool = False
    etag: str | None = None
    """Sent in place of the content's own, quotes included."""
    redirect: str | None = None
    """Target of a 302."""
    latency_s: float = 0.0
    """Before the answer."""
    hang: bool = False
    """No answer at all."""
    wrong_range: bool = False
    """206 with the content of another range."""
    times: int | None = None
    """So many requests; None: for ever."""
    after: int = 0
    """Requests that are answered well before."""
    at_least: int = 0
    """Only requests that ask for a range which begins here or later."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One request."""

    path: str
    """Without its query, decoded."""
    query: str
    span: tuple[int, int] | None
    """(start, stop) asked for."""
    headers: dict[str, str]
    """Names in lower case."""
    at_s: float


@lru_cache(maxsize=64)
def _digest(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()  # a bytes object keeps its own hash, so this is paid once


class Server:
    """A server that runs; files may be changed at any time."""

    def __init__(self, files: Mapping[str, bytes] | Path, latency_s: float = 0.0) -> None:
        self.files: dict[str, bytes] = {} if isinstance(files, Path) else dict(files)
        self.root = files if isinstance(files, Path) else None
        self.latency_s = latency_s
        self.hits: list[Hit] = []
        self.most_at_once = 0
        self.stopped = threading.Event()
        self._read: dict[str, tuple[tuple[int, int], bytes]] = {}
        self._at_once = 0
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.owner = self

    @property
    def port(self) -> int:
        return int(self._http.server_port)

    @property
    def host(self) -> str:
        """As `Access.hosts` wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"http://{self.host}"

    def url(self, path: str) -> str:
        return self.address + path

    def fault(self, path: str = "*", **what: Any) -> Fault:
        """Let a path (`*`: every path) go wrong; faults of one path that are still due happen one after the other."""
        fault = Fault(**what)
        with self._lock:
            self._faults.setdefault(path, []).append(fault)
        return fault

    def heal(self) -> None:
        """No faults from now on."""
        with self._lock:
            self._faults.clear()

    def count(self, path: str | None = None) -> int:
        """Requests so far."""
        return sum(path in (None, hit.path) for hit in list(self.hits))

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._http.hang_up()

    # --- for the handler ---

    def content_of(self, path: str) -> bytes | None:
        if self.root is None:
            return self.files.get(path)
        file = self.root / path.lstrip("/")
        if not file.is_file() or not file.resolve().is_relative_to(self.root.resolve()):
            return None
        stamp = file.stat().st_mtime_ns, file.stat().st_size
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = stamp, file.read_bytes()
        return known[1]

    def enter(self, hit: Hit) -> Fault:
        """Log a request; what goes wrong with it."""
        with self._lock:
            self.hits.append(hit)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            for path in (hit.path, "*"):
                for fault in self._faults.get(path, ()):
                    if fault.times == 0 or (fault.at_least and (hit.span is None or hit.span[0] < fault.at_least)):
                        continue
                    if fault.after:
                        fault.after -= 1
                        break
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return Fault()

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    owner: Server

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.clients: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.clients.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """On all clients, also those that keep a connection for later."""
        for client in list(self.clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Listener

    def do_GET(self) -> None:
        owner = self.server.owner
        path, _, query = self.path.partition("?")
        path = unquote(path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = (int(wanted[1]), int(wanted[2]) + 1) if wanted else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = owner.enter(Hit(path, query, span, headers, time.monotonic()))
        try:
            with suppress(ConnectionError):
                self._answer(owner, fault, path, span)
        finally:
            owner.leave()

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, owner: Server, fault: Fault, path: str, span: tuple[int, int] | None) -> None:
        owner.stopped.wait(fault.latency_s or owner.latency_s)
        content = owner.content_of(path) if fault.body is None else fault.body
        if fault.hang:
            self._wait(fault.stall_s)
        elif fault.drip_head_s is not None:
            self._drip_head(fault.drip_head_s)
        elif fault.redirect is not None:
            self._head(fault.status or 302, 0, {"Location": fault.redirect, **fault.headers})
        elif fault.status is not None and not 200 <= fault.status < 300:
            text = b"" if fault.body is None else fault.body
            self._head(fault.status, len(text), fault.headers)
            self.wfile.write(text)
        elif content is None:
            self._head(404, 0, {})
        else:
            self._content(fault, content, None if fault.no_range else span)

    def _content(self, fault: Fault, content: bytes, span: tuple[int, int] | None) -> None:
        headers = {"Accept-Ranges": "none" if fault.no_range else "bytes"}
        if not fault.no_etag:
            headers["ETag"] = fault.etag or f'"{_digest(content)}"'
        if not fault.no_date:
            headers["Last-Modified"] = formatdate(_DATE, usegmt=True)
        size, (start, stop) = len(content), span or (0, len(content))
        if span is not None and start >= size:
            return self._head(416, 0, {"Content-Range": f"bytes */{size}"})
        stop = min(stop, size)
        if span is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if fault.wrong_range:
            headers["Content-Range"] = f"bytes 0-{stop - start - 1}/{size}"
            start, stop = 0, stop - start
        self._head(fault.status or (200 if span is None else 206), stop - start, {**headers, **fault.headers})
        if self.command == "HEAD":
            return None
        if fault.corrupt is not None:
            first, last = fault.corrupt
            content = content[:first] + bytes(255 - byte for byte in content[first:last]) + content[last:]
        return self._body(fault, content[start:stop])

    def _body(self, fault: Fault, body: bytes) -> None:
        cut = next((length for length in (fault.short, fault.reset, fault.stall) if length is not None), None)
        if fault.drip_s is not None:
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                self.wfile.flush()
                if self._wait(fault.drip_s):
                    return
            return
        self.wfile.write(body if cut is None else body[:cut])
        self.wfile.flush()
        if cut is None:
            return
        self.close_connection = True
        if fault.stall is not None:
            self._wait(fault.stall_s)
        if fault.reset is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip_head(self, pause_s: float) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self._wait(pause_s):
            self.wfile.write(b".")
            self.wfile.flush()

    def _wait(self, seconds: float) -> bool:
        """The server stopped meanwhile; the connection is not used again."""
        self.wfile.flush()
        self.close_connection = True
        return self.server.owner.stopped.wait(seconds)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def faulty(files: Mapping[str, bytes] | Path, latency_s: float = 0.0) -> Iterator[Server]:
    """Serve files (path that begins with `/` -> content, or a folder) while the block runs."""
    server = Server(files, latency_s)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


if __name__ == "__main__":
    running = Server(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    print(running.port, flush=True)
    running.serve()
