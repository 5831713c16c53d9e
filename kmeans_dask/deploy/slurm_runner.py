"""Roles of the tasks of one Slurm job: the first runs the scheduler, the second the driver, the others are workers."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import dask
from distributed import Security
from distributed.core import rpc
from distributed.utils import json_load_robust

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy.kinds import OWN_DASHBOARD, extra, memory_of
from kmeans_dask.deploy.security import listen_options, tls_settings, worker_listen_options
from kmeans_dask.errors import UserError

_MIN_TASKS = 3
"""Scheduler, driver and one worker."""


@contextmanager
def slurm_roles(config: Cluster) -> Iterator[None]:
    """Run the body in one task of the Slurm job only; the other tasks become scheduler and workers, and exit after it.

    Parameters
    ----------
    config
        Section ``cluster`` of a config; does nothing unless the kind is ``slurm-runner``.

    Yields
    ------
    None
        In the task that runs the driver.

    Raises
    ------
    UserError
        This process is not a task of a Slurm job, or the job has too few tasks.
    """
    if config.kind != "slurm-runner":
        yield
        return
    with extra("hpc"):
        from dask_jobqueue.slurm import SLURMRunner

    file = _scheduler_file()
    n_tasks = int(os.environ["SLURM_NTASKS"])
    is_driver = int(os.environ["SLURM_PROCID"]) == min(1, n_tasks - 1)
    if not is_driver:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the runner ends them by SIGINT
    if n_tasks < _MIN_TASKS:
        if not is_driver:
            _exit()
        raise UserError(
            f"kind slurm-runner requires at least {_MIN_TASKS} tasks (scheduler, driver, workers): srun --ntasks=3"
        )
    logging.getLogger("distributed").setLevel(logging.WARNING)  # all tasks share one output
    listen = listen_options(config.host)
    protocol = "tls" if config.tls else "tcp"
    with dask.config.set(tls_settings(config.tls)):
        if is_driver:
            json_load_robust(file)  # wait until it is complete, which the runner does not
        try:
            runner = SLURMRunner(
                scheduler_file=str(file),
                scheduler_options={**listen, "protocol": protocol, "dashboard_address": OWN_DASHBOARD},
                worker_class="distributed.Nanny",
                worker_options={
                    **worker_listen_options(listen),
                    "nthreads": config.threads_per_worker,
                    "memory_limit": memory_of(config),
                    "protocol": protocol,
                    "dashboard": False,
                    "silence_logs": logging.WARNING,
                },
            )
        except (SystemExit, KeyboardInterrupt):  # how the runner ends a scheduler or worker
            if is_driver:
                raise
            if os.environ["SLURM_PROCID"] == "0":
                file.unlink(missing_ok=True)
            _exit()
        if config.tls:
            runner.scheduler_comm = rpc(
                runner.scheduler_address, connection_args=Security().get_connection_args("client")
            )
        with runner:
            yield


def _exit() -> NoReturn:
    """Exit a scheduler or worker with status 0, even if SIGTERM arrives while the interpreter shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def scheduler_address() -> str:
    """Return the address of the scheduler of this Slurm job.

    Returns
    -------
    str

    Raises
    ------
    UserError
        This process is not a task of a Slurm job with a scheduler.
    """
    file = _scheduler_file()
    if not file.exists():
        raise UserError("kind slurm-runner supports only commands that run stages; choose another kind of cluster")
    return json_load_robust(file)["address"]


def _scheduler_file() -> Path:
    """Return the file with the address of the scheduler; its name is unique to this run of the job step."""
    try:
        parts = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
    except KeyError as error:
        raise UserError(
            f"kind slurm-runner requires a Slurm job, but {error} is not set: start the command with srun"
        ) from None
    return Path(f".scheduler-{'-'.join([*parts, os.environ.get('SLURM_RESTART_COUNT', '0')])}.json")
