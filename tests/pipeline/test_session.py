"""One driver per run, its progress, and its ends (cancelled, interrupted, killed), with real processes and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kmeans_dask.cli.status import status_lines
from kmeans_dask.cli.submit import with_absolute_paths
from kmeans_dask.config.loading import load_config
from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.run import run_stages
from kmeans_dask.storage.lock import last_driver
from kmeans_dask.storage.publish import create, read_json
from tests.support.images import draw_images
from tests.support.jobs import Result, files_of, write_config
from tests.support.processes import COMMANDS, Process

Command = Callable[..., Result]
LONG = {"k": list(range(150, 250)), "init": "k-means||"}
"""Settings that take minutes, which no test waits for."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job that takes longer than any test."""
    folder = tmp_path_factory.mktemp("slow")
    draw_images(folder / "images", count=60, side=160)
    stages: dict[str, Any] = {"ingest": None, "fit": None, "evaluate": None, "report": None, "quantize": LONG}
    return write_config(folder, folder / "images", cluster={"kind": "local", "n_workers": 1}, **stages)


@pytest.fixture
def at_work(slow: Path) -> Iterator[Callable[..., tuple[Process, Path]]]:
    """Start a job of that config under a given name and wait for its quantize stage; return process and run folder."""
    started: list[Process] = []

    def call(name: str, *arguments: str) -> tuple[Process, Path]:
        process = Process([str(COMMANDS / "kmeans-dask"), "run", str(slow), f"name={name}", *arguments], slow.parent)
        started.append(process)
        run = slow.parent / "runs" / name
        process.wait_until(lambda: (step_of(run) or {}).get("title") == "quantize")
        return process, run

    yield call
    for process in started:
        process.end()


def step_of(run: Path) -> dict[str, Any] | None:
    last = last_driver(run / "drivers")
    return last["progress"].get("step") if last else None


def log_of(run: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logs" / f"{number}.jsonl").read_text().splitlines()]


def test_status_exclusion_and_cancellation_of_a_running_job(
    command: Command, slow: Path, at_work: Callable[..., tuple[Process, Path]]
):
    process, run = at_work("watched", "cluster.kind=threads")
    last = last_driver(run / "drivers")
    assert last is not None
    who = f"process {last['pid']} on {os.uname().nodename}"

    result = command("status", run)
    assert result.status == 0
    state, step = result.out.splitlines()
    assert state.startswith(f"watched: running; {who} (kmeans-dask run ")
    assert state.endswith("is alive")
    assert re.fullmatch(r"quantize: \d+ of 60 items.*", step)

    for arguments in (("run", slow, "name=watched"), ("retry", run), ("run", slow, "name=watched", "--fresh")):
        result = command(*arguments)
        assert (result.status, result.out, len(result.lines)) == (2, "", 1), result
        assert f"watched is in use by {who}" in result.err
        assert f"kmeans-dask cancel {run}" in result.err

    result = command("cancel", run)
    assert (result.status, result.out) == (0, "watched: cancelled\n")
    assert process.wait() == 130
    assert process.output.splitlines()[-1] == "kmeans-dask: cancelled; rerun the same command to resume"
    assert "Traceback" not in process.output
    assert read_json(run / "run.json")["state"] == "cancelled"

    assert command("status", run).out.startswith("watched: cancelled, 20")
    assert command("cancel", run).out == "watched: nothing to cancel, as no driver is running; the run is cancelled\n"
    result = command("logs", run, "--follow")
    assert result.status == 0
    assert re.search(r"^20\S+ \S+ \[quantize\] quantize: 60 items in K = ", result.out, re.MULTILINE)
    assert result.out.splitlines()[-1].endswith(" WARNING cancelled; rerun the same command to resume")
    first, *_, last_entry = log_of(run, 1)
    assert (first["message"], first["pid"], first["level"]) == ("driver started", last["pid"], "info")
    assert last_entry["level"] == "warning"

    result = command(
        "run", slow, "name=watched", "quantize.k=2", "cluster.kind=threads"
    )  # the old cancel request does not apply
    assert result.status == 0
    assert read_json(run / "run.json")["driver_starts"] == 2


def test_killed_driver_is_recognized(command: Command, slow: Path, at_work: Callable[..., tuple[Process, Path]]):
    process, run = at_work("killed", "cluster.kind=threads")
    last = last_driver(run / "drivers")
    assert last is not None

    os.kill(last["pid"], signal.SIGKILL)
    process.wait()

    who = f"process {last['pid']} on {os.uname().nodename}"
    result = command("status", run)
    assert re.match(rf"killed: stopped; {who} .+ is dead; rerun the same command to resume\n", result.out)
    assert re.fullmatch(rf"killed: {who} .+ is dead\n", command("cancel", run).out)
    assert command("logs", run, "--follow").status == 0  # there is nothing to follow
    result = command("run", slow, "name=killed", "quantize.k=2", "cluster.kind=threads")
    assert result.status == 0
    assert re.match(rf"killed: {who} .+ is dead; resuming its work", result.lines[0])


def test_driver_ends_if_its_run_is_taken_over(at_work: Callable[..., tuple[Process, Path]]):
    process, run = at_work("lost", "cluster.kind=threads")
    last = last_driver(run / "drivers")
    assert last is not None

    newer = {**last, "number": 2, "token": "another", "host": "elsewhere"}
    assert create(run / "drivers" / "2.json", json.dumps(newer))

    assert process.wait() == 1
    message = rf"kmeans-dask: this driver has lost its run: process {last['pid']} on elsewhere .+ is working on it now"
    assert re.fullmatch(message, process.output.splitlines()[-1])
    assert "Traceback" not in process.output
    assert read_json(run / "run.json")["state"] == "running"  # as written by the other driver
    assert read_json(run / "drivers" / "2.json") == newer


def test_sigterm_ends_cleanly(at_work: Callable[..., tuple[Process, Path]]):
    """Sent to every process of the job, as Slurm and Kubernetes do."""
    process, run = at_work("terminated")

    process.signal_all(signal.SIGTERM)

    assert process.wait() == 143
    last = "kmeans-dask: interrupted by SIGTERM; rerun the same command to resume"
    assert process.output.splitlines()[-1] == last
    assert "Traceback" not in process.output
    assert read_json(run / "run.json")["state"] == "interrupted"
    driver = last_driver(run / "drivers")
    assert driver is not None
    assert driver["ended"]


def test_second_ctrl_c_ends_at_once_during_cleanup(at_work: Callable[..., tuple[Process, Path]]):
    process, run = at_work("twice")
    last = last_driver(run / "drivers")
    assert last is not None
    workers = psutil.Process(last["pid"]).children(recursive=True)

    for worker in workers:
        worker.suspend()  # the driver waits for them to end
    os.kill(last["pid"], signal.SIGINT)
    process.wait_until(lambda: read_json(run / "run.json")["state"] == "interrupted")  # now it is ending its workers
    os.kill(last["pid"], signal.SIGINT)

    assert process.wait() == 130
    assert "\nkmeans-dask: stopped at once; rerun the same command to resume\n" in process.output
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.resume()
    assert psutil.wait_procs(workers, timeout=60)[1] == []  # they end with the driver
    assert workers


def test_second_signal_interrupts_cleanup():
    code = (
        "import time\nfrom kmeans_dask.pipeline.driver.stopping import stoppable\n"
        "with stoppable():\n"
        "    try:\n        print('working', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleaning up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for expected, number in ((b"working\n", signal.SIGINT), (b"cleaning up\n", signal.SIGTERM)):
            assert process.stdout.readline() == expected
            process.send_signal(number)
        assert process.wait(60) == 143


def test_status_lines():
    step = {"title": "ingest", "done": 2_000, "total": 10_000, "unit": "items", "seconds": 20.0, "failed": 3}
    driver = {"pid": 7, "host": "alpha", "command": "kmeans-dask run a.yaml", "progress": {"step": step}}
    stages = [{"name": "ingest", "seconds": 3.21, "failed": 4}, {"name": "fit", "seconds": 20.0, "failed": 0}]
    facts = {"name": "a", "state": "running", "changed": "2026", "stages": stages, "driver": driver, "alive": True}

    assert list(status_lines(facts)) == [
        "a: running; process 7 on alpha (kmeans-dask run a.yaml) is alive",
        "ingest: 2,000 of 10,000 items, 100/s, 1 min 20 s left, 3 failed",
        "finished: ingest (3.2 s, 4 failed), fit (20.0 s)",
    ]


def test_run_record_and_log(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, fit={"k": 3}, report=None)
    assert command("run", config).status == 0
    run = tmp_path / "runs" / "small"

    record = read_json(run / "run.json")

    assert (record["state"], record["seed"], record["driver_starts"]) == ("finished", 0, 1)
    assert {"host", "python", "versions", "command", "started", "changed"} <= record.keys()
    assert record["started"] <= record["changed"]
    stages = record["stages"]
    assert {stage: entry["workers"] for stage, entry in stages.items() if stage != "listing"} == dict.fromkeys(
        ("ingest", "fit", "evaluate", "quantize"), stages["ingest"]["workers"]
    )
    assert list(stages["ingest"]["workers"].values()) == [2]
    image_bytes = sum(path.stat().st_size for path in images.rglob("*.png"))
    collection = sum(path.stat().st_size for path in (run / "collection.zarr").rglob("*") if path.is_file())
    quantized = sum(path.stat().st_size for path in (run / "quantized").rglob("*.png"))
    assert (stages["ingest"]["bytes_read"], stages["ingest"]["bytes_written"]) == (image_bytes, collection)
    assert stages["fit"]["bytes_read"] == collection
    assert (stages["quantize"]["bytes_read"], stages["quantize"]["bytes_written"]) == (image_bytes, quantized)
    entries = log_of(run, 1)
    assert all({"time", "level", "stage", "message"} <= entry.keys() for entry in entries)
    (finished,) = (entry for entry in entries if entry["message"] == "fit finished")
    assert (finished["stage"], finished["seconds"]) == ("fit", stages["fit"]["seconds"])
    assert [entry["level"] for entry in entries] == ["info"] * len(entries)


def test_restarted_driver_of_a_fresh_submission_resumes(images: Path, tmp_path: Path):
    stages: dict[str, Any] = {"fit": None, "evaluate": None, "quantize": None, "report": None}
    config = load_config(write_config(tmp_path, images, **stages))
    run_stages(config, ["ingest"])
    before = files_of(tmp_path / "runs" / "small" / "collection.zarr")

    run_stages(config, ["ingest"], fresh=True, job="a", command="kmeans-dask submit --fresh")
    first = files_of(tmp_path / "runs" / "small" / "collection.zarr")
    run_stages(config, ["ingest"], fresh=True, job="a", command="kmeans-dask submit --fresh")

    assert not first.items() & before.items()
    assert files_of(tmp_path / "runs" / "small" / "collection.zarr") == first


def test_submitted_config_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    values = {
        "name": "a",
        "output": "runs",
        "input": {
            "path": ["x/*.jpg", "s3://bucket/y", "/z"],
            "holdout": "../held",
            "table": "~/t.csv",
            "labels": "column:a",
        },
        "ingest": {"size": [8, 8]},
        "fit": {"k": 2},
        "quantize": {"k": 2, "palette": "shared"},
    }

    config = with_absolute_paths(Config.model_validate(values))

    assert config.output == str(tmp_path / "runs")
    assert config.input.path == [str(tmp_path / "x" / "*.jpg"), "s3://bucket/y", "/z"]
    assert (config.input.holdout, config.input.table) == (str(tmp_path.parent / "held"), "/home/me/t.csv")
    assert config.quantize is not None
    assert config.quantize.palette == "shared"
    for holdout in ("column:split=test", "pattern:^test/", 0.25, None):
        same = {**values, "input": {"path": "x", "holdout": holdout}}
        assert with_absolute_paths(Config.model_validate(same)).input.holdout == holdout


def test_errors_are_logged(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, tmp_path / "images", input={"path": "x", "max_failed": 0}, fit=None, evaluate=None)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    (tmp_path / "images" / "whole.png").write_bytes((images / "disc" / "000.png").read_bytes())

    assert command("ingest", config, f"input.path={tmp_path / 'images'}").status == 1

    run = tmp_path / "runs" / "small"
    *_, last = log_of(run, 1)
    assert last["level"] == "error"
    assert "1 of 2 items could not be read" in last["message"]
    assert "traceback" not in last
    assert last["stage"] == "ingest"


@pytest.mark.parametrize("name", ["status", "logs", "cancel"])
def test_commands_refuse_a_folder_that_is_not_a_run(command: Command, tmp_path: Path, name: str):
    result = command(name, tmp_path)

    assert (result.status, result.out, len(result.lines)) == (2, "", 1)
    assert "give " in result.err
    assert "for example runs/digits" in result.err
