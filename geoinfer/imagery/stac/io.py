"""pystac and pystac-client, made to read through `geoinfer.remote`: its time limits, tries, rules for hosts and sizes.

The one place that imports them: they are the optional packages of `geoinfer[stac]`. Knows documents, not what is in them.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geoinfer.errors import ConfigError, GeoinferError, SourceError
from geoinfer.imagery.stac.links import Origin, resolve, with_query
from geoinfer.remote.access import Access
from geoinfer.remote.address import is_remote, shown
from geoinfer.remote.client import read_whole

try:
    import pystac
    from pystac_client import Client, ItemSearch
    from pystac_client.conformance import ConformanceClasses
    from pystac_client.stac_api_io import StacApiIO
except ImportError as error:
    raise ConfigError(f"STAC needs packages that are not installed ({error.name}): pip install 'geoinfer[stac]'") from error

__all__ = ["Client", "ConformanceClasses", "GuardedIO", "ItemSearch", "pystac", "quiet", "read_document"]

MAX_BYTES = 64 * 2**20
"""Largest JSON document."""
MAX_TABLE_BYTES = 512 * 2**20
"""Largest stac-geoparquet."""
_TYPES = ("application/geo+json", "application/json")


class GuardedIO(StacApiIO):
    """Reads what one document that the user named leads to. May be used by several threads."""

    def __init__(self, origin: Origin, access: Access) -> None:
        super().__init__(max_retries=None)
        self.origin = origin
        self.access = access
        self.document = read_document(origin, access)
        """What the user named; not read again."""
        self.page = origin
        """Of a search: the last page that was read."""
        self._pages: set[str] = set()

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """A document, by URL, path or link to a next page."""
        del args
        if isinstance(source, pystac.Link):
            return self.request(
                source.get_href(transform_href=False) or "", method=source.extra_fields.get("method") or "GET"
            )
        return self.request(str(source), **kwargs)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The answer to a GET.

        Raises:
            SourceError: A page that was read before, or one that wants a POST.
            SafetyError: An address that may not be read.
        """
        del headers
        name = shown(self.origin.address)
        if str(method or "GET").upper() != "GET":
            raise SourceError(f"{name}: its next page wants a {method} though the search was a GET; is this a STAC API?")
        asked = {key: str(value) for key, value in (parameters or {}).items()}
        page = Origin(with_query(resolve(href, self.page, self.access), asked), self.origin.folder)
        if method is not None:
            if page.address in self._pages:
                raise SourceError(f"{name}: its pages have no end, one leads back to itself; take fewer with --max-items")
            self._pages.add(page.address)
            self.page = page
        found = self.document if page.address == self.origin.address else read_document(page, self.access)
        return json.dumps(found)

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `read_document` parses, whichever faster parser is installed."""
        del args, kwargs
        value: dict[str, Any] = json.loads(txt)
        return value


def read_document(origin: Origin, access: Access) -> dict[str, Any]:
    """A JSON document, or the rows of a stac-geoparquet as an item collection.

    Raises:
        SourceError: Missing, too large, or neither.
        RemoteError: A remote gave up.
    """
    name = shown(origin.address)
    is_table = urlsplit(origin.address).path.lower().endswith((".parquet", ".geoparquet"))
    limit = MAX_TABLE_BYTES if is_table else MAX_BYTES
    if is_remote(origin.address):
        content = read_whole(origin.address, access, limit=limit, accept=() if is_table else _TYPES)
    else:
        content = _read_local(Path(origin.address), limit)
    if content[:4] == b"PAR1":
        return {"type": "FeatureCollection", "features": _read_table(content, name)}
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name}: not a JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{name}: not a STAC document: a {type(value).__name__}, not an object")
    return value


def _read_local(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise SourceError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= limit else None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content is None:
        raise SourceError(f"{path}: {size / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f} MiB; use several files")
    return content


def _read_table(content: bytes, name: str) -> list[dict[str, Any]]:
    """The items of a stac-geoparquet, in the order of its rows."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from stac_geoparquet.arrow import stac_table_to_items
    except ImportError as error:
        raise ConfigError(f"{name}: needs {error.name}, which is not installed: pip install 'geoinfer[stac]'") from error
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()
        missing = {"id", "assets", "geometry"} - set(table.column_names)
        if missing:
            raise SourceError(f"{name}: not a stac-geoparquet, it has no column {sorted(missing)[0]!r}")
        return list(stac_table_to_items(table))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, GeoinferError):
            raise
        raise SourceError(f"{name}: not a stac-geoparquet that can be read: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries warn of: deprecated items, and what an API says that it cannot do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
