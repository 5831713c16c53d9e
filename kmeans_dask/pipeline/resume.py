"""TODO kmeans_dask.pipeline.resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmeans_dask.config.sections import Config

from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.console import say
from kmeans_dask.storage.run_folder import RunFolder

STAGES = ("ingest", "fit", "evaluate", "quantize", "report")


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


_CONTENT = "collection content"
"""Key of the settings of what is made from the collection: the hash of its content."""


def _skip(stage: str, config: Config, folder: RunFolder) -> bool:
    """Whether a stage is finished; if its settings changed, say so and forget it and what was made from it."""
    settings = settings_of(stage, config, folder)
    if folder.finished(stage, settings) is not None:
        say(f"{stage}: finished before")
        return True
    changes = folder.changes(stage, settings)
    if len(changes) == 1 and changes[0].startswith(_CONTENT):
        say(f"{stage}: the collection changed, so it is done again")
    elif changes:
        told = "; ".join(change for change in changes if not change.startswith(_CONTENT))
        say(f"{stage}: the config changed, so it is done again: {told}")
    if changes or stage != "ingest":  # what is made from a collection sees for itself whether that has changed
        _forget(stage, folder)
    return False


def _forget(stage: str, folder: RunFolder) -> None:
    folder.forget(stage)
    for other, needs in _NEEDS.items():
        if stage in needs:
            _forget(other, folder)


def settings_of(stage: str, config: Config, folder: RunFolder) -> dict[str, Any]:
    """Return the config values that a stage's outputs depend on, under dotted keys, and the state of the collection.

    Parameters
    ----------
    stage
        Its name.
    config
        Checked config.
    folder
        Its run folder.

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
    ingested = folder.read()["stages"].get("ingest")
    if ingested and stage in ("fit", "evaluate", "report"):
        settings[_CONTENT] = ingested["summary"]["content"]
    if "quantize" in _READS[stage] and config.quantize and config.quantize.palette not in ("image", "shared"):
        from kmeans_dask.colours.palette_files import palette_digest, read_palette  # half a second that only this needs

        settings["quantize.palette, its colours"] = palette_digest(read_palette(config.quantize.palette))
    if "features" in _READS[stage] and config.features and config.features.path:
        from kmeans_dask.collection.embeddings import file_stamp  # zarr and pyarrow

        settings["features.path, its size and time"] = file_stamp(config.features.path)
    return settings
