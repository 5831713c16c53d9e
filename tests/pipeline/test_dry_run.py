"""``--dry-run`` prints the plan of a job without writing or starting anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kmeans_dask.config.loading import load_config
from kmeans_dask.pipeline.plan.estimate import Estimate
from kmeans_dask.pipeline.plan.rates import measured_rates
from kmeans_dask.pipeline.resume import STAGES, has_started, settings_of
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import open_run
from tests.support.jobs import Result, Run, write_config


@pytest.mark.parametrize("stage", ["run", *STAGES])
def test_dry_run_writes_nothing(command: Callable[..., Result], images: Path, tmp_path: Path, stage: str):
    config = write_config(tmp_path, images, cluster={"kind": "local", "n_workers": 2, "memory_limit": "2GiB"})

    result = command(stage, config, "--dry-run")

    assert result.status == 0, result.err
    assert "small: 60 items" in result.out
    assert "1 chunks of 1,024 items" in result.out
    assert "2 workers with 1 threads each, memory limit 2,048 MiB each" in result.out
    assert [name for name in STAGES if f"│ {name} " in result.out] == (list(STAGES) if stage == "run" else [stage])
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_plan_that_exceeds_memory_is_refused(command: Callable[..., Result], images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, cluster={"kind": "local", "n_workers": 2, "memory_limit": "300MiB"})

    result = command("run", config, "--dry-run")

    assert result.status == 2
    assert len(result.lines) == 1
    assert "ingest needs" in result.lines[0]
    assert "240 MiB of its 300 MiB may be used" in result.lines[0]
    real = command("run", config)
    assert real.status == 2
    assert result.lines[0] in real.lines


def test_estimate_uses_rates_of_a_finished_run(command: Callable[..., Result], whole_run: Run):
    result = command("run", whole_run.folder.parents[1] / "job.yaml", "name=again", "--dry-run")

    took = sum(stage["seconds"] for stage in read_json(whole_run.folder / "run.json")["stages"].values())
    assert f"time from the rates of run small ({', '.join(STAGES)})" in " ".join(result.out.split())
    estimate = re.search(r"total: about ([0-9.]+) s", result.out)
    assert estimate is not None
    assert float(estimate[1]) == pytest.approx(took, rel=0.1, abs=0.1)


def test_rates_of_too_short_runs_are_ignored(command: Callable[..., Result], whole_run: Run, tmp_path: Path):
    np.save(tmp_path / "many.npy", np.zeros((1_000_000, 2, 2), np.uint8))
    source = (f"input.path={tmp_path / 'many.npy'}", "input.labels=none")

    result = command("ingest", whole_run.folder.parents[1] / "job.yaml", *source, "name=again", "--dry-run")

    assert "again: 1,000,000 items" in result.out
    assert "time from built-in rates (ingest), measured at 2.6 GHz" in " ".join(result.out.split())


def test_rate_computed_by_hand(images: Path, tmp_path: Path):
    """1,000 items of 1 MB in one chunk on four threads: estimated at 0.0393 s, measured 7 s."""
    path = write_config(tmp_path, images, name="before")
    config = load_config(path)
    run = open_run(config)
    facts = {"workers": {"a": 1, "b": 1}, "threads": 2, "bytes_read": 10**6, "from_nothing": True}
    settings = settings_of("ingest", config, run)
    run.finish("ingest", settings, {"items": 1000, "chunks": 1, "content": "some"}, 7.0, **facts)
    wanted = {"ingest": Estimate(9, 1, 100.0, 0)}

    (rate,) = measured_rates(load_config(path, ["name=new"]), wanted).items()

    assert rate[0] == "ingest"
    assert rate[1].run == "before"
    assert rate[1].factor == pytest.approx(7 / ((134e-6 * 1000 + 19e-9 * 10**6) / 4 + 1e-3))
    # no rates from other settings, from stages not finished with the run's config, or from resumed stages
    assert measured_rates(load_config(path, ["name=new", "ingest.mode=L"]), wanted) == {}
    assert list(measured_rates(load_config(path, ["name=new", "ingest.size=[8,8]"]), wanted)) == ["ingest"]
    run.finish("ingest", {**settings, "seed": 5}, {"items": 1000, "chunks": 1, "content": "some"}, 7.0, **facts)
    assert measured_rates(config, wanted) == {}
    facts["from_nothing"] = False
    run.finish("ingest", settings, {"items": 1000, "chunks": 1, "content": "some"}, 7.0, **facts)
    assert measured_rates(config, wanted) == {}


def test_resumed_stage_is_recorded(command: Callable[..., Result], images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, fit={"k": [3]}, quantize=None, report=None)
    assert command("run", config).status == 0
    assert command("fit", config, "fit.k=[3,4]").status == 0

    stages = read_json(tmp_path / "runs" / "small" / "run.json")["stages"]

    assert (stages["ingest"]["from_nothing"], stages["fit"]["from_nothing"]) == (True, False)
    assert not has_started("fit", RunFolder(tmp_path / "runs" / "other"))
