"""Addresses: what is one, how it may be shown, and whether its host may be reached. Sends nothing but questions to DNS.

An address out of a document (a STAC item, a redirect) could point at this machine or at its network: link-local metadata
services, routers, databases. So only public addresses are reached, unless the user named the host. Names are judged by all
the addresses they stand for; `geoinfer.remote.http` judges again those that it really connects to.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from geoinfer.errors import SafetyError, SourceError
from geoinfer.remote.access import Access

WEB = ("http", "https")
STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az"}
"""Schemes of object stores -> the one name of each."""
_PORTS = {"http": 80, "https": 443}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_SECRET",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "PC_SDK_SUBSCRIPTION_KEY",
)
"""Variables whose values are struck from any text."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:\-]*://)([^/?#\s]*)([^?#]*)")
_URL_WITHIN = re.compile(
    r"([A-Za-z][A-Za-z0-9+.\-]*://)(?:[^\s/?#@\"'<>]*@)?([^\s?#\"'<>]*)(\?[^\s#\"'<>]*)?(#[^\s\"'<>]*)?"
)
_NAMED_SECRET = re.compile(
    r"(?i)((?:x-amz-[\w-]+|[\w-]*(?:signature|secret|token|password|passwd|credential|api[-_]?key|access[-_]?key|"
    r"account[-_]?key|subscription[-_]?key)[\w-]*|\bsig|\bauthorization)[\"']?\s*[=:]\s*[\"']?)"
    r"((?:(?:bearer|basic|sharedkey|aws4-hmac-sha256)\s+)?[^\s&\"',;)}\]]+)"
)
_AWS_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_WIRE_SERVER = ipaddress.ip_address("168.63.129.16")
"""Azure's, which answers inside its machines: the one metadata address that looks public."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REMEMBERED_S = 30

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def scheme_of(text: str) -> str:
    """Lower case; empty where the text is no URL."""
    scheme, found, _ = text.partition("://")
    return scheme.lower() if found else ""


def is_remote(text: str) -> bool:
    """It is read over a network: http(s), or an object store (s3, gs, az, abfs)."""
    scheme = scheme_of(text)
    return scheme in WEB or scheme in STORES


def shown(url: str) -> str:
    """A URL without what may be secret: user, password, query and fragment. Any other text is returned as it is."""
    found = _URL.match(url)
    if found is None:
        return url
    is_store = found[1][:-3].lower() in STORES  # abfss://container@account: no secret
    return found[1] + (found[2] if is_store else found[2].rpartition("@")[2]) + found[3]


def basename(url: str) -> str:
    """Last part of the path; of a URL without its query, and decoded."""
    found = _URL.match(url)
    if found is None:
        return os.path.basename(url)
    return unquote(found[3].rstrip("/").rpartition("/")[2]) or found[2].rpartition("@")[2]


def redact(text: str) -> str:
    """Any text, with `***` for the queries and users of URLs, values of parameters that name secrets, and keys."""
    for name in _SECRETS:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")

    def plain(found: re.Match[str]) -> str:
        return found[1] + found[2] + ("?***" if found[3] else "")

    text = _URL_WITHIN.sub(plain, text)
    return _AWS_ID.sub("***", _NAMED_SECRET.sub(lambda found: found[1] + "***", text))


def typed_hosts(url: str) -> tuple[str, ...]:
    """`host:port` that a user allows by typing this URL; of an object store the end point that the environment names."""
    scheme = scheme_of(url)
    if scheme in STORES:
        endpoint = endpoint_of(scheme)
        return () if endpoint is None else typed_hosts(endpoint)
    if scheme not in WEB:
        return ()
    try:
        return (_host_and_port(url),)
    except SourceError:
        return ()


def endpoint_of(scheme: str, environment: Mapping[str, str] | None = None) -> str | None:
    """URL of an object store's end point where the environment names one."""
    known = os.environ if environment is None else environment
    value = next((known[name] for name in _ENDPOINTS[STORES[scheme]] if known.get(name)), None)
    return value if value is None or "://" in value else f"http://{value}"


def check_host(url: str, access: Access) -> None:
    """Refuse what may not be reached.

    Raises:
        SafetyError: A scheme that is none of ours, or a host that is this machine or on its network, and not allowed.
        SourceError: No address at all.
    """
    scheme = scheme_of(url)
    if scheme in STORES:
        return  # where these lead is said by the environment, not by the address
    if scheme not in WEB:
        raise SafetyError(f"{shown(url)[:200]}: refused, {scheme or 'it'} is no scheme that is read; use https or s3")
    host_port = _host_and_port(url)
    if is_allowed(host_port, access):
        return
    host, _, port = host_port.rpartition(":")
    for address in _resolve(host.strip("[]"), int(port), int(time.monotonic() // _REMEMBERED_S)):
        check_address(address, host_port)


def is_allowed(host_port: str, access: Access) -> bool:
    """The user named this host, or this port of it."""
    host = host_port.rpartition(":")[0]
    return any(_plain(name) in (host, host_port, host.strip("[]")) for name in access.hosts)


def check_address(address: str, host_port: str) -> None:
    """Refuse an address that is not a public one.

    Raises:
        SafetyError: Loopback, link-local, private, multicast, reserved, or a cloud's metadata service.
    """
    for ip in _meanings(ipaddress.ip_address(address.partition("%")[0])):
        if not ip.is_global or ip.is_multicast or ip == _WIRE_SERVER:
            raise SafetyError(
                f"{host_port}: refused, {ip} is this machine or on a private network; "
                f"if that is meant, say --allow-host {host_port}"
            )


def _meanings(ip: IP) -> Iterator[IP]:
    """An address, and the IPv4 addresses that it may stand for."""
    yield ip
    if isinstance(ip, ipaddress.IPv6Address):
        for inner in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())):
            if inner is not None:
                yield inner
        if ip in _NAT64:
            yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)


def host_port_of(url: str) -> str:
    """`host:port` of an http(s) URL, lower case, the port written out.

    Raises:
        SourceError: No host, or no such port.
    """
    return _host_and_port(url)


def _host_and_port(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SourceError(f"{shown(url)}: not an address: {error}") from error
    if not host or any(character in parts.netloc for character in "\\ \t\r\n"):
        raise SourceError(f"{shown(url)}: not an address: no host")
    host = host.rstrip(".")
    return f"[{host}]:{port or _PORTS[parts.scheme]}" if ":" in host else f"{host}:{port or _PORTS[parts.scheme]}"


def _plain(name: str) -> str:
    """An allowed host as it is compared: lower case, no scheme, no path."""
    name = name.lower().partition("://")[2] or name.lower()
    return name.partition("/")[0].rpartition("@")[2]


@lru_cache(maxsize=4096)
def _resolve(host: str, port: int, _period: int) -> tuple[str, ...]:
    """What a name stands for; () where nobody knows: then the connection fails, or a proxy decides.

    Spellings such as 2130706433 or 0x7f.1 are read as the C library reads them, so as a connection would.
    """
    try:
        return tuple(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return ()
