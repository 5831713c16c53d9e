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
    assert names["table"].num_rows == 1797
    assert not names["table"].filter(names["table"]["farther"]).num_rows > 180
