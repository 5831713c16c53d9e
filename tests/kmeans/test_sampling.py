"""Random samples of the rows, and the random numbers they are drawn by."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmeans_dask.kmeans.lloyd import prepare
from kmeans_dask.kmeans.sampling import Data, row_offsets, row_uniforms, sample_rows, shifted


def data_of(n: int, chunks: int | tuple[int, ...] = 100, weights: NDArray | None = None) -> Data:
    X = da.from_array(np.arange(n, dtype=np.float64)[:, None], chunks=(chunks, 1))
    return prepare(X, None if weights is None else da.from_array(weights, chunks=(X.chunks[0],)))[0]


@pytest.mark.parametrize("size", [1, 30, 499, 500, 999, 1000])
def test_sample_is_distinct_and_does_not_depend_on_the_chunks(size: int) -> None:
    reference = sample_rows(data_of(1000), size, 3)
    assert reference.rows.shape == (size, 1)
    assert len(np.unique(reference.rows)) == size
    assert (np.diff(reference.keys) >= 0).all()
    for chunks in (1000, 7, (0, 999, 0, 1)):
        np.testing.assert_array_equal(sample_rows(data_of(1000, chunks), size, 3).rows, reference.rows)


def test_smaller_sample_is_a_prefix() -> None:
    np.testing.assert_array_equal(sample_rows(data_of(1000), 20, 3).rows, sample_rows(data_of(1000), 200, 3).rows[:20])
    assert not np.array_equal(sample_rows(data_of(1000), 20, 3).rows, sample_rows(data_of(1000), 20, 4).rows)


def test_unweighted_rows_are_drawn_uniformly() -> None:
    counts, data = np.zeros(200), data_of(200, 50)
    for seed in range(200):
        counts[sample_rows(data, 20, seed).rows.astype(int).ravel()] += 1
    # each row is expected in a tenth of the 200 samples, 20 ± 4.2
    assert counts.min() > 3
    assert counts.max() < 40
    assert abs(counts.reshape(4, 50).sum(axis=1) - 1000).max() < 120


def test_heavy_rows_are_drawn_more_often() -> None:
    weights = np.r_[np.full(50, 9.0), np.ones(450), np.zeros(500)]  # half the weight is in the first fifty rows
    data = data_of(1000, 300, weights)
    drawn = np.array([sample_rows(data, 1, seed).rows[0, 0] for seed in range(200)])
    assert (drawn < 500).all()
    assert 65 <= (drawn < 50).sum() <= 135  # 100 ± 7
    everything = sample_rows(data, 500, 0)
    assert sorted(everything.rows.ravel().tolist()) == list(range(500))
    np.testing.assert_array_equal(everything.weights, weights[everything.rows.astype(int).ravel()])


def test_weights_of_very_different_magnitudes() -> None:
    weights = np.r_[np.full(5, 1e12), np.full(995, 1e-12)]
    sample = sample_rows(data_of(1000, 100, weights), 8, 0)
    assert set(sample.rows[:5].ravel().tolist()) == {0, 1, 2, 3, 4}
    assert len(np.unique(sample.rows)) == 8


@pytest.mark.parametrize("size", [20, 300, 900])
def test_sample_weights_are_unbiased(size: int) -> None:
    weights = np.random.default_rng(0).pareto(1.5, 1000) + 0.01
    data = data_of(1000, 300, weights)
    samples = [sample_rows(data, size, seed) for seed in range(100)]
    totals = np.array([sample.weights.sum() for sample in samples])
    error = totals.std() / np.sqrt(len(totals))
    assert abs(totals.mean() - weights.sum()) < 4 * error
    early = np.array([sample.weights[sample.rows[:, 0] < 400].sum() for sample in samples])
    assert abs(early.mean() - weights[:400].sum()) < 4 * early.std() / np.sqrt(len(early))


def test_unweighted_sample_has_equal_weights() -> None:
    sample = sample_rows(data_of(1000), 100, 0)
    assert sample.weights == pytest.approx(np.full(100, sample.weights[0]))
    assert sample.weights.sum() == pytest.approx(1000, rel=0.4)  # the standard deviation is 1 / sqrt(100)
    np.testing.assert_array_equal(sample_rows(data_of(1000), 1000, 0).weights, np.ones(1000))


def test_too_few_rows_with_weight_raise() -> None:
    with pytest.raises(ValueError, match="only 3 rows have a sample_weight above 0; 4 are needed"):
        sample_rows(data_of(100, 30, np.r_[np.ones(3), np.zeros(97)]), 4, 0)


def test_row_offsets() -> None:
    assert row_offsets(da.zeros((10, 2), chunks=((0, 3, 0, 7), (2,)))).compute().tolist() == [0, 0, 3, 3]


def test_shifted() -> None:
    assert shifted(np.array([[250]], np.uint8), None).dtype == np.float32
    np.testing.assert_array_equal(shifted(np.array([[5.0]], np.float32), np.array([2], np.float32)), [[3]])


@settings(max_examples=60, deadline=None, derandomize=True)  # no deadline: the machine may be busy
@given(start=st.integers(0, 10**12), length=st.integers(0, 50), cut=st.integers(0, 50), seed=st.integers(0, 2**31 - 2))
def test_row_uniforms_do_not_depend_on_the_range(start: int, length: int, cut: int, seed: int) -> None:
    cut = min(cut, length)
    whole = row_uniforms(start, start + length, seed, 3)
    assert whole.shape == (length,)
    parts = [row_uniforms(start, start + cut, seed, 3), row_uniforms(start + cut, start + length, seed, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_row_uniforms_are_uniform_and_differ_by_seed_and_round() -> None:
    uniforms = row_uniforms(0, 100_000, 5, 0)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    counts, _ = np.histogram(uniforms, bins=10, range=(0, 1))
    assert abs(counts - 10_000).max() < 500  # five standard deviations
    for other in (row_uniforms(0, 100_000, 6, 0), row_uniforms(0, 100_000, 5, 1), row_uniforms(1, 100_001, 5, 0)):
        assert not (uniforms == other).any()
        assert abs(np.corrcoef(uniforms, other)[0, 1]) < 0.02
