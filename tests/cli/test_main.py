"""The command line: help, exit statuses, and one-line messages for invalid input."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from kmeans_dask import __version__
from kmeans_dask.pipeline.resume import STAGES
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import Result, Run, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Result]
FIT_ONLY = {"evaluate": None, "quantize": None, "report": None}


@pytest.mark.parametrize("name", ["run", *STAGES])
def test_command_help(command: Command, name: str):
    result = command(name, "--help")

    assert result.status == 0
    assert f"Usage: kmeans-dask {name} [OPTIONS] CONFIG [KEY=VALUE]..." in result.out
    assert "--cluster FILE|tcp://..." in result.out
    assert "--fresh / --resume" in result.out
    assert result.err == ""


def test_help_lists_all_commands(command: Command):
    result = command("-h")

    assert result.status == 0
    for name in ("run", *STAGES):
        assert f"\n  {name} " in result.out
    assert "fit.k=[10,256]" in result.out


def test_version(command: Command):
    assert command("--version").out == f"kmeans-dask, version {__version__}\n"


def test_both_commands_are_installed(start: Callable[..., Process]):
    alone, plugin = start("kmeans-dask", "--help"), start("dask", "kmeans", "--help")

    assert (alone.wait(), plugin.wait()) == (0, 0)
    assert "Usage: kmeans-dask [OPTIONS] COMMAND" in alone.output
    assert "Usage: dask kmeans [OPTIONS] COMMAND" in plugin.output
    assert [entry.name for entry in entry_points(group="dask_cli") if entry.value == "kmeans_dask.cli.main:kmeans"] == [
        "kmeans"
    ]


@pytest.mark.parametrize("arguments", [[], ["run"], ["cluster", "x.yaml"], ["run", "x.yaml", "--workers", "3"]])
def test_invalid_command_line(command: Command, arguments: list[str]):
    result = command(*arguments)

    assert result.status == 2
    assert "Usage: kmeans-dask" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("fit.clusters=3", ["unknown key fit.clusters", "allowed keys: k, algorithm"]),
        ("fit.k=ten", ["fit.k='ten'", "integer"]),
        ("fit.k=0", ["fit.k=0", "greater than or equal to 1"]),
        ("fit.k=[3,49]", ["fit.k=49", "only 48 items to fit", "at most that many"]),
        ("input.path=nowhere", ["input.path=nowhere", "no such file or folder", "give an existing one"]),
        ("input.path=job.yaml", ["input.path=job.yaml", "is not a supported file", "must be a folder"]),
        ("input.path=empty", ["empty contains no images", ".png .apng .jpg"]),
        ("input.holdout=nowhere", ["input.holdout=nowhere", "no such file or folder"]),
        ("output=job.yaml", ["cannot write the run folder job.yaml/small", "set output to a folder"]),
        ("cluster.memory_limit=much", ["cluster.memory_limit='much'", "auto or a size such as 2GiB"]),
        ("fit.k", ["'fit.k' is not KEY=VALUE"]),
    ],
)
def test_invalid_input_is_one_line_and_status_2(
    command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, parts: list[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    write_config(tmp_path, images)

    result = command("run", "job.yaml", override)

    *progress, message = result.lines
    assert result.status == 2
    assert result.out == ""
    assert progress in ([], ["small: 60 items"])
    assert message.startswith("kmeans-dask: ")
    for part in parts:
        assert part in message


def test_invalid_input_is_recorded(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images)

    assert command("run", config, "fit.k=49").status == 2
    assert read_json(tmp_path / "runs" / "small" / "run.json")["state"] == "failed"


def test_folder_that_is_not_a_run_is_left_alone(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, name="thesis")
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (tmp_path / "runs" / "thesis" / "thesis.tex").write_text("precious")

    for option in ("--resume", "--fresh"):
        result = command("run", config, option)
        assert result.status == 2
        assert len(result.lines) == 1
        assert "thesis is not a run folder" in result.err
    assert (tmp_path / "runs" / "thesis" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_without_section_is_refused(command: Command, images: Path, tmp_path: Path, stage: str):
    others = {"ingest": None, "fit": None, "evaluate": None, "report": None}
    config = write_config(tmp_path, images, **others, quantize={"k": 2})
    arguments = ["quantize=null", "ingest.size=[8,8]"] if stage == "quantize" else []

    result = command(stage, config, *arguments)

    assert result.status == 2
    assert result.lines == [
        f"kmeans-dask: the config has no section {stage}, so there is nothing to do; add it, or use run"
    ]


@pytest.mark.parametrize(
    ("stage", "needed"), [("fit", "ingest"), ("evaluate", "fit"), ("report", "ingest")], ids=lambda value: value
)
def test_stage_before_its_input_is_refused(command: Command, images: Path, tmp_path: Path, stage: str, needed: str):
    result = command(stage, write_config(tmp_path, images))

    assert result.status == 2
    assert result.lines[-1].endswith(f"which is not finished with this config; run {needed} first")
    assert len(result.lines) == 2  # the number of items, and the error


def test_stage_does_not_read_output_of_another_config(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, **FIT_ONLY)
    assert command("ingest", config).status == 0

    result = command("fit", config, "ingest.size=[8,8]")  # the collection holds images of 16 x 16

    assert result.status == 2
    assert "fit reads what ingest writes, which is not finished with this config; run ingest first" in result.err
    assert not (tmp_path / "runs" / "small" / "models").exists()


def test_progress_and_summary_of_a_run(whole_run: Run):
    result = whole_run.result

    assert result.status == 0
    assert result.lines[0] == "small: 60 items"
    assert "ingest: 60 items in 1 chunks of 1,024 items (0.8 MiB); 1 to do" in result.lines
    assert any(line.startswith("fit: 4 models of 48 rows x 768 features, 1 tasks per pass") for line in result.lines)
    for stage in ("ingest", "evaluate", "quantize"):
        assert any(line.startswith(f"{stage}: 60 items in ") for line in result.lines)
    assert "small: 4 models" in result.out
    for column in ("inertia", "homogeneity", "accuracy, held-out", "minibatch", "mean PSNR, dB"):
        assert column in result.out
    assert result.out.splitlines()[-1] == f"report: {whole_run.folder / 'report.html'}"
    assert max(map(len, result.out.splitlines()[:-1])) <= 140


def test_resume_after_ctrl_c(command: Command, start: Callable[..., Process], planted: Planted, tmp_path: Path):
    draw_images(tmp_path / "images", count=160, side=160)
    config = write_config(
        tmp_path,
        tmp_path / "images",
        **FIT_ONLY,
        ingest={"size": [112, 112]},
        cluster={"kind": "local", "n_workers": 1},
    )
    with planted.signalled(signal.SIGINT, "*/part-*.parquet", 3):  # like a terminal, to the workers too
        process = start("kmeans-dask", "run", config)

    assert process.wait() == 130, process.output
    assert process.output.splitlines()[-1] == "kmeans-dask: interrupted; rerun the same command to resume"
    assert "Traceback" not in process.output
    assert read_json(tmp_path / "runs" / "small" / "run.json")["state"] == "interrupted"
    result = command("run", config, "cluster.kind=threads")
    assert result.status == 0
    assert "ingest: 160 items in 10 chunks of 16 items (0.6 MiB); 10 to do" not in result.lines


def test_show_repeats_the_summary_of_a_run(command: Command, whole_run: Run):
    ran = whole_run.result

    result = command("show", whole_run.folder)

    assert result.status == 0
    assert result.out.startswith("small: finished, ")
    tables = ran.out[: ran.out.rindex("report: ")]
    for line in tables.splitlines():
        assert line in result.out
    for stage in ("ingest", "fit", "evaluate", "quantize", "report"):
        assert f" {stage} " in result.out


def test_show_refuses_a_folder_that_is_not_a_run(command: Command, tmp_path: Path):
    result = command("show", tmp_path)

    assert (result.status, result.out) == (2, "")
    assert "has no run.json" in result.err


def test_dashboard_and_performance_report(command: Command, images: Path, tmp_path: Path):
    cluster = {"kind": "local", "n_workers": 1, "dashboard": True, "performance_report": True}
    config = write_config(tmp_path, images, cluster=cluster, fit=None, evaluate=None, quantize=None, report=None)

    result = command("run", config)

    assert result.status == 0
    assert re.search(r"^dashboard: http://127\.0\.0\.1:\d+/status$", result.err, re.MULTILINE)
    page = (tmp_path / "runs" / "small" / "performance.html").read_text()
    assert "ingest_chunk" in page
    assert "Dask Performance Report" in page
