"""A file's hash is remembered as long as nothing can have changed, and no longer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from geoinfer.imagery import hashes


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a file was really read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_NS", -1)
    return []


def reader(path: Path, made: list[str]) -> Callable[[], str]:
    def make() -> str:
        made.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return make


def test_a_file_left_alone_is_read_once(tmp_path: Path, made: list[str]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    found = {hashes.remembered(str(path), reader(path, made)) for _ in range(3)}
    assert (found, made) == ({hashlib.sha256(b"one").hexdigest()}, ["a"])


def test_a_change_that_hides_its_time_and_size_is_noticed(tmp_path: Path, made: list[str]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    hashes.remembered(str(path), reader(path, made))
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert hashes.remembered(str(path), reader(path, made)) == hashlib.sha256(b"two").hexdigest()


def test_another_file_in_its_place_is_noticed(tmp_path: Path, made: list[str]) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    hashes.remembered(str(path), reader(path, made))
    other.write_bytes(b"two")
    other.replace(path)
    assert hashes.remembered(str(path), reader(path, made)) == hashlib.sha256(b"two").hexdigest()


def test_a_file_just_written_is_not_remembered(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 60_000_000_000)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    for _ in range(2):
        hashes.remembered(str(path), reader(path, made))
    assert made == ["a", "a"]


def test_a_place_that_cannot_be_written_or_holds_nonsense_does_no_harm(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file where a folder should be
    assert hashes.remembered(str(path), reader(path, made)) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashes._memory().parent.mkdir(parents=True)
    hashes._memory().write_bytes(b"\xff\x00 nonsense\n" + hashes._key(str(path), path.stat()).encode() + b" short\n")
    assert hashes.remembered(str(path), reader(path, made)) == hashlib.sha256(b"one").hexdigest()


def test_the_memory_does_not_grow_for_ever(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "MOST_BYTES", 1000)
    for number in range(40):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        hashes.remembered(str(path), reader(path, made))
    assert hashes._memory().stat().st_size < 1200
