from __future__ import annotations

import numpy as np

from kmeans_dask.evaluation.metrics import label_map


def test_majority_label() -> None:
    labels = label_map(np.array([[0, 5, 1], [7, 0, 6], [0, 0, 1]]))
    assert labels.tolist() == [1, 0, 2]
    assert labels.dtype == np.int32


def test_tie_goes_to_lowest_class_index() -> None:
    assert label_map(np.array([[0, 4, 4], [2, 2, 2]])).tolist() == [1, 0]


def test_empty_cluster_has_no_label() -> None:
    assert label_map(np.array([[0, 0], [0, 1]])).tolist() == [-1, 1]


def test_no_labels_without_classes() -> None:
    assert label_map(np.zeros((3, 0), np.int64)).tolist() == [-1, -1, -1]
