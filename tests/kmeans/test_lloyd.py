"""The passes: their results, the stopping criteria, and empty clusters."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Sums
from kmeans_dask.kmeans.lloyd import FitState, add_sums, assign_all, lloyd, prepare

DTYPES = [np.uint8, np.float32, np.float64]


def rows_of(dtype: type, n: int = 600, n_features: int = 5) -> NDArray:
    return np.random.default_rng(0).integers(0, 256, (n, n_features)).astype(dtype)


def init_of(k: int, n_features: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(1).uniform(0, 255, (k, n_features))


def chunked(rows: NDArray, size: int = 100) -> da.Array:
    return da.from_array(rows, chunks=(size, *rows.shape[1:]))


def nearest(rows: NDArray, centres: NDArray) -> tuple[NDArray, NDArray]:
    squared = ((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


class Fit:
    """Several models fitted to the same rows; centres in the coordinates of the data."""

    def __init__(self, rows: NDArray, inits: list[NDArray], weights: NDArray | None = None, **params: Any) -> None:
        X = chunked(rows)
        self.data, self.moments = prepare(X, None if weights is None else da.from_array(weights, chunks=(X.chunks[0],)))
        self.working = np.float64 if rows.dtype == np.float64 else np.float32
        self.origin = 0.0 if self.data.origin is None else self.data.origin.astype(np.float64)
        params = {"tolerance": 0.0, "max_iter": 300} | params
        self.states = [FitState((init - self.origin).astype(self.working), **params) for init in inits]

    def run(self) -> list[tuple[int, int]]:
        passes: list[tuple[int, int]] = []
        lloyd(self.data, self.states, self.moments, lambda number, moving: passes.append((number, moving)))
        return passes

    def centres(self, model: int = 0) -> NDArray[np.float64]:
        return self.states[model].centres + self.origin


# ---- the first pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1e6, -1e6])
def test_prepare_measures_moments(dtype: type, offset: float) -> None:
    offset = 0 if dtype == np.uint8 else offset
    rows = (rows_of(np.float64) + offset).astype(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows))
    data, moments = prepare(chunked(rows), da.from_array(weights, chunks=100))
    values = rows.astype(np.float64)
    mean = np.average(values, axis=0, weights=weights)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.squared_deviations, weights @ (values - mean) ** 2, rtol=1e-9)
    assert data.total == moments.weight == pytest.approx(weights.sum())
    if dtype == np.uint8:
        assert data.origin is None
    else:
        assert data.origin is not None
        assert data.origin.dtype == dtype
        assert (np.abs(data.origin - mean) <= values.std(axis=0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_origin_does_not_depend_on_the_chunks(dtype: type) -> None:
    rows = np.random.default_rng(0).normal(0.3, [1e-3, 1, 1e3], (1000, 3)).astype(dtype)
    origins = [prepare(chunked(rows, size), None)[0].origin for size in (1, 17, 250, 1000)]
    for origin in origins[1:]:
        np.testing.assert_array_equal(origin, origins[0])


def test_origin_of_constant_features_is_their_value() -> None:
    rows = np.tile([7.25, -3e8, 0.0], (50, 1))
    assert prepare(chunked(rows, 20), None)[0].origin.tolist() == [7.25, -3e8, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_raise(bad: float) -> None:
    rows = rows_of(np.float32)
    rows[-1, -1] = bad
    with pytest.raises(ValueError, match=r"Input X contains NaN, infinity or a value too large for dtype\('float32'\)"):
        prepare(chunked(rows), None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1])
def test_invalid_sample_weight_raises(bad: float) -> None:
    weights = np.ones(600)
    weights[599] = bad
    with pytest.raises(ValueError, match="sample_weight must be finite, not negative"):
        prepare(chunked(rows_of(np.float32)), da.from_array(weights, chunks=100))


# ---- passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_pass_moves_centres_to_means(dtype: type, weighted: bool) -> None:
    rows = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows)) if weighted else None
    used = np.ones(len(rows)) if weights is None else weights
    expected = init_of(4)
    for passes in (1, 2, 3):
        labels, squared = nearest(rows, expected)
        inertia = float(squared @ used)
        expected = np.array(
            [np.average(rows[labels == j].astype(float), axis=0, weights=used[labels == j]) for j in range(4)]
        )
        fit = Fit(rows, [init_of(4)], weights, max_iter=passes)
        fit.run()
        np.testing.assert_allclose(fit.centres(), expected, rtol=1e-5)
        assert fit.states[0].history[-1] == pytest.approx(inertia, rel=1e-6)
        assert len(fit.states[0].history) == passes
        assert not fit.states[0].moving


@pytest.mark.parametrize("accelerated", [False, True])
def test_finished_models_drop_out(accelerated: bool) -> None:
    rows = rows_of(np.uint8)
    fit = Fit(rows, [init_of(k) for k in (1, 3, 9)], accelerated=accelerated)
    passes = fit.run()
    lengths = [len(state.history) for state in fit.states]
    assert lengths[0] == 2  # the first pass finds the mean, the second confirms it
    assert len(passes) == max(lengths)
    assert passes == [(i, sum(length > i for length in lengths)) for i in range(1, len(passes) + 1)]
    for model, k in enumerate((1, 3, 9)):
        alone = Fit(rows, [init_of(k)], accelerated=accelerated)
        alone.run()
        np.testing.assert_array_equal(alone.centres(), fit.centres(model))
        assert alone.states[0].history == fit.states[model].history


@pytest.mark.parametrize("tolerance", [1e-6, 10.0, 1e9])
def test_tolerance_is_the_sum_of_squared_shifts(tolerance: float) -> None:
    rows = rows_of(np.float64)
    centres, passes, shift = init_of(6), 0, np.inf
    while shift > tolerance:
        labels, _ = nearest(rows, centres)
        moved = np.array([rows[labels == j].mean(axis=0) for j in range(6)])
        centres, passes, shift = moved, passes + 1, float(((moved - centres) ** 2).sum())
    fit = Fit(rows, [init_of(6)], tolerance=tolerance)
    fit.run()
    assert len(fit.states[0].history) == passes
    np.testing.assert_allclose(fit.centres(), centres)


class Counter(Callback):
    """Counts the tasks that are run."""

    def __init__(self) -> None:
        super().__init__(pretask=self._count)
        self.n_tasks = 0

    def _count(self, key: object, dsk: object, state: object) -> None:
        self.n_tasks += 1


class LazyRows:
    """Rows that are read when sliced, as from a file."""

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, n: int) -> None:
        self.shape = (n, 2)

    def __getitem__(self, index: tuple[slice, slice]) -> NDArray:
        return rows_of(np.uint8, *self.shape)[index]


@pytest.mark.parametrize("n_chunks", [10, 300])
@pytest.mark.parametrize("n_models", [1, 6])
def test_pass_runs_one_task_per_chunk_plus_the_tree(n_chunks: int, n_models: int) -> None:
    X = da.from_array(LazyRows(n_chunks), chunks=(1, 2), meta=np.empty((0, 0), np.uint8))
    data, moments = prepare(X, None)
    states = [FitState(rows_of(np.float32, n_chunks, 2)[: k + 1], 0.0, max_iter=1) for k in range(n_models)]
    with Counter() as counter:
        lloyd(data, states, moments)
    assert n_chunks < counter.n_tasks <= 1.25 * n_chunks + 5


# ---- empty clusters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_cluster_gets_the_farthest_row(dtype: type, weighted: bool) -> None:
    rows = np.array([[0], [1], [2], [100], [110], [250]], dtype)
    weights = np.array([1, 1, 1, 1, 2, 3.0]) if weighted else None
    fit = Fit(rows, [np.array([[1.0], [100.0], [2000.0]])], weights, max_iter=1)
    fit.run()
    # 250 is farthest from its centre, 100, whose cluster keeps 100 and 110
    mean = (100 + 2 * 110) / 3 if weighted else 105
    np.testing.assert_allclose(fit.centres(), [[1], [mean], [250]], rtol=1e-6)
    assert fit.states[0].n_empty == 0


def test_empty_cluster_gets_no_row_of_weight_0() -> None:
    rows = np.array([[0], [1], [2], [100], [110], [250]], np.float64)
    fit = Fit(rows, [np.array([[1.0], [100.0], [2000.0]])], np.array([1, 1, 1, 1, 1, 0.0]), max_iter=1)
    fit.run()
    np.testing.assert_allclose(fit.centres(), [[1], [100], [110]])


def test_empty_clusters_get_the_farthest_rows_of_all_chunks() -> None:
    rows = np.arange(600, dtype=np.float64)[:, None]
    far = np.array([[-5e4], [-6e4], [-7e4]])
    fit = Fit(rows, [np.concatenate([[[100.0]], far])], max_iter=1)
    fit.run()
    assert sorted(fit.centres()[1:].ravel().tolist()) == pytest.approx([597, 598, 599])
    assert fit.centres()[0, 0] == pytest.approx(np.arange(597).mean())


def test_cluster_keeps_its_only_row() -> None:
    rows = np.array([[0], [0], [0], [200]], np.uint8)
    fit = Fit(rows, [np.array([[0.0], [180.0], [2000.0]])])
    fit.run()
    np.testing.assert_allclose(np.sort(fit.centres()[:2], axis=0), [[0], [200]])
    assert fit.states[0].n_empty == 1  # two distinct rows for three clusters
    assert len(fit.states[0].history) < 5


# ---- sums and the last pass ------------------------------------------------------------------------------------------


def test_integer_sums_do_not_overflow() -> None:
    largest = np.iinfo(np.int32).max
    parts = [Sums(np.full((2, 3), largest, np.int32), np.array([largest, 1], np.int64)) for _ in range(8)]
    total = add_sums([add_sums(parts), add_sums(parts)])
    assert total.sums.dtype == np.int64
    assert (total.sums == 16 * largest).all()
    assert total.counts.tolist() == [16 * largest, 16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_assign_all_serves_several_models(dtype: type, weighted: bool) -> None:
    rows = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows)) if weighted else None
    fit = Fit(rows, [init_of(3), init_of(8)], weights)
    assignments = assign_all(fit.data, [state.centres for state in fit.states])
    for model, assignment in enumerate(assignments):
        labels, squared = nearest(rows, fit.centres(model))
        np.testing.assert_array_equal(assignment.clusters.compute(), labels)
        assert assignment.clusters.dtype == np.int32
        assert assignment.clusters.chunks == ((100,) * 6,)
        assert assignment.inertia == pytest.approx(float(squared.sum() if weights is None else squared @ weights))
