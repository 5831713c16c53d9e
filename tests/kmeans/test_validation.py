"""Conversion and validation of X and sample_weight."""

from __future__ import annotations

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from kmeans_dask.kmeans.validation import as_rows, as_weights


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.uint8, np.uint8),
        (np.bool_, np.uint8),
        (np.int8, np.float32),
        (np.int16, np.float32),
        (np.uint16, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.int32, np.float64),
        (np.uint32, np.float64),
        (np.int64, np.float64),
        (np.uint64, np.float64),
        (np.float64, np.float64),
        (np.longdouble, np.float64),
        (">f4", np.float32),
        (">f8", np.float64),
        (">i2", np.float32),
    ],
)
def test_dtype_represents_the_values_exactly(given: type | str, expected: type) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]], given)
    rows = as_rows(values)
    assert rows.dtype == expected
    assert rows.dtype.isnative
    np.testing.assert_array_equal(rows.compute(), values.astype(float))
    assert rows.compute().dtype.isnative


@pytest.mark.parametrize("value", [-(2**15), 2**15 - 1])
def test_16_bit_integers_are_exact(value: int) -> None:
    assert as_rows(np.array([[value]], np.int16)).compute()[0, 0] == value


VALUES = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    "X",
    [
        VALUES,
        VALUES.tolist(),
        np.asfortranarray(VALUES),
        da.from_array(VALUES, chunks=(4, 1)),
        da.from_array(VALUES, chunks=((0, 5, 0, 1), (1, 1))),
        pd.DataFrame(VALUES, columns=["a", "b"]),
        dd.from_pandas(pd.DataFrame(VALUES, columns=["a", "b"]), npartitions=3),
        VALUES.astype(object),
    ],
    ids=["numpy", "list", "Fortran order", "dask", "ragged and empty chunks", "pandas", "dask DataFrame", "object"],
)
def test_input_types_become_one_chunk_along_the_features(X: object) -> None:
    rows = as_rows(X)
    assert rows.numblocks[1] == 1
    assert rows.shape == (6, 2)
    np.testing.assert_array_equal(rows.compute(), VALUES)


def test_dataframe_with_mixed_dtypes() -> None:
    frame = pd.DataFrame({"a": np.array([1, 2], np.uint8), "b": [0.5, 1.5]})
    np.testing.assert_array_equal(as_rows(frame).compute(), [[1, 0.5], [2, 1.5]])


def test_large_numpy_array_is_cut_into_whole_slices() -> None:
    rows = as_rows(np.zeros((50_000, 784), np.uint8))
    assert rows.numblocks[0] == 5
    assert all(size % 1024 == 0 for size in rows.chunks[0][:-1])


def uncomputable(shape: tuple[int, int], dtype: type = np.uint8) -> da.Array:
    def fail() -> np.ndarray:
        raise AssertionError("computed")

    return da.map_blocks(lambda block_id: fail(), chunks=shape, dtype=dtype, meta=np.empty((0, 0), dtype))


def test_conversion_is_lazy() -> None:
    X = uncomputable((10, 3), np.int16)
    assert as_rows(X).dtype == np.float32
    assert as_weights(uncomputable((10, 1))[:, 0], X).shape == (10,)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros(3), ValueError, r"shape \(3,\); expected a 2D array .* Reshape your data"),
        (np.zeros((3, 2, 2)), ValueError, "expected a 2D array"),
        (np.float64(3), ValueError, "expected a 2D array"),
        (np.zeros((0, 2)), ValueError, r"0 sample\(s\)"),
        (np.zeros((2, 0)), ValueError, r"0 feature\(s\)"),
        (np.zeros((2, 2), complex), ValueError, "Complex data not supported"),
        (np.array([["a", "b"]]), ValueError, "has dtype <U1; must be bool, integer or float"),
        (np.array([["2024-01-01"]], "datetime64[D]"), ValueError, "must be bool, integer or float"),
        (scipy.sparse.csr_array(VALUES), TypeError, "Sparse data was passed"),
        (da.from_array(VALUES, chunks=(3, 2)).map_blocks(scipy.sparse.csr_array), TypeError, "Sparse data was passed"),
        (da.from_array(VALUES)[da.from_array(VALUES[:, 0] > 1)], ValueError, r"unknown chunk.*compute_chunk_sizes\(\)"),
    ],
)
def test_invalid_input_raises(X: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_rows(X)


def test_weights_are_aligned_with_the_chunks() -> None:
    X = da.zeros((6, 2), chunks=((1, 0, 5), (2,)))
    assert as_weights(None, X) is None
    for given in ([1, 2, 3, 4, 5, 6], np.arange(1, 7), pd.Series(range(1, 7)), da.arange(1, 7, chunks=4)):
        weights = as_weights(given, X)
        assert weights is not None
        assert weights.dtype == np.float64
        assert weights.chunks == ((1, 0, 5),)
        np.testing.assert_array_equal(weights.compute(), [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("given", [[1.0], np.ones(7), np.ones((6, 1)), 2.0])
def test_weights_of_wrong_shape_raise(given: object) -> None:
    with pytest.raises(ValueError, match=r"sample_weight has shape .*; expected"):
        as_weights(given, da.zeros((6, 2)))
