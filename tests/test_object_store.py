"""Run folders in an object store: a real S3 server on this machine, in a process of its own."""

from __future__ import annotations

import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import S3Server

from kmeans_dask.object_store import is_local, location
from kmeans_dask.publish import create, publish, read_json, remove, write_json


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    s3.client.create_bucket(Bucket="bucket")
    return "s3://bucket"


@pytest.fixture
def folder(bucket: str, request: pytest.FixtureRequest) -> Path:
    """A folder in the bucket that no other test has."""
    return location(f"{bucket}/{request.node.name}")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_paths_are_those_of_the_machine_or_of_a_store(folder: Path, tmp_path: Path):
    assert type(location(str(tmp_path))) is type(tmp_path)
    assert location(tmp_path) is tmp_path
    assert not is_local(folder / "a")
    assert pickle.loads(pickle.dumps(folder / "a")) == folder / "a"
    assert str((folder / "a").parent) == str(folder)


def test_an_object_appears_when_it_is_complete(folder: Path):
    write_json(folder / "a.json", {"old": 1})

    with publish(folder / "a.json") as partial:
        partial.write_text('{"new": ')
        assert read_json(folder / "a.json") == {"old": 1}
        with partial.open("a") as file:
            file.write("2}")

    assert read_json(folder / "a.json") == {"new": 2}
    with pytest.raises(ZeroDivisionError), publish(folder / "a.json") as partial:
        partial.write_text(str(1 / 0))
    assert read_json(folder / "a.json") == {"new": 2}
    assert names(folder) == ["a.json"]


def test_of_many_that_create_an_object_one_succeeds(folder: Path):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: create(folder / "lock", str(i)), range(8)))

    assert sum(made) == 1
    assert (folder / "lock").read_text() == str(made.index(True))


def test_a_folder_replaces_a_folder(folder: Path):
    (folder / "model.zarr" / "old" / "c").write_bytes(b"old")
    (folder / "model.zarr" / "zarr.json").write_bytes(b"old")
    (folder / "model.zarr.other").write_bytes(b"stays")

    with publish(folder / "model.zarr") as partial:
        (partial / "centres").mkdir(parents=True)
        (partial / "centres" / "zarr.json").write_text("of the array")
        (partial / "zarr.json").write_text("of the group")

    assert names(folder) == ["model.zarr.other", "model.zarr/centres/zarr.json", "model.zarr/zarr.json"]

    remove(folder / "model.zarr")
    remove(folder / "model.zarr")
    assert names(folder) == ["model.zarr.other"]


def test_the_marker_of_a_folder_is_removed_first_and_written_last(folder: Path, s3: S3Server):
    for _ in range(2):
        s3.requests.clear()
        with publish(folder / "model.zarr") as partial:
            (partial / "centres").mkdir(parents=True)
            (partial / "centres" / "c").write_bytes(bytes(10))
            (partial / "zarr.json").write_text("of the group")

    while not s3.requests or "PUT" not in s3.requests[-1] or "model.zarr/zarr.json" not in s3.requests[-1]:
        time.sleep(0.01)  # until the log has come
    logged = re.findall(r"(DELETE|POST|PUT) /(\S+)", "".join(s3.requests))
    changes = [(verb, name.rpartition("/")[2]) for verb, name in logged]
    assert changes[0] == ("DELETE", "zarr.json")
    assert ("POST", "bucket?delete") in changes  # the rest
    assert changes[-2:] == [("PUT", "c"), ("PUT", "zarr.json")]
