"""How scheduler and workers are started, a function for every kind of cluster that can be."""

from __future__ import annotations

import logging
import math
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

import dask
from dask.utils import parse_bytes
from distributed import LocalCluster, Security, SSHCluster, Status

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy.security import listening, of_workers
from kmeans_dask.errors import UserError

OWN_DASHBOARD = "127.0.0.1:0"
"""A dashboard asks nobody who he is: it is for this machine, or for a tunnel to it."""


@contextmanager
def local(config: Cluster) -> Iterator[Any]:
    """Start worker processes on this machine."""
    with LocalCluster(
        n_workers=config.adaptive[0] if config.adaptive else config.n_workers,
        threads_per_worker=config.threads_per_worker,
        memory_limit=memory_of(config),
        dashboard_address=OWN_DASHBOARD,
        worker_dashboard_address=OWN_DASHBOARD,
        **listening(config.host),
    ) as cluster:
        if config.adaptive:
            cluster.adapt(minimum=config.adaptive[0], maximum=config.adaptive[1])
        yield cluster


def threads(config: Cluster) -> AbstractContextManager[Any]:
    """Start workers as threads of this process; they talk in memory, and refuse to be told where to listen."""
    return LocalCluster(
        n_workers=config.n_workers,
        threads_per_worker=config.threads_per_worker,
        processes=False,
        memory_limit="auto",  # who is above a smaller one would wait for ever to get below
        dashboard_address=OWN_DASHBOARD,
        worker_dashboard_address=OWN_DASHBOARD,  # else it is open to the network
    )


@contextmanager
def slurm(config: Cluster) -> Iterator[Any]:
    """Start a scheduler in this process, and submit workers as jobs of Slurm."""
    with extra("hpc"):
        from dask_jobqueue import SLURMCluster

    with SLURMCluster(**job_arguments(config)) as cluster:
        _submit(cluster, config)
        yield cluster


@contextmanager
def pbs(config: Cluster) -> Iterator[Any]:
    """Start a scheduler in this process, and submit workers as jobs of PBS."""
    with extra("hpc"):
        from dask_jobqueue import PBSCluster

    with PBSCluster(**job_arguments(config)) as cluster:
        _submit(cluster, config)
        yield cluster


def _submit(cluster: Any, config: Cluster) -> None:
    """Submit the jobs; one that is lost, to its time limit for example, is submitted again."""
    cluster.worker_spec.update(cluster.new_worker_spec())  # the first one tells whether the queue takes them
    try:
        cluster.sync(_asked_for, cluster)
    except Exception:
        for job in cluster.workers.values():
            job.status = Status.failed  # else the cluster does not close
        raise
    least, most = (math.ceil(n / config.workers_per_job) for n in config.adaptive or [config.n_workers or 1] * 2)
    cluster.adapt(minimum_jobs=least, maximum_jobs=most)


async def _asked_for(cluster: Any) -> None:
    await cluster


def job_arguments(config: Cluster) -> dict[str, Any]:
    """Arguments of dask-jobqueue's clusters; what is not said here is read from Dask's jobqueue.yaml."""
    where = listening(config.host)
    site = dask.config.get(f"jobqueue.{config.kind}.worker-extra-args", None) or []
    listen = [word for name, value in of_workers(where).items() if name == "host" for word in ("--host", value)]
    return {
        "cores": config.threads_per_worker * config.workers_per_job,
        "processes": config.workers_per_job,
        "memory": f"{memory_of(config) * config.workers_per_job}B",
        "queue": config.queue,
        "account": config.account,
        "walltime": config.walltime,
        "interface": where.get("interface"),
        "scheduler_options": {**where, "dashboard_address": OWN_DASHBOARD},
        "worker_extra_args": [*site, "--no-dashboard", *listen],
        "security": Security() if config.tls else None,
        "silence_logs": logging.ERROR,
    }


def ssh(config: Cluster) -> AbstractContextManager[Any]:
    """Start the scheduler on the first host and workers on the others, by ssh as ~/.ssh/config says."""
    with extra("ssh"):
        import asyncssh  # noqa: F401  # distributed imports it when it connects

    hosts = config.hosts or []
    where = listening(config.host or _address_of(hosts[0]))
    protocol = "tls" if config.tls else "tcp"
    return SSHCluster(
        [*hosts],
        scheduler_options={**where, "port": 0, "protocol": protocol, "dashboard_address": OWN_DASHBOARD},
        worker_options={
            **of_workers(where),
            "n_workers": config.n_workers,
            "nthreads": config.threads_per_worker,
            "memory_limit": memory_of(config),
            "protocol": protocol,
            "dashboard": False,
        },
        security=Security(),
    )


def _address_of(host: str) -> str:
    """Address of a host as seen from here; its own name may stand for loopback there."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        raise UserError(
            f"cluster.hosts: {host} has no address here; give names that resolve, or the address as cluster.host"
        ) from None


@contextmanager
def kubernetes(config: Cluster) -> Iterator[Any]:
    """Start scheduler and workers as pods, through the Dask operator of the current Kubernetes context."""
    with extra("kubernetes"):
        from dask_kubernetes.operator import KubeCluster

    with KubeCluster(custom_cluster_spec=pods(config), namespace=config.namespace, quiet=True) as cluster:
        if config.adaptive:
            cluster.adapt(*config.adaptive)
        yield cluster


def pods(config: Cluster) -> dict[str, Any]:
    """Return the resource ``DaskCluster`` that the operator makes pods of."""
    with extra("kubernetes"):
        from dask_kubernetes.operator import make_cluster_spec

    memory = str(memory_of(config))  # bytes: Kubernetes has other units
    n_workers = config.adaptive[0] if config.adaptive else config.n_workers
    command = ["dask", "worker", "--nthreads", str(config.threads_per_worker), "--memory-limit", memory]
    spec = make_cluster_spec(
        f"kmeans-dask-{uuid4().hex[:8]}",
        image=config.image,
        n_workers=n_workers,
        worker_command=command,
        resources={"requests": {"cpu": str(config.threads_per_worker), "memory": memory}, "limits": {"memory": memory}},
    )
    # dask-kubernetes calls dask-scheduler, which distributed has no longer
    spec["spec"]["scheduler"]["spec"]["containers"][0]["args"] = ["dask", "scheduler", "--host", "0.0.0.0"]
    return spec


def memory_of(config: Cluster) -> int | str:
    """Return the memory limit of a worker in bytes, or ``auto``."""
    return config.memory_limit if config.memory_limit == "auto" else int(parse_bytes(config.memory_limit))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import into the command that installs what is missing.

    Parameters
    ----------
    name
        Extra of this package.

    Raises
    ------
    UserError
        A package is not installed.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"this kind of cluster needs the package {error.name}: pip install 'kmeans-dask[{name}]'"
        ) from None
    finally:
        if signal.getsignal(signal.SIGINT) is not interrupt:  # dask_jobqueue takes Ctrl-C over when it is imported
            signal.signal(signal.SIGINT, interrupt)
