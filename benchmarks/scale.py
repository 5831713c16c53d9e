"""What grows with the number of images: tasks, memory and time of the scheduler, of the driver, of the plan.

``python -m benchmarks.scale run FOLDER N``: N items, links to the images of FOLDER, through four stages on a cluster of
processes. ``python -m benchmarks.scale plan N``: N tiny items of an array are listed, planned and submitted, not run.
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
from kmeans_dask.colours.quantize import missing_outputs, quantize_tasks
from kmeans_dask.config.sections import Config, Ingest, Input, Quantize
from kmeans_dask.pipeline.run import run_stages
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest

STAGES = ("ingest", "fit", "evaluate", "quantize")
IMAGES, HOSTS, CHUNK_MIB, BATCH, WIDTH, CENTRES = 10**8, 100, 64, 1024, 784, 256
"""What is estimated: so many images on so many workers of one thread."""


class Peak:
    """Most memory of a process while it is looked at, MiB."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._ended, self.most = process, threading.Event(), 0.0

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        """Look five times a second."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, rss(self._process))


def run(folder: Path, n: int, scratch: Path) -> None:
    """Print a line a stage, and what follows from it for many more images."""
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

    def told() -> Iterator[list[str]]:
        for stage in STAGES:
            before, done = sum(cluster.scheduler.cpu_times()[:2]), _lines(log)
            with Peak(cluster.scheduler).watched() as peak:
                wall, _ = seconds(lambda stage=stage: run_stages(config, (stage,)))
            cpu.append(sum(cluster.scheduler.cpu_times()[:2]) - before)
            walls.append(wall)
            tasks.append(_lines(log) - done)
            yield [
                stage, f"{tasks[-1]:,}", f"{wall:.1f}", f"{cpu[-1]:.2f}", f"{cpu[-1] / wall:.1%}",
                f"{peak.most:.0f}", f"{rss(cluster.scheduler):.0f}", f"{rss(psutil.Process()):.0f}",
            ]  # fmt: skip

    columns = [
        "stage", "tasks", "seconds", "scheduler, s", "share", "scheduler: peak MiB", "at the end", "driver, MiB",
    ]  # fmt: skip
    print(f"scheduler before the first stage: {rss(cluster.scheduler):.0f} MiB")
    table(f"{n:,} items, {WORKERS} workers", columns, told())
    print(
        f"\nof all stages: {sum(tasks):,} tasks, scheduler {sum(cpu) / sum(walls):.1%} of the time, "
        f"{1000 * sum(cpu) / sum(tasks):.2f} ms a task"
    )
    _estimate(n, dict(zip(STAGES, walls, strict=True)), sum(cpu) / sum(tasks))


def _estimate(n: int, walls: dict[str, float], a_task: float) -> None:
    """Multiply the measured rates: what the workers do and what the scheduler does go on at the same time."""
    rows_a_chunk = CHUNK_MIB * 2**20 // WIDTH
    chunks, batches = -(-IMAGES // rows_a_chunk), -(-IMAGES // BATCH)
    flops = 2.0 * IMAGES * WIDTH * CENTRES
    rows = []
    for what, work, count in (
        ("ingest", walls["ingest"] * WORKERS / n * IMAGES / HOSTS, chunks),
        (f"a pass, K = {CENTRES}", flops / 120e9 / HOSTS, chunks * 8 // 7),
        ("quantize, K = 4", walls["quantize"] * WORKERS / n * IMAGES / HOSTS, batches),
    ):
        rows.append([what, f"{count:,}", f"{work:,.0f}", f"{count * a_task:,.0f}", f"{max(work, count * a_task):,.0f}"])
    table(
        f"{IMAGES:,} images of 28 x 28 on {HOSTS} workers, chunks of {CHUNK_MIB} MiB: multiplied, not measured",
        ["what", "tasks", "workers, s", "scheduler, s", "the longer, s"],
        rows,
    )


def plan(n: int, scratch: Path) -> None:
    """Print what listing, planning and submitting cost; no worker is there to run anything."""
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
    job = (manifest, scratch, Quantize(k=[4]), 0, 10**6)
    missing = measured("find what is not quantized", lambda: missing_outputs(*job))
    quantize = measured("plan quantize", lambda: quantize_tasks(*job, missing))
    with processes(scratch) as cluster, Client(cluster.address) as client:
        for worker in cluster.workers():
            worker.suspend()  # nothing is run: what is measured is the scheduler's state of all of it
        for name, tasks in (("ingest", ingest), ("quantize", quantize)):
            before, cpu = rss(cluster.scheduler), sum(cluster.scheduler.cpu_times()[:2])
            start = time.perf_counter()
            futures = client.compute(tasks)
            while client.run_on_scheduler(_known) < len(tasks):
                time.sleep(0.05)
            wall, cpu = time.perf_counter() - start, sum(cluster.scheduler.cpu_times()[:2]) - cpu
            more = rss(cluster.scheduler) - before
            rows.append(
                [f"submit {name} ({cpu:.2f} s of the scheduler)", f"{wall:.2f}", f"{more:+.0f}", f"{len(tasks):,}"]
            )
            client.cancel(futures)
            del futures
    table(f"{n:,} items in {len(plan_of(collection).starts):,} chunks", ["what", "seconds", "MiB", "tasks"], rows)
    print(f"driver at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


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
