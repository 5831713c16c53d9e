"""The run folder: paths of everything that one job writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.storage.object_store import location, make_folder, reporting_unreachable

DRIVER_FOLDERS = ("drivers", "logs")
"""Folders that a driver writes to before run.json exists, and that a fresh run keeps: they hold its lock."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder.

    Attributes
    ----------
    path : Path
        The folder: local, on a shared file system, or in an object store (see `object_store.location`).
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """Items as they were listed, one row per item."""
        return self.path / "manifest.parquet"

    @property
    def collection(self) -> Path:
        """Images and labels as a zarr group."""
        return self.path / "collection.zarr"

    @property
    def features(self) -> Path:
        """Extracted features and the fitted transformation; absent for raw pixels."""
        return self.path / "features"

    @property
    def clusters(self) -> Path:
        """Cluster, predicted label and distance of every item."""
        return self.path / "clusters.parquet"

    @property
    def cluster_facts(self) -> Path:
        """One row per model and cluster; a CSV file of the same name is next to it."""
        return self.path / "cluster_facts.parquet"

    @property
    def confusion(self) -> Path:
        """Confusion table: item counts by label and predicted label."""
        return self.path / "confusion.parquet"

    @property
    def label_issues(self) -> Path:
        """Items whose label disagrees with a nearly pure cluster."""
        return self.path / "label_issues.csv"

    @property
    def outliers(self) -> Path:
        """Items far from their centre."""
        return self.path / "outliers.csv"

    @property
    def duplicates(self) -> Path:
        """Exact and near duplicates."""
        return self.path / "duplicates.csv"

    @property
    def metrics(self) -> Path:
        """Metrics, one row per model."""
        return self.path / "metrics.json"

    @property
    def moves(self) -> Path:
        """How far clusters moved in the last update of the models."""
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
        """Pictures of the report as image files."""
        return self.path / "sheets"

    @property
    def report(self) -> Path:
        """Self-contained HTML report."""
        return self.path / "report.html"

    @property
    def drivers(self) -> Path:
        """Records of the drivers that have worked on the run (see `storage.lock`)."""
        return self.path / "drivers"

    @property
    def cancel_request(self) -> Path:
        """Request to cancel: the number of the driver that is to stop."""
        return self.drivers / "cancel.json"

    def log(self, number: int) -> Path:
        """JSON log of a driver, by its number."""
        return self.path / "logs" / f"{number}.jsonl"

    def model(self, algorithm: str, k: int) -> Path:
        """Folder of one fitted model."""
        return self.path / "models" / algorithm / f"k={k}.zarr"

    def unfinished_fit(self, algorithm: str) -> Path:
        """Checkpoint of an unfinished fit."""
        return self.path / "models" / algorithm / "unfinished.npz"


def is_run(path: str) -> bool:
    """Whether a path is a run folder that is visible from this machine."""
    folder = location(path)
    with reporting_unreachable(folder):
        return (folder / "run.json").exists()


def run_folder(config: Config) -> RunFolder:
    """Return the run folder of a config; it need not exist."""
    return RunFolder(location(config.output) / config.name)


def make_run_folder(config: Config) -> RunFolder:
    """Create the run folder of a config unless it exists; nothing is written into it.

    Parameters
    ----------
    config
        Only its output and name are used.

    Returns
    -------
    RunFolder

    Raises
    ------
    UserError
        The folder cannot be written, or it exists and is not a run folder.
    """
    run = run_folder(config)
    try:
        with reporting_unreachable(run.path):
            _check_is_run_folder(run.path)
            make_folder(run.path)
    except OSError as error:
        raise unwritable(run.path, error) from None
    return run


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error for a run folder that cannot be written."""
    return UserError(f"cannot write the run folder {path}: {error.strerror}; set output to a folder you may write to")


def _check_is_run_folder(path: Path) -> None:
    """Refuse a folder with other content: a run would write into it, and a fresh run would empty it."""
    if not path.exists() or (path / "run.json").exists():
        return
    if any(not (entry.name in DRIVER_FOLDERS or entry.name.endswith(".partial")) for entry in path.iterdir()):
        raise UserError(f"{path} is not a run folder (it has no run.json); remove it yourself or change name")
