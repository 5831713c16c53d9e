"""Run stages in order: skip what is finished, say what changed, record what is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from jobs.console import say, show_line
from jobs.listing import check_against_items, list_items_once
from kmeans_dask.config import Config
from kmeans_dask.errors import UserError
from kmeans_dask.runs import RunFolder, open_run

_NEEDS = {
    "ingest": (),
    "fit": ("ingest",),
    "evaluate": ("fit",),
    "quantize": (),
    "report": ("ingest", "evaluate", "quantize"),
}
"""Stages whose outputs a stage reads."""

_READS = {
    "ingest": ("input", "ingest"),
    "fit": ("input", "ingest", "features", "fit"),
    "evaluate": ("input", "ingest", "features", "fit"),
    "quantize": ("input", "quantize"),
    "report": ("input", "ingest", "features", "fit", "quantize", "report"),
}
"""Sections of the config that decide what a stage writes."""


def run_stages(config: Config, stages: Sequence[str], *, fresh: bool = False) -> None:
    """Run the stages that the config has, on the cluster that it names.

    Parameters
    ----------
    config
        Checked config.
    stages
        Names in the order in which they are run. A stage whose section is absent is not run.
    fresh
        Remove what an earlier run left.

    Raises
    ------
    UserError
        The input is wrong, or a stage is asked for that the config has no section for.
    JobError
        The work failed.
    """
    wanted = [stage for stage in stages if getattr(config, stage) is not None]
    if not wanted:
        raise UserError(f"the config has no section {stages[0]}, so there is nothing to do; add it, or use run")
    folder = open_run(config, fresh=fresh)
    try:
        list_items_once(config, folder)
        check_against_items(config, folder)
        todo = [stage for stage in wanted if not _skip(stage, config, folder)]
        on_workers = [stage for stage in todo if stage != "report"]
        if on_workers:
            # a second; what is wrong with the input has been said by now
            from kmeans_dask.cluster import connect, dashboard_link, recorded

            report = folder.path / "performance.html" if config.cluster.performance_report else None
            with connect(config.cluster) as client, recorded(report):
                if config.cluster.dashboard:
                    say(f"dashboard: {dashboard_link(client)}")
                for stage in on_workers:
                    _run_stage(stage, config, folder, client)
        if "report" in todo:
            _run_stage("report", config, folder, None)
    except KeyboardInterrupt:
        folder.set_state("interrupted")
        raise
    except Exception:
        folder.set_state("failed")
        raise
    folder.set_state("finished")
    show_line(f"report: {folder.report}" if "report" in wanted else f"results: {folder.path}")


def _skip(stage: str, config: Config, folder: RunFolder) -> bool:
    """Whether a stage is finished; if its settings changed, say so and forget it and what was made from it."""
    settings = settings_of(stage, config)
    if folder.finished(stage, settings) is not None:
        say(f"{stage}: finished before")
        return True
    changes = folder.changes(stage, settings)
    if changes:
        say(f"{stage}: the config changed, so it is done again: {'; '.join(changes)}")
    _forget(stage, folder)
    return False


def _run_stage(stage: str, config: Config, folder: RunFolder, client: Any) -> None:
    for need in _NEEDS[stage]:
        if getattr(config, need) is not None and folder.finished(need, settings_of(need, config)) is None:
            raise UserError(
                f"{stage} reads what {need} writes, which is not finished with this config: run {need} first"
            )
    start = time.monotonic()
    summary = import_module(f"jobs.{stage}").run(config, client)
    folder.finish(stage, settings_of(stage, config), summary, time.monotonic() - start)


def _forget(stage: str, folder: RunFolder) -> None:
    folder.forget(stage)
    for other, needs in _NEEDS.items():
        if stage in needs:
            _forget(other, folder)


def settings_of(stage: str, config: Config) -> dict[str, Any]:
    """Return the config values that a stage's outputs depend on, under dotted keys.

    Parameters
    ----------
    stage
        Its name.
    config
        Checked config.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        The palette file cannot be read, or the file of features is not there.
    """
    values = config.model_dump(mode="json")
    settings: dict[str, Any] = {"seed": values["seed"]}
    for section in _READS[stage]:
        settings.update({f"{section}.{key}": value for key, value in (values[section] or {}).items()})
    if "quantize" in _READS[stage] and config.quantize and config.quantize.palette not in ("image", "shared"):
        from kmeans_dask.palette_files import palette_digest, read_palette  # half a second that only this needs

        settings["quantize.palette, its colours"] = palette_digest(read_palette(config.quantize.palette))
    if "features" in _READS[stage] and config.features and config.features.path:
        from kmeans_dask.embeddings import file_stamp  # zarr and pyarrow

        settings["features.path, its size and time"] = file_stamp(config.features.path)
    return settings
