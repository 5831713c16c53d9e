"""What a job would do: items, chunks, tasks, passes, memory against the limit, rough time and disk; nothing is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow.compute as pc
from dask.utils import parse_bytes

from kmeans_dask.colours.quantize import plan_batches
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.pipeline.console import duration, show_line, show_table
from kmeans_dask.pipeline.plan.estimate import estimate
from kmeans_dask.pipeline.plan.image_sizes import plan_of
from kmeans_dask.pipeline.plan.memory import megapixels_that_fit
from kmeans_dask.pipeline.plan.rates import Rate, measured_rates
from kmeans_dask.sources.listing import list_items


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
        stage: told.seconds * (rates[stage].factor if stage in rates else 1) for stage, told in estimates.items()
    }
    rows = []
    for stage, told in estimates.items():
        memory = f"{plan.total(stage) / 2**20:,.0f}" if stage != "report" else "-"
        cells = [f"{told.tasks:,}", f"{told.passes}", memory, duration(seconds[stage]), f"{told.disk / 2**20:,.1f}"]
        rows.append([stage, *cells])
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
    disk = sum(told.disk for told in estimates.values())
    show_line(f"together about {duration(sum(seconds.values()))} and {disk / 2**20:,.0f} MiB; {_whose(rates, wanted)}")
    plan.check()


def _whose(rates: Mapping[str, Rate], stages: Sequence[str]) -> str:
    """Say in a phrase where the times come from."""
    runs = dict.fromkeys(rate.run for rate in rates.values())
    told = [
        f"from the rates of run {run} ({_names(s for s in stages if s in rates and rates[s].run == run)})"
        for run in runs
    ]
    if built_in := _names(stage for stage in stages if stage not in rates):
        told.append(
            f"from built-in rates ({built_in}), which are those of cores of 2.6 GHz (benchmarks/RESULTS.md) and within "
            "a factor of about three"
        )
    return "time " + " and ".join(told)


def _names(stages: Iterable[str]) -> str:
    return ", ".join(stages)


def _workers_of(config: Config) -> Workers:
    """Say what the cluster will have; a running one is asked, none is started."""
    cluster = config.cluster
    if cluster.kind == "address":
        from kmeans_dask.deploy.client import connect
        from kmeans_dask.deploy.workers import workers_of  # a second that only this needs

        with connect(cluster) as client:
            return workers_of(client)
    cores = os.cpu_count() or 1
    n = cluster.n_workers or (cluster.adaptive or [max(cores // cluster.threads_per_worker, 1)])[-1]
    if cluster.kind == "threads" or (cluster.kind != "local" and cluster.memory_limit == "auto"):
        return Workers(n, cluster.threads_per_worker, 0)
    if cluster.memory_limit != "auto":
        return Workers(n, cluster.threads_per_worker, parse_bytes(cluster.memory_limit))
    share = min(1.0, cluster.threads_per_worker / cores)  # as LocalCluster does
    return Workers(n, cluster.threads_per_worker, int(psutil.virtual_memory().total * share))
