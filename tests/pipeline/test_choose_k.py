"""``fit.k: auto`` on images with a known number of patterns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from kmeans_dask.cli import main
from kmeans_dask.storage.publish import read_json
from tests.support.jobs import write_config


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of 120 noisy images of five patterns."""
    folder = tmp_path_factory.mktemp("auto")
    rng = np.random.default_rng(0)
    patterns = rng.integers(40, 216, (5, 8, 8))
    for i in range(120):
        pixels = patterns[i % 5] + rng.integers(-20, 21, (8, 8))
        file = folder / "images" / f"{i % 5}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    config = write_config(
        folder,
        folder / "images",
        ingest={"size": [8, 8], "mode": "L"},
        fit={"k": "auto", "k_range": [2, 9]},
        quantize=None,
        report={"samples": 4},
    )
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


def test_number_of_patterns_is_chosen_with_a_reason(auto: Path):
    (choice,) = read_json(auto / "run.json")["stages"]["evaluate"]["summary"]["choice"]

    assert (choice["algorithm"], choice["k"], choice["knee"], choice["silhouette"]) == ("kmeans", 5, 5, 5)
    assert choice["reason"].startswith("K = 5, the median of three criteria")


def test_metrics_cover_all_candidates(auto: Path):
    rows = json.loads((auto / "metrics.json").read_text())

    assert [row["k"] for row in rows] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert [row["k"] for row in rows if row["chosen"]] == [5]
    assert rows[3]["stability"] == 1
    assert all(row["stability"] <= 1 for row in rows)
    assert yaml.safe_load((auto / "config.yaml").read_text())["fit"]["k"] == "auto"
