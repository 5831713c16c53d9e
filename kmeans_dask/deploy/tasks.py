"""Independent tasks are run, and their results handed over one by one or combined on the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dask.delayed import Delayed
from distributed import Client, as_completed

from kmeans_dask.reduction import reduce_tasks


def run_tasks(client: Client, tasks: Sequence[Delayed], on_result: Callable[[Any], None]) -> None:
    """Run independent tasks and hand over every result as it comes; none is kept.

    Parameters
    ----------
    client
        From `connect`.
    tasks
        What several of them are made from is computed once.
    on_result
        Called with every result, in the order of completion.

    Raises
    ------
    Exception
        What a task raised; `watchdog.lost` knows those of a lost cluster. Tasks that are finished keep what they wrote.
    """
    for future, result in as_completed(client.compute(list(tasks)), with_results=True):
        if future.cancelled():  # by a lost scheduler, or the watchdog
            raise result
        on_result(result)
        future.release()


def run_tree(
    client: Client, tasks: Sequence[Delayed], combine: Callable[[list[Any]], Any], on_done: Callable[[int], None]
) -> Any:
    """Run independent tasks and bring back what a tree makes of their results, which stay on the workers.

    Parameters
    ----------
    client
        From `connect`.
    tasks
        At least one. They may share inputs.
    combine
        As for `reduction.reduce_tasks`.
    on_done
        Called with the position of every task that is done.

    Returns
    -------
    object
        Of the root of the tree.

    Raises
    ------
    Exception
        What a task raised.
    """
    *leaves, root = client.compute([*tasks, reduce_tasks(tasks, combine)])
    positions = {leaf.key: position for position, leaf in enumerate(leaves)}
    for leaf in as_completed(leaves):
        if leaf.status != "finished":  # the root says why
            break
        on_done(positions[leaf.key])
        leaf.release()
    return root.result()
