from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.models.model import Model
from kmeans_dask.report.crosstabs import CELL_ROWS, crosstabs

NAMES = ("cat", "dog", "owl")


def test_counts_and_nearest_items_of_each_cell(tmp_path: Path):
    rng = np.random.default_rng(0)
    n, k = 5000, 6
    clusters = rng.integers(-1, k, n)
    labels = rng.integers(-1, len(NAMES), n)
    distances = rng.permutation(n).astype(np.float32)
    label_map = np.array([0, 1, 2, 0, 1, -1], np.int32)
    table = pa.table(
        {
            "label": pa.array([None if label < 0 else NAMES[label] for label in labels]),
            "kmeans_k6_cluster": pa.array(clusters.astype(np.int32), mask=clusters < 0),
            "kmeans_k6_distance": pa.array(distances, mask=clusters < 0),
        }
    )
    pq.write_table(table, tmp_path / "clusters.parquet", row_group_size=700)
    model = Model("kmeans", np.zeros((k, 2), np.float32), np.zeros(1), 0.0, 1, 0.0, label_map, np.zeros(k, np.int64))
    selected = np.array([0, 1, 699, 700, 4999])

    (crosstab,), selected_clusters = crosstabs(tmp_path / "clusters.parquet", [model], NAMES, selected)

    for cluster in range(k):
        for label in range(len(NAMES)):
            assert crosstab.counts[cluster, label] == ((clusters == cluster) & (labels == label)).sum()
    predicted = np.where(clusters >= 0, label_map[clusters], -1)
    for label in range(len(NAMES)):
        for guess in range(len(NAMES)):
            (inside,) = np.nonzero((labels == label) & (predicted == guess))
            nearest = inside[np.argsort(distances[inside])][:CELL_ROWS]
            np.testing.assert_array_equal(crosstab.rows[crosstab.cells == label * len(NAMES) + guess], nearest)
    assert len(crosstab.cells) == len(NAMES) ** 2 * CELL_ROWS
    np.testing.assert_array_equal(selected_clusters, [clusters[selected]])
