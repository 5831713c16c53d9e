"""Run folders in an object store: a real S3 server on this machine, in its own process."""

from __future__ import annotations

import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kmeans_dask.errors import UserError
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.journal import Outcome, open_journal
from kmeans_dask.storage.object_store import is_local, location
from kmeans_dask.storage.publish import create, publish, read_json, remove, write_json
from tests.support.s3 import S3Server


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    s3.client.create_bucket(Bucket="objects")
    return "s3://objects"


@pytest.fixture
def folder(bucket: str, request: pytest.FixtureRequest) -> Path:
    """A folder in the bucket that no other test uses."""
    return location(f"{bucket}/{request.node.name}")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_location_is_local_or_in_a_store(folder: Path, tmp_path: Path):
    assert type(location(str(tmp_path))) is type(tmp_path)
    assert location(tmp_path) is tmp_path
    assert not is_local(folder / "a")
    assert pickle.loads(pickle.dumps(folder / "a")) == folder / "a"
    assert str((folder / "a").parent) == str(folder)


def test_object_appears_when_complete(folder: Path):
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


def test_create_is_exclusive(folder: Path):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: create(folder / "lock", str(i)), range(8)))

    assert sum(made) == 1
    assert (folder / "lock").read_text() == str(made.index(True))


def test_folder_replaces_folder(folder: Path):
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


def test_marker_is_removed_first_and_written_last(folder: Path, s3: S3Server):
    for _ in range(2):
        s3.requests.clear()
        with publish(folder / "model.zarr") as partial:
            (partial / "centres").mkdir(parents=True)
            (partial / "centres" / "c").write_bytes(bytes(10))
            (partial / "zarr.json").write_text("of the group")
        while not s3.requests or "PUT" not in s3.requests[-1] or "model.zarr/zarr.json" not in s3.requests[-1]:
            time.sleep(0.01)  # until the whole log has arrived

    logged = re.findall(r"(DELETE|POST|PUT) /(\S+)", "".join(s3.requests))
    changes = [(verb, name.rpartition("/")[2]) for verb, name in logged]
    assert changes[0] == ("DELETE", "zarr.json")
    assert ("POST", "objects?delete") in changes  # the rest
    assert changes[-2:] == [("PUT", "c"), ("PUT", "zarr.json")]


def test_arrays_roundtrip_and_need_their_marker(folder: Path):
    rng = np.random.default_rng(0)
    rows = rng.random((5, 3), np.float32)
    zarr_groups.create_rows(folder / "rows.zarr", rows.shape, 2)
    for start in (0, 2, 4):
        zarr_groups.write_rows(folder / "rows.zarr", start, rows[start : start + 2])
    colours, weights = rng.integers(0, 256, (4, 3), np.uint8), np.arange(4)
    zarr_groups.write_colours(folder / "colours.zarr", colours, weights, 3, {"fingerprint": "a"})
    zarr_groups.write_model(folder / "model.zarr", {"centres": rows}, {"k": 5})

    assert np.array_equal(zarr_groups.read_rows(folder / "rows.zarr", 1, 4), rows[1:4])
    read = zarr_groups.read_colours(folder / "colours.zarr", 1, 4)
    assert np.array_equal(read[0], colours[1:])
    assert np.array_equal(read[1], weights[1:])
    assert np.array_equal(zarr_groups.read_model(folder / "model.zarr")[0]["centres"], rows)
    (folder / "model.zarr" / "zarr.json").unlink()
    with pytest.raises(UserError, match="is not a finished model"):
        zarr_groups.read_model(folder / "model.zarr")


def test_journal_lines_appear_when_the_attempt_ends(folder: Path):
    journal = open_journal(folder, "settings")
    outcomes = [
        Outcome(row, 2, None, None, None, None, None, 1, None, None, "missing", "no such file") for row in (0, 1)
    ]

    with journal.attempt(0) as record:
        record(outcomes[:1])
        assert journal.outcomes() == {}
        record(outcomes[1:])

    assert list(open_journal(folder, "settings").outcomes().values()) == outcomes
    assert journal.forget_failed() == 2
    assert open_journal(folder, "others").outcomes() == {}
    assert names(folder) == ["quantized.journal/others/begun"]
