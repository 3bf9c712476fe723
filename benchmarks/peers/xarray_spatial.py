"""xarray-spatial's polygonizer (numba), in an environment of its own: `benchmarks.polygonize` starts it and gives it a mask.

    python benchmarks/peers/xarray_spatial.py MASK.npy [--repeat 2]

It is experimental there and compiles at its first call, which is not counted. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

import numpy as np
import shapely
import xarray
from xrspatial.experimental.polygonize import polygonize


def polygons_of(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Rings of each polygon of ones, the outer one first."""
    raster = xarray.DataArray(mask)
    found: list[list[np.ndarray]] = polygonize(raster, mask=raster, connectivity=4)[1]
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mask")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    mask = np.load(options.mask).astype(np.int32)
    polygons_of(mask[:64, :64])
    arrays_s, shapely_s, count = [], [], 0
    for _ in range(options.repeat):
        begin = time.process_time()
        rings = polygons_of(mask)
        arrays_s.append(time.process_time() - begin)
        count = len([shapely.Polygon(ring[0], ring[1:]) for ring in rings])
        shapely_s.append(time.process_time() - begin)
    told = {"version": version("xarray-spatial"), "polygons": count, "arrays": min(arrays_s), "shapely": min(shapely_s)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
