"""geoinfer: satellite and aerial imagery in, building footprints out.

    import geoinfer as gi

    found = gi.detect("scene.tif", model="buildings", bbox=(39.20, -6.17, 39.22, -6.15))   # GeoDataFrame

The names below are loaded on first use, so that `import geoinfer` costs milliseconds, not the seconds torch takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "detect": "anywhere",
    "run": "pipeline",
    "predict": "detection",
    "detect_tile": "detection",
    "Job": "job",
    "make_job": "job",
    "Plan": "estimate",
    "plan": "estimate",
    "connect": "cluster",
    "evaluate": "evaluation",
    "assess": "evaluation.assess",
    "compare_models": "evaluation.assess",
    "compare_slices": "evaluation.assess",
    "generate_scene": "scenes",
    "write_scene": "scenes",
    "compare": "evaluation.compare",
    "read_footprints": "evaluation.schemas",
    "write_report": "evaluation.report",
    "write_comparison": "evaluation.report",
    "open_raster": "job",
    "load_predictor": "model.predictor",
    "polygonize": "vector.polygonize",
    "split": "vector.stitch",
    "stitch": "vector.stitch",
    "TileResult": "vector.stitch",
    "Polygons": "vector.polygons",
    "MaskLayer": "masks.layer",
    "mask_footprints": "masks.apply",
    "audit_masks": "evaluation.mask_audit",
    "Region": "region",
    "Window": "grid",
    "Grid": "grid",
    "GeoinferError": "errors",
    "ConfigError": "errors",
    "OutputError": "errors",
    "SourceError": "errors",
    "RegionError": "errors",
    "TilesFailed": "errors",
    "MaskAlarm": "errors",
    "MaskWarning": "errors",
    "RemoteError": "errors",
    "ResourceError": "errors",
    "SafetyError": "errors",
    "DomainWarning": "errors",
    "TooWideError": "errors",
    "SourceOptions": "imagery.options",
    "Search": "imagery.options",
    "Service": "imagery.options",
    "Access": "remote.access",
    "Interrupted": "errors",
}
"""Public name -> module of this package that defines it."""

if TYPE_CHECKING:
    from geoinfer.anywhere import detect as detect
    from geoinfer.cluster import connect as connect
    from geoinfer.detection import detect_tile as detect_tile
    from geoinfer.detection import predict as predict
    from geoinfer.errors import ConfigError as ConfigError
    from geoinfer.errors import DomainWarning as DomainWarning
    from geoinfer.errors import GeoinferError as GeoinferError
    from geoinfer.errors import Interrupted as Interrupted
    from geoinfer.errors import MaskAlarm as MaskAlarm
    from geoinfer.errors import MaskWarning as MaskWarning
    from geoinfer.errors import OutputError as OutputError
    from geoinfer.errors import RegionError as RegionError
    from geoinfer.errors import RemoteError as RemoteError
    from geoinfer.errors import ResourceError as ResourceError
    from geoinfer.errors import SafetyError as SafetyError
    from geoinfer.errors import SourceError as SourceError
    from geoinfer.errors import TilesFailed as TilesFailed
    from geoinfer.errors import TooWideError as TooWideError
    from geoinfer.estimate import Plan as Plan
    from geoinfer.estimate import plan as plan
    from geoinfer.evaluation import evaluate as evaluate
    from geoinfer.evaluation.assess import assess as assess
    from geoinfer.evaluation.assess import compare_models as compare_models
    from geoinfer.evaluation.assess import compare_slices as compare_slices
    from geoinfer.evaluation.compare import compare as compare
    from geoinfer.evaluation.mask_audit import audit_masks as audit_masks
    from geoinfer.evaluation.report import write_comparison as write_comparison
    from geoinfer.evaluation.report import write_report as write_report
    from geoinfer.evaluation.schemas import read_footprints as read_footprints
    from geoinfer.grid import Grid as Grid
    from geoinfer.grid import Window as Window
    from geoinfer.imagery.options import Search as Search
    from geoinfer.imagery.options import Service as Service
    from geoinfer.imagery.options import SourceOptions as SourceOptions
    from geoinfer.job import Job as Job
    from geoinfer.job import make_job as make_job
    from geoinfer.job import open_raster as open_raster
    from geoinfer.masks.apply import mask_footprints as mask_footprints
    from geoinfer.masks.layer import MaskLayer as MaskLayer
    from geoinfer.model.predictor import load_predictor as load_predictor
    from geoinfer.pipeline import run as run
    from geoinfer.region import Region as Region
    from geoinfer.remote.access import Access as Access
    from geoinfer.scenes import generate_scene as generate_scene
    from geoinfer.scenes import write_scene as write_scene
    from geoinfer.vector.polygonize import polygonize as polygonize
    from geoinfer.vector.polygons import Polygons as Polygons
    from geoinfer.vector.stitch import TileResult as TileResult
    from geoinfer.vector.stitch import split as split
    from geoinfer.vector.stitch import stitch as stitch

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import the home of a public name the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'geoinfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"geoinfer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
