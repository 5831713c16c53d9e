"""What a job would do: items, chunks, tasks, passes, memory against the limit, rough time and disk; nothing is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow.compute as pc
from dask.utils import parse_bytes

from jobs.console import duration, show_line, show_table
from jobs.memory import plan_of
from kmeans_dask.config import Config
from kmeans_dask.estimate import estimate
from kmeans_dask.memory_plan import Workers, megapixels_that_fit
from kmeans_dask.quantize import plan_batches
from kmeans_dask.sources import list_items


def dry_run(config: Config, stages: Sequence[str]) -> None:
    """Print the plan of the stages that the config has; the input is listed, no cluster is started.

    Parameters
    ----------
    config
        Checked config.
    stages
        Names in the order in which they would be run.

    Raises
    ------
    UserError
        The input is wrong, or the plan does not fit into the workers' memory; it is printed before.
    """
    wanted = [stage for stage in stages if getattr(config, stage) is not None]
    with TemporaryDirectory(prefix="kmeans-dask-") as folder:
        items = list_items(config.input, config.seed, Path(folder) / "input")
    workers = _workers_of(config)
    chunks, plan = plan_of(config, items, workers)
    n_bytes = int(pc.sum(items["bytes"]).as_py() or 0)
    batches = len(plan_batches(items)) if config.quantize else 0
    n_chunks = len(chunks.starts) if chunks else 0
    rows, total_seconds, total_disk = [], 0.0, 0
    for stage in wanted:
        told = estimate(
            config, stage, n_items=len(items), n_bytes=n_bytes, chunks=n_chunks, batches=batches,
            cores=workers.n * workers.threads,
        )  # fmt: skip
        memory = f"{plan.total(stage) / 2**20:,.0f}" if stage != "report" else "-"
        cells = [f"{told.tasks:,}", f"{told.passes}", memory, duration(told.seconds), f"{told.disk / 2**20:,.1f}"]
        rows.append([stage, *cells])
        total_seconds, total_disk = total_seconds + told.seconds, total_disk + told.disk
    show_line(f"{config.name}: {len(items):,} items, {n_bytes / 2**20:,.1f} MiB of files")
    if chunks:
        show_line(f"{n_chunks:,} chunks of {chunks.chunk_rows:,} items")
    limit = f"{workers.limit / 2**20:,.0f} MiB each" if workers.limit else "no memory limit that is known"
    show_line(f"{workers.n} workers of {workers.threads} threads, {limit}")
    columns = ["stage", "tasks", "passes", "MiB a worker", "time, roughly", "MiB of disk"]
    show_table("what would be done", columns, rows)
    for stage in ("ingest", "quantize"):
        if stage in wanted:
            fits = megapixels_that_fit(config, plan, stage)
            show_line(
                f"{stage}: a worker has room for images of {fits:,.0f} megapixels; input.max_pixels allows "
                f"{config.input.max_pixels / 1e6:,.0f}"
            )
    show_line(
        f"together about {duration(total_seconds)} and {total_disk / 2**20:,.0f} MiB; rates as measured on cores of "
        "2.6 GHz (benchmarks/RESULTS.md), within a factor of about three"
    )
    plan.check()


def _workers_of(config: Config) -> Workers:
    """Say what the cluster will have; a running one is asked, none is started."""
    cluster = config.cluster
    if cluster.kind == "address":
        from kmeans_dask.cluster import connect, workers_of  # a second that only this needs

        with connect(cluster) as client:
            return workers_of(client)
    cores = os.cpu_count() or 1
    n = cluster.workers or (cluster.adaptive or [max(cores // cluster.threads, 1)])[-1]
    if cluster.kind == "threads" or (cluster.kind != "local" and cluster.memory == "auto"):
        return Workers(n, cluster.threads, 0)
    if cluster.memory != "auto":
        return Workers(n, cluster.threads, parse_bytes(cluster.memory))
    share = min(1.0, cluster.threads / cores)  # as LocalCluster does
    return Workers(n, cluster.threads, int(psutil.virtual_memory().total * share))
