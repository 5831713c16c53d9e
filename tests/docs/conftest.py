"""A finished run for the examples of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmeans_dask.cli import main
from tests.support.documents import ROOT


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``runs/digits`` of all stages, and with a table of predictions."""
    folder = tmp_path_factory.mktemp("documents")
    changes = [f"output={folder / 'runs'}", "fit.k=[10,36]", "quantize.k=[2]", "cluster.kind=threads"]
    assert main.main(["run", str(ROOT / "configs" / "digits.yaml"), *changes]) == 0
    run = folder / "runs" / "digits"
    assert main.main(["predict", str(run), str(run / "input" / "digits" / "0"), "--k", "10"]) == 0
    return folder
