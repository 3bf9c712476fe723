"""From probabilities to footprints: polygonize, stitch, regularize, finish. numba is at home here."""

from __future__ import annotations

import numpy as np

from geoinfer.grid import Window
from geoinfer.vector.footprints import Finished, finish
from geoinfer.vector.polygonize import polygonize
from geoinfer.vector.polygons import Polygons
from geoinfer.vector.regularize import simplify
from geoinfer.vector.stitch import Stitcher, TileResult, split, stitch

__all__ = ["Finished", "Polygons", "Stitcher", "TileResult", "finish", "polygonize", "split", "stitch", "warm_up"]


def warm_up() -> None:
    """Compile all kernels, or load them from the cache on disk, so that the first tile is as fast as the next."""
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], np.uint8)
    valid = np.ones(mask.shape, np.bool_)
    valid[0, 3] = False
    polygons = polygonize(mask, prob=mask * 255, valid=valid)
    simplify(polygons, 1.0)
    stitch(split(mask[:, col : col + 2], Window(0, col, 4, 2), None, valid[:, col : col + 2]) for col in (0, 2))
