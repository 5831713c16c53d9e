"""Run stages in order: skip what is finished, say what changed, record what is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import LOG, say, show_line
from kmeans_dask.pipeline.driver.bytes_moved import bytes_of_stage
from kmeans_dask.pipeline.driver.failures import explained
from kmeans_dask.pipeline.driver.logs import in_stage
from kmeans_dask.pipeline.driver.session import command_line, holding, recorded_end
from kmeans_dask.pipeline.resume import _NEEDS, _skip, settings_of
from kmeans_dask.pipeline.stages.listing import check_against_items, list_items_of
from kmeans_dask.storage.run_folder import RunFolder, make_run_folder, open_run


def run_stages(
    config: Config,
    stages: Sequence[str],
    *,
    fresh: bool = False,
    update: bool = False,
    look_again: bool = True,
    job: str | None = None,
    command: str | None = None,
) -> None:
    """Run the stages that the config has, on the cluster that it names.

    Parameters
    ----------
    config
        Checked config.
    stages
        Names in the order in which they are run. A stage whose section is absent is not run.
    fresh
        Remove what an earlier run left.
    update
        Whether models go on from their old centres when the collection has changed.
    look_again
        Whether ingest looks for what has changed in an input that is listed already.
    job
        Key of the submitted job that this is the driver of; it is fresh once, however often its driver is started.
    command
        What was asked for; None: the command line of this process.

    Raises
    ------
    UserError
        The input is wrong, a stage is asked for that the config has no section for, or another driver works on the run.
    JobError
        The work failed.
    """
    wanted = [stage for stage in stages if getattr(config, stage) is not None]
    if not wanted:
        raise UserError(f"the config has no section {stages[0]}, so there is nothing to do; add it, or use run")
    folder = make_run_folder(config)
    command = command or command_line()
    held = ExitStack()
    lock = held.enter_context(holding(folder, command, job))  # a store that is not reached yet is the user's mistake
    with explained(folder.path), held:
        again = job is not None and lock.before is not None and lock.before["job"] == job
        open_run(config, fresh=fresh and not again, command=command, driver_starts=lock.number)
        # the end is recorded before the workers are ended
        with ExitStack() as cluster, recorded_end(folder, lock), explained(folder.path):
            _check_named(wanted, config, folder)
            list_items_of(config, folder, look_again=look_again and "ingest" in stages)
            check_against_items(config, folder)
            client = None
            for stage in wanted:
                if _skip(stage, config, folder):
                    continue
                if stage == "report":
                    cluster.close()
                    client = None
                elif client is None:
                    client = cluster.enter_context(_workers(config, folder))
                _run_stage(stage, config, folder, client, **({"update": update} if stage == "fit" else {}))
        folder.set_state("finished")
    show_line(f"report: {folder.report}" if "report" in wanted else f"results: {folder.path}")


def _check_named(wanted: Sequence[str], config: Config, folder: RunFolder) -> None:
    """Refuse a palette, a file of features or a function that cannot be had, before time is spent on other stages."""
    todo = [stage for stage in wanted if folder.finished(stage, settings_of(stage, config, folder)) is None]
    if "fit" in todo and config.features and config.features.kind not in ("pixels", "file"):
        from kmeans_dask.collection.extractors import extractor_of

        extractor_of(config.features.kind)


@contextmanager
def _workers(config: Config, folder: RunFolder) -> Iterator[Any]:
    """Yield a client of the workers; what is wrong with the input has been said before this second is spent."""
    from kmeans_dask.deploy.client import connect
    from kmeans_dask.deploy.security import open_to_others
    from kmeans_dask.deploy.workers import dashboard_link, recorded, workers_of
    from kmeans_dask.pipeline.plan.image_sizes import check_memory

    if config.cluster.kind in ("slurm", "pbs", "kubernetes"):
        say(f"workers: asked for, kind {config.cluster.kind}; the job begins with the first")
    report = folder.path / "performance.html" if config.cluster.performance_report else None
    with connect(config.cluster, say) as client, explained(folder.path, client), recorded(report):
        if risk := open_to_others(client):
            say(f"warning: {risk}")
        check_memory(config, folder, workers_of(client))
        if config.cluster.dashboard:
            say(f"dashboard: {dashboard_link(client)}")
        yield client


def _run_stage(stage: str, config: Config, folder: RunFolder, client: Any, **options: bool) -> None:
    for need in _NEEDS[stage]:
        if getattr(config, need) is not None and folder.finished(need, settings_of(need, config, folder)) is None:
            raise UserError(
                f"{stage} reads what {need} writes, which is not finished with this config: run {need} first"
            )
    from_nothing = not folder.has_begun(stage)
    start = time.monotonic()
    with in_stage(stage), explained(folder.path, client):
        LOG.info(f"{stage} started")
        summary = import_module(f"kmeans_dask.pipeline.stages.{stage}").run(config, client, **options)
        seconds = time.monotonic() - start
        bytes_read, bytes_written = bytes_of_stage(stage, folder)
        facts = {
            "workers": _workers_by_host(client),
            "threads": _threads(client),
            "bytes_read": bytes_read,
            "bytes_written": bytes_written,
            "from_nothing": from_nothing,  # else a part of the work had been done before
        }
        folder.finish(stage, settings_of(stage, config, folder), summary, seconds, **facts)
        LOG.info(f"{stage} finished", extra={"facts": {"seconds": round(seconds, 3), **facts, "summary": summary}})


def _workers_by_host(client: Any) -> dict[str, int]:
    if client is None:
        return {}
    from kmeans_dask.deploy.workers import worker_hosts  # imported already; a job that needs no workers is spared it

    return worker_hosts(client)


def _threads(client: Any) -> int:
    """Threads of a worker."""
    if client is None:
        return 0
    from kmeans_dask.deploy.workers import workers_of

    return workers_of(client).threads
