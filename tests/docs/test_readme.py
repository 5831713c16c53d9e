"""README.md is short, and its example runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT, blocks

README = ROOT / "README.md"


def test_readme_is_short():
    text = README.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= 120
    assert len(text.encode()) <= 8000


def test_first_screen_has_sentence_numbers_picture_and_commands():
    head = README.read_text(encoding="utf-8").partition("## ")[0]

    assert "Cluster folders of images with K-Means on Dask, score the clusters, and reduce every image to K" in head
    assert "docs/digits-and-photos.png" in head
    assert [line.split("#")[0].strip() for block in blocks(README, "sh")[:1] for line in block.splitlines()] == [
        "make run",
        "make test",
    ]


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (example,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    exec(compile(example, "README.md", "exec"), names)

    assert names["model"].cluster_centers_.shape == (10, 64)
    assert capsys.readouterr().out.startswith(str(names["model"].inertia_))
