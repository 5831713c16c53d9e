"""scikit-learn's estimator checks, where they apply to estimators that return Dask arrays.

These checks are left out:

- ``check_estimators_nan_inf`` expects ``predict`` to raise at once; ours is lazy and raises when the block with the NaN
  is computed (``test_estimator.py::test_predict_rejects_invalid_input``). ``fit`` finds the NaN, as tested below.
- ``check_sample_weight_equivalence_on_dense_data`` expects the same centres from weights as from repeated rows despite
  random initial centres; scikit-learn expects its own KMeans to fail it. With given centres it holds
  (``test_estimator.py::test_integer_weights_equal_repeated_rows``).
- ``check_array_api_input`` runs only with SciPy's array API enabled, which Dask does not support.
- ``check_clustering`` and ``check_clusterer_compute_labels_predict`` require ``fit_predict``, which dask-ml's KMeans
  lacks; ``test_estimator.py`` checks the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dask
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

from kmeans_dask import KMeans, MiniBatchKMeans

NOT_APPLICABLE = {
    "check_estimators_nan_inf",
    "check_sample_weight_equivalence_on_dense_data",
    "check_array_api_input",
}
ESTIMATORS = [KMeans(2), MiniBatchKMeans(2, init="k-means||", batch_size=20, max_iter=5)]


def check_name(check: Callable[..., None]) -> str:
    return getattr(check, "func", check).__name__


def cases() -> Iterator[Any]:
    for estimator in ESTIMATORS:
        for _, check in estimator_checks.estimator_checks_generator(estimator, legacy=True, mark=None):
            if check_name(check) not in NOT_APPLICABLE:
                options = "".join(f"-{key}" for key in getattr(check, "keywords", {}))
                yield pytest.param(estimator, check, id=f"{type(estimator).__name__}-{check_name(check)}{options}")


# Some checks fit data with fewer distinct rows than clusters, for which a warning is correct.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "check"), list(cases()))
def test_scikit_learn_check(estimator: Any, check: Callable[..., None]) -> None:
    with dask.config.set(scheduler="synchronous"):
        check(clone(estimator))


def test_most_checks_are_run() -> None:
    names = [check_name(case.values[1]) for case in cases()]
    assert len(names) >= 90
    assert {"check_fit2d_1sample", "check_fit2d_1feature", "check_n_features_in", "check_fit_idempotent"} <= set(names)
    assert {"check_estimators_pickle", "check_no_attributes_set_in_init", "check_estimators_unfitted"} <= set(names)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fit_rejects_non_finite_values(estimator: Any, bad: float) -> None:
    rows = np.random.default_rng(0).uniform(size=(20, 3))
    rows[0, 0] = bad
    for method in (estimator.fit, partial(estimator.fit_transform, y=None)):
        with pytest.raises(ValueError, match="NaN, infinity"):
            method(rows)
