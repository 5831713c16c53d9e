"""A start is chosen and refined on a small sample in this process, before the first pass over all rows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import dask
import dask.array as da
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask.kmeans.kernels import Floats, slice_rows
from kmeans_dask.kmeans.lloyd import FitState, lloyd
from kmeans_dask.kmeans.moments import Moments, combine_moments, moments
from kmeans_dask.kmeans.sampling import Data, sample_rows
from kmeans_dask.kmeans.seeding import Start, choose_starts
from kmeans_dask.reduction import map_chunks, tree_reduce

_ROWS_PER_CENTRE = 50
"""Rows a centre of the sample. MNIST, K = 256: on 12,800 of 60,000 rows, 12 to 16 passes in one process then save ten
passes over all."""

_LEAST_CENTRES = 80
"""Centres that the sample is made for at least: 4,000 rows cost 20 ms. MNIST, K = 10: from 500 rows the inertia ends 2
% higher."""


_MOST_BYTES = 512 * 2**20
"""Of a sample in the driver: 13,000 centres of 784 bytes. Beyond, the start is left to the workers."""


def starts_on_sample(data: Data, k: int) -> bool:
    """Whether the data has at least twice the rows of a sample for k centres, and that fits into the driver."""
    rows = _ROWS_PER_CENTRE * max(k, _LEAST_CENTRES)
    return 2 * rows <= len(data.X) and rows * data.X.shape[1] * data.X.dtype.itemsize <= _MOST_BYTES


def sample_for(data: Data, k: int, seed: int, first: Moments | None = None) -> Data:
    """Bring a random sample of the rows, enough to start k centres, into this process.

    Parameters
    ----------
    data
        The rows.
    k
        Number of centres.
    seed
        Of the sample.
    first
        Moments of the rows. With them the sample is a lightweight coreset (Bachem, Lucic and Krause 2018): half of it
        is drawn in proportion to the squared distance from the mean, so that a few far rows are not missed, and every
        row has the weight of those that it stands for. None: rows are drawn in proportion to their weights.

    Returns
    -------
    Data
        In chunks of one slice, to be computed by threads.
    """
    size = min(_ROWS_PER_CENTRE * max(k, _LEAST_CENTRES), len(data.X))
    if data.weights is not None:
        size = min(size, int((data.weights > 0).sum().compute()))
    sample = sample_rows(data, size, seed, first)
    # not in one chunk a core: sums of floats would depend on the number of cores
    X = da.from_array(sample.rows, chunks=(slice_rows(sample.rows.shape[1]), -1))
    if data.weights is None and first is None:
        return replace(data, X=X, total=float(size))
    weights = da.from_array(sample.weights, chunks=(X.chunks[0],))
    return replace(data, X=X, weights=weights, total=float(sample.weights.sum()))


def start_on(sample: Data, start: Start, least_gain: float, rows_per_centre: int = _ROWS_PER_CENTRE) -> FitState:
    """Choose a start on a sample, and iterate it there as long as that is worth while.

    Parameters
    ----------
    sample
        From `sample_for`.
    start
        What is asked for.
    least_gain
        Share of the inertia that a pass over the sample must gain; beyond, the sample is only fitted more closely.
    rows_per_centre
        Rows of the sample, for each centre, that the start is chosen on before all of the sample refines it.

    Returns
    -------
    FitState
        Finished.
    """
    with dask.config.set(scheduler="threads"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of few distinct rows: the data may have more
        (centres,) = choose_starts(sample.first(rows_per_centre * max(start.k, _LEAST_CENTRES)), [start])
        return _refined(sample, centres, least_gain)


def _refined(sample: Data, centres: Floats, least_gain: float) -> FitState:
    run = FitState(centres, 0.0, 100, accelerated=True, least_gain=least_gain)
    first = tree_reduce(map_chunks(moments, sample.X, sample.weights), combine_moments).compute()
    lloyd(sample, [run], first)
    return run
