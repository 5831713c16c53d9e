"""The estimator interface of scikit-learn and dask-ml."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import sklearn.cluster
from dask_ml.wrappers import ParallelPostFit
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from kmeans_dask import KMeans, fit_together
from tests.support.kmeans_cases import (
    DIGITS,
    INIT_CENTRES,
    INITS,
    SMALL,
    chunked,
    digits_as,
    lloyd,
    scikit_learn,
)

# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def test_get_set_and_clone_parameters() -> None:
    km = KMeans(5, init="random", tol=0.5, random_state=3, init_max_iter=2)
    params = km.get_params()
    assert (params["n_clusters"], params["init"], params["tol"], params["init_max_iter"]) == (5, "random", 0.5, 2)
    copy = clone(km.fit(SMALL))
    assert copy.get_params() == params
    assert not hasattr(copy, "cluster_centers_")
    assert copy.set_params(n_clusters=2, oversampling_factor=3).n_clusters == 2
    with pytest.raises(ValueError, match="Invalid parameter"):
        copy.set_params(k=2)


def as_lists(rows: NDArray) -> list:
    return rows.tolist()


def as_frame(rows: NDArray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"c{i}" for i in range(rows.shape[1])])


def as_dask_frame(rows: NDArray) -> dd.DataFrame:
    return dd.from_pandas(as_frame(rows), npartitions=3)


@pytest.mark.parametrize("make", [np.asarray, as_lists, as_frame, as_dask_frame, chunked])
def test_input_types(make: Callable[[NDArray], Any]) -> None:
    rows = digits_as(np.float64)[:400]
    reference = KMeans(5, random_state=0).fit(rows)
    X = make(rows)
    km = KMeans(5, random_state=0).fit(X)
    np.testing.assert_allclose(km.cluster_centers_, reference.cluster_centers_, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(km.predict(X).compute(), reference.labels_)
    np.testing.assert_allclose(km.transform(X).compute(), reference.transform(rows).compute())


def test_pipeline() -> None:
    scale = FunctionTransformer(lambda X: X / np.float32(255))
    X = chunked(DIGITS)
    pipeline = make_pipeline(scale, "passthrough", lloyd(10, init=INIT_CENTRES / 255)).fit(X)
    theirs = scikit_learn((DIGITS / np.float32(255)).astype(np.float32), INIT_CENTRES / 255)
    np.testing.assert_array_equal(pipeline.predict(X).compute(), theirs.labels_)
    assert pipeline.transform(X).shape == (1797, 10)
    pipeline.set_params(kmeans__n_clusters=2, kmeans__init="random").fit(X)
    assert pipeline[-1].cluster_centers_.shape == (2, 64)


@pytest.mark.parametrize("local", [False, True])
def test_parallel_post_fit(local: bool) -> None:
    km = KMeans(10, init=INIT_CENTRES).fit(chunked(DIGITS))
    wrapped = ParallelPostFit(km.to_sklearn() if local else km)
    labels = wrapped.predict(chunked(DIGITS))
    np.testing.assert_array_equal(np.asarray(labels), km.labels_)
    refitted = ParallelPostFit(KMeans(10, init=INIT_CENTRES)).fit(DIGITS)
    np.testing.assert_array_equal(np.asarray(refitted.predict(chunked(DIGITS))), km.labels_)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_to_sklearn(dtype: type) -> None:
    rows = digits_as(dtype)
    km = KMeans(10, init=INIT_CENTRES).fit(chunked(rows))
    local = km.to_sklearn(np.float32 if dtype == np.float32 else np.float64)
    assert type(local) is sklearn.cluster.KMeans
    np.testing.assert_array_equal(local.predict(rows), km.labels_)
    np.testing.assert_array_equal(local.labels_, km.labels_)
    np.testing.assert_allclose(local.transform(rows), km.transform(rows), rtol=1e-3)
    assert (local.inertia_, local.n_iter_, local.n_clusters) == (km.inertia_, km.n_iter_, 10)


def test_fitted_estimator_can_be_pickled() -> None:
    km = KMeans(10, init=INIT_CENTRES).fit(chunked(DIGITS))
    copy = pickle.loads(pickle.dumps(km))
    np.testing.assert_array_equal(copy.labels_, km.labels_)
    np.testing.assert_array_equal(copy.predict(DIGITS), km.labels_)


# ---- dask-ml ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blobs() -> tuple[da.Array, NDArray]:
    rows, truth = make_blobs(1000, centers=[[-30, -30], [0, 40], [30, -5]], cluster_std=0.5, random_state=0)
    return chunked(rows, 250), truth


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("seed", [0, None])
def test_well_separated_blobs_are_found_with_any_init(init: str, seed: int | None, blobs: tuple) -> None:
    X, truth = blobs
    # random initial centres may put two into one blob, but not in all of ten restarts
    km = KMeans(3, init=init, random_state=seed, n_init=10).fit(X)
    theirs = sklearn.cluster.KMeans(3, random_state=0, n_init=10).fit(X.compute())
    assert km.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert adjusted_rand_score(truth, km.labels_) == 1
    assert adjusted_rand_score(theirs.predict(X), km.predict(X)) == 1
    order, their_order = km.cluster_centers_[:, 0].argsort(), theirs.cluster_centers_[:, 0].argsort()
    np.testing.assert_allclose(km.cluster_centers_[order], theirs.cluster_centers_[their_order], rtol=1e-9)
    np.testing.assert_allclose(km.transform(X)[:, order], theirs.transform(X)[:, their_order], rtol=1e-6)
    assert km.n_iter_ >= 1
    assert km.init == init


def test_fitted_attributes_match_scikit_learn(blobs: tuple) -> None:
    X, _ = blobs
    km = KMeans(3, random_state=0).fit(X)
    theirs = sklearn.cluster.KMeans(3, random_state=0).fit(X.compute())
    missing = {name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")} - set(vars(km))
    assert not missing
    assert type(km.inertia_) is float
    assert km.labels_.shape == theirs.labels_.shape


def test_few_rows_in_several_chunks_with_default_n_clusters() -> None:
    km = KMeans(random_state=0).fit(da.random.default_rng(0).uniform(size=(20, 2), chunks=(10, 2)))
    assert km.cluster_centers_.shape == (8, 2)


def test_tiny_dataframe_in_two_partitions() -> None:
    frame = dd.from_pandas(pd.DataFrame({"A": [1, 2, 3, 4, 5], "B": [6, 7, 8, 9, 10]}), npartitions=2)
    km = KMeans(2, random_state=0).fit(frame)
    assert sorted(np.bincount(km.labels_.compute()).tolist()) == [2, 3]


@pytest.mark.parametrize("fit_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("read_dtype", [np.float32, np.float64])
def test_dtypes_match_scikit_learn(fit_dtype: type, read_dtype: type) -> None:
    rows = np.random.default_rng(0).uniform(size=(100, 2))
    km = KMeans(random_state=0).fit(chunked(rows.astype(fit_dtype), 50))
    theirs = sklearn.cluster.KMeans(random_state=0).fit(rows.astype(fit_dtype))
    assert km.cluster_centers_.dtype == theirs.cluster_centers_.dtype
    assert km.labels_.dtype == theirs.labels_.dtype == km.labels_.compute().dtype
    assert km.transform(rows.astype(read_dtype)).dtype == theirs.transform(rows.astype(read_dtype)).dtype


def test_transform_with_empty_chunks() -> None:
    X = da.random.default_rng(0).random((100, 4), chunks=((0, 5, 95), (4,)))
    distances = KMeans(2, random_state=0).fit_transform(X)
    assert distances.compute().shape == (100, 2)


@pytest.mark.parametrize("k", [10, 50])
def test_default_init_gives_k_clusters(k: int) -> None:
    # dask-ml's k-means|| finds about two candidates per round, whatever K
    km = KMeans(k, random_state=0, init_max_iter=1, max_iter=1).fit(chunked(DIGITS, 40))
    assert len(np.unique(km.cluster_centers_, axis=0)) == k
    assert np.bincount(km.labels_.compute(), minlength=k).min() > 0


def test_centres_of_uint8_are_not_rounded() -> None:
    km = KMeans(1).fit(np.array([[0], [1]], np.uint8))
    assert km.cluster_centers_[0, 0] == 0.5


def test_spherical_centres_are_normalized_means():
    rows = load_digits().data.astype(np.uint8)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    km = KMeans(10, spherical=True, tol=0, random_state=0).fit(da.from_array(rows, chunks=(500, -1)))
    centres, labels = km.cluster_centers_, km.labels_.compute()
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(labels, (unit @ centres.T).argmax(axis=1))
    sums = np.stack([unit[labels == cluster].sum(axis=0) for cluster in range(10)])
    np.testing.assert_allclose(centres, sums / np.linalg.norm(sums, axis=1)[:, None], atol=1e-6)
    assert km.inertia_ == pytest.approx((2 - 2 * (unit @ centres.T).max(axis=1)).sum(), rel=1e-5)
    np.testing.assert_array_equal(km.predict(3.0 * rows).compute(), labels)  # length does not matter


def test_fit_together_rejects_mixed_spherical():
    rows = load_digits().data
    with pytest.raises(ValueError, match="spherical differs"):
        fit_together([KMeans(3), KMeans(3, spherical=True)], rows)
