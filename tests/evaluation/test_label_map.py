from __future__ import annotations

import numpy as np

from kmeans_dask.evaluation.metrics import label_map


def test_each_cluster_gets_the_label_of_most_of_its_items() -> None:
    labels = label_map(np.array([[0, 5, 1], [7, 0, 6], [0, 0, 1]]))
    assert labels.tolist() == [1, 0, 2]
    assert labels.dtype == np.int32


def test_a_tie_goes_to_the_lowest_class_index() -> None:
    assert label_map(np.array([[0, 4, 4], [2, 2, 2]])).tolist() == [1, 0]


def test_an_empty_cluster_has_no_label() -> None:
    assert label_map(np.array([[0, 0], [0, 1]])).tolist() == [-1, 1]


def test_without_classes_no_cluster_has_a_label() -> None:
    assert label_map(np.zeros((3, 0), np.int64)).tolist() == [-1, -1, -1]
