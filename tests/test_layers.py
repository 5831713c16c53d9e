"""Check the import rules of DESIGN.md against the imports of every module, including those inside functions."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kmeans_dask"
DESIGN = (PACKAGE / "DESIGN.md").read_text(encoding="utf-8")
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
}


def rules() -> dict[str, set[str]]:
    """The rooms from bottom to top, each with the rooms that it may import."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", DESIGN, re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for room, cell in rows:
        named = {"nothing": set(), "all above": set(allowed)}.get(cell, set(cell.split(", ")))
        allowed[room] = named | ({"errors"} if room not in ("errors", "reduction", "kmeans") else set())
    return allowed


def packages() -> dict[str, set[str]]:
    """Third-party packages, each with the rooms that may import it."""
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|$", DESIGN, re.MULTILINE)
    return {package: set(cell.split(", ")) for package, cell in rows}


def imports_of(path: Path, *, typing_too: bool) -> set[str]:
    """Dotted names that a module imports, with or without imports under ``TYPE_CHECKING``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }  # fmt: skip
    names = set()
    for node in ast.walk(tree):
        if id(node) in only_types and not typing_too:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


OURS = {
    module: {name.removeprefix("kmeans_dask.") for name in imports_of(path, typing_too=True)} & MODULES.keys()
    for module, path in MODULES.items()
}
"""For each module of the package, the modules of the package that it imports."""
ALLOWED = rules()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_design_page_lists_every_room():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py") and path.name != "py.typed"}

    assert entries - {"__init__", "__main__", "__pycache__"} == set(ALLOWED)


def test_table_has_no_upward_imports():
    below: set[str] = set()
    for room, allowed in ALLOWED.items():
        assert allowed <= below, f"{room} may import only rooms listed above it"
        below.add(room)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str):
    room = room_of(module)

    assert {room_of(other) for other in OURS[module]} - {room} <= ALLOWED[room]


def test_imports_have_no_cycles():
    assert set(TopologicalSorter(OURS).static_order()) == OURS.keys()


@pytest.mark.parametrize("package", packages())
def test_package_is_imported_only_by_its_rooms(package: str):
    importing = {
        room_of(module)
        for module, path in MODULES.items()
        if any(f"{name}.".startswith(f"{package}.") for name in imports_of(path, typing_too=False))
    }

    assert importing == packages()[package]


def test_no_module_imports_jobs():
    for module, path in MODULES.items():
        assert "jobs" not in {name.partition(".")[0] for name in imports_of(path, typing_too=True)}, module


def test_room_and_file_sizes():
    folders = {path.parent for path in MODULES.values()} - {PACKAGE}
    sizes = {
        folder.name: sum(entry.name not in ("__init__.py", "__pycache__") for entry in folder.iterdir())
        for folder in folders
    }

    assert {name: size for name, size in sizes.items() if size > 10} == {}
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 450} == {}
    assert len(ALLOWED) <= 15
