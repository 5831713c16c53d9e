"""K-Means against results computed by hand and against scikit-learn with the same initial centres."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from kmeans_dask import KMeans
from tests.support.kmeans_cases import (
    ALGORITHMS,
    DIGITS,
    INIT_CENTRES,
    INITS,
    LARGE,
    SMALL,
    WEIGHTS,
    brute_force,
    chunked,
    digits_as,
    lloyd,
    scikit_learn,
)

# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("sizes", [4, 1, (2, 2), (0, 3, 1)])
def test_four_points_by_hand(dtype: type, sizes: int | tuple[int, ...]) -> None:
    rows = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], dtype)
    km = lloyd(2, init=[[0, 0], [1, 2]], tol=0).fit(chunked(rows, sizes))
    # squared distances to the two centres, pass 1: (0, 0): 0 and 5; (0, 2): 4 and 1; (10, 0): 100 and 85;
    # (10, 2): 104 and 81. Inertia 0 + 1 + 85 + 81; means (0, 0) and (20/3, 4/3).
    # pass 2: (0, 2): 4 and 44.9. Inertia 0 + 4 + (100 + 16)/9 + (100 + 4)/9; means (0, 1) and (10, 1).
    # pass 3: every point is at distance 1 from its centre, nothing moves.
    np.testing.assert_allclose(km.inertia_history_, [167, 4 + 220 / 9, 4], rtol=1e-6)
    np.testing.assert_allclose(km.cluster_centers_, [[0, 1], [10, 1]], atol=1e-6)
    assert km.labels_.compute().tolist() == [0, 0, 1, 1]
    assert km.inertia_ == pytest.approx(4)
    assert km.n_iter_ == 3
    assert km.n_features_in_ == 2
    np.testing.assert_allclose(km.transform(rows).compute()[0], [1, np.sqrt(101)], rtol=1e-6)
    assert km.score(rows) == pytest.approx(-4)
    assert km.predict(np.array([[4, 1], [6, 1], [5, 1]], dtype)).compute().tolist() == [0, 1, 0]


@pytest.mark.parametrize("init", INITS)
def test_one_feature(init: str) -> None:
    rows = np.array([[1.0], [2], [3], [101], [102], [103]])
    km = KMeans(2, init=init, random_state=0).fit(rows)
    assert sorted(km.cluster_centers_.ravel().tolist()) == pytest.approx([2, 102])
    assert km.inertia_ == pytest.approx(4)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_row(init: str, dtype: type) -> None:
    km = KMeans(1, init=init, random_state=0).fit(np.array([[3, 5]], dtype))
    assert km.cluster_centers_.tolist() == [[3, 5]]
    assert km.inertia_ == 0
    assert km.labels_.compute().tolist() == [0]


@pytest.mark.parametrize("init", INITS)
def test_one_cluster_is_at_the_mean(init: str) -> None:
    km = KMeans(1, init=init, random_state=0).fit(chunked(DIGITS))
    np.testing.assert_allclose(km.cluster_centers_[0], DIGITS.mean(axis=0), rtol=1e-5, atol=1e-5)
    assert km.inertia_ == pytest.approx(((DIGITS - DIGITS.mean(axis=0)) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_as_many_clusters_as_rows(init: str, dtype: type) -> None:
    rows = np.unique(DIGITS, axis=0)[:40].astype(dtype)
    km = KMeans(40, init=init, random_state=0).fit(chunked(rows, 7))
    assert km.inertia_ == pytest.approx(0, abs=1e-9)
    assert sorted(km.labels_.compute().tolist()) == list(range(40))


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_constant_data(dtype: type) -> None:
    rows = np.full((20, 3), 7, dtype)
    km = KMeans(1, random_state=0).fit(rows)
    assert km.cluster_centers_.tolist() == [[7, 7, 7]]
    with pytest.warns(ConvergenceWarning, match="only 1 distinct rows, fewer than the 2 clusters"):
        km = KMeans(2, random_state=0).fit(rows)
    assert km.cluster_centers_.tolist() == [[7, 7, 7]] * 2
    assert km.inertia_ == 0


@pytest.mark.parametrize("init", [*INITS, np.array([[50.0, 50], [60, 60], [70, 70], [80, 80]])])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fewer_distinct_rows_than_clusters(init: str | NDArray, dtype: type) -> None:
    rows = np.repeat(np.array([[0, 0], [9, 0], [0, 9]], dtype), [30, 2, 5], axis=0)
    with pytest.warns(ConvergenceWarning, match="fewer"):
        km = KMeans(4, init=init, random_state=1).fit(chunked(rows, 10))
    assert km.inertia_ == pytest.approx(0, abs=1e-9)
    assert np.isfinite(km.cluster_centers_).all()
    labels = km.labels_.compute()
    assert len(set(labels.tolist())) == 3
    np.testing.assert_allclose(km.cluster_centers_[labels], rows, atol=1e-5)
    assert km.to_sklearn().predict(rows.astype(float)).tolist() == labels.tolist()


@pytest.mark.parametrize("init", INITS)
def test_repeated_rows_do_not_warn_if_enough_are_distinct(init: str) -> None:
    rows = np.repeat(np.array([[0], [50], [100], [200]], np.uint8), [500, 1, 1, 10], axis=0)
    km = KMeans(4, init=init, random_state=0).fit(rows)
    assert sorted(km.cluster_centers_.ravel().tolist()) == [0, 50, 100, 200]


# ---- invalid input ---------------------------------------------------------------------------------------------------


def ones_with(value: float, at: int) -> NDArray:
    rows = np.ones((6, 2))
    rows[at, 1] = value
    return rows


@pytest.mark.parametrize(
    ("params", "X", "error", "message"),
    [
        ({"n_clusters": 7}, SMALL, ValueError, "n_samples=6 should be >= n_clusters=7"),
        ({"n_clusters": 0}, SMALL, ValueError, "n_clusters=0; must be an integer >= 1"),
        ({"n_clusters": 2.5}, SMALL, ValueError, r"n_clusters=2\.5; must be an integer >= 1"),
        ({"init": "best"}, SMALL, ValueError, r"init='best'; must be 'k-means\|\|'"),
        ({"init": 3}, SMALL, ValueError, r"init has shape \(\); expected \(n_clusters, n_features\) = \(2, 2\)"),
        ({"init": None}, SMALL, TypeError, "init=None; must be"),
        ({"init": np.ones((3, 2))}, SMALL, ValueError, r"init has shape \(3, 2\); expected .* \(2, 2\)"),
        ({"init": np.ones((2, 3))}, SMALL, ValueError, r"init has shape \(2, 3\); expected .* \(2, 2\)"),
        ({"n_init": 0}, SMALL, ValueError, "n_init=0; must be 'auto' or an integer >= 1"),
        ({"max_iter": 0}, SMALL, ValueError, "max_iter=0; must be an integer >= 1"),
        ({"tol": -1}, SMALL, ValueError, "tol=-1; must be a number >= 0"),
        ({"algorithm": "elkan"}, SMALL, ValueError, "algorithm='elkan'; must be 'accelerated', 'lloyd' or 'full'"),
        ({"oversampling_factor": 0}, SMALL, ValueError, "oversampling_factor=0; must be a number > 0"),
        ({}, ones_with(np.nan, 0), ValueError, "Input X contains NaN, infinity"),
        ({}, ones_with(np.inf, 5), ValueError, "Input X contains NaN, infinity"),
        ({}, chunked(ones_with(-np.inf, 4).astype(np.float32), 2), ValueError, "Input X contains NaN, infinity"),
        ({}, da.from_array(SMALL)[da.from_array(SMALL[:, 0] > 1)], ValueError, "unknown chunk sizes"),
        ({}, scipy.sparse.csr_array(SMALL), TypeError, "Sparse data was passed"),
        ({}, SMALL[:, 0], ValueError, "expected a 2D array"),
        ({}, SMALL[:0], ValueError, r"0 sample\(s\)"),
        ({}, SMALL[:, :0], ValueError, r"0 feature\(s\)"),
        ({}, SMALL.astype("complex64"), ValueError, "Complex data not supported"),
    ],
)
def test_invalid_input_raises(params: dict, X: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KMeans(**{"n_clusters": 2} | params).fit(X)


@pytest.mark.parametrize("weights", [[-1, 1, 1, 1, 1, 1], [0] * 6, [np.nan] + [1] * 5, [np.inf] + [1] * 5])
def test_invalid_sample_weight_raises(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="sample_weight must be finite, not negative, and not all zero"):
        KMeans(2).fit(SMALL, sample_weight=weights)


def test_predict_rejects_invalid_input() -> None:
    for method in ("predict", "transform", "score", "to_sklearn"):
        with pytest.raises(NotFittedError):
            getattr(KMeans(2), method)(*([] if method == "to_sklearn" else [SMALL]))
    km = KMeans(2, random_state=0).fit(SMALL)
    for method in (km.predict, km.transform, km.score):
        with pytest.raises(ValueError, match="X has 1 features, but KMeans is expecting 2"):
            method(SMALL[:, :1])
    with pytest.raises(ValueError, match="Input X contains NaN, infinity"):
        km.predict(ones_with(np.nan, 3)).compute()


# ---- scikit-learn with the same initial centres ----------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        (np.uint8, 0),
        (np.float32, 0),
        (np.float64, 0),
        (np.int64, 0),
        (np.int64, 10**6),
        (np.float32, 1e6),
        (np.float64, 1e6),
        (np.float64, -1e6),
    ],
)
@pytest.mark.parametrize("tol", [0, 1e-2])
def test_fit_equals_scikit_learn(dtype: type, offset: float, weights: NDArray | None, tol: float) -> None:
    rows, init = digits_as(dtype, offset), INIT_CENTRES + offset
    ours = lloyd(10, init=init, tol=tol).fit(chunked(rows), sample_weight=weights)
    theirs = scikit_learn(rows, init, weights, tol=tol)
    np.testing.assert_array_equal(ours.labels_.compute(), theirs.labels_)
    # float32 has a spacing of 0.06 at a million
    np.testing.assert_allclose(
        ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-5, atol=0.1 if dtype == np.float32 and offset else 1e-3
    )
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    assert abs(ours.n_iter_ - theirs.n_iter_) <= 1
    assert ours.cluster_centers_.dtype == (np.float32 if dtype in (np.uint8, np.float32) else np.float64)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_tol_is_relative_to_the_variance(scale: float) -> None:
    rows = digits_as(np.float64) * scale
    ours = lloyd(10, init=INIT_CENTRES * scale, tol=1e-2).fit(rows)
    assert ours.n_iter_ == lloyd(10, init=INIT_CENTRES, tol=1e-2).fit(digits_as(np.float64)).n_iter_
    assert ours.n_iter_ < lloyd(10, init=INIT_CENTRES * scale, tol=0).fit(rows).n_iter_


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_tol_0_stops_when_nothing_moves(dtype: type) -> None:
    km = lloyd(10, init=INIT_CENTRES, tol=0, max_iter=500).fit(digits_as(dtype))
    assert km.n_iter_ < 100
    refitted = lloyd(10, init=km.cluster_centers_, tol=0).fit(digits_as(dtype))
    assert refitted.n_iter_ <= 2  # returned centres are rounded
    np.testing.assert_allclose(refitted.cluster_centers_, km.cluster_centers_, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("max_iter", [1, 2, 5])
def test_max_iter_limits_the_passes(max_iter: int) -> None:
    ours = lloyd(10, init=INIT_CENTRES, tol=0, max_iter=max_iter).fit(chunked(DIGITS))
    assert ours.n_iter_ == len(ours.inertia_history_) == max_iter
    theirs = scikit_learn(DIGITS, INIT_CENTRES, tol=0, max_iter=max_iter)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-5, atol=1e-3)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)


# ---- empty clusters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, WEIGHTS + 0.1], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("n_far", [1, 3])
def test_empty_clusters_are_relocated_as_in_scikit_learn(dtype: type, weights: NDArray | None, n_far: int) -> None:
    init = INIT_CENTRES.copy()
    init[:n_far] = np.arange(1, n_far + 1)[:, None] * 10_000.0
    rows = digits_as(dtype)
    ours = lloyd(10, init=init, tol=0).fit(chunked(rows, 300), sample_weight=weights)
    assert np.bincount(ours.labels_.compute(), minlength=10).min() > 0
    theirs = scikit_learn(rows, init, weights, tol=0)
    # several empty clusters get the same rows, in an order that scikit-learn does not specify
    assert adjusted_rand_score(ours.labels_.compute(), theirs.labels_) == 1
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)


def test_identical_initial_centres() -> None:
    km = KMeans(5, init=np.full((5, 64), 100.0), tol=0).fit(chunked(DIGITS))
    assert np.bincount(km.labels_.compute(), minlength=5).min() > 0
    assert km.inertia_ < 0.9 * KMeans(1).fit(chunked(DIGITS)).inertia_


# ---- inertia ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inertia_and_labels_match_the_centres(dtype: type, weights: NDArray | None, algorithm: str) -> None:
    rows = digits_as(dtype)
    km = KMeans(16, random_state=0, max_iter=7, algorithm=algorithm).fit(chunked(rows), sample_weight=weights)
    labels, inertia = brute_force(rows, km.cluster_centers_, 1.0 if weights is None else weights)
    np.testing.assert_array_equal(km.labels_.compute(), labels)
    # the passes store a float32 centre minus an origin: its last bit is worth 1e-7 of a pixel
    assert km.inertia_ == pytest.approx(inertia, rel=1e-12 if dtype != np.float32 else 1e-7)
    assert isinstance(km.inertia_, float)
    np.testing.assert_array_equal(km.predict(chunked(rows)).compute(), labels)
    if weights is None:
        assert km.score(rows) == pytest.approx(-inertia, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_inertia_history_decreases_and_is_exact(dtype: type, weights: NDArray | None) -> None:
    rows = digits_as(dtype)
    km = lloyd(10, init=INIT_CENTRES, tol=0).fit(chunked(rows), sample_weight=weights)
    history = km.inertia_history_
    assert history.dtype == np.float64
    assert len(history) == km.n_iter_
    assert (np.diff(history) <= 1e-9 * history[0]).all()
    used = 1.0 if weights is None else weights
    assert history[0] == pytest.approx(brute_force(rows, INIT_CENTRES, used)[1], rel=1e-6)
    for passes in (1, 3):
        part = lloyd(10, init=INIT_CENTRES, tol=0, max_iter=passes).fit(chunked(rows), sample_weight=weights)
        assert history[passes] == pytest.approx(brute_force(rows, part.cluster_centers_, used)[1], rel=1e-6)
    # nothing moved in the last pass
    assert history[-1] == pytest.approx(km.inertia_, rel=1e-6)


# ---- acceleration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
def test_acceleration_saves_passes_at_equal_inertia(init: str) -> None:
    X = chunked(LARGE, 4096)
    plain, accelerated = (
        [KMeans(30, init=init, random_state=seed, algorithm=algorithm).fit(X) for seed in range(5)]
        for algorithm in ALGORITHMS
    )
    assert np.mean([km.inertia_ for km in accelerated]) <= 1.01 * np.mean([km.inertia_ for km in plain])
    assert sum(km.n_iter_ for km in accelerated) < 0.7 * sum(km.n_iter_ for km in plain)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_accelerated_centres_end_at_the_means(dtype: type) -> None:
    rows = digits_as(dtype)
    km = KMeans(10, init=INIT_CENTRES, tol=0, max_iter=1000).fit(chunked(rows))
    assert km.n_iter_ < 1000
    labels = km.labels_.compute()
    means = np.array([rows[labels == j].mean(axis=0, dtype=np.float64) for j in range(10)])
    np.testing.assert_allclose(km.cluster_centers_, means, rtol=1e-5, atol=1e-4)


def test_acceleration_by_hand() -> None:
    rows = np.array([[0], [2]], np.uint8)
    km = KMeans(1, init=[[9.0]], tol=0, max_iter=2).fit(rows)
    # pass 1 at 9: 81 + 49, step -8; pass 2 at the mean 1: 1 + 1, no step
    np.testing.assert_allclose(km.inertia_history_, [130, 2])
    assert km.cluster_centers_.tolist() == [[1]]


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_integer_weights_equal_repeated_rows(dtype: type) -> None:
    times = np.random.default_rng(2).integers(0, 4, len(DIGITS))
    rows = digits_as(dtype)
    weighted = lloyd(10, init=INIT_CENTRES, tol=0).fit(chunked(rows), sample_weight=times)
    repeated = lloyd(10, init=INIT_CENTRES, tol=0).fit(chunked(np.repeat(rows, times, axis=0)))
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(np.repeat(weighted.labels_.compute(), times), repeated.labels_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-6)
    np.testing.assert_allclose(weighted.inertia_history_, repeated.inertia_history_, rtol=1e-6)


def test_rows_of_weight_0_have_no_influence() -> None:
    noise = np.concatenate([DIGITS, np.full((300, 64), 255, np.uint8)])
    weights = np.r_[np.ones(len(DIGITS)), np.zeros(300)]
    init = np.concatenate([INIT_CENTRES[:9], np.full((1, 64), 255.0)])  # the last one is nearest to the noise only
    with_noise = lloyd(10, init=init, tol=0).fit(chunked(noise), sample_weight=weights)
    without = lloyd(10, init=init, tol=0).fit(chunked(DIGITS), sample_weight=np.ones(len(DIGITS)))
    np.testing.assert_allclose(with_noise.cluster_centers_, without.cluster_centers_, rtol=1e-6, atol=1e-5)
    assert with_noise.inertia_ == pytest.approx(without.inertia_, rel=1e-9)
    assert len(with_noise.labels_) == len(noise)


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
@pytest.mark.parametrize("k", [10, 40])
def test_init_accounts_for_few_heavy_rows(init: str, k: int) -> None:
    weights = np.random.default_rng(0).pareto(0.7, len(DIGITS)) + 1e-3
    X, rows = chunked(DIGITS, 1000), DIGITS.astype(np.float32)
    ours = [KMeans(k, init=init, random_state=s).fit(X, sample_weight=weights).inertia_ for s in range(4)]
    with threadpool_limits(1):
        local = [sklearn.cluster.KMeans(k, random_state=s, n_init=1) for s in range(4)]
        theirs = [km.fit(rows, sample_weight=weights).inertia_ for km in local]
    assert np.mean(ours) <= 1.03 * np.mean(theirs)


def test_equal_weights_equal_no_weights() -> None:
    plain = lloyd(10, init=INIT_CENTRES).fit(chunked(DIGITS))
    heavy = lloyd(10, init=INIT_CENTRES).fit(chunked(DIGITS), sample_weight=da.full(len(DIGITS), 2.5, chunks=100))
    np.testing.assert_allclose(heavy.cluster_centers_, plain.cluster_centers_, rtol=1e-5, atol=1e-4)
    assert heavy.inertia_ == pytest.approx(2.5 * plain.inertia_, rel=1e-6)
    assert heavy.n_iter_ == plain.n_iter_


# ---- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "offset"), [(np.uint8, 0), (np.int16, 0), (np.float32, 0), (np.float32, 1e6), (np.float64, 1e6)]
)
def test_transform_returns_distances_to_centres(dtype: type, offset: float) -> None:
    rows = digits_as(dtype, offset)
    km = KMeans(10, init=INIT_CENTRES + offset).fit(chunked(rows))
    expected = np.sqrt(((rows[:, None].astype(float) - km.cluster_centers_[None].astype(float)) ** 2).sum(axis=2))
    np.testing.assert_allclose(km.transform(rows).compute(), expected, rtol=1e-5)
    np.testing.assert_allclose(km.fit_transform(rows).compute(), expected, rtol=1e-5)
