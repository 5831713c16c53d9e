"""Command submit: the driver runs on the cluster, whoever submitted it may leave."""

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
from kmeans_dask.deploy.submission import ask_worker, start_driver
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
"""A driver whose worker has ended has so long to end cleanly."""


def submit(config: Config, *, fresh: bool, update: bool) -> None:
    """Check a job here and on a worker, start its driver on the cluster, and say how to ask for it.

    Parameters
    ----------
    config
        Checked config. Paths that are not absolute are taken from the current folder; all must be there on the cluster.
    fresh, update
        As for `pipeline.run_stages`.

    Raises
    ------
    UserError
        The config names no running cluster, a worker does not find the input, or another driver works on the run.
    JobError
        The scheduler has no workers, or does not take the job.
    """
    if config.cluster.kind != "address":
        raise UserError("submit needs a cluster that is running already: --cluster tcp://HOST:PORT")
    config = with_absolute_paths(config)
    with connect(config.cluster) as client:
        ask_worker(client, _check_there, config)
        _start_driver(client, config, fresh=fresh, update=update)


def submit_retry(run: str, cluster: str) -> None:
    """Try again what failed of a run that only the cluster sees, by a driver there.

    Parameters
    ----------
    run
        Run folder on the cluster.
    cluster
        As for `config_files.load_config`.

    Raises
    ------
    UserError
        It is no run in which something can have failed, or another driver works on it.
    JobError
        The scheduler has no workers, or does not take the job.
    """
    there = load_cluster(cluster)
    with connect(there) as client:
        config = ask_worker(client, _config_to_retry, run).model_copy(update={"cluster": there})
        _start_driver(client, config, retry=True)


def _start_driver(client: Any, config: Config, **options: bool) -> None:
    """Start it, and say how to ask for it."""
    run = str(run_folder(config).path)
    job = start_driver(client, config.name, run, config.model_dump(mode="json"), {**options, "command": command_line()})
    show_line(f"submitted: {job}")
    show_line(f"run folder: {run}, on the cluster")
    show_line(
        f"ask: kmeans-dask status {run}   where that folder is not to be seen, with --cluster {config.cluster.address}"
    )


def with_absolute_paths(config: Config) -> Config:
    """Return a config that means the same in every current folder. URLs and what is no path stay as they are."""
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


def _check_there(config: Config) -> None:
    """On a worker: whether it finds the input, and the run is free."""
    try:
        check_sources(config.input)
    except UserError as error:
        raise UserError(f"on the cluster, {error}") from None
    refuse_if_held(run_folder(config).drivers)


def _config_to_retry(run: str) -> Config:
    """On a worker: the config of a run in which something can have failed, and that is free."""
    from kmeans_dask.cli.retry import config_to_retry

    try:
        config = config_to_retry(run)
    except UserError as error:
        raise UserError(f"on the cluster, {error}") from None
    refuse_if_held(run_folder(config).drivers)
    return config


def drive() -> None:
    """Run a submitted job: config and options are the first line of standard input, whose end ends it."""
    from kmeans_dask.cli.retry import retry_failed
    from kmeans_dask.pipeline.resume import STAGES
    from kmeans_dask.pipeline.run import run_stages

    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_worker, daemon=True).start()
    config, options = Config.model_validate(order["config"]), order["options"]
    if options.pop("retry", False):
        retry_failed(config, **options)
    else:
        run_stages(config, tuple(STAGES), **options)


def _end_with_worker() -> None:
    """End this process when the worker that started it has ended: the scheduler lets another one start it again."""
    while os.read(0, 1):
        pass
    stop_here(Stopped("the worker beside which this driver ran has ended", "interrupted", 143))
    time.sleep(_LAST_SECONDS)
    os._exit(143)
