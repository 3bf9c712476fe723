"""What an address in a document may lead to.

A document may lead to http, https and object stores, within the rules for hosts; a local document also to files within the
folder of the one that the user named. Nothing else is followed: no `file:`, no GDAL virtual path, no other scheme. Reads
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urljoin

from geoinfer.errors import SafetyError, SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import check_host, is_remote, shown

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-_]+):")
_VIRTUAL = re.compile(r"/*vsi[a-z0-9_]*[/?]|\s*[<{\[]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document was read from, and so what its relative links mean."""

    address: str
    """URL or absolute path."""
    folder: str | None
    """Local documents: files in it may be read. None: no local file may be."""

    @classmethod
    def typed(cls, text: str) -> Origin:
        """That of a document that the user named."""
        if is_remote(text):
            return cls(text, None)
        path = Path(text).absolute()
        return cls(str(path), str(path.parent))

    def to(self, href: object, access: Access) -> Origin:
        """Where a link leads; errors as for `resolve`."""
        address = resolve(href, self, access)
        return Origin(address, None if is_remote(address) else self.folder)


def resolve(href: object, origin: Origin, access: Access) -> str:
    """The URL or absolute local path that an address in a document means.

    Raises:
        SafetyError: Another scheme, a host that is not allowed, or a file outside the document's folder.
        SourceError: Not an address.
    """
    name = shown(origin.address)
    if not isinstance(href, str) or not href.strip() or not href.isprintable():
        raise SourceError(f"{name}: {shown(str(href))[:80]!r} is not an address")
    if _VIRTUAL.match(href):
        raise SafetyError(f"{name}: refused, {shown(href)[:80]!r} is no plain file or URL")
    scheme = _SCHEME.match(href)
    if is_remote(href):
        address = href
    elif scheme is not None:
        raise SafetyError(f"{name}: refused, a document may not lead to {scheme[1]}: addresses ({shown(href)[:80]})")
    elif is_remote(origin.address):
        kind, _, rest = origin.address.partition("://")
        address = kind + urljoin("http://" + rest, href).removeprefix("http")  # urljoin knows no s3
    else:
        return _inside(href, origin)
    check_host(address, access)
    return address


def _inside(href: str, origin: Origin) -> str:
    """A local path that stays in the folder, whatever it goes through."""
    path = (Path(origin.address).parent / href).resolve()
    if origin.folder is None or not path.is_relative_to(Path(origin.folder).resolve()):
        raise SafetyError(f"{shown(origin.address)}: refused, {href[:80]!r} lies outside the folder of the document")
    return str(path)


def with_query(url: str, parameters: dict[str, str]) -> str:
    """A URL with more parameters."""
    if not parameters:
        return url
    base, hash_, fragment = url.partition("#")
    return f"{base}{'&' if '?' in base else '?'}{urlencode(parameters, safe=',/:')}{hash_}{fragment}"
