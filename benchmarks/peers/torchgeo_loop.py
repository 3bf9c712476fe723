"""The loop that torchgeo's users write, in an environment of its own: `compare` starts it, and it knows nothing of geoinfer.

`RasterDataset`, `GridGeoSampler` and a `DataLoader` give chips; each prediction's middle goes into a mask of the whole
raster (torchgeo has no stitcher), which `rasterio.features.shapes` makes polygons of, and geopandas writes. Its
documentation wants chips to overlap by the network's receptive field; here they overlap by twice geoinfer's margin, so that
both compute as many pixels for the same quality. Batches of 4, one loading process beside the main one, float32: no peer's
loop uses less.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.features
import shapely
import torch
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler, Units


def infer(options: argparse.Namespace, network: torch.nn.Module) -> np.ndarray:
    """(H, W) uint8 mask of the whole raster."""
    dataset = RasterDataset(paths=[options.raster])
    step, margin = options.chip - 2 * options.margin, options.margin
    sampler = GridGeoSampler(dataset, size=options.chip, stride=step, units=Units.PIXELS)
    loader = DataLoader(
        dataset, batch_size=options.batch_size, sampler=sampler, num_workers=options.loaders, collate_fn=stack_samples
    )
    with rasterio.open(options.raster) as file:
        height, width, transform = file.height, file.width, file.transform
    mask = np.zeros((height + 2 * options.chip, width + 2 * options.chip), np.uint8)  # chips go beyond the raster's edge
    with torch.inference_mode():
        for batch in loader:
            prob = network(batch["image"])[:, 0].numpy()  # (N, S, S)
            for found, bounds in zip(prob, batch["bounds"], strict=True):
                col, row = (round(at) for at in ~transform * (bounds[0].start, bounds[1].stop))
                top, left = (0 if at <= 0 else margin for at in (row, col))  # the raster's edge has no neighbour
                bottom, right = (
                    options.chip - (0 if at + options.chip >= end else margin) for at, end in ((row, height), (col, width))
                )
                rows = slice(options.chip + row + top, options.chip + row + bottom)
                cols = slice(options.chip + col + left, options.chip + col + right)
                mask[rows, cols] = found[top:bottom, left:right] > options.threshold
    return mask[options.chip :, options.chip :][:height, :width]


def main() -> None:
    """Run and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raster", type=Path)
    parser.add_argument("model", type=Path, help="TorchScript: uint8 or float (N, 3, S, S) to probabilities (N, 1, S, S)")
    parser.add_argument("out", type=Path, help="a folder for what it writes")
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--chip", type=int, default=1024)
    parser.add_argument("--margin", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--loaders", type=int, default=1, help="processes that read")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    network = torch.jit.load(options.model, map_location="cpu")
    loaded = time.perf_counter()
    mask = infer(options, network)
    with rasterio.open(options.raster) as file:
        transform, crs = file.transform, file.crs
    found = [shapely.geometry.shape(s) for s, _ in rasterio.features.shapes(mask, mask=mask != 0, transform=transform)]
    gpd.GeoDataFrame(geometry=found, crs=crs).to_file(options.out / "polygons.geojson", driver="GeoJSON")
    done = time.perf_counter()
    result = {
        "version": version("torchgeo"),
        "torch": torch.__version__,
        "load_s": loaded - begin,
        "work_s": done - loaded,
        "polygons": len(found),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
