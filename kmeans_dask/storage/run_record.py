"""The record of a run, run.json: its state, and the stages that are finished.

A stage is finished when the record says so, with the settings that it was finished with; files alone prove nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError, without_secrets
from kmeans_dask.storage.object_store import reporting_unreachable
from kmeans_dask.storage.publish import publish, read_json, remove, remove_partials, write_json
from kmeans_dask.storage.run_folder import DRIVER_FOLDERS, RunFolder, make_run_folder, unwritable

_PACKAGES = ("kmeans-dask", "dask", "distributed", "dask-ml", "numpy", "pillow", "scikit-learn", "zarr")


class RunRecord:
    """The content of run.json, which is read once and written after every change.

    Only the driver that holds the run (`storage.lock`) changes its record, so the copy in memory stays true.

    Attributes
    ----------
    folder : RunFolder
        Folder of the run.
    """

    def __init__(self, folder: RunFolder, content: dict[str, Any]) -> None:
        self.folder = folder
        self._content = content

    @classmethod
    def read(cls, folder: RunFolder) -> RunRecord:
        """Read run.json; if it does not exist, the record has no state and no stages.

        Raises
        ------
        UserError
            The file is not the record of a run, or the object store cannot be reached.
        """
        path = folder.path / "run.json"
        with reporting_unreachable(folder.path):
            try:
                content = read_json(path)
                return cls(folder, {**content, "stages": dict(content["stages"])})
            except FileNotFoundError:
                return cls(folder, {"stages": {}})
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is not the record of a run; remove it, or run with --fresh") from None

    @property
    def facts(self) -> Mapping[str, Any]:
        """State, time of the last change, seed, versions, host, ...: everything but the stages."""
        return {name: value for name, value in self._content.items() if name != "stages"}

    @property
    def state(self) -> str | None:
        """``running``, ``finished``, ``failed``, ``interrupted`` or ``cancelled``; None before the first start."""
        return self._content.get("state")

    @property
    def stages(self) -> Mapping[str, dict[str, Any]]:
        """Finished stages by name, each with ``settings``, ``summary``, ``seconds``, ``finished`` and other facts."""
        return self._content["stages"]

    def finished(self, stage: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of a stage that was finished with these settings, else None."""
        entry = self.stages.get(stage)
        return entry["summary"] if entry and entry["settings"] == _plain(settings) else None

    def changes(self, stage: str, settings: Mapping[str, Any]) -> list[str]:
        """Describe how settings differ from those that a stage was finished with; empty if it was not finished."""
        entry = self.stages.get(stage)
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
        """Record that a stage is finished; called last, when everything that it writes is published.

        Parameters
        ----------
        stage
            Name of the stage.
        settings
            All config values that its outputs depend on.
        summary
            Counts that `show` and the report print.
        seconds
            Wall time.
        **facts
            Further values to record.
        """
        self._content["stages"][stage] = _plain(facts) | {
            "settings": _plain(settings),
            "summary": _plain(summary),
            "seconds": round(seconds, 3),
            "finished": _now(),
        }
        self._write()

    def forget(self, stage: str) -> None:
        """Remove a stage from the record, before its outputs are replaced."""
        if self._content["stages"].pop(stage, None) is not None:
            self._write()

    def set_state(self, state: str, **facts: Any) -> None:
        """Record the state of the run: running, finished, failed, interrupted or cancelled."""
        self._content |= {**_plain(facts), "state": state, "changed": _now()}
        self._write()

    def _write(self) -> None:
        write_json(self.folder.path / "run.json", self._content)


def open_run(config: Config, *, fresh: bool = False, **facts: Any) -> RunRecord:
    """Create or reopen the run folder of a config.

    Parameters
    ----------
    config
        The config; its output and name determine the folder.
    fresh
        Whether to remove everything that an earlier run wrote.
    **facts
        Further values to record in run.json.

    Returns
    -------
    RunRecord

    Raises
    ------
    UserError
        The folder cannot be written, or is not a run folder.
    """
    folder = make_run_folder(config)
    try:
        with reporting_unreachable(folder.path):
            return _start(folder, config, fresh, facts)
    except OSError as error:
        raise unwritable(folder.path, error) from None


def _start(folder: RunFolder, config: Config, fresh: bool, facts: Mapping[str, Any]) -> RunRecord:
    if fresh:
        _empty(folder.path)
    record = RunRecord.read(folder)
    if record.state in ("running", "interrupted", "cancelled"):  # a killed driver leaves "running"
        remove_partials(folder.path, leave=DRIVER_FOLDERS)
    record.set_state(  # before any other file: run.json is what makes a folder a run folder
        "running",
        seed=config.seed,
        host=platform.node(),
        python=platform.python_version(),
        versions={name: version(name) for name in _PACKAGES},
        started=_now(),
        **facts,
    )
    with publish(folder.path / "config.yaml") as partial:
        text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
        partial.write_text(text, encoding="utf-8")
    return record


def _empty(path: Path) -> None:
    """Remove everything that an earlier run wrote, its record first, so that nothing counts as finished meanwhile."""
    write_json(path / "run.json", {"stages": {}})
    for entry in list(path.iterdir()):
        if entry.name not in ("run.json", *DRIVER_FOLDERS):
            remove(entry)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a mapping to what it will be when it is read back from JSON."""
    return json.loads(json.dumps(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
