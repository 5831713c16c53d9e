from __future__ import annotations

import pytest

from kmeans_dask.evaluation.model_scores import choose_k


def test_criteria_that_agree():
    choice = choose_k([2, 3, 4, 5, 6], [100, 50, 10, 9, 8], [0.3, 0.4, 0.8, 0.5, 0.4], [0.6, 0.7, 1.0, 0.6, 0.5])

    assert (choice.k, choice.knee, choice.silhouette, choice.stability) == (4, 4, 4, 4)
    assert choice.reason.startswith("K = 4, the median of three criteria: the inertia bends most at K = 4;")
    assert "best at K = 4 (0.800)" in choice.reason
    assert "adjusted Rand index 1.00" in choice.reason


def test_median_of_different_criteria_in_any_order():
    choice = choose_k([8, 2, 4], [1.0, 10.0, 2.0], [0.9, 0.1, 0.2], [0.1, 1.0, 0.2])

    assert (choice.knee, choice.silhouette, choice.stability, choice.k) == (4, 8, 2, 4)


def test_largest_of_about_equally_stable_k():
    assert choose_k([2, 3, 4], [9, 5, 4], [0.5, 0.4, 0.3], [1.0, 0.96, 0.9]).stability == 3


@pytest.mark.parametrize("inertia", [0.0, 7.0])
def test_flat_curve_and_single_candidate(inertia: float):
    assert choose_k([1, 2], [inertia, inertia], [None, 0.0], [1.0, 1.0]).k == 2
    assert choose_k([1], [inertia], [None], [1.0]).k == 1
