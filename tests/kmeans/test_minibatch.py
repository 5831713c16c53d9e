"""Mini-batch K-Means: steps against plain NumPy, results against scikit-learn."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from kmeans_dask import KMeans, MiniBatchKMeans
from kmeans_dask.kmeans.sampling import row_uniforms

DIGITS = load_digits().data.astype(np.uint8) * 15
INIT_CENTRES = DIGITS[::180] + np.random.default_rng(1).normal(0, 1, (10, 64))
WEIGHTS = np.random.default_rng(0).uniform(0, 3, len(DIGITS))
INITS = ["k-means||", "k-means++", "random"]


def chunked(rows: NDArray, sizes: int | tuple[int, ...] = 500) -> da.Array:
    return da.from_array(rows, chunks=(sizes, rows.shape[1]))


def nearest(rows: NDArray, centres: NDArray) -> tuple[NDArray, NDArray]:
    squared = ((rows[:, None].astype(np.float64) - centres[None].astype(np.float64)) ** 2).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


def plain_steps(
    rows: NDArray, init: NDArray, random_state: int, n_steps: int, probability: float, weights: NDArray
) -> tuple[NDArray, list[float]]:
    """Sculley 2010, one batch at a time: a centre is the mean of all rows ever assigned to it."""
    seed = int(check_random_state(random_state).randint(2**31 - 1, size=1)[0])
    centres, counts, history = init.astype(np.float64), np.zeros(len(init)), []
    for step in range(n_steps):
        drawn = row_uniforms(0, len(rows), seed, step) < probability
        labels, squared = nearest(rows[drawn], centres)
        one_hot = (labels[:, None] == np.arange(len(init))) * weights[drawn][:, None]
        history.append(float(squared @ weights[drawn] / weights[drawn].sum() * weights.sum()))
        new = counts + one_hot.sum(axis=0)
        seen = new > 0
        centres[seen] = ((counts[:, None] * centres + one_hot.T @ rows[drawn])[seen]) / new[seen][:, None]
        counts = new
    return centres, history


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("batch_size", [300, 10_000])
def test_steps_follow_sculley(dtype: type, weights: NDArray | None, batch_size: int) -> None:
    probability = min(batch_size / len(DIGITS), 1)
    n_steps = int(np.ceil(3 / probability))
    km = MiniBatchKMeans(
        10,
        init=INIT_CENTRES,
        batch_size=batch_size,
        max_iter=3,
        max_no_improvement=None,
        reassignment_ratio=0,
        random_state=4,
    ).fit(chunked(DIGITS.astype(dtype)), sample_weight=weights)
    used = np.ones(len(DIGITS)) if weights is None else weights
    centres, history = plain_steps(DIGITS, INIT_CENTRES, 4, n_steps, probability, used)
    assert km.n_steps_ == n_steps
    assert km.n_iter_ == np.ceil(n_steps * probability)
    np.testing.assert_allclose(km.cluster_centers_, centres, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(km.inertia_history_, history, rtol=1e-5)


def test_first_step_over_all_rows_equals_a_lloyd_pass() -> None:
    km = MiniBatchKMeans(10, init=INIT_CENTRES, batch_size=len(DIGITS), max_iter=1, random_state=0).fit(chunked(DIGITS))
    theirs = sklearn.cluster.KMeans(10, init=INIT_CENTRES, n_init=1, max_iter=1).fit(DIGITS)
    np.testing.assert_allclose(km.cluster_centers_, theirs.cluster_centers_, rtol=1e-5, atol=1e-4)
    assert km.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_inertia_and_labels_match_the_centres(weights: NDArray | None) -> None:
    km = MiniBatchKMeans(16, batch_size=400, random_state=0).fit(chunked(DIGITS), sample_weight=weights)
    labels, squared = nearest(DIGITS, km.cluster_centers_)
    np.testing.assert_array_equal(km.labels_, labels)
    np.testing.assert_array_equal(km.predict(DIGITS), labels)
    assert km.inertia_ == pytest.approx(float((squared * (1 if weights is None else weights)).sum()), rel=1e-12)
    # the history is an estimate of the inertia over all rows
    assert km.inertia_history_[-5:].mean() == pytest.approx(km.inertia_, rel=0.1)
    assert len(km.inertia_history_) == km.n_steps_


@pytest.mark.parametrize("init", [*INITS, INIT_CENTRES])
def test_result_does_not_depend_on_chunks_or_scheduler(init: str | NDArray) -> None:
    km = MiniBatchKMeans(10, init=init, batch_size=400, random_state=3, n_init=2)
    reference = clone(km).fit(chunked(DIGITS))
    for sizes in (100, 1797, (0, 1000, 0, 1, 796)):
        for scheduler in ("synchronous", "threads"):
            with dask.config.set(scheduler=scheduler):
                other = clone(km).fit(chunked(DIGITS, sizes))
            np.testing.assert_array_equal(other.cluster_centers_, reference.cluster_centers_, strict=True)
            assert other.n_steps_ == reference.n_steps_


@pytest.mark.parametrize("init", INITS)
def test_random_state(init: str) -> None:
    def fitted(seed: int) -> NDArray:
        return MiniBatchKMeans(20, init=init, batch_size=300, random_state=seed).fit(chunked(DIGITS)).cluster_centers_

    np.testing.assert_array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("k", [10, 40])
def test_inertia_is_as_good_as_scikit_learn(init: str, k: int) -> None:
    X, rows = chunked(DIGITS, 1000), DIGITS.astype(np.float32)
    ours = [MiniBatchKMeans(k, init=init, batch_size=500, random_state=s).fit(X).inertia_ for s in range(5)]
    with threadpool_limits(1):  # on busy cores its threads would wait for each other
        theirs = [sklearn.cluster.MiniBatchKMeans(k, random_state=s, n_init=1).fit(rows).inertia_ for s in range(5)]
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
@pytest.mark.parametrize("k", [10, 30])
def test_inertia_with_few_heavy_rows_is_as_good_as_scikit_learn(init: str, k: int) -> None:
    weights = np.random.default_rng(0).pareto(1.5, len(DIGITS)) + 1e-3
    X, rows = chunked(DIGITS, 1000), DIGITS.astype(np.float32)
    ours = [
        MiniBatchKMeans(k, init=init, batch_size=900, random_state=s).fit(X, sample_weight=weights).inertia_
        for s in range(4)
    ]
    with threadpool_limits(1):
        local = [sklearn.cluster.MiniBatchKMeans(k, random_state=s, n_init=1) for s in range(4)]
        theirs = [km.fit(rows, sample_weight=weights).inertia_ for km in local]
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_empty_clusters_are_reassigned(dtype: type) -> None:
    init = INIT_CENTRES.copy()
    init[[2, 5]] = 100_000.0
    params: dict[str, Any] = {"init": init, "batch_size": 400, "random_state": 0}
    km = MiniBatchKMeans(10, **params).fit(chunked(DIGITS.astype(dtype)))
    assert np.bincount(km.labels_.compute(), minlength=10).min() > 0
    assert km.cluster_centers_.max() <= 255
    unassigned = MiniBatchKMeans(10, **params, reassignment_ratio=0).fit(chunked(DIGITS.astype(dtype)))
    assert (unassigned.cluster_centers_[[2, 5]] == 100_000).all()


def test_reassignment_ignores_rows_of_weight_0() -> None:
    # rows of 255 would attract a centre if they had a weight
    rows = np.concatenate([DIGITS, np.full((len(DIGITS), 64), 255, np.uint8)])
    weights = np.repeat([1.0, 0.0], len(DIGITS))
    init = INIT_CENTRES.copy()
    init[[2, 5, 7]] = 100_000.0
    for seed in range(3):
        km = MiniBatchKMeans(10, init=init, batch_size=800, random_state=seed).fit(chunked(rows), sample_weight=weights)
        assert (km.cluster_centers_.mean(axis=1) < 150).all()


def test_sample_weight_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [10.0], [11.0]] * 50)
    weights = np.array([3.0, 1, 1, 3] * 50)
    km = MiniBatchKMeans(2, init=[[0.0], [10.0]], batch_size=200, random_state=0).fit(rows, sample_weight=weights)
    np.testing.assert_allclose(km.cluster_centers_, [[0.25], [10.75]])
    assert km.inertia_ == pytest.approx(4 * 50 * (3 * 0.0625 + 0.5625) / 2)


def test_equal_weights_equal_no_weights() -> None:
    km = MiniBatchKMeans(10, init=INIT_CENTRES, batch_size=400, random_state=0)
    plain = clone(km).fit(chunked(DIGITS))
    weighted = clone(km).fit(chunked(DIGITS), sample_weight=np.ones(len(DIGITS)))
    np.testing.assert_allclose(weighted.cluster_centers_, plain.cluster_centers_, rtol=1e-5, atol=1e-4)
    assert weighted.n_steps_ == plain.n_steps_


def test_stopping_criteria() -> None:
    params: dict[str, Any] = {"init": INIT_CENTRES, "batch_size": 300, "random_state": 0}
    probability = 300 / len(DIGITS)
    unlimited = MiniBatchKMeans(10, **params, max_iter=4, max_no_improvement=None).fit(chunked(DIGITS))
    assert unlimited.n_steps_ == np.ceil(4 / probability)
    impatient = MiniBatchKMeans(10, **params, max_no_improvement=2).fit(chunked(DIGITS))
    patient = MiniBatchKMeans(10, **params, max_no_improvement=20).fit(chunked(DIGITS))
    assert impatient.n_steps_ < patient.n_steps_ < 100 / probability
    coarse = MiniBatchKMeans(10, **params, tol=1e-2).fit(chunked(DIGITS))
    fine = MiniBatchKMeans(10, **params, tol=1e-3, max_no_improvement=None).fit(chunked(DIGITS))
    assert coarse.n_steps_ < fine.n_steps_


def test_n_init_lowers_the_inertia_on_average() -> None:
    def inertia(n_init: int, seed: int) -> float:
        km = MiniBatchKMeans(20, init="random", n_init=n_init, random_state=seed, batch_size=500, max_iter=1)
        return km.fit(chunked(DIGITS, 1000)).inertia_

    assert np.mean([inertia(8, s) for s in range(5)]) < np.mean([inertia(1, s) for s in range(5)])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_edge_cases(dtype: type) -> None:
    assert MiniBatchKMeans(1, random_state=0).fit(np.array([[3, 5]], dtype)).cluster_centers_.tolist() == [[3, 5]]
    column = MiniBatchKMeans(2, random_state=0).fit(np.array([[1], [2], [3], [101], [102], [103]], dtype))
    assert sorted(column.cluster_centers_.round(6).ravel().tolist()) == [2, 102]
    constant = MiniBatchKMeans(1, random_state=0).fit(np.full((30, 3), 7, dtype))
    assert constant.cluster_centers_.tolist() == [[7, 7, 7]]
    rows = np.unique(DIGITS, axis=0)[:20].astype(dtype)
    assert MiniBatchKMeans(20, init="random", random_state=0).fit(rows).inertia_ == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; must be None or an integer >= 1"),
        ({"n_clusters": 3000}, "n_samples=1797 should be >= n_clusters=3000"),
        ({"init": "best"}, "init='best'; must be"),
    ],
)
def test_invalid_input_raises(params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiniBatchKMeans(**params).fit(chunked(DIGITS))


def test_interface_is_that_of_kmeans() -> None:
    km = MiniBatchKMeans(10, init=INIT_CENTRES, random_state=0).fit(chunked(DIGITS))
    assert km.transform(DIGITS).shape == (1797, 10)
    np.testing.assert_array_equal(km.to_sklearn().predict(DIGITS), km.labels_)
    assert clone(km).get_params()["batch_size"] == km.batch_size
    assert km.cluster_centers_.dtype == np.float32
    assert km.n_features_in_ == 64


def test_partial_fit_averages_all_rows_seen():
    batch_1, batch_2 = np.array([[0.0], [2.0], [10.0], [12.0]]), np.array([[4.0], [14.0], [16.0]])
    km = MiniBatchKMeans(2, init=np.array([[1.0], [11.0]])).partial_fit(batch_1)
    np.testing.assert_allclose(km.cluster_centers_, [[1.0], [11.0]])
    km.partial_fit(batch_2)
    # (0 + 2 + 4) / 3 and (10 + 12 + 14 + 16) / 4
    np.testing.assert_allclose(km.cluster_centers_, [[2.0], [13.0]])
    np.testing.assert_array_equal(km.counts_, [3, 4])
    np.testing.assert_array_equal(km.labels_.compute(), [0, 1, 1])
    assert km.n_steps_ == 2


def test_partial_fit_in_batches_approaches_kmeans():
    rows = load_digits().data
    km = MiniBatchKMeans(10, random_state=0)
    for batch in np.array_split(rows, 6):
        km.partial_fit(batch)
    assert km.counts_.sum() == len(rows)
    assert -km.score(rows) <= 1.05 * KMeans(10, random_state=0).fit(rows).inertia_


def test_partial_fit_rejects_another_number_of_features():
    km = MiniBatchKMeans(2, random_state=0).partial_fit(np.arange(20.0).reshape(10, 2))
    with pytest.raises(ValueError, match="3 features"):
        km.partial_fit(np.zeros((5, 3)))
