"""Reductions over the chunks of a Dask array.

`map_chunks` makes one Python object from every block, and `tree_reduce` combines the objects. Both only build a graph.
If the array is read lazily, reading is fused with the block function: one task per chunk, plus the tree.
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
"""Number of objects that one task of the tree combines; the tree adds one task per seven chunks."""


def map_chunks(function: Callable[..., Any], X: da.Array, *others: da.Array | None, **constants: Any) -> da.Array:
    """Apply a function that returns any object to every block of X.

    Parameters
    ----------
    function
        Called as ``function(block, *other_blocks, **constants)``.
    X : (n, n_features) da.Array
        A single chunk along the features.
    others
        Row-aligned arrays or results of an earlier `map_chunks`, with as many chunks along the first axis as X. None
        is passed on as None.
    constants
        Passed to the function. Wrap anything larger than a few numbers in `broadcast`: it is then sent once to each
        worker, not with every task.

    Returns
    -------
    (n_chunks, 1) da.Array of object
        Its blocks are the objects themselves.
    """
    # keep the second axis: Dask does not fuse reading with a block function that drops an axis
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
    """Combine the objects of all chunks in a tree.

    Parameters
    ----------
    objects
        Result of `map_chunks`.
    combine
        Combines a list of up to `FAN_IN` objects, in chunk order, into one. The tree depends only on the number of
        chunks, so floating-point sums do not depend on the order in which workers finish.

    Returns
    -------
    (1,) da.Array of object
        ``compute()`` returns the object itself, which must not be a list or tuple.
    """
    name = f"tree-{uuid.uuid4().hex}"
    layer: dict[Any, Any] = {}
    level: list[tuple[Any, ...]] = [(objects.name, i, 0) for i in range(objects.numblocks[0])]
    while len(level) > 1 or not layer:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = [(name, 0)] if len(groups) == 1 else [(f"{name}-{len(layer)}", i) for i in range(len(groups))]
        layer.update({key: (combine, group) for key, group in zip(level, groups, strict=True)})
    # one layer for the whole tree: with one layer per task, merging them took 0.3 s for 1,000 chunks
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[objects])
    return da.Array(graph, name, chunks=((1,),), dtype=object, meta=np.empty(0, object))


def reduce_tasks(tasks: Sequence[Delayed], combine: Callable[[list[Any]], Any]) -> Delayed:
    """Combine the results of tasks in a tree.

    Parameters
    ----------
    tasks
        At least one task.
    combine
        Combines a list of up to `FAN_IN` results, in task order, into one.

    Returns
    -------
    Delayed
        The combined result.
    """
    join = dask.delayed(combine, pure=False)
    level = [join([task]) for task in tasks] if len(tasks) == 1 else list(tasks)
    while len(level) > 1:
        level = [join(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0]


def task_key(name: str, start: int, stop: int) -> str:
    """Make a unique task key that contains a range of items, so that messages can name it."""
    return f"{name}-{start}-{stop}-{uuid.uuid4().hex}"


def broadcast(value: Any) -> Delayed:
    """Put a value into the graph once, shared by all tasks that use it."""
    return dask.delayed(value, pure=False, traverse=False)
