"""Console output of a job: log lines and progress on standard error, tables and results on standard output."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import click

# rich is imported only where it is used, so that mistakes in the input are reported without waiting for it

_LINE_SECONDS = 10
"""Interval between progress lines where standard error is not a terminal."""

_WIDTH = 140
"""Width of tables in characters where standard output is a file or a pipe."""

_COLUMN_GAP = 3
"""Characters between two columns of a table: two of padding and a line."""

LOG = logging.getLogger("kmeans_dask")
"""Receives every line printed by `say`; a driver attaches a file to it."""


class Advance(Protocol):
    """Callback that counts finished units, and how many of them failed."""

    def __call__(self, n: int, failed: int = 0) -> None:
        """Count `n` more units as done, `failed` of which failed."""


@dataclass
class Step:
    """Progress of one piece of work.

    Attributes
    ----------
    title
        Name of the work.
    total
        Number of units; None if unknown.
    unit
        What is counted, in the plural.
    start
        Monotonic time of the start, in seconds.
    done, failed
        Units done so far, and how many of them failed.
    """

    title: str
    total: int | None
    unit: str
    start: float
    done: int = 0
    failed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return title, done, total, unit, failed, seconds, rate and seconds_left, for the heartbeat of the driver."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        left = None if self.total is None or not self.done else (self.total - self.done) * seconds / self.done
        return {
            "title": self.title, "done": self.done, "total": self.total, "unit": self.unit, "failed": self.failed,
            "seconds": seconds, "rate": self.done / seconds, "seconds_left": left,
        }  # fmt: skip


_steps: list[Step] = []
"""Steps in progress in this process; the last one is the innermost."""


def current_step() -> Step | None:
    """Return the innermost step in progress; None between steps."""
    return _steps[-1] if _steps else None


def say(line: str) -> None:
    """Print one line to standard error and log it."""
    click.echo(line, err=True)
    LOG.info(line)


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show the progress, rate and remaining time of a stage.

    Parameters
    ----------
    title
        Name of the work.
    total
        Number of units; None if unknown, in which case no remaining time is shown.
    unit
        What is counted, in the plural.

    Yields
    ------
    Advance
        Call it with the number of units done since the last call.
    """
    step = Step(title, total, unit, time.monotonic())
    show = _bar if sys.stderr.isatty() else _lines
    _steps.append(step)
    try:
        with show(step) as refresh:

            def advance(n: int, failed: int = 0) -> None:
                step.done += n
                step.failed += failed
                refresh()

            yield advance
    finally:
        _steps.pop()


@contextmanager
def _lines(step: Step) -> Iterator[Callable[[], None]]:
    last = step.start

    def refresh() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            say(f"{step.title}: {how_far(step.done, step.total, step.unit, now - step.start)}")

    yield refresh
    say(_summary(step))


def _summary(step: Step) -> str:
    return f"{step.title}: {step.done:,} {step.unit} in {time.monotonic() - step.start:.1f} s"


def how_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """Describe progress: units done in `seconds`, the rate, and the remaining time if the total is known."""
    rate = _rate(done / seconds)
    if total is None or done == 0:
        return f"{done:,} {unit}, {rate}" if total is None else f"{done:,} of {total:,} {unit}"
    return f"{done:,} of {total:,} {unit}, {rate}, {duration((total - done) * seconds / done)} left"


def _rate(per_second: float) -> str:
    """Format a rate as units/s, or below one as seconds per unit."""
    if 0 < per_second < 1:
        return f"{1 / per_second:.1f} s each"
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.1f}/s"


def duration(seconds: float) -> str:
    """Format seconds as s, min and s, or h and min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{total // 60} min {total % 60} s" if total < 3600 else f"{total // 3600} h {total % 3600 // 60} min"


@contextmanager
def _bar(step: Step) -> Iterator[Callable[[], None]]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.fields[how_far]}"),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(step.title, total=step.total, how_far=step.unit)

        def refresh() -> None:
            seconds = max(time.monotonic() - step.start, 1e-9)
            bar.update(task, completed=step.done, how_far=how_far(step.done, step.total, step.unit, seconds))

        yield refresh
    LOG.info(_summary(step))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> None:
    """Print a table to standard output. Columns that do not fit the width continue below; cells are never truncated.

    Parameters
    ----------
    title
        Title above the table.
    columns
        Headings; the first column is aligned left, the others right.
    rows
        Cells as text.
    keys
        Number of leading columns that identify a row; they are repeated where the table continues.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    # headings may wrap between words, numbers never
    widths = [
        max(len(part) for part in [*heading.split(), *(row[i] for row in rows)]) for i, heading in enumerate(columns)
    ]
    for number, chosen in enumerate(_fitting_groups(widths, keys, console.width)):
        table = Table(title=None if number else title, title_justify="left")
        for position in chosen:
            table.add_column(columns[position], justify="right" if position else "left", min_width=widths[position])
        for row in rows:
            table.add_row(*(row[position] for position in chosen))
        console.print(table)


def _fitting_groups(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Split columns into groups that fit a width, each with the key columns and at least one other column."""
    groups = [list(range(keys))]
    for position in range(keys, len(widths)):
        needed = sum(widths[i] + _COLUMN_GAP for i in [*groups[-1], position]) + 1
        if needed > width and len(groups[-1]) > keys:
            groups.append(list(range(keys)))
        groups[-1].append(position)
    return groups


def show_line(line: str) -> None:
    """Print one line to standard output."""
    click.echo(line)
