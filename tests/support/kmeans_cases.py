"""Shared by the K-Means tests: data, initial centres, and references in scikit-learn and plain NumPy."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import sklearn.cluster
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from kmeans_dask import KMeans

DIGITS = load_digits().data.astype(np.uint8) * 15  # 1,797 x 64, 0-240
# ten rows, perturbed: integers are often equidistant from two integer centres, and rounding would break the tie
INIT_CENTRES = DIGITS[::180] + np.random.default_rng(1).normal(0, 1, (10, 64))
INITS = ["k-means||", "k-means++", "random"]
ALGORITHMS = ["lloyd", "accelerated"]
SMALL = np.arange(12.0).reshape(6, 2)
WEIGHTS = np.random.default_rng(0).uniform(0, 3, len(DIGITS))
LARGE = (
    np.random.default_rng(5)
    .permutation(
        np.clip(np.repeat(DIGITS, 5, axis=0) + np.random.default_rng(6).integers(-9, 10, (5 * 1797, 64)), 0, 255)
    )
    .astype(np.uint8)
)


def chunked(rows: NDArray, sizes: int | tuple[int, ...] = 500) -> da.Array:
    return da.from_array(rows, chunks=(sizes, rows.shape[1]))


def brute_force(rows: NDArray, centres: NDArray, weights: NDArray | float = 1.0) -> tuple[NDArray, float]:
    squared = ((rows[:, None].astype(np.float64) - centres[None].astype(np.float64)) ** 2).sum(axis=2)
    return squared.argmin(axis=1), float((squared.min(axis=1) * weights).sum())


def lloyd(n_clusters: int, **params: Any) -> KMeans:
    """Plain Lloyd, which can be checked by hand and against scikit-learn."""
    return KMeans(n_clusters, algorithm="lloyd", **params)


def scikit_learn(rows: NDArray, init: NDArray, weights: NDArray | None = None, **params: Any) -> sklearn.cluster.KMeans:
    init = init.astype(np.float32 if rows.dtype == np.float32 else np.float64)
    params = {"n_init": 1, "max_iter": 300, "algorithm": "lloyd"} | params
    with threadpool_limits(1):  # on busy cores its threads would wait for each other
        return sklearn.cluster.KMeans(len(init), init=init, **params).fit(rows, sample_weight=weights)


def digits_as(dtype: type, offset: float = 0) -> NDArray:
    return (DIGITS.astype(np.float64) + offset).astype(dtype)


DTYPES = [np.uint8, np.float32, np.float64]


def rows_of(dtype: type, n: int = 3000, n_features: int = 7, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).integers(0, 256, (n, n_features)).astype(dtype)
