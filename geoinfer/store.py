"""The run directory: what is committed, by whom it is held, and how a file comes to be there whole or not at all.

Every file is written under `tmp/`, synced, and renamed into place, so a reader sees the old file, the new file or no file,
and never a part. `_SUCCESS` is renamed last: where it stands, the outputs beside it belong together. A tile is
committed when `tiles/<name>.npz` exists; its zip checksums tell a damaged one. `run.lock` is held by the kernel (`flock`)
for as long as the process lives, so a killed run leaves no lock that anyone must remove.

Knows nothing about imagery, models or geometry.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import uuid
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from geoinfer.errors import GeoinferError, OutputError, ResourceError

Json = dict[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when a disk, a quota or a limit is full."""
_ROW = "__row__"
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged npz file raises: a flipped bit may also say "encrypted" or "of a later version" (RuntimeError)."""
_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Die by SIGKILL here when the environment asks for it: how the kill tests reach every step of a commit.

    `GEOINFER_FAILPOINT=tile_replaced:3` kills the process that passes `tile_replaced` for the third time; without the
    variable this is one dictionary look-up.
    """
    wanted = os.environ.get("GEOINFER_FAILPOINT")
    if wanted is None:
        return
    at, _, count = wanted.partition(":")
    if at == name:
        _hits[name] = _hits.get(name, 0) + 1
        if _hits[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says into what a user can act on: full disk, or a place that cannot be written."""
    try:
        yield
    except GeoinferError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError(f"{path}: no space left: {error.strerror}; free some and run it again") from error
        raise OutputError(f"{path}: cannot write: {error.strerror or error}; check the path and its permissions") from error


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths and commits of one run. Picklable: workers commit their own tiles."""

    root: Path

    @property
    def manifest(self) -> Path:
        """`run.json`: the job, its state, counts and timings."""
        return self.root / "run.json"

    @property
    def footprints(self) -> Path:
        """The accepted footprints."""
        return self.root / "footprints.parquet"

    @property
    def rejected(self) -> Path:
        """The rejected ones, each with its reason."""
        return self.root / "rejected.parquet"

    @property
    def coverage(self) -> Path:
        """One row a tile: what was looked at."""
        return self.root / "coverage.parquet"

    @property
    def success(self) -> Path:
        """Written last; holds the fingerprint of the job."""
        return self.root / "_SUCCESS"

    @property
    def tiles(self) -> Path:
        """One file a committed tile."""
        return self.root / "tiles"

    @property
    def coming(self) -> Path:
        """Tiles of an update on their way; see `switching`."""
        return self.root / "tiles.next"

    @property
    def masks(self) -> Path:
        """Mask layers made ready for this run; only where there are any."""
        return self.root / "masks"

    @property
    def zones(self) -> Path:
        """The runs of a run over several grids; only where there are any."""
        return self.root / "zones"

    @property
    def scratch(self) -> Path:
        """Files on their way; whatever is here when a run starts is a dead run's."""
        return self.root / "tmp"

    def create(self) -> None:
        """Make the directory, or accept one that is empty or a run's.

        Raises:
            OutputError: It cannot be made, or holds files of something else.
        """
        with output_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            foreign = {p.name for p in self.root.iterdir()} - {"run.lock", "tmp", "tiles", "tiles.next", "masks", "zones"}
            if foreign and not self.manifest.exists():
                raise OutputError(f"{self.root}: not a run directory (it holds {min(foreign)!r}); choose a new one")
            self.tiles.mkdir(exist_ok=True)
            self.scratch.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Remove everything a run wrote, `_SUCCESS` first, and nothing else."""
        with output_errors(self.root):
            self.success.unlink(missing_ok=True)
            for path in (self.footprints, self.rejected, self.coverage):
                path.unlink(missing_ok=True)
            self.drop_tiles()
            for folder in (self.coming, self.zones):
                shutil.rmtree(folder, ignore_errors=True)
            self.sweep()
            self.keep_masks(set())
            self.manifest.unlink(missing_ok=True)

    def drop_tiles(self) -> None:
        """Remove committed tiles: those of a run that died before it was known whose they are."""
        with output_errors(self.tiles):
            for path in self.tiles.glob("*.npz"):
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a dead run left half written."""
        with output_errors(self.scratch):
            for path in self.scratch.glob("*"):
                path.unlink(missing_ok=True)

    def keep_masks(self, names: Collection[str]) -> None:
        """Remove prepared layers but those of these names, half-written ones, and the folder when nothing is left in it."""
        with output_errors(self.masks):
            for path in [p for kind in ("fgb", "json") for p in self.masks.glob(f"*.{kind}*")]:
                if path.stem not in names:
                    path.unlink(missing_ok=True)
            if self.masks.exists() and not any(self.masks.iterdir()):
                self.masks.rmdir()

    @contextmanager
    def replacing(self, path: Path, point: str, *, can_be_redone: bool = False) -> Iterator[BinaryIO]:
        """A file to write into that appears at `path` when the block ends well, whole, and never when it does not.

        Args:
            path: Final place inside the run directory.
            point: Stem of the failpoints passed: `<point>_written` and `<point>_replaced`.
            can_be_redone: Whoever misses the file after a power cut makes it again: its content is synced, its name is not.
        """
        scratch = self.scratch / f"{path.name}.{uuid.uuid4().hex}"
        with output_errors(path):
            try:
                with scratch.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                failpoint(f"{point}_written")
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
            if not can_be_redone:
                sync_directory(path.parent)
        failpoint(f"{point}_replaced")

    def write_manifest(self, content: Json) -> None:
        """Replace `run.json`."""
        with self.replacing(self.manifest, "manifest") as file:
            file.write(json.dumps(content, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False).encode())

    def read_manifest(self) -> Json | None:
        """`run.json`, or None where no run has started here.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            content: Json = json.loads(self.manifest.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.manifest}: cannot read: {error}; use --overwrite to start again") from error
        return content

    def succeed(self, fingerprint: str) -> None:
        """Declare the outputs complete."""
        with self.replacing(self.success, "success") as file:
            file.write(fingerprint.encode() + b"\n")

    def tile_path(self, row: int, col: int) -> Path:
        """Where the tile of that tile row and tile column is committed."""
        return self.tiles / f"{row}_{col}.npz"

    def commit_tile(self, row: int, col: int, arrays: Arrays, record: Json) -> None:
        """Commit a tile. Two attempts at one tile write equal content, so whichever comes last may stay.

        Args:
            row: Tile row.
            col: Tile column.
            arrays: The tile's result; empty for a tile with nothing in it.
            record: Its coverage row.
        """
        with self.replacing(self.tile_path(row, col), "tile", can_be_redone=True) as file:
            file.write(packed(arrays, record))

    def committed(self) -> set[tuple[int, int]]:
        """(tile row, tile column) of every committed tile."""
        found = set()
        for path in self.tiles.glob("*_*.npz"):
            with suppress(ValueError):
                row, col = path.stem.split("_")
                found.add((int(row), int(col)))
        return found

    def read_record(self, row: int, col: int) -> Json:
        """The coverage row of a committed tile."""
        return self._load(row, col, only_record=True)[1]

    def read_tile(self, row: int, col: int) -> tuple[dict[str, npt.NDArray[Any]], Json]:
        """The arrays and the coverage row of a committed tile.

        Raises:
            OutputError: The file is missing or damaged.
        """
        return self._load(row, col, only_record=False)

    def _load(self, row: int, col: int, only_record: bool) -> tuple[dict[str, npt.NDArray[Any]], Json]:
        path = self.tile_path(row, col)
        try:
            # A tile at one go: a thread that reads in many small pieces has to ask for the GIL after each of them.
            with np.load(path if only_record else io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                record: Json = json.loads(stored[_ROW].tobytes())
                names = [] if only_record else [n for n in stored.files if n != _ROW]
                return {n: stored[n] for n in names}, record
        except _DAMAGED as error:
            raise OutputError(f"{path}: damaged tile: {error}; delete it and run the same command again") from error

    def is_held_with(self, token: str) -> bool:
        """This file system shows the lock of that token: what is written here reaches the run that holds it."""
        try:
            holder = _holder((self.root / "run.lock").read_bytes())
        except OSError:
            return False
        return holder is not None and holder.get("token") == token

    @contextmanager
    def lock(self) -> Iterator[str]:
        """Hold the directory for this process; gives the token that `is_held_with` knows.

        The kernel gives a dead process's lock back. A lock file that names another host is refused even when the kernel
        grants it, since not every shared file system carries locks between hosts.

        Raises:
            OutputError: Another run holds it; the message says which host and process.
        """
        path = self.root / "run.lock"
        me, token = socket.gethostname(), uuid.uuid4().hex
        with output_errors(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _holder(os.read(file, 4096))
            if not _lock_file(file):
                raise OutputError(f"{self.root}: in use by another run{_describe(holder)}; wait, or choose another output")
            if holder and holder.get("host") not in (None, me):
                raise OutputError(f"{self.root}: in use{_describe(holder)}; if it no longer runs there, delete {path.name}")
            with output_errors(path):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps({"host": me, "pid": os.getpid(), "token": token}).encode(), 0)
            try:
                yield token
            finally:
                path.unlink(missing_ok=True)  # while the lock is held: a waiter that opened this inode fails the check below
        finally:
            os.close(file)


def packed(arrays: Arrays, record: Json) -> memoryview:
    """The content of a tile's file."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez(buffer, **{_ROW: text}, **arrays)  # type: ignore[arg-type]  # keys are ours: none is "file" or "allow_pickle"
    return buffer.getbuffer()


def _lock_file(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file).st_nlink > 0  # unlinked between open and lock: its holder has just finished


def _holder(content: bytes) -> Json | None:
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _describe(holder: Json | None) -> str:
    return f" on host {holder.get('host')}, process {holder.get('pid')}" if holder else ""


def sync_directory(path: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: object, new: object, key: str = "") -> list[str]:
    """One line for each key whose value differs between two JSON values: `config.threshold: 0.5 -> 0.6`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for name in [*old, *(n for n in new if n not in old)]:
            lines += differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return lines
    if _both_lists(old, new):
        lines = []
        for i, (a, b) in enumerate(zip(old, new, strict=True)):  # type: ignore[call-overload]
            lines += differences(a, b, f"{key}[{i}]")
        return lines
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def _both_lists(old: object, new: object) -> bool:
    lists = isinstance(old, Sequence) and isinstance(new, Sequence) and not isinstance(old, str) and not isinstance(new, str)
    return lists and len(old) == len(new)  # type: ignore[arg-type]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def verify(run: RunDirectory) -> list[str]:
    """What does not agree with the manifest of a finished run: one line a file, empty when all is well."""
    manifest = run.read_manifest()
    if manifest is None:
        return [f"{run.manifest}: missing"]
    faults = [] if run.success.exists() else [f"{run.success}: missing: the run did not finish"]
    for name, expected in manifest.get("outputs", {}).items():
        path = run.root / name
        if not path.exists():
            faults.append(f"{path}: missing")
        elif digest(path) != expected["sha256"]:
            faults.append(f"{path}: changed since the run wrote it")
    for zone in manifest.get("zones", ()):
        faults += verify(RunDirectory(run.root / zone["run"]))
    return faults
