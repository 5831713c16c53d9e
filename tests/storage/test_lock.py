"""The lock of a run: one driver at a time, whichever machine the others are on and however they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kmeans_dask.errors import UserError
from kmeans_dask.storage import lock
from kmeans_dask.storage.lock import LockLostError, acquire, is_alive, last_driver
from kmeans_dask.storage.publish import read_json, write_json
from tests.support.processes import meanwhile

ELSEWHERE = "another machine"


@pytest.fixture
def drivers(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small" / "drivers"


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat every 0.01 s, and watch drivers on other machines for 0.1 s."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.1)


def rewrite(drivers: Path, **changes: object) -> None:
    """Change the record of the last driver."""
    last = last_driver(drivers)
    assert last is not None
    write_json(drivers / f"{last['number']}.json", last | changes)


def beating(held: lock.Lock) -> AbstractContextManager[None]:
    """Beat in a thread, as a driver does."""

    def beat(ended: threading.Event) -> None:
        while not ended.wait(0.01):
            held.beat({})

    return meanwhile(beat)


def test_second_driver_is_refused(drivers: Path):
    acquire(drivers, "kmeans-dask run a.yaml")

    with pytest.raises(UserError) as refused:
        acquire(drivers, "kmeans-dask run b.yaml")

    assert "\n" not in str(refused.value)
    for part in (f"process {os.getpid()} on {os.uname().nodename}", "(kmeans-dask run a.yaml)", "kmeans-dask cancel"):
        assert part in str(refused.value)


def test_released_run_is_free_and_numbers_grow(drivers: Path):
    for number in (1, 2, 3):
        held = acquire(drivers, "run")
        assert (held.number, held.took_over) == (number, None)
        held.release()

    assert [path.name for path in drivers.iterdir()] == ["3.json"]


def acquire_concurrently(pool: ThreadPoolExecutor, drivers: Path) -> list[lock.Lock]:
    """Let eight threads try to acquire the lock; return the locks of those that succeeded."""

    def attempt(number: int) -> lock.Lock | None:
        try:
            return acquire(drivers, f"run {number}")
        except UserError:
            return None

    return [held for held in pool.map(attempt, range(8)) if held]


def test_one_of_many_contenders_acquires(drivers: Path):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            (held,) = acquire_concurrently(pool, drivers)
            held.release()


@pytest.mark.usefixtures("fast_beats")
def test_one_of_many_contenders_takes_over_from_dead_driver(drivers: Path):
    acquire(drivers, "run 0")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            rewrite(drivers, process_started="an earlier process with this id")
            (held,) = acquire_concurrently(pool, drivers)
            assert "run " in str(held.took_over)


def test_killed_driver_is_dead_at_once_even_unreaped(drivers: Path):
    code = (
        "import pathlib, sys, time; from kmeans_dask.storage.lock import acquire\n"
        "acquire(pathlib.Path(sys.argv[1]), 'run'); print('acquired', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(drivers)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"acquired\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "):
            acquire(drivers, "run again")
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but not reaped

        held = acquire(drivers, "run again")

    assert held.number == 2
    assert held.took_over == f"process {process.pid} on {os.uname().nodename} (run)"


@pytest.mark.usefixtures("fast_beats")
def test_driver_on_another_machine_is_alive_while_it_beats(drivers: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "_machine", lambda: ELSEWHERE)
    held = acquire(drivers, "run")
    monkeypatch.undo()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 2.0)

    with beating(held), pytest.raises(UserError, match="is in use by process"):
        acquire(drivers, "run here")
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.1)
    assert acquire(drivers, "run here").number == 2


@pytest.mark.usefixtures("fast_beats")
def test_driver_notices_takeover(drivers: Path):
    first = acquire(drivers, "run 1")
    rewrite(drivers, machine=ELSEWHERE)
    second = acquire(drivers, "run 2")

    with pytest.raises(LockLostError, match=r"\(run 2\)"):
        first.beat({})
    first.release()  # changes nothing

    second.beat({"stage": "fit"})
    last = last_driver(drivers)
    assert last is not None
    assert (last["number"], last["ended"], last["progress"]) == (2, False, {"stage": "fit"})


def test_driver_notices_missing_run_folder(drivers: Path):
    held = acquire(drivers, "run")
    (drivers / "1.json").unlink()

    with pytest.raises(FileNotFoundError):
        held.beat({})
    held.release()
    assert list(drivers.iterdir()) == []


def test_stale_view_does_not_reuse_a_number(drivers: Path, monkeypatch: pytest.MonkeyPatch):
    """A contender that slept after it saw number 1 finds number 2 free again, because later drivers removed it."""
    for _ in range(3):
        held = acquire(drivers, "run")
        held.release()
    acquire(drivers, "run at work")
    stale = iter([[1]])
    actual = lock._numbers
    monkeypatch.setattr(lock, "_numbers", lambda folder: next(stale, None) or actual(folder))
    monkeypatch.setattr(lock, "read_json", lambda path: read_json(path) if path.exists() else json.loads(OLD))

    with pytest.raises(UserError, match="run at work"):
        acquire(drivers, "late")

    assert [path.name for path in drivers.iterdir()] == ["4.json"]


OLD = json.dumps({"number": 1, "ended": True, "token": "", "machine": "", "beats": 0})


def test_ended_driver_is_not_alive(drivers: Path):
    held = acquire(drivers, "run")
    seen = last_driver(drivers)
    assert seen is not None
    assert is_alive(drivers, seen)

    held.release()

    now = last_driver(drivers)
    assert now is not None
    assert not is_alive(drivers, now)


def test_no_drivers(drivers: Path):
    assert last_driver(drivers) is None
