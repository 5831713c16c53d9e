"""A fit on worker processes gives bitwise the same centres as one in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kmeans_dask import KMeans, MiniBatchKMeans, fit_together

DASK = Path(sys.executable).with_name("dask")
"""The ``dask`` command of this environment."""


def rows_of_digits() -> NDArray[np.uint8]:
    digits = load_digits().data.astype(np.int64) * 15
    noise = np.random.default_rng(6).integers(-9, 10, (5 * len(digits), 64))
    return np.clip(np.repeat(digits, 5, axis=0) + noise, 0, 255).astype(np.uint8)


ROWS = rows_of_digits()


WEIGHTS = np.random.default_rng(0).uniform(0, 3, len(ROWS))


def fitted(X: da.Array) -> list[Any]:
    """Fit bytes: their sums are integers, so that chunks and workers do not matter."""
    sweep = [
        KMeans(10, random_state=1),
        KMeans(10, random_state=1, algorithm="lloyd", max_iter=8),
        KMeans(25, init="k-means++", random_state=2, max_iter=8),
        KMeans(5, init="random", random_state=3, max_iter=8),
    ]
    fit_together(sweep, X)
    return [*sweep, MiniBatchKMeans(10, batch_size=2000, max_iter=2, random_state=4).fit(X)]


def fitted_to_floats(X: da.Array) -> KMeans:
    """Fit floats: the order of their sums depends on the chunks alone, not on the order of completion."""
    return KMeans(10, random_state=1, max_iter=8).fit(X / np.float32(255), sample_weight=WEIGHTS)


class Cluster:
    """A scheduler and its workers in separate processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scheduler_file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        limit = time.monotonic() + 120
        while not self._address():
            assert self.processes[0].poll() is None, (folder / "log-0").read_text()
            assert time.monotonic() < limit, "the scheduler wrote no address"
            time.sleep(0.05)

    def start(self, kind: str, *options: str) -> None:
        log = self.folder / f"log-{len(self.processes)}"
        with open(log, "wb") as output:
            self.processes.append(
                subprocess.Popen(
                    [str(DASK), kind, "--scheduler-file", str(self.scheduler_file), *options],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # as Dask's nanny sets them
                )
            )

    def start_worker(self) -> None:
        directory = str(self.folder / "workers")
        options = "--host 127.0.0.1 --nthreads 1 --no-nanny --no-dashboard --memory-limit 1GiB"
        self.start("worker", *options.split(), "--local-directory", directory)

    def _address(self) -> str:
        try:
            return str(json.loads(self.scheduler_file.read_text())["address"])
        except (FileNotFoundError, ValueError):  # missing, or half-written
            return ""

    def end(self) -> None:
        """Kill all processes: there is nothing to save, and a clean shutdown makes them wait for each other."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def here() -> list[Any]:
    with dask.config.set(scheduler="threads"):
        return [
            *fitted(da.from_array(ROWS, chunks=(8192, 64))),
            fitted_to_floats(da.from_array(ROWS, chunks=(2048, 64))),
        ]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_fit_is_bitwise_equal_for_any_number_of_workers(cluster: Cluster, here: list[Any], n_workers: int) -> None:
    while len(cluster.processes) < 1 + n_workers:
        cluster.start_worker()
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:
        client.wait_for_workers(n_workers, timeout=120)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == n_workers
        X = da.from_array(ROWS, chunks=(2048, 64)).persist()
        for one, other in zip([*fitted(X), fitted_to_floats(X)], here, strict=True):
            np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_, strict=True)
            local_labels = other.labels_.compute(scheduler="threads")
            np.testing.assert_array_equal(one.labels_.compute(), local_labels, strict=True)
            assert one.n_iter_ == other.n_iter_
            assert one.inertia_ == pytest.approx(other.inertia_, rel=1e-13)
        np.testing.assert_array_equal(one.predict(X / np.float32(255)).compute(), local_labels)
