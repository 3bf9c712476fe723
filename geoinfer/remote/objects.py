"""One GET from an object store (S3, Google Cloud Storage, Azure) through obstore. Never tries twice.

Where a store is and by what right it is read says the environment, under the names that the vendors' own tools use; keys and
region may also stand in AWS's profile files. obstore is an extra, imported at the first object. It bounds a request as a
whole, so the limit grows with the bytes that were asked for. Its Rust threads do not survive a fork: a process that has read
objects may start others by `spawn` only, as Dask does.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from geoinfer.errors import ConfigError, SourceError
from geoinfer.remote.access import Access
from geoinfer.remote.address import STORES, endpoint_of, redact, scheme_of, shown
from geoinfer.remote.http import Answer, get, slots
from geoinfer.remote.meter import count_sent
from geoinfer.remote.retry import Passing, is_passing

_LENGTHS = (2**16, 2**20, 2**23)
"""Requests of up to so many bytes share a time limit."""
_FLOOR_BYTES_S = 2**16
_PLACE = re.compile(r"[A-Za-z0-9]+://([A-Za-z0-9][A-Za-z0-9._@-]{0,120})/+([^?#]+)")
_AZURE_HOST = re.compile(r"([a-z0-9-]+)@([a-z0-9]{3,24})\.(?:dfs|blob)\.core\.windows\.net")
_STATUS = re.compile(r"status code: (\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_PASSING_CODES = ("SlowDown", "RequestTimeout", "InternalError", "ServerBusy", "OperationTimedOut")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
"""How S3 says that a bucket is in another region."""
_METADATA = ("169.254.169.254", "metadata.google.internal", "[fd00:ec2::254]")
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST")
_PROFILE_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
}
REGION_SERVICE = "https://s3.amazonaws.com/"
"""What tells any bucket's region (header of every answer)."""
_REGIONS: dict[str, str] = {}
"""Bucket -> region, where it is another than the environment says."""
_USED_BY: list[int] = []
"""The process whose threads serve obstore; in one forked from it, a call would wait for ever."""


def get_object(url: str, access: Access, span: tuple[int, int] | None, limit: int) -> Answer:
    """Ask once; the answer has the shape of an HTTP answer.

    Raises:
        Passing: No answer, one that breaks off, or an error that may pass.
        SourceError: No such object, or no right to it.
        ConfigError: obstore is not installed, or the environment lacks what the store needs.
    """
    found = _PLACE.fullmatch(url.partition("?")[0].partition("#")[0])
    if found is None:
        raise SourceError(f"{shown(url)}: not an address: {scheme_of(url)}://BUCKET/KEY")
    kind, bucket, path = STORES[scheme_of(url)], found[1], found[2]
    with slots(f"{kind}://{bucket}", access.concurrency):
        answer = _get(_store_for(kind, bucket, access, limit), url, path, span, limit)
    if answer.status == 301 and kind == "s3" and endpoint_of("s3") is None and bucket not in _REGIONS:
        _REGIONS[bucket] = _region_of(bucket, access)
        with slots(f"{kind}://{bucket}", access.concurrency):
            answer = _get(_store_for(kind, bucket, access, limit), url, path, span, limit)
    return answer


def _get(store: Any, url: str, path: str, span: tuple[int, int] | None, limit: int) -> Answer:
    import obstore
    from obstore.exceptions import BaseError

    if _USED_BY and _USED_BY[0] != os.getpid():
        raise ConfigError(f"{shown(url)}: this process was forked from one that had read objects; start it by spawn instead")
    _USED_BY[:] = [os.getpid()]
    count_sent(requests=1)
    try:
        result = obstore.get(store, path, options={} if span is None else {"range": span})
        meta, (start, stop) = result.meta, result.range
        size = int(meta["size"])
        if span is None and size > limit:
            return Answer(url, 200, {}, b"", False)
        body = bytes(result.bytes())
    except (BaseError, OSError) as error:
        return _refusal(url, error)
    count_sent(bytes=len(body))
    headers = {"ETag": meta["e_tag"] or "", "Last-Modified": format_datetime(meta["last_modified"], usegmt=True)}
    if span is None:
        return Answer(url, 200, headers, body, True)
    return Answer(url, 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, body, True)


def _refusal(url: str, error: BaseException) -> Answer:
    """What obstore reports, as an answer, or as one of our errors."""
    from obstore import exceptions

    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    if any(place in text for place in _METADATA):
        raise SourceError(f"{shown(url)}: no credentials in the environment; {_CREDENTIALS}")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        raise SourceError(f"{shown(url)}: access denied{f' ({code})' if code else ''}; {_CREDENTIALS}")
    if isinstance(error, FileNotFoundError):
        raise SourceError(f"{shown(url)}: no such {'bucket' if code == 'NoSuchBucket' else 'object'}; check the address")
    if is_passing(status) or code in _PASSING_CODES:
        raise Passing(f"{status} {code}".strip())
    if code in _ELSEWHERE:
        return Answer(url, 301, {}, b"", True)
    if status:
        return Answer(url, status, {}, b"", True)
    for mark, known in (("BareRedirect", 301), ("NotPartial", 200), ("Precondition", 412)):
        if mark in text:
            return Answer(url, known, {}, b"", True)
    if "kind: Timeout" in text:
        raise Passing("the server stalls")
    if "kind: Interrupted" in text or "kind: Body" in text:
        raise Passing("the answer breaks off")
    if "kind: Connect" in text:
        raise Passing("no connection")
    raise SourceError(f"{shown(url)}: cannot be read: {redact(text.partition(chr(10))[0])[:200]}")


_CREDENTIALS = "check the keys in the environment, or say --aws-no-sign-requests where the store is public"


# --- stores: state of the process -------------------------------------------------------------------------------------


def _store_for(kind: str, bucket: str, access: Access, limit: int) -> Any:
    length = next((length for length in _LENGTHS if limit <= length), limit)
    timeout_s = access.stall_s + length / _FLOOR_BYTES_S
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)))
    return _store(
        kind,
        bucket,
        _REGIONS.get(bucket),
        access.sign_requests,
        access.requester_pays,
        access.connect_s,
        timeout_s,
        environment,
    )


@lru_cache(maxsize=64)
def _store(
    kind: str,
    bucket: str,
    region: str | None,
    sign_requests: bool,
    requester_pays: bool,
    connect_s: float,
    timeout_s: float,
    environment: tuple[tuple[str, str], ...],
) -> Any:
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise ConfigError(f"{kind}://{bucket}: object stores need obstore; pip install 'geoinfer[cloud]'") from error
    known = dict(environment)
    endpoint = endpoint_of(kind, known)
    options: dict[str, Any] = {
        "client_options": {
            "connect_timeout": timedelta(seconds=connect_s),
            "timeout": timedelta(seconds=timeout_s),
            "allow_http": endpoint is not None and endpoint.lower().startswith("http://"),
        },
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_s)},
    }
    if endpoint is not None:
        options["base_url" if kind == "gs" else "endpoint"] = endpoint
    if not sign_requests or (kind == "s3" and known.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")):
        options["skip_signature"] = True
    try:
        if kind == "gs":
            return stores.GCSStore(bucket, **options)
        if kind == "az":
            if found := _AZURE_HOST.fullmatch(bucket):
                bucket, options["account_name"] = found[1], found[2]
            return stores.AzureStore(bucket, **options)
        options |= _profile(known) | ({} if region is None else {"region": region})
        if requester_pays:
            options["request_payer"] = True
        return stores.S3Store(bucket, **options)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{kind}://{bucket}: {redact(str(error).partition(chr(10))[0])[:200]}") from None


def _profile(known: Mapping[str, str]) -> dict[str, str]:
    """Keys and region of AWS's profile files, each where the environment does not say it."""
    name = known.get("AWS_PROFILE") or known.get("AWS_DEFAULT_PROFILE") or "default"
    files = configparser.ConfigParser(interpolation=None)
    home = Path.home() / ".aws"
    read = files.read(
        [known.get("AWS_CONFIG_FILE") or home / "config", known.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"]
    )
    found: dict[str, str] = {}
    for section in (f"profile {name}", name):
        if files.has_section(section):
            found |= {
                key: files.get(section, text) for text, key in _PROFILE_KEYS.items() if files.has_option(section, text)
            }
    if not found and known.get("AWS_PROFILE"):
        raise ConfigError(f"AWS_PROFILE={name}: no such profile in {' or '.join(map(str, read)) or home}")
    if known.get("AWS_ACCESS_KEY_ID"):
        found = {key: value for key, value in found.items() if key == "region"}
    if known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION"):
        found.pop("region", None)
    return found


def _region_of(bucket: str, access: Access) -> str:
    answer = get(REGION_SERVICE + bucket, access, limit=0)
    region = answer.headers.get("x-amz-bucket-region")
    if not region:
        raise SourceError(f"s3://{bucket}: its region cannot be found out; set AWS_REGION")
    return region
