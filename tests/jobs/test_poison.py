"""Images that end or hang the process which opens them: a decoder is planted in the worker processes for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import Process, draw_images, write_config

DECODER = """
import os
from PIL.PngImagePlugin import PngImageFile

open_png = PngImageFile._open

def open_or_end(self):
    begins = self.fp.read(30)
    self.fp.seek(0)
    if b"large" in begins:
        bytearray(b"x") * 2**31
    if b"POISON" in begins:
        os.abort()
    open_png(self)

PngImageFile._open = open_or_end
"""
"""In a module of the name that Python imports when it starts: the product knows nothing of it."""

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of 20 images and one that ends its process, for all processes that are started."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"), prepend=":")
    draw_images(tmp_path / "images", count=20)
    (tmp_path / "images" / "bar" / "aborts.png").write_bytes(PNG + b"POISON abort")
    return tmp_path / "images"


def test_images_that_end_their_worker_are_set_aside(start: Callable[..., Process], tmp_path: Path, planted: Path):
    (planted / "ring" / "large.png").write_bytes(PNG + b"POISON large")
    one = {"kind": "local", "workers": 1, "memory": "700MiB"}
    config = write_config(tmp_path, planted, fit=None, evaluate=None, report=None, quantize=None, cluster=one)

    job = start("kmeans-dask", "run", config)

    assert job.wait(240) == 0, job.output
    folder = tmp_path / "runs" / "small"
    items = pyarrow.csv.read_csv(folder / "items.csv").to_pylist()
    assert {item["path"]: item["error"] for item in items if item["status"] != "ok"} == {
        "bar/aborts.png": "ends the process that opens it (SIGABRT)",
        "ring/large.png": "not enough memory to decode it",
    }
    assert len(items) == 22
    assert 1 <= job.output.count("Restarting worker") <= 3, job.output
    assert not list(folder.rglob("*.begun"))


def test_an_image_that_ends_its_worker_gets_no_output(start: Callable[..., Process], tmp_path: Path, planted: Path):
    settings = {"k": [2], "palette": "shared"}
    one = {"kind": "local", "workers": 1}
    config = write_config(
        tmp_path, planted, ingest=None, fit=None, evaluate=None, report=None, quantize=settings, cluster=one
    )

    job = start("kmeans-dask", "run", config)

    assert job.wait(240) == 0, job.output
    outputs = pq.read_table(tmp_path / "runs" / "small" / "quantized.parquet").to_pylist()
    assert [row["path"] for row in outputs if row["status"] == "crashed"] == ["bar/aborts.png"]
    assert len([row for row in outputs if row["status"] == "ok"]) == 20
    assert 1 <= job.output.count("Restarting worker") <= 3, job.output
    assert not list((tmp_path / "runs").rglob("*.begun"))
