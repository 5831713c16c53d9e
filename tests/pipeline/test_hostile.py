"""A whole job on a folder of hostile files: every item is a row with status and reason, and memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kmeans_dask.collection.collection import open_collection
from kmeans_dask.sources.images import ImageError, decode
from kmeans_dask.sources.normalize import POLICY
from kmeans_dask.storage.publish import read_json
from tests.support.hostile import MAX_PIXELS, Expected, picture, write_hostile
from tests.support.jobs import write_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as in a job

WORKER_MIB = 600
"""Memory limit of a worker: 200-300 MiB before its first image, plus a few times max_pixels bytes."""

JOB = """
import json, resource, sys
from kmeans_dask.cli import main as cli
status = cli.main(["run", sys.argv[1]])
print(json.dumps([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""
"""Script that runs a job and prints its exit status and the peak memory of its worker processes in MiB."""


class Job(NamedTuple):
    """A finished job on the hostile files."""

    folder: Path
    """Run folder."""
    expected: dict[str, Expected]
    """Path of each item -> expected outcome."""
    messages: list[str]
    """Lines of standard error."""
    worker_mib: float
    """Peak memory of the worker processes."""

    def rows(self, table: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.folder / table).to_pylist()
        return rows


def text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("hostile")
    expected = {text(path): outcome for path, outcome in write_hostile(folder / "images").items()}
    for number in range(40):  # marker images among them, each in a colour that encodes its number
        name = f"{('bombs', 'content', 'names', 'special')[number % 4]}/mark{number:02d}.png"
        Image.new("RGB", (5, 5), (number, 200, 100)).save(folder / "images" / name)
        expected[name] = Expected("ok")
    config = write_config(
        folder,
        folder / "images",
        input={"path": str(folder / "images"), "max_pixels": MAX_PIXELS, "max_failed": 1.0},
        cluster={"kind": "local", "n_workers": 1, "memory_limit": "2GiB"},
    )
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(config)],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=Path(__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    status, worker_mib = json.loads(lines[-1])
    assert status == 0, done.stderr[-2000:]
    return Job(folder / "runs" / "small", expected, done.stderr.splitlines(), worker_mib)


def test_collection_of_hostile_files_is_large(job: Job) -> None:
    assert len(job.expected) > 250


def test_every_item_has_the_expected_status_and_a_readable_reason(job: Job) -> None:
    rows = job.rows("collection.zarr/items.parquet")
    assert [row["path"] for row in rows] == [row["path"] for row in job.rows("manifest.parquet")]
    assert {row["path"] for row in rows} == job.expected.keys()
    for row in rows:
        expected = job.expected[row["path"]]
        text_of_row = row["changes"] if row["status"] == "ok" else row["error"]
        assert row["status"] == expected.status, row
        assert expected.words in text_of_row or not expected.words, row
        if row["status"] != "ok":
            assert 5 < len(row["error"]) <= 220
            assert row["error"].isprintable()


def test_rows_match_their_items(job: Job) -> None:
    collection = open_collection(job.folder / "collection.zarr")
    images = collection.images.compute(scheduler="sync")
    for row, image, label in zip(collection.items.to_pylist(), images, collection.labels, strict=True):
        parent = row["path"].rpartition("/")[0].rpartition("/")[2]
        assert collection.class_names[label] == parent == row["label"]
        if "/mark" in row["path"]:
            assert (image == (int(row["path"][-6:-4]), 200, 100)).all()
        elif row["status"] == "ok":
            alone = decode(row["file"], size=(16, 16), mode="RGB", max_pixels=MAX_PIXELS)
            np.testing.assert_array_equal(image, alone.pixels)
            assert (row["width"], row["height"], row["mode"]) == alone[1:4]
        else:
            assert not image.any()
            with pytest.raises(ImageError):
                decode(row["file"], size=(16, 16), mode="RGB", max_pixels=MAX_PIXELS)


def test_quantize_gives_the_same_statuses(job: Job) -> None:
    rows = job.rows("quantized.parquet")
    assert len(rows) == 2 * len(job.expected)
    outputs = set()
    for row in rows:
        expected = job.expected[row["path"]].status
        if row["status"] == "not written":  # a name that is not UTF-8 takes four characters per byte
            assert (expected, row["error"][-18:]) == ("ok", "File name too long"), row
        else:
            assert row["status"] == expected, row
        if row["output"] is not None:
            outputs.add(row["output"].casefold())
            with Image.open(os.fsencode(job.folder) + b"/" + os.fsencode(row["output"])) as image:
                assert len(image.getcolors()) <= row["k"]
        else:
            assert row["error"].isprintable()
    assert len(outputs) == sum(row["output"] is not None for row in rows)
    outside = [
        path
        for path in job.folder.parent.rglob("*.png")
        if "quantized" not in path.parts and "sheets" not in path.parts
    ]
    assert outside == []


def test_memory_stays_bounded(job: Job) -> None:
    assert 50 < job.worker_mib < WORKER_MIB


def test_changes_are_counted_and_shown(job: Job) -> None:
    changes = open_collection(job.folder / "collection.zarr").changes
    assert read_json(job.folder / "run.json")["stages"]["ingest"]["summary"]["changes"] == changes
    assert set(changes) >= {
        "turned", "first frame", "alpha", "palette", "16 bits", "32 bits", "floats", "CMYK by profile",
        "CMYK by formula", "colour model", "profile unused", "grey to colour",
    }  # fmt: skip
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    for change, count in changes.items():
        assert json.dumps([change, POLICY[change], count], separators=(",", ":"), ensure_ascii=False) in page
        assert f"{change}: {count:,}" in " ".join(line.strip() for line in job.messages)


def test_report_escapes_names(job: Job) -> None:
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<b>label" not in page
    assert "&lt;b&gt;" not in page or "<b>" not in page
    assert "\x1b" not in page


def test_log_has_no_tracebacks_or_warnings(job: Job) -> None:
    assert not [line for line in job.messages if "Traceback" in line or "Warning" in line or "\x1b[31m" in line]


def test_input_files_are_unchanged(job: Job) -> None:
    assert picture().tobytes() == Image.open(job.folder.parents[1] / "images" / "special" / "link.png").tobytes()
