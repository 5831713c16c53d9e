"""jobs/slurm.sh, jobs/slurm_runner.sh and the cluster kinds on a one-node Slurm: ``make test-slurm``, root, Debian."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from kmeans_dask.cli import main
from kmeans_dask.storage.journal import find_journal
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import files_of, write_config
from tests.support.one_node import Slurm
from tests.support.processes import Process

JOBS = Path(__file__).parents[2] / "jobs"
SMALL = {"threads_per_worker": 1, "memory_limit": "1GiB", "host": "127.0.0.1"}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A running Slurm, which this process and its children use."""
    with Slurm(tmp_path_factory.mktemp("slurm")) as running, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, running.environ[name])
        yield running


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job; the run ``local`` is its result without Slurm."""
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
    """Files that must not depend on where the job runs."""
    files = [*run.glob("models/*/*.zarr/centres/**/*"), *run.glob("quantized/**/*.png"), run / "items.csv"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def submit(slurm: Slurm, script: str, *arguments: object, options: Sequence[str] = ()) -> str:
    """Submit a script of jobs/ from the current folder; return the id of the job."""
    return slurm.run("sbatch", "--parsable", *options, JOBS / script, *arguments).strip()


def check_worker_jobs(slurm: Slurm, workers: Sequence[str]) -> None:
    for worker in workers:
        details = slurm.run("scontrol", "show", "job", worker)
        assert "TimeLimit=00:10:00" in details
        assert "MinMemoryNode=1G" in details


def test_slurm_sh_submits_workers_and_cancels_them(slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)
    cluster = cluster_file(job.parent, kind="slurm", n_workers=2, walltime="00:10:00", **SMALL)

    driver = submit(slurm, "slurm.sh", job, "name=slurm", "--cluster", cluster, options=["--mem=1G"])
    wait_until(lambda: len(slurm.jobs()) == 3)
    workers = [number for number in slurm.jobs() if number != driver]
    check_worker_jobs(slurm, workers)

    output = Path(f"slurm-{driver}.out")
    assert slurm.wait(driver, 200) == "COMPLETED", output.read_text()
    assert "Traceback" not in output.read_text()
    assert results(job.parent / "runs" / "slurm") == results(job.parent / "runs" / "local")
    assert [slurm.wait(worker, 20) for worker in workers] == ["CANCELLED"] * 2


def test_pbs_workers(slurm: Slurm, job: Path, start: Callable[..., Process]):
    """Slurm has the commands of PBS, and accepts its scripts."""
    cluster = cluster_file(job.parent, kind="pbs", n_workers=2, walltime="00:10:00", **SMALL)

    process = start("kmeans-dask", "run", job, "name=pbs", "--cluster", cluster, folder=job.parent)
    process.wait_until(lambda: len(slurm.jobs()) == 2)
    workers = slurm.jobs()
    check_worker_jobs(slurm, workers)

    assert process.wait(200) == 0, process.output
    assert results(job.parent / "runs" / "pbs") == results(job.parent / "runs" / "local")
    assert [slurm.wait(worker, 20) for worker in workers] == ["CANCELLED"] * 2


def test_lost_worker_is_replaced(slurm: Slurm, job: Path, start: Callable[..., Process]):
    cluster = cluster_file(job.parent, kind="slurm", n_workers=1, walltime="00:10:00", **SMALL)
    folder = job.parent / "runs" / "lost"
    before = slurm.jobs()

    process = start("kmeans-dask", "run", job, "name=lost", "--cluster", cluster, folder=job.parent)
    process.wait_until(lambda: list(folder.glob("quantized/*/*/*.png")), 120)
    (lost,) = set(slurm.jobs()) - set(before)
    slurm.run("scancel", lost)

    assert process.wait(200) == 0, process.output
    assert results(folder) == results(job.parent / "runs" / "local")


def test_unknown_queue_is_one_line(slurm: Slurm, job: Path, start: Callable[..., Process]):
    cluster = cluster_file(job.parent, kind="slurm", n_workers=2, queue="nowhere", **SMALL)

    process = start("kmeans-dask", "run", job, "name=refused", "--cluster", cluster, folder=job.parent)

    assert process.wait() == 2
    assert "Traceback" not in process.output
    assert "cluster.kind=slurm cannot be started here" in process.output.splitlines()[-1]
    assert "invalid partition specified: nowhere" in process.output.splitlines()[-1]


def test_slurm_runner_sh_resumes_after_its_time_limit(slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)
    cluster = cluster_file(job.parent, kind="slurm-runner", **SMALL)
    command = ("slurm_runner.sh", job, "name=again", "--cluster", cluster)
    small = ["--ntasks=4", "--mem-per-cpu=1G"]
    run = job.parent / "runs" / "again"

    first = submit(slurm, *command, options=[*small, "--time=00:01:00"])
    wait_until(lambda: list(run.glob("models/*/k=*.zarr")))
    processes = [process for process in psutil.process_iter() if belongs_to(process, first)]
    wait_until(lambda: (journal := find_journal(run)) and journal.outcomes())
    for process in processes:
        process.send_signal(signal.SIGSTOP)  # so that the job is still in this stage at its time limit
    assert len(processes) >= 6  # scheduler, driver, two nannies, two workers
    assert slurm.wait(first, 240) == "TIMEOUT"
    wait_until(lambda: not any(process.is_running() for process in processes))
    journal = find_journal(run)
    assert journal is not None
    recorded = {outcome.output for outcome in journal.outcomes().values()}  # an output that is not recorded is repeated
    kept = {name: stamp for name, stamp in files_of(run).items() if name in recorded}
    state = read_json(run / "run.json")["state"]
    second = submit(slurm, *command, options=[*small, "--time=00:05:00"])  # a busy machine may need five minutes

    output = Path(f"slurm-{second}.out")
    assert slurm.wait(second, 280) == "COMPLETED", output.read_text()
    assert "Traceback" not in output.read_text()
    assert state != "finished"
    assert 0 < len(kept) < len(list(run.glob("quantized/**/*.png")))
    assert {name: files_of(run)[name] for name in kept} == kept  # no recorded output is written again
    assert results(run) == results(job.parent / "runs" / "local")
    assert list(job.parent.glob(".scheduler-*")) == [job.parent / f".scheduler-{first}-0-0.json"]


def belongs_to(process: psutil.Process, job: str) -> bool:
    try:
        return process.environ().get("SLURM_JOB_ID") == job and process.name().startswith(("python", "kmeans-dask"))
    except psutil.Error:  # the process has ended
        return False


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_wrong_input_is_one_line_and_ends_the_job(slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)
    cluster = cluster_file(job.parent, kind="slurm-runner", **SMALL)
    srun = ["srun", "--kill-on-bad-exit=1", "--mem-per-cpu=1G"]
    wrong = ["kmeans-dask", "run", job, "input.path=nowhere", "--cluster", cluster]

    few = subprocess.run([*srun, "--ntasks=2", *wrong], capture_output=True, text=True, timeout=60, check=False)
    lost = subprocess.run([*srun, "--ntasks=3", *wrong], capture_output=True, text=True, timeout=60, check=False)
    bare = subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False)

    assert bare.returncode == 2
    assert (few.returncode, lost.returncode) == (2, 2)  # although srun ends the other tasks with SIGTERM
    assert "kind slurm-runner requires at least 3 tasks" in few.stderr
    assert "input.path=nowhere: no such file or folder" in lost.stderr
    assert "start the command with srun" in bare.stderr
    assert "Traceback" not in few.stderr + lost.stderr + bare.stderr
