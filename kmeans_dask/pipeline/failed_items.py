"""The one rule for items that failed: they are reported, and above `input.max_failed` they fail the job."""

from __future__ import annotations

from pathlib import Path

from kmeans_dask.errors import JobError
from kmeans_dask.pipeline.console import say


def report_failed(
    stage: str, verb: str, n_failed: int, n_items: int, *, max_failed: float, table: Path, retry: Path | None = None
) -> None:
    """Log how many items failed, or fail the job if there are too many.

    Parameters
    ----------
    stage
        Name of the stage, with which the log line begins.
    verb
        What could not be done, as a participle: ``read`` or ``quantized``.
    n_failed, n_items
        Numbers of items.
    max_failed
        Largest fraction of failed items (0-1) that the job tolerates.
    table
        File with the reason for every failed item.
    retry
        Run folder that `kmeans-dask retry` is suggested for; None: no suggestion.

    Raises
    ------
    JobError
        More than `max_failed` of the items failed, or all of them.
    """
    if not n_failed:
        return
    failed = f"{n_failed:,} of {n_items:,} items could not be {verb}"
    advice = f"the reasons are in {table}" + (f"; kmeans-dask retry {retry} tries them again" if retry else "")
    if n_failed == n_items or n_failed > max_failed * n_items:
        raise JobError(f"{failed}, more than input.max_failed={max_failed:g} allows; {advice}")
    say(f"{stage}: {failed}; {advice}")
