"""A real STAC API for tests: stac-fastapi with pgstac under uvicorn, on a throw-away PostgreSQL with PostGIS.

Processes of their own; the database lies in a folder of its own below /tmp (a socket needs a short path) and listens on a
free port of the loopback. PostgreSQL refuses to run as root, so it then runs as `postgres` or `nobody`.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

_DEADLINE_S = 60
_FAST = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c shared_buffers=32MB -c max_connections=20"


@dataclass(frozen=True, slots=True)
class StacServer:
    """An API that runs."""

    address: str
    dsn: str

    def load(self, collections: Iterable[dict[str, Any]], items: Iterable[dict[str, Any]]) -> None:
        """Put collections and items in, or replace them."""
        from pypgstac.db import PgstacDB
        from pypgstac.load import Loader, Methods

        with PgstacDB(dsn=self.dsn) as database:
            loader = Loader(db=database)
            loader.load_collections(iter(collections), insert_mode=Methods.upsert)
            loader.load_items(iter(items), insert_mode=Methods.upsert)


def missing() -> str | None:
    """Why no server can be started here; None where it can."""
    if _programs() is None:
        return "PostgreSQL's initdb is not installed"
    if not any(Path("/usr/share/postgresql").glob("*/extension/postgis.control")):
        return "PostGIS is not installed"
    if os.geteuid() == 0 and _other_user() is None:
        return "root, and there is no user postgres or nobody to run PostgreSQL as"
    for module in ("pypgstac", "stac_fastapi.pgstac", "uvicorn", "psycopg"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed"
    return None


@contextmanager
def stac_server() -> Iterator[StacServer]:
    """A server without collections, while the block runs; the test is skipped where none can be started."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="gi-stac-", dir="/tmp"))
    try:
        with _postgres(folder) as dsn:
            _migrate(dsn)
            with _api(folder, dsn) as address:
                yield StacServer(address, dsn)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return Path(other).parent if other else None


def _other_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    programs, user = _programs(), _other_user() if os.geteuid() == 0 else None
    assert programs is not None
    who: dict[str, Any] = {}
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    cluster, port = folder / "cluster", _free_port()
    initdb = [programs / "initdb", "-D", cluster, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, env=environment, **who)
    server = [programs / "postgres", "-D", cluster, "-k", folder, "-h", "127.0.0.1", "-p", port, *_FAST.split()]
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    with (
        (folder / "postgres.log").open("wb") as log,
        subprocess.Popen(server, stdout=log, stderr=log, env=environment, **who) as process,
    ):
        try:
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", port, "-q"]
            _wait(process, lambda: subprocess.run(ready, env=environment).returncode == 0, folder / "postgres.log")
            yield dsn
        finally:
            process.terminate()  # smart shutdown would wait for the API's connections; these are closed by then
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _migrate(dsn: str) -> None:
    from pypgstac.db import PgstacDB
    from pypgstac.migrate import Migrate

    with PgstacDB(dsn=dsn) as database:
        Migrate(database).run_migration()


@contextmanager
def _api(folder: Path, dsn: str) -> Iterator[str]:
    port = _free_port()
    environment = {
        **os.environ,
        "PGUSER": "postgres",
        "PGPASSWORD": "unused",
        "PGHOST": "127.0.0.1",
        "PGPORT": urlsplit(dsn).netloc.rpartition(":")[2],
        "PGDATABASE": "postgres",
        "DB_MIN_CONN_SIZE": "1",
        "DB_MAX_CONN_SIZE": "2",
        "USE_API_HYDRATE": "FALSE",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "uvicorn",
        "stac_fastapi.pgstac.app:create_app",
        "--factory",
        "--port",
        str(port),
    ]
    with (
        (folder / "api.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            _wait(process, lambda: _answers(f"http://127.0.0.1:{port}/"), folder / "api.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return "links" in json.load(answer)
    except OSError:
        return False


def _wait(process: subprocess.Popen[bytes], is_ready: Any, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args}: did not start\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def item_of(path: Path, href: str, collection: str, taken: str, **properties: Any) -> dict[str, Any]:
    """The item of a GeoTIFF, as catalogs describe one (STAC 1.0: eo, raster, projection and file)."""
    import rasterio
    from rasterio.warp import transform_geom

    with rasterio.open(path) as file:
        west, south, east, north = file.bounds
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        footprint = transform_geom(file.crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]})
        xs, ys = zip(*footprint["coordinates"][0], strict=True)
        asset = {
            "href": href,
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data", "visual"],
            "eo:bands": [{"name": name, "common_name": name} for name in ("red", "green", "blue")][: file.count],
            "raster:bands": [{"data_type": file.dtypes[0], "nodata": file.nodata} for _ in range(file.count)],
            "proj:epsg": file.crs.to_epsg(),
            "proj:shape": list(file.shape),
            "proj:transform": list(file.transform)[:6],
            "file:size": path.stat().st_size,
        }
    thumbnail = {"href": href.rpartition(".")[0] + ".png", "type": "image/png", "roles": ["thumbnail"]}
    extensions = ("eo/v1.1.0", "raster/v1.1.0", "projection/v1.1.0", "file/v2.1.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        "id": path.stem,
        "collection": collection,
        "geometry": footprint,
        "bbox": [min(xs), min(ys), max(xs), max(ys)],
        "properties": {"datetime": taken, **properties},
        "links": [],
        "assets": {"image": asset, "thumbnail": thumbnail},
    }


def collection_of(name: str) -> dict[str, Any]:
    """A collection of anything, anywhere, at any time."""
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": f"Imagery for tests: {name}",
        "license": "other",
        "links": [],
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
    }
