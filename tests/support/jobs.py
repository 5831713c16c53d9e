"""Configs of small jobs, outputs of commands, and comparisons of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml

from kmeans_dask.models.model import read_model
from kmeans_dask.storage.publish import read_json


def write_config(folder: Path, source: Path, **changes: Any) -> Path:
    """Write a config with all stages for a folder of images; ``changes`` replace sections, and None removes one."""
    config = {
        "name": "small",
        "output": str(folder / "runs"),
        "input": {"path": str(source), "holdout": 0.2},
        "ingest": {"size": [16, 16], "mode": "RGB"},
        "fit": {"k": [3, 5], "algorithm": ["kmeans", "minibatch"]},
        "evaluate": {},
        "quantize": {"k": [2, 6]},
        "report": {"samples": 6},
        "cluster": {"kind": "threads", "n_workers": 2},
        **changes,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


class Result(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of standard error."""
        return self.err.splitlines()


class Run(NamedTuple):
    """A finished run, and the result of its command."""

    folder: Path
    result: Result


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file below a folder; they change when a file is rewritten.

    The records and logs of drivers are left out, because every start of a driver adds to them.
    """
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("drivers", "logs")
    }


def results_of(folder: Path) -> dict[str, object]:
    """All results of a run, without times."""
    results: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "quantized").rglob("*.png")
    }
    for path in (folder / "models").glob("*/*.zarr"):
        model = read_model(path)
        arrays = (model.centres, model.history, model.label_map, model.counts)
        results[str(path.relative_to(folder))] = [array.tobytes() for array in arrays if array is not None]
    results["clusters"] = pq.read_table(folder / "clusters.parquet")
    results["quantized"] = pq.read_table(folder / "quantized.parquet").drop_columns(["seconds"])
    results["items"] = (folder / "items.csv").read_bytes()
    results["metrics"] = [
        # the last digits of an inertia depend on how many models share a pass
        {key: float(f"{value:.12g}") if isinstance(value, float) else value for key, value in row.items()}
        | {"seconds": None}
        for row in read_json(folder / "metrics.json")
    ]
    return results
