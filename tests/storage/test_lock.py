"""One driver a run, whoever was first, wherever the other one is, and however it ended."""

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
from kmeans_dask.storage.lock import LockLostError, is_alive, last_driver, take
from kmeans_dask.storage.publish import read_json, write_json
from tests.support.processes import meanwhile

ELSEWHERE = "another machine"


@pytest.fixture
def drivers(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small" / "drivers"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats are a hundredth of a second apart, and a driver elsewhere is watched for a tenth."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.1)


def rewrite(drivers: Path, **changes: object) -> None:
    """Make the last driver another one."""
    last = last_driver(drivers)
    assert last is not None
    write_json(drivers / f"{last['number']}.json", last | changes)


def beating(held: lock.Lock) -> AbstractContextManager[None]:
    """Beat as a driver does, in a thread."""

    def beat(ended: threading.Event) -> None:
        while not ended.wait(0.01):
            held.beat({})

    return meanwhile(beat)


def test_the_second_is_refused_with_the_name_of_the_first(drivers: Path):
    take(drivers, "kmeans-dask run a.yaml")

    with pytest.raises(UserError) as refused:
        take(drivers, "kmeans-dask run b.yaml")

    assert "\n" not in str(refused.value)
    for part in (f"process {os.getpid()} on {os.uname().nodename}", "(kmeans-dask run a.yaml)", "kmeans-dask cancel"):
        assert part in str(refused.value)


def test_a_run_that_was_released_is_free_and_numbers_grow(drivers: Path):
    for number in (1, 2, 3):
        held = take(drivers, "run")
        assert (held.number, held.took_over) == (number, None)
        held.release()

    assert [path.name for path in drivers.iterdir()] == ["3.json"]


def taken_at_a_time(pool: ThreadPoolExecutor, drivers: Path) -> list[lock.Lock]:
    """Have eight threads try to take a run; what those hold who have it."""

    def attempt(number: int) -> lock.Lock | None:
        try:
            return take(drivers, f"run {number}")
        except UserError:
            return None

    return [held for held in pool.map(attempt, range(8)) if held]


def test_of_many_at_a_time_one_is_first(drivers: Path):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            (held,) = taken_at_a_time(pool, drivers)
            held.release()


@pytest.mark.usefixtures("soon")
def test_of_many_who_take_over_a_dead_drivers_run_one_does(drivers: Path):
    take(drivers, "run 0")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            rewrite(drivers, process_started="an earlier process of this number")
            (held,) = taken_at_a_time(pool, drivers)
            assert "run " in str(held.took_over)


def test_a_killed_driver_is_dead_at_once_and_before_it_is_collected(drivers: Path):
    code = (
        "import pathlib, sys, time; from kmeans_dask.storage.lock import take\n"
        "take(pathlib.Path(sys.argv[1]), 'run'); print('taken', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(drivers)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "):
            take(drivers, "run again")
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not collected

        held = take(drivers, "run again")

    assert held.number == 2
    assert held.took_over == f"process {process.pid} on {os.uname().nodename} (run)"


@pytest.mark.usefixtures("soon")
def test_a_driver_elsewhere_is_alive_while_its_counter_moves(drivers: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "_machine", lambda: ELSEWHERE)
    held = take(drivers, "run")
    monkeypatch.undo()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 2.0)

    with beating(held), pytest.raises(UserError, match="is being worked on by process"):
        take(drivers, "run here")
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.1)
    assert take(drivers, "run here").number == 2


@pytest.mark.usefixtures("soon")
def test_a_driver_whose_run_was_taken_over_notices(drivers: Path):
    first = take(drivers, "run 1")
    rewrite(drivers, machine=ELSEWHERE)
    second = take(drivers, "run 2")

    with pytest.raises(LockLostError, match=r"\(run 2\)"):
        first.beat({})
    first.release()  # changes nothing

    second.beat({"stage": "fit"})
    last = last_driver(drivers)
    assert last is not None
    assert (last["number"], last["ended"], last["progress"]) == (2, False, {"stage": "fit"})


def test_a_driver_notices_that_the_run_folder_has_gone(drivers: Path):
    held = take(drivers, "run")
    (drivers / "1.json").unlink()

    with pytest.raises(FileNotFoundError):
        held.beat({})
    held.release()
    assert list(drivers.iterdir()) == []


def test_who_has_seen_an_old_state_takes_no_old_number(drivers: Path, monkeypatch: pytest.MonkeyPatch):
    """A taker that has slept since it saw number 1 finds 2 free again, because 3 is at work."""
    for _ in range(3):
        held = take(drivers, "run")
        held.release()
    take(drivers, "run at work")
    seen = iter([[1]])  # then the truth
    truth = lock._numbers
    monkeypatch.setattr(lock, "_numbers", lambda folder: next(seen, None) or truth(folder))
    monkeypatch.setattr(lock, "read_json", lambda path: read_json(path) if path.exists() else json.loads(OLD))

    with pytest.raises(UserError, match="run at work"):
        take(drivers, "late")

    assert [path.name for path in drivers.iterdir()] == ["4.json"]


OLD = json.dumps({"number": 1, "ended": True, "token": "", "machine": "", "beats": 0})


def test_the_end_of_a_driver_is_no_life(drivers: Path):
    held = take(drivers, "run")
    seen = last_driver(drivers)
    assert seen is not None
    assert is_alive(drivers, seen)

    held.release()

    now = last_driver(drivers)
    assert now is not None
    assert not is_alive(drivers, now)


def test_a_folder_without_drivers(drivers: Path):
    assert last_driver(drivers) is None
