"""Run the stages of a job in order: skip what is finished, log what changed, record what is done."""

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
from kmeans_dask.pipeline.resume import STAGES, has_started, is_finished, settings_of, skip
from kmeans_dask.pipeline.stages.listing import check_against_items, list_items_of
from kmeans_dask.storage.run_folder import RunFolder, make_run_folder
from kmeans_dask.storage.run_record import RunRecord, open_run


def run_stages(
    config: Config,
    stages: Sequence[str],
    *,
    fresh: bool = False,
    update: bool = False,
    list_again: bool = True,
    job: str | None = None,
    command: str | None = None,
) -> None:
    """Run the stages that the config has, on the cluster that it names.

    Parameters
    ----------
    config
        Checked config.
    stages
        Names of stages, in the order in which they run. A stage whose section is absent is left out.
    fresh
        Remove what an earlier run left.
    update
        Continue from the old centres of the models if the collection has changed.
    list_again
        Look for changes in an input that is already listed, if ingest is among the stages.
    job
        Key of the submitted job that this driver belongs to; `fresh` holds once, however often its driver is restarted.
    command
        Command line to record; None: that of this process.

    Raises
    ------
    UserError
        The input is wrong, the config lacks the section of a requested stage, or another driver works on the run.
    JobError
        The work failed.
    """
    wanted = [stage for stage in stages if getattr(config, stage) is not None]
    if not wanted:
        raise UserError(f"the config has no section {stages[0]}, so there is nothing to do; add it, or use run")
    folder = make_run_folder(config)
    command = command or command_line()
    session = ExitStack()
    # outside `explained`: a store that was never reachable is a mistake in the input, not a lost run
    lock = session.enter_context(holding(folder, command, job))
    with explained(folder.path), session:
        restarted = job is not None and lock.previous is not None and lock.previous["job"] == job
        record = open_run(config, fresh=fresh and not restarted, command=command, driver_starts=lock.number)
        # the end is recorded before the workers stop
        with ExitStack() as cluster, recorded_end(record, lock), explained(folder.path):
            _check_extractor(wanted, config, record)
            list_items_of(config, record, list_again=list_again and "ingest" in stages)
            check_against_items(config, folder)
            client = None
            for stage in wanted:
                if skip(stage, config, record):
                    continue
                if stage == "report":  # needs no workers
                    cluster.close()
                    client = None
                elif client is None:
                    client = cluster.enter_context(_workers(config, folder))
                _run_stage(stage, config, record, client, **({"update": update} if stage == "fit" else {}))
        record.set_state("finished")
    show_line(f"report: {folder.report}" if "report" in wanted else f"results: {folder.path}")


def _check_extractor(wanted: Sequence[str], config: Config, record: RunRecord) -> None:
    """Import the feature function, and read the palette (in `is_finished`), before any stage runs: both fail early."""
    todo = [stage for stage in wanted if not is_finished(stage, config, record)]
    if "fit" in todo and config.features and config.features.kind not in ("pixels", "file"):
        from kmeans_dask.collection.extractors import extractor_of

        extractor_of(config.features.kind)


@contextmanager
def _workers(config: Config, folder: RunFolder) -> Iterator[Any]:
    """Yield a client connected to the workers. Imports take a second, so mistakes in the input are reported before."""
    from kmeans_dask.deploy.client import connect
    from kmeans_dask.deploy.security import exposure_warning
    from kmeans_dask.deploy.workers import dashboard_link, record_performance, workers_of
    from kmeans_dask.pipeline.plan.image_sizes import check_memory

    if config.cluster.is_queued:
        say(f"waiting for workers ({config.cluster.kind}); starting with the first")
    report = folder.path / "performance.html" if config.cluster.performance_report else None
    with connect(config.cluster, say) as client, explained(folder.path, client), record_performance(report):
        if risk := exposure_warning(client):
            say(f"warning: {risk}")
        check_memory(config, folder, workers_of(client))
        if config.cluster.dashboard:
            say(f"dashboard: {dashboard_link(client)}")
        yield client


def _run_stage(stage: str, config: Config, record: RunRecord, client: Any, **options: bool) -> None:
    """Run one stage, and record its summary, duration, workers and bytes."""
    folder = record.folder
    for need in STAGES[stage].needs:
        if getattr(config, need) is not None and not is_finished(need, config, record):
            raise UserError(
                f"{stage} reads what {need} writes, which is not finished with this config; run {need} first"
            )
    from_nothing = not has_started(stage, folder)
    start = time.monotonic()
    with in_stage(stage), explained(folder.path, client):
        LOG.info(f"{stage} started")
        summary = import_module(f"kmeans_dask.pipeline.stages.{stage}").run(config, client, **options)
        seconds = time.monotonic() - start
        bytes_read, bytes_written = bytes_of_stage(stage, folder)
        facts = {
            **_worker_counts(client),
            "bytes_read": bytes_read,
            "bytes_written": bytes_written,
            "from_nothing": from_nothing,  # False: an earlier start did part of the work
        }
        record.finish(stage, settings_of(stage, config, record), summary, seconds, **facts)
        LOG.info(f"{stage} finished", extra={"facts": {"seconds": round(seconds, 3), **facts, "summary": summary}})


def _worker_counts(client: Any) -> dict[str, Any]:
    """Return the number of workers per host, and of threads per worker."""
    if client is None:
        return {"workers": {}, "threads": 0}
    from kmeans_dask.deploy.workers import worker_hosts, workers_of  # already imported; a report alone needs no Dask

    return {"workers": worker_hosts(client), "threads": workers_of(client).threads}
