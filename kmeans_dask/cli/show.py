"""Command show: the state, stages and result tables of a run."""

from __future__ import annotations

from typing import Any

from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import show_line, show_table
from kmeans_dask.storage.object_store import location, readable
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


def show(path: str) -> None:
    """Print the state of a run, its finished stages and its result tables.

    Parameters
    ----------
    path
        Run folder.

    Raises
    ------
    UserError
        The folder is not a run.
    """
    folder = RunFolder(location(path))
    record = RunRecord.read(folder)
    if record.state is None:
        raise UserError(f"{path} has no run.json; give a run folder, for example runs/digits")
    name = folder.path.resolve().name
    show_line(f"{name}: {record.state}, {record.facts['changed']}")
    stages = {stage: entry for stage, entry in record.stages.items() if stage != "listing"}
    if stages:
        cells = [
            [stage, f"{entry['seconds']:,.1f}", entry["finished"], _words(entry["summary"])]
            for stage, entry in stages.items()
        ]
        show_table("finished stages", ["stage", "seconds", "finished", "summary"], cells)
    if "evaluate" in stages:
        from kmeans_dask.pipeline.tables import show_metrics

        show_metrics(name, read_json(folder.metrics))
        for choice in stages["evaluate"]["summary"].get("choice") or []:
            show_line(f"{choice['algorithm']}: {choice['reason']}")
    if "quantize" in stages:
        import pyarrow.parquet as pq

        from kmeans_dask.pipeline.tables import show_colours

        show_colours(name, pq.read_table(readable(folder.quantized)))
    if "report" in stages:
        show_line(f"report: {folder.report}")


def _words(summary: dict[str, Any]) -> str:
    """Format the counts of a summary in one line."""
    return ", ".join(f"{value:,} {name}" for name, value in summary.items() if isinstance(value, int))
