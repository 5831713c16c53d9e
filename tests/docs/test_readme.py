"""What README.md and DESIGN.md say is so: the examples run, the tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from kmeans_dask.cli import main
from kmeans_dask.config.loading import load_config
from kmeans_dask.config.sections import Config
from kmeans_dask.sources.normalize import POLICY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "kmeans_dask" / "DESIGN.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language; those without a name hold commands and listings."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def keys_of(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted keys with their defaults, ``required`` where there is none; a section without keys is its own key."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(kind)]
        below = keys_of(kinds[0], f"{prefix}{name}.") if kinds else {}
        default = "required" if field.is_required() else field.default
        keys |= below or {f"{prefix}{name}": default}
    return keys


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_config_table_names_every_key_with_its_default():
    rows = re.findall(r"^\| `([a-z_.]+)` \| .+ \| (\S+) \|", README, re.MULTILINE)
    told = {key: yaml.safe_load(cell.strip("`").replace("\\|", "|").replace("–", "null")) for key, cell in rows}

    assert told == keys_of(Config)
    assert len(rows) == len(told)


def test_policy_table_is_what_is_done():
    rows = dict(re.findall(r"^\| `([\w ]+)` \| ([^|]+) \|$", README, re.MULTILINE))

    assert {key: rows.get(key) for key in POLICY} == POLICY


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    assert main.main(["run", str(ROOT / "configs/digits.yaml"), "fit.k=10", "cluster.kind=threads"]) == 0

    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)

    assert names["model"].cluster_centers_.shape == (10, 64)
    assert names["collection"].images.shape == (1797, 8, 8, 1)
    with Image.open("flower-6.png") as image:
        assert (image.mode, len(image.getcolors())) == ("P", 6)


def test_config_example_is_allowed(tmp_path: Path):
    example, arrays, cluster = blocks("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(example)

    assert load_config(path).name == "mine"
    path.write_text(re.sub(r"(?m)^input:.*\n", arrays, example))
    assert load_config(path).input.holdout_column == "x_test"
    path.write_text(example + cluster)
    assert load_config(path).cluster.tls is not None


def test_named_files_are_there():
    named = re.findall(r"(?<![\w/])(?:configs|docker|docs|kmeans_dask)/[\w./-]+\.\w+", README)

    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("cluster", sorted(path.name for path in ROOT.glob("configs/cluster-*.yaml")))
def test_cluster_files_are_allowed(cluster: str):
    config = load_config(ROOT / "configs" / "digits.yaml", cluster=str(ROOT / "configs" / cluster))

    assert config.cluster.kind == ("address" if cluster == "cluster-docker.yaml" else Path(cluster).stem[8:])


def test_compose_starts_what_there_is():
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    address = load_config(ROOT / "configs" / "digits.yaml", cluster=str(ROOT / "configs" / "cluster-docker.yaml"))

    assert set(services) == {"scheduler", "worker", "job"}
    assert not any("ports" in service for service in services.values())
    assert address.cluster.address in services["worker"]["command"]
    assert "configs/cluster-docker.yaml" in services["job"]["command"]
