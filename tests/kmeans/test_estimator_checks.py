"""scikit-learn's own checks of estimators, where they apply to estimators that answer with Dask arrays.

All checks that scikit-learn chooses for these estimators are run, but for these:

- ``check_estimators_nan_inf`` wants ``predict`` to raise at once; ours builds a graph, and raises when the block with
  the NaN is computed (``test_kmeans.py::test_predicting``). In ``fit`` the NaN is found: checked below.
- ``check_sample_weight_equivalence_on_dense_data`` wants the same centres from weights as from repeated rows although
  the start is random: scikit-learn expects its own KMeans to fail it. From a given start it holds
  (``test_kmeans.py::test_integer_weights_are_repeated_rows``).
- ``check_array_api_input`` is only run where SciPy's array API is switched on, and there is no array API here.
- ``check_clustering`` and ``check_clusterer_compute_labels_predict`` are for estimators with ``fit_predict``, which
  dask-ml's KMeans has not; what they check of the labels is checked in ``test_kmeans.py``.
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


def name_of(check: Callable[..., None]) -> str:
    return getattr(check, "func", check).__name__


def cases() -> Iterator[Any]:
    for estimator in ESTIMATORS:
        for _, check in estimator_checks.estimator_checks_generator(estimator, legacy=True, mark=None):
            if name_of(check) not in NOT_APPLICABLE:
                options = "".join(f"-{key}" for key in getattr(check, "keywords", {}))
                yield pytest.param(estimator, check, id=f"{type(estimator).__name__}-{name_of(check)}{options}")


# A check fits random data of any kind, bytes of two distinct rows for example: that centres then repeat is said, and
# right. The rest of what is ignored are the checks' own: they convert float16 and compare with old names.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "check"), list(cases()))
def test_check_of_scikit_learn(estimator: Any, check: Callable[..., None]) -> None:
    with dask.config.set(scheduler="synchronous"):
        check(clone(estimator))


def test_many_checks_are_run() -> None:
    names = [name_of(case.values[1]) for case in cases()]
    assert len(names) >= 90
    assert {"check_fit2d_1sample", "check_fit2d_1feature", "check_n_features_in", "check_fit_idempotent"} <= set(names)
    assert {"check_estimators_pickle", "check_no_attributes_set_in_init", "check_estimators_unfitted"} <= set(names)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_fit(estimator: Any, bad: float) -> None:
    rows = np.random.default_rng(0).uniform(size=(20, 3))
    rows[0, 0] = bad
    for method in (estimator.fit, partial(estimator.fit_transform, y=None)):
        with pytest.raises(ValueError, match="NaN, infinity"):
            method(rows)
