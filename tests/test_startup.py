"""What a command has to import before it can begin: a library that is not needed is not loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins import paint, write_scene

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parents[1]


def loaded(code: str, *arguments: str) -> set[str]:
    """Top-level modules in a new process after some code."""
    tell = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code + tell, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_alone_loads_nothing_heavy() -> None:
    heavy = {
        "numpy",
        "pandas",
        "geopandas",
        "shapely",
        "pyproj",
        "pyarrow",
        "rasterio",
        "numba",
        "torch",
        "dask",
        "distributed",
    }
    assert not heavy & loaded("import geoinfer")


def test_the_pipeline_loads_neither_the_network_nor_the_cluster_nor_what_only_mask_layers_need() -> None:
    found = loaded("import geoinfer.pipeline, geoinfer.vector")
    assert "numba" in found
    assert not {"torch", "dask", "distributed", "pyogrio", "matplotlib"} & found


def test_a_run_in_this_process_needs_no_cluster(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", paint(100, 100, seed=0))
    code = (
        "import sys; from geoinfer.cli.main import main; "
        "assert main(['run', sys.argv[1], '-o', sys.argv[2], '--model', 'tiny', '--workers', '0', '--device', 'cpu']) == 0"
    )
    found = loaded(code, str(scene), str(tmp_path / "run"))
    assert {"torch", "rasterio"} <= found
    assert not {"dask", "distributed", "pyogrio"} & found
