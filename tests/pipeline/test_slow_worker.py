"""A worker that is far slower than the other one is neither taken for dead nor are its items taken for bad."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pyarrow.csv

from benchmarks.poison import NOTICE
from kmeans_dask.storage.lock import last_driver
from tests.support.images import draw_images
from tests.support.jobs import Result, write_config
from tests.support.processes import Process, meanwhile


def slowed(process: psutil.Process) -> AbstractContextManager[None]:
    """Run a process only a tenth of the time during the block."""

    def slow(ended: threading.Event) -> None:
        with suppress(psutil.NoSuchProcess):
            while not ended.is_set():
                process.send_signal(signal.SIGSTOP)
                ended.wait(0.18)
                process.send_signal(signal.SIGCONT)
                ended.wait(0.02)

    return meanwhile(slow)


def test_slow_worker(command: Callable[..., Result], start: Callable[..., Process], tmp_path: Path):
    draw_images(tmp_path / "images", count=160)
    config = write_config(
        tmp_path,
        tmp_path / "images",
        ingest={"size": [112, 112]},  # ten chunks
        fit={"k": 3},
        evaluate=None,
        quantize={"k": 2},  # several batches
        report=None,
        cluster={"kind": "local", "n_workers": 2},
    )
    run = tmp_path / "runs" / "small"

    job = start("kmeans-dask", "run", config)
    job.wait_until(lambda: list(run.glob("collection.zarr.partial/items/part-*.parquet")))
    driver = last_driver(run / "drivers")
    assert driver is not None
    children = psutil.Process(driver["pid"]).children()
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    with slowed(workers[0]):
        assert job.wait() == 0, job.output

    for notice in (NOTICE, "restarting this worker", "failed to heartbeat", "Traceback"):
        assert notice not in job.output
    assert command("run", config, "name=undisturbed", "cluster.kind=threads").status == 0
    assert results(run) == results(tmp_path / "runs" / "undisturbed")
    assert set(pyarrow.csv.read_csv(run / "items.csv")["status"].to_pylist()) == {"ok"}


def results(run: Path) -> dict[str, bytes]:
    files = [*run.glob("models/*/*/c*/**/*"), *run.glob("quantized/**/*.png"), run / "items.csv"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}
