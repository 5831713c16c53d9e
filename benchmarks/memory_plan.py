"""The memory plan against the memory that a worker process really uses, for four kinds of collections.

``python -m benchmarks.memory_plan [FRACTION]`` runs four stages on this fraction of each collection, by default all.
``python -m benchmarks.memory_plan quantize FOLDER ...`` only quantizes the images of each folder, with one worker.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import machine, table
from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.workers import workers_of
from kmeans_dask.pipeline.plan.image_sizes import plan_of
from kmeans_dask.pipeline.plan.memory import PROCESS
from kmeans_dask.pipeline.run import run_stages
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.storage.publish import remove
from kmeans_dask.storage.run_folder import run_folder

STAGES = ("ingest", "fit", "evaluate", "quantize")
LIMIT = "4GiB"
POINTS: Mapping[str, tuple[int, int, str, Mapping[str, Any]]] = {
    "60,000 arrays of 28 x 28, K = 256": (
        60_000, 28, "npy", {"ingest": {"size": [28, 28], "mode": "L"}, "fit": {"k": [256]}, "evaluate": {}},
    ),
    "2,000 arrays of 64 x 64 in colour, K = 500": (
        2_000, 64, "npy", {"ingest": {"size": [64, 64]}, "fit": {"k": [500], "max_iter": 5}, "evaluate": {}},
    ),
    "400 photos of 0.6 megapixels as 512 x 512 in colour, K = 30": (
        400, 768, "jpg",
        {"ingest": {"size": [512, 512]}, "fit": {"k": [30], "max_iter": 5}, "evaluate": {}, "quantize": {"k": [2, 30]}},
    ),
    "12 photos of 24 megapixels as 256 x 256 in colour, K = 2": (
        12, 4899, "jpg", {"ingest": {"size": [256, 256]}, "fit": {"k": [2]}, "evaluate": {}, "quantize": {"k": [6]}},
    ),
}  # fmt: skip
"""Number of items, their side in pixels, their file format, and the config sections of the stages."""


def main(fraction: float, scratch: Path) -> None:
    """Print one row per collection and stage."""
    columns = ["collection", "stage", "planned, MiB", "peak, MiB", "planned above idle", "peak above idle"]
    table(f"one worker of one thread, {LIMIT}", columns, _rows(fraction, scratch))


def _rows(fraction: float, scratch: Path) -> Iterator[list[str]]:
    for number, (what, (n, side, kind, sections)) in enumerate(POINTS.items()):
        folder = scratch / str(number)
        folder.mkdir()
        source = _draw(folder, max(int(fraction * n), max(sections["fit"]["k"])), side, kind)
        with connect(Cluster(kind="local", n_workers=1, memory_limit=LIMIT)) as client:
            config = Config.model_validate(
                {
                    "name": f"point{number}",
                    "output": str(scratch / "runs"),
                    "input": {"path": str(source), "labels": "none"},
                    "cluster": {"kind": "address", "address": client.scheduler.address},
                    **sections,
                }
            )
            (start,) = client.run(_resident).values()
            for stage in STAGES:
                if getattr(config, stage) is None:
                    continue
                client.run(_reset_peak)
                run_stages(config, (stage,))
                (peak,) = client.run(_peak).values()
                _, plan = plan_of(config, read_manifest(run_folder(config).manifest), workers_of(client))
                total = plan.total(stage)
                sizes = (total, peak, total - PROCESS, peak - start)
                yield [what, stage, *(f"{size / 2**20:,.0f}" for size in sizes)]


def quantize(folders: Sequence[Path], scratch: Path) -> None:
    """Print one row per folder and number of threads: peak of a process that compiles the kernels, and of the next."""
    os.environ["NUMBA_CACHE_DIR"] = str(scratch / "numba")

    def rows() -> Iterator[list[str]]:
        for folder in folders:
            for threads in (1, 2):
                remove(scratch / "numba")
                (total, first), (_, second) = (_quantized(folder, threads, scratch / "run") for _ in range(2))
                yield [
                    folder.name, f"{threads}", *(f"{size / 2**20:,.0f}" for size in (total, first, second)),
                    f"{total / first:.2f}, {total / second:.2f}",
                ]  # fmt: skip

    columns = ["images", "threads", "planned, MiB", "peak with compiling, MiB", "without, MiB", "planned / peak"]
    table("one worker that quantizes, K = 30", columns, rows())


def _quantized(folder: Path, threads: int, output: Path) -> tuple[int, int]:
    """Planned and measured peak memory of a new worker, in bytes."""
    remove(output)
    with connect(Cluster(kind="local", n_workers=1, threads_per_worker=threads, memory_limit="6GiB")) as client:
        config = Config.model_validate(
            {
                "name": "quantized",
                "output": str(output),
                "input": {"path": str(folder), "labels": "none"},
                "quantize": {"k": [30]},
                "cluster": {"kind": "address", "address": client.scheduler.address},
            }
        )
        run_stages(config, ("quantize",))
        _, plan = plan_of(config, read_manifest(run_folder(config).manifest), workers_of(client))
        return plan.total("quantize"), *client.run(_peak).values()


def _draw(folder: Path, n: int, side: int, kind: str) -> Path:
    rng = np.random.default_rng(0)
    if kind == "npy":
        channels = () if side == 28 else (3,)
        np.save(folder / "images.npy", rng.integers(0, 256, (n, side, side, *channels), np.uint8))
        return folder / "images.npy"
    ramp = np.linspace(0, 200, side)
    for number in range(n):
        noise = rng.integers(0, 40, (side, side, 3))
        pixels = (ramp[:, None, None] + ramp[None, :, None] * rng.random(3)) / 2 + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return folder


def _resident() -> int:
    return _memory("VmRSS:")


def _peak() -> int:
    return _memory("VmHWM:")


def _memory(what: str) -> int:
    """Read a size of this process from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def _reset_peak() -> None:
    """Reset the peak resident size (VmHWM) of this process; see clear_refs in proc(5) for the 5."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as scratch_folder:
        if sys.argv[1:2] == ["quantize"]:
            quantize([Path(name) for name in sys.argv[2:]], Path(scratch_folder))
        else:
            os.environ["NUMBA_CACHE_DIR"] = str(Path(scratch_folder) / "numba")  # empty: workers compile the kernels
            main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0, Path(scratch_folder))
