"""README.md and the pages of the documentation as text: their blocks of code and their words in code font."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """Return the path of a page in the project, for the name of a test."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of some languages, without those that include a file."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if "--8<--" not in block]


def code_words(page: Path) -> list[str]:
    """Return everything that stands in code font within a line."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the arguments of every call of a program, in blocks of a shell and in code font."""
    lines = [line for block in blocks(page, "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    wrapped = [shlex.split(word) for line in words for word in line if word.startswith(f"{program} ")]
    inline = [shlex.split(code) for code in code_words(page) if code.startswith(f"{program} ")]
    calls = [line[line.index(program) + 1 :] for line in [*words, *wrapped, *inline] if program in line]
    return [call for call in calls if call[0] != "COMMAND"]  # stands for any of them


def load_hook(name: str) -> ModuleType:
    """Import a hook of MkDocs from the folder of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
