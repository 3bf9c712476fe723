"""Two tile servers for tests, each in a process of its own: titiler over GeoTIFFs, and one that answers as it is told.

`show` runs titiler.core under uvicorn: `/tiles/{matrix set}/{z}/{x}/{y}.png?scene=NAME` of any GeoTIFF of a folder in any of
morecantile's matrix sets, and `/WMTSCapabilities.xml?scene=NAME`. `answer` serves the files of a folder with ETags, and says
what `rules.json` in it says: by path, or for `*`, a status (with `times`, only so often), headers, a delay, another file.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPABILITIES = """<?xml version="1.0" encoding="UTF-8"?>
<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1" version="1.0.0">
  <Contents>{layers}{sets}</Contents>
</Capabilities>"""
LAYER = """<Layer><ows:Identifier>{name}</ows:Identifier>
  <Style isDefault="true"><ows:Identifier>default</ows:Identifier></Style>
  <Format>image/png</Format>{links}
  <ResourceURL format="image/jpeg" resourceType="tile" template="/nowhere/{{TileMatrix}}/{{TileRow}}/{{TileCol}}"/>
  <ResourceURL format="image/png" resourceType="tile" template="{template}"/></Layer>"""
LINK = "<TileMatrixSetLink><TileMatrixSet>{name}</TileMatrixSet></TileMatrixSetLink>"
SET = """<TileMatrixSet><ows:Identifier>{name}</ows:Identifier>
  <ows:SupportedCRS>{crs}</ows:SupportedCRS>{levels}</TileMatrixSet>"""
LEVEL = """<TileMatrix><ows:Identifier>{name}</ows:Identifier><ScaleDenominator>{scale!r}</ScaleDenominator>
  <TopLeftCorner>{corner}</TopLeftCorner><TileWidth>{side}</TileWidth><TileHeight>{side}</TileHeight>
  <MatrixWidth>{cols}</MatrixWidth><MatrixHeight>{rows}</MatrixHeight></TileMatrix>"""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    address: str
    root: Path
    log: Path

    @property
    def hits(self) -> list[dict[str, Any]]:
        """Each request so far: path, status, how many were under way, when."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def host(self) -> str:
        return self.address.removeprefix("http://")

    def forget(self) -> None:
        """No request so far."""
        self.log.unlink(missing_ok=True)

    def tell(self, **rules: dict[str, Any]) -> None:
        """Set the rules, by path; `every` stands for all paths."""
        aside = self.root / "rules.part"
        aside.write_text(json.dumps({"*" if path == "every" else path: rule for path, rule in rules.items()}))
        aside.replace(self.root / "rules.json")
        self.forget()


@contextmanager
def show(root: Path) -> Iterator[Served]:
    """titiler over the GeoTIFFs of a folder."""
    yield from _run("titiler", root)


@contextmanager
def answer(root: Path) -> Iterator[Served]:
    """A server that does what it is told."""
    yield from _run("odd", root)


def _run(kind: str, root: Path) -> Iterator[Served]:
    log = Path(tempfile.mkdtemp()) / "requests.log"  # the folder may be anybody's
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, kind, str(root), str(log)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Served(f"http://127.0.0.1:{process.stdout.readline().strip()}", root, log)
        finally:
            process.kill()
            shutil.rmtree(log.parent, ignore_errors=True)


def capabilities(scene: str, names: tuple[str, ...]) -> str:
    """What a WMTS would say of a scene that titiler shows in some of morecantile's matrix sets."""
    import morecantile

    sets = []
    for name in names:
        found = morecantile.tms.get(name)
        levels = []
        for matrix in found.tileMatrices[:26]:
            corner = " ".join(f"{value:.10f}" for value in matrix.pointOfOrigin)
            levels.append(
                LEVEL.format(
                    name=matrix.id,
                    scale=matrix.scaleDenominator,
                    corner=corner,
                    side=matrix.tileWidth,
                    cols=matrix.matrixWidth,
                    rows=matrix.matrixHeight,
                )
            )
        sets.append(SET.format(name=name, crs=found.crs.srs, levels="".join(levels)))
    query = f"scene={scene}&amp;resampling=bilinear&amp;reproject=bilinear"
    template = f"/tiles/{{TileMatrixSet}}/{{TileMatrix}}/{{TileCol}}/{{TileRow}}.png?{query}"
    links = "".join(LINK.format(name=name) for name in names)
    layer = LAYER.format(name=scene, links=links, template=template)
    return CAPABILITIES.format(layers=layer, sets="".join(sets))


def _titiler(root: Path, log: Path) -> None:
    import socket

    import uvicorn
    from fastapi import FastAPI, Request, Response
    from titiler.core.errors import DEFAULT_STATUS_CODES, add_exception_handlers
    from titiler.core.factory import TilerFactory

    def path_of(scene: str) -> str:
        return str(root / scene)

    app = FastAPI()
    app.include_router(TilerFactory(path_dependency=path_of).router)
    add_exception_handlers(app, DEFAULT_STATUS_CODES)

    @app.middleware("http")
    async def write(request: Request, go_on: Any) -> Any:
        response = await go_on(request)
        _write(log, request.url.path, response.status_code, 1)
        return response

    @app.get("/WMTSCapabilities.xml")
    def wmts(scene: str, sets: str = "WebMercatorQuad") -> Response:
        return Response(capabilities(scene, tuple(sets.split(","))), media_type="application/xml")

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listening])


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers by the rules."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        path = self.path.partition("?")[0].lstrip("/")
        with server.lock:
            server.under_way += 1
            busy = server.under_way
        try:
            self._answer(path, busy)
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, path: str, busy: int) -> None:
        server: Any = self.server
        rules: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            rules = json.loads((server.root / "rules.json").read_text())
        rule = rules.get(path) or rules.get("*") or {}
        with server.lock:
            server.seen[json.dumps([path, rule])] += 1
            seen = server.seen[json.dumps([path, rule])]
        time.sleep(rule.get("delay", 0.0))
        if "times" in rule and seen > rule["times"]:
            rule = {}
        file = server.root / rule.get("file", path)
        headers = dict(rule.get("headers", {}))
        status = rule.get("status") or (200 if file.is_file() else 404)
        body = file.read_bytes() if status == 200 else b"" if status in (204, 304) else b"no"
        if status == 200 and rule.get("etag", True):
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            if self.headers.get("If-None-Match") == headers["ETag"]:
                status, body = 304, b""
        with server.lock:  # before the answer: who has it may look at the log
            _write(server.log, self.path, int(status), busy)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _write(log: Path, path: str, status: int, under_way: int) -> None:
    with log.open("a") as file:
        file.write(json.dumps({"path": path, "status": status, "under_way": under_way, "time": time.time()}) + "\n")


def _odd(root: Path, log: Path) -> None:
    running: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    running.root, running.log, running.lock = root, log, threading.Lock()
    running.under_way, running.seen = 0, Counter()
    print(running.server_port, flush=True)
    running.serve_forever()


if __name__ == "__main__":
    {"titiler": _titiler, "odd": _odd}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
