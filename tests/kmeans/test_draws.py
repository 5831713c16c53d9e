from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kmeans_dask.kmeans.sampling import row_uniforms


@settings(max_examples=60, deadline=None, derandomize=True)  # no deadline: the machine may be busy
@given(start=st.integers(0, 10**12), length=st.integers(0, 50), cut=st.integers(0, 50), seed=st.integers(0, 2**31 - 2))
def test_the_number_of_a_row_depends_on_row_seed_and_round_alone(start: int, length: int, cut: int, seed: int) -> None:
    cut = min(cut, length)
    whole = row_uniforms(start, start + length, seed, 3)
    assert whole.shape == (length,)
    parts = [row_uniforms(start, start + cut, seed, 3), row_uniforms(start + cut, start + length, seed, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_numbers_of_rows_are_uniform_and_differ_by_seed_and_round() -> None:
    numbers = row_uniforms(0, 100_000, 5, 0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert abs(counts - 10_000).max() < 500  # five standard deviations
    for other in (row_uniforms(0, 100_000, 6, 0), row_uniforms(0, 100_000, 5, 1), row_uniforms(1, 100_001, 5, 0)):
        assert not (numbers == other).any()
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.02
