"""Reductions: results, order of combination, number of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback

from kmeans_dask.reduction import FAN_IN, broadcast, map_chunks, tree_reduce


@dataclass(frozen=True)
class Values:
    """One value per chunk, in the order of combination."""

    values: tuple[int, ...]


def value_of(block: np.ndarray, *others: np.ndarray | None, plus: int = 0) -> Values:
    assert block.ndim == 2
    return Values((int(block[:, 0].sum()) + plus,) if len(block) else ())


def combine(parts: list[Values]) -> Values:
    assert 1 <= len(parts) <= FAN_IN
    return Values(sum((part.values for part in parts), ()))


def one_row_per_chunk(n_chunks: int) -> da.Array:
    return da.from_array(np.arange(n_chunks)[:, None], chunks=(1, 1))


class Counter(Callback):
    """Counts the tasks that are run."""

    def __init__(self) -> None:
        super().__init__(pretask=self._count)
        self.n_tasks = 0

    def _count(self, key: object, dsk: object, state: object) -> None:
        self.n_tasks += 1


@pytest.mark.parametrize("n_chunks", [1, 2, 7, 8, 9, 64, 65, 200])
def test_every_chunk_is_combined_once_in_order(n_chunks: int) -> None:
    result = tree_reduce(map_chunks(value_of, one_row_per_chunk(n_chunks)), combine)
    assert result.compute() == Values(tuple(range(n_chunks)))


def test_chunk_sizes_and_constants() -> None:
    X = da.from_array(np.ones((10, 2)), chunks=((3, 0, 1, 6), (2,)))
    assert tree_reduce(map_chunks(value_of, X), combine).compute() == Values((3, 1, 6))
    assert tree_reduce(map_chunks(value_of, X, plus=5), combine).compute() == Values((8, 6, 11))
    assert tree_reduce(map_chunks(value_of, X, plus=broadcast(7)), combine).compute() == Values((10, 8, 13))


def add_state(block: np.ndarray, weights: np.ndarray | None, state: Values | None) -> Values:
    previous = 0 if state is None else state.values[0]
    return Values((int(block.sum() if weights is None else weights @ block[:, 0]) + previous,))


def test_aligned_arrays_none_and_earlier_results_are_passed() -> None:
    X = da.from_array(np.arange(6).reshape(6, 1), chunks=(2, 1))
    weights = da.from_array(np.array([1, 0, 2, 0, 3, 0]), chunks=2)
    plain = map_chunks(add_state, X, None, None)
    assert tree_reduce(plain, combine).compute() == Values((1, 5, 9))
    weighted = map_chunks(add_state, X, weights, plain)
    assert tree_reduce(weighted, combine).compute() == Values((1 + 0, 5 + 4, 9 + 12))
    assert tree_reduce(map_chunks(add_state, X, weights, weighted.persist()), combine).compute() == Values((1, 13, 33))


class LazyRows:
    """An array that is read when sliced, as from a file."""

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, n: int) -> None:
        self.shape = (n, 3)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        return np.ones(self.shape, self.dtype)[index]


@pytest.mark.parametrize("n_chunks", [1, 8, 100, 1000])
def test_one_task_per_chunk_plus_the_tree(n_chunks: int) -> None:
    X = da.from_array(LazyRows(n_chunks), chunks=(1, 3)).astype(np.float32)
    result = tree_reduce(map_chunks(value_of, X, plus=broadcast(1)), combine)
    with Counter() as counter:
        assert result.compute(scheduler="synchronous").values == (2,) * n_chunks
    # reading and conversion are fused with the block function
    assert n_chunks <= counter.n_tasks <= 1.25 * n_chunks + 5


def fail(block: np.ndarray) -> Values:
    raise AssertionError("computed")


def test_graph_construction_is_lazy() -> None:
    result = tree_reduce(map_chunks(fail, one_row_per_chunk(20)), combine)
    with pytest.raises(AssertionError, match="computed"):
        result.compute()


def test_float_sums_do_not_depend_on_the_scheduler() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1)) * 10.0 ** np.arange(-8, 8, 0.016)[:, None]
    X = da.from_array(values, chunks=(10, 1))
    results = {
        float(tree_reduce(map_chunks(np.sum, X), sum).compute(scheduler=scheduler, num_workers=workers))
        for scheduler, workers in [("synchronous", 1), ("threads", 2), ("threads", 7)]
        for _ in range(3)
    }
    assert len(results) == 1
