"""Duplicates among real files, found by the whole stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kmeans_dask.cli import main
from tests.support.jobs import write_config


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run on drawn images, a copy of one of them with another label, and a copy with a few changed pixels."""
    folder = tmp_path_factory.mktemp("duplicates")
    source = folder / "images"
    shutil.copytree(images, source)
    shutil.copy(source / "disc" / "000.png", source / "bar" / "copy.png")
    with Image.open(source / "ring" / "002.png") as image:
        pixels = np.array(image)
    pixels[0, :4] ^= 15
    Image.fromarray(pixels).save(source / "ring" / "changed.png")
    config = write_config(
        folder, source, input={"path": str(source)}, ingest={"size": [24, 24]}, quantize=None, report=None
    )
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


def test_exact_and_near_duplicates_are_found(run: Path):
    found = {row["path"]: row for row in pyarrow.csv.read_csv(run / "duplicates.csv").to_pylist()}

    assert set(found) == {"disc/000.png", "ring/changed.png"}  # the later item of each pair
    copy, changed = found["disc/000.png"], found["ring/changed.png"]
    assert (copy["kind"], copy["of_path"], copy["distance"], copy["score"]) == ("exact", "bar/copy.png", 0, 1)
    assert copy["reason"] == "identical; labels differ: disc and bar"
    assert (changed["kind"], changed["of_path"]) == ("near", "ring/002.png")
    assert 0 < changed["distance"] <= np.sqrt(12) * 15
    assert 0.75 <= changed["score"] < 1


def test_duplicates_refer_to_rows_of_collection(run: Path):
    clusters = pq.read_table(run / "clusters.parquet").to_pydict()

    for row in pyarrow.csv.read_csv(run / "duplicates.csv").to_pylist():
        for prefix in ("", "of_"):
            assert clusters["path"][row[f"{prefix}row"]] == row[f"{prefix}path"]
            assert clusters["kmeans_k5_cluster"][row[f"{prefix}row"]] == row["cluster"]
