"""Results that do not depend on chunks or scheduler; reads that are lazy and happen once."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone

from kmeans_dask import KMeans, fit_together
from tests.support.kmeans_cases import (
    ALGORITHMS,
    DIGITS,
    INIT_CENTRES,
    INITS,
    LARGE,
    WEIGHTS,
    brute_force,
    chunked,
    digits_as,
    lloyd,
)

# ---- chunks, scheduler and block order -------------------------------------------------------------------------------


def fitted(X: Any, **params: Any) -> KMeans:
    return KMeans(**{"n_clusters": 10, "random_state": 3, "max_iter": 20} | params).fit(X)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_result_is_bitwise_equal_for_any_chunks_and_scheduler(init: str, algorithm: str) -> None:
    reference = fitted(chunked(LARGE, 1024), init=init, algorithm=algorithm)
    for sizes in (4096, 8192, 16384):
        for scheduler in ("synchronous", "threads"):
            with dask.config.set(scheduler=scheduler):
                other = fitted(chunked(LARGE, sizes), init=init, algorithm=algorithm)
                np.testing.assert_array_equal(other.cluster_centers_, reference.cluster_centers_, strict=True)
                np.testing.assert_array_equal(other.labels_, reference.labels_)
                assert other.inertia_ == pytest.approx(reference.inertia_, rel=1e-13)
    np.testing.assert_array_equal(
        fitted(LARGE, init=init, algorithm=algorithm).cluster_centers_, reference.cluster_centers_
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_results_agree_for_any_chunks(dtype: type) -> None:
    rows = LARGE.astype(dtype) / 255
    reference = fitted(chunked(rows, 1024))
    for sizes in (4096, (5000, 0, 3984, 1)):
        other = fitted(chunked(rows, sizes))
        np.testing.assert_allclose(other.cluster_centers_, reference.cluster_centers_, atol=1e-6)
        np.testing.assert_array_equal(other.labels_, reference.labels_)
        assert other.n_iter_ == reference.n_iter_


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_repeated_fit_is_bitwise_equal(dtype: type) -> None:
    once, twice = fitted(chunked(digits_as(dtype), 100)), fitted(chunked(digits_as(dtype), 100))
    np.testing.assert_array_equal(once.cluster_centers_, twice.cluster_centers_, strict=True)
    np.testing.assert_array_equal(once.inertia_history_, twice.inertia_history_, strict=True)


@settings(max_examples=15, deadline=None, derandomize=True)  # no deadline: the machine may be busy
@given(
    cuts=st.lists(st.integers(0, 300), max_size=8),
    init=st.sampled_from(INITS),
    algorithm=st.sampled_from(ALGORITHMS),
    dtype=st.sampled_from(["u1", "f4", "f8", "i8", "?"]),
    weighted=st.booleans(),
)
def test_result_is_equal_for_random_chunk_sizes(
    cuts: list[int], init: str, algorithm: str, dtype: str, weighted: bool
) -> None:
    rows = (DIGITS[:300, 10:40] > 100 if dtype == "?" else DIGITS[:300, 10:40]).astype(dtype)
    weights = WEIGHTS[:300] if weighted else None
    edges = np.array([0, *sorted(cuts), 300])
    sizes = tuple(np.diff(edges).tolist())
    km = KMeans(6, init=init, random_state=0, algorithm=algorithm)
    fits = [clone(km).fit(X, sample_weight=weights) for X in (chunked(rows, sizes), rows)]
    np.testing.assert_allclose(fits[0].cluster_centers_, fits[1].cluster_centers_, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(fits[0].labels_, fits[1].labels_)
    assert fits[0].labels_.chunks == (sizes,)
    if not weighted:  # integer sums are exact
        np.testing.assert_array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)


def test_block_order_does_not_matter_with_given_centres() -> None:
    blocks = [LARGE[i : i + 1024] for i in range(0, len(LARGE), 1024)]
    reference = fitted(chunked(LARGE, 1024), init=INIT_CENTRES)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(blocks))
        X = da.concatenate([da.from_array(blocks[i]) for i in order])
        other = fitted(X, init=INIT_CENTRES)
        np.testing.assert_array_equal(other.cluster_centers_, reference.cluster_centers_, strict=True)
        assert other.n_iter_ == reference.n_iter_


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_fit_together_equals_separate_fits(dtype: type) -> None:
    X = chunked(digits_as(dtype))
    settings_of_models: list[dict] = [
        {"n_clusters": 10},
        {"n_clusters": 3, "init": "random"},
        {"n_clusters": 40, "n_init": 2},
        {"n_clusters": 10, "init": INIT_CENTRES, "algorithm": "lloyd"},
        {"n_clusters": 7, "init": "random", "algorithm": "full"},
        {"n_clusters": 20, "init": "k-means++", "tol": 0.01},
        {"n_clusters": 1},
    ]
    sweep = [KMeans(random_state=1, **params) for params in settings_of_models]
    seen: list[tuple[int, int]] = []
    fit_together(sweep, X, on_pass=lambda number, moving: seen.append((number, moving)))
    for estimator, params in zip(sweep, settings_of_models, strict=True):
        alone = KMeans(random_state=1, **params).fit(X)
        np.testing.assert_array_equal(estimator.cluster_centers_, alone.cluster_centers_, strict=True)
        np.testing.assert_array_equal(estimator.labels_, alone.labels_, strict=True)
        assert estimator.n_iter_ == alone.n_iter_
        assert estimator.inertia_ == pytest.approx(alone.inertia_, rel=1e-12)
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == 0
    assert len(seen) >= max(estimator.n_iter_ for estimator in sweep)


@pytest.mark.parametrize("init", INITS)
def test_random_state(init: str) -> None:
    X = chunked(DIGITS)
    one, same, other = (KMeans(30, init=init, random_state=s, max_iter=3).fit(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.cluster_centers_, same.cluster_centers_)
    assert not np.array_equal(one.cluster_centers_, other.cluster_centers_)
    states = [KMeans(30, init=init, random_state=np.random.RandomState(1), max_iter=3).fit(X) for _ in range(2)]
    np.testing.assert_array_equal(states[0].cluster_centers_, states[1].cluster_centers_)
    KMeans(3, init=init, random_state=None, max_iter=1).fit(X)


def test_n_init_keeps_the_best_restart() -> None:
    X = chunked(DIGITS)
    best = KMeans(20, init="random", n_init=6, random_state=0).fit(X)
    seeds = np.random.RandomState(0)
    single = [KMeans(20, init="random", random_state=seeds).fit(X).inertia_ for _ in range(6)]
    assert best.inertia_ == pytest.approx(min(single), rel=1e-12)
    assert min(single) < max(single)


# ---- laziness and number of reads ------------------------------------------------------------------------------------


class CountedRows:
    """Rows that count how often a block is read."""

    ndim = 2

    def __init__(self, rows: NDArray) -> None:
        self.rows, self.shape, self.dtype, self.n_reads = rows, rows.shape, rows.dtype, 0

    def __getitem__(self, index: tuple[slice, slice]) -> NDArray:
        self.n_reads += 1
        return self.rows[index]


class UnreadableRows(CountedRows):
    def __getitem__(self, index: tuple[slice, slice]) -> NDArray:
        raise AssertionError("computed")


def test_predict_and_transform_are_lazy() -> None:
    km = KMeans(10, init=INIT_CENTRES).fit(chunked(DIGITS))
    X = da.from_array(UnreadableRows(DIGITS), chunks=(500, 64), meta=np.empty((0, 0), np.uint8))
    for result, shape in ((km.predict(X), (1797,)), (km.transform(X), (1797, 10))):
        assert isinstance(result, da.Array)
        assert result.shape == shape
        with pytest.raises(AssertionError, match="computed"):
            result.compute()


@pytest.mark.parametrize("method", ["predict", "transform"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_computed_result_matches_lazy_metadata(method: str, dtype: type) -> None:
    km = KMeans(10, init=INIT_CENTRES).fit(chunked(DIGITS))
    lazy = getattr(km, method)(chunked(digits_as(dtype), (1000, 0, 797)))
    result = lazy.compute()
    assert result.dtype == lazy.dtype
    assert result.shape == lazy.shape
    assert lazy.chunks[0] == (1000, 0, 797)
    for block, size in zip(lazy.blocks, (1000, 0, 797), strict=True):
        assert block.compute().shape[0] == size


def test_labels_do_not_read_the_data_again() -> None:
    rows = CountedRows(DIGITS)
    X = da.from_array(rows, chunks=(500, 64), meta=np.empty((0, 0), np.uint8))
    km = lloyd(10, init=INIT_CENTRES, max_iter=4, tol=0).fit(X)
    # four chunks: first pass, four passes, assignment
    assert rows.n_reads == 4 * (1 + 4 + 1)
    assert isinstance(km.labels_, da.Array)
    np.testing.assert_array_equal(km.labels_.compute(), brute_force(DIGITS, km.cluster_centers_)[0])
    assert rows.n_reads == 4 * (1 + 4 + 1)


def test_models_share_passes() -> None:
    rows = CountedRows(DIGITS)
    X = da.from_array(rows, chunks=(500, 64), meta=np.empty((0, 0), np.uint8))
    fit_together([lloyd(k, init=DIGITS[:k].astype(float), max_iter=5, tol=0) for k in (4, 10, 30)], X)
    assert rows.n_reads == 4 * (1 + 5 + 1)
