"""The run folder: everything one job writes, and what of it is finished.

A stage is finished when run.json says so, with the settings that it was finished with; files alone prove nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError, without_secrets
from kmeans_dask.storage.object_store import location, make_folder, reached
from kmeans_dask.storage.publish import publish, read_json, remove, remove_partials, write_json

_PACKAGES = ("kmeans-dask", "dask", "distributed", "dask-ml", "numpy", "pillow", "scikit-learn", "zarr")

_OF_DRIVERS = ("drivers", "logs")
"""Folders that a driver writes to before there is a run.json, and that a fresh run keeps: through them it is held."""


_OUTPUTS = {
    "ingest": "collection.zarr*",
    "fit": "models",
    "evaluate": "metrics.json",
    "quantize": "quantized.journal",
    "report": "report.html",
}
"""What there is of a stage that has been asked for before, finished or not."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder, and the record of its stages.

    Attributes
    ----------
    path
        The folder, of this machine, a shared file system or an object store: what `location` makes.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """Items as they were listed, one row an item."""
        return self.path / "manifest.parquet"

    @property
    def collection(self) -> Path:
        """Images and labels as a zarr group."""
        return self.path / "collection.zarr"

    @property
    def features(self) -> Path:
        """What was fitted of the features, and their rows; not there for raw pixels."""
        return self.path / "features"

    @property
    def clusters(self) -> Path:
        """Cluster, predicted label and distance of every item."""
        return self.path / "clusters.parquet"

    @property
    def cluster_facts(self) -> Path:
        """One row a model and cluster; a CSV file of the same name lies beside it."""
        return self.path / "cluster_facts.parquet"

    @property
    def confusion(self) -> Path:
        """Items of each label by the label of their cluster."""
        return self.path / "confusion.parquet"

    @property
    def label_issues(self) -> Path:
        """Items whose label disagrees with a pure cluster."""
        return self.path / "label_issues.csv"

    @property
    def outliers(self) -> Path:
        """Items far from their centre."""
        return self.path / "outliers.csv"

    @property
    def duplicates(self) -> Path:
        """Items that are the same, or nearly the same."""
        return self.path / "duplicates.csv"

    @property
    def metrics(self) -> Path:
        """One row a model."""
        return self.path / "metrics.json"

    @property
    def moves(self) -> Path:
        """How the clusters moved when the models were last updated."""
        return self.path / "moved.csv"

    @property
    def items(self) -> Path:
        """Path, status and error of every item."""
        return self.path / "items.csv"

    @property
    def quantized(self) -> Path:
        """Table of the quantized images."""
        return self.path / "quantized.parquet"

    @property
    def sheets(self) -> Path:
        """Pictures of the report as files."""
        return self.path / "sheets"

    @property
    def report(self) -> Path:
        """One self-contained page."""
        return self.path / "report.html"

    @property
    def drivers(self) -> Path:
        """Who works on the run, and who has; `kmeans_dask.lock` says how."""
        return self.path / "drivers"

    @property
    def cancel_request(self) -> Path:
        """Names the driver that is asked to end."""
        return self.drivers / "cancel.json"

    def log(self, number: int) -> Path:
        """Log of a driver."""
        return self.path / "logs" / f"{number}.jsonl"

    def model(self, algorithm: str, k: int) -> Path:
        """Folder of one fitted model."""
        return self.path / "models" / algorithm / f"k={k}.zarr"

    def unfinished_fit(self, algorithm: str) -> Path:
        """State of a fit that has not ended."""
        return self.path / "models" / algorithm / "unfinished.npz"

    def has_begun(self, stage: str) -> bool:
        """Whether anything of a stage is there, finished or not."""
        with reached(self.path):
            return any(self.path.glob(_OUTPUTS[stage]))

    def read(self) -> dict[str, Any]:
        """Return the content of run.json; empty stages if there is none yet.

        Raises
        ------
        UserError
            The file is not the record of a run, or the object store cannot be reached.
        """
        path = self.path / "run.json"
        with reached(self.path):
            try:
                record = read_json(path)
                return {**record, "stages": dict(record["stages"])}
            except FileNotFoundError:
                return {"stages": {}}
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is not the record of a run; remove it, or run with --fresh") from None

    def finished(self, stage: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of a stage that was finished with these settings, else None."""
        entry = self.read()["stages"].get(stage)
        return entry["summary"] if entry and entry["settings"] == _plain(settings) else None

    def changes(self, stage: str, settings: Mapping[str, Any]) -> list[str]:
        """Say what differs from the settings that a stage was finished with; nothing if it was not finished."""
        entry = self.read()["stages"].get(stage)
        if not entry:
            return []
        old, new = entry["settings"], _plain(settings)
        return [
            without_secrets(f"{key} was {old.get(key)!r}, is now {new.get(key)!r}")
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]

    def finish(
        self, stage: str, settings: Mapping[str, Any], summary: Mapping[str, Any], seconds: float, **facts: Any
    ) -> None:
        """Record that a stage is finished; called last, when everything it writes is published.

        Parameters
        ----------
        stage
            Its name.
        settings
            All config values that its outputs depend on.
        summary
            What is told about it later.
        seconds
            Wall time.
        **facts
            What else is recorded.
        """
        record = self.read()
        record["stages"][stage] = _plain(facts) | {
            "settings": _plain(settings),
            "summary": _plain(summary),
            "seconds": round(seconds, 3),
            "finished": _now(),
        }
        write_json(self.path / "run.json", record)

    def forget(self, stage: str) -> None:
        """Take back that a stage is finished, before its outputs are replaced."""
        record = self.read()
        if record["stages"].pop(stage, None) is not None:
            write_json(self.path / "run.json", record)

    def set_state(self, state: str, **facts: Any) -> None:
        """Record the state of the run: running, finished, failed, interrupted or cancelled."""
        write_json(self.path / "run.json", {**self.read(), **_plain(facts), "state": state, "changed": _now()})


def is_run(path: str) -> bool:
    """Whether a run folder is to be seen here."""
    folder = location(path)
    with reached(folder):
        return (folder / "run.json").exists()


def run_folder(config: Config) -> RunFolder:
    """Return the run folder of a config; it need not exist."""
    return RunFolder(location(config.output) / config.name)


def make_run_folder(config: Config) -> RunFolder:
    """Create the run folder of a config, if there is none; nothing is written into it.

    Parameters
    ----------
    config
        Its output and name are used.

    Returns
    -------
    RunFolder

    Raises
    ------
    UserError
        The folder cannot be written, or is not a run folder.
    """
    run = run_folder(config)
    try:
        with reached(run.path):
            _check_ours(run.path)
            make_folder(run.path)
    except OSError as error:
        raise _unwritable(run.path, error) from None
    return run


def open_run(config: Config, *, fresh: bool = False, **facts: Any) -> RunFolder:
    """Create or reopen the run folder of a config.

    Parameters
    ----------
    config
        Its output, name and content are used.
    fresh
        Remove what an earlier run left.
    **facts
        What else is recorded of this start.

    Returns
    -------
    RunFolder

    Raises
    ------
    UserError
        The folder cannot be written, or is not a run folder.
    """
    run = make_run_folder(config)
    try:
        with reached(run.path):
            _begin(run, config, fresh, facts)
    except OSError as error:
        raise _unwritable(run.path, error) from None
    return run


def _begin(run: RunFolder, config: Config, fresh: bool, facts: Mapping[str, Any]) -> None:
    if fresh:
        _empty(run.path)
    elif run.read().get("state") in ("running", "interrupted", "cancelled"):  # a killed one never says anything else
        remove_partials(run.path, leave=_OF_DRIVERS)
    run.set_state(  # before any other file: run.json is what tells a run folder
        "running",
        seed=config.seed,
        host=platform.node(),
        python=platform.python_version(),
        versions={name: version(name) for name in _PACKAGES},
        started=_now(),
        **facts,
    )
    with publish(run.path / "config.yaml") as partial:
        text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
        partial.write_text(text, encoding="utf-8")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write the run folder {path}: {error.strerror}; set output to a folder you may write to")


def _check_ours(path: Path) -> None:
    """Refuse a folder that holds something else: a run would write into it, and a fresh one empty it."""
    if not path.exists() or (path / "run.json").exists():
        return
    if any(not (entry.name in _OF_DRIVERS or entry.name.endswith(".partial")) for entry in path.iterdir()):
        raise UserError(f"{path} is no run folder (it has no run.json); remove it yourself or change name")


def _empty(path: Path) -> None:
    """Remove what an earlier run left; first of all its record, so that nothing counts as finished meanwhile."""
    write_json(path / "run.json", {"stages": {}})
    for entry in list(path.iterdir()):
        if entry.name not in ("run.json", *_OF_DRIVERS):
            remove(entry)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON."""
    return json.loads(json.dumps(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
