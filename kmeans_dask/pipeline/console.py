"""What a job says while it runs: lines, progress bars and a final table, on standard error and output."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import click

# rich is imported where it draws: a mistake in the input is one line, and should not wait for it

_LINE_SECONDS = 10
"""Where standard error is no terminal, progress is a line now and then."""

_WIDTH = 140
"""Characters of a line where standard output is no terminal: a file or a pipe has no width."""

_BETWEEN = 3
"""Characters between two columns of a table: two of padding and a line."""

LOG = logging.getLogger("kmeans_dask")
"""What is said also goes here; a driver adds a file to it."""


class Advance(Protocol):
    """Counts the units that are done since the last call, and how many of them failed."""

    def __call__(self, n: int, failed: int = 0) -> None:
        """Count."""


@dataclass
class Step:
    """How far the work that is being done is.

    Attributes
    ----------
    title
        What is done.
    total
        Units there are; None if that is not known beforehand.
    unit
        What is counted, in the plural.
    start
        Of the monotonic clock, in seconds.
    done, failed
        Units that are done, and how many of these failed.
    """

    title: str
    total: int | None
    unit: str
    start: float
    done: int = 0
    failed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return what other machines are told: title, done, total, unit, failed, seconds, rate, seconds_left."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        left = None if self.total is None or not self.done else (self.total - self.done) * seconds / self.done
        return {
            "title": self.title, "done": self.done, "total": self.total, "unit": self.unit, "failed": self.failed,
            "seconds": seconds, "rate": self.done / seconds, "seconds_left": left,
        }  # fmt: skip


_steps: list[Step] = []
"""Of this process; the last one is the innermost."""


def current_step() -> Step | None:
    """Return how far the work of this process is; None between two steps."""
    return _steps[-1] if _steps else None


def say(line: str) -> None:
    """Print one line to standard error, and log it."""
    click.echo(line, err=True)
    LOG.info(line)


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show how far a stage is, how fast it goes and how long it will take.

    Parameters
    ----------
    title
        What is done.
    total
        How many units there are; None if that is not known beforehand, and so no time left.
    unit
        What is counted, in the plural.

    Yields
    ------
    callable
        To be called with the number of units done since the last call.
    """
    step = Step(title, total, unit, time.monotonic())
    show = _bar if sys.stderr.isatty() else _lines
    _steps.append(step)
    try:
        with show(step) as told:

            def advance(n: int, failed: int = 0) -> None:
                step.done += n
                step.failed += failed
                told()

            yield advance
    finally:
        _steps.pop()


@contextmanager
def _lines(step: Step) -> Iterator[Callable[[], None]]:
    last = step.start

    def tell() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            say(f"{step.title}: {how_far(step.done, step.total, step.unit, now - step.start)}")

    yield tell
    say(_in_all(step))


def _in_all(step: Step) -> str:
    return f"{step.title}: {step.done:,} {step.unit} in {time.monotonic() - step.start:.1f} s"


def how_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """Say how many units are done after so many seconds, how many a second, and, where that is known, the time left."""
    rate = f"{_rate(done / seconds)}"
    if total is None or done == 0:
        return f"{done:,} {unit}, {rate}" if total is None else f"{done:,} of {total:,} {unit}"
    return f"{done:,} of {total:,} {unit}, {rate}, {duration((total - done) * seconds / done)} left"


def _rate(per_second: float) -> str:
    """Units a second; slow ones as seconds for each."""
    if 0 < per_second < 1:
        return f"{1 / per_second:.1f} s each"
    return f"{per_second:,.0f} a second" if per_second >= 100 else f"{per_second:.1f} a second"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


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

        def tell() -> None:
            seconds = max(time.monotonic() - step.start, 1e-9)
            bar.update(task, completed=step.done, how_far=how_far(step.done, step.total, step.unit, seconds))

        yield tell
    LOG.info(_in_all(step))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> None:
    """Print a table to standard output. What is wider than the terminal goes on below, and no cell is ever cut.

    Parameters
    ----------
    title
        Stands above it.
    columns
        Headings; the first column is aligned left, the others right.
    rows
        Cells as text.
    keys
        Columns that tell what a row is; they are repeated where the table goes on.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    # headings may wrap between words, numbers never
    widths = [
        max(len(part) for part in [*heading.split(), *(row[i] for row in rows)]) for i, heading in enumerate(columns)
    ]
    for number, chosen in enumerate(_that_fit(widths, keys, console.width)):
        table = Table(title=None if number else title, title_justify="left")
        for position in chosen:
            table.add_column(columns[position], justify="right" if position else "left", min_width=widths[position])
        for row in rows:
            table.add_row(*(row[position] for position in chosen))
        console.print(table)


def _that_fit(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Cut columns into groups that fit a width, each beginning with the keys and having one other column at least."""
    groups = [list(range(keys))]
    for position in range(keys, len(widths)):
        taken = sum(widths[i] + _BETWEEN for i in [*groups[-1], position]) + 1
        if taken > width and len(groups[-1]) > keys:
            groups.append(list(range(keys)))
        groups[-1].append(position)
    return groups


def show_line(line: str) -> None:
    """Print one line to standard output."""
    click.echo(line)
