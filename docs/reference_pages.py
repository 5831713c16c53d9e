"""The other pages that follow from the code: commands, public names, image policy, rooms, cluster files.

`on_page_markdown` is a hook of MkDocs, which replaces the markers in the pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import kmeans_dask
from kmeans_dask.cli.main import kmeans
from kmeans_dask.sources.normalize import POLICY

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker by what it stands for."""
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


def command_reference() -> str:
    """Return a section for each command, from its own help."""
    return "\n\n".join(_command(name, command) for name, command in kmeans.commands.items() if not command.hidden)


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"kmeans-dask {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    records = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
    options = [f"| `{record[0]}` | {record[1]} |" for record in records if record]
    table = ["", "| option | |", "|---|---|", *options] if options else []
    return "\n".join([f"## {name}", "", (command.help or "").strip(), "", "```text", usage, "```", *table])


def python_reference() -> str:
    """Return a section for each public name, which mkdocstrings fills from its docstring."""
    return "\n\n".join(_public(name) for name in kmeans_dask.__all__)


def _public(name: str) -> str:
    public = getattr(kmeans_dask, name)
    return f"::: {public.__module__}.{public.__qualname__}"


def policy_table() -> str:
    """Return what is done to images, by the words of the column ``changes``."""
    return "\n".join(["| in `changes` | what is done |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in POLICY.items())])


def rooms_table() -> str:
    """Return the table of rooms that stands in the design page, which the tests of layers read too."""
    design = (ROOT / "kmeans_dask" / "DESIGN.md").read_text(encoding="utf-8")
    table = re.search(r"^\| room \|.*?(?=\n\n)", design, re.MULTILINE | re.DOTALL)
    assert table, "kmeans_dask/DESIGN.md has no table of rooms"
    return table[0]


def cluster_files() -> str:
    """Return every example of the section ``cluster``, with its comments."""
    files = sorted((ROOT / "configs").glob("cluster-*.yaml"))
    return "\n\n".join(f"```yaml title='configs/{file.name}'\n{file.read_text(encoding='utf-8')}```" for file in files)


GENERATED: dict[str, Callable[[], str]] = {
    "<!-- commands -->": command_reference,
    "<!-- public names -->": python_reference,
    "<!-- policy -->": policy_table,
    "<!-- rooms -->": rooms_table,
    "<!-- cluster files -->": cluster_files,
}
