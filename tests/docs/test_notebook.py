"""docs/notebook.py runs from its first to its last cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT


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
