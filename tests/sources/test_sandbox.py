"""Items that crash or hang the process that opens them are identified in a child process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from kmeans_dask.sources import sandbox
from kmeans_dask.sources.images import ImageError
from kmeans_dask.sources.sandbox import attempt, probe_items


def read(words: list[str], rows: Sequence[int]) -> Iterator[tuple[int, str]]:
    for row in rows:
        if words[row] == "crash the reader":
            os._exit(3)
        yield row, words[row]


def work(word: str) -> None:
    if word == "abort":
        os.abort()
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "sleep":
        time.sleep(60)
    if word == "large":
        bytearray(2**30)
    if word == "unreadable":
        raise ImageError("unreadable", "no image")
    if word == "other":
        raise OSError("the task will hit it again")


def probe(words: list[str]) -> dict[int, tuple[str, str]]:
    errors = probe_items(partial(read, words), len(words), work)
    return {row: (error.status, str(error)) for row, error in errors.items()}


def test_crashing_items_are_identified():
    words = ["fine", "abort", "fine", "unreadable", "killed", "other", "fine"]

    assert probe(words) == {
        1: ("crashed", "crashes the process that opens it (SIGABRT)"),
        3: ("unreadable", "no image"),
        4: ("crashed", "crashes the process that opens it (SIGKILL)"),
    }


def test_crash_while_reading():
    assert probe(["fine", "crash the reader", "fine"]) == {
        1: ("crashed", "crashes the process that opens it (status 3)")
    }


def test_hanging_item(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "ITEM_SECONDS", 1)

    assert probe(["sleep", "fine"]) == {0: ("hung", "still running after 1 s; its process was killed")}


def test_item_exceeding_the_memory_of_the_worker(monkeypatch: pytest.MonkeyPatch):
    assert probe(["large"]) == {}
    own = psutil.Process().memory_info().rss
    monkeypatch.setattr(sandbox, "memory_limit", own + 2**29)
    assert probe(["fine", "large", "fine"]) == {1: ("crashed", "needs more memory than the worker has left")}


def test_no_items():
    assert probe([]) == {}


def test_finished_attempt_removes_its_marker(tmp_path: Path):
    marker = tmp_path / "folder" / "task.begun"

    with attempt(marker) as unfinished:
        assert not unfinished
        assert marker.exists()
    with pytest.raises(OSError), attempt(marker):
        raise OSError

    assert not marker.exists()


def test_unfinished_attempt_is_detected(tmp_path: Path):
    marker = tmp_path / "task.begun"
    if (child := os.fork()) == 0:
        with attempt(marker):
            os._exit(0)
    os.waitpid(child, 0)

    with attempt(marker) as unfinished:
        assert unfinished
    with attempt(marker) as unfinished:
        assert not unfinished
