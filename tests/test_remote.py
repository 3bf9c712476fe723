"""Bytes from elsewhere are the file's bytes, or there is one clear error, and never a hang."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import ConfigError, GeoinferError, RemoteError, SafetyError, SourceError
from geoinfer.remote import address, objects, retry
from geoinfer.remote.access import Access
from geoinfer.remote.address import basename, check_host, is_remote, redact, shown, typed_hosts
from geoinfer.remote.client import GAP_BYTES, LONGEST_BYTES, RemoteFile, join_ranges, open_file, read_ranges, read_whole
from geoinfer.remote.meter import Sent, sent
from geoinfer.remote.stream import copy, open_seekable, open_stream
from tests.faultserver import Server, faulty
from tests.s3server import SECRET, serve_s3

SIZE = 400_000
CONTENT = random.Random(6).randbytes(SIZE)
FAR = (200_000, 260_000)
"""A range that no first request reads."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    with faulty({"/a.tif": CONTENT, "/empty.tif": b"", "/small.tif": b"II*\0"}) as running:
        yield running


def access_to(server: Server, **more: Any) -> Access:
    return Access(**{"hosts": (server.host,), "connect_s": 2.0, "stall_s": 0.4, "tries": 3, **more})


def opened(server: Server, path: str = "/a.tif", **more: Any) -> RemoteFile:
    return open_file(server.url(path), access_to(server, **more))[0]


def spent(before: Sent) -> Sent:
    return Sent(*(now - then for now, then in zip(sent(), before, strict=True)))


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_file_is_opened_with_one_request(server: Server) -> None:
    before = sent()
    file, head = open_file(server.url("/a.tif?sig=secret#x"), access_to(server), 1000)
    assert (file.size, head, file.name) == (SIZE, CONTENT[:1000], "a.tif")
    assert file.version.startswith("etag:")
    assert server.count() == 1
    assert spent(before) == Sent(1, 1000, 0)
    assert file.shown == server.url("/a.tif")
    assert "secret" not in repr(file) + str(file) + file.version


def test_a_file_that_is_shorter_than_the_head_is_whole_in_it(server: Server) -> None:
    file, head = open_file(server.url("/small.tif"), access_to(server))
    assert (file.size, head) == (4, b"II*\0")


def test_an_empty_file_is_said_to_be_empty(server: Server) -> None:
    with pytest.raises(SourceError, match=r"empty\.tif: empty file"):
        opened(server, "/empty.tif")


def test_without_an_etag_the_date_and_the_size_tell_versions(server: Server) -> None:
    server.fault(no_etag=True)
    assert opened(server).version == f"modified:Tue, 14 Nov 2023 22:13:20 GMT;{SIZE}"


spans = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 70_000)), max_size=12)


@given(spans)
def test_joined_ranges_cover_what_was_asked_for_and_are_apart(drawn: list[tuple[int, int]]) -> None:
    ranges = [(start, min(start + length, SIZE)) for start, length in drawn]
    joined = join_ranges(ranges)
    assert all(any(a <= start and stop <= b for a, b in joined) for start, stop in ranges if stop > start)
    assert all(stop + GAP_BYTES < start for (_, stop), (start, _) in pairwise(joined))
    assert {edge for span in joined for edge in span} <= {edge for span in ranges for edge in span}


def test_joined_ranges_have_a_longest_length() -> None:
    step = 2**20
    joined = join_ranges([(place * step, (place + 1) * step) for place in range(20)])
    assert all(stop - start <= LONGEST_BYTES for start, stop in joined)
    assert sum(stop - start for start, stop in joined) == 20 * step
    assert join_ranges([(0, 2 * LONGEST_BYTES), (5, 10)]) == [(0, 2 * LONGEST_BYTES)]


@settings(max_examples=30, deadline=None)
@given(drawn=spans)
def test_ranges_are_the_bytes_of_the_file_in_the_order_asked_for(drawn: list[tuple[int, int]]) -> None:
    ranges = [(start, min(start + length, SIZE)) for start, length in drawn]
    with faulty({"/a.tif": CONTENT}) as server:
        file = opened(server)
        before, hits = sent(), server.count()
        assert read_ranges(file, ranges) == [CONTENT[start:stop] for start, stop in ranges]
        joined = join_ranges(ranges)
        assert server.count() - hits == len(joined)
        assert spent(before) == Sent(len(joined), sum(stop - start for start, stop in joined), 0)


def test_ranges_beyond_the_file_are_a_mistake_of_the_caller(server: Server) -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_ranges(opened(server), [(0, SIZE + 1)])


def test_streams_and_copies_are_the_file(server: Server, tmp_path: Path) -> None:
    file = opened(server)
    with open_seekable(file) as stream:
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == CONTENT[-10:]
        stream.seek(100)
        assert stream.read(5) == CONTENT[100:105]
    with open_stream(file) as whole:
        assert whole.read() == CONTENT
    copy(file, tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == CONTENT


def test_a_file_travels_between_processes_and_keeps_its_rights(server: Server) -> None:
    file = pickle.loads(pickle.dumps(opened(server)))
    assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]


def _child(file: RemoteFile, pipe: Any) -> None:
    pipe.send(read_ranges(file, [(0, 5), FAR]) == [CONTENT[:5], CONTENT[slice(*FAR)]])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_reads_with_connections_of_its_own(server: Server) -> None:
    file = opened(server)
    read_ranges(file, [(0, 5), FAR])
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(file, theirs))
    process.start()
    assert ours.poll(20)
    assert ours.recv()
    process.join(20)


def test_many_threads_read_side_by_side_within_the_limit_and_each_counts_its_own() -> None:
    with faulty({"/a.tif": CONTENT}, latency_s=0.01) as server:
        file = opened(server, concurrency=5, stall_s=20.0)

        def read(seed: int) -> Sent:
            before, ranges = sent(), [(place, place + 100) for place in range(seed, SIZE - 100, 40_000)]
            assert read_ranges(file, ranges) == [CONTENT[start:stop] for start, stop in ranges]
            return spent(before)

        with ThreadPoolExecutor(8) as pool:
            counted = list(pool.map(read, range(8)))
        assert all(count == Sent(10, 1000, 0) for count in counted)
        assert 1 < server.most_at_once <= 5


# --- failures that pass -----------------------------------------------------------------------------------------------

PASSING: list[dict[str, Any]] = [
    {"status": 503},
    {"status": 500},
    {"status": 429},
    {"status": 408},
    {"short": 1000},
    {"short": 0},
    {"reset": 1000},
    {"stall": 1000},
    {"hang": True},
    {"wrong_range": True},
]


@pytest.mark.fault
@pytest.mark.parametrize("what", PASSING, ids=str)
def test_what_fails_twice_and_then_succeeds_is_read_and_counted(server: Server, what: dict[str, Any]) -> None:
    file = opened(server)
    server.fault(**what, times=2)
    before = sent()
    assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
    count = spent(before)
    assert (count.requests, count.retries) == (3, 2)


@pytest.mark.fault
@pytest.mark.parametrize("what", [*PASSING, {"drip_s": 0.05}, {"drip_head_s": 0.05}], ids=str)
def test_what_fails_for_ever_is_a_remote_error_after_all_tries_in_bounded_time(server: Server, what: dict[str, Any]) -> None:
    file = open_file(server.url("/a.tif?sig=SECRET"), access_to(server))[0]
    server.fault(**what)
    began, hits = time.monotonic(), server.count()
    with pytest.raises(RemoteError, match="no answer after 3 tries") as caught:
        read_ranges(file, [FAR])
    assert server.count() - hits == 3
    assert time.monotonic() - began < 3 * (0.4 + 2 + 2)
    assert caught.value.exit_code == 6
    assert "SECRET" not in str(caught.value)


@pytest.mark.fault
def test_the_wait_that_a_server_asks_for_is_kept_within_reason(server: Server) -> None:
    server.fault(status=429, headers={"Retry-After": "0.3"}, times=1)
    began = time.monotonic()
    opened(server)
    assert time.monotonic() - began >= 0.3
    assert retry.asked_wait_s("100000") == 60
    assert 50 <= retry.asked_wait_s("Fri, 01 Jan 2100 00:00:00 GMT") <= 60
    assert retry.asked_wait_s("soon") == retry.asked_wait_s(None) == retry.asked_wait_s("-5") == 0


@pytest.mark.fault
def test_a_retry_asks_the_caches_between_for_a_fresh_answer(server: Server) -> None:
    file = opened(server)
    server.fault(short=10, times=1)
    read_ranges(file, [FAR])
    assert [hit.headers.get("cache-control") for hit in server.hits] == [None, None, "no-cache"]


@pytest.mark.fault
def test_one_failed_range_of_many_fails_all_and_leaves_no_request_behind(server: Server) -> None:
    file = opened(server)
    server.fault(status=404, at_least=300_000)
    before = sent()
    with pytest.raises(SourceError, match="404"):
        read_ranges(file, [(place, place + 10) for place in range(0, SIZE, 50_000)])
    assert spent(before).requests == server.count() - 1


@pytest.mark.fault
def test_a_host_that_is_not_there_may_be_there_later(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match="connection refused"):
        open_file(f"http://127.0.0.1:{port}/a.tif", Access(hosts=("127.0.0.1",), tries=2))
    with pytest.raises(RemoteError, match="no such host"):
        open_file("http://nowhere.invalid/a.tif", Access(tries=2))


@pytest.mark.fault
def test_a_proxy_of_the_environment_is_used_and_may_be_down(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["http://imagery.invalid/a.tif"] = CONTENT
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.address)
    file, head = open_file("http://imagery.invalid/a.tif", Access(tries=1))
    assert (file.size, head) == (SIZE, CONTENT[:65536])
    with pytest.raises(SafetyError, match="private network"):
        open_file("http://10.0.0.1/a.tif", Access(tries=1))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match="proxy"):
        open_file("http://imagery.invalid/a.tif", Access(tries=1))


# --- failures that stay -----------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 451])
def test_a_permanent_status_is_said_at_once(server: Server, status: int) -> None:
    server.fault(status=status)
    with pytest.raises(SourceError, match=f"a.tif: the server says {status}") as caught:
        open_file(server.url("/a.tif?token=SECRET"), access_to(server))
    assert server.count() == 1
    assert caught.value.exit_code == 4
    assert "SECRET" not in str(caught.value)


@pytest.mark.fault
@pytest.mark.parametrize("what", [{"etag": '"other"'}, {"body": CONTENT[:-1]}, {"body": b"x"}, {"status": 412}], ids=str)
def test_a_file_that_changes_while_it_is_read_is_noticed(server: Server, what: dict[str, Any]) -> None:
    file = opened(server)
    server.fault(**what)
    with pytest.raises(SourceError, match="changed while it was read"):
        read_ranges(file, [FAR])
    assert server.count() == 2


@pytest.mark.fault
def test_a_server_without_ranges_is_refused_or_read_whole(server: Server) -> None:
    server.fault(no_range=True)
    with pytest.raises(SourceError, match="needs range requests"):
        opened(server)
    file, head = open_file(server.url("/a.tif"), access_to(server), 100, is_whole_ok=True)
    assert (file.size, file.has_ranges, head) == (SIZE, False, CONTENT[:100])
    with pytest.raises(SourceError, match="needs range requests"):
        read_ranges(file, [(0, 5)])
    with open_stream(file) as stream:
        assert stream.read() == CONTENT


@pytest.mark.fault
def test_a_server_that_stops_giving_parts_is_noticed(server: Server) -> None:
    file = opened(server)
    server.fault(no_range=True)
    with pytest.raises(SourceError, match="stopped giving parts"):
        read_ranges(file, [FAR])


SIGNED: list[str] = []


def sign_for_tests(url: str) -> str:
    SIGNED.append(url)
    return f"{url.partition('?')[0]}?sig=fresh{len(SIGNED)}"


@pytest.fixture
def _signer(monkeypatch: pytest.MonkeyPatch) -> None:
    SIGNED.clear()


@pytest.mark.fault
@pytest.mark.usefixtures("_signer")
def test_an_expired_signature_is_renewed_once_for_all_threads(server: Server) -> None:
    file = open_file(server.url("/a.tif?sig=old"), access_to(server, signer=f"{__name__}:sign_for_tests"))[0]
    signed = len(SIGNED)
    server.fault(status=403, times=1)
    ranges = [(place, place + 10) for place in range(0, SIZE, 50_000)]
    assert read_ranges(file, ranges) == [CONTENT[start:stop] for start, stop in ranges]
    assert len(SIGNED) <= signed + 1
    assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
    assert server.hits[-1].query == f"sig=fresh{len(SIGNED)}"  # above, requests under way with the old one may end last
    assert len(SIGNED) <= signed + 1


@pytest.mark.fault
@pytest.mark.usefixtures("_signer")
def test_a_signature_that_is_refused_when_fresh_is_not_asked_for_again(server: Server) -> None:
    file = open_file(server.url("/a.tif"), access_to(server, signer=f"{__name__}:sign_for_tests"))[0]
    server.fault(status=403)
    signed, hits = len(SIGNED), server.count()
    with pytest.raises(SourceError, match="403 Forbidden; its signature was renewed, in vain"):
        read_ranges(file, [FAR])
    assert (len(SIGNED) - signed, server.count() - hits) == (1, 2)


# --- documents --------------------------------------------------------------------------------------------------------


def test_documents_are_read_whole_and_may_be_compressed(server: Server) -> None:
    server.files |= {"/d.json": b"{}" * 50, "/z.json": gzip.compress(b"{}" * 50)}
    server.fault("/z.json", headers={"Content-Encoding": "gzip"})
    for path in ("/d.json", "/z.json"):
        assert read_whole(server.url(path), access_to(server), limit=100, accept=("application/json",)) == b"{}" * 50
        with pytest.raises(SafetyError, match="larger than the 99 bytes"):
            read_whole(server.url(path), access_to(server), limit=99)
    assert server.hits[0].headers["accept"] == "application/json"


@pytest.mark.fault
def test_a_compressed_bomb_is_not_unpacked(server: Server) -> None:
    server.files["/bomb.json"] = gzip.compress(bytes(2**28), 1)
    server.fault("/bomb.json", headers={"Content-Encoding": "gzip"})
    with pytest.raises(SafetyError, match="larger than"):
        read_whole(server.url("/bomb.json"), access_to(server, stall_s=10.0), limit=2**16)


# --- safety -----------------------------------------------------------------------------------------------------------

FORBIDDEN = (
    "file:///etc/passwd", "gopher://example.com/", "ftp://example.com/a.tif", "/vsicurl/http://example.com/a.tif",
    "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/",
    "http://localhost/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[fe80::1]/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://168.63.129.16/",
    "http://10.1.2.3/", "http://172.16.0.1/", "http://192.168.0.1/", "http://224.0.0.1/", "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/", "http://example.com@127.0.0.1/", "https://127.0.0.1:443/",
)  # fmt: skip


@pytest.mark.parametrize("url", FORBIDDEN)
def test_addresses_of_this_machine_and_its_network_are_refused(url: str) -> None:
    with pytest.raises(SafetyError, match="refused") as caught:
        check_host(url, Access())
    assert caught.value.exit_code == 8
    with pytest.raises(SafetyError):
        check_host(url, Access(hosts=("example.com", "127.0.0.2", "10.0.0.1")))


@pytest.mark.parametrize("url", ["http:///a.tif", "http://[::1", "http://a:99999/", "http://a\\@b/"])
def test_what_is_no_address_is_said_to_be_none(url: str) -> None:
    with pytest.raises(SourceError, match="not an address"):
        check_host(url, Access())


def test_a_host_that_the_user_names_is_reached_and_its_other_ports_only_where_named() -> None:
    check_host("http://127.0.0.1:8000/a", Access(hosts=("127.0.0.1",)))
    check_host("http://LOCALHOST:8000/a", Access(hosts=("localhost:8000",)))
    check_host("http://[::1]:8000/a", Access(hosts=typed_hosts("http://[::1]:8000/b")))
    check_host("http://10.0.0.1/a", Access(hosts=typed_hosts("http://10.0.0.1/")))
    with pytest.raises(SafetyError):
        check_host("http://127.0.0.1:8001/a", Access(hosts=("127.0.0.1:8000",)))
    check_host("https://8.8.8.8/a", Access())


def test_nothing_is_sent_to_a_host_that_is_refused(server: Server) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433"):
        for read in (open_file, lambda url, access: read_whole(url, access, limit=10)):
            with pytest.raises(SafetyError, match="--allow-host"):
                read(f"http://{host}:{server.port}/a.tif", Access())
    assert not server.hits


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_where_their_targets_may_be_reached(server: Server, status: int) -> None:
    server.fault("/moved.tif", redirect="/a.tif", status=status)
    file = open_file(server.url("/moved.tif"), access_to(server))[0]
    for _ in range(3):
        assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
    assert [hit.path for hit in server.hits] == ["/moved.tif", *["/a.tif"] * 4]
    assert all(hit.span for hit in server.hits)


@pytest.mark.fault
def test_a_place_that_an_address_led_to_is_left_when_it_is_no_longer_right(server: Server) -> None:
    server.fault("/moved.tif", redirect="/a.tif?sig=1", times=1)
    file = open_file(server.url("/moved.tif"), access_to(server))[0]
    server.fault("/moved.tif", redirect="/b.tif")
    server.files["/b.tif"] = server.files.pop("/a.tif")
    assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
    assert [hit.path for hit in server.hits] == ["/moved.tif", "/a.tif", "/a.tif", "/moved.tif", "/b.tif"]
    server.fault("/b.tif", redirect="http://10.0.0.1/", times=1)
    with pytest.raises(SafetyError):
        read_ranges(file, [FAR])


@pytest.mark.parametrize("target", FORBIDDEN)
def test_redirects_to_what_may_not_be_reached_are_refused(server: Server, target: str) -> None:
    server.fault("/moved.tif", redirect=target)
    with pytest.raises((SafetyError, SourceError)) as caught:
        open_file(server.url("/moved.tif"), access_to(server))
    assert isinstance(caught.value, SafetyError) or "404" in str(
        caught.value
    )  # a path without a scheme is one of the server's
    assert all(hit.path == "/moved.tif" or "vsicurl" in hit.path for hit in server.hits)


def test_a_redirect_to_another_local_server_is_refused_and_a_ring_has_an_end(server: Server) -> None:
    with faulty({"/a.tif": CONTENT}) as other:
        server.fault("/a.tif", redirect=other.url("/a.tif"), times=1)
        with pytest.raises(SafetyError):
            opened(server)
        assert not other.hits
        server.fault("/a.tif", redirect=other.url("/a.tif"), times=1)
        both = Access(hosts=(server.host, other.host))
        url = server.url("/a.tif").replace("http://", "http://user:pass@")
        assert open_file(url, both)[0].size == SIZE
        assert server.hits[-1].headers["authorization"].startswith("Basic ")
        assert "authorization" not in other.hits[-1].headers
    server.fault("/ring", redirect="/ring")
    with pytest.raises(SourceError, match="redirects more than 5 times"):
        opened(server, "/ring")


def test_a_name_that_changes_its_meaning_after_the_check_leads_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_resolve", lambda *_: ("8.8.8.8",))
    with pytest.raises(SafetyError, match=r"127\.0\.0\.1"):
        open_file(f"http://localhost:{server.port}/a.tif", Access())
    assert not server.hits


def test_addresses_are_told_apart_and_shown_without_secrets() -> None:
    assert all(map(is_remote, ("https://h/a", "HTTP://h/a", "s3://b/a", "gs://b/a", "az://c/a", "abfss://c@a/b")))
    assert not any(map(is_remote, ("/a/b.tif", "a.tif", "file:///a", "xyz:https://h/{z}", "stac+https://h", "")))
    assert shown("https://user:pw@host:8/a/b.tif?sig=1#f") == "https://host:8/a/b.tif"
    assert shown("xyz:https://host/{z}/{x}/{y}.png?key=1") == "xyz:https://host/{z}/{x}/{y}.png"
    assert shown("/tmp/what?.tif") == "/tmp/what?.tif"
    assert basename("s3://b/a/c%20d.tif?x=/y") == "c d.tif"
    assert basename("/a/b.tif") == "b.tif"
    assert typed_hosts("https://Host/a") == ("host:443",)
    assert typed_hosts("/a/b") == typed_hosts("file:///a") == ()


def test_secrets_are_struck_from_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghijkl")
    text = (
        "GET https://user:hunter2@h/a.tif?sv=2020&sig=hunter2, then Authorization: Bearer hunter2; "
        'x-amz-security-token=hunter2 AccountKey=hunter2;{"token": "hunter2"} AKIAIOSFODNN7EXAMPLE and abcdefghijkl at https://h/b.tif'
    )
    struck = redact(text)
    assert not any(secret in struck for secret in ("hunter2", "AKIA", "abcdefghijkl"))
    assert "https://h/a.tif?***" in struck
    assert "https://h/b.tif" in struck
    assert redact("kampala.tif: rows 0:10, cols 5:6") == "kampala.tif: rows 0:10, cols 5:6"


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)], capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl command")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake() -> None:
            client, _ = listener.accept()
            with client, pytest.raises(ssl.SSLError):
                context.wrap_socket(client, server_side=True)

        thread = threading.Thread(target=shake)
        thread.start()
        with pytest.raises(SourceError, match="certificate is not trusted"):
            open_file(f"https://localhost:{listener.getsockname()[1]}/a.tif", Access(hosts=("localhost",), tries=2))
        thread.join()


# --- object stores ----------------------------------------------------------------------------------------------------


def test_an_object_is_read_as_the_file_that_was_put() -> None:
    with serve_s3({"x/a.tif": CONTENT, "empty.tif": b""}) as store:
        before = sent()
        file, head = open_file("s3://imagery/x/a.tif", Access())
        assert (file.size, head, file.name) == (SIZE, CONTENT[:65536], "a.tif")
        assert spent(before) == Sent(1, 65536, 0)
        ranges = [(5, 10), FAR, (SIZE - 3, SIZE)]
        assert read_ranges(file, ranges) == [CONTENT[start:stop] for start, stop in ranges]
        assert spent(before).requests == 4
        assert read_whole("s3://imagery/x/a.tif", Access(), limit=SIZE) == CONTENT
        with pytest.raises(SafetyError, match="larger than"):
            read_whole("s3://imagery/x/a.tif", Access(), limit=SIZE - 1)
        for url, text in (("s3://imagery/none", "no such object"), ("s3://none/a", "no such bucket"),
                          ("s3://imagery/empty.tif", "empty file"), ("s3://imagery", "not an address")):  # fmt: skip
            with pytest.raises(SourceError, match=text):
                open_file(url, Access())
        store.put("imagery", "x/a.tif", CONTENT[::-1])
        with pytest.raises(SourceError, match="changed while it was read"):
            read_ranges(file, [FAR])
        file = open_file("s3://imagery/x/a.tif", Access())[0]
        store.client.delete_object(Bucket="imagery", Key="x/a.tif")
        with pytest.raises(SourceError, match="no such object"):
            read_ranges(file, [FAR])


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The file server in the place of S3."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server.files["/bucket/a.tif"] = CONTENT
    return server


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()


@pytest.mark.fault
@pytest.mark.parametrize(
    "what",
    [{"status": 503, "body": _error("SlowDown")}, {"status": 500}, {"status": 429},
     {"status": 400, "body": _error("RequestTimeout")}, {"short": 100}, {"reset": 100}, {"stall": 100}, {"hang": True}],
    ids=str,
)  # fmt: skip
def test_a_store_that_is_slow_for_a_while_is_asked_again(s3: Server, what: dict[str, Any]) -> None:
    file = open_file("s3://bucket/a.tif", Access(tries=3, stall_s=0.3))[0]
    fault = s3.fault(**what, times=2)
    before = sent()
    assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
    assert spent(before)[::2] == (3, 2)
    fault.times = None
    with pytest.raises(RemoteError, match="no answer after 3 tries") as caught:
        read_ranges(file, [FAR])
    assert SECRET not in str(caught.value)


@pytest.mark.fault
def test_a_store_that_denies_access_is_not_asked_again(s3: Server) -> None:
    s3.fault(status=403, body=_error("AccessDenied"))
    with pytest.raises(SourceError, match=r"access denied \(AccessDenied\); check the keys") as caught:
        open_file("s3://bucket/a.tif", Access())
    assert s3.count() == 1
    assert SECRET not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_requests_to_a_store_are_signed_unless_the_user_says_no(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file("s3://bucket/a.tif", Access())
    assert "AWS4-HMAC-SHA256" in s3.hits[-1].headers["authorization"]
    assert "x-amz-request-payer" not in s3.hits[-1].headers
    open_file("s3://bucket/a.tif", Access(requester_pays=True))
    assert s3.hits[-1].headers["x-amz-request-payer"] == "requester"
    open_file("s3://bucket/a.tif", Access(sign_requests=False))
    assert "authorization" not in s3.hits[-1].headers
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    open_file("s3://bucket/a.tif", Access())
    assert "authorization" not in s3.hits[-1].headers


def test_keys_of_a_profile_are_used(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    keys, config = tmp_path / "credentials", tmp_path / "config"
    keys.write_text("[maps]\naws_access_key_id = AKIAMAPSMAPSMAPS\naws_secret_access_key = %secret\n")
    config.write_text("[profile maps]\nregion = eu-central-1\n")
    for name, value in (("CONFIG_FILE", config), ("SHARED_CREDENTIALS_FILE", keys), ("PROFILE", "maps")):
        monkeypatch.setenv(f"AWS_{name}", str(value))
    open_file("s3://bucket/a.tif", Access())
    assert "Credential=AKIAMAPSMAPSMAPS/" in s3.hits[-1].headers["authorization"]
    assert "/eu-central-1/s3/" in s3.hits[-1].headers["authorization"]
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(ConfigError, match="AWS_PROFILE=other"):
        open_file("s3://bucket/a.tif", Access())


def test_google_and_azure_are_read_alike(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", s3.host)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", s3.address)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("gs://bucket/a.tif", "az://bucket/a.tif", "abfss://bucket@account.dfs.core.windows.net/a.tif"):
        file, head = open_file(url, Access(sign_requests=False))
        assert (file.size, head) == (SIZE, CONTENT[:65536])
        assert read_ranges(file, [FAR])[0] == CONTENT[slice(*FAR)]
        assert typed_hosts(url) == (s3.host,)
    assert shown("abfss://bucket@account.dfs.core.windows.net/a.tif?sig=x").endswith("/a.tif")


def test_the_region_of_a_bucket_is_found_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "REGION_SERVICE", server.url("/"))
    server.fault("/bucket", status=301, headers={"x-amz-bucket-region": "us-west-2"})
    assert objects._region_of("bucket", access_to(server)) == "us-west-2"
    with pytest.raises(SourceError, match="set AWS_REGION"):
        objects._region_of("other", access_to(server))


def test_without_obstore_the_extra_is_named(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'geoinfer\[cloud\]'"):
        open_file("s3://other-bucket/a.tif", Access())


def test_importing_geoinfer_loads_no_network_library() -> None:
    script = "import sys, geoinfer, geoinfer.remote.address; print({'urllib3', 'obstore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_errors_of_all_kinds_survive_the_way_between_processes(server: Server) -> None:
    kinds = {}
    for status in (404, 503):
        server.heal()
        server.fault(status=status)
        with pytest.raises(GeoinferError) as caught:
            open_file(server.url("/a.tif"), replace(access_to(server), tries=1))
        kinds[status] = pickle.loads(pickle.dumps(caught.value))
    assert {status: type(error) for status, error in kinds.items()} == {404: SourceError, 503: RemoteError}
