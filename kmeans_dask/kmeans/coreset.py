"""Initial centres chosen and refined on a small sample in the driver, before the first pass over all rows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import dask
import dask.array as da
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.kmeans.lloyd import FitState, lloyd
from kmeans_dask.kmeans.moments import Moments, block_moments, combine_moments
from kmeans_dask.kmeans.sampling import Data, sample_rows
from kmeans_dask.kmeans.seeding import InitSpec, choose_centres
from kmeans_dask.reduction import map_chunks, tree_reduce

_ROWS_PER_CENTRE = 50
"""Sample rows per centre. MNIST, K = 256: 12 to 16 passes in one process over 12,800 of the 60,000 rows save ten passes
over all of them."""

_MIN_CENTRES = 80
"""The sample is sized for at least this many centres: 4,000 rows cost 20 ms. MNIST, K = 10: a sample of 500 rows leads
to an inertia 2 % higher."""

_MAX_BYTES = 512 * 2**20
"""Maximum size of the sample in the driver: 13,000 centres of 784 bytes. Beyond that, the workers initialize on all
rows."""


def can_init_on_sample(data: Data, k: int) -> bool:
    """Whether the data has at least twice the rows of a sample for k centres, and the sample fits into the driver."""
    rows = _ROWS_PER_CENTRE * max(k, _MIN_CENTRES)
    return 2 * rows <= len(data.X) and rows * data.X.shape[1] * data.X.dtype.itemsize <= _MAX_BYTES


def init_sample(data: Data, k: int, seed: int, moments: Moments | None = None) -> Data:
    """Load a random sample of the rows, large enough to initialize k centres, into this process.

    Parameters
    ----------
    data
        All rows.
    k
        Number of centres.
    seed
        Random seed of the sample.
    moments
        Moments of all rows. If given, the sample is a lightweight coreset (Bachem, Lucic and Krause 2018): half of it
        is drawn in proportion to the squared distance from the mean, so that small distant clusters are not missed,
        and each sampled row is weighted by the number of rows it represents. If None, rows are drawn in proportion to
        their weights.

    Returns
    -------
    Data
        Chunks of one slice each, meant for Dask's threaded scheduler.
    """
    size = min(_ROWS_PER_CENTRE * max(k, _MIN_CENTRES), len(data.X))
    if data.weights is not None:
        size = min(size, int((data.weights > 0).sum().compute()))
    sample = sample_rows(data, size, seed, moments)
    # a fixed chunk size: with one chunk per core, floating-point sums would depend on the number of cores
    X = da.from_array(sample.rows, chunks=(slice_rows(sample.rows.shape[1]), -1))
    if data.weights is None and moments is None:
        return replace(data, X=X, total=float(size))
    weights = da.from_array(sample.weights, chunks=(X.chunks[0],))
    return replace(data, X=X, weights=weights, total=float(sample.weights.sum()))


def init_on_sample(sample: Data, spec: InitSpec, min_gain: float, rows_per_centre: int = _ROWS_PER_CENTRE) -> FitState:
    """Choose initial centres on a sample and refine them there.

    Parameters
    ----------
    sample
        Result of `init_sample`.
    spec
        How to initialize.
    min_gain
        Fraction of the inertia that a pass over the sample must gain for the refinement to continue; smaller gains
        only fit the sample more closely, not the data.
    rows_per_centre
        Sample rows per centre to choose the centres from; the refinement uses the whole sample.

    Returns
    -------
    FitState
        The finished fit of the sample.
    """
    with dask.config.set(scheduler="threads"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # too few distinct rows here, not necessarily in the data
        (centres,) = choose_centres(sample.head(rows_per_centre * max(spec.k, _MIN_CENTRES)), [spec])
        state = FitState(centres, tolerance=0.0, max_iter=100, accelerated=True, min_gain=min_gain)
        moments = tree_reduce(map_chunks(block_moments, sample.X, sample.weights), combine_moments).compute()
        lloyd(sample, [state], moments)
        return state
