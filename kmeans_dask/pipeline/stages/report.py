"""Stage report: one HTML page, and its figures as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.console import progress
from kmeans_dask.report.contents import PageContents
from kmeans_dask.report.page import write_report
from kmeans_dask.storage.run_folder import run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client | None = None) -> dict[str, Any]:
    """Write the report of a run folder, with whatever results it holds.

    Parameters
    ----------
    config
        Checked config with the section ``report``; all stages before it are finished.
    client
        Not used: the driver itself makes the report, from tables and a few images.

    Returns
    -------
    dict
        ``pictures`` (number of PNG files) and ``bytes`` (size of the page).
    """
    folder = run_folder(config)
    contents = PageContents(config, folder)
    with progress("report", len(contents.parts) + 1, "parts") as advance:
        for add_part in contents.parts:
            add_part()
            advance(1)
        write_report(folder.report, config.name, contents.data, contents.tiles, contents.images)
        advance(1)
    return {"pictures": len(list(folder.sheets.glob("*.png"))), "bytes": folder.report.stat().st_size}
