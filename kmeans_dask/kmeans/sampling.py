"""The rows to be clustered, and random samples of them that do not depend on the chunks."""

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
"""Key of the draws of `sample_rows`; the rounds of k-means|| and the mini-batches have smaller ones."""


@dataclass(frozen=True)
class Data:
    """The rows to be clustered, prepared once for all passes.

    Attributes
    ----------
    X : (n, n_features) da.Array of uint8, float32 or float64
        One chunk wide, chunk sizes known.
    weights : (n,) da.Array of float64, or None
    origin : (n_features,) or None
        See `kernels.Stack`.
    total : float
        Total weight of the rows.
    spherical : bool
        Whether the centres are kept at length 1, as the rows are.
    """

    X: da.Array
    weights: da.Array | None
    origin: Floats | None
    total: float
    spherical: bool = False

    def first(self, n: int) -> Data:
        """Return the first n rows; of a sample, a smaller sample."""
        if n >= len(self.X):
            return self
        weights = None if self.weights is None else self.weights[:n]
        total = float(n) if weights is None else float(weights.sum().compute())
        return replace(self, X=self.X[:n], weights=weights, total=total)


def shifted(rows: Block, origin: Floats | None) -> Floats:
    """Rows in the coordinates that the passes compute in: floating point, minus the origin."""
    if origin is None:
        return rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
    return rows - origin


def first_rows(X: da.Array) -> da.Array:
    """Return the global number of the first row of every chunk, for `map_chunks`: (n_chunks,) int64."""
    return da.from_array(np.cumsum([0, *X.chunks[0][:-1]]), chunks=1)


@dataclass(frozen=True)
class Sample:
    """Rows in random order.

    Attributes
    ----------
    keys : (size,) float64
        Ascending; the sample of a smaller size with the same seed is the beginning of this one.
    rows : (size, n_features)
        As they are in the data.
    weights : (size,) float64
        What each row stands for; together an unbiased estimate of the weights of all rows.
    rates : (size,) float64
        That the keys were drawn with.
    """

    keys: NDArray[np.float64]
    rows: Block
    weights: NDArray[np.float64]
    rates: NDArray[np.float64]


def sample_rows(data: Data, size: int, seed: int, first: Moments | None = None) -> Sample:
    """Draw distinct rows, each draw with probability in proportion to their rates, in one pass.

    Every row gets an exponential key with its rate; those with the smallest keys are drawn (Efraimidis and Spirakis
    2006). Keys belong to global row numbers. The weight of a drawn row is divided by the chance that its key was below
    the first one that was not drawn (Cohen and Kaplan 2007): where all rows are drawn the weights are their own.

    Parameters
    ----------
    data
        The rows.
    size
        Number of rows.
    seed
        Of the draw.
    first
        Moments of the rows: the rate of a row is then its weight times the mean of 1 and of its squared distance from
        the mean, as a multiple of what that is on average (Bachem, Lucic and Krause 2018, algorithm 1). None: the rate
        is the weight, and rows of a small sample weigh alike.

    Returns
    -------
    Sample

    Raises
    ------
    ValueError
        Fewer rows than `size` have a weight above 0.
    """
    shared = None if first is None else broadcast(first)
    wanted = size + 6 * np.sqrt(size) + 10  # chunks offer those below a limit: six standard deviations more
    while True:
        part = wanted / len(data.X)
        limit = -np.log1p(-part) * len(data.X) / data.total if part < 0.5 else np.inf
        objects = map_chunks(
            _draw, data.X, data.weights, first_rows(data.X), limit=limit, size=size + 1, seed=seed, first=shared
        )
        drawn: Sample = tree_reduce(objects, partial(_smallest, size=size + 1)).compute()
        if len(drawn.keys) > size or (limit == np.inf and len(drawn.keys) == size):
            return _weigh(drawn, size)
        if limit == np.inf:
            raise ValueError(f"only {len(drawn.keys)} rows have a sample_weight above 0; {size} are needed")
        wanted *= 4


def _weigh(drawn: Sample, size: int) -> Sample:
    """Leave `size` rows, with the weights that they stand for."""
    weights = drawn.weights[:size]
    if len(drawn.keys) > size:
        weights = weights / -np.expm1(-drawn.rates[:size] * drawn.keys[size])
    return Sample(drawn.keys[:size], drawn.rows[:size], weights, drawn.rates[:size])


def _draw(
    block: Block,
    weights: NDArray[np.float64] | None,
    first_row: NDArray[np.int64],
    *,
    limit: float,
    size: int,
    seed: int,
    first: Moments | None,
) -> Sample:
    start = int(first_row[0])
    exponentials = -np.log1p(-row_uniforms(start, start + len(block), seed, _SAMPLING_ROUND))
    all_weights = np.ones(len(block)) if weights is None else weights
    rates = all_weights if first is None else all_weights * _pull(block, first)
    keys = np.divide(exponentials, rates, out=np.full(len(block), np.inf), where=rates > 0)
    (below,) = np.nonzero((keys <= limit) & (keys < np.inf))
    chosen = below[np.argsort(keys[below], kind="stable")[:size]]
    return Sample(keys[chosen], block[chosen], all_weights[chosen], rates[chosen])


def _pull(block: Block, first: Moments) -> NDArray[np.float64]:
    """Mean of 1 and of the squared distance of each row from the mean, as a multiple of the average: about 1."""
    digits, exponent = math.frexp(float(first.spread.sum()) / first.weight)
    average = math.ldexp(round(1024 * digits), exponent - 10)  # without the last digits, which depend on the chunks
    if average == 0:
        return np.ones(len(block))
    (squared,) = distances_to(block, first.rounded_mean[None], np.zeros((1, len(block)), np.int32))
    return 0.5 + 0.5 * squared / average


def _smallest(parts: list[Sample], size: int) -> Sample:
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")[:size]
    return Sample(
        keys[order],
        np.concatenate([part.rows for part in parts])[order],
        np.concatenate([part.weights for part in parts])[order],
        np.concatenate([part.rates for part in parts])[order],
    )


def row_uniforms(start: int, stop: int, seed: int, round_number: int) -> NDArray[np.float64]:
    """Uniform numbers that belong to rows, not to chunks.

    Parameters
    ----------
    start, stop
        Global row numbers.
    seed, round_number
        Key of the counter-based generator Philox 4x64-10 (Salmon et al. 2011).

    Returns
    -------
    (stop - start,) float64
        In [0, 1); the number of a row depends on the row, the seed and the round alone.
    """
    generator = np.random.Philox(key=np.array([seed, round_number], np.uint64))
    generator.advance(start // 4)  # one step of the counter gives four numbers
    return np.random.Generator(generator).random(stop - start + start % 4)[start % 4 :]
