"""A reduction over the chunks of a Dask array: block, combine, finalize.

``map_chunks`` makes one Python object of every block, ``tree_reduce`` combines the objects. Both only build a graph.
Where the array is read lazily, reading is fused with the block function: one task a chunk, and the tree.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

FAN_IN = 8
"""Objects that one task of the tree combines: the tree adds 1/7 task a chunk."""


def map_chunks(function: Callable[..., Any], X: da.Array, *others: da.Array | None, **constants: Any) -> da.Array:
    """Apply a function to every block of X and keep what it returns, whatever that is.

    Parameters
    ----------
    function
        Called as ``function(block, *other_blocks, **constants)``.
    X : (n, n_features) da.Array
        One chunk wide.
    others
        Arrays with as many chunks along the first axis as X, or None, which is passed on: row-aligned arrays,
        or objects made by an earlier `map_chunks`.
    constants
        Passed on. A value that is the same for all chunks and larger than a few numbers should be a ``Delayed``: it
        then travels once to each worker, not in every task.

    Returns
    -------
    da.Array
        (n_chunks, 1) of dtype object; its blocks are the objects themselves.
    """
    # the second axis is kept: Dask does not fuse reading with a block function that drops an axis
    arguments: list[Any] = [X, "ij"]
    for other in others:
        arguments += [other, "ij"[: other.ndim] if other is not None else None]
    return da.blockwise(
        _call,
        "ij",
        *arguments,
        function=function,
        align_arrays=False,
        adjust_chunks={"i": 1, "j": 1},
        dtype=object,
        meta=np.empty((0, 0), object),
        **constants,
    )


def _call(*blocks: Any, function: Callable[..., Any], **constants: Any) -> Any:
    return function(*blocks, **constants)


def tree_reduce(objects: da.Array, combine: Callable[[list[Any]], Any]) -> da.Array:
    """Combine the objects of all chunks by a tree.

    Parameters
    ----------
    objects
        Result of `map_chunks`.
    combine
        Makes one object of a list of up to `FAN_IN` objects in the order of the chunks. The tree depends only
        on the number of chunks, so that sums of floats do not depend on which worker was first.

    Returns
    -------
    da.Array
        (1,) of dtype object; ``compute()`` returns the object itself, which must not be a list or tuple.
    """
    name = f"tree-{uuid.uuid4().hex}"
    layer: dict[Any, Any] = {}
    level: list[tuple[Any, ...]] = [(objects.name, i, 0) for i in range(objects.numblocks[0])]
    while len(level) > 1 or not layer:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = [(name, 0)] if len(groups) == 1 else [(f"{name}-{len(layer)}", i) for i in range(len(groups))]
        layer.update({key: (combine, group) for key, group in zip(level, groups, strict=True)})
    # one layer for the whole tree: merging a layer a task took 0.3 s for 1,000 chunks
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[objects])
    return da.Array(graph, name, chunks=((1,),), dtype=object, meta=np.empty(0, object))


def reduce_tasks(tasks: Sequence[Delayed], combine: Callable[[list[Any]], Any]) -> Delayed:
    """Combine what tasks return by a tree.

    Parameters
    ----------
    tasks
        At least one.
    combine
        Makes one object of a list of up to `FAN_IN` objects in the order of the tasks.

    Returns
    -------
    Delayed
        The one object.
    """
    join = dask.delayed(combine, pure=False)
    level = [join([task]) for task in tasks] if len(tasks) == 1 else list(tasks)
    while len(level) > 1:
        level = [join(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0]


def task_key(name: str, start: int, stop: int) -> str:
    """Name a task by the items that it does, for messages; no two are the same."""
    return f"{name}-{start}-{stop}-{uuid.uuid4().hex}"


def broadcast(value: Any) -> Delayed:
    """Put a value into the graph once, for all tasks that take it."""
    return dask.delayed(value, pure=False, traverse=False)
