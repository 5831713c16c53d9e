"""The table of clusters, with values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from kmeans_dask.evaluation.cluster_facts import (
    FACTS_SCHEMA,
    ClusterMeasurements,
    SmallestKeys,
    cluster_facts,
    write_cluster_facts,
)


def measurements(**changes: object) -> ClusterMeasurements:
    """Return three clusters of a model: with three fitted items, with none, and with a single one."""
    values = {
        "algorithm": "kmeans",
        "centres": np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], np.float32),
        "label_map": np.array([1, -1, 0], np.int32),
        "contingency": np.array([[1, 2], [0, 0], [0, 0]]),  # the item of the third cluster has no label
        "sizes": np.array([[3, 0, 1], [5, 2, 0]]),
        "squared_distances": np.array([14.0, 0.0, 0.25]),  # distances 1, 2, 3 and 0.5
        "distances": np.array([6.0, 0.0, 0.5]),
        "max_distances": np.array([3.0, 0.0, 0.5]),
        "silhouettes": np.array([1.5, 0.0, 0.0]),
        "nearest": np.array([[4, 0, 2], [7, -1, -1], [9, -1, -1]]),
        "farthest": np.array([[2, 0, 4], [7, -1, -1], [9, -1, -1]]),
        "sample": np.array([[0, 4, 2], [-1, -1, -1], [9, -1, -1]]),
        **changes,
    }
    return ClusterMeasurements(**values)  # type: ignore[arg-type]


def test_cluster_facts_by_hand():
    table = cluster_facts([measurements()], ("cat", "dog"))

    first, empty, single = table.to_pylist()
    assert table.schema == FACTS_SCHEMA
    assert first == {
        "algorithm": "kmeans", "k": 3, "cluster": 0, "label": "dog", "size": 3, "size_holdout": 5,
        "purity": pytest.approx(2 / 3), "radius_mean": 2.0, "radius_rms": pytest.approx(math.sqrt(14 / 3)),
        "radius_max": 3.0, "silhouette": 0.5,
        "nearest_clusters": [2, 1], "nearest_clusters_distances": [1.0, 5.0],
        "nearest": [4, 0, 2], "farthest": [2, 0, 4], "sample": [0, 4, 2],
    }  # fmt: skip
    assert empty == {
        "algorithm": "kmeans", "k": 3, "cluster": 1, "label": None, "size": 0, "size_holdout": 2,
        "purity": None, "radius_mean": None, "radius_rms": None, "radius_max": None, "silhouette": None,
        "nearest_clusters": [2, 0], "nearest_clusters_distances": [pytest.approx(math.sqrt(18)), 5.0],
        "nearest": [7], "farthest": [7], "sample": [],
    }  # fmt: skip
    assert (single["label"], single["size"], single["purity"]) == ("cat", 1, None)
    assert (single["radius_mean"], single["radius_rms"], single["radius_max"]) == (0.5, 0.5, 0.5)


def test_single_cluster_has_no_neighbour_and_no_silhouette():
    arrays = {
        name: getattr(measurements(), name)[:1]
        for name in ClusterMeasurements.__dataclass_fields__
        if name != "algorithm"
    }
    arrays["sizes"] = np.array([[3], [5]])

    (row,) = cluster_facts([measurements(**arrays)], ("cat", "dog")).to_pylist()

    assert row["nearest_clusters"] == row["nearest_clusters_distances"] == []
    assert row["silhouette"] is None
    assert row["radius_mean"] == 2.0


def test_parquet_and_csv_files_contain_all_models(tmp_path: Path):
    facts = cluster_facts([measurements(), measurements(algorithm="minibatch")], ("cat", "dog"))

    write_cluster_facts(facts, tmp_path / "facts.parquet")

    assert pq.read_table(tmp_path / "facts.parquet").equals(facts)
    plain = pyarrow.csv.read_csv(tmp_path / "facts.csv").to_pylist()
    assert [row["algorithm"] for row in plain] == ["kmeans"] * 3 + ["minibatch"] * 3
    assert [row["nearest"] for row in plain[:3]] == ["4 0 2", "7", "9"]
    assert plain[0]["radius_rms"] == pytest.approx(math.sqrt(14 / 3))


def test_smallest_keys_of_blocks_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 9, (2, 40)).astype(float)
    clusters = np.stack([rng.integers(0, 3, 40), rng.integers(3, 5, 40)]).astype(np.int32)

    blocks = [
        SmallestKeys.of(np.ascontiguousarray(keys[:, b]), np.ascontiguousarray(clusters[:, b]), np.arange(40)[b], 5, 4)
        for b in (slice(0, 17), slice(17, 18), slice(18, 40))
    ]
    found = SmallestKeys.join(blocks)

    for cluster in range(5):
        model = int(cluster >= 3)
        members = np.flatnonzero(clusters[model] == cluster)
        order = members[np.argsort(keys[model, members], kind="stable")][:4]
        assert found.rows[cluster].tolist() == order.tolist()
        assert found.keys[cluster].tolist() == keys[model, order].tolist()
