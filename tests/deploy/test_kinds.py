"""Requests to Slurm, PBS, ssh and Kubernetes; tests/system runs them on the real thing."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from dask_jobqueue import PBSCluster, SLURMCluster

from kmeans_dask.config.cluster import Cluster, Tls
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.kinds import job_arguments, pods
from kmeans_dask.errors import UserError

JOBS: dict[str, Any] = {
    "n_workers": 6, "workers_per_job": 3, "threads_per_worker": 2, "memory_limit": "1GiB", "queue": "fast",
    "account": "images", "walltime": "00:20:00", "host": "127.0.0.1",
}  # fmt: skip


def script(config: Cluster) -> list[str]:
    with {"slurm": SLURMCluster, "pbs": PBSCluster}[config.kind](**job_arguments(config)) as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        return cluster.job_script().splitlines()


def test_slurm_job_script():
    *header, command = script(Cluster(kind="slurm", **JOBS))

    for directive in ("-p fast", "-A images", "-n 1", "--cpus-per-task=6", "--mem=3G", "-t 00:20:00"):
        assert f"#SBATCH {directive}" in header
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:")
    assert "--nthreads 2 --memory-limit 1.00GiB --nworkers 3 --nanny" in command
    assert command.endswith("--no-dashboard --host 127.0.0.1")


def test_pbs_job_script():
    *header, command = script(Cluster(kind="pbs", **JOBS))

    for directive in ("-q fast", "-A images", "-l select=1:ncpus=6:mem=3072MB", "-l walltime=00:20:00"):
        assert f"#PBS {directive}" in header
    assert "--nthreads 2 --memory-limit 1.00GiB --nworkers 3 --nanny" in command


def test_workers_use_interface_of_scheduler():
    *_, command = script(Cluster(kind="slurm", **{**JOBS, "host": "lo"}))

    assert "--interface lo" in command


def test_kubernetes_resource():
    config = Cluster(kind="kubernetes", image="images:1", adaptive=[2, 9], threads_per_worker=2, memory_limit="1GiB")

    spec = pods(config)["spec"]

    (worker,) = spec["worker"]["spec"]["containers"]
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    assert spec["worker"]["replicas"] == 2
    assert worker["image"] == scheduler["image"] == "images:1"
    assert worker["resources"]["limits"] == {"memory": str(2**30)}
    assert worker["args"][:6] == ["dask", "worker", "--nthreads", "2", "--memory-limit", str(2**30)]
    assert scheduler["args"] == ["dask", "scheduler", "--host", "0.0.0.0"]


@pytest.mark.parametrize(
    ("config", "package", "extra"),
    [
        (Cluster(kind="slurm", **JOBS), "dask_jobqueue", "hpc"),
        (Cluster(kind="ssh", hosts=["a", "b"], n_workers=1), "asyncssh", "ssh"),
        (
            Cluster(kind="kubernetes", image="a", n_workers=1, memory_limit="1GiB"),
            "dask_kubernetes.operator",
            "kubernetes",
        ),
    ],
)
def test_missing_package_raises(config: Cluster, package: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)

    refused = pytest.raises(UserError, match=rf"{package.split('.')[0]}.*: pip install 'kmeans-dask\[{extra}\]'")
    with refused, connect(config):
        pass


def test_missing_queue_system_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    interrupt = signal.getsignal(signal.SIGINT)

    refused = pytest.raises(UserError, match=r"cluster.kind=slurm cannot be started here: .* 'sbatch'")
    with refused, connect(Cluster(kind="slurm", **JOBS)):
        pass
    assert signal.getsignal(signal.SIGINT) is interrupt  # dask_jobqueue would replace it


def test_unreachable_ssh_host_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh" / "config").write_text(f"Host *\n  Port {taken.getsockname()[1]}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        hosts = ["127.0.0.1", "127.0.0.1"]

        refused = pytest.raises(UserError, match=r"cluster.kind=ssh cannot be started here: .*Connect call failed")
        with refused, connect(Cluster(kind="ssh", hosts=hosts, n_workers=1)):
            pass


def test_unknown_ssh_host_raises():
    refused = pytest.raises(UserError, match=r"cluster\.hosts: no-such-host\.invalid does not resolve to an address")
    with refused, connect(Cluster(kind="ssh", hosts=["no-such-host.invalid", "b"], n_workers=1)):
        pass


def test_slurm_runner_outside_slurm_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    refused = pytest.raises(UserError, match=r"SLURM_JOB_ID.* is not set: start the command with srun")
    with refused, connect(Cluster(kind="slurm-runner", host="lo")):
        pass


def test_slurm_job_with_certificates(tmp_path: Path):
    import dask

    from kmeans_dask.deploy.security import tls_settings
    from tests.support.certificates import Authority

    tls = Tls(**Authority(tmp_path / "ours").certify("me"))
    with dask.config.set(tls_settings(tls)):
        config = Cluster(kind="slurm", tls=tls, **JOBS)
        with SLURMCluster(**job_arguments(config)) as cluster:
            *_, command = cluster.job_script().splitlines()
            assert cluster.scheduler_address.startswith("tls://127.0.0.1:")

    assert f"--protocol tls:// --tls-ca-file {tls.ca} --tls-cert {tls.cert} --tls-key {tls.key}" in command
