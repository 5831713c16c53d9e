from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from kmeans_dask.kmeans.moments import block_moments, combine_moments
from tests.support.kmeans_cases import DTYPES, rows_of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_combined_moments_are_those_of_all_rows(dtype: type, weighted: bool) -> None:
    block = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 3, len(block)) if weighted else np.ones(len(block))
    cuts = [0, 5, 5, 1000, len(block)]
    parts = [block_moments(block[a:b], weights[a:b] if weighted else None) for a, b in pairwise(cuts)]
    total = combine_moments([combine_moments(parts[:2]), combine_moments(parts[2:])])
    values = block.astype(np.float64)
    mean = np.average(values, axis=0, weights=weights)
    assert total.weight == pytest.approx(weights.sum())
    np.testing.assert_allclose(total.mean, mean)
    np.testing.assert_allclose(total.squared_deviations, weights @ (values - mean) ** 2)
    assert total.finite
    assert total.valid_weights


def test_moments_are_precise_far_from_the_origin() -> None:
    block = np.random.default_rng(0).normal(size=(5000, 3)) + 1e8
    total = combine_moments([block_moments(block[:2000]), block_moments(block[2000:])])
    np.testing.assert_allclose(total.squared_deviations / total.weight, block.var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 1999])
def test_non_finite_values_are_detected(bad: float, at: int) -> None:
    block = rows_of(np.float64, n=2000)
    block[at, 3] = bad
    assert not combine_moments([block_moments(block[:1000]), block_moments(block[1000:])]).finite


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_invalid_weights_are_detected(bad: float) -> None:
    weights = np.ones(100)
    weights[50] = bad
    assert not block_moments(rows_of(np.uint8, n=100), weights).valid_weights
