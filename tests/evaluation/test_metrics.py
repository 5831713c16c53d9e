from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from kmeans_dask.evaluation.metrics import (
    agreement,
    confusion,
    confusion_table,
    contingency_block,
    label_map,
    mapped_accuracy,
    one_to_one,
    scores,
    write_confusion,
)


def _draw(n: int, n_clusters: int, n_classes: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Draw labels, and clusters that agree with them for about half of the items."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n, dtype=np.int32)
    clusters = np.where(rng.random(n) < 0.5, labels % n_clusters, rng.integers(n_clusters, size=n))
    return clusters.astype(np.int32), labels


def _assert_equal_to_sklearn(clusters: NDArray, labels: NDArray, n_clusters: int, n_classes: int) -> None:
    table = contingency_block(clusters, labels, n_clusters, n_classes)
    voted = label_map(table)
    ours = scores(table, voted)
    expected = {
        "homogeneity": reference.homogeneity_score(labels, clusters),
        "completeness": reference.completeness_score(labels, clusters),
        "v_measure": reference.v_measure_score(labels, clusters),
        "adjusted_rand": reference.adjusted_rand_score(labels, clusters),
        "mutual_information": reference.mutual_info_score(labels, clusters),
        "normalized_mutual_information": reference.normalized_mutual_info_score(labels, clusters),
        "adjusted_mutual_information": reference.adjusted_mutual_info_score(labels, clusters),
        "purity": reference.accuracy_score(labels, voted[clusters]),  # voted on the same items
        "accuracy": reference.accuracy_score(labels, voted[clusters]),
    }
    assert ours == pytest.approx(expected, abs=1e-9)


def test_contingency_by_hand() -> None:
    clusters = np.array([0, 0, 2, 2, 2, 1], np.int32)
    labels = np.array([1, 1, 0, 1, -1, 0], np.int32)
    table = contingency_block(clusters, labels, 3, 2)
    assert table.tolist() == [[0, 2], [1, 0], [1, 1]]
    assert table.dtype == np.int64


def test_items_without_cluster_or_label_are_not_counted() -> None:
    table = contingency_block(np.array([-1, 0, 0]), np.array([0, -1, 0]), 1, 1)
    assert table.tolist() == [[1]]


def test_small_integer_types_do_not_overflow() -> None:
    table = contingency_block(np.array([255], np.uint8), np.array([9], np.uint8), 256, 10)
    assert table[255, 9] == table.sum() == 1


@pytest.mark.parametrize(("clusters", "labels"), [([2, 0], [0, 0]), ([0, 0], [0, 3])])
def test_value_outside_table_raises(clusters: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="must be -1 to"):
        contingency_block(np.array(clusters), np.array(labels), 2, 3)


def test_scores_by_hand() -> None:
    table = np.array([[3, 1], [0, 4]])
    result = scores(table, np.array([0, 1], np.int32))
    assert result["accuracy"] == 7 / 8
    # of 28 pairs, 9 share cluster and class, 12 share a cluster, 13 share a class (3 and 5 items)
    expected = 12 * 13 / 28
    assert result["adjusted_rand"] == pytest.approx((9 - expected) / ((12 + 13) / 2 - expected))


@pytest.mark.parametrize(("n_clusters", "n_classes"), [(10, 10), (256, 10), (7, 158), (1, 10), (10, 1), (1, 1)])
def test_scores_equal_sklearn(n_clusters: int, n_classes: int) -> None:
    _assert_equal_to_sklearn(*_draw(5_000, n_clusters, n_classes), n_clusters, n_classes)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=40))
def test_scores_equal_sklearn_on_small_data(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = np.array(pairs, np.int32).T
    _assert_equal_to_sklearn(clusters, labels, 5, 4)


def test_approximated_adjusted_mutual_information(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(5).integers(100, 20_000, (30, 10))
    exact = agreement(table)["adjusted_mutual_information"]
    monkeypatch.setattr("kmeans_dask.evaluation.metrics._EXACT_ITEMS", 10**6)
    approximated = agreement(table)["adjusted_mutual_information"]
    assert table.sum() > 10**6
    assert approximated != exact
    assert approximated == pytest.approx(exact, abs=1e-9)


def test_agreement_is_symmetric() -> None:
    clusters, labels = _draw(500, 6, 4)
    table = contingency_block(clusters, labels, 6, 4)
    one, other = agreement(table), agreement(table.T)
    for name in ("adjusted_rand", "adjusted_mutual_information", "v_measure"):
        assert one[name] == pytest.approx(other[name], abs=1e-12)
    assert one["homogeneity"] == pytest.approx(other["completeness"], abs=1e-12)


def test_confusion_equals_sklearn() -> None:
    clusters, labels = _draw(2_000, 12, 5)
    table = contingency_block(clusters, labels, 12, 5)
    voted = label_map(table)
    ours = confusion(table, voted)
    assert ours[:, :5].tolist() == reference.confusion_matrix(labels, voted[clusters], labels=range(5)).tolist()
    assert ours[:, 5].tolist() == [0] * 5


def test_confusion_table_has_row_per_nonempty_cell(tmp_path: Path) -> None:
    tables = np.array([[[2, 1], [0, 3], [0, 0]], [[0, 0], [0, 4], [5, 0]]])  # the third cluster has no fitted item
    path = tmp_path / "confusion.parquet"
    write_confusion([confusion_table(tables, label_map(tables[0]), "kmeans", ("a", "b"))], path)
    rows = [tuple(row.values()) for row in pq.read_table(path).to_pylist()]
    assert rows == [
        ("kmeans", 3, "train", "a", "a", 2),
        ("kmeans", 3, "train", "b", "a", 1),
        ("kmeans", 3, "train", "b", "b", 3),
        ("kmeans", 3, "holdout", "a", None, 5),
        ("kmeans", 3, "holdout", "b", "b", 4),
    ]


def test_one_to_one_accuracy() -> None:
    table = np.array([[5, 4], [6, 0], [0, 1]])
    assert mapped_accuracy(table, one_to_one(table)) == (4 + 6) / 16
    assert one_to_one(table).tolist() == [1, 0, -1]
    assert mapped_accuracy(np.zeros((2, 2), np.int64), np.array([0, 1], np.int32)) is None


def test_adjusted_rand_does_not_overflow_int64() -> None:
    table = np.array([[3, 1], [2, 5]])
    small = scores(table * 1000, label_map(table))["adjusted_rand"]
    huge = scores(table * 10**8, label_map(table))["adjusted_rand"]
    assert huge == pytest.approx(small, abs=1e-3)


def test_held_out_items_are_scored_with_fitted_label_map() -> None:
    fitted = np.array([[9, 0], [0, 9], [0, 0]])
    held_out = np.array([[2, 1], [1, 3], [3, 0]])  # the third cluster has no fitted items
    assert scores(held_out, label_map(fitted))["accuracy"] == 5 / 10


def test_scores_without_labels_are_none() -> None:
    result = scores(np.zeros((4, 3), np.int64), np.full(4, -1, np.int32))
    assert list(result) == list(scores(np.eye(2, dtype=np.int64), np.arange(2, dtype=np.int32)))
    assert set(result.values()) == {None}
