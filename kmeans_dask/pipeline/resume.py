"""Decide which stages of a run are finished, and which have to run again.

`STAGES` is the only table of stages. A stage is skipped if the run record shows that it finished with the current
settings: the config values that it reads, and fingerprints of its other inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.console import say
from kmeans_dask.storage.object_store import reporting_unreachable
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


@dataclass(frozen=True)
class Stage:
    """What a stage needs, reads and writes."""

    needs: tuple[str, ...]
    """Stages whose outputs it reads; if one of them runs again, so does this stage."""
    reads: tuple[str, ...]
    """Sections of the config that determine its outputs."""
    writes: str
    """Glob pattern that matches a path in the run folder as soon as the stage has started."""
    paced_by: tuple[str, ...]
    """Sections of the config that determine the time per item; rates of earlier runs apply only if these are equal."""


STAGES = {
    "ingest": Stage((), ("input", "ingest"), "collection.zarr*", ("ingest",)),
    "fit": Stage(("ingest",), ("input", "ingest", "features", "fit"), "models", ("features", "fit")),
    "evaluate": Stage(
        ("fit",), ("input", "ingest", "features", "fit"), "metrics.json", ("features", "fit", "evaluate")
    ),
    "quantize": Stage((), ("input", "quantize"), "quantized.journal", ("quantize",)),
    "report": Stage(
        ("ingest", "evaluate", "quantize"),
        ("input", "ingest", "features", "fit", "quantize", "report"),
        "report.html",
        ("report",),
    ),
}
"""Stages in the order in which they run."""

_READ_THE_COLLECTION = ("fit", "evaluate", "report")

_CONTENT = "collection content"
"""Key of the settings that holds the fingerprint of the collection's content."""


def is_finished(stage: str, config: Config, record: RunRecord) -> bool:
    """Return whether a stage has finished with this config and its current inputs.

    Parameters
    ----------
    stage
        Name of the stage.
    config
        Checked config.
    record
        Record of the run.

    Returns
    -------
    bool

    Raises
    ------
    UserError
        The palette file cannot be read, or the file of features is missing.
    """
    return record.finished(stage, settings_of(stage, config, record)) is not None


def has_started(stage: str, folder: RunFolder) -> bool:
    """Return whether any output of a stage exists, finished or not."""
    with reporting_unreachable(folder.path):
        return any(folder.path.glob(STAGES[stage].writes))


def skip(stage: str, config: Config, record: RunRecord) -> bool:
    """Decide whether a stage is skipped; if its settings changed, log why, and forget it and what depends on it.

    Parameters
    ----------
    stage, config, record
        As for `is_finished`.

    Returns
    -------
    bool
        True: the stage is finished. False: it has to run.
    """
    settings = settings_of(stage, config, record)
    if record.finished(stage, settings) is not None:
        say(f"{stage}: already finished")
        return True
    changes = record.changes(stage, settings)
    if len(changes) == 1 and changes[0].startswith(_CONTENT):
        say(f"{stage}: the collection changed; running it again")
    elif changes:
        in_config = "; ".join(change for change in changes if not change.startswith(_CONTENT))
        say(f"{stage}: the config changed; running it again: {in_config}")
    if changes or stage != "ingest":  # ingest only adds to the collection; the stages that read it detect changes
        _forget(stage, record)
    return False


def _forget(stage: str, record: RunRecord) -> None:
    """Forget a stage and, recursively, every stage that reads its outputs."""
    record.forget(stage)
    for other, entry in STAGES.items():
        if stage in entry.needs:
            _forget(other, record)


def settings_of(stage: str, config: Config, record: RunRecord) -> dict[str, Any]:
    """Return what the outputs of a stage depend on.

    Parameters
    ----------
    stage, config, record
        As for `is_finished`.

    Returns
    -------
    dict
        Config values under dotted keys, and fingerprints of the collection, a palette file and a file of features.

    Raises
    ------
    UserError
        The palette file cannot be read, or the file of features is missing.
    """
    values = config.model_dump(mode="json")
    settings: dict[str, Any] = {"seed": values["seed"]}
    for section in STAGES[stage].reads:
        settings.update({f"{section}.{key}": value for key, value in (values[section] or {}).items()})
    ingested = record.stages.get("ingest")
    if ingested and stage in _READ_THE_COLLECTION:
        settings[_CONTENT] = ingested["summary"]["content"]
    if "quantize" in STAGES[stage].reads and config.quantize and config.quantize.palette not in ("image", "shared"):
        from kmeans_dask.colours.palette_files import palette_digest, read_palette  # importing this takes half a second

        settings["quantize.palette, its colours"] = palette_digest(read_palette(config.quantize.palette))
    if "features" in STAGES[stage].reads and config.features and config.features.path:
        from kmeans_dask.collection.embeddings import file_stamp  # imports zarr and pyarrow

        settings["features.path, its size and time"] = file_stamp(config.features.path)
    return settings
