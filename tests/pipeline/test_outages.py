"""Input or output disappears during a job: one line, exit status 1, and a rerun resumes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from kmeans_dask.pipeline.driver.failures import StoreLostError
from kmeans_dask.pipeline.driver.session import holding
from kmeans_dask.sources.kinds.locations import unavailable_folder
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from tests.support.images import draw_images, hold_later
from tests.support.jobs import Result, results_of, write_config
from tests.support.processes import Planted, Process

FILE_SYSTEMS: list[dict[str, Any]] = []
"""Keeps the file systems of all stores alive, which fsspec caches per process whatever the environment: if they were
garbage collected, they would complain about connections to dead servers."""

SERVER = """
import sys, threading
from moto.moto_api._internal.recorder.models import Recorder
from moto.server import main

record, one_at_a_time = Recorder._record_request, threading.Lock()

def record_whole(*arguments):
    with one_at_a_time:
        record(*arguments)

Recorder._record_request = record_whole
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


class Store:
    """An S3 server that can be killed and restarted with its content, by replaying a record of all requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        record = {"MOTO_ENABLE_RECORDING": "1", "MOTO_RECORDER_FILEPATH": str(self._folder / "requests")}
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(self._port)], env=os.environ | record, stdout=log, stderr=log
            )
        limit = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < limit
            time.sleep(0.05)
        requests = self._folder / "requests"
        if requests.exists():
            requests.write_bytes(requests.read_bytes().rpartition(b"\n")[0] + b"\n")  # the last one may be truncated
            self.manage("recorder/replay-recording")

    def _answers(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0

    def manage(self, what: str, body: str = "") -> None:
        """Send a request to the management API of the server."""
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/{what}", body.encode(), headers)).close()

    def accept(self, requests: str) -> None:
        """Accept any credentials for a number of requests, and none afterwards."""
        self.manage("reset-auth", requests)

    def stop_answering(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)


def free_port() -> int:
    """Find a free port below the ephemeral range, which stays free while the server is dead."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A separate store for one test, which may leave it dead."""
    store = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "not-to-be-logged",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",  # s3fs itself retries five times in two seconds
        }.items():  # fmt: skip
            patch.setenv(name, value)
        FILE_SYSTEMS.append({})
        patch.setattr(S3FileSystem, "_cache", FILE_SYSTEMS[-1])
        boto3.client("s3").create_bucket(Bucket="outages")
        yield store
    store.kill()


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """Config of a job of two chunks that reads from and writes to the store; one image of the second can be held."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=32, side=160, levels=16)
    hold_later(max((folder / "images").rglob("*.png")))
    s3 = boto3.client("s3")
    for path in (folder / "images").rglob("*.png"):
        s3.upload_file(str(path), "outages", str(path.relative_to(folder)))
    return write_config(
        folder,
        Path("nowhere"),
        input={"path": "s3://outages/images", "holdout": 0.2},
        output="s3://outages/runs",
        ingest={"size": [112, 112]},
        fit={"k": [3, 5], "algorithm": "kmeans"},
        quantize={"k": 2},
        report=None,
        cluster={"kind": "threads", "n_workers": 1},
    )


def test_store_that_is_killed_or_denies_access(
    command: Callable[..., Result],
    start: Callable[..., Process],
    planted: Planted,
    store: Store,
    config: Path,
    tmp_path: Path,
):
    folder = location("s3://outages/runs/small")

    def lose_when(condition: Callable[[], object], lose: Callable[[], object], *changes: str) -> str:
        planted.hold()
        process = start("kmeans-dask", "run", config, *changes)
        process.wait_until(condition, pause=0.05)
        lose()
        planted.let_go()
        assert process.wait() == 1, process.output
        assert "Traceback" not in process.output
        assert "not-to-be-logged" not in process.output
        *_, last = process.output.splitlines()
        assert last.endswith("; rerun the same command to resume")
        return last

    # one of two threads finishes its work, while the other waits for the held image
    parts = "collection.zarr.partial/items/part-*.parquet"
    killed = lose_when(
        lambda: list(folder.glob(parts)), store.kill, "cluster.kind=local", "cluster.threads_per_worker=2"
    )
    store.start()
    assert command("ingest", config).status == 0
    refused = lose_when(lambda: "fit" in read_json(folder / "run.json")["stages"], lambda: store.accept("0"))
    store.accept("inf")
    assert 'Could not connect to the endpoint URL: "' in killed
    assert "Forbidden" in refused or "The AWS Access Key Id you provided does not exist in our records" in refused

    result = command("run", config)
    assert result.status == 0, result.err
    assert {"ingest: already finished", "fit: already finished"} <= {*result.lines}
    assert command("run", config, f"output={tmp_path}").status == 0
    folder.fs.get(folder.path, str(tmp_path / "copy"), recursive=True)  # type: ignore[attr-defined]
    assert results_of(tmp_path / "copy") == results_of(tmp_path / "small")


def test_final_error_is_the_last_line(store: Store, caplog: pytest.LogCaptureFixture):
    hearts = []

    def work() -> None:
        with holding(RunFolder(location("s3://outages/runs/heart")), "kmeans-dask run"):
            hearts.extend(thread for thread in threading.enumerate() if thread.name == "heartbeat")
            store.stop_answering()
            time.sleep(1.5)  # longer than one beat: the heartbeat waits for an answer
            raise StoreLostError("the last line")

    with pytest.raises(StoreLostError, match="the last line"):
        work()
    (heart,) = hearts
    store.kill()
    heart.join(60)
    assert not heart.is_alive()
    assert [line for line in caplog.messages if "cannot be reached" in line] == []


def test_source_in_a_store_that_denies_access(store: Store):
    boto3.client("s3").put_object(Bucket="outages", Key="images/a.png", Body=b"an image")

    assert unavailable_folder(b"s3://outages/images/a.png") is None
    assert unavailable_folder(b"s3://outages/images/a.png.gone") is None
    assert unavailable_folder(b"s3://outages/emptied/a.png") == "s3://outages/emptied (outages/emptied)"
    store.accept("0")
    assert unavailable_folder(b"s3://outages/images/a.png") == "s3://outages/images (Forbidden)"


def test_missing_source_is_not_a_bad_image(command: Callable[..., Result], images: Path, tmp_path: Path):
    source = tmp_path / "images"
    shutil.copytree(images, source)
    (source / "bar" / "damaged.png").write_bytes(b"no image")
    only_quantize: dict[str, Any] = {"fit": None, "evaluate": None, "report": None}
    config = write_config(tmp_path, source, **only_quantize, quantize={"k": 2, "palette": "shared"})
    assert command("ingest", config).status == 0
    (source / "bar" / "001.png").unlink()
    source.rename(tmp_path / "elsewhere")

    for empty in (source, source / "bar"):  # an unmounted file system, and one of several
        empty.mkdir()
        result = command("quantize", config)
        assert result.status == 1
        *_, last = result.lines
        assert last.startswith(f"kmeans-dask: the input became unavailable: {source}/")
        assert last.endswith("is its file system still mounted?); rerun the same command to resume")
        assert "Traceback" not in result.err

    shutil.rmtree(source)
    (tmp_path / "elsewhere").rename(source)
    assert command("quantize", config).status == 0
    outputs = pq.read_table(tmp_path / "runs" / "small" / "quantized.parquet").to_pylist()
    bad = {row["path"]: row["status"] for row in outputs if row["status"] != "ok"}
    assert bad == {"bar/001.png": "missing", "bar/damaged.png": "unreadable"}
    assert len(outputs) == 61
