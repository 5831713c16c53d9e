"""Jobs whose scheduler and workers are started through ssh on this machine: ``make test-ssh``, as root on Debian."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from kmeans_dask.cli import main
from tests.support.certificates import Authority
from tests.support.images import draw_images
from tests.support.jobs import write_config
from tests.support.processes import Process

_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/me.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
"""
_CONFIG = """
Host 127.0.0.1
  Port {port}
  User root
  IdentityFile {folder}/me
  UserKnownHostsFile {folder}/known_hosts
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder whose .ssh/config points to an sshd of the tests, with keys of its own."""
    folder = tmp_path_factory.mktemp("home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for key in ("host", "me"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True, timeout=20)
    (folder / "sshd_config").write_text(_SSHD.format(port=port, folder=folder))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "config").write_text(_CONFIG.format(port=port, folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = [str(shutil.which("sshd")), "-D", "-e", "-f", str(folder / "sshd_config")]  # sshd requires an absolute path
    with subprocess.Popen(sshd, stderr=subprocess.DEVNULL) as daemon:
        try:
            _wait_for(port)
            yield folder
        finally:
            daemon.terminate()


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"no sshd answers at port {port}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job; the run ``local`` is its result without ssh."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=90, side=160, levels=16)
    config = write_config(
        folder, folder / "images", name="local", output="runs", ingest={"size": [112, 112]}, fit={"k": 8}, report=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(["run", str(config)]) == 0
    return config


def started_by_ssh() -> list[psutil.Process]:
    """Return the schedulers and nannies that were started through ssh."""
    return [
        process for process in psutil.process_iter(["cmdline"])
        if "distributed.cli.dask_spec" in (process.info["cmdline"] or [])
    ]  # fmt: skip


@pytest.mark.parametrize("encrypted", [False, True])
def test_job_on_hosts(
    encrypted: bool, home: Path, job: Path, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(home))
    name = f"encrypted-{encrypted}"
    keys = {"kind": "ssh", "hosts": ["127.0.0.1"] * 3, "n_workers": 2, "memory_limit": "1GiB"}
    tls = {"tls": Authority(home / "authority").certify("all")} if encrypted else {}
    cluster = job.parent / f"{name}.yaml"
    cluster.write_text(yaml.safe_dump({**keys, **tls}))

    process = start("kmeans-dask", "run", job, f"name={name}", "--cluster", cluster, folder=job.parent)
    process.wait_until(lambda: len(started_by_ssh()) == 3)  # the scheduler, and the nannies of two hosts

    assert process.wait(200) == 0, process.output
    assert "Traceback" not in process.output
    assert results(job.parent / "runs" / name) == results(job.parent / "runs" / "local")
    limit = time.monotonic() + 20
    while started_by_ssh():  # they must end with the job
        assert time.monotonic() < limit
        time.sleep(0.2)


def results(run: Path) -> dict[str, bytes]:
    """Files that must not depend on where the job runs."""
    files = [*run.glob("models/*/*.zarr/centres/**/*"), *run.glob("quantized/**/*.png"), run / "items.csv"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def test_rejected_key_is_one_line(home: Path, job: Path, start: Callable[..., Process], tmp_path: Path):
    shutil.copytree(home / ".ssh", tmp_path / ".ssh")
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True, timeout=20)
    config = tmp_path / ".ssh" / "config"
    config.write_text(config.read_text().replace(f"{home}/me", str(stranger)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        hosts = "cluster={kind: ssh, hosts: ['127.0.0.1', '127.0.0.1'], n_workers: 1}"
        process = start("kmeans-dask", "run", job, "name=refused", hosts, folder=job.parent)

        assert process.wait() == 2
    assert "Traceback" not in process.output
    assert "cluster.kind=ssh cannot be started here: " in process.output.splitlines()[-1]
    assert "Permission denied" in process.output.splitlines()[-1]
