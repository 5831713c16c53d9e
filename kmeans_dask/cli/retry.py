"""Command retry: repeat what failed, and rerun only what depends on it."""

from __future__ import annotations

from kmeans_dask.collection.update import mark_failed_for_retry
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import say
from kmeans_dask.pipeline.driver.session import command_line, holding
from kmeans_dask.pipeline.finished import config_of
from kmeans_dask.pipeline.resume import STAGES, has_started
from kmeans_dask.pipeline.run import run_stages
from kmeans_dask.storage.journal import find_journal
from kmeans_dask.storage.object_store import reporting_unreachable
from kmeans_dask.storage.run_folder import RunFolder, run_folder
from kmeans_dask.storage.run_record import RunRecord


def retry(path: str, cluster: str | None = None) -> None:
    """Retry the failed parts of a run: items that could not be read, images that could not be quantized.

    Parameters
    ----------
    path
        Run folder.
    cluster
        As for `config.loading.load_config`.

    Raises
    ------
    UserError
        The folder is not a run that has ingested or quantized anything, or another driver works on it.
    JobError
        More than ``input.max_failed`` of the items failed again.
    """
    retry_failed(config_to_retry(path, cluster))


def config_to_retry(path: str, cluster: str | None = None) -> Config:
    """Read the config of a run that has ingested or quantized something.

    Parameters
    ----------
    path, cluster
        As for `retry`.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        The folder is not a run, or nothing in it has been ingested or quantized.
    """
    config = config_of(path, cluster)
    if not {"ingest", "quantize"} & set(_started(run_folder(config))):
        raise UserError(f"nothing in {path} has been ingested or quantized yet, so there is nothing to retry; use run")
    return config


def retry_failed(config: Config, *, job: str | None = None, command: str | None = None) -> None:
    """Retry the failed parts of a run, and rerun the stages that depend on what changes.

    Parameters
    ----------
    config
        From `config_to_retry`.
    job, command
        As for `pipeline.run.run_stages`.

    Raises
    ------
    UserError
        Another driver works on the run.
    JobError
        More than ``input.max_failed`` of the items failed again.
    """
    folder = run_folder(config)
    with reporting_unreachable(folder.path), holding(folder, command or command_line(), job):
        items = mark_failed_for_retry(folder.collection)
        journal = find_journal(folder.path)
        n_outputs = journal.forget_failed() if journal else 0
        say(
            f"{config.name}: retrying {len(items):,} items that could not be read and {n_outputs:,} outputs that failed"
        )
        record = RunRecord.read(folder)
        for stage, n_failed in (("ingest", len(items)), ("quantize", n_outputs)):
            if n_failed:
                record.forget(stage)
    # a file is simply reopened; but if an archive has changed, its members have moved, so it is listed again
    list_again = items["inside"].null_count < len(items)
    run_stages(config, _started(folder), list_again=list_again, job=job, command=command)


def _started(folder: RunFolder) -> list[str]:
    return [stage for stage in STAGES if has_started(stage, folder)]
