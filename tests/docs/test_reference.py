"""The generated pages of the reference hold what the code has, and the page of outputs what a run writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel

import kmeans_dask
from kmeans_dask.cli.main import kmeans
from kmeans_dask.config.sections import Config
from kmeans_dask.sources.normalize import POLICY
from kmeans_dask.storage.publish import read_json
from tests.support.documents import ROOT, load_hook

OUTPUTS = (ROOT / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")


def page(name: str, hook: str) -> str:
    """Return the text of a page of the reference, generated parts included."""
    markdown = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    generated = str(load_hook(hook).on_page_markdown(markdown))
    assert generated != markdown
    return generated


def keys_of(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted keys with their defaults, ``required`` where there is none."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if sections:
            keys |= keys_of(sections[0], f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = "required" if field.is_required() else field.default
    return keys


def test_config_page_names_every_key_with_its_default():
    row = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \| (required|–|`[^`]+`) \| (.*) \|$", re.MULTILINE)
    rows = row.findall(page("config.md", "config_reference"))
    defaults = {key: yaml.safe_load(default.strip("`").replace("–", "null")) for key, _, default, _ in rows}

    assert defaults == keys_of(Config)
    assert len(rows) == len(defaults)
    assert [key for key, _, _, description in rows if not description] == []


def test_config_page_has_every_section():
    headings = re.findall(r"^## (.+)$", page("config.md", "config_reference"), re.MULTILINE)

    assert headings == ["Top level", *list(Config.model_fields)[3:], "cluster.tls"]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("ingest.size", "[integer ≥ 1, ≤ 4,096, integer ≥ 1, ≤ 4,096]"),
        ("ingest.mode", "`L`, `RGB`"),
        ("fit.k", "`auto` or one or a list of integer ≥ 1"),
        ("fit.k_range", "[integer ≥ 1, integer ≥ 1]"),
        ("quantize.sample", "number > 0, ≤ 1"),
        ("cluster.dashboard", "`true`, `false`"),
    ],
)
def test_config_page_has_allowed_values(key: str, values: str):
    assert f"| `{key}` | {values} |" in page("config.md", "config_reference")


def test_policy_page_is_the_policy():
    rows = dict(re.findall(r"^\| `([\w ]+)` \| ([^|]+) \|$", page("image-policy.md", "reference_pages"), re.MULTILINE))

    assert rows == POLICY


def test_command_page_has_every_command_and_option():
    text = page("command-line.md", "reference_pages")
    shown = {name: command for name, command in kmeans.commands.items() if not command.hidden}

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(shown)
    for name, command in shown.items():
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        options = [option for option in command.params if option.opts[0].startswith("-")]
        assert f"kmeans-dask {name} " in section
        assert len(re.findall(r"^\| `--", section, re.MULTILINE)) == len(options)


def test_python_page_has_every_public_name():
    directives = re.findall(r"^::: kmeans_dask\.(?:\w+\.)*(\w+)$", page("python.md", "reference_pages"), re.MULTILINE)

    assert directives[: len(kmeans_dask.__all__)] == kmeans_dask.__all__


def test_architecture_page_has_every_room():
    architecture = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "kmeans_dask").iterdir() if (path / "__init__.py").exists()}

    text = load_hook("reference_pages").on_page_markdown(architecture)

    assert rooms - set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set()


def test_outputs_page_names_every_file_of_a_run(digits_folder: Path):
    named = {name.split("/")[0] for name in re.findall(r"`([^`]+)`", OUTPUTS)}
    written = {path.name for path in (digits_folder / "runs" / "digits").iterdir() if not path.name.startswith(".")}

    assert {name for name in written if name not in named and Path(name).suffix != ".csv"} == set()


def test_outputs_page_names_every_column(digits_folder: Path):
    run = digits_folder / "runs" / "digits"
    tables = [run / name for name in ("cluster_facts.parquet", "confusion.parquet", "quantized.parquet")]
    tables += (run / "predictions").glob("*.parquet")
    columns = {name for table in tables for name in pq.read_schema(table).names}
    for name in ("items", "label_issues", "outliers", "duplicates"):
        columns |= set(pyarrow.csv.read_csv(run / f"{name}.csv").column_names)
    columns |= set(read_json(run / "metrics.json")[0])

    assert {column for column in columns if f"`{column}`" not in OUTPUTS} == set()
