"""One question to a server, until there is an answer that counts: tries, signatures, and where an address has led before.

`http` and `objects` ask once; here is what their answers mean. An address that redirects is remembered for a short while, so
that a file behind one costs one request a range; what is remembered is judged anew by `http` each time.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from typing import TypeAlias

from geoinfer.errors import SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import STORES, check_host, scheme_of, shown
from geoinfer.remote.http import Answer, get
from geoinfer.remote.retry import Passing, persist

SPAN = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
"""Of `Content-Range`: first byte, last byte, size."""
_COUNT = (200, 206, 416)
_REFUSED = (401, 403, 409)
"""What servers say to an address without a signature, or with an old one (409: Azure's public access not permitted)."""
_WORDS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict", 410: "Gone"}
_REMEMBERED_S = 60.0

Range: TypeAlias = tuple[int, int]
"""(start, stop) in bytes."""


def ask(url: str, access: Access, span: Range | None, limit: int, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer that counts: its status is 200, 206 or 416.

    Args:
        url: http(s), s3, gs or az.
        access: By what right, and how often.
        span: What part; None: everything.
        limit: Bytes of the body, at most.
        headers: Of a request by http(s).

    Raises:
        SourceError: No such file, no right to it, or it changed.
        SafetyError: An address that may not be reached.
        RemoteError: No answer after all tries.
    """
    check_host(url, access)
    signed = url if access.signer is None else _sign(url, access, None)
    is_signed_again = False

    def ask_once(attempt: int) -> Answer:
        nonlocal signed, is_signed_again
        answer = _follow(signed, access, span, limit, headers or {}, attempt)
        if answer.status in _REFUSED and access.signer is not None and not is_signed_again:
            is_signed_again = True
            signed = _sign(url, access, signed)
            answer = _follow(signed, access, span, limit, headers or {}, attempt)
        if span is not None and answer.status == 206:
            _check_span(answer, span)
        return answer

    answer = persist(url, access, ask_once)
    if answer.status in _COUNT:
        return answer
    if answer.status == 412:
        raise changed(url)
    advice = "check the address"
    if answer.status in _REFUSED:
        advice = "its signature was renewed, in vain" if is_signed_again else "is it signed, and not expired?"
    said = f"{answer.status} {_WORDS.get(answer.status, '')}".strip()
    raise SourceError(f"{shown(url)}: the server says {said}; {advice}")


def changed(url: str) -> SourceError:
    """What is said of a file that is no longer the one that was opened."""
    return SourceError(f"{shown(url)}: changed while it was read; start again")


def _follow(url: str, access: Access, span: Range | None, limit: int, headers: Mapping[str, str], attempt: int) -> Answer:
    """Ask where the address led to last, and where it leads now if that is no longer right."""
    place = url if attempt else _led_to(url)
    answer = _send(place, access, span, limit, headers, attempt)
    if place != url and answer.status not in _COUNT:
        _LEADS.pop(url, None)
        place = url
        answer = _send(url, access, span, limit, headers, attempt)
    if answer.url != place:
        _LEADS[url] = answer.url, time.monotonic()
    return answer


def _send(url: str, access: Access, span: Range | None, limit: int, headers: Mapping[str, str], attempt: int) -> Answer:
    if scheme_of(url) in STORES:
        from geoinfer.remote.objects import get_object

        return get_object(url, access, span, limit)
    asked = dict(headers)
    if span is not None:
        asked["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    if attempt:
        asked["Cache-Control"] = "no-cache"  # nothing between us and the server is to give the same broken answer again
    return get(url, access, limit=limit, headers=asked, is_gzip_ok=span is None)


def _check_span(answer: Answer, span: Range) -> None:
    """The body is the part that was asked for, all of it."""
    found = SPAN.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None:
        return  # who opens the file says what is wrong
    start, last, size = (int(found[part]) for part in (1, 2, 3))
    if start != span[0] or last + 1 != min(span[1], size):
        raise Passing("another part than asked for")
    if len(answer.body) != last + 1 - start:
        raise Passing(f"{len(answer.body):,} bytes of {last + 1 - start:,}")


# --- state of the process ---------------------------------------------------------------------------------------------

_LEADS: dict[str, tuple[str, float]] = {}
"""Address -> where it redirected to, and when."""
_SIGNED: dict[tuple[str | None, str], str] = {}
"""(signer, address) -> the same with its last signature."""
_SIGNING = threading.Lock()


def _led_to(url: str) -> str:
    found = _LEADS.get(url)
    return url if found is None or time.monotonic() - found[1] > _REMEMBERED_S else found[0]


def _sign(url: str, access: Access, refused: str | None) -> str:
    """The address with a signature other than the refused one; a new one only where nobody else has renewed it since."""
    from geoinfer.remote.signing import resign, sign  # which fetches tokens with this package

    key = access.signer, url
    with _SIGNING:
        known = _SIGNED.get(key)
        if known is None or known == refused:
            _SIGNED[key] = known = sign(url, access) if refused is None else resign(url, access)
        return known


def _forget() -> None:
    """In a forked process: the lock may be held by a thread that is not ours."""
    global _SIGNING
    _SIGNING = threading.Lock()


os.register_at_fork(after_in_child=_forget)
