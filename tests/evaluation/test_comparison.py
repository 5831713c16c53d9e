from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as reference

from kmeans_dask.evaluation.metrics import Comparison, compare_clusters


def table(**items: int | None) -> pa.Table:
    """Return a table of fitted items, given as path=cluster."""
    return rows([(path, "train", cluster) for path, cluster in items.items()])


def rows(items: list[Any]) -> pa.Table:
    columns = list(zip(*items, strict=True))
    return pa.table(dict(zip(("path", "split", "cluster"), map(list, columns), strict=True)))


def test_scores_by_hand():
    first = table(a=0, b=0, c=0, d=1, e=1)
    second = table(e=5, d=5, c=5, b=2, a=2)  # in another order, and with other cluster indices

    found = compare_clusters(first, second)

    # pairs in one cluster: 4 of 10 in each, a-b and d-e in both; expected by chance: 4 * 4 / 10
    assert found.adjusted_rand == pytest.approx((2 - 1.6) / (4 - 1.6))
    assert found.one_to_one == 4 / 5  # all but c
    assert (found.items, found.only_first, found.only_second) == (5, 0, 0)


def test_same_clusters_with_other_indices_agree_fully():
    assert compare_clusters(table(a=0, b=1, c=2, d=1), table(a=9, b=4, c=0, d=4)) == Comparison(4, 0, 0, 1, 1, 1, 1)


def test_scores_of_common_items_equal_sklearn():
    rng = np.random.default_rng(0)
    names = [f"{i:04d}.png" for i in range(1200)]
    first = rng.integers(0, 12, 1200)
    second = np.where(rng.random(1200) < 0.6, (first + 3) % 12, rng.integers(0, 30, 1200))
    one = [(name, "train", int(c)) for name, c in zip(names[:1000], first, strict=False)]
    other = [(name, "holdout", int(c)) for name, c in zip(names[150:], second[150:], strict=False)]

    found = compare_clusters(rows(one), rows([other[i] for i in rng.permutation(len(other))]))

    a, b = first[150:1000], second[150:1000]
    assert (found.items, found.only_first, found.only_second) == (850, 150, 200)
    assert found.adjusted_rand == pytest.approx(reference.adjusted_rand_score(a, b), abs=1e-9)
    assert found.adjusted_mutual_information == pytest.approx(reference.adjusted_mutual_info_score(a, b), abs=1e-9)
    assert found.v_measure == pytest.approx(reference.v_measure_score(a, b), abs=1e-9)
    assert 0.6 < found.one_to_one < 0.8


def test_comparison_is_symmetric():
    first, second = table(a=0, b=0, c=1, d=2, e=2), table(a=1, b=0, c=1, d=1, e=0)

    one, other = compare_clusters(first, second), compare_clusters(second, first)

    for name in ("adjusted_rand", "adjusted_mutual_information", "v_measure", "one_to_one"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-12)


def test_items_without_cluster_are_ignored():
    found = compare_clusters(table(a=0, b=1, broken=None), table(a=0, b=1, broken=1))

    assert (found.items, found.only_first, found.only_second, found.adjusted_rand) == (2, 0, 1, 1)


def test_same_path_in_both_splits_is_two_items():
    first = rows([("0.png", "train", 0), ("1.png", "train", 1), ("0.png", "holdout", 2)])
    second = rows([("0.png", "holdout", 5), ("0.png", "train", 6), ("1.png", "train", 7)])

    assert compare_clusters(first, second) == Comparison(3, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (table(a=0), table(b=0), "no item in common"),
        (rows([("a", "train", 0), ("a", "train", 1)]), table(a=0), "two items 'a', which cannot be told apart"),
    ],
)
def test_incomparable_tables_raise(first: pa.Table, second: pa.Table, message: str):
    with pytest.raises(ValueError, match=message):
        compare_clusters(first, second)
