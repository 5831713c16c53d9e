"""A whole job over encrypted connections, and clients that are rejected."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from distributed import Client, Security

from kmeans_dask.storage.publish import read_json
from tests.support.certificates import Authority
from tests.support.jobs import Result, write_config
from tests.support.processes import COMMANDS, Process

Command = Callable[..., Result]


class Encrypted(NamedTuple):
    """A scheduler with one worker, in separate processes, and the certificates of clients."""

    address: str
    tls: dict[str, str]
    stranger: dict[str, str]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = Authority(folder / "ours"), Authority(folder / "theirs")
    node, stranger = ours.certify("node"), theirs.certify("stranger")
    options = ["--tls-ca-file", node["ca"], "--tls-cert", node["cert"], "--tls-key", node["key"], "--no-dashboard"]
    file = folder / "scheduler.json"

    def begin(*arguments: str) -> Process:
        return Process([str(COMMANDS / "dask"), *arguments, "--host", "127.0.0.1", *options], folder)

    processes = [begin("scheduler", "--port", "0", "--protocol", "tls", "--scheduler-file", str(file))]
    try:
        processes.append(begin("worker", "--scheduler-file", str(file), "--nthreads", "1"))
        processes[0].wait_until(lambda: file.exists() and "workers" in file.read_text())
        address, mine = read_json(file)["address"], ours.certify("client")
        known = Security(tls_ca_file=mine["ca"], tls_client_cert=mine["cert"], tls_client_key=mine["key"])
        with Client(address, security=known, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=120)
        yield Encrypted(address, mine, stranger)
    finally:
        for process in reversed(processes):
            process.end()


def cluster_file(folder: Path, **keys: object) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"kind": "address", **keys}))
    return path


def test_job_over_encrypted_connections(encrypted: Encrypted, command: Command, images: Path, tmp_path: Path):
    config = write_config(
        tmp_path, images, report=None, evaluate=None, fit={"k": 3}, quantize={"k": 2}, cluster={"tls": encrypted.tls}
    )

    result = command("run", config, "--cluster", encrypted.address)

    assert encrypted.address.startswith("tls://127.0.0.1:")
    assert result.status == 0, result.err
    assert read_json(tmp_path / "runs" / "small" / "run.json")["state"] == "finished"


def test_submitted_job_over_encrypted_connections(encrypted: Encrypted, command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, report=None, evaluate=None, fit=None, quantize=None)
    file = cluster_file(tmp_path, address=encrypted.address, tls=encrypted.tls)

    assert command("submit", config, "--cluster", file).status == 0

    limit = time.monotonic() + 120
    while "small: finished" not in command("status", tmp_path / "runs" / "small", "--cluster", file).out:
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_client_without_valid_certificate_is_rejected(
    encrypted: Encrypted, command: Command, images: Path, tmp_path: Path
):
    config = write_config(tmp_path, images, report=None)
    none = command("ingest", config, "--cluster", encrypted.address)
    plain = command("ingest", config, "--cluster", encrypted.address.replace("tls:", "tcp:"))
    others = [
        command("ingest", config, "--cluster", cluster_file(tmp_path, address=encrypted.address, tls=tls))
        for tls in (encrypted.stranger, {**encrypted.stranger, "ca": encrypted.tls["ca"]})
    ]

    for result in (none, plain, *others):
        assert result.status == 2
        assert result.lines[-1].startswith("kmeans-dask: ")
        assert "Traceback" not in result.err
    assert "requires a certificate: give cluster.tls" in none.lines[-1]
    assert "no Dask scheduler answers at tcp://127.0.0.1:" in plain.lines[-1]
    assert all("give certificates of its authority" in result.lines[-1] for result in others)
    assert not list((tmp_path / "runs").rglob("part-*"))


def test_scheduler_requires_certificate(encrypted: Encrypted):
    host, _, port = encrypted.address.removeprefix("tls://").partition(":")
    context = ssl.create_default_context(cafile=encrypted.tls["ca"])
    context.check_hostname = False

    with (
        socket.create_connection((host, int(port)), 10) as connection,
        context.wrap_socket(connection) as channel,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        channel.recv(1)
