"""Two clusterings of the same items compared, for example of two seeds, algorithms or numbers of clusters."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from kmeans_dask.labels import one_to_one
from kmeans_dask.metrics import agreement, contingency_block, share_right


@dataclass(frozen=True)
class Comparison:
    """How well two clusterings agree; nothing here depends on the numbers that the clusters have.

    Attributes
    ----------
    items : int
        Items that both have, which is what the scores are of.
    only_first, only_second : int
        Items that one of them lacks.
    adjusted_rand, adjusted_mutual_information, v_measure : float
        As in `metrics.agreement`; 1: the same clusters.
    one_to_one : float
        Share of the items (0-1) in the same cluster, when each cluster has at most one counterpart in the other
        clustering, chosen such that the share is largest.
    """

    items: int
    only_first: int
    only_second: int
    adjusted_rand: float
    adjusted_mutual_information: float
    v_measure: float
    one_to_one: float


def compare_clusters(first: pa.Table, second: pa.Table) -> Comparison:
    """Compare the clusters of two tables.

    Parameters
    ----------
    first, second
        Columns ``path``, ``split`` and ``cluster``, null where an item has none: such items do not count. Items are the
        same if their path is; where a table has a path twice, as folders of fitted and of held-out items may, if path
        and split are.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        They have no item in common, or a table has two items of the same path and split.
    """
    first, second = (table.filter(pc.is_valid(table["cluster"])) for table in (first, second))
    keys = ["path"] if all(map(_paths_are_unique, (first, second))) else ["path", "split"]
    both = first.select([*keys, "cluster"]).join(
        second.select([*keys, "cluster"]), keys, join_type="inner", right_suffix="_of_second"
    )
    if not len(both):
        raise ValueError("they have no item in common")
    ours, theirs = (both[name].to_numpy() for name in ("cluster", "cluster_of_second"))
    table = contingency_block(ours, theirs, int(ours.max()) + 1, int(theirs.max()) + 1)
    scores, matched = agreement(table), share_right(table, one_to_one(table))
    assert matched is not None  # only of no item
    return Comparison(
        len(both), len(first) - len(both), len(second) - len(both),
        scores["adjusted_rand"], scores["adjusted_mutual_information"], scores["v_measure"], matched,
    )  # fmt: skip


def _paths_are_unique(table: pa.Table) -> bool:
    if pc.count_distinct(table["path"]).as_py() == len(table):
        return True
    items = table.group_by(["path", "split"]).aggregate([([], "count_all")])
    twice = items.filter(pc.greater(items["count_all"], 1))
    if len(twice):
        raise ValueError(f"one of them has two items {twice['path'][0].as_py()!r}, which cannot be told apart")
    return False
