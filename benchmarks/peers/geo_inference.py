"""One run of NRCan's geo-inference, in its own environment: `compare` starts this script, which knows nothing of geoinfer.

As its README runs it: patches of 1024 px (it overlaps them by half), one class, the mask to polygons; its workers are told
the number of cores, since by default it leaves one out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch


def main() -> None:
    """Run and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raster", type=Path)
    parser.add_argument("model", type=Path, help="TorchScript: uint8 (1, 3, S, S) to probabilities (1, 1, S, S)")
    parser.add_argument("out", type=Path, help="a folder for what it writes")
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--chip", type=int, default=1024, help="side of a patch")
    parser.add_argument("--margin", type=int, help="ignored: patches overlap by half")
    options = parser.parse_args()
    sys.path.pop(0)  # this folder, where this script has the package's own name
    from geo_inference.geo_inference import GeoInference

    torch.set_num_threads(options.threads)
    with contextlib.redirect_stdout(sys.stderr):
        begin = time.perf_counter()
        infer = GeoInference(
            model=str(options.model),
            work_dir=str(options.out),
            mask_to_vec=True,
            device="cpu",
            num_classes=1,
            prediction_threshold=options.threshold,
        )
        loaded = time.perf_counter()
        infer(inference_input=str(options.raster), patch_size=options.chip, workers=options.threads)
        done = time.perf_counter()
    polygons = json.loads(next(options.out.glob("*_polygons_*.geojson")).read_text())
    found = {
        "version": version("geo-inference"),
        "torch": torch.__version__,
        "load_s": loaded - begin,
        "work_s": done - loaded,
        "polygons": len(polygons["features"]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
