"""Run independent tasks, and process their results one by one or combine them on the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dask.delayed import Delayed
from distributed import Client, as_completed

from kmeans_dask.reduction import reduce_tasks


def run_tasks(client: Client, tasks: Sequence[Delayed], on_result: Callable[[Any], None]) -> None:
    """Run independent tasks and call a function with each result as it arrives; results are not kept.

    Parameters
    ----------
    client
        From `connect`.
    tasks
        Tasks; inputs that they share are computed once.
    on_result
        Called with each result, in order of completion.

    Raises
    ------
    Exception
        The exception of a task. `watchdog.cluster_failure` identifies those caused by the loss of the cluster.
    """
    for future, result in as_completed(client.compute(list(tasks)), with_results=True):
        if future.cancelled():  # because the scheduler is lost, or by the watchdog
            raise result
        on_result(result)
        future.release()


def run_tree(
    client: Client, tasks: Sequence[Delayed], combine: Callable[[list[Any]], Any], on_done: Callable[[int], None]
) -> Any:
    """Run independent tasks, combine their results on the workers in a tree reduction, and return the combined result.

    Parameters
    ----------
    client
        From `connect`.
    tasks
        At least one task; they may share inputs.
    combine
        See `reduction.reduce_tasks`.
    on_done
        Called with the index of each task when it is done.

    Returns
    -------
    object
        Result of the root of the tree.

    Raises
    ------
    Exception
        The exception of a task.
    """
    *leaves, root = client.compute([*tasks, reduce_tasks(tasks, combine)])
    positions = {leaf.key: position for position, leaf in enumerate(leaves)}
    for leaf in as_completed(leaves):
        if leaf.status != "finished":  # the root raises the error
            break
        on_done(positions[leaf.key])
        leaf.release()
    return root.result()
