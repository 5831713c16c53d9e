"""Random samples of the rows."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from kmeans_dask.kmeans.lloyd import prepare
from kmeans_dask.kmeans.sampling import Data, first_rows, sample_rows, shifted


def data_of(n: int, chunks: int | tuple[int, ...] = 100, weights: NDArray | None = None) -> Data:
    X = da.from_array(np.arange(n, dtype=np.float64)[:, None], chunks=(chunks, 1))
    return prepare(X, None if weights is None else da.from_array(weights, chunks=(X.chunks[0],)))[0]


@pytest.mark.parametrize("size", [1, 30, 499, 500, 999, 1000])
def test_distinct_rows_that_do_not_depend_on_the_chunks(size: int) -> None:
    reference = sample_rows(data_of(1000), size, 3)
    assert reference.rows.shape == (size, 1)
    assert len(np.unique(reference.rows)) == size
    assert (np.diff(reference.keys) >= 0).all()
    for chunks in (1000, 7, (0, 999, 0, 1)):
        np.testing.assert_array_equal(sample_rows(data_of(1000, chunks), size, 3).rows, reference.rows)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    np.testing.assert_array_equal(sample_rows(data_of(1000), 20, 3).rows, sample_rows(data_of(1000), 200, 3).rows[:20])
    assert not np.array_equal(sample_rows(data_of(1000), 20, 3).rows, sample_rows(data_of(1000), 20, 4).rows)


def test_rows_are_drawn_uniformly() -> None:
    counts, data = np.zeros(200), data_of(200, 50)
    for seed in range(200):
        counts[sample_rows(data, 20, seed).rows.astype(int).ravel()] += 1
    # every row is drawn in a tenth of the 200 samples, 20 ± 4.2
    assert counts.min() > 3
    assert counts.max() < 40
    assert abs(counts.reshape(4, 50).sum(axis=1) - 1000).max() < 120


def test_heavy_rows_are_drawn_more_often() -> None:
    weights = np.r_[np.full(50, 9.0), np.ones(450), np.zeros(500)]  # half of the weight in the first fifty rows
    data = data_of(1000, 300, weights)
    first = np.array([sample_rows(data, 1, seed).rows[0, 0] for seed in range(200)])
    assert (first < 500).all()
    assert 65 <= (first < 50).sum() <= 135  # 100 ± 7
    everything = sample_rows(data, 500, 0)
    assert sorted(everything.rows.ravel().tolist()) == list(range(500))
    np.testing.assert_array_equal(everything.weights, weights[everything.rows.astype(int).ravel()])


def test_weights_that_differ_by_orders_of_magnitude() -> None:
    weights = np.r_[np.full(5, 1e12), np.full(995, 1e-12)]
    sample = sample_rows(data_of(1000, 100, weights), 8, 0)
    assert set(sample.rows[:5].ravel().tolist()) == {0, 1, 2, 3, 4}
    assert len(np.unique(sample.rows)) == 8


@pytest.mark.parametrize("size", [20, 300, 900])
def test_the_weights_of_a_sample_estimate_those_of_all_rows(size: int) -> None:
    weights = np.random.default_rng(0).pareto(1.5, 1000) + 0.01
    data = data_of(1000, 300, weights)
    samples = [sample_rows(data, size, seed) for seed in range(100)]
    totals = np.array([sample.weights.sum() for sample in samples])
    error = totals.std() / np.sqrt(len(totals))
    assert abs(totals.mean() - weights.sum()) < 4 * error
    early = np.array([sample.weights[sample.rows[:, 0] < 400].sum() for sample in samples])
    assert abs(early.mean() - weights[:400].sum()) < 4 * early.std() / np.sqrt(len(early))


def test_rows_of_an_unweighted_sample_weigh_alike() -> None:
    sample = sample_rows(data_of(1000), 100, 0)
    assert sample.weights == pytest.approx(np.full(100, sample.weights[0]))
    assert sample.weights.sum() == pytest.approx(1000, rel=0.4)  # 1 / sqrt(100) is a standard deviation
    np.testing.assert_array_equal(sample_rows(data_of(1000), 1000, 0).weights, np.ones(1000))


def test_too_few_rows_with_weight_are_said() -> None:
    with pytest.raises(ValueError, match="only 3 rows have a sample_weight above 0; 4 are needed"):
        sample_rows(data_of(100, 30, np.r_[np.ones(3), np.zeros(97)]), 4, 0)


def test_first_rows_of_chunks() -> None:
    assert first_rows(da.zeros((10, 2), chunks=((0, 3, 0, 7), (2,)))).compute().tolist() == [0, 0, 3, 3]


def test_shifted_rows() -> None:
    assert shifted(np.array([[250]], np.uint8), None).dtype == np.float32
    np.testing.assert_array_equal(shifted(np.array([[5.0]], np.float32), np.array([2], np.float32)), [[3]])
