from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.datasets import load_digits

from kmeans_dask.evaluation.internal_metrics import (
    WithinSums,
    add_within_sums,
    cluster_means,
    internal_scores,
    scatter_block,
    within_sums_block,
)
from kmeans_dask.kmeans.kernels import Stack, assign_two

NAMES = ["explained_variance", "silhouette", "davies_bouldin", "calinski_harabasz"]


def measure(X: NDArray, models: list[NDArray], splits: NDArray[np.int8], step: int) -> tuple[WithinSums, list[dict]]:
    """Return the sums of the first reduction over blocks of `step` rows, and the scores of every model."""
    stack = Stack.of(models)
    blocks = [slice(start, start + step) for start in range(0, len(X), step)]
    nearest = [assign_two(X[block], stack) for block in blocks]
    within = add_within_sums(
        [within_sums_block(X[block], splits[block], near, stack) for block, near in zip(blocks, nearest, strict=True)]
    )
    means = cluster_means(within, stack)
    stacked_means = Stack.of(np.split(means, stack.offsets[1:-1]))
    scatter = sum(
        scatter_block(X[block], splits[block], near.clusters, stacked_means)
        for block, near in zip(blocks, nearest, strict=True)
    )
    parts = [slice(a, b) for a, b in zip(stack.offsets[:-1], stack.offsets[1:], strict=True)]
    return within, [
        internal_scores(
            within.sizes[0, p],
            within.squared_distances[0, p],
            within.fitted_silhouettes[p],
            scatter[p],
            stack.centres[p],
            means[p],
        )
        for p in parts
    ]


def assert_equal(ours: dict[str, float | None], theirs: dict[str, float | None]) -> None:
    assert list(ours) == list(theirs) == NAMES
    for name in NAMES:
        if theirs[name] is None:
            assert ours[name] is None
        else:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-9, abs=1e-9)


def expected(X: NDArray, centres: NDArray) -> dict[str, float | None]:
    """Compute the scores with scikit-learn, or by their formulas if it has no function."""
    X, centres = X.astype(np.float64), centres.astype(np.float64)
    distances = np.sqrt(((X[:, None] - centres) ** 2).sum(axis=2))
    labels, near = distances.argmin(axis=1), np.sort(distances, axis=1)
    is_defined = 1 < len(np.unique(labels)) < len(X)
    total = ((X - X.mean(axis=0)) ** 2).sum()
    with np.errstate(invalid="ignore"):
        silhouettes = np.nan_to_num((near[:, 1] - near[:, 0]) / near[:, 1]) if len(centres) > 1 else None
    if silhouettes is not None:
        silhouettes[np.bincount(labels)[labels] == 1] = 0
    return {
        "explained_variance": 1 - (near[:, 0] ** 2).sum() / total if total else None,
        "silhouette": None if silhouettes is None else silhouettes.mean(),
        "davies_bouldin": reference.davies_bouldin_score(X, labels) if is_defined else None,
        "calinski_harabasz": reference.calinski_harabasz_score(X, labels) if is_defined else None,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_scores_equal_sklearn_on_digits(dtype: type):
    X = load_digits().data.astype(dtype)
    rng = np.random.default_rng(0)
    models = [
        X[rng.choice(len(X), k, replace=False)].astype(np.float64) + rng.normal(size=(k, 64)) for k in (2, 10, 40)
    ]

    _, scores = measure(X, models, np.zeros(len(X), np.int8), 500)

    for ours, centres in zip(scores, models, strict=True):
        assert_equal(ours, expected(X, centres))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=2, max_size=30), st.integers(1, 5), st.integers(0, 99))
def test_scores_equal_sklearn_on_small_data(points: list[tuple[int, int]], k: int, seed: int):
    """Includes a single cluster, empty clusters, equal rows, and as many clusters as rows."""
    X = np.array(points, np.uint8)
    centres = np.random.default_rng(seed).uniform(0, 6, (k, 2))  # no row is equally far from two centres

    _, (ours,) = measure(X, [centres], np.zeros(len(X), np.int8), 7)

    assert_equal(ours, expected(X, centres))


def test_within_sums_by_hand():
    X = np.array([[0], [1], [3], [10], [14]], np.uint8)

    within, _ = measure(X, [np.array([[1.0], [11.0], [99.0]])], np.array([0, 0, 1, 0, -1], np.int8), 2)

    assert within.sizes.tolist() == [[2, 1, 0], [1, 0, 0]]
    assert within.distances.tolist() == [[1, 1, 0], [2, 0, 0]]
    assert within.squared_distances.tolist() == [[1, 1, 0], [4, 0, 0]]
    assert within.max_distances.tolist() == [[1, 1, 0], [2, 0, 0]]
    assert within.silhouettes[0].tolist() == pytest.approx([10 / 11 + 1, 8 / 9, 0])
    assert within.fitted.sums.ravel().tolist() == [1, 10, 0]


def test_silhouette_of_single_item_is_zero_as_in_sklearn():
    X = np.array([[0], [2], [10], [12], [100], [99]], np.uint8)

    within, (scores,) = measure(X, [np.array([[1.0], [11.0], [100.0]])], np.array([0, 0, 0, 0, 0, 1], np.int8), 2)

    assert reference.silhouette_samples(X[:5], [0, 0, 1, 1, 2])[4] == 0
    assert within.fitted_silhouettes.tolist() == pytest.approx([10 / 11 + 8 / 9, 8 / 9 + 10 / 11, 0])
    assert scores["silhouette"] == pytest.approx((10 / 11 + 8 / 9) * 2 / 5)


def test_silhouette_is_zero_for_as_many_clusters_as_items():
    X = load_digits().data[:32].astype(np.uint8)

    _, (singletons, some) = measure(X, [X.astype(np.float64), X[::4].astype(np.float64)], np.zeros(32, np.int8), 9)

    assert singletons["silhouette"] == 0 < some["silhouette"]


def test_held_out_rows_do_not_affect_scores():
    X = load_digits().data.astype(np.uint8)
    centres = X[:9].astype(np.float64)
    splits = (np.arange(len(X)) % 3 == 0).astype(np.int8)

    _, (mixed,) = measure(X, [centres], splits, 300)
    _, (alone,) = measure(X[splits == 0], [centres], np.zeros((splits == 0).sum(), np.int8), 300)

    assert mixed == pytest.approx(alone, rel=1e-12)


def test_scores_without_fitted_rows_are_none():
    _, (scores,) = measure(np.zeros((3, 2), np.uint8), [np.zeros((2, 2))], np.full(3, -1, np.int8), 2)

    assert scores == dict.fromkeys(NAMES)
