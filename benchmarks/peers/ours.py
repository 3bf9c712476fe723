"""One run of geoinfer as `compare` counts the peers: loading the model, then all the work, in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    """Run and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raster", type=Path)
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    begin = time.perf_counter()
    import torch

    import geoinfer as gi
    from geoinfer.job import Execution
    from geoinfer.vector import warm_up

    torch.set_num_threads(options.threads)
    warm_up()
    predictor = gi.load_predictor(options.model, device="cpu", precision=options.precision, threads=options.threads)
    loaded = time.perf_counter()
    run = gi.run(
        gi.make_job(options.raster, model=predictor), options.out / "run", execution=Execution(threads=options.threads)
    )
    done = time.perf_counter()
    found = {
        "version": f"{gi.__version__} {predictor.precision}",
        "torch": torch.__version__,
        "load_s": loaded - begin,
        "work_s": done - loaded,
        "polygons": run.manifest["footprints"]["raw"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
