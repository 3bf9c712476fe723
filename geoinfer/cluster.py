"""Dask: a client over local worker processes, or over a cluster that is there already.

Workers are spawned, never forked (GDAL's threads do not survive a fork), quiet, and deaf to Ctrl-C: the driver decides
when they stop. On a CPU each has one thread for everything unless told otherwise, so that workers do not fight for cores;
on a GPU each owns one device.
Nothing else in geoinfer imports distributed.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin

import geoinfer
from geoinfer.errors import ConfigError, RemoteError
from geoinfer.worker import lanes, usable_cores

CONFIG = {
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.scheduler.no-workers-timeout": "120s",  # else a task that no worker may run waits for ever
    "distributed.scheduler.allowed-failures": 1,  # `pipeline` tries the tiles of dead workers once more, alone
    "distributed.scheduler.worker-saturation": 1.0,  # tiles are coarse: none should queue behind another on a worker
    "distributed.comm.timeouts.connect": "60s",
    "distributed.admin.low-level-log-length": 1000,
}


MEMORY = {"MALLOC_TRIM_THRESHOLD_": 128 * 2**20, "MALLOC_MMAP_THRESHOLD_": 32 * 2**20}
"""What glibc comes to by itself in a process that takes and gives back tensors. Dask sets the first to 64 KiB, after which
each chip and tensor is fetched from the kernel anew, page by page: a worker is then a sixth slower."""


class PrepareWorker(WorkerPlugin):
    """Set a worker process up before its first tile, also when a nanny starts it anew."""

    name = "geoinfer-prepare"
    idempotent = True

    def __init__(self, device: str) -> None:
        self.device = device

    def setup(self, worker: Worker) -> None:
        """Pick the device, leave Ctrl-C to the driver, compile the kernels."""
        with suppress(ValueError):  # not the main thread: nothing to be deaf with
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.device == "cuda" and isinstance(worker.name, int):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            devices = visible.split(",") if visible else [str(i) for i in range(worker.name + 1)]
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[worker.name % len(devices)]  # before CUDA starts here
        from geoinfer.imagery.blocks import make_room
        from geoinfer.vector import warm_up

        make_room(worker.state.nthreads)
        warm_up()


@contextmanager
def connect(
    workers: int | None = None,
    scheduler: str | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    dashboard: bool = False,
    timeout_s: float = 60.0,
) -> Iterator[Client]:
    """A client, closed together with the processes it started.

    Args:
        workers: Local worker processes; None: one a GPU, or one a core.
        scheduler: Address of a cluster to use instead, `tcp://HOST:PORT`; it is left running.
        device: `cpu`, `cuda` (one GPU a worker) or `cuda:N` (all workers on that one).
        threads: Threads of the network in each local worker, on a CPU.
        dashboard: Serve Dask's dashboard on a free local port; its address is `client.dashboard_link`.
        timeout_s: How long a scheduler or the workers may take to answer.

    Raises:
        ConfigError: That is no address, or no number of workers.
        RemoteError: The scheduler cannot be reached, has no workers, or these run another version of geoinfer.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers}: use 1 or more; without a cluster tiles are done in this process")
    for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler", "distributed.core"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with dask.config.set({**CONFIG, **_environment(threads)}):
        if scheduler is not None:
            with _remote(scheduler, timeout_s) as client:
                client.register_plugin(PrepareWorker("as it is"))
                yield client
            return
        count = workers or default_workers(device)
        with (
            LocalCluster(
                n_workers=count,
                threads_per_worker=lanes(device, threads if device == "cpu" else usable_cores() // count),
                processes=True,
                host="127.0.0.1",  # the scheduler trusts whoever reaches it
                dashboard_address="127.0.0.1:0" if dashboard else None,
                memory_limit=0,  # a tile bounds its own memory; a nanny that kills at a share of the host's does not know it
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # any: another run may have Dask's usual port
                silence_logs=logging.CRITICAL,  # failures come back with their tiles; what is left is noise of closing
            ) as cluster,
            Client(cluster, timeout=timeout_s) as client,
        ):
            client.register_plugin(PrepareWorker(device))
            client.wait_for_workers(count, timeout=timeout_s)
            yield client


def default_workers(device: str) -> int:
    """One a GPU for `cuda`, else one a core that this process may use."""
    if device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    if device.startswith("cuda:"):
        return 1
    return usable_cores()


def _environment(threads: int) -> dict[str, object]:
    """What a worker's process starts with: libraries read these once, when they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    settings = {**dict.fromkeys(names, threads), **MEMORY}
    return {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in settings.items()}


@contextmanager
def _remote(address: str, timeout_s: float) -> Iterator[Client]:
    try:
        client = Client(address, timeout=timeout_s)
    except ValueError as error:
        raise ConfigError(f"{address!r}: not the address of a Dask scheduler: {error}; write tcp://HOST:PORT") from error
    except (OSError, TimeoutError) as error:
        raise RemoteError(f"{address}: no Dask scheduler there: {error}; start one, or leave --scheduler out") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout_s)
        except TimeoutError as error:
            raise RemoteError(f"{address}: no workers there after {timeout_s:g} s; start some with `dask worker`") from error
        theirs = client.run(_version)
        wrong = sorted({version for version in theirs.values() if version != geoinfer.__version__})
        if wrong:
            raise RemoteError(
                f"{address}: workers run geoinfer {', '.join(wrong)}, this is {geoinfer.__version__}; they must be the same"
            )
        yield client


def _version() -> str:
    return geoinfer.__version__
