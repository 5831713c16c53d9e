"""The passes: what each brings back, when a model is finished, what becomes of empty clusters."""

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


def start_of(k: int, n_features: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(1).uniform(0, 255, (k, n_features))


def chunked(rows: NDArray, size: int = 100) -> da.Array:
    return da.from_array(rows, chunks=(size, *rows.shape[1:]))


def nearest(rows: NDArray, centres: NDArray) -> tuple[NDArray, NDArray]:
    squared = ((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


class Fit:
    """Some models on their way through the same rows, in the coordinates of the data."""

    def __init__(self, rows: NDArray, starts: list[NDArray], weights: NDArray | None = None, **params: Any) -> None:
        X = chunked(rows)
        self.data, self.first = prepare(X, None if weights is None else da.from_array(weights, chunks=(X.chunks[0],)))
        self.working = np.float64 if rows.dtype == np.float64 else np.float32
        self.origin = 0.0 if self.data.origin is None else self.data.origin.astype(np.float64)
        params = {"tolerance": 0.0, "max_iter": 300} | params
        self.runs = [FitState((start - self.origin).astype(self.working), **params) for start in starts]

    def go(self) -> list[tuple[int, int]]:
        passes: list[tuple[int, int]] = []
        lloyd(self.data, self.runs, self.first, lambda number, moving: passes.append((number, moving)))
        return passes

    def centres(self, model: int = 0) -> NDArray[np.float64]:
        return self.runs[model].centres + self.origin


# ---- the first pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1e6, -1e6])
def test_the_first_pass_measures_the_rows(dtype: type, offset: float) -> None:
    offset = 0 if dtype == np.uint8 else offset
    rows = (rows_of(np.float64) + offset).astype(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows))
    data, first = prepare(chunked(rows), da.from_array(weights, chunks=100))
    values = rows.astype(np.float64)
    mean = np.average(values, axis=0, weights=weights)
    np.testing.assert_allclose(first.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(first.spread, weights @ (values - mean) ** 2, rtol=1e-9)
    assert data.total == first.weight == pytest.approx(weights.sum())
    if dtype == np.uint8:
        assert data.origin is None
    else:
        assert data.origin is not None
        assert data.origin.dtype == dtype
        assert (np.abs(data.origin - mean) <= values.std(axis=0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_origin_does_not_depend_on_the_chunks(dtype: type) -> None:
    rows = np.random.default_rng(0).normal(0.3, [1e-3, 1, 1e3], (1000, 3)).astype(dtype)
    origins = [prepare(chunked(rows, size), None)[0].origin for size in (1, 17, 250, 1000)]
    for origin in origins[1:]:
        np.testing.assert_array_equal(origin, origins[0])


def test_the_origin_of_constant_columns_is_their_value() -> None:
    rows = np.tile([7.25, -3e8, 0.0], (50, 1))
    assert prepare(chunked(rows, 20), None)[0].origin.tolist() == [7.25, -3e8, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_said(bad: float) -> None:
    rows = rows_of(np.float32)
    rows[-1, -1] = bad
    with pytest.raises(ValueError, match=r"Input X contains NaN, infinity or a value too large for dtype\('float32'\)"):
        prepare(chunked(rows), None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1])
def test_a_weight_that_is_not_allowed_is_said_and_the_rows_are_not_blamed(bad: float) -> None:
    weights = np.ones(600)
    weights[599] = bad
    with pytest.raises(ValueError, match="sample_weight must be finite, not negative"):
        prepare(chunked(rows_of(np.float32)), da.from_array(weights, chunks=100))


# ---- a pass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_pass_moves_the_centres_to_the_means(dtype: type, weighted: bool) -> None:
    rows = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows)) if weighted else None
    used = np.ones(len(rows)) if weights is None else weights
    expected = start_of(4)
    for passes in (1, 2, 3):
        labels, squared = nearest(rows, expected)
        inertia = float(squared @ used)
        expected = np.array(
            [np.average(rows[labels == j].astype(float), axis=0, weights=used[labels == j]) for j in range(4)]
        )
        fit = Fit(rows, [start_of(4)], weights, max_iter=passes)
        fit.go()
        np.testing.assert_allclose(fit.centres(), expected, rtol=1e-5)
        assert fit.runs[0].history[-1] == pytest.approx(inertia, rel=1e-6)
        assert len(fit.runs[0].history) == passes
        assert not fit.runs[0].moving


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_finished_model_drops_out_and_the_others_go_on(accelerated: bool) -> None:
    rows = rows_of(np.uint8)
    fit = Fit(rows, [start_of(k) for k in (1, 3, 9)], accelerated=accelerated)
    passes = fit.go()
    lengths = [len(run.history) for run in fit.runs]
    assert lengths[0] == 2  # the mean is found in the first pass and recognized in the second
    assert len(passes) == max(lengths)
    assert passes == [(i, sum(length > i for length in lengths)) for i in range(1, len(passes) + 1)]
    for model, k in enumerate((1, 3, 9)):
        alone = Fit(rows, [start_of(k)], accelerated=accelerated)
        alone.go()
        np.testing.assert_array_equal(alone.centres(), fit.centres(model))
        assert alone.runs[0].history == fit.runs[model].history


@pytest.mark.parametrize("tolerance", [1e-6, 10.0, 1e9])
def test_the_tolerance_is_the_sum_of_squared_shifts(tolerance: float) -> None:
    rows = rows_of(np.float64)
    centres, passes, shift = start_of(6), 0, np.inf
    while shift > tolerance:
        labels, _ = nearest(rows, centres)
        moved = np.array([rows[labels == j].mean(axis=0) for j in range(6)])
        centres, passes, shift = moved, passes + 1, float(((moved - centres) ** 2).sum())
    fit = Fit(rows, [start_of(6)], tolerance=tolerance)
    fit.go()
    assert len(fit.runs[0].history) == passes
    np.testing.assert_allclose(fit.centres(), centres)


class Counter(Callback):
    """Counts the tasks that are really run."""

    def __init__(self) -> None:
        super().__init__(pretask=self._count)
        self.n_tasks = 0

    def _count(self, key: object, dsk: object, state: object) -> None:
        self.n_tasks += 1


class Pixels:
    """Rows that are read when they are sliced, as from a file."""

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, n: int) -> None:
        self.shape = (n, 2)

    def __getitem__(self, index: tuple[slice, slice]) -> NDArray:
        return rows_of(np.uint8, *self.shape)[index]


@pytest.mark.parametrize("n_chunks", [10, 300])
@pytest.mark.parametrize("n_models", [1, 6])
def test_a_pass_costs_one_task_a_chunk_and_a_tree(n_chunks: int, n_models: int) -> None:
    X = da.from_array(Pixels(n_chunks), chunks=(1, 2), meta=np.empty((0, 0), np.uint8))
    data, first = prepare(X, None)
    runs = [FitState(rows_of(np.float32, n_chunks, 2)[: k + 1], 0.0, max_iter=1) for k in range(n_models)]
    with Counter() as counter:
        lloyd(data, runs, first)
    assert n_chunks < counter.n_tasks <= 1.25 * n_chunks + 5


# ---- empty clusters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_empty_cluster_is_given_the_farthest_row(dtype: type, weighted: bool) -> None:
    rows = np.array([[0], [1], [2], [100], [110], [250]], dtype)
    weights = np.array([1, 1, 1, 1, 2, 3.0]) if weighted else None
    fit = Fit(rows, [np.array([[1.0], [100.0], [2000.0]])], weights, max_iter=1)
    fit.go()
    # 250 is farthest from its centre, 100: it leaves 100 and 110 behind
    left = (100 + 2 * 110) / 3 if weighted else 105
    np.testing.assert_allclose(fit.centres(), [[1], [left], [250]], rtol=1e-6)
    assert fit.runs[0].empty == 0


def test_rows_without_weight_are_given_to_no_cluster() -> None:
    rows = np.array([[0], [1], [2], [100], [110], [250]], np.float64)
    fit = Fit(rows, [np.array([[1.0], [100.0], [2000.0]])], np.array([1, 1, 1, 1, 1, 0.0]), max_iter=1)
    fit.go()
    np.testing.assert_allclose(fit.centres(), [[1], [100], [110]])


def test_several_empty_clusters_are_given_the_farthest_rows_of_all_chunks() -> None:
    rows = np.arange(600, dtype=np.float64)[:, None]
    far = np.array([[-5e4], [-6e4], [-7e4]])
    fit = Fit(rows, [np.concatenate([[[100.0]], far])], max_iter=1)
    fit.go()
    assert sorted(fit.centres()[1:].ravel().tolist()) == pytest.approx([597, 598, 599])
    assert fit.centres()[0, 0] == pytest.approx(np.arange(597).mean())


def test_the_only_row_of_a_cluster_is_not_taken_from_it() -> None:
    rows = np.array([[0], [0], [0], [200]], np.uint8)
    fit = Fit(rows, [np.array([[0.0], [180.0], [2000.0]])])
    fit.go()
    np.testing.assert_allclose(np.sort(fit.centres()[:2], axis=0), [[0], [200]])
    assert fit.runs[0].empty == 1  # two distinct rows for three clusters
    assert len(fit.runs[0].history) < 5


# ---- sums and the last pass ---------------------------------------------------------------------------------------


def test_integer_sums_do_not_wrap_in_the_tree() -> None:
    most = np.iinfo(np.int32).max
    parts = [Sums(np.full((2, 3), most, np.int32), np.array([most, 1], np.int64)) for _ in range(8)]
    total = add_sums([add_sums(parts), add_sums(parts)])
    assert total.sums.dtype == np.int64
    assert (total.sums == 16 * most).all()
    assert total.counts.tolist() == [16 * most, 16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_last_pass_serves_several_models(dtype: type, weighted: bool) -> None:
    rows = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, len(rows)) if weighted else None
    fit = Fit(rows, [start_of(3), start_of(8)], weights)
    assignments = assign_all(fit.data, [run.centres for run in fit.runs])
    for model, assignment in enumerate(assignments):
        labels, squared = nearest(rows, fit.centres(model))
        np.testing.assert_array_equal(assignment.clusters.compute(), labels)
        assert assignment.clusters.dtype == np.int32
        assert assignment.clusters.chunks == ((100,) * 6,)
        assert assignment.inertia == pytest.approx(float(squared.sum() if weights is None else squared @ weights))
