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
    """Write seconds as HH:MM:SS: that is what YAML makes of an unquoted 10:30:00."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}"
    return value


def _memory(value: Any) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B", value) if isinstance(value, str) else None
    size = float(match[1]) * (1024 if match[3] else 1000) ** ("kMGT".index(match[2]) + 1) if match else 0
    if value != "auto" and size < _LEAST_MEMORY:
        raise ValueError("allowed are auto or a size such as 2GiB, at least 256MiB")
    return value


_LEAST_MEMORY = 256 * 2**20
"""Bytes; a worker process has 150-225 MiB before its first task, and with less it would be ended again and again."""


_Word = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
"""What becomes a word of a command: no spaces, and no option."""


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
"""Keys that say something about a kind of cluster; `dashboard` and `performance_report` are for all of them."""


_NEEDED = {
    "address": (["address"], "for example tcp://127.0.0.1:8786"),
    "slurm": (["host"], "where the scheduler listens: an address of this machine or an interface, for example ib0"),
    "pbs": (["host"], "where the scheduler listens: an address of this machine or an interface, for example ib0"),
    "slurm-runner": (["host"], "where the scheduler listens: an interface of the nodes, for example ib0"),
    "ssh": (["hosts", "n_workers"], "for example hosts=[head,node1,node2] n_workers=4"),
    "kubernetes": (["image"], "of scheduler and workers, built with docker/Dockerfile"),
}
"""Keys that a kind cannot do without, and an example."""


class Tls(Section):
    """Certificates in PEM files: every connection is encrypted, and both ends prove who they are."""

    ca: str
    """Certificates of the authority that has signed those of scheduler, workers and client."""
    cert: str
    """Certificate of this end; of all, where the job starts scheduler and workers."""
    key: str | None = None
    """Its private key; absent: in the same file."""


class Cluster(Section):
    """Where the tasks run. Nothing else in a job knows."""

    kind: Literal["local", "threads", "address", "slurm", "slurm-runner", "pbs", "ssh", "kubernetes"] = "local"
    """``local``: worker processes here. ``threads``: threads of this process. ``address``: a running cluster.
    ``slurm``, ``pbs``: workers are jobs. ``slurm-runner``: the tasks of this Slurm job. ``ssh``: on `hosts`.
    ``kubernetes``: pods of the Dask operator."""
    n_workers: int | None = Field(None, ge=1)
    """Worker processes; of kind ssh on each host. Absent: one a core, for kind local and threads."""
    workers_per_job: int = Field(1, ge=1)
    """Worker processes in a job of the queue."""
    threads_per_worker: int = Field(1, ge=1)
    """Threads a worker."""
    memory_limit: Annotated[str, BeforeValidator(_memory)] = "auto"
    """Memory limit a worker, for example ``2GiB``; auto: this machine's memory shared out."""
    adaptive: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    """Least and largest number of workers, by the work that there is; instead of `n_workers`."""
    address: str | None = None
    """Address of the scheduler, for example ``tcp://127.0.0.1:8786``."""
    host: _Word | None = None
    """Where the scheduler listens: an address, a name, or a network interface. Absent: on loopback; of kind ssh at the
    first host's address."""
    tls: Tls | None = None
    """Certificates. Absent: whoever reaches the scheduler can run code on the workers."""
    hosts: Annotated[list[_Word], Field(min_length=2)] | None = None
    """Hosts that are reached by ssh: the first runs the scheduler, the others the workers; one may stand twice."""
    queue: _Word | None = None
    """Partition or queue that jobs go to."""
    account: _Word | None = None
    """Whom their time is charged to."""
    walltime: Annotated[str, BeforeValidator(_clock), Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$")] | None = None
    """Time limit of a job, HH:MM:SS."""
    image: _Word | None = None
    """Container image of scheduler and workers."""
    namespace: _Word | None = None
    """Namespace of the pods; absent: that of the current context."""
    dashboard: bool = False
    """Tell the link of Dask's dashboard."""
    performance_report: bool = False
    """Write what the workers did, when and for how long, to performance.html in the run folder."""

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Cluster:
        given = {key for key, field in Cluster.model_fields.items() if getattr(self, key) != field.default}
        allowed = _KEYS_OF_KIND[self.kind].split()
        foreign = sorted(given - {"kind", "dashboard", "performance_report", *allowed})
        if foreign:
            raise ValueError(f"kind {self.kind} has no key {foreign[0]}; allowed here: {', '.join(allowed)}")
        needed, example = _NEEDED.get(self.kind, ([], ""))
        missing = [key for key in needed if key not in given]
        if missing:
            raise ValueError(f"kind {self.kind} needs the key {missing[0]}, {example}")
        return self

    @model_validator(mode="after")
    def _how_many_and_how_large(self) -> Cluster:
        if self.adaptive and (self.n_workers or self.adaptive[0] > self.adaptive[1]):
            raise ValueError(f"adaptive={self.adaptive} is [least, largest] number of workers, instead of n_workers")
        if self.kind in ("slurm", "pbs", "kubernetes"):
            if not (self.n_workers or self.adaptive):
                raise ValueError(f"kind {self.kind} needs n_workers, or adaptive=[least, largest]")
            if self.memory_limit == "auto":
                raise ValueError(
                    f"kind {self.kind} needs memory_limit, the limit of a worker, for example memory_limit=4GiB"
                )
        return self

    @model_validator(mode="after")
    def _encrypted_address(self) -> Cluster:
        if self.address and self.tls and not self.address.startswith("tls://"):
            raise ValueError(f"tls is for addresses that begin with tls://, not for {self.address}")
        return self
