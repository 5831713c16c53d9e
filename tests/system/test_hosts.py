"""A scheduler host and two worker hosts that share nothing but an S3 store: ``make test-hosts``, as root on Linux."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kmeans_dask.cli import main
from tests.support.images import draw_images
from tests.support.jobs import write_config
from tests.support.three_hosts import Hosts

_STORE = "import sys; from moto.server import main; main(['-H', sys.argv[1], '-p', '5000'])"
_FILL = """
import boto3, pathlib, sys
client = boto3.client("s3")
client.create_bucket(Bucket="bucket")
for path in pathlib.Path(sys.argv[1]).rglob("*.png"):
    client.upload_file(str(path), "bucket", "images/" + str(path.relative_to(sys.argv[1])))
"""
_LOAD = """
import boto3, pathlib, sys
client = boto3.client("s3")
for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=sys.argv[1]):
    for item in page.get("Contents", []):
        path = pathlib.Path(sys.argv[2], item["Key"])
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("bucket", item["Key"], str(path))
"""


class Site(NamedTuple):
    """Three hosts, the first with an S3 store and a scheduler, and the config of a job that has run locally too."""

    hosts: Hosts
    scheduler: str
    config: Path
    environ: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hosts")
    draw_images(folder / "images", count=90, side=160, levels=16)
    job = {"ingest": {"size": [112, 112]}, "fit": {"k": 8}, "report": None}
    config = write_config(folder, folder / "images", name="local", **job)
    assert main.main(["run", str(config)]) == 0
    config = write_config(folder, Path("nowhere"), output="s3://bucket/runs", **job)
    (folder / "own").mkdir()
    with Hosts(folder / "own", 3) as hosts:
        head = hosts.address(0)
        environ = {
            "AWS_ENDPOINT_URL": f"http://{head}:5000", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1", "TMPDIR": str(folder / "own"), "NUMBA_CACHE_DIR": str(folder / "own"),
        }  # fmt: skip
        store = hosts.start(0, "python", "-c", _STORE, head, **environ)
        hosts.wait_for(store, "Running on")
        assert hosts.start(0, "python", "-c", _FILL, folder / "images", **environ).wait(60) == 0
        scheduler = hosts.start(0, "dask", "scheduler", "--host", head, "--port", "8786", "--no-dashboard", **environ)
        hosts.wait_for(scheduler, "Scheduler at")
        yield Site(hosts, f"tcp://{head}:8786", config, environ, folder)


def start_worker(site: Site, number: int) -> subprocess.Popen[bytes]:
    options = ["--nthreads", "1", "--nworkers", "1", "--memory-limit", "1GiB", "--no-dashboard"]
    process = site.hosts.start(number, "dask", "worker", site.scheduler, *options, **site.environ)
    site.hosts.wait_for(process, "Registered to")
    return process


def results(run: Path) -> dict[str, bytes]:
    """Files that must not depend on where the job runs."""
    files = [*run.glob("models/*/*.zarr/centres/**/*"), *run.glob("quantized/**/*.png"), run / "items.csv"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def run_job(site: Site, name: str) -> subprocess.Popen[bytes]:
    return site.hosts.start(
        0, "kmeans-dask", "run", site.config, f"name={name}", "input.path=s3://bucket/images",
        "--cluster", site.scheduler, **site.environ,
    )  # fmt: skip


def download(site: Site, name: str) -> dict[str, bytes]:
    """Download a run from the store and return its results."""
    folder = site.folder / f"loaded-{name}"
    code = site.hosts.start(0, "python", "-c", _LOAD, f"runs/{name}/", folder, **site.environ)
    assert code.wait(60) == 0, site.hosts.output(code)
    return results(folder / "runs" / name)


def test_job_without_a_shared_file_system(site: Site):
    workers = [start_worker(site, number) for number in (1, 2)]

    job = run_job(site, "far")

    assert job.wait(240) == 0, site.hosts.output(job)
    log = site.hosts.output(job)
    assert log.count(f"connections to {site.scheduler} are not authenticated") == 1
    assert download(site, "far") == results(site.folder / "runs" / "local")
    assert "Traceback" not in log
    for process in workers:
        left = [name for name in site.hosts.files(process) if name.endswith((".png", ".zarr", ".parquet", ".csv"))]
        assert left == []


def test_host_disconnected(site: Site):
    job = run_job(site, "cut")
    site.hosts.wait_for(job, "fit: ", 120)
    site.hosts.unplug(2)

    assert job.wait(300) == 0, site.hosts.output(job)
    assert download(site, "cut") == results(site.folder / "runs" / "local")
