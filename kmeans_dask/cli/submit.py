"""Command submit: run the driver on the cluster, so that the user can disconnect."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from kmeans_dask.config.loading import check_sources, load_cluster
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.submission import run_on_worker, start_driver
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import show_line
from kmeans_dask.pipeline.driver.session import command_line
from kmeans_dask.pipeline.driver.stopping import Stopped, stop_here
from kmeans_dask.storage.lock import refuse_if_held
from kmeans_dask.storage.run_folder import run_folder

_PATHS = (
    "output", "input.path", "input.holdout", "input.table", "features.path", "quantize.palette",
    "cluster.tls.ca", "cluster.tls.cert", "cluster.tls.key",
)  # fmt: skip
"""Keys whose values may be paths."""

_LAST_SECONDS = 20
"""Time limit for a driver to end cleanly after its worker has ended."""


def submit(config: Config, *, fresh: bool, update: bool) -> None:
    """Check a job here and on a worker, start its driver on the cluster, and print how to follow it.

    Parameters
    ----------
    config
        Checked config. Relative paths are relative to the current folder; all paths must exist on the cluster.
    fresh, update
        As for `pipeline.run.run_stages`.

    Raises
    ------
    UserError
        The config names no running cluster, a worker does not find the input, or another driver works on the run.
    JobError
        The scheduler has no workers, or does not accept the job.
    """
    if config.cluster.kind != "address":
        raise UserError("submit needs a cluster that is running already: --cluster tcp://HOST:PORT")
    config = with_absolute_paths(config)
    with connect(config.cluster) as client:
        run_on_worker(client, _check_on_worker, config)
        _start_driver(client, config, fresh=fresh, update=update)


def submit_retry(run: str, cluster: str) -> None:
    """Retry the failed parts of a run that only the cluster sees, with a driver on the cluster.

    Parameters
    ----------
    run
        Run folder on the cluster.
    cluster
        As for `config.loading.load_config`.

    Raises
    ------
    UserError
        The folder is not a run that has ingested or quantized anything, or another driver works on it.
    JobError
        The scheduler has no workers, or does not accept the job.
    """
    cluster_config = load_cluster(cluster)
    with connect(cluster_config) as client:
        config = run_on_worker(client, _config_to_retry, run).model_copy(update={"cluster": cluster_config})
        _start_driver(client, config, retry=True)


def _start_driver(client: Any, config: Config, **options: bool) -> None:
    """Start the driver, and print how to follow it."""
    run = str(run_folder(config).path)
    job = start_driver(client, config.name, run, config.model_dump(mode="json"), {**options, "command": command_line()})
    show_line(f"submitted: {job}")
    show_line(f"run folder: {run}, on the cluster")
    show_line(
        f"follow it: kmeans-dask status {run}   (add --cluster {config.cluster.address} if only the cluster sees it)"
    )


def with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths, which mean the same in every working directory."""
    values = config.model_dump(mode="json")
    for dotted in _PATHS:
        *sections, key = dotted.split(".")
        section = values
        for name in sections:
            section = section.get(name) or {}
        value = section.get(key)
        if isinstance(value, list):
            section[key] = [_absolute(each) for each in value]
        elif isinstance(value, str):
            section[key] = _absolute(value)
    return Config.model_validate(values)


def _absolute(value: str) -> str:
    is_path = not (value in ("image", "shared") or value.startswith(("column:", "pattern:")) or "://" in value)
    return os.path.abspath(os.path.expanduser(value)) if is_path else value


def _check_on_worker(config: Config) -> None:
    """Check on a worker that it finds the input, and that no driver holds the run."""
    try:
        check_sources(config.input)
    except UserError as error:
        raise UserError(f"on the cluster, {error}") from None
    refuse_if_held(run_folder(config).drivers)


def _config_to_retry(run: str) -> Config:
    """Read on a worker the config of a run to retry, which no driver may hold."""
    from kmeans_dask.cli.retry import config_to_retry

    try:
        config = config_to_retry(run)
    except UserError as error:
        raise UserError(f"on the cluster, {error}") from None
    refuse_if_held(run_folder(config).drivers)
    return config


def drive() -> None:
    """Run a submitted job: standard input holds its config in the first line, and ends the job when it is closed."""
    from kmeans_dask.cli.retry import retry_failed
    from kmeans_dask.pipeline.resume import STAGES
    from kmeans_dask.pipeline.run import run_stages

    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_worker, daemon=True).start()
    config, options = Config.model_validate(request["config"]), request["options"]
    if options.pop("retry", False):
        retry_failed(config, **options)
    else:
        run_stages(config, tuple(STAGES), **options)


def _end_with_worker() -> None:
    """End this process once the worker that started it has ended; the scheduler restarts the job on another worker."""
    while os.read(0, 1):
        pass
    stop_here(Stopped("the worker that started this driver has ended", "interrupted", 143))
    time.sleep(_LAST_SECONDS)
    os._exit(143)
