"""The plan of a job: items, chunks, tasks, passes, memory against its limit, rough time and disk space."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow.compute as pc
from dask.utils import parse_bytes

from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.pipeline.console import duration, show_line, show_table
from kmeans_dask.pipeline.plan.estimate import estimate
from kmeans_dask.pipeline.plan.image_sizes import plan_of
from kmeans_dask.pipeline.plan.memory import megapixels_that_fit
from kmeans_dask.pipeline.plan.rates import Rate, measured_rates
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.listing import list_items


def dry_run(config: Config, stages: Sequence[str]) -> None:
    """Print the plan of the stages that the config has. The input is listed; no cluster is started.

    Parameters
    ----------
    config
        Checked config.
    stages
        Names of stages, in the order in which they would run.

    Raises
    ------
    UserError
        The input is wrong; or the plan, which is printed first, does not fit into the memory of the workers.
    """
    wanted = [stage for stage in stages if getattr(config, stage) is not None]
    with TemporaryDirectory(prefix="kmeans-dask-") as folder:
        items = list_items(config.input, config.seed, Path(folder) / "input")
    workers = _workers_of(config)
    chunks, plan = plan_of(config, items, workers)
    n_bytes = int(pc.sum(items["bytes"]).as_py() or 0)
    batches = len(plan_batches(items, workers.n * workers.threads)) if config.quantize else 0
    n_chunks = len(chunks.starts) if chunks else 0
    estimates = {
        stage: estimate(
            config, stage, n_items=len(items), n_bytes=n_bytes, chunks=n_chunks, batches=batches,
            cores=workers.n * workers.threads,
        )
        for stage in wanted
    }  # fmt: skip
    rates = measured_rates(config, estimates)
    seconds = {
        stage: estimated.seconds * (rates[stage].factor if stage in rates else 1)
        for stage, estimated in estimates.items()
    }
    rows = []
    for stage, estimated in estimates.items():
        memory = f"{plan.total(stage) / 2**20:,.0f}" if stage != "report" else "-"
        time, disk = duration(seconds[stage]), f"{estimated.disk / 2**20:,.1f}"
        cells = [f"{estimated.tasks:,}", f"{estimated.passes}", memory, time, disk]
        rows.append([stage, *cells])
    show_line(f"{config.name}: {len(items):,} items, {n_bytes / 2**20:,.1f} MiB of files")
    if chunks:
        show_line(f"{n_chunks:,} chunks of {chunks.chunk_rows:,} items")
    limit = f"memory limit {workers.limit / 2**20:,.0f} MiB each" if workers.limit else "no known memory limit"
    show_line(f"{workers.n} workers with {workers.threads} threads each, {limit}")
    columns = ["stage", "tasks", "passes", "MiB per worker", "time, roughly", "MiB on disk"]
    show_table("plan", columns, rows)
    for stage in ("ingest", "quantize"):
        if stage in wanted:
            megapixels = megapixels_that_fit(config, plan, stage)
            show_line(
                f"{stage}: a worker has room for images of {megapixels:,.0f} megapixels; input.max_pixels allows "
                f"{config.input.max_pixels / 1e6:,.0f}"
            )
    total_disk = sum(estimated.disk for estimated in estimates.values())
    show_line(
        f"total: about {duration(sum(seconds.values()))} and {total_disk / 2**20:,.0f} MiB; {_origin(rates, wanted)}"
    )
    plan.check()


def _origin(rates: Mapping[str, Rate], stages: Sequence[str]) -> str:
    """Describe where the times come from."""
    runs = dict.fromkeys(rate.run for rate in rates.values())
    origins = [
        f"from the rates of run {run} ({_names(s for s in stages if s in rates and rates[s].run == run)})"
        for run in runs
    ]
    if built_in := _names(stage for stage in stages if stage not in rates):
        origins.append(f"from built-in rates ({built_in}), measured at 2.6 GHz, and good to a factor of three")
    return "time " + " and ".join(origins)


def _names(stages: Iterable[str]) -> str:
    return ", ".join(stages)


def _workers_of(config: Config) -> Workers:
    """Return the workers that the job will have. A running cluster is queried; none is started."""
    cluster = config.cluster
    if cluster.kind == "address":
        from kmeans_dask.deploy.client import connect
        from kmeans_dask.deploy.workers import workers_of  # these imports cost a second

        with connect(cluster) as client:
            return workers_of(client)
    cores = os.cpu_count() or 1
    n = cluster.n_workers or (cluster.adaptive or [max(cores // cluster.threads_per_worker, 1)])[-1]
    if cluster.kind == "threads" or (cluster.kind != "local" and cluster.memory_limit == "auto"):
        return Workers(n, cluster.threads_per_worker, 0)
    if cluster.memory_limit != "auto":
        return Workers(n, cluster.threads_per_worker, parse_bytes(cluster.memory_limit))
    fraction = min(1.0, cluster.threads_per_worker / cores)  # as LocalCluster does
    return Workers(n, cluster.threads_per_worker, int(psutil.virtual_memory().total * fraction))
