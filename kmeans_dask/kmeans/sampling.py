"""The rows of a fit, and random samples of them that do not depend on the chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats, distances_to
from kmeans_dask.kmeans.moments import Moments
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

_SAMPLING_ROUND = 2**32
"""Random key of `sample_rows`; the rounds of k-means|| and the mini-batch steps use smaller keys."""


@dataclass(frozen=True)
class Data:
    """The rows of a fit, prepared once for all passes.

    Attributes
    ----------
    X : (n, n_features) da.Array of uint8, float32 or float64
        A single chunk along the features; known chunk sizes.
    weights : (n,) da.Array of float64, or None
    origin : (n_features,) or None
        Subtracted from every row, see `kernels.Stack`.
    total : float
        Total weight of the rows.
    spherical : bool
        Whether centres are normalized to length 1, as the rows are.
    """

    X: da.Array
    weights: da.Array | None
    origin: Floats | None
    total: float
    spherical: bool = False

    def head(self, n: int) -> Data:
        """Return the first n rows; the head of a random sample is a smaller random sample."""
        if n >= len(self.X):
            return self
        weights = None if self.weights is None else self.weights[:n]
        total = float(n) if weights is None else float(weights.sum().compute())
        return replace(self, X=self.X[:n], weights=weights, total=total)


def shifted(rows: Block, origin: Floats | None) -> Floats:
    """Convert rows to the coordinates of the passes: floating point, minus the origin."""
    if origin is None:
        return rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
    return rows - origin


def row_offsets(X: da.Array) -> da.Array:
    """Return the global index of the first row of every chunk, for `map_chunks`: (n_chunks,) int64."""
    return da.from_array(np.cumsum([0, *X.chunks[0][:-1]]), chunks=1)


@dataclass(frozen=True)
class Sample:
    """Sampled rows in random order.

    Attributes
    ----------
    keys : (size,) float64
        Ascending random keys. With the same seed, a smaller sample is a prefix of a larger one.
    rows : (size, n_features)
        In the dtype and coordinates of the data.
    weights : (size,) float64
        Weight that each row represents; their sum is an unbiased estimate of the total weight.
    rates : (size,) float64
        Rates of the exponential distributions that the keys were drawn from.
    """

    keys: NDArray[np.float64]
    rows: Block
    weights: NDArray[np.float64]
    rates: NDArray[np.float64]


def sample_rows(data: Data, size: int, seed: int, moments: Moments | None = None) -> Sample:
    """Sample rows without replacement, with probabilities proportional to their rates, in one pass.

    Every row gets an exponential key with its rate, and the rows with the smallest keys are drawn (Efraimidis and
    Spirakis 2006). Keys depend on global row indices. The weight of a drawn row is divided by the probability that its
    key is below the first key not drawn (Cohen and Kaplan 2007); if all rows are drawn, they keep their weights.

    Parameters
    ----------
    data
        All rows.
    size
        Number of rows to draw.
    seed
        Random seed.
    moments
        Moments of all rows. If given, the rate of a row is its weight times the mean of 1 and its squared distance
        from the mean, relative to the average of that distance (Bachem, Lucic and Krause 2018, algorithm 1). If None,
        the rate is the weight, and the rows of a small sample get equal weights.

    Returns
    -------
    Sample

    Raises
    ------
    ValueError
        Fewer than `size` rows have a weight above 0.
    """
    shared = None if moments is None else broadcast(moments)
    n_below = (
        size + 6 * np.sqrt(size) + 10
    )  # expected number of keys below the limit: `size`, plus six standard deviations
    while True:
        fraction = n_below / len(data.X)
        limit = -np.log1p(-fraction) * len(data.X) / data.total if fraction < 0.5 else np.inf
        objects = map_chunks(
            _draw, data.X, data.weights, row_offsets(data.X), limit=limit, size=size + 1, seed=seed, moments=shared
        )
        drawn: Sample = tree_reduce(objects, partial(_smallest_keys, size=size + 1)).compute()
        if len(drawn.keys) > size or (limit == np.inf and len(drawn.keys) == size):
            return _reweighted(drawn, size)
        if limit == np.inf:
            raise ValueError(f"only {len(drawn.keys)} rows have a sample_weight above 0; {size} are needed")
        n_below *= 4


def _reweighted(drawn: Sample, size: int) -> Sample:
    """Keep `size` rows and divide their weights by their inclusion probabilities."""
    weights = drawn.weights[:size]
    if len(drawn.keys) > size:
        weights = weights / -np.expm1(-drawn.rates[:size] * drawn.keys[size])
    return Sample(drawn.keys[:size], drawn.rows[:size], weights, drawn.rates[:size])


def _draw(
    block: Block,
    weights: NDArray[np.float64] | None,
    row_offset: NDArray[np.int64],
    *,
    limit: float,
    size: int,
    seed: int,
    moments: Moments | None,
) -> Sample:
    """Return the rows of a block with the `size` smallest keys that are at most `limit`."""
    start = int(row_offset[0])
    exponentials = -np.log1p(-row_uniforms(start, start + len(block), seed, _SAMPLING_ROUND))
    all_weights = np.ones(len(block)) if weights is None else weights
    rates = all_weights if moments is None else all_weights * _coreset_rates(block, moments)
    keys = np.divide(exponentials, rates, out=np.full(len(block), np.inf), where=rates > 0)
    (below,) = np.nonzero((keys <= limit) & (keys < np.inf))
    chosen = below[np.argsort(keys[below], kind="stable")[:size]]
    return Sample(keys[chosen], block[chosen], all_weights[chosen], rates[chosen])


def _coreset_rates(block: Block, moments: Moments) -> NDArray[np.float64]:
    """Return the mean of 1 and each row's squared distance from the mean, relative to its average."""
    digits, exponent = math.frexp(float(moments.squared_deviations.sum()) / moments.weight)
    average = math.ldexp(round(1024 * digits), exponent - 10)  # drops the last digits, which depend on the chunks
    if average == 0:
        return np.ones(len(block))
    (squared,) = distances_to(block, moments.rounded_mean[None], np.zeros((1, len(block)), np.int32))
    return 0.5 + 0.5 * squared / average


def _smallest_keys(parts: list[Sample], size: int) -> Sample:
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")[:size]
    return Sample(
        keys[order],
        np.concatenate([part.rows for part in parts])[order],
        np.concatenate([part.weights for part in parts])[order],
        np.concatenate([part.rates for part in parts])[order],
    )


def row_uniforms(start: int, stop: int, seed: int, round_number: int) -> NDArray[np.float64]:
    """Generate uniform random numbers that depend on the row, not on the chunk.

    Parameters
    ----------
    start, stop
        Range of global row indices.
    seed, round_number
        Key of the counter-based generator Philox 4x64-10 (Salmon et al. 2011).

    Returns
    -------
    (stop - start,) float64
        In [0, 1). Each depends only on the row index, the seed and the round.
    """
    generator = np.random.Philox(key=np.array([seed, round_number], np.uint64))
    generator.advance(start // 4)  # each counter step yields four numbers
    return np.random.Generator(generator).random(stop - start + start % 4)[start % 4 :]
