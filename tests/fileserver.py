"""A small HTTP server for tests: files with ranges and ETags, and a few bad manners.

It runs in a process of its own: GDAL may hold Python's lock while it waits for an answer, and a server in a thread could
then never give one.
"""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    """Paths that begin with `to-file`, `moved/` or `busy` are answered with a redirect to a file:, a redirect, and 503."""

    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.partition("?")[0].lstrip("/")
        span = self.headers.get("Range")
        with server.log.open("a") as log:
            log.write(json.dumps([name, span]) + "\n")
        path = Path(server.root) / name
        if name.startswith("to-file"):
            self._redirect(f"file://{server.root}/w.geojson")
        elif name.startswith("moved/"):
            self._redirect("/" + name.removeprefix("moved/"))
        elif name.startswith("busy"):
            self.send_error(503)
        elif path.is_file():
            with suppress(ConnectionError):  # GDAL hangs up once it has seen the header
                self._send(path, span if server.ranges else None)
        else:
            self.send_error(404)

    def _redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def _send(self, path: Path, span: str | None) -> None:
        server: Any = self.server
        content = path.read_bytes()
        start, stop = 0, len(content)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", span or ""):
            start, stop = int(wanted[1]), min(len(content), int(wanted[2]) + 1) if wanted[2] else len(content)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        if server.etags:
            self.send_header("ETag", f'"{len(content)}-{path.stat().st_mtime_ns}"')
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *args: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    address: str
    log: Path

    @property
    def hits(self) -> list[tuple[str, str | None]]:
        """(path, Range) of each request so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)) for line in lines]


@contextmanager
def serve(root: Path, *, ranges: bool = True, etags: bool = True) -> Iterator[Served]:
    """Serve a folder while the block runs."""
    log = root / "requests.log"
    command = [sys.executable, __file__, str(root), str(int(ranges)), str(int(etags)), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(f"http://127.0.0.1:{process.stdout.readline().strip()}", log)
        finally:
            process.kill()


if __name__ == "__main__":
    running: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.root, running.ranges, running.etags, running.log = (
        sys.argv[1],
        sys.argv[2] == "1",
        sys.argv[3] == "1",
        Path(sys.argv[4]),
    )
    print(running.server_port, flush=True)
    running.serve_forever()
