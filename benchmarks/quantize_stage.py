"""Run the quantize stage on a folder, with the helpers that its benchmarks share."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.client import connect
from kmeans_dask.pipeline.stages import quantize as stage_quantize
from kmeans_dask.pipeline.stages.listing import list_items_of
from kmeans_dask.storage.run_record import open_run

MAX_PIXELS = 10**9


@contextmanager
def workers(n: int) -> Iterator[Client]:
    with connect(Cluster(kind="local", n_workers=n, threads_per_worker=1)) as client:
        yield client


def config_of(folder: Path, output: Path, name: str, **settings: Any) -> Config:
    source = {"path": str(folder), "labels": "none", "max_pixels": MAX_PIXELS}
    return Config(name=name, output=str(output), input=source, quantize=settings)


def run_stage(client: Client, folder: Path, work: Path, **settings: Any) -> tuple[float, Path]:
    """Run the stage on a folder in a new run folder; return its seconds without listing, and the run folder."""
    config = config_of(folder, Path(tempfile.mkdtemp(dir=work)), "run", **settings)
    record = open_run(config, fresh=True)
    with redirect_stdout(sys.stderr):
        list_items_of(config, record, list_again=True)
        start = time.perf_counter()
        stage_quantize.run(config, client)
        return time.perf_counter() - start, record.folder.path


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def some(folder: Path, n: int, work: Path, times: int = 1) -> Path:
    """Make a folder of links to n photos spread evenly over another, ``times`` links each, in the same subfolders."""
    files = files_of(folder)
    chosen = files if n >= len(files) else [files[i] for i in np.linspace(0, len(files) - 1, n).astype(int)]
    linked = Path(tempfile.mkdtemp(dir=work))
    for path in chosen:
        inside = linked / path.relative_to(folder)
        inside.parent.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            inside.with_name(f"{number:02}-{inside.name}").symlink_to(path.resolve())
    return linked


def peak_memory() -> int:
    """Peak resident size of this process in bytes; getrusage would start from that of the parent process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
