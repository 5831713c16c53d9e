"""What a job says while it runs: lines, progress bars and a final table, on standard error and output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

# rich is imported where it draws: a mistake in the input is one line, and should not wait for it

_LINE_SECONDS = 10
"""Where standard error is no terminal, progress is a line now and then."""

_WIDTH = 140
"""Characters of a line where standard output is no terminal: a file or a pipe has no width."""

_BETWEEN = 3
"""Characters between two columns of a table: two of padding and a line."""

Advance = Callable[[int], None]


def say(line: str) -> None:
    """Print one line to standard error."""
    click.echo(line, err=True)


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
    if sys.stderr.isatty():
        with _bar(title, total, unit) as advance_bar:
            yield advance_bar
        return
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            say(f"{title}: {_how_far(done, total, unit, now - start)}")

    yield advance
    say(f"{title}: {done:,} {unit} in {time.monotonic() - start:.1f} s")


def _how_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """Say how many are done, how many a second, and, where the total is known, how long the rest will take."""
    rate = f"{_rate(done / seconds)}"
    if total is None or done == 0:
        return f"{done:,} {unit}, {rate}"
    return f"{done:,} of {total:,} {unit}, {rate}, {_duration((total - done) * seconds / done)} left"


def _rate(per_second: float) -> str:
    """Units a second; slow ones as seconds for each."""
    if 0 < per_second < 1:
        return f"{1 / per_second:.1f} s each"
    return f"{per_second:,.0f} a second" if per_second >= 100 else f"{per_second:.1f} a second"


def _duration(seconds: float) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.fields[how_far]}"),
        bars.TimeElapsedColumn(),
    )
    start, done = time.monotonic(), 0
    with bars.Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(title, total=total, how_far=unit)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            told = _how_far(done, total, unit, max(time.monotonic() - start, 1e-9))
            bar.update(task, advance=n, how_far=told)

        yield advance


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
