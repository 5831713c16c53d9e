"""The section ``cluster``: where the tasks run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from kmeans_dask.config.base import Section


def _clock(value: Any) -> Any:
    """Convert seconds to HH:MM:SS, because YAML parses an unquoted 10:30:00 as an integer in base 60."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}"
    return value


def _memory(value: Any) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B", value) if isinstance(value, str) else None
    size = float(match[1]) * (1024 if match[3] else 1000) ** ("kMGT".index(match[2]) + 1) if match else 0
    if value != "auto" and size < _MIN_MEMORY:
        raise ValueError("must be auto or a size such as 2GiB, at least 256MiB")
    return value


_MIN_MEMORY = 256 * 2**20
"""Bytes. A worker process uses 150-225 MiB before its first task; with a lower limit it would be restarted forever."""


_Word = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
"""A value passed on a command line: it contains no spaces and does not look like an option."""


_JOB_KEYS = "n_workers workers_per_job threads_per_worker memory_limit queue account walltime adaptive host tls"


_KEYS_OF_KIND = {
    "local": "n_workers threads_per_worker memory_limit adaptive host tls",
    "threads": "n_workers threads_per_worker",
    "address": "address tls",
    "slurm": _JOB_KEYS,
    "pbs": _JOB_KEYS,
    "slurm-runner": "threads_per_worker memory_limit host tls",
    "ssh": "hosts n_workers threads_per_worker memory_limit host tls",
    "kubernetes": "image namespace n_workers threads_per_worker memory_limit adaptive",
}
"""Keys that apply to each kind of cluster; `dashboard` and `performance_report` apply to all of them."""


_REQUIRED_KEYS = {
    "address": (["address"], "for example tcp://127.0.0.1:8786"),
    "slurm": (["host"], "where the scheduler listens: an address or interface of this machine, for example ib0"),
    "pbs": (["host"], "where the scheduler listens: an address or interface of this machine, for example ib0"),
    "slurm-runner": (["host"], "where the scheduler listens: an interface that all nodes have, for example ib0"),
    "ssh": (["hosts", "n_workers"], "for example hosts=[head,node1,node2] n_workers=4"),
    "kubernetes": (["image"], "the container image of scheduler and workers, built with docker/Dockerfile"),
}
"""Keys that a kind of cluster requires, and an explanation or example."""


class Tls(Section):
    """Certificates, as PEM files. With them every connection is encrypted, and both ends authenticate each other."""

    ca: str
    """PEM file with the certificates of the authority that signed those of scheduler, workers and client."""
    cert: str
    """PEM file with the certificate of the client; also used by scheduler and workers that the job starts."""
    key: str | None = None
    """PEM file with the private key of `cert`, without a password. Default: the key is in the file of `cert`."""


class Cluster(Section):
    """Where the tasks run. A key that does not apply to the chosen `kind` is rejected."""

    kind: Literal["local", "threads", "address", "slurm", "slurm-runner", "pbs", "ssh", "kubernetes"] = "local"
    """How scheduler and workers are started. ``local``: worker processes on this machine. ``threads``: threads of the
    job's own process. ``address``: a cluster that is already running. ``slurm``, ``pbs``: workers run in batch jobs.
    ``slurm-runner``: scheduler and workers are tasks of the Slurm job that runs the command. ``ssh``: processes on
    `hosts`. ``kubernetes``: pods of the Dask operator."""
    n_workers: int | None = Field(None, ge=1)
    """Number of workers, at least 1; for ``ssh`` the number on each worker host. Required for ``ssh``; ``slurm``,
    ``pbs`` and ``kubernetes`` require this or `adaptive`. Default: for ``local`` the number of cores divided by
    `threads_per_worker`, for ``threads`` one."""
    workers_per_job: int = Field(1, ge=1)
    """Worker processes per batch job of ``slurm`` or ``pbs``, at least 1."""
    threads_per_worker: int = Field(1, ge=1)
    """Threads per worker, at least 1."""
    memory_limit: Annotated[str, BeforeValidator(_memory)] = "auto"
    """Memory limit per worker: a size such as ``2GiB`` or ``4000MB``, at least 256MiB, or ``auto``, an equal part of
    the machine's memory for each worker. ``slurm``, ``pbs`` and ``kubernetes`` require a size."""
    adaptive: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    """Minimum and maximum number of workers, ``[minimum, maximum]``: the cluster scales with the pending work. Given
    instead of `n_workers`; for ``local``, ``slurm``, ``pbs`` and ``kubernetes``. Default: a fixed number."""
    address: str | None = None
    """Address of a running scheduler, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``; required for ``address``."""
    host: _Word | None = None
    """Where the scheduler listens: an IP address, a host name or a network interface such as ``ib0``. Required for
    ``slurm``, ``pbs`` and ``slurm-runner``. Default: loopback; for ``ssh`` the address of the first host."""
    tls: Tls | None = None
    """Certificates for all connections. Default: connections are neither encrypted nor authenticated, so anyone who can
    reach the scheduler can run code on the workers."""
    hosts: Annotated[list[_Word], Field(min_length=2)] | None = None
    """Hosts of an ``ssh`` cluster, at least two: the first runs the scheduler, the others run the workers. A host may
    be listed more than once."""
    queue: _Word | None = None
    """Queue (PBS) or partition (Slurm) that jobs are submitted to. Default: that of Dask's ``jobqueue.yaml``, else the
    default of the site."""
    account: _Word | None = None
    """Account to charge for the jobs of ``slurm`` or ``pbs``. Default: that of Dask's ``jobqueue.yaml``, else the
    default of the site."""
    walltime: Annotated[str, BeforeValidator(_clock), Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$")] | None = None
    """Time limit of a job of ``slurm`` or ``pbs``, ``HH:MM:SS`` or ``DAYS-HH:MM:SS``. Default: that of Dask's
    ``jobqueue.yaml``, 30 minutes unless changed."""
    image: _Word | None = None
    """Container image of scheduler and workers; required for ``kubernetes``."""
    namespace: _Word | None = None
    """Kubernetes namespace of the pods. Default: that of the current context."""
    dashboard: bool = False
    """Whether to print the link to Dask's dashboard."""
    performance_report: bool = False
    """Whether to write Dask's performance report, a timeline of all tasks, to ``performance.html`` in the run
    folder."""

    @property
    def is_queued(self) -> bool:
        """Whether a queue or a Kubernetes cluster decides when workers start, so that the job may wait for them."""
        return self.kind in ("slurm", "pbs", "kubernetes")

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> Cluster:
        given = {key for key, field in Cluster.model_fields.items() if getattr(self, key) != field.default}
        allowed = _KEYS_OF_KIND[self.kind].split()
        foreign = sorted(given - {"kind", "dashboard", "performance_report", *allowed})
        if foreign:
            raise ValueError(f"key {foreign[0]} does not apply to kind {self.kind}; allowed keys: {', '.join(allowed)}")
        required, example = _REQUIRED_KEYS.get(self.kind, ([], ""))
        missing = [key for key in required if key not in given]
        if missing:
            raise ValueError(f"kind {self.kind} requires the key {missing[0]}, {example}")
        return self

    @model_validator(mode="after")
    def _check_number_and_memory_of_workers(self) -> Cluster:
        if self.adaptive and (self.n_workers or self.adaptive[0] > self.adaptive[1]):
            raise ValueError(
                f"adaptive={self.adaptive} must be [minimum, maximum] number of workers, given instead of n_workers"
            )
        if self.is_queued:
            if not (self.n_workers or self.adaptive):
                raise ValueError(f"kind {self.kind} requires n_workers, or adaptive=[minimum, maximum]")
            if self.memory_limit == "auto":
                raise ValueError(
                    f"kind {self.kind} requires memory_limit, the limit per worker, for example memory_limit=4GiB"
                )
        return self

    @model_validator(mode="after")
    def _check_encrypted_address(self) -> Cluster:
        if self.address and self.tls and not self.address.startswith("tls://"):
            raise ValueError(f"tls requires an address that starts with tls://, not {self.address}")
        return self
