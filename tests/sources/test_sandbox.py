"""Items that end the process which opens them, or hang it: found in a process of its own."""

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
from kmeans_dask.sources.sandbox import attempt, ended_by


def read(words: list[str], rows: Sequence[int]) -> Iterator[tuple[int, str]]:
    for row in rows:
        if words[row] == "ends the reader":
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
        raise OSError("the task meets it again")


def told(words: list[str]) -> dict[int, tuple[str, str]]:
    errors = ended_by(partial(read, words), len(words), work)
    return {row: (error.status, str(error)) for row, error in errors.items()}


def test_items_that_end_their_process_are_named_and_the_others_done():
    words = ["fine", "abort", "fine", "unreadable", "killed", "other", "fine"]

    assert told(words) == {
        1: ("crashed", "ends the process that opens it (SIGABRT)"),
        3: ("unreadable", "no image"),
        4: ("crashed", "ends the process that opens it (SIGKILL)"),
    }


def test_an_item_that_ends_its_process_when_it_is_read():
    assert told(["fine", "ends the reader", "fine"]) == {1: ("crashed", "ends the process that opens it (status 3)")}


def test_an_item_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "ITEM_SECONDS", 1)

    assert told(["sleep", "fine"]) == {0: ("hung", "not done after 1 s, so its process was ended")}


def test_an_item_that_is_too_large_for_the_worker(monkeypatch: pytest.MonkeyPatch):
    assert told(["large"]) == {}
    own = psutil.Process().memory_info().rss
    monkeypatch.setattr(sandbox, "memory_limit", own + 2**29)
    assert told(["fine", "large", "fine"]) == {1: ("crashed", "takes more memory than a worker has left")}


def test_no_items():
    assert told([]) == {}


def test_an_attempt_leaves_nothing_when_it_ends(tmp_path: Path):
    marker = tmp_path / "folder" / "task.begun"

    with attempt(marker) as unfinished:
        assert not unfinished
        assert marker.exists()
    with pytest.raises(OSError), attempt(marker):
        raise OSError

    assert not marker.exists()


def test_an_attempt_that_did_not_end_is_noticed(tmp_path: Path):
    marker = tmp_path / "task.begun"
    if (child := os.fork()) == 0:
        with attempt(marker):
            os._exit(0)
    os.waitpid(child, 0)

    with attempt(marker) as unfinished:
        assert unfinished
    with attempt(marker) as unfinished:
        assert not unfinished
