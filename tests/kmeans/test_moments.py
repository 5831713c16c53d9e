from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from kmeans_dask.kmeans.moments import combine_moments, moments
from tests.support.kmeans_cases import DTYPES, rows_of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_blocks_combine_to_those_of_all_rows(dtype: type, weighted: bool) -> None:
    block = rows_of(dtype)
    weights = np.random.default_rng(2).uniform(0, 3, len(block)) if weighted else np.ones(len(block))
    cuts = [0, 5, 5, 1000, len(block)]
    parts = [moments(block[a:b], weights[a:b] if weighted else None) for a, b in pairwise(cuts)]
    total = combine_moments([combine_moments(parts[:2]), combine_moments(parts[2:])])
    values = block.astype(np.float64)
    mean = np.average(values, axis=0, weights=weights)
    assert total.weight == pytest.approx(weights.sum())
    np.testing.assert_allclose(total.mean, mean)
    np.testing.assert_allclose(total.spread, weights @ (values - mean) ** 2)
    assert total.finite
    assert total.valid_weights


def test_moments_far_from_the_origin_keep_their_digits() -> None:
    block = np.random.default_rng(0).normal(size=(5000, 3)) + 1e8
    total = combine_moments([moments(block[:2000]), moments(block[2000:])])
    np.testing.assert_allclose(total.spread / total.weight, block.var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 1999])
def test_moments_notice_what_is_not_finite(bad: float, at: int) -> None:
    block = rows_of(np.float64, n=2000)
    block[at, 3] = bad
    assert not combine_moments([moments(block[:1000]), moments(block[1000:])]).finite


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_moments_notice_weights_that_are_not_allowed(bad: float) -> None:
    weights = np.ones(100)
    weights[50] = bad
    assert not moments(rows_of(np.uint8, n=100), weights).valid_weights
