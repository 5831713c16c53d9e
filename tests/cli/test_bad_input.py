"""Unusable images become rows with a reason; a job fails, with one message, only if there are too many of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask import open_collection
from kmeans_dask.cli import main
from kmeans_dask.models.model import read_model
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import Result, write_config
from tests.support.page import Page

Command = Callable[..., Result]
MAX_PIXELS = 10_000
BAD = {
    "bar/broken.png": ("unreadable", "image"),
    "bar/empty.png": ("unreadable", "empty"),
    "disc/000.png": ("unreadable", ""),  # truncated; the first item of the run
    "disc/huge.png": ("too large", "101 x 100 pixels"),
    "ring/gone.png": ("missing", ""),
    "ring/zzz.jpg": ("unreadable", ""),  # the last item of the run
}
"""Path of each failing item -> (status, part of the reason)."""


def spoil(folder: Path) -> None:
    """Add the bad images to a folder of good ones."""
    (folder / "bar" / "broken.png").write_bytes(b"not an image")
    (folder / "bar" / "empty.png").write_bytes(b"")
    whole = (folder / "disc" / "000.png").read_bytes()
    (folder / "disc" / "000.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (101, 100)).save(folder / "disc" / "huge.png")
    (folder / "ring" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "ring" / "zzz.jpg").write_bytes(np.random.default_rng(0).bytes(500))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of all stages on 65 items, 6 of them bad."""
    folder = tmp_path_factory.mktemp("bad")
    draw_images(folder / "images")
    spoil(folder / "images")
    source = {"path": str(folder / "images"), "max_pixels": MAX_PIXELS}
    assert main.main(["run", str(write_config(folder, folder / "images", input=source))]) == 0
    return folder / "runs" / "small"


def rows_of(table: Path) -> list[dict[str, Any]]:
    if table.suffix == ".csv":
        with open(table, newline="") as file:
            return list(csv.DictReader(file))
    return pq.read_table(table).to_pylist()


def test_items_table_lists_every_item_with_its_status(run_folder: Path):
    rows = rows_of(run_folder / "items.csv")

    assert [row["path"] for row in rows] == [row["path"] for row in rows_of(run_folder / "manifest.parquet")]
    assert len(rows) == 65
    failed = {row["path"]: row for row in rows if row["status"] != "ok"}
    assert failed.keys() == BAD.keys()
    for path, (status, word) in BAD.items():
        assert failed[path]["status"] == status
        assert len(failed[path]["error"]) > 5
        assert word in failed[path]["error"]
    assert {row["error"] for row in rows if row["status"] == "ok"} == {""}


def test_rows_stay_aligned_with_items(run_folder: Path):
    collection = open_collection(run_folder / "collection.zarr")
    pixels = collection.images.compute(scheduler="sync").reshape(65, -1).astype(float)
    centres = read_model(run_folder / "models" / "kmeans" / "k=3.zarr").centres.astype(float)
    nearest = ((pixels[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)

    rows = rows_of(run_folder / "clusters.parquet")

    assert [row["path"] for row in rows] == [row["path"] for row in rows_of(run_folder / "items.csv")]
    for row, cluster, image in zip(rows, nearest, pixels, strict=True):
        assert row["label"] == row["path"].split("/")[0]
        if row["path"] in BAD:
            assert row["kmeans_k3_cluster"] is row["kmeans_k3_distance"] is row["kmeans_k3_label"] is None
            assert not image.any()
        else:
            assert row["kmeans_k3_cluster"] == cluster


def test_bad_items_are_not_fitted(run_folder: Path):
    model = read_model(run_folder / "models" / "kmeans" / "k=3.zarr")

    assert model.counts is not None
    assert model.counts.sum() == 59
    assert min(model.counts) > 15  # fitted, the six black rows would form their own cluster
    assert read_json(run_folder / "metrics.json")[0]["accuracy_train"] == 1.0
    assert read_json(run_folder / "run.json")["stages"]["ingest"]["summary"]["failed"] == 6


def test_good_items_are_quantized(run_folder: Path):
    rows = rows_of(run_folder / "quantized.parquet")

    assert len(rows) == 65 * 2
    for row in rows:
        if row["path"] in BAD:
            assert (row["status"], row["output"], row["mse"]) == (BAD[row["path"]][0], None, None)
            assert row["error"]
        else:
            assert row["status"] == "ok"
            assert (run_folder / row["output"]).is_file()
    assert len(list((run_folder / "quantized").rglob("*.png"))) == 59 * 2


def test_report_lists_bad_items(run_folder: Path):
    failed = Page(run_folder / "report.html").data["failed"]

    assert failed["count"] == len(BAD)
    assert {row["path"] for row in failed["rows"]} == set(BAD)
    assert all(row["error"] for row in failed["rows"])


def bad_folder(folder: Path, good: int, bad: int) -> Path:
    draw_images(folder / "images", count=max(good, 3))
    for path in sorted((folder / "images").rglob("*.png"))[good:]:
        path.unlink()
    for number in range(bad):
        (folder / "images" / f"bad{number}.png").write_bytes(b"bad")
    return folder / "images"


ONLY_QUANTIZE = dict.fromkeys(("ingest", "fit", "evaluate", "report"))
ONLY_INGEST = dict.fromkeys(("fit", "evaluate", "quantize", "report"))


@pytest.mark.parametrize(
    ("others", "verb", "table"),
    [(ONLY_INGEST, "read", "items.csv"), (ONLY_QUANTIZE, "quantized", "quantized.parquet")],
    ids=["ingest", "quantize"],
)
def test_job_fails_if_all_items_fail(command: Command, tmp_path: Path, others: dict[str, None], verb: str, table: str):
    source = bad_folder(tmp_path, good=0, bad=4)
    config = write_config(tmp_path, source, input={"path": str(source), "max_failed": 1.0}, **others)

    result = command("run", config)

    folder = tmp_path / "runs" / "small"
    messages = [line for line in result.lines if line.startswith("kmeans-dask: ")]
    assert result.status == 1
    assert messages == [
        f"kmeans-dask: 4 of 4 items could not be {verb}, more than input.max_failed=1 allows; "
        f"the reasons are in {folder / table}; kmeans-dask retry {folder} tries them again"
    ]
    assert result.lines[-1] == messages[0]
    assert "Traceback" not in result.err
    assert [row["status"] for row in rows_of(folder / "items.csv")] == ["unreadable"] * 4
    assert read_json(folder / "run.json")["state"] == "failed"


def test_job_fails_above_max_failed(command: Command, tmp_path: Path):
    source = bad_folder(tmp_path, good=6, bad=4)
    config = write_config(tmp_path, source, input={"path": str(source), "max_failed": 0.3}, **ONLY_INGEST)

    first, second = command("run", config), command("run", config)
    allowed = command("run", config, "input.max_failed=0.4")

    for result in (first, second):
        assert result.status == 1
        assert "4 of 10 items could not be read, more than input.max_failed=0.3 allows" in result.lines[-1]
    assert any("0 to do" in line for line in second.lines)  # failed images are not decoded again
    assert allowed.status == 0
    assert any("4 of 10 items could not be read; the reasons are in" in line for line in allowed.lines)


def test_k_above_number_of_readable_items_is_refused(command: Command, tmp_path: Path):
    source = bad_folder(tmp_path, good=6, bad=4)
    fit = {"k": [3, 8]}
    config = write_config(tmp_path, source, input={"path": str(source)}, fit=fit, quantize=None, report=None)

    result = command("run", config)

    assert result.status == 2
    assert result.lines[-1] == "kmeans-dask: fit.k=8: only 6 items could be read; choose at most that many clusters"
    assert command("run", config, "fit.k=[3,6]").status == 0


def test_identical_items(command: Command, tmp_path: Path):
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 77).save(path)

    config = write_config(tmp_path, tmp_path / "images", input={"path": str(tmp_path / "images")}, report=None)
    with pytest.warns(ConvergenceWarning, match="only 1 distinct rows, fewer than the . clusters requested"):
        result = command("run", config)

    assert result.status == 0
    for row in read_json(tmp_path / "runs" / "small" / "metrics.json"):
        assert row["inertia"] == 0
        assert row["accuracy_train"] == 0.5
    assert all(row["mse"] == 0 for row in rows_of(tmp_path / "runs" / "small" / "quantized.parquet"))
