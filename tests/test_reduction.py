"""Block, combine, finalize: what is computed, in which order, in how many tasks."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback

from kmeans_dask.reduction import FAN_IN, broadcast, map_chunks, tree_reduce


@dataclass(frozen=True)
class Seen:
    """Chunks in the order in which they were combined."""

    rows: tuple[int, ...]


def see(block: np.ndarray, *others: np.ndarray | None, plus: int = 0) -> Seen:
    assert block.ndim == 2
    return Seen((int(block[:, 0].sum()) + plus,) if len(block) else ())


def combine(parts: list[Seen]) -> Seen:
    assert 1 <= len(parts) <= FAN_IN
    return Seen(sum((part.rows for part in parts), ()))


def numbers(n_chunks: int) -> da.Array:
    return da.from_array(np.arange(n_chunks)[:, None], chunks=(1, 1))


class Counter(Callback):
    """Counts the tasks that are really run."""

    def __init__(self) -> None:
        super().__init__(pretask=self._count)
        self.n_tasks = 0

    def _count(self, key: object, dsk: object, state: object) -> None:
        self.n_tasks += 1


@pytest.mark.parametrize("n_chunks", [1, 2, 7, 8, 9, 64, 65, 200])
def test_every_chunk_is_combined_once_and_in_order(n_chunks: int) -> None:
    result = tree_reduce(map_chunks(see, numbers(n_chunks)), combine)
    assert result.compute() == Seen(tuple(range(n_chunks)))


def test_chunks_of_any_size_and_constants_by_value_and_shared() -> None:
    X = da.from_array(np.ones((10, 2)), chunks=((3, 0, 1, 6), (2,)))
    assert tree_reduce(map_chunks(see, X), combine).compute() == Seen((3, 1, 6))
    assert tree_reduce(map_chunks(see, X, plus=5), combine).compute() == Seen((8, 6, 11))
    assert tree_reduce(map_chunks(see, X, plus=broadcast(7)), combine).compute() == Seen((10, 8, 13))


def weigh(block: np.ndarray, weights: np.ndarray | None, state: Seen | None) -> Seen:
    before = 0 if state is None else state.rows[0]
    return Seen((int(block.sum() if weights is None else weights @ block[:, 0]) + before,))


def test_aligned_arrays_none_and_earlier_objects_are_passed_along() -> None:
    X = da.from_array(np.arange(6).reshape(6, 1), chunks=(2, 1))
    weights = da.from_array(np.array([1, 0, 2, 0, 3, 0]), chunks=2)
    plain = map_chunks(weigh, X, None, None)
    assert tree_reduce(plain, combine).compute() == Seen((1, 5, 9))
    again = map_chunks(weigh, X, weights, plain)
    assert tree_reduce(again, combine).compute() == Seen((1 + 0, 5 + 4, 9 + 12))
    assert tree_reduce(map_chunks(weigh, X, weights, again.persist()), combine).compute() == Seen((1, 13, 33))


class Pixels:
    """An array that is read when it is sliced, as from a file."""

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, n: int) -> None:
        self.shape = (n, 3)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        return np.ones(self.shape, self.dtype)[index]


@pytest.mark.parametrize("n_chunks", [1, 8, 100, 1000])
def test_one_task_a_chunk_and_a_tree(n_chunks: int) -> None:
    X = da.from_array(Pixels(n_chunks), chunks=(1, 3)).astype(np.float32)
    result = tree_reduce(map_chunks(see, X, plus=broadcast(1)), combine)
    with Counter() as counter:
        assert result.compute(scheduler="synchronous").rows == (2,) * n_chunks
    # reading and conversion are fused with the block function
    assert n_chunks <= counter.n_tasks <= 1.25 * n_chunks + 5


def fail(block: np.ndarray) -> Seen:
    raise AssertionError("computed")


def test_building_computes_nothing() -> None:
    result = tree_reduce(map_chunks(fail, numbers(20)), combine)
    with pytest.raises(AssertionError, match="computed"):
        result.compute()


def test_floats_are_summed_by_a_fixed_tree() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1)) * 10.0 ** np.arange(-8, 8, 0.016)[:, None]
    X = da.from_array(values, chunks=(10, 1))
    results = {
        float(tree_reduce(map_chunks(np.sum, X), sum).compute(scheduler=scheduler, num_workers=workers))
        for scheduler, workers in [("synchronous", 1), ("threads", 2), ("threads", 7)]
        for _ in range(3)
    }
    assert len(results) == 1
