"""Whole jobs with the run folder in an object store: a real S3 server, real worker processes, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kmeans_dask import open_collection
from kmeans_dask.errors import UserError
from kmeans_dask.models.model import read_model
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord
from tests.support.images import draw_images, hold_later
from tests.support.jobs import Result, results_of, write_config
from tests.support.processes import Planted, Process
from tests.support.s3 import S3Server

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    s3.client.create_bucket(Bucket="jobs")
    return "s3://jobs/runs"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Path:
    """Config of a job of four chunks with its run folder in the bucket; one image of the last chunk can be held."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=64, side=160, levels=16)
    hold_later(max((folder / "images").rglob("*.png")))
    return write_config(
        folder,
        folder / "images",
        output=bucket,
        ingest={"size": [112, 112]},
        fit={"k": [3, 5], "algorithm": "kmeans"},
        quantize={"k": 2},
        cluster={"kind": "local", "n_workers": 1},
    )


@pytest.fixture(scope="module")
def local_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Copy a folder of the store to a local folder."""

    def copy(folder: Path) -> Path:
        here = tmp_path_factory.mktemp("copy") / folder.name
        folder.fs.get(folder.path, str(here), recursive=True)  # type: ignore[attr-defined]
        return here

    return copy


def test_killed_and_resumed_job_equals_a_run_on_disk(
    command: Command,
    start: Callable[..., Process],
    job: Path,
    bucket: str,
    local_copy: Callable[[Path], Path],
    s3: S3Server,
    planted: Planted,
):
    folder = location(f"{bucket}/small")

    def kill_when(condition: Callable[[], object], *changes: str) -> None:
        process = start("kmeans-dask", "run", job, *changes)
        process.wait_until(condition, pause=0.05)  # every check is a request
        process.signal_all(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    def finished() -> set[str]:
        return read_json(folder / "run.json")["stages"].keys() - {"listing"}

    def parts() -> list[Path]:
        return list(folder.glob("collection.zarr.partial/items/part-*.parquet"))

    kill_when(lambda: len(parts()) == 3, "cluster.threads_per_worker=2")  # the other thread waits for the held image
    assert finished() == set()
    with pytest.raises(UserError, match="is not a finished collection"):
        open_collection(str(folder / "collection.zarr"))
    assert len(parts()) == 3

    result = command("ingest", job, "cluster.kind=threads")
    assert "ingest: 64 items in 4 chunks of 16 items (0.6 MiB); 1 to do" in result.lines
    kill_when(lambda: "fit" in finished(), "cluster.kind=threads")
    assert {"ingest", "fit"} <= finished() <= {"ingest", "fit", "evaluate"}

    planted.let_go()
    process = start("kmeans-dask", "run", job)
    assert process.wait() == 0, process.output
    assert "ingest: already finished" in process.output
    assert "fit: already finished" in process.output
    assert process.output.endswith(f"report: {bucket}/small/report.html\n")
    assert "not-to-be-logged" not in process.output

    assert command("run", job, f"output={job.parent}", "cluster.n_workers=2", "cluster.kind=threads").status == 0
    there, here = local_copy(folder), job.parent / "small"
    assert results_of(there) == results_of(here)
    for part in ("images", "labels"):
        assert contents(there / "collection.zarr" / part) == contents(here / "collection.zarr" / part)
    assert final(there) == final(here)
    assert not any(b"not-to-be-logged" in content for content in contents(there).values())


def final(folder: Path) -> set[str]:
    """Names of all files except those that depend on how often the command was started."""
    return {name for name in contents(folder) if not name.startswith(("quantized.journal/", "drivers/", "logs/"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_commands_accept_the_url_of_a_run(
    command: Command, job: Path, bucket: str, images: Path, tmp_path: Path
):  # uses the run of the test above
    run = f"{bucket}/small"

    assert "fit" in command("show", run).out
    assert command("predict", run, images).status == 0
    name = f"{run}/predictions/images-kmeans-k5.parquet"
    with location(name).open("rb") as file:
        assert pq.read_table(file)["status"].to_pylist() == ["ok"] * 60
    assert command("export", run, tmp_path / "table.csv").status == 0
    assert command("export", run, f"{bucket}/exported/model.npz").status == 0
    assert location(f"{bucket}/exported/model.npz").exists()
    assert command("export", run, tmp_path / "images", "--by", "cluster").status == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 64
    assert command("compare", run, job.parent / "small").status == 0
    assert command("retry", run).status == 0


def test_update_copies_unchanged_chunks(
    command: Command, job: Path, bucket: str, tmp_path: Path, local_copy: Callable[[Path], Path]
):
    draw_images(tmp_path / "images", count=70, side=32)
    (tmp_path / "runs").mkdir()
    config = write_config(
        tmp_path, tmp_path / "images", output=bucket, name="updated",
        input={"path": str(tmp_path / "images"), "labels": "none"},
        ingest={"size": [112, 112]}, fit=None, evaluate=None, quantize=None, report=None,
    )  # fmt: skip
    assert command("run", config).status == 0
    (changed,) = (tmp_path / "images").glob("*/020.png")
    shutil.copy(tmp_path / "images" / "disc" / "000.png", changed)
    os.utime(changed, (1, 1))

    result = command("run", config)

    assert result.status == 0
    assert "ingest: 70 items in 5 chunks of 16 items (0.6 MiB); 1 to do" in result.lines
    assert command("run", config, f"output={tmp_path / 'runs'}").status == 0
    there = local_copy(location(f"{bucket}/updated/collection.zarr"))
    images = Path("images", "c")
    assert contents(there / images) == contents(tmp_path / "runs" / "updated" / "collection.zarr" / images)
    left = location(f"{bucket}/updated/collection.zarr.partial")
    assert not left.exists()
    (left / "images" / "c" / "0").write_bytes(b"left by a command killed while removing this")
    RunRecord.read(RunFolder(location(f"{bucket}/updated"))).forget("ingest")
    assert "ingest: 70 items in 5 chunks of 16 items (0.6 MiB); 0 to do" in command("run", config).lines


def test_retry_reads_failed_items(command: Command, bucket: str, tmp_path: Path):
    draw_images(tmp_path / "images", count=4)
    broken = tmp_path / "images" / "disc" / "000.png"
    good = broken.read_bytes()
    broken.write_bytes(b"no image")
    config = write_config(
        tmp_path, tmp_path / "images", output=bucket, name="retried",
        fit=None, evaluate=None, report=None, quantize=None,
    )  # fmt: skip
    assert command("run", config).status == 0
    broken.write_bytes(good)

    result = command("retry", f"{bucket}/retried")

    assert result.status == 0
    assert result.lines[0] == "retried: retrying 1 items that could not be read and 0 outputs that failed"
    collection = open_collection(f"{bucket}/retried/collection.zarr")
    assert collection.items["status"].to_pylist() == ["ok"] * 4
    assert collection.images.compute(scheduler="sync").any(axis=(1, 2, 3)).all()


def test_groups_without_marker_are_unfinished(bucket: str, tmp_path: Path, command: Command):
    folder = location(f"{bucket}/small")
    (folder / "collection.zarr" / "zarr.json").unlink()
    (folder / "models" / "kmeans" / "k=3.zarr" / "zarr.json").unlink()

    with pytest.raises(UserError, match="is not a finished collection"):
        open_collection(str(folder / "collection.zarr"))
    with pytest.raises(UserError, match="is not a finished model"):
        read_model(folder / "models" / "kmeans" / "k=3.zarr")


@pytest.fixture
def locked(bucket: str) -> Iterator[None]:
    """Make the server reject all credentials."""

    def set_unauthenticated_requests(requests: str) -> None:
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), headers)).close()

    set_unauthenticated_requests("0")
    yield
    set_unauthenticated_requests("inf")


def test_invalid_credentials_are_one_line(command: Command, job: Path, bucket: str, locked: None):
    run = f"{bucket}/small"
    for arguments in (("run", job), ("show", run), ("status", run), ("retry", run), ("predict", run, "images")):
        result = command(*arguments)
        assert result.status == 2
        assert len(result.lines) == 1
        assert "check the bucket and the credentials" in result.err
        assert "not-to-be-logged" not in result.err


def test_missing_bucket_is_one_line(command: Command, job: Path):
    result = command("run", job, "output=s3://none/runs")
    assert result.status == 2
    assert result.lines == [
        "kmeans-dask: cannot use s3://none/runs/small: The specified bucket does not exist; check the bucket and the "
        "credentials, which are found as fsspec finds them"
    ]


@pytest.mark.parametrize("url", ["memory://runs", "https://x/runs", "sftp://x/runs", "s3://", "s3://a/b*"])
def test_other_urls_are_refused(command: Command, job: Path, url: str):
    result = command("run", job, f"output={url}")

    assert result.status == 2
    assert result.lines == [
        f"kmeans-dask: {job}: output={url!r}: must be a folder, or the URL of a bucket: s3://, gs://, az://, abfs://"
    ]
    assert command("show", url).status == 2
