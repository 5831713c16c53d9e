"""Conversion of user input X and sample_weight into the Dask arrays that the passes read."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike

from kmeans_dask.kmeans.kernels import slice_rows, unit_block

_CHUNK_BYTES = 8 * 2**20
"""Approximate chunk size for NumPy arrays: 8 MiB."""


def as_rows(X: Any) -> da.Array:
    """Convert to a Dask array with a single chunk along the features, in a dtype that the kernels read.

    Parameters
    ----------
    X : array-like or dataframe of shape (n, n_features)
        Dask or NumPy array, Dask or pandas DataFrame, or nested sequence, of real numbers.

    Returns
    -------
    (n, n_features) da.Array
        uint8, float32 and float64 keep their dtype; bool becomes uint8; float16 and other integers of up to 16 bits
        become float32, which represents them exactly; the rest becomes float64. Lazy, except that the partition
        lengths of a Dask DataFrame are computed.

    Raises
    ------
    ValueError
        X is complex, not numeric, not two-dimensional, empty, or a Dask array with unknown chunk sizes.
    TypeError
        X is sparse.
    """
    if not isinstance(X, da.Array):
        X = _to_dask(X)
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}; expected a 2D array (rows, features). Reshape your data")
    if hasattr(X._meta, "toarray"):  # blocks of sparse matrices
        raise TypeError("Sparse data was passed for X, but dense data is required. Use X.map_blocks(toarray)")
    if any(np.isnan(size) for size in (*X.chunks[0], *X.chunks[1])):
        raise ValueError("X has unknown chunk sizes; call X.compute_chunk_sizes() first")
    if 0 in X.shape:
        unit = "sample(s)" if X.shape[0] == 0 else "feature(s)"
        raise ValueError(f"X has 0 {unit} (shape={X.shape}) while a minimum of 1 is required.")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X has dtype {X.dtype}; must be bool, integer or float. Complex data not supported")
    return X.rechunk({1: -1}).astype(_dtype_of_rows(X.dtype), copy=False)


def unit_rows(X: da.Array) -> da.Array:
    """Normalize every row to length 1; rows of zeros stay zero.

    Parameters
    ----------
    X : (n, n_features) da.Array
        Result of `as_rows`.

    Returns
    -------
    (n, n_features) da.Array
        float64 if X is, otherwise float32.
    """
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    return X.map_blocks(unit_block, dtype=dtype, meta=np.empty((0, 0), dtype))


def as_weights(sample_weight: ArrayLike | da.Array | None, X: da.Array) -> da.Array | None:
    """Align sample weights with the chunks of X.

    Parameters
    ----------
    sample_weight : array-like of shape (n,), optional
    X : (n, n_features) da.Array

    Returns
    -------
    (n,) da.Array of float64, or None
        None if `sample_weight` is None.

    Raises
    ------
    ValueError
        The shape is not (n,).
    """
    if sample_weight is None:
        return None
    weights = sample_weight if isinstance(sample_weight, da.Array) else da.from_array(np.asarray(sample_weight))
    if weights.shape != (len(X),):
        raise ValueError(f"sample_weight has shape {weights.shape}; expected {(len(X),)}")
    return weights.astype(np.float64).rechunk((X.chunks[0],))


def _to_dask(X: Any) -> da.Array:
    if hasattr(X, "to_dask_array"):  # a Dask DataFrame; importing dask.dataframe for isinstance takes a second
        return X.to_dask_array(lengths=True)
    if hasattr(X, "toarray"):
        raise TypeError("Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert it")
    array = np.asarray(X)
    if array.dtype == object:
        array = array.astype(np.float64)
    if array.ndim != 2 or array.size == 0:
        return da.from_array(array)
    row_bytes = array.shape[1] * array.itemsize
    step = slice_rows(array.shape[1])
    return da.from_array(array, chunks=(max(1, _CHUNK_BYTES // (row_bytes * step)) * step, -1))


def _dtype_of_rows(dtype: np.dtype) -> type[np.generic]:
    if dtype == np.float64 or (dtype.kind in "iu" and dtype.itemsize > 2 and dtype != np.uint8):
        return np.float64
    if dtype in (np.dtype(bool), np.dtype(np.uint8)):
        return np.uint8
    return np.float32 if dtype.itemsize <= 4 else np.float64
