"""Start scheduler and workers: one function for each kind of cluster."""

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
from kmeans_dask.deploy.security import listen_options, worker_listen_options
from kmeans_dask.errors import UserError

OWN_DASHBOARD = "127.0.0.1:0"
"""Dashboards are not authenticated, so they are reachable only from this machine, or through a tunnel to it."""


@contextmanager
def local(config: Cluster) -> Iterator[Any]:
    """Start worker processes on this machine."""
    with LocalCluster(
        n_workers=config.adaptive[0] if config.adaptive else config.n_workers,
        threads_per_worker=config.threads_per_worker,
        memory_limit=memory_of(config),
        dashboard_address=OWN_DASHBOARD,
        worker_dashboard_address=OWN_DASHBOARD,
        **listen_options(config.host),
    ) as cluster:
        if config.adaptive:
            cluster.adapt(minimum=config.adaptive[0], maximum=config.adaptive[1])
        yield cluster


def threads(config: Cluster) -> AbstractContextManager[Any]:
    """Start workers as threads of this process; they communicate in memory and listen nowhere."""
    return LocalCluster(
        n_workers=config.n_workers,
        threads_per_worker=config.threads_per_worker,
        processes=False,
        memory_limit="auto",  # above a smaller limit a worker would pause forever
        dashboard_address=OWN_DASHBOARD,
        worker_dashboard_address=OWN_DASHBOARD,  # the default is reachable from the network
    )


@contextmanager
def slurm(config: Cluster) -> Iterator[Any]:
    """Start a scheduler in this process, and submit workers as Slurm jobs."""
    with extra("hpc"):
        from dask_jobqueue import SLURMCluster

    with SLURMCluster(**job_arguments(config)) as cluster:
        _submit(cluster, config)
        yield cluster


@contextmanager
def pbs(config: Cluster) -> Iterator[Any]:
    """Start a scheduler in this process, and submit workers as PBS jobs."""
    with extra("hpc"):
        from dask_jobqueue import PBSCluster

    with PBSCluster(**job_arguments(config)) as cluster:
        _submit(cluster, config)
        yield cluster


def _submit(cluster: Any, config: Cluster) -> None:
    """Submit the jobs, and resubmit those that end early, for example at their time limit."""
    cluster.worker_spec.update(cluster.new_worker_spec())  # the first job shows whether the queue accepts them
    try:
        cluster.sync(_wait_until_submitted, cluster)
    except Exception:
        for job in cluster.workers.values():
            job.status = Status.failed  # otherwise the cluster does not close
        raise
    minimum, maximum = (math.ceil(n / config.workers_per_job) for n in config.adaptive or [config.n_workers or 1] * 2)
    cluster.adapt(minimum_jobs=minimum, maximum_jobs=maximum)


async def _wait_until_submitted(cluster: Any) -> None:
    await cluster


def job_arguments(config: Cluster) -> dict[str, Any]:
    """Return the arguments of a dask-jobqueue cluster; other settings are read from Dask's ``jobqueue.yaml``."""
    listen = listen_options(config.host)
    site = dask.config.get(f"jobqueue.{config.kind}.worker-extra-args", None) or []
    host = worker_listen_options(listen).get("host")
    return {
        "cores": config.threads_per_worker * config.workers_per_job,
        "processes": config.workers_per_job,
        "memory": f"{memory_of(config) * config.workers_per_job}B",
        "queue": config.queue,
        "account": config.account,
        "walltime": config.walltime,
        "interface": listen.get("interface"),
        "scheduler_options": {**listen, "dashboard_address": OWN_DASHBOARD},
        "worker_extra_args": [*site, "--no-dashboard", *(["--host", host] if host else [])],
        "security": Security() if config.tls else None,
        "silence_logs": logging.ERROR,
    }


def ssh(config: Cluster) -> AbstractContextManager[Any]:
    """Start the scheduler on the first host and workers on the others, over ssh as configured in ~/.ssh/config."""
    with extra("ssh"):
        import asyncssh  # noqa: F401  # imported by distributed when it connects

    hosts = config.hosts or []
    listen = listen_options(config.host or _address_of(hosts[0]))
    protocol = "tls" if config.tls else "tcp"
    return SSHCluster(
        [*hosts],
        scheduler_options={**listen, "port": 0, "protocol": protocol, "dashboard_address": OWN_DASHBOARD},
        worker_options={
            **worker_listen_options(listen),
            "n_workers": config.n_workers,
            "nthreads": config.threads_per_worker,
            "memory_limit": memory_of(config),
            "protocol": protocol,
            "dashboard": False,
        },
        security=Security(),
    )


def _address_of(host: str) -> str:
    """Return the address of a host as seen from here; on the host itself its name may resolve to loopback."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        raise UserError(
            f"cluster.hosts: {host} does not resolve to an address; give names that do, or the address as cluster.host"
        ) from None


@contextmanager
def kubernetes(config: Cluster) -> Iterator[Any]:
    """Start scheduler and workers as pods, with the Dask operator of the current Kubernetes context."""
    with extra("kubernetes"):
        from dask_kubernetes.operator import KubeCluster

    with KubeCluster(custom_cluster_spec=pods(config), namespace=config.namespace, quiet=True) as cluster:
        if config.adaptive:
            cluster.adapt(*config.adaptive)
        yield cluster


def pods(config: Cluster) -> dict[str, Any]:
    """Return the resource ``DaskCluster`` from which the operator creates the pods."""
    with extra("kubernetes"):
        from dask_kubernetes.operator import make_cluster_spec

    memory = str(memory_of(config))  # in bytes, because Kubernetes uses other unit names
    n_workers = config.adaptive[0] if config.adaptive else config.n_workers
    command = ["dask", "worker", "--nthreads", str(config.threads_per_worker), "--memory-limit", memory]
    spec = make_cluster_spec(
        f"kmeans-dask-{uuid4().hex[:8]}",
        image=config.image,
        n_workers=n_workers,
        worker_command=command,
        resources={"requests": {"cpu": str(config.threads_per_worker), "memory": memory}, "limits": {"memory": memory}},
    )
    # dask-kubernetes calls dask-scheduler, which distributed no longer has
    spec["spec"]["scheduler"]["spec"]["containers"][0]["args"] = ["dask", "scheduler", "--host", "0.0.0.0"]
    return spec


def memory_of(config: Cluster) -> int | str:
    """Return the memory limit of a worker in bytes, or ``auto``."""
    return config.memory_limit if config.memory_limit == "auto" else int(parse_bytes(config.memory_limit))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn an import error into a message with the command that installs the missing package.

    Parameters
    ----------
    name
        Extra of this package that installs it.

    Yields
    ------
    None

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
            f"this kind of cluster requires the package {error.name}: pip install 'kmeans-dask[{name}]'"
        ) from None
    finally:
        if signal.getsignal(signal.SIGINT) is not interrupt:  # dask_jobqueue replaces it on import
            signal.signal(signal.SIGINT, interrupt)
