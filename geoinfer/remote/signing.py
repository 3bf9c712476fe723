"""Who makes addresses readable: tokens of the Planetary Computer, or a function that the user names.

An address is signed when it is read, never where it is kept, and once more when a server refuses it (403): tokens run out
within an hour.
The Planetary Computer's protocol: GET {service}/{account}/{container} gives a token and its expiry for every blob in it.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import os
import threading
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from geoinfer.errors import ConfigError, GeoinferError, RemoteError, SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import shown, typed_hosts
from geoinfer.remote.client import read_whole

PLANETARY_COMPUTER = "planetary-computer"
_SERVICE = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
_BLOBS = ".blob.core.windows.net"
_PUBLIC = ("ai4edatasetspublicassets",)
"""Accounts that need no token."""
_EARLY_S = 60.0
"""Tokens with less time left are not used."""
_MAX_BYTES = 2**16
_FRESH_S = 30.0
"""A token no older than this is not asked for again: whoever was refused had an older one."""
_tokens: dict[tuple[str, str, str], tuple[str, dt.datetime, dt.datetime]] = {}
"""(service, account, container) -> token, expiry and when it came, of this process."""
_lock = threading.Lock()


def sign(url: str, access: Access) -> str:
    """The address with what makes it readable; unchanged where nobody signs, or the signer has nothing to add.

    Raises:
        ConfigError: The signer cannot be found, or fails.
        SourceError: It gives no address.
        RemoteError: The token service gave up, or the signer met an error of the system or a network.
    """
    return _sign(url, access, again=False)


def resign(url: str, access: Access) -> str:
    """The same after a server refused the address: kept tokens and the signature in the address are thrown away."""
    return _sign(url, access, again=True)


def _sign(url: str, access: Access, *, again: bool) -> str:
    if access.signer is None:
        return url
    if access.signer == PLANETARY_COMPUTER:
        return _sign_blob(url, access, again=again)
    function = _find(access.signer)
    try:
        signed = function(url)
    except GeoinferError:
        raise
    except OSError as error:
        raise RemoteError(f"{shown(url)}: signer {access.signer} failed: {_told(error)}") from error
    except Exception as error:
        raise ConfigError(f"--sign {access.signer!r}: called with an address it fails: {_told(error)}") from error
    if not isinstance(signed, str) or urlsplit(signed).scheme != urlsplit(url).scheme:
        raise SourceError(f"{shown(url)}: signer {access.signer} gave no address of the same kind")
    return signed


def check_signer(access: Access) -> None:
    """Whether there is such a signer, before any address needs it.

    Raises:
        ConfigError: There is not.
    """
    if access.signer not in (None, PLANETARY_COMPUTER):
        _find(str(access.signer))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _find(name: str) -> Any:
    """The user's `module:function`."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function.isidentifier():
        raise ConfigError(f"--sign {name!r}: {PLANETARY_COMPUTER}, or module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--sign {name!r}: {error}; it must be importable (PYTHONPATH)") from error
    if not callable(found):
        raise ConfigError(f"--sign {name!r}: not a function")
    return found


def _sign_blob(url: str, access: Access, *, again: bool) -> str:
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    account = host.removesuffix(_BLOBS)
    container = parts.path.lstrip("/").partition("/")[0]
    if not host.endswith(_BLOBS) or account in _PUBLIC or not container or parts.scheme not in ("http", "https"):
        return url
    if parts.query and not again:
        return url  # signed already
    return urlunsplit(parts._replace(query=_token(account, container, access, again=again), fragment=""))


def _token(account: str, container: str, access: Access, *, again: bool) -> str:
    """Asked for once, however many threads want it."""
    service = os.environ.get("PC_SDK_SAS_URL", _SERVICE).rstrip("/")
    key = service, account, container
    with _lock:
        kept = _tokens.get(key)
        now = dt.datetime.now(dt.UTC)
        is_valid = kept is not None and (kept[1] - now).total_seconds() > _EARLY_S
        if kept is not None and is_valid and (not again or (now - kept[2]).total_seconds() < _FRESH_S):
            return kept[0]
        address = f"{service}/{account}/{container}"
        allowed = Access(
            hosts=(*access.hosts, *typed_hosts(service)),
            connect_s=access.connect_s,
            stall_s=access.stall_s,
            tries=access.tries,
            concurrency=access.concurrency,
        )
        try:
            answer = json.loads(read_whole(address, allowed, limit=_MAX_BYTES))
            token, expiry = str(answer["token"]), dt.datetime.fromisoformat(answer["msft:expiry"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{shown(address)}: gave no token ({type(error).__name__})") from error
        _tokens[key] = token, expiry if expiry.tzinfo else expiry.replace(tzinfo=dt.UTC), now
        return token


def _forget() -> None:
    """In a forked process: another thread of the parent may hold the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
