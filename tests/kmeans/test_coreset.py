from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kmeans_dask import KMeans
from kmeans_dask.kmeans.coreset import can_init_on_sample, init_on_sample, init_sample
from kmeans_dask.kmeans.lloyd import prepare
from kmeans_dask.kmeans.sampling import Data
from kmeans_dask.kmeans.seeding import InitSpec

DIGITS = np.tile(load_digits().data.astype(np.uint8) * 15, (6, 1))  # 10,782 x 64


def rows_with_distant_clusters(seed: int = 0) -> NDArray[np.float32]:
    """20 clusters of about 1,000 rows, and six distant ones of 15 rows."""
    rng = np.random.default_rng(seed)
    near = rng.normal(0, 10, (20, 16))[rng.integers(0, 20, 20_000)] + rng.normal(0, 1, (20_000, 16))
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][:6]
    far = np.repeat(1000 * directions, 15, axis=0) + rng.normal(0, 1, (90, 16))
    return rng.permutation(np.concatenate([near, far])).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_small_distant_clusters_are_found(seed: int) -> None:
    rows = rows_with_distant_clusters()
    km = KMeans(26, random_state=seed).fit(da.from_array(rows, chunks=(4096, -1)))

    far = np.linalg.norm(rows, axis=1) > 500
    sizes = np.bincount(km.labels_.compute()[far], minlength=26)
    assert sorted(sizes[sizes > 0]) == [15] * 6


def test_coreset_weights_are_unbiased() -> None:
    rows = rows_with_distant_clusters()
    data, moments = prepare(da.from_array(rows, chunks=(4096, -1)), None)
    totals, means, far = [], [], []
    for seed in range(40):
        sample = init_sample(data, 10, seed, moments)
        x, weights = dask.compute(sample.X, sample.weights)
        assert len(x) == 4000
        assert len(np.unique(x, axis=0)) == 4000
        totals.append(weights.sum())
        means.append(weights @ x / len(rows))
        far.append(np.count_nonzero(np.linalg.norm(x, axis=1) > 500))

    # within four standard errors of the mean over 40 samples
    assert abs(np.mean(totals) - len(rows)) < 4 * np.std(totals) / np.sqrt(40)
    assert (abs(np.mean(means, axis=0) - rows.mean(axis=0)) < 4 * np.std(means, axis=0) / np.sqrt(40) + 1e-4).all()
    assert min(far) > 80  # of 90; a uniform sample has 18


def test_sample_does_not_depend_on_the_chunks() -> None:
    drawn = []
    for chunk in (1024, 3072, len(DIGITS)):
        data, moments = prepare(da.from_array(DIGITS, chunks=(chunk, -1)), None)
        sample = init_sample(data, 16, 3, moments)
        drawn.append(dask.compute(sample.X, sample.weights))

    for rows, weights in drawn[1:]:
        np.testing.assert_array_equal(rows, drawn[0][0])
        np.testing.assert_array_equal(weights, drawn[0][1])


def test_refinement_lowers_the_inertia_of_the_sample() -> None:
    data, moments = prepare(da.from_array(DIGITS, chunks=(2048, -1)), None)
    sample = init_sample(data, 16, 0, moments)
    state = init_on_sample(sample, InitSpec(16, "k-means||", 2, 2, 0), 1e-3)

    x, weights = dask.compute(sample.X, sample.weights)
    distances = ((x[:, None].astype(float) - state.centres) ** 2).sum(axis=2).min(axis=1)
    assert weights @ distances < 0.97 * state.history[0]
    assert state.history[0] > state.history[-1] >= 0.999 * weights @ distances


def test_sample_is_used_for_large_data_only() -> None:
    data, _ = prepare(da.zeros((25_600, 2), dtype=np.uint8, chunks=(8192, 2)), None)

    assert can_init_on_sample(data, 256)
    assert not can_init_on_sample(data, 257)
    assert can_init_on_sample(data.head(8000), 2)
    assert not can_init_on_sample(data.head(7999), 2)
    many_features = Data(da.zeros((2**17, 2**13), dtype=np.float64, chunks=(1024, -1)), None, None, 2.0**17)
    assert can_init_on_sample(many_features, 163)
    assert not can_init_on_sample(many_features, 164)  # 50 rows of 64 KiB each are more than 512 MiB


def test_few_distinct_rows_in_the_sample_do_not_warn() -> None:
    """The whole data has enough of them; pytest turns warnings into errors."""
    rows = np.zeros((40_000, 1), np.uint8)
    rows[:60, 0] = np.arange(60) * 4
    km = KMeans(60, random_state=0).fit(da.from_array(rows, chunks=(8192, -1)))

    assert km.inertia_ == 0
    assert len(np.unique(km.cluster_centers_)) == 60
