"""Command retry: what failed is tried again, and what was made from it is done again; nothing else."""

from __future__ import annotations

from kmeans_dask.collection.update import read_failed_again
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
    """Try again what failed of a run: items that could not be read, images that could not be quantized.

    Parameters
    ----------
    path
        Run folder.
    cluster
        As for `config_files.load_config`.

    Raises
    ------
    UserError
        The folder is no run in which something can have failed, or another driver works on it.
    JobError
        More than ``input.max_failed`` of the items failed again.
    """
    retry_failed(config_to_retry(path, cluster))


def config_to_retry(path: str, cluster: str | None = None) -> Config:
    """Read the config of a run in which something can have failed.

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
        The folder is no run, or no image of it has been ingested or quantized.
    """
    config = config_of(path, cluster)
    if not {"ingest", "quantize"} & set(_begun(run_folder(config))):
        raise UserError(f"nothing of {path} has been ingested or quantized yet, so there is nothing to retry: use run")
    return config


def retry_failed(config: Config, *, job: str | None = None, command: str | None = None) -> None:
    """Try again what failed of a run, and do again the stages that depend on what is different then.

    Parameters
    ----------
    config
        From `config_to_retry`.
    job, command
        As for `pipeline.run_stages`.

    Raises
    ------
    UserError
        Another driver works on the run.
    JobError
        More than ``input.max_failed`` of the items failed again.
    """
    folder = run_folder(config)
    with reporting_unreachable(folder.path), holding(folder, command or command_line(), job):
        items = read_failed_again(folder.collection)
        journal = find_journal(folder.path)
        n_outputs = journal.forget_failed() if journal else 0
        say(f"{config.name}: {len(items):,} items could not be read, {n_outputs:,} outputs had failed")
        record = RunRecord.read(folder)
        for stage, n_failed in (("ingest", len(items)), ("quantize", n_outputs)):
            if n_failed:
                record.forget(stage)
    # a file is opened again as it is; a member of an archive that has changed lies elsewhere in it
    list_again = items["inside"].null_count < len(items)
    run_stages(config, _begun(folder), list_again=list_again, job=job, command=command)


def _begun(folder: RunFolder) -> list[str]:
    return [stage for stage in STAGES if has_started(stage, folder)]
