"""The plan of a job is printed, and nothing is written or started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, write_config

from jobs.cli import STAGES


@pytest.mark.parametrize("stage", ["run", *STAGES])
def test_a_dry_run_writes_nothing(command: Callable[..., Said], images: Path, tmp_path: Path, stage: str):
    config = write_config(tmp_path, images, cluster={"kind": "local", "workers": 2, "memory": "2GiB"})

    said = command(stage, config, "--dry-run")

    assert said.status == 0, said.err
    assert "small: 60 items" in said.out
    assert "1 chunks of 1,024 items" in said.out
    assert "2 workers of 1 threads, 2,048 MiB each" in said.out
    assert [name for name in STAGES if f"│ {name} " in said.out] == (list(STAGES) if stage == "run" else [stage])
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_a_plan_that_cannot_fit_is_refused(command: Callable[..., Said], images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, cluster={"kind": "local", "workers": 2, "memory": "300MiB"})

    said = command("run", config, "--dry-run")

    assert said.status == 2
    assert len(said.lines) == 1
    assert "ingest takes" in said.lines[0]
    assert "240 MiB of its 300 MiB may be used" in said.lines[0]
    real = command("run", config)
    assert real.status == 2
    assert said.lines[0] in real.lines
