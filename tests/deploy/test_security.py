from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from kmeans_dask.config.cluster import Cluster, Tls
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.security import exposure_warning, listen_options, worker_listen_options
from kmeans_dask.errors import UserError
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.mark.parametrize(
    ("host", "scheduler", "workers"),
    [
        (None, {"host": "127.0.0.1"}, {"host": "127.0.0.1"}),
        ("localhost", {"host": "localhost"}, {"host": "localhost"}),
        ("10.1.2.3", {"host": "10.1.2.3"}, {}),
        ("lo", {"interface": "lo"}, {"interface": "lo"}),
        ("ib7", {"interface": "ib7"}, {"interface": "ib7"}),  # an interface of another machine
    ],
)
def test_listen_options(host: str | None, scheduler: dict[str, str], workers: dict[str, str]):
    assert listen_options(host) == scheduler
    assert worker_listen_options(scheduler) == workers


class StubClient:
    """A client with the address of its scheduler."""

    def __init__(self, address: str) -> None:
        self.scheduler = SimpleNamespace(address=address)


@pytest.mark.parametrize("address", ["tcp://10.1.2.3:8786", "tcp://0.0.0.0:8786", "tcp://no-such-host.invalid:8786"])
def test_exposure_warning(address: str):
    warning = exposure_warning(StubClient(address))

    assert warning is not None
    assert warning.startswith(
        f"connections to {address} are not authenticated: anyone who can reach it can run code on the workers"
    )
    assert "cluster.tls" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "tcp://[::1]:1", "tls://10.1.2.3:8786", "inproc://10.1.2.3/1"]
)
def test_no_exposure_warning_for_safe_addresses(address: str):
    assert exposure_warning(StubClient(address)) is None


def test_local_cluster_with_host_and_certificates(ours: Authority):
    own = psutil.Process()
    before = {connection.laddr for connection in own.net_connections("inet")}
    config = Cluster(kind="local", adaptive=[1, 2], host="127.0.0.2", tls=Tls(**ours.certify("me")))

    with connect(config) as client:
        sockets = [
            connection.laddr
            for process in [own, *own.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr not in before
        ]
        dashboards = {socket for socket in sockets if socket.ip == "127.0.0.1"}
        addresses = {client.scheduler.address, *client.scheduler_info()["workers"]}
        assert client.submit(pow, 2, 3).result() == 8

    assert len(addresses) >= 2
    assert all(address.startswith("tls://127.0.0.2:") for address in addresses)
    assert {socket.ip for socket in sockets} == {"127.0.0.1", "127.0.0.2"}
    assert dashboards


def test_invalid_certificate_raises(ours: Authority, tmp_path: Path):
    good = ours.certify("good")
    (tmp_path / "empty.pem").write_text("")
    for key in good:
        for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
            refused = pytest.raises(UserError, match=rf"cluster\.tls: .*{path.name}.* cannot be used")
            with refused, connect(Cluster(tls=Tls(**{**good, key: str(path)}))):
                pass
