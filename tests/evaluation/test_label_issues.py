from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kmeans_dask import KMeans
from kmeans_dask.evaluation.label_issues import (
    Findings,
    join_findings,
    label_issues_block,
    label_issues_table,
    outliers_block,
    outliers_table,
)
from kmeans_dask.evaluation.metrics import contingency_block, label_map
from kmeans_dask.kmeans.kernels import Stack, assign

CENTRES = np.array([[0.0], [10.0], [30.0]], np.float32)
MAP = np.array([0, 1, 2], np.int32)


def test_label_issues_by_hand():
    X = np.array([[1], [9], [28], [2], [0]], np.uint8)
    labels = np.array([0, 0, 1, 3, -1], np.int32)  # correct; 0 among 1; 1 among 2; in no label map; unlabelled
    clusters, squared = assign(X, Stack.of([CENTRES]))

    found = label_issues_block(
        X, np.arange(100, 105), labels, clusters[0], np.sqrt(squared[0]), CENTRES, MAP, np.array([0.9, 0.8, 1.0])
    )

    assert found.rows.tolist() == [103, 102, 101]
    assert found.scores.tolist() == pytest.approx([0.9, 1 - 2 / 18, 0.8 * (1 - 1 / 9)])
    assert found.clusters.tolist() == [0, 2, 1]


def test_no_label_issues_in_impure_or_unlabelled_clusters():
    X = np.zeros((1, 1), np.uint8)
    for purities, mapping in ((np.array([0.4, 1, 1]), MAP), (np.ones(3), np.array([-1, 1, 2], np.int32))):
        found = label_issues_block(
            X, np.arange(1), np.array([1], np.int32), np.zeros(1, np.int32), np.zeros(1), CENTRES, mapping, purities
        )
        assert len(found.rows) == 0


def changed_digits(seed: int, fraction: float = 0.02) -> tuple[NDArray, NDArray, NDArray]:
    """Return digits, their labels with some changed at random, and the rows of these."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    changed = rng.choice(len(digits.target), int(fraction * len(digits.target)), replace=False)
    labels = digits.target.astype(np.int32)
    labels[changed] = (labels[changed] + rng.integers(1, 10, len(changed))) % 10
    return digits.data.astype(np.uint8), labels, changed


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_label_errors_are_found(seed: int):
    X, labels, changed = changed_digits(seed)
    centres = KMeans(64, random_state=0).fit(X).cluster_centers_
    clusters, squared = assign(X, Stack.of([centres]))
    table = contingency_block(clusters[0], labels, 64, 10)
    mapping, purities = label_map(table), table.max(axis=1) / np.maximum(table.sum(axis=1), 1)
    rows, distances = np.arange(len(X)), np.sqrt(squared[0])
    blocks = [slice(start, start + 500) for start in range(0, len(X), 500)]

    found = join_findings(
        [
            label_issues_block(X[b], rows[b], labels[b], clusters[0][b], distances[b], centres, mapping, purities)
            for b in blocks
        ],
        3 * len(changed),
    )

    assert len(found.rows) <= 3 * len(changed)
    assert len(set(found.rows) & set(changed)) >= len(changed) / 2
    assert (np.diff(found.scores) <= 0).all()


def test_outliers_by_hand():
    found = outliers_block(
        np.arange(5),
        np.array([0, 0, 1, -1, 2], np.int32),
        np.array([2.0, 8.0, 9.0, 99.0, 50.0]),
        np.array([2.0, 3.0, 0.0]),
        np.array([1.0, 2.0, 0.0]),  # in the third cluster all distances are equal
    )

    assert (found.rows.tolist(), found.scores.tolist(), found.values.tolist()) == ([1, 2], [6.0, 3.0], [8.0, 9.0])


def test_tables_describe_items():
    items = pa.table({"path": ["a", "b"], "split": ["train", "holdout"], "label": ["x", None]})
    found = Findings(np.array([0.45]), np.array([0]), np.array([1], np.int32), np.array([0.5]))

    (issue,) = label_issues_table(
        found, items, "kmeans", np.array([0, 1], np.int32), np.array([1.0, 0.9]), ("x", "y")
    ).to_pylist()
    (outlier,) = outliers_table(found, items, "kmeans", 2).to_pylist()

    assert (issue["path"], issue["label"], issue["suggested"], issue["purity"]) == ("a", "x", "y", 0.9)
    assert issue["reason"] == "90.0% of its cluster are y; the nearest x cluster is 2.00 times as far away"
    assert (outlier["algorithm"], outlier["k"], outlier["path"], outlier["cluster"]) == ("kmeans", 2, "a", 1)
