"""What README.md and the pages of the documentation show is allowed: configs, commands, keys, files, Python."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from kmeans_dask.cli.main import kmeans
from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.sections import Config
from tests.support.documents import PAGES, ROOT, blocks, code_words, commands, name_of

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
WHOLE = {"name": "whole", "input": {"path": "photos"}, "ingest": {"size": [64, 64]}, "fit": {"k": 10}}
"""What the example of a section is put into."""

all_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


@all_pages
def test_yaml_blocks_are_allowed(page: Path):
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        if "kind" in values:
            assert Cluster.model_validate(values)
        else:
            assert Config.model_validate(values if "name" in values else WHOLE | values)


@all_pages
def test_commands_are_allowed(page: Path):
    for words in commands(page, "kmeans-dask"):
        command = kmeans.commands[words[0]]
        if len(words) > 1:  # else only the command is named
            assert command.make_context(words[0], words[1:])


@all_pages
def test_options_exist(page: Path):
    known = {name for each in kmeans.commands.values() for option in each.params for name in option.opts}
    known |= {name for each in kmeans.commands.values() for option in each.params for name in option.secondary_opts}
    named = {word.split()[0] for word in code_words(page) if word.startswith("--")}

    assert named - {*known, "--help"} == set()


@all_pages
def test_make_targets_exist(page: Path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert {words[0] for words in commands(page, "make")} - set(targets) == set()


@all_pages
def test_extras_exist(page: Path):
    named = re.findall(r"kmeans-dask\[(\w+)\]|'\.\[(\w+)\]'", page.read_text(encoding="utf-8"))

    assert {first or second for first, second in named} - set(EXTRAS) == set()


@all_pages
def test_config_keys_exist(page: Path):
    sections = {name: field for name, field in Config.model_fields.items() if below(field.annotation)}
    named = re.findall(rf"^({'|'.join(sections)})\.(\w+)", "\n".join(code_words(page)), re.MULTILINE)

    assert [
        f"{section}.{key}"
        for section, key in named
        if key not in below(sections[section].annotation) and key not in ("csv", "html")  # report.html
    ] == []


def below(annotation: Any) -> dict[str, Any]:
    """Keys of the section that an annotation names, if it names one."""
    kinds = (annotation, *getattr(annotation, "__args__", ()))
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return dict(found[0].model_fields) if found else {}


@all_pages
def test_named_files_exist(page: Path):
    folders = "configs|docker|docs|kmeans_dask|jobs|benchmarks"
    named = re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]+\.\w+", page.read_text(encoding="utf-8"))

    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(digits_folder)
    names: dict[str, Any] = {}

    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)


def test_pages_of_the_documentation_are_all_in_its_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    assert [page for page in PAGES[1:] if f": {page.relative_to(ROOT / 'docs').as_posix()}\n" not in menu] == []


def test_unknown_option_is_noticed():
    with pytest.raises(click.UsageError):
        kmeans.commands["run"].make_context("run", ["mine.yaml", "--no-such-option"])


def test_notebook_runs(digits_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(digits_folder)
    names: dict[str, Any] = {}

    exec(compile((ROOT / "docs" / "notebook.py").read_text(encoding="utf-8"), "notebook.py", "exec"), names)

    assert repr(names["collection"]) == "Collection of 1,797 items of 8 x 8 x 1, 10 labels, 2 chunks"
    assert names["accuracy"] > 0.9
    assert names["sheet"].axes
    assert len(names["farthest"]) == 5
    labels = [names["new"].items["label"][row].as_py() for row in names["index"]]
    right = [label == predicted for label, predicted in zip(labels, names["predicted"], strict=True)]
    assert len(right) == 1797
    assert sum(right) > 0.9 * len(right)
