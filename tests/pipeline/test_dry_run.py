"""The plan of a job is printed, and nothing is written or started."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kmeans_dask.config.loading import load_config
from kmeans_dask.pipeline.plan.estimate import Estimate
from kmeans_dask.pipeline.plan.rates import measured_rates
from kmeans_dask.pipeline.resume import STAGES, settings_of
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder, open_run
from tests.support.jobs import Run, Said, write_config


@pytest.mark.parametrize("stage", ["run", *STAGES])
def test_a_dry_run_writes_nothing(command: Callable[..., Said], images: Path, tmp_path: Path, stage: str):
    config = write_config(tmp_path, images, cluster={"kind": "local", "n_workers": 2, "memory_limit": "2GiB"})

    said = command(stage, config, "--dry-run")

    assert said.status == 0, said.err
    assert "small: 60 items" in said.out
    assert "1 chunks of 1,024 items" in said.out
    assert "2 workers of 1 threads, 2,048 MiB each" in said.out
    assert [name for name in STAGES if f"│ {name} " in said.out] == (list(STAGES) if stage == "run" else [stage])
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_a_plan_that_cannot_fit_is_refused(command: Callable[..., Said], images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, cluster={"kind": "local", "n_workers": 2, "memory_limit": "300MiB"})

    said = command("run", config, "--dry-run")

    assert said.status == 2
    assert len(said.lines) == 1
    assert "ingest takes" in said.lines[0]
    assert "240 MiB of its 300 MiB may be used" in said.lines[0]
    real = command("run", config)
    assert real.status == 2
    assert said.lines[0] in real.lines


def test_the_time_of_the_same_job_again_is_what_it_took(command: Callable[..., Said], whole_run: Run):
    said = command("run", whole_run.folder.parents[1] / "job.yaml", "name=again", "--dry-run")

    took = sum(stage["seconds"] for stage in read_json(whole_run.folder / "run.json")["stages"].values())
    assert f"time from the rates of run small ({', '.join(STAGES)})" in " ".join(said.out.split())
    told = re.search(r"together about ([0-9.]+) s", said.out)
    assert told is not None
    assert float(told[1]) == pytest.approx(took, rel=0.1, abs=0.1)


def test_too_short_a_run_tells_nothing_of_a_long_one(command: Callable[..., Said], whole_run: Run, tmp_path: Path):
    np.save(tmp_path / "many.npy", np.zeros((1_000_000, 2, 2), np.uint8))
    source = (f"input.path={tmp_path / 'many.npy'}", "input.labels=none")

    said = command("ingest", whole_run.folder.parents[1] / "job.yaml", *source, "name=again", "--dry-run")

    assert "again: 1,000,000 items" in said.out
    assert "time from built-in rates (ingest), which are those of cores of 2.6 GHz" in " ".join(said.out.split())


def test_a_rate_by_hand(images: Path, tmp_path: Path):
    """1,000 items of 1 MB in one chunk on four threads were estimated at 0.0393 s, and took 7."""
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
    # neither other settings, nor a stage that is not finished with the run's config, nor one that had been begun before
    assert measured_rates(load_config(path, ["name=new", "ingest.mode=L"]), wanted) == {}
    assert list(measured_rates(load_config(path, ["name=new", "ingest.size=[8,8]"]), wanted)) == ["ingest"]
    run.finish("ingest", {**settings, "seed": 5}, {"items": 1000, "chunks": 1, "content": "some"}, 7.0, **facts)
    assert measured_rates(config, wanted) == {}
    facts["from_nothing"] = False
    run.finish("ingest", settings, {"items": 1000, "chunks": 1, "content": "some"}, 7.0, **facts)
    assert measured_rates(config, wanted) == {}


def test_a_stage_that_goes_on_is_known(command: Callable[..., Said], images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, fit={"k": [3]}, quantize=None, report=None)
    assert command("run", config).status == 0
    assert command("fit", config, "fit.k=[3,4]").status == 0

    stages = read_json(tmp_path / "runs" / "small" / "run.json")["stages"]

    assert (stages["ingest"]["from_nothing"], stages["fit"]["from_nothing"]) == (True, False)
    assert not RunFolder(tmp_path / "runs" / "other").has_begun("fit")
