from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kmeans_dask

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("kmeans_dask", "jobs") for path in sorted((ROOT / package).rglob("*.py"))]


def test_version_matches_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert kmeans_dask.__version__ == project["version"]


@pytest.mark.parametrize("name", kmeans_dask.__all__)
def test_public_name_is_importable(name: str):
    assert callable(getattr(kmeans_dask, name))
    assert name in dir(kmeans_dask)


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="'kmeans_dask' has no attribute 'DBSCAN'"):
        kmeans_dask.DBSCAN  # noqa: B018


def modules_after(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has imported after a statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_is_cheap():
    assert modules_after("import kmeans_dask").isdisjoint({"dask", "distributed", "numpy", "zarr", "sklearn"})


def test_help_and_config_errors_are_cheap():
    heavy = {"dask", "distributed", "numpy", "zarr", "sklearn", "pyarrow", "matplotlib", "numba", "PIL", "rich"}

    assert modules_after("from kmeans_dask.cli import main; main.main(['run', '--help'])").isdisjoint(heavy)
    assert modules_after("from kmeans_dask.cli import main; main.main(['run', 'no-such-file'])").isdisjoint(heavy)


def test_tasks_do_not_import_estimators():
    tasks = (
        "collection.ingest", "colours.quantize", "evaluation.first_pass", "evaluation.internal_metrics",
        "evaluation.second_pass", "kmeans.batches", "kmeans.lloyd", "kmeans.seeding", "models.prediction",
    )  # fmt: skip

    assert modules_after("import kmeans_dask." + ", kmeans_dask.".join(tasks)).isdisjoint({"dask_ml", "sklearn"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_public_names_have_docstrings(path: Path):
    module = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in module.body if isinstance(node, kinds) and not node.name.startswith("_")]
    methods = [
        node
        for owner in top if isinstance(owner, ast.ClassDef)
        for node in owner.body if isinstance(node, kinds) and not node.name.startswith("_")
    ]  # fmt: skip

    assert ast.get_docstring(module) is not None
    assert [node.name for node in [*top, *methods] if ast.get_docstring(node) is None] == []
