"""Costs that grow with the number of images: tasks, scheduler and driver memory and time, planning.

``python -m benchmarks.scale run FOLDER N`` runs four stages on N links to images of FOLDER, on a cluster of processes.
``python -m benchmarks.scale plan N`` lists, plans and submits N tiny items of an array without running them.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client

from benchmarks.common import machine, seconds, table
from benchmarks.processes import WORKERS, Processes, processes, rss
from kmeans_dask.collection.ingest import ingest_tasks, plan_of
from kmeans_dask.colours.quantize import QuantizeJob, missing_outputs, quantize_tasks
from kmeans_dask.config.sections import Config, Ingest, Input, Quantize
from kmeans_dask.pipeline.run import run_stages
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest

STAGES = ("ingest", "fit", "evaluate", "quantize")
IMAGES, HOSTS, CHUNK_MIB, BATCH, N_FEATURES, K = 10**8, 100, 64, 1024, 784, 256
"""The extrapolated job: number of images, single-threaded workers, and the sizes that set its number of tasks."""


class Peak:
    """Peak resident memory of a process while it is watched, in MiB."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._ended, self.peak_mib = process, threading.Event(), 0.0

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        """Sample the memory five times per second during the block."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.2):
            self.peak_mib = max(self.peak_mib, rss(self._process))


def run(folder: Path, n: int, scratch: Path) -> None:
    """Print one row per stage, and an extrapolation to many more images."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for number, path in enumerate(islice(cycle(files), n)):
        link = scratch / "images" / path.parent.name / f"{number:07d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    os.environ["TASK_LOG"] = str(scratch / "tasks.log")
    cluster = Processes(scratch, preload=Path(__file__).with_name("task_log.py"))
    try:
        cluster.start()
        config = Config.model_validate(
            {
                "name": "scale",
                "output": str(scratch / "runs"),
                "input": {"path": str(scratch / "images"), "holdout": 0.1},
                "ingest": {"size": [28, 28], "mode": "L"},
                "fit": {"k": [10, 64]},
                "evaluate": {},
                "quantize": {"k": [4]},
                "cluster": {"kind": "address", "address": cluster.address},
            }
        )
        _stages(config, cluster, n, scratch / "tasks.log")
    finally:
        cluster.end()


def _stages(config: Config, cluster: Processes, n: int, log: Path) -> None:
    cpu, walls, tasks = [], [], []

    def rows() -> Iterator[list[str]]:
        for stage in STAGES:
            before, done = sum(cluster.scheduler.cpu_times()[:2]), _lines(log)
            with Peak(cluster.scheduler).watched() as peak:
                wall, _ = seconds(lambda stage=stage: run_stages(config, (stage,)))
            cpu.append(sum(cluster.scheduler.cpu_times()[:2]) - before)
            walls.append(wall)
            tasks.append(_lines(log) - done)
            yield [
                stage, f"{tasks[-1]:,}", f"{wall:.1f}", f"{cpu[-1]:.2f}", f"{cpu[-1] / wall:.1%}",
                f"{peak.peak_mib:.0f}", f"{rss(cluster.scheduler):.0f}", f"{rss(psutil.Process()):.0f}",
            ]  # fmt: skip

    columns = [
        "stage", "tasks", "seconds", "scheduler, s", "of the time", "scheduler: peak MiB", "at the end", "driver, MiB",
    ]  # fmt: skip
    print(f"scheduler before the first stage: {rss(cluster.scheduler):.0f} MiB")
    table(f"{n:,} items, {WORKERS} workers", columns, rows())
    print(
        f"\nall stages: {sum(tasks):,} tasks, scheduler {sum(cpu) / sum(walls):.1%} of the time, "
        f"{1000 * sum(cpu) / sum(tasks):.2f} ms per task"
    )
    _estimate(n, dict(zip(STAGES, walls, strict=True)), sum(cpu) / sum(tasks))


def _estimate(n: int, walls: dict[str, float], seconds_per_task: float) -> None:
    """Extrapolate the measured rates; workers and scheduler work at the same time, so the slower one counts."""
    rows_per_chunk = CHUNK_MIB * 2**20 // N_FEATURES
    chunks, batches = -(-IMAGES // rows_per_chunk), -(-IMAGES // BATCH)
    flops = 2.0 * IMAGES * N_FEATURES * K
    rows = []
    for what, busy, count in (
        ("ingest", walls["ingest"] * WORKERS / n * IMAGES / HOSTS, chunks),
        (f"one pass, K = {K}", flops / 120e9 / HOSTS, chunks * 8 // 7),
        ("quantize, K = 4", walls["quantize"] * WORKERS / n * IMAGES / HOSTS, batches),
    ):
        scheduling = count * seconds_per_task
        rows.append([what, f"{count:,}", f"{busy:,.0f}", f"{scheduling:,.0f}", f"{max(busy, scheduling):,.0f}"])
    table(
        f"{IMAGES:,} images of 28 x 28 on {HOSTS} workers, chunks of {CHUNK_MIB} MiB: extrapolated, not measured",
        ["what", "tasks", "workers, s", "scheduler, s", "maximum, s"],
        rows,
    )


def plan(n: int, scratch: Path) -> None:
    """Print the cost of listing, planning and submitting; the workers are suspended."""
    np.save(scratch / "tiny.npy", np.random.default_rng(0).integers(0, 255, (n, 8, 8), np.uint8))
    source, settings = Input(path=[str(scratch / "tiny.npy")], labels="none"), Ingest(size=(8, 8), mode="L")
    manifest, collection = scratch / "manifest.parquet", scratch / "collection.zarr"
    rows: list[list[str]] = []

    def measured(what: str, function: Callable[[], Any]) -> Any:
        before = rss(psutil.Process())
        wall, value = seconds(function)
        count = f"{len(value):,}" if isinstance(value, list) else "-"
        rows.append([what, f"{wall:.2f}", f"{rss(psutil.Process()) - before:+.0f}", count])
        return value

    items = measured("list", lambda: list_items(source, 0, scratch))
    measured("write the manifest", lambda: write_manifest(items, manifest))
    ingest = measured("plan ingest", lambda: ingest_tasks(manifest, collection, settings, source))
    job = QuantizeJob(manifest, scratch, Quantize(k=[4]), 0, 10**6)
    missing = measured("find missing images", lambda: missing_outputs(job))
    quantize = measured("plan quantize", lambda: quantize_tasks(job, missing))
    with processes(scratch) as cluster, Client(cluster.address) as client:
        for worker in cluster.workers():
            worker.suspend()  # nothing runs, so this measures the scheduler's state for all tasks
        for name, tasks in (("ingest", ingest), ("quantize", quantize)):
            before, cpu = rss(cluster.scheduler), sum(cluster.scheduler.cpu_times()[:2])
            start = time.perf_counter()
            futures = client.compute(tasks)
            while client.run_on_scheduler(_known) < len(tasks):
                time.sleep(0.05)
            wall, cpu = time.perf_counter() - start, sum(cluster.scheduler.cpu_times()[:2]) - cpu
            more = rss(cluster.scheduler) - before
            rows.append([f"submit {name} (scheduler: {cpu:.2f} s)", f"{wall:.2f}", f"{more:+.0f}", f"{len(tasks):,}"])
            client.cancel(futures)
            del futures
    table(f"{n:,} items in {len(plan_of(collection).starts):,} chunks", ["what", "seconds", "MiB", "tasks"], rows)
    print(f"driver peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def _known(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as scratch_folder:
        if sys.argv[1] == "run":
            run(Path(sys.argv[2]), int(sys.argv[3]), Path(scratch_folder))
        else:
            plan(int(sys.argv[2]), Path(scratch_folder))
