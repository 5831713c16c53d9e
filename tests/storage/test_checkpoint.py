"""A fit that is killed between two passes resumes and ends with bitwise equal results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from kmeans_dask import KMeans, MiniBatchKMeans, fit_together
from kmeans_dask.storage.checkpoint import Checkpoint


class KilledError(Exception):
    """Stands in for a signal."""


class KillingCheckpoint(Checkpoint):
    """Writes every state, and ends the fit after a given number of them."""

    def __init__(self, path: Path, key: str, after: int) -> None:
        super().__init__(path, key)
        self._left = after

    def write(self, states: Sequence[Mapping[str, Any]]) -> None:
        self._next_write = 0.0
        super().write(states)
        self._left -= 1
        if self._left == 0:
            raise KilledError


def rows_of(dtype: str, n: int = 6000) -> da.Array:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (12, 6))[rng.integers(0, 12, n)] * 0.7 + rng.integers(0, 77, (n, 6))
    return da.from_array(rows.astype(dtype), chunks=(1024, 6))


def attributes(estimators: Sequence[KMeans]) -> list[NDArray[Any]]:
    names = ("cluster_centers_", "labels_", "inertia_", "inertia_history_", "n_iter_")
    return [np.asarray(getattr(estimator, name)) for estimator in estimators for name in names]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"algorithm": "lloyd", "init": "random"}, {"spherical": True}, {"n_init": 2, "init": "k-means++"}],
    ids=["accelerated", "lloyd", "spherical", "restarts"],
)
@pytest.mark.parametrize("after", [1, 4])
def test_kmeans_resumes_bitwise(tmp_path: Path, dtype: str, settings: dict[str, Any], after: int) -> None:
    X = rows_of(dtype)
    weights = np.arange(len(X)) % 5.0
    passes: dict[str, int] = {}

    def fit(name: str, checkpoint: Checkpoint | None) -> list[KMeans]:
        estimators = [KMeans(k, random_state=3, tol=1e-9, **settings) for k in (5, 17)]
        passes[name] = 0

        def count(number: int, moving: int) -> None:
            passes[name] = number

        fit_together(estimators, X, weights, count, checkpoint)
        return estimators

    whole = fit("whole", None)
    with pytest.raises(KilledError):
        fit("first", KillingCheckpoint(tmp_path / "fit.npz", "this", after))
    resumed = fit("second", Checkpoint(tmp_path / "fit.npz", "this"))

    assert after + passes["second"] == passes["whole"] > after
    for a, b in zip(attributes(whole), attributes(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("reassignment_ratio", [0.01, 0.9])
def test_minibatch_resumes_bitwise(tmp_path: Path, dtype: str, reassignment_ratio: float) -> None:
    X = rows_of(dtype)

    def fit(checkpoint: Checkpoint | None) -> list[KMeans]:
        estimator = MiniBatchKMeans(
            9, batch_size=300, random_state=1, max_no_improvement=6, reassignment_ratio=reassignment_ratio
        )
        return [estimator.fit_from(checkpoint, X)]

    whole = fit(None)
    with pytest.raises(KilledError):
        fit(KillingCheckpoint(tmp_path / "fit.npz", "this", 3))
    resumed = fit(Checkpoint(tmp_path / "fit.npz", "this"))

    assert whole[0].n_steps_ > 4
    for a, b in zip([*attributes(whole), whole[0].counts_], [*attributes(resumed), resumed[0].counts_], strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_of_another_fit_is_ignored(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "fit.npz", "this").write([{"centres": np.arange(6.0).reshape(2, 3), "history": [1.5, 0.1]}])

    (state,) = Checkpoint(tmp_path / "fit.npz", "this").read() or []
    np.testing.assert_array_equal(state["centres"], [[0, 1, 2], [3, 4, 5]])
    assert state["history"] == [1.5, 0.1]
    assert Checkpoint(tmp_path / "fit.npz", "another").read() is None
    assert Checkpoint(tmp_path / "none.npz", "this").read() is None


@pytest.mark.parametrize("size", [0, 10, 200, -1])
def test_damaged_file_is_ignored(tmp_path: Path, size: int) -> None:
    path = tmp_path / "fit.npz"
    Checkpoint(path, "this").write([{"centres": np.ones((2, 3))}])
    path.write_bytes(path.read_bytes()[:size])

    assert Checkpoint(path, "this").read() is None


def test_write_too_soon_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    checkpoint = Checkpoint(path, "this")
    checkpoint.write([{"n": 0, "centres": np.zeros(10**6)}])
    checkpoint.write([{"n": 1, "centres": np.zeros(10**6)}])  # less than 20 times the duration of the first write later

    assert [state["n"] for state in Checkpoint(path, "this").read() or []] == [0]


def test_seconds_include_previous_drivers(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    before = Checkpoint(path, "this")
    before.write([{"n": 0}])

    after = Checkpoint(path, "this")
    after.read()

    assert after.seconds > 0
    assert Checkpoint(path, "this").seconds < after.seconds
