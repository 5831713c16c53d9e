from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kmeans_dask import KMeans
from kmeans_dask.kmeans.coreset import sample_for, start_on, starts_on_sample
from kmeans_dask.kmeans.lloyd import prepare
from kmeans_dask.kmeans.sampling import Data
from kmeans_dask.kmeans.seeding import Start

DIGITS = np.tile(load_digits().data.astype(np.uint8) * 15, (6, 1))  # 10,782 x 64


def few_far_rows(seed: int = 0) -> NDArray[np.float32]:
    """20 clusters of about 1,000 rows, and six of 15 rows that are far away."""
    rng = np.random.default_rng(seed)
    near = rng.normal(0, 10, (20, 16))[rng.integers(0, 20, 20_000)] + rng.normal(0, 1, (20_000, 16))
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][:6]
    far = np.repeat(1000 * directions, 15, axis=0) + rng.normal(0, 1, (90, 16))
    return rng.permutation(np.concatenate([near, far])).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_far_rows_get_their_clusters(seed: int) -> None:
    rows = few_far_rows()
    km = KMeans(26, random_state=seed).fit(da.from_array(rows, chunks=(4096, -1)))

    far = np.linalg.norm(rows, axis=1) > 500
    sizes = np.bincount(km.labels_.compute()[far], minlength=26)
    assert sorted(sizes[sizes > 0]) == [15] * 6


def test_a_coreset_stands_for_all_rows() -> None:
    rows = few_far_rows()
    data, first = prepare(da.from_array(rows, chunks=(4096, -1)), None)
    totals, means, far = [], [], []
    for seed in range(40):
        sample = sample_for(data, 10, seed, first)
        x, weights = dask.compute(sample.X, sample.weights)
        assert len(x) == 4000
        assert len(np.unique(x, axis=0)) == 4000
        totals.append(weights.sum())
        means.append(weights @ x / len(rows))
        far.append(np.count_nonzero(np.linalg.norm(x, axis=1) > 500))

    # unbiased: off by at most four standard errors of the mean of 40 samples
    assert abs(np.mean(totals) - len(rows)) < 4 * np.std(totals) / np.sqrt(40)
    assert (abs(np.mean(means, axis=0) - rows.mean(axis=0)) < 4 * np.std(means, axis=0) / np.sqrt(40) + 1e-4).all()
    assert min(far) > 80  # of 90, where a uniform sample has 18


def test_a_sample_does_not_depend_on_the_chunks() -> None:
    drawn = []
    for chunk in (1024, 3072, len(DIGITS)):
        data, first = prepare(da.from_array(DIGITS, chunks=(chunk, -1)), None)
        sample = sample_for(data, 16, 3, first)
        drawn.append(dask.compute(sample.X, sample.weights))

    for rows, weights in drawn[1:]:
        np.testing.assert_array_equal(rows, drawn[0][0])
        np.testing.assert_array_equal(weights, drawn[0][1])


def test_refining_lowers_the_inertia_of_the_sample() -> None:
    data, first = prepare(da.from_array(DIGITS, chunks=(2048, -1)), None)
    sample = sample_for(data, 16, 0, first)
    run = start_on(sample, Start(16, "k-means||", 2, 2, 0), 1e-3)

    x, weights = dask.compute(sample.X, sample.weights)
    distances = ((x[:, None].astype(float) - run.centres) ** 2).sum(axis=2).min(axis=1)
    assert weights @ distances < 0.97 * run.history[0]
    assert run.history[0] > run.history[-1] >= 0.999 * weights @ distances


def test_when_a_sample_is_worth_while() -> None:
    data, _ = prepare(da.zeros((25_600, 2), dtype=np.uint8, chunks=(8192, 2)), None)

    assert starts_on_sample(data, 256)
    assert not starts_on_sample(data, 257)
    assert starts_on_sample(data.first(8000), 2)
    assert not starts_on_sample(data.first(7999), 2)
    wide = Data(da.zeros((2**17, 2**13), dtype=np.float64, chunks=(1024, -1)), None, None, 2.0**17)
    assert starts_on_sample(wide, 163)
    assert not starts_on_sample(wide, 164)  # 50 rows of 64 KiB each are more than 512 MiB


def test_a_sample_of_few_distinct_rows_raises_no_warning() -> None:
    """They are enough in the whole data: a warning would be an error here."""
    rows = np.zeros((40_000, 1), np.uint8)
    rows[:60, 0] = np.arange(60) * 4
    km = KMeans(60, random_state=0).fit(da.from_array(rows, chunks=(8192, -1)))

    assert km.inertia_ == 0
    assert len(np.unique(km.cluster_centers_)) == 60
