"""Clocks that jump, and that differ between machines: ``make test-clocks``, as root, with Debian's libfaketime."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.faults import Run, undisturbed
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import write_config
from tests.support.processes import Process, meanwhile

HOUR = 3600
(LIBRARY,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")


class Clock:
    """A wall clock that is some seconds off. The monotonic clock is not changed, as in a real jump."""

    def __init__(self, file: Path, off: int) -> None:
        self._file = file
        self.set(off)

    def set(self, off: int) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(f"{off:+d}\n")
        partial.replace(self._file)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Give this clock to the processes that the block starts."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            yield


def jumping(clocks: list[Clock], seconds: float = 1.5) -> AbstractContextManager[None]:
    """Let the clocks jump in turn, first an hour ahead, then an hour back."""

    def jump(stop: threading.Event) -> None:
        for clock, off in cycle((clock, off) for off in (HOUR, -HOUR) for clock in clocks):
            clock.set(off)
            if stop.wait(seconds):
                return

    return meanwhile(jump)


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "images"
    draw_images(folder, count=1400, side=40)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, str]:
    """Hashes of the outputs of an undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("whole"), images)


def test_clocks_jump_and_differ(start: Start, images: Path, tmp_path: Path, whole: dict[str, str]):
    names = {"scheduler": 0, "ahead": 24 * HOUR, "behind": -24 * HOUR, "driver": HOUR}
    clocks = {name: Clock(tmp_path / f"{name}.clock", off) for name, off in names.items()}
    listen = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    with clocks["scheduler"].here():
        scheduler = start("dask", "scheduler", *listen, "--port", "0")
    scheduler.wait_until(lambda: "Scheduler at:" in scheduler.output)
    address = next(word for word in scheduler.output.split() if word.startswith("tcp://"))
    workers = []
    for name in ("ahead", "behind"):
        with clocks[name].here():
            workers.append(start("dask", "worker", address, *listen, "--nthreads", 1, "--local-directory", tmp_path))
    for worker in workers:
        worker.wait_until(lambda worker=worker: "Registered to" in worker.output)  # type: ignore[misc]

    run = Run(tmp_path, images, tmp_path, address)
    with clocks["driver"].here():
        driver = run.start()
    with jumping([*clocks.values()]):
        assert driver.wait(250) == 0, run.log.read_text()

    log = "".join(process.output for process in (scheduler, *workers)) + run.log.read_text()
    assert "Traceback" not in log
    assert "failed to heartbeat" not in log
    assert "restarting this worker" not in log
    assert run.hashes() == whole
    check_times(run)


def check_times(run: Run) -> None:
    """Check that no measured time is negative or as long as a jump."""
    log = run.log.read_text()
    assert not re.search(r"-\d+(\.\d+)? (s|min|h)\b", log), log
    assert not re.search(r"-[\d.,]+(/s| s each)", log), log
    assert not re.search(r"\d+ h \d+ min", log), log
    stages = read_json(run.folder / "run.json")["stages"]
    assert all(0 <= stage["seconds"] < 300 for stage in stages.values())
    assert all(0 <= seconds < 300 for seconds in pq.read_table(run.folder / "quantized.parquet")["seconds"].to_pylist())


def test_file_times_in_the_future(start: Start, tmp_path: Path):
    """The files were written while the clock was ahead; it has been set right since."""
    draw_images(tmp_path / "images", count=20)
    config = write_config(tmp_path, tmp_path / "images")
    future, clock = datetime.now(UTC) + timedelta(days=365), Clock(tmp_path / "clock", 0)
    first, second, third = sorted((tmp_path / "images").rglob("*.png"))[:3]
    os.utime(first, (future.timestamp(),) * 2)
    os.utime(second, (2**34 - 1,) * 2)  # the year 2446, the last that ext4 can store
    assert start("kmeans-dask", "ingest", config).wait() == 0
    clock.set(-HOUR)
    with clock.here():
        for number, path in enumerate((first, second, third)):
            path.write_bytes(sorted((tmp_path / "images").rglob("*.png"))[-1 - number].read_bytes())
        os.utime(third, (1, 1))
        draw_images(tmp_path / "images" / "new", count=2)
        process = start("kmeans-dask", "ingest", config)
    assert process.wait() == 0, process.output
    assert "the input changed: 2 items added, 3 changed, 0 removed" in process.output
