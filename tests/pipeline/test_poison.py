"""Images that crash the process opening them, by means of a decoder injected into the worker processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from benchmarks.poison import NOTICE, POISON, plant
from tests.support.images import draw_images
from tests.support.jobs import write_config
from tests.support.processes import Process


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of 20 images and one that crashes every started process that opens it."""
    monkeypatch.setenv("PYTHONPATH", plant(tmp_path / "planted"))
    draw_images(tmp_path / "images", count=20)
    (tmp_path / "images" / "bar" / "aborts.png").write_bytes(POISON + b"abort")
    return tmp_path / "images"


def test_crashing_images_are_recorded_and_skipped(start: Callable[..., Process], tmp_path: Path, planted: Path):
    (planted / "ring" / "large.png").write_bytes(POISON + b"large")
    one = {"kind": "local", "n_workers": 1, "memory_limit": "700MiB"}
    config = write_config(tmp_path, planted, fit={"k": 2}, report=None, quantize=None, cluster=one)

    job = start("kmeans-dask", "run", config)

    assert job.wait(240) == 0, job.output
    folder = tmp_path / "runs" / "small"
    items = pyarrow.csv.read_csv(folder / "items.csv").to_pylist()
    assert {item["path"]: item["error"] for item in items if item["status"] != "ok"} == {
        "bar/aborts.png": "crashes the process that opens it (SIGABRT)",
        "ring/large.png": "not enough memory to decode it",
    }
    assert len(items) == 22
    assert 1 <= job.output.count(NOTICE) <= 3, job.output
    assert not list(folder.rglob("*.begun"))

    job = start("kmeans-dask", "predict", folder, planted)

    assert job.wait(240) == 0, job.output
    rows = pq.read_table(folder / "predictions" / "images-kmeans-k2.parquet").to_pylist()
    assert {row["path"]: row["status"] for row in rows if row["status"] != "ok"} == {
        "bar/aborts.png": "crashed",
        "ring/large.png": "too large",
    }
    assert len(rows) == 22
    assert 1 <= job.output.count(NOTICE) <= 3, job.output
    assert not list(folder.rglob("*.begun"))


def test_crashing_image_gets_no_output(start: Callable[..., Process], tmp_path: Path, planted: Path):
    settings = {"k": [2], "palette": "shared"}
    one = {"kind": "local", "n_workers": 1}
    config = write_config(
        tmp_path, planted, ingest=None, fit=None, evaluate=None, report=None, quantize=settings, cluster=one
    )

    job = start("kmeans-dask", "run", config)

    assert job.wait(240) == 0, job.output
    outputs = pq.read_table(tmp_path / "runs" / "small" / "quantized.parquet").to_pylist()
    assert [row["path"] for row in outputs if row["status"] == "crashed"] == ["bar/aborts.png"]
    assert len([row for row in outputs if row["status"] == "ok"]) == 20
    assert 1 <= job.output.count(NOTICE) <= 3, job.output
    assert not list((tmp_path / "runs").rglob("*.begun"))
