"""Every task of a Slurm job gets its part: the first is the scheduler, the second the job, the others are workers."""

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
from kmeans_dask.deploy.security import listening, of_workers, tls_settings
from kmeans_dask.errors import UserError

_LEAST = 3
"""Tasks: a scheduler, a job, a worker."""


@contextmanager
def parts_of(config: Cluster) -> Iterator[None]:
    """Return in one task of the Slurm job, and end scheduler and workers after it; the other tasks are these, and end.

    Parameters
    ----------
    config
        Section ``cluster`` of a job's config; of another kind than slurm-runner nothing is done.

    Yields
    ------
    None
        In the task that does the job.

    Raises
    ------
    UserError
        This process is no task of a Slurm job, or the job has too few of them.
    """
    if config.kind != "slurm-runner":
        yield
        return
    with extra("hpc"):
        from dask_jobqueue.slurm import SLURMRunner

    file = _scheduler_file()
    n_tasks = int(os.environ["SLURM_NTASKS"])
    is_job = int(os.environ["SLURM_PROCID"]) == min(1, n_tasks - 1)
    if not is_job:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # by which the runner ends them
    if n_tasks < _LEAST:
        if not is_job:
            _end()
        raise UserError(f"kind slurm-runner needs {_LEAST} tasks or more, scheduler, job and workers: srun --ntasks=3")
    logging.getLogger("distributed").setLevel(logging.WARNING)  # they share one output
    where = listening(config.host)
    protocol = "tls" if config.tls else "tcp"
    with dask.config.set(tls_settings(config.tls)):
        if is_job:
            json_load_robust(file)  # waits until it is whole, which the runner does not
        try:
            runner = SLURMRunner(
                scheduler_file=str(file),
                scheduler_options={**where, "protocol": protocol, "dashboard_address": OWN_DASHBOARD},
                worker_class="distributed.Nanny",
                worker_options={
                    **of_workers(where),
                    "nthreads": config.threads_per_worker,
                    "memory_limit": memory_of(config),
                    "protocol": protocol,
                    "dashboard": False,
                    "silence_logs": logging.WARNING,
                },
            )
        except (SystemExit, KeyboardInterrupt):  # the runner interrupts a scheduler or worker that has done its part
            if is_job:
                raise
            if os.environ["SLURM_PROCID"] == "0":
                file.unlink(missing_ok=True)
            _end()
        if config.tls:
            runner.scheduler_comm = rpc(
                runner.scheduler_address, connection_args=Security().get_connection_args("client")
            )
        with runner:
            yield


def _end() -> NoReturn:
    """End a scheduler or worker with status 0, also where SIGTERM would reach it while Python is taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def scheduler_address() -> str:
    """Return where the scheduler of this Slurm job listens.

    Raises
    ------
    UserError
        This process is no task of a Slurm job that runs one.
    """
    file = _scheduler_file()
    if not file.exists():
        raise UserError("kind slurm-runner is for the commands that run stages; choose another kind of cluster here")
    return json_load_robust(file)["address"]


def _scheduler_file() -> Path:
    """File by which the tasks find each other; a step that runs again must not find that of the last one."""
    try:
        parts = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
    except KeyError as error:
        raise UserError(
            f"kind slurm-runner is for tasks of a Slurm job, but {error} is not set: start the command with srun"
        ) from None
    return Path(f".scheduler-{'-'.join([*parts, os.environ.get('SLURM_RESTART_COUNT', '0')])}.json")
