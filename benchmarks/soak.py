"""Repeat whole runs on one cluster, and track the memory of scheduler, workers and driver.

``python -m benchmarks.soak FOLDER MINUTES`` runs all stages on the images of FOLDER from scratch until the time is up.
It prints the resident memory of the processes in MiB after each run, and at the end the slope of a linear fit.
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

_WARM_UP_RUNS = 2
"""Runs left out of the fit, in which modules are imported and kernels compiled."""


def config_of(folder: Path, scratch: Path, address: str) -> Config:
    """Config of every run: all stages at a small size."""
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
    print(f"\n| run | ended at, s | {' | '.join(names)} | tasks on the scheduler |\n|{'---|' * 7}", flush=True)
    start, samples = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch, processes(Path(scratch)) as cluster:
        watched = [psutil.Process(), cluster.scheduler, *cluster.workers()]
        config = config_of(folder, Path(scratch), cluster.address)
        while time.monotonic() - start < 60 * minutes:
            run_stages(config, tuple(STAGES), fresh=True)
            gc.collect()
            known = _tasks_known(cluster.address)
            samples.append((time.monotonic() - start, *map(rss, watched)))
            cells = [f"{value:.0f}" for value in samples[-1]]
            print(f"| {len(samples)} | {' | '.join(cells)} | {known} |", flush=True)
        assert [process.pid for process in cluster.workers()] == [process.pid for process in watched[2:]], (
            "a worker was restarted"
        )
    if len(samples) <= _WARM_UP_RUNS + 1:
        return
    line = np.array(samples[_WARM_UP_RUNS:])
    print(f"\n| from run {_WARM_UP_RUNS + 1} on | first, MiB | last | largest | MiB/hour |\n|{'---|' * 5}")
    for name, values in zip(names, line.T[1:], strict=True):
        slope = np.polyfit(line[:, 0] / 3600, values, 1)[0]
        print(f"| {name} | {values[0]:.0f} | {values[-1]:.0f} | {values.max():.0f} | {slope:+.1f} |")


def _tasks_known(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
