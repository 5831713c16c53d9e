"""The kernels against the same formulas in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Stack, all_distances, assign, assign_two, slice_rows, sum_by_cluster
from kmeans_dask.kmeans.moments import block_moments, combine_moments
from tests.support.kmeans_cases import DTYPES, rows_of


def stack_of(block: NDArray, *sizes: int) -> tuple[Stack, NDArray[np.float64]]:
    """Stack random models of the given sizes; also return the centres in the coordinates of the data."""
    generator = np.random.default_rng(1)
    origin = None if block.dtype == np.uint8 else block.mean(axis=0, dtype=np.float64).astype(block.dtype)
    working = np.float64 if block.dtype == np.float64 else np.float32
    centres = [generator.uniform(0, 255, (k, block.shape[1])).astype(working) for k in sizes]
    shifted = centres if origin is None else [c - origin for c in centres]
    stack = Stack.of(shifted, origin)
    absolute = stack.centres.astype(np.float64) + (0 if origin is None else origin.astype(np.float64))
    return stack, absolute


def squared(block: NDArray, centres: NDArray) -> NDArray[np.float64]:
    return ((block[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)


ROWS = [
    {"n": 3000, "n_features": 7},
    {"n": 20_000, "n_features": 3},
]  # rows of three features have a kernel of their own


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_assign_finds_the_nearest_centre_of_every_model(dtype: type, rows: dict[str, int]) -> None:
    block = rows_of(dtype, **rows)
    stack, centres = stack_of(block, 5, 1, 12)
    clusters, distances = assign(block, stack)
    assert clusters.dtype == np.int32
    assert distances.dtype == np.float64
    for m, (begin, end) in enumerate([(0, 5), (5, 6), (6, 18)]):
        expected = squared(block, centres[begin:end])
        np.testing.assert_array_equal(clusters[m], expected.argmin(axis=1))
        np.testing.assert_allclose(distances[m], expected.min(axis=1), rtol=1e-5)


def test_distances_are_computed_from_differences() -> None:
    # the expansion x² - 2xc + c² in float32 is off by up to 6 where the true value is 0.08 or 0
    block = np.full((1, 784), 250, np.uint8)
    near = np.full((1, 784), 250.01, np.float32)
    same = np.full((1, 784), 250, np.float32)
    _, distances = assign(block, Stack.of([near, same]))
    expected = 784 * (np.float64(np.float32(250.01)) - 250) ** 2
    assert distances[0, 0] == pytest.approx(expected, rel=1e-12)
    assert distances[1, 0] == 0


def test_assign_breaks_ties_by_lowest_index() -> None:
    centres = np.array([[9, 9], [1, 0], [1, 0], [1, 0]], np.float32)
    clusters, _ = assign(np.array([[1, 0], [9, 9]], np.uint8), Stack.of([centres, centres[1:]]))
    np.testing.assert_array_equal(clusters, [[1, 0], [0, 0]])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_by_cluster(dtype: type, weighted: bool, rows: dict[str, int]) -> None:
    block = rows_of(dtype, **rows)
    stack, centres = stack_of(block, 4, 9)
    weights = np.random.default_rng(2).uniform(0, 3, len(block)) if weighted else None
    result = sum_by_cluster(block, weights, stack=stack)
    used = np.ones(len(block)) if weights is None else weights
    origin = 0 if stack.origin is None else stack.origin.astype(np.float64)
    for begin, end in [(0, 4), (4, 13)]:
        labels = squared(block, centres[begin:end]).argmin(axis=1)
        one_hot = (labels[:, None] == np.arange(end - begin)) * used[:, None]
        np.testing.assert_allclose(result.counts[begin:end], one_hot.sum(axis=0))
        np.testing.assert_allclose(result.sums[begin:end], one_hot.T @ (block - origin), rtol=1e-5, atol=1e-2)


def test_unweighted_uint8_is_summed_as_integers() -> None:
    block = rows_of(np.uint8)
    stack, centres = stack_of(block, 6)
    result = sum_by_cluster(block, stack=stack)
    assert result.sums.dtype == np.int32
    assert result.counts.dtype == np.int64
    labels = squared(block, centres).argmin(axis=1)
    expected = [block[labels == j].sum(axis=0, dtype=np.int64) for j in range(6)]
    np.testing.assert_array_equal(result.sums, expected)


def test_large_sums_are_exact() -> None:
    block = np.full((40_000, 2), 255, np.uint8)  # 10,200,000: above 2^23, where float32 is no longer exact
    result = sum_by_cluster(block, stack=Stack.of([np.zeros((1, 2), np.float32)]))
    np.testing.assert_array_equal(result.sums, [[10_200_000, 10_200_000]])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_models_do_not_affect_each_other(dtype: type, rows: dict[str, int]) -> None:
    block = rows_of(dtype, **rows)
    stack, _ = stack_of(block, 3, 20, 1)
    together = sum_by_cluster(block, stack=stack)
    for begin, end in [(0, 3), (3, 23), (23, 24)]:
        alone = sum_by_cluster(block, stack=Stack.of([stack.centres[begin:end]], stack.origin))
        np.testing.assert_array_equal(together.sums[begin:end], alone.sums)
        np.testing.assert_array_equal(together.counts[begin:end], alone.counts)


@pytest.mark.parametrize("n_features", [7, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F", "strided", "read-only"])
def test_memory_layout_does_not_matter(dtype: type, order: str, n_features: int) -> None:
    block = rows_of(dtype, n=2100, n_features=n_features)
    stack, _ = stack_of(block, 5)
    if order == "strided":
        odd = np.repeat(block, 2, axis=0)[::2]
    elif order == "read-only":
        odd = block.copy()
        odd.flags.writeable = False
    else:
        odd = np.asarray(block, order=order)
    np.testing.assert_array_equal(sum_by_cluster(odd, stack=stack).sums, sum_by_cluster(block, stack=stack).sums)
    for got, expected in zip(assign(odd, stack), assign(block, stack), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert block_moments(odd).mean == pytest.approx(block_moments(block).mean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_block(dtype: type) -> None:
    full = rows_of(dtype)
    stack, _ = stack_of(full, 3, 2)
    empty = full[:0]
    sums = sum_by_cluster(empty, stack=stack)
    assert not sums.sums.any()
    assert not sums.counts.any()
    clusters, distances = assign(empty, stack)
    assert clusters.shape == distances.shape == (2, 0)
    assert all_distances(empty, stack=stack, dtype=np.float32).shape == (0, 5)
    combined = combine_moments([block_moments(empty), block_moments(full), block_moments(empty)])
    np.testing.assert_allclose(combined.mean, block_moments(full).mean)
    assert combined.weight == len(full)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_distances(dtype: type) -> None:
    block = rows_of(dtype)
    stack, centres = stack_of(block, 4, 3)
    precise = Stack(stack.centres.astype(np.float64), stack.offsets, stack.origin)
    distances = all_distances(block, stack=precise, dtype=dtype if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(distances, np.sqrt(squared(block, centres)), rtol=1e-5)


@pytest.mark.parametrize(
    ("n_features", "rows"), [(1, 1024), (784, 1024), (1024, 1024), (1025, 512), (12_288, 64), (10**6, 16)]
)
def test_slice_rows(n_features: int, rows: int) -> None:
    assert slice_rows(n_features) == rows


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_assign_two(dtype: type):
    rng = np.random.default_rng(3)
    X = rng.integers(0, 256, (1500, 900)).astype(dtype)  # two slices, the last one shorter
    models = [rng.uniform(0, 255, (k, 900)).astype(np.float64) for k in (2, 1, 7)]

    found = assign_two(X, Stack.of(models))

    for m, centres in enumerate(models):
        squared = np.stack([((X.astype(np.float64) - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
        order = np.argsort(squared, axis=1)
        assert found.clusters[m].tolist() == order[:, 0].tolist()
        np.testing.assert_allclose(found.squared[m], squared.min(axis=1), rtol=1e-12)
        if len(centres) == 1:
            assert set(found.second_clusters[m]) == {-1}
            assert set(found.second_squared[m]) == {np.inf}
        else:
            assert found.second_clusters[m].tolist() == order[:, 1].tolist()
            np.testing.assert_allclose(found.second_squared[m], np.sort(squared, axis=1)[:, 1], rtol=1e-12)


def test_assign_two_breaks_ties_by_lowest_index():
    found = assign_two(np.zeros((4, 3), np.uint8), Stack.of([np.ones((5, 3), np.float32)]))

    assert (found.clusters.tolist(), found.second_clusters.tolist()) == ([[0] * 4], [[1] * 4])
    assert found.squared.tolist() == found.second_squared.tolist() == [[3.0] * 4]
