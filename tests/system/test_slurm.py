"""Jobs on a real Slurm of one node: ``make test-slurm``, as root on Debian."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kmeans_dask.cli import main
from kmeans_dask.storage.journal import journal_of
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import files_of, write_config
from tests.support.one_node import Slurm
from tests.support.processes import Process

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALL = {"threads_per_worker": 1, "memory_limit": "1GiB", "host": "127.0.0.1"}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The daemons; commands of this process and of what it starts talk to them."""
    with Slurm(tmp_path_factory.mktemp("slurm")) as running, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, running.environ[name])
        yield running


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job that has been run by threads of this process, as ``local``."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=150, side=160, levels=16)
    config = write_config(
        folder,
        folder / "images",
        name="local",
        output="runs",
        ingest={"size": [112, 112]},
        fit={"k": 8},
        quantize={"k": [2, 6, 30]},
        report=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(["run", str(config)]) == 0
    return config


def cluster_file(folder: Path, **keys: object) -> Path:
    path = folder / f"cluster-{keys['kind']}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def results(run: Path) -> dict[str, bytes]:
    """What must not depend on where a job has run."""
    centres = [*run.glob("models/*/*.zarr/centres/**/*"), *run.glob("quantized/**/*.png"), run / "items.csv"]
    return {str(path.relative_to(run)): path.read_bytes() for path in centres if path.is_file()}


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_workers_are_jobs_and_end_with_it(kind: str, slurm: Slurm, job: Path, start: Callable[..., Process]):
    """Of kind pbs they are submitted by the commands of PBS, in a script of PBS, which Slurm has too."""
    cluster = cluster_file(job.parent, kind=kind, n_workers=2, walltime="00:10:00", **SMALL)

    process = start("kmeans-dask", "run", job, f"name={kind}", "--cluster", cluster, folder=job.parent)
    process.wait_until(lambda: len(slurm.jobs()) == 2)
    details = slurm.run("scontrol", "show", "job", slurm.jobs()[0])

    assert process.wait(200) == 0, process.output
    assert "TimeLimit=00:10:00" in details
    assert "MinMemoryNode=1G" in details
    assert results(job.parent / "runs" / kind) == results(job.parent / "runs" / "local")
    assert all(state == "CANCELLED" for state in map(slurm.state, slurm.jobs()))


def test_a_worker_that_is_lost_is_asked_for_again(slurm: Slurm, job: Path, start: Callable[..., Process]):
    cluster = cluster_file(job.parent, kind="slurm", n_workers=1, walltime="00:10:00", **SMALL)
    folder = job.parent / "runs" / "lost"
    before = slurm.jobs()

    process = start("kmeans-dask", "run", job, "name=lost", "--cluster", cluster, folder=job.parent)
    process.wait_until(lambda: list(folder.glob("quantized/*/*/*.png")), 120)
    (lost,) = set(slurm.jobs()) - set(before)
    slurm.run("scancel", lost)

    assert process.wait(200) == 0, process.output
    assert results(folder) == results(job.parent / "runs" / "local")


def test_a_queue_that_is_not_there_is_one_line(slurm: Slurm, job: Path, start: Callable[..., Process]):
    cluster = cluster_file(job.parent, kind="slurm", n_workers=2, queue="nowhere", **SMALL)

    process = start("kmeans-dask", "run", job, "name=refused", "--cluster", cluster, folder=job.parent)

    assert process.wait() == 2
    assert "Traceback" not in process.output
    assert "cluster.kind=slurm cannot be started here" in process.output.splitlines()[-1]
    assert "invalid partition specified: nowhere" in process.output.splitlines()[-1]


def script_of_readme(job: Path, name: str, cluster: Path) -> Path:
    """The script that the README shows, with this job in it, a minute's time and less memory."""
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?srun.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for shown, wanted in {
        "mine.yaml": f"{job} name={name}",
        "configs/cluster-slurm-runner.yaml": str(cluster),
        "--time=02:00:00": "--time=00:01:00",
        "--mem-per-cpu=4G": "--mem-per-cpu=1G",
        "--ntasks=34": "--ntasks=4",
    }.items():
        assert shown in script
        script = script.replace(shown, wanted)
    path = job.parent / f"{name}.sh"
    path.write_text(script)
    return path


def test_a_job_that_runs_out_of_time_goes_on_when_it_is_submitted_again(
    slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch
):
    cluster = cluster_file(job.parent, kind="slurm-runner", **SMALL)
    script = script_of_readme(job, "again", cluster)
    run = job.parent / "runs" / "again"
    monkeypatch.chdir(job.parent)

    first = slurm.run("sbatch", "--parsable", script).strip()
    wait_until(lambda: list(run.glob("models/*/k=*.zarr")))
    slow = [process for process in psutil.process_iter() if is_part_of(process, first)]
    wait_until(lambda: list(run.glob("quantized/*/*/*.png")))
    for process in slow:
        process.send_signal(signal.SIGSTOP)  # what is in the middle of its work stays there until its time is over
    assert len(slow) >= 6  # scheduler, job, two nannies, two workers
    assert slurm.wait(first, 240) == "TIMEOUT"
    wait_until(lambda: not any(process.is_running() for process in slow))
    journal = journal_of(run)
    assert journal is not None
    noted = {outcome.output for outcome in journal.outcomes().values()}  # what is written but not noted is done again
    left = {name: stamp for name, stamp in files_of(run).items() if name in noted}
    state = read_json(run / "run.json")["state"]
    second = slurm.run("sbatch", "--parsable", "--time=00:05:00", script).strip()  # a busy machine may need it

    output = Path(f"slurm-{second}.out")
    assert slurm.wait(second, 280) == "COMPLETED", output.read_text()
    assert "Traceback" not in output.read_text()
    assert state != "finished"
    assert 0 < len(left) < len(list(run.glob("quantized/**/*.png")))
    assert {name: files_of(run)[name] for name in left} == left  # nothing is done twice
    assert results(run) == results(job.parent / "runs" / "local")
    assert list(job.parent.glob(".scheduler-*")) == [job.parent / f".scheduler-{first}-0-0.json"]


def is_part_of(process: psutil.Process, job: str) -> bool:
    try:
        return process.environ().get("SLURM_JOB_ID") == job and process.name().startswith(("python", "kmeans-dask"))
    except psutil.Error:  # it has ended
        return False


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_mistakes_are_one_line_and_end_the_job(slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)
    cluster = cluster_file(job.parent, kind="slurm-runner", **SMALL)
    srun = ["srun", "--kill-on-bad-exit=1", "--mem-per-cpu=1G"]
    wrong = ["kmeans-dask", "run", job, "input.path=nowhere", "--cluster", cluster]

    few = subprocess.run([*srun, "--ntasks=2", *wrong], capture_output=True, text=True, timeout=60, check=False)
    lost = subprocess.run([*srun, "--ntasks=3", *wrong], capture_output=True, text=True, timeout=60, check=False)
    bare = subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False)

    assert bare.returncode == 2
    assert (few.returncode, lost.returncode) == (2, 2)  # though srun ends the other tasks by SIGTERM
    assert "kind slurm-runner needs 3 tasks or more" in few.stderr
    assert "input.path=nowhere: there is no such file or folder" in lost.stderr
    assert "start the command with srun" in bare.stderr
    assert "Traceback" not in few.stderr + lost.stderr + bare.stderr
