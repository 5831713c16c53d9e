"""Whole runs one after the other in one cluster, and the memory of scheduler, workers and driver after each.

``python -m benchmarks.soak FOLDER MINUTES``: all stages on a folder of images, again and again from nothing. After each
run a line with the resident memory of the processes in MiB; at the end first, last, and MiB an hour of a straight line.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from distributed import Client

from benchmarks.common import machine
from benchmarks.processes import WORKERS, processes, rss
from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.resume import STAGES
from kmeans_dask.pipeline.run import run_stages

_WARM_RUNS = 2
"""Runs that are not part of the line: modules are imported and kernels compiled in them."""


def config_of(folder: Path, scratch: Path, address: str) -> Config:
    """All stages at a small size; the same for every run."""
    return Config.model_validate(
        {
            "name": "soak",
            "output": str(scratch),
            "input": {"path": str(folder), "holdout": 0.2},
            "ingest": {"size": [28, 28], "mode": "L", "chunk_mib": 0.5},
            "fit": {"k": [10, 64], "algorithm": ["kmeans", "minibatch"]},
            "evaluate": {},
            "quantize": {"k": [4]},
            "report": {},
            "cluster": {"kind": "address", "address": address},
        }
    )


def main(folder: Path, minutes: float) -> None:
    names = ["driver", "scheduler", *(f"worker {i}" for i in range(WORKERS))]
    print(machine())
    print(f"\n| run | ended after, s | {' | '.join(names)} | tasks the scheduler knows |\n|{'---|' * 7}", flush=True)
    begun, told = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch, processes(Path(scratch)) as cluster:
        watched = [psutil.Process(), cluster.scheduler, *cluster.workers()]
        config = config_of(folder, Path(scratch), cluster.address)
        while time.monotonic() - begun < 60 * minutes:
            run_stages(config, tuple(STAGES), fresh=True)
            gc.collect()
            known = _tasks_known(cluster.address)
            told.append((time.monotonic() - begun, *map(rss, watched)))
            cells = [f"{value:.0f}" for value in told[-1]]
            print(f"| {len(told)} | {' | '.join(cells)} | {known} |", flush=True)
        assert [process.pid for process in cluster.workers()] == [process.pid for process in watched[2:]], (
            "a worker was started anew"
        )
    if len(told) <= _WARM_RUNS + 1:
        return
    line = np.array(told[_WARM_RUNS:])
    print(f"\n| from run {_WARM_RUNS + 1} on | first, MiB | last | largest | MiB an hour |\n|{'---|' * 5}")
    for name, values in zip(names, line.T[1:], strict=True):
        slope = np.polyfit(line[:, 0] / 3600, values, 1)[0]
        print(f"| {name} | {values[0]:.0f} | {values[-1]:.0f} | {values.max():.0f} | {slope:+.1f} |")


def _tasks_known(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
