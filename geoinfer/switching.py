"""One set of tiles in place of another, whole or not at all: how a run directory becomes that of a job on other imagery.

The new set is made in a folder of its own. `run.json`, replaced, decides that it counts; only then does its folder take the
place of the old one. A run that died before leaves the old run; one that died after is brought to its end by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from geoinfer.store import Arrays, Json, RunDirectory, failpoint, output_errors, packed, sync_directory

SWITCHING = "switching"
"""Key of a manifest whose tiles still lie in `RunDirectory.coming`."""


@dataclass(frozen=True, slots=True)
class NextTiles:
    """Writes the tiles that will count."""

    run: RunDirectory

    def link(self, row: int, col: int) -> None:
        """A tile as it is."""
        old = self.run.tile_path(row, col)
        try:
            os.link(old, self.run.coming / old.name)
        except OSError:  # a file system without links
            shutil.copyfile(old, self.run.coming / old.name)

    def commit(self, row: int, col: int, arrays: Arrays, record: Json) -> None:
        """A tile under another name, or with another content."""
        with (self.run.coming / self.run.tile_path(row, col).name).open("wb") as file:
            file.write(packed(arrays, record))
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def next_tiles(run: RunDirectory) -> Iterator[NextTiles]:
    """What fills the folder of the tiles to come."""
    with output_errors(run.coming):
        _drop(run)
        run.coming.mkdir()
        yield NextTiles(run)
        sync_directory(run.coming)
    failpoint("update_kept")


def switch(run: RunDirectory, manifest: Json) -> None:
    """Let the next tiles stand for the tiles, and a manifest for theirs."""
    with output_errors(run.success):
        run.success.unlink(missing_ok=True)
    run.write_manifest({**manifest, SWITCHING: True})
    settle(run)


def settle(run: RunDirectory) -> None:
    """Bring to its end what a run died in, or drop it where it had not been decided."""
    held = None if not run.coming.exists() and not run.manifest.exists() else run.read_manifest()
    if held is None or SWITCHING not in held:
        with output_errors(run.coming):
            _drop(run)
        return
    with output_errors(run.tiles):
        if run.coming.exists():
            shutil.rmtree(run.tiles, ignore_errors=True)
            failpoint("update_dropped")
            run.coming.rename(run.tiles)
            sync_directory(run.root)
    failpoint("update_switched")
    del held[SWITCHING]
    run.write_manifest(held)


def _drop(run: RunDirectory) -> None:
    if run.coming.exists():
        shutil.rmtree(run.coming)
