"""`geoinfer doctor`: what this installation and this machine are."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from typing import Annotated, Any

import typer

import geoinfer
from geoinfer.cli.printing import bytes_text, emit, emit_json, emit_pairs
from geoinfer.remote.address import redact

PACKAGES = (
    "torch", "numpy", "numba", "rasterio", "pyproj", "shapely", "geopandas", "pandas", "pyogrio", "pyarrow", "dask",
    "distributed", "odc-geo", "safetensors", "pydantic", "typer", "rich", "fsspec", "urllib3", "antimeridian",
    "obstore", "pystac", "pystac-client", "stac-geoparquet",
)  # fmt: skip
DRIVERS = ("GTiff", "COG", "GPKG", "FlatGeobuf", "GeoJSON", "Parquet", "PMTiles")
ACTING = ("GEOINFER_", "GDAL_", "CPL_", "VSI_", "PROJ_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "DASK_", "CUDA_", "PYTORCH_")
"""What the names of variables that change behaviour start with."""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Versions, GDAL drivers, devices, free memory and disk, models, and the options that act."""
    report = examine()
    if as_json:
        emit_json(report)
        return
    for title, content in report.items():
        emit(f"{title}:")
        emit_pairs({f"  {name}": value for name, value in content.items()} or {"  none": None})


def examine() -> dict[str, dict[str, Any]]:
    """Section -> name -> value; sizes in words."""
    return {
        "geoinfer": {"version": geoinfer.__version__, "python": platform.python_version(), "system": platform.platform()},
        "packages": {name: _version(name) for name in PACKAGES},
        "gdal": _gdal(),
        "devices": _devices(),
        "machine": _machine(),
        "models": _models(),
        "options": {name: redact(value) for name, value in sorted(os.environ.items()) if name.startswith(ACTING)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gdal() -> dict[str, Any]:
    """Two GDALs live in the process, one in rasterio's wheel and one in pyogrio's."""
    import pyogrio
    import rasterio
    from rasterio.drivers import raster_driver_extensions

    vector = pyogrio.list_drivers()
    raster = set(raster_driver_extensions().values()) | {"GTiff"}
    return {
        "raster GDAL": rasterio.__gdal_version__,
        "vector GDAL": ".".join(map(str, pyogrio.__gdal_version__)),
        "drivers": [name for name in DRIVERS if name in vector or name in raster],
    }


def _devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {"cpu": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"}
    devices["cuda"] = f"torch built with {torch.version.cuda}" if torch.version.cuda else "torch built without"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {bytes_text(free)} of {bytes_text(total)} free"
    return devices


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    places = {"disk here": ".", "disk for temporary files": tempfile.gettempdir()}
    return {
        "memory": f"{bytes_text(memory.available)} of {bytes_text(memory.total)} free",
        **{name: f"{bytes_text(shutil.disk_usage(place).free)} free" for name, place in places.items()},
    }


def _models() -> dict[str, Any]:
    from geoinfer.model.registry import list_models as known_models
    from geoinfer.model.registry import resolve_model

    return {name: f"version {resolve_model(name).version}" for name in known_models()}
