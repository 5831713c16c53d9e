from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from kmeans_dask.pipeline import console

COLUMNS = ["algorithm", "K", "seconds", "inertia/sample", "silhouette", "homogeneity", "accuracy, held-out"]
ROW = ["minibatch", "256", "1234.56", "1,599,537.8", "0.1234", "0.8560", "0.9175"]


def test_progress_lines_show_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    times = iter([0.0, 4.0, 20.0, 25.0, 100.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))

    with console.progress("ingest", 70_000, "items") as advance:
        advance(1_000)  # 4 s after the start: too early for a line
        advance(9_000)
        advance(1)

    assert capsys.readouterr().err.splitlines() == [
        "ingest: 10,000 of 70,000 items, 500/s, 2 min 0 s left",
        "ingest: 10,001 items in 100.0 s",
    ]


def test_slow_progress_shows_seconds_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    times = iter([0.0, 50.0, 7250.0, 7300.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))

    with console.progress("fit", None, "passes") as advance:
        advance(20)
        advance(80)

    assert capsys.readouterr().err.splitlines() == [
        "fit: 20 passes, 2.5 s each",
        "fit: 100 passes, 72.5 s each",
        "fit: 100 passes in 7300.0 s",
    ]


def in_terminal(width: int, code: str) -> str:
    """Run Python code in a terminal of ``width`` columns and return its output without escape sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs,
        cwd=Path(__file__).parents[2], env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # on Linux, the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())  # colours and cursor movements


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_do_not_truncate_cells_or_heading_words(width: int):
    shown = in_terminal(
        width, f"from kmeans_dask.pipeline.console import show_table; show_table('t', {COLUMNS}, {[ROW]}, keys=2)"
    )

    assert max(len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown
    words = shown.replace("│", " ").replace("┃", " ").split()
    assert set(ROW) <= set(words)
    assert {word for heading in COLUMNS for word in heading.split()} <= set(words)
    assert words.count("256") == {40: 5, 80: 2, 200: 1}[width]  # every continuation row repeats the keys


def test_progress_bar_in_a_terminal():
    code = (
        "import time\nfrom kmeans_dask.pipeline.console import progress\n"
        "with progress('ingest', 1000, 'items') as advance:\n"
        "    for _ in range(5):\n        time.sleep(0.02); advance(200)"
    )
    shown = in_terminal(100, code)

    assert "1,000 of 1,000 items" in shown
    assert "/s, " in shown
    assert "0 s left" in shown
