"""Helpers shared by the benchmarks: machine description, quality measures, medians and tables."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from kmeans_dask.collection.collection import open_collection
from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy.client import connect


def machine() -> str:
    """Describe processor, cores, memory, Python, BLAS kernel and the relevant package versions in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    blas = sorted(
        {f"{i['internal_api']} {i['version']} {i['architecture']}" for i in threadpool_info() if "architecture" in i}
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "dask", "dask-ml", "scikit-learn", "numba"))
    return (
        f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB; Python {platform.python_version()}, {packages}; "
        f"BLAS {'; '.join(blas)}; load before {os.getloadavg()[0]:.1f}"
    )


def inertia(X: NDArray[np.uint8], centres: NDArray[Any]) -> float:
    """Sum of squared distances to the nearest centre, on pixels / 255; the same formula for every engine."""
    centres = np.asarray(centres, np.float64)
    total = 0.0
    for start in range(0, len(X), 4096):
        rows = X[start : start + 4096].astype(np.float64)
        scores = (centres**2).sum(axis=1) - 2 * rows @ centres.T
        total += float((scores.min(axis=1) + (rows**2).sum(axis=1)).sum())
    return total / 255**2


def nearest(X: NDArray[np.uint8], centres: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the nearest centre for every row."""
    centres = np.asarray(centres, np.float32)
    norms = (centres**2).sum(axis=1)
    parts = [
        np.argmin(norms - 2 * X[i : i + 4096].astype(np.float32) @ centres.T, axis=1) for i in range(0, len(X), 4096)
    ]
    return np.concatenate(parts)


def accuracy(
    train: NDArray[np.uint8], labels: NDArray[np.int32], test: NDArray[np.uint8], truth: NDArray[np.int32], centres: Any
) -> float:
    """Fraction of test rows whose label is the majority label of their cluster among the train rows."""
    table = np.zeros((len(centres), labels.max() + 1))
    np.add.at(table, (nearest(train, centres), labels), 1)
    return float((table.argmax(axis=1)[nearest(test, centres)] == truth).mean())


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of one call, and its return value."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def median(function: Callable[[], Any], runs: int = 7) -> float:
    """Median wall time of several calls, after one warm-up call."""
    function()
    return statistics.median(seconds(function)[0] for _ in range(runs))


def medians_in_turn(functions: Sequence[Callable[[], Any]], runs: int = 9) -> list[float]:
    """Median wall times of functions called in turn, so that a drift in machine speed affects all of them equally."""
    for function in functions:
        function()
    walls = [[seconds(function)[0] for function in functions] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*walls, strict=True)]


@contextmanager
def workers(n: int = 2, memory: str = "auto") -> Iterator[Client]:
    """Yield a client of n single-threaded worker processes, configured as in a job."""
    with connect(Cluster(kind="local", n_workers=n, memory_limit=memory)) as client:
        yield client


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table, row by row as the results arrive."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)


class Mnist:
    """The MNIST collection of a finished run, as a lazy Dask array and in memory."""

    def __init__(self, run: Path) -> None:
        self.collection = open_collection(run / "collection.zarr")
        self.X, index = self.collection.rows("train")
        self.train = self.X.compute(scheduler="threads")
        self.labels = self.collection.labels[index]
        held, index = self.collection.rows("holdout")
        self.test = held.compute(scheduler="threads")
        self.truth = self.collection.labels[index]

    def chunked(self, rows: int) -> da.Array:
        """Return the in-memory train rows as a Dask array in chunks of ``rows`` rows."""
        return da.from_array(self.train, chunks=(rows, -1))
