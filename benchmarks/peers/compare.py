"""geoinfer against its peers: the same raster, the same weights, all cores for each, one whole process after the other.

    python -m benchmarks.peers.compare [--peers DIR] [--side 4096] [--repeat 2] [--model buildings] [--folded]

DIR is what `install.sh` filled. A peer gets the network as TorchScript that takes uint8, casts to float, normalises and
gives the model's probability, frozen (normalisation folded), as one would export it; `--folded` gives them the network that
geoinfer rewrites for itself, so that nothing but the loop differs. Work is everything from a loaded model to polygons in a
file; imports and loading are told apart. They take turns, and the medians count. The raster's corner lies on geoinfer's
lattice, as nearly all pixels of a large region do in effect; `anywhere` is the same raster with a corner that does not,
where this small a raster needs up to half as many chips again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.imagery import ANYWHERE, write_raster
from benchmarks.machine import machine
from benchmarks.rows import Row, table
from geoinfer.model.folding import fold
from geoinfer.model.predictor import load_network
from geoinfer.model.registry import find_model
from geoinfer.model.spec import PLANES, ModelSpec
from geoinfer.worker import usable_cores

PEERS = ("geo_inference", "torchgeo_loop")
TARGETS = {("geo_inference", "fp32"): 10.0, ("geo_inference", "auto"): 20.0, ("best", "auto"): 2.0}
CHIP = 1024
"""Side of the peers' chips, pixels: geo-inference's default, and near ours."""
HERE = Path(__file__).parent


class Exported(nn.Module):
    """What a peer is given: (N, 3, S, S) uint8 or float in its range -> (N, 1, S, S) probabilities."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.network, self.how = network, spec.probability
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Cast, normalise, infer; the planes as `geoinfer.model.predictor.probability` takes them."""
        z: Tensor = self.network((x.float() - self.mean) / self.std)  # (N, K, S, S), all planes or only those needed
        planes = PLANES[self.how] if z.shape[1] > len(PLANES[self.how]) else range(z.shape[1])
        p = [z[:, i : i + 1].sigmoid() if at == 0 else (-z[:, i : i + 1]).sigmoid() for at, i in enumerate(planes)]
        return p[0] if len(p) == 1 else p[0] * p[1]


def export(model: str, path: Path, is_folded: bool = False) -> ModelSpec:
    """Write a model as frozen TorchScript for chips of `CHIP` px, as trained or as geoinfer rewrites it for itself."""
    bundle = find_model(model)
    network = load_network(bundle).eval()
    chip = torch.zeros((1, len(bundle.spec.bands), CHIP, CHIP), dtype=torch.uint8)
    exported = Exported(bundle.spec, fold(network, bundle.spec) if is_folded else network).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us use something else than TorchScript; the peers would not
        torch.jit.freeze(torch.jit.trace(exported, chip, check_trace=False)).save(str(path))
    return bundle.spec


def start(command: list[str]) -> dict[str, Any]:
    """Run a process to its end; its line of JSON, with the wall and processor seconds of the process and its children.

    Raises:
        RuntimeError: It failed; the message holds the end of what it said.
    """
    threads = {name: str(usable_cores()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "PYTHONWARNINGS": "ignore"}
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": seconds, "processor_s": processor}


def compare(
    model: str, folder: Path | None, side: int, repeat: int, say: Callable[[str], None], is_folded: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Runs of each by name: `fp32`, `auto` and `anywhere` are ours; then the peers that are installed."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        raster, elsewhere, script = (Path(scratch) / name for name in ("scene.tif", "elsewhere.tif", "model.pt"))
        write_raster(raster, side)
        write_raster(elsewhere, side, corner=ANYWHERE)
        spec = export(model, script, is_folded)
        chips = ["--chip", str(CHIP), "--margin", str(spec.chips.margin)]
        here = [name for name in PEERS if folder is not None and (folder / name / "bin" / "python").exists()]
        for turn in range(repeat):
            for name in ("fp32", "auto", "anywhere", *here):
                out = Path(scratch) / f"{name}-{turn}"
                out.mkdir()
                common = [str(out), "--threads", str(usable_cores())]
                if name in PEERS:
                    assert folder is not None
                    python = [str(folder / name / "bin" / "python"), str(HERE / f"{name}.py")]
                    command = [*python, str(raster), str(script), *common, "--threshold", str(spec.threshold), *chips]
                else:
                    python = [sys.executable, "-m", "benchmarks.peers.ours"]
                    read, precision = (elsewhere, "auto") if name == "anywhere" else (raster, name)
                    command = [*python, str(read), model, *common, "--precision", precision]
                done = start(command)
                found.setdefault(name, []).append(done)
                say(f"{name}: {json.dumps(done)}")
    return found


def to_rows(found: Mapping[str, list[dict[str, Any]]], side: int) -> list[Row]:
    """Rates of the medians, ours against each peer, in the precision that a target is about."""
    megapixels = side * side / 1e6
    work = {name: statistics.median(done["work_s"] for done in runs) for name, runs in found.items()}
    whole = {name: statistics.median(done["process_s"] for done in runs) for name, runs in found.items()}
    count = {name: runs[-1]["polygons"] for name, runs in found.items()}
    peers = [name for name in work if name in PEERS]
    rows = []
    for mine in ("fp32", "auto"):
        precision = found[mine][0]["version"].split()[-1]
        label = f"geoinfer, {precision}, {count[mine]} polygons"
        if not peers:
            rows.append(Row(label, megapixels / work[mine], "Mpx/s"))
            continue
        for peer in peers:
            against = f"{peer} {found[peer][0]['version']}, {count[peer]} polygons"
            target = TARGETS.get((peer, mine))
            rows.append(Row(label, megapixels / work[mine], "Mpx/s", megapixels / work[peer], against, target))
        best = min(peers, key=work.__getitem__)
        if (target := TARGETS.get(("best", mine))) is not None:
            against = f"best peer loop, {best}"
            rows.append(Row(label, megapixels / work[mine], "Mpx/s", megapixels / work[best], against, target))
        first = min(peers, key=whole.__getitem__)
        against = f"{first}, whole process"
        rows.append(Row(f"{label}, whole process", megapixels / whole[mine], "Mpx/s", megapixels / whole[first], against))
    precision = found["anywhere"][0]["version"].split()[-1]
    return [*rows, Row(f"geoinfer, {precision}, corner anywhere", megapixels / work["anywhere"], "Mpx/s")]


def rows(quick: bool) -> list[Row]:
    """Against the peers in the folder that `BENCHMARK_PEERS` names; ours alone without one."""
    folder = os.environ.get("BENCHMARK_PEERS")
    side = 2048 if quick else 4096
    return to_rows(compare("buildings", Path(folder) if folder else None, side, 1 if quick else 2, lambda _: None), side)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=os.environ.get("BENCHMARK_PEERS"), help="the folder of install.sh")
    parser.add_argument("--model", default="buildings")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folded", action="store_true", help="peers get the network as geoinfer rewrites it for itself")
    options = parser.parse_args()
    print(f"{machine()}\n{options.side} x {options.side} px at 0.3 m\n", flush=True)
    found = compare(options.model, options.peers, options.side, options.repeat, print, options.folded)
    print(table(to_rows(found, options.side)))


if __name__ == "__main__":
    main()
