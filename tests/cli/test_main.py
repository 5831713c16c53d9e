"""The command line: help, exit statuses, and one line for everything that is wrong with the input."""

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
from tests.support.jobs import Run, Said, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Said]
FIT_ONLY = {"evaluate": None, "quantize": None, "report": None}


@pytest.mark.parametrize("name", ["run", *STAGES])
def test_every_command_has_a_help_text(command: Command, name: str):
    said = command(name, "--help")

    assert said.status == 0
    assert f"Usage: kmeans-dask {name} [OPTIONS] CONFIG [KEY=VALUE]..." in said.out
    assert "--cluster FILE|tcp://..." in said.out
    assert "--fresh / --resume" in said.out
    assert said.err == ""


def test_help_names_all_commands(command: Command):
    said = command("-h")

    assert said.status == 0
    for name in ("run", *STAGES):
        assert f"\n  {name} " in said.out
    assert "fit.k=[10,256]" in said.out


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
def test_a_wrong_command_line(command: Command, arguments: list[str]):
    said = command(*arguments)

    assert said.status == 2
    assert "Usage: kmeans-dask" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("fit.clusters=3", ["unknown key fit.clusters", "allowed here: k, algorithm"]),
        ("fit.k=ten", ["fit.k='ten'", "integer"]),
        ("fit.k=0", ["fit.k=0", "greater than or equal to 1"]),
        ("fit.k=[3,49]", ["fit.k=49", "only 48 items to fit", "at most as many"]),
        ("input.path=nowhere", ["input.path=nowhere", "no such file or folder", "give an existing one"]),
        ("input.path=job.yaml", ["input.path=job.yaml", "is a file of no kind that is read", "allowed are folders"]),
        ("input.path=empty", ["empty holds no image", ".png .apng .jpg"]),
        ("input.holdout=nowhere", ["input.holdout=nowhere", "no such file or folder"]),
        ("output=job.yaml", ["cannot write the run folder job.yaml/small", "set output to a folder"]),
        ("cluster.memory_limit=much", ["cluster.memory_limit='much'", "auto or a size such as 2GiB"]),
        ("fit.k", ["'fit.k' is not KEY=VALUE"]),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, parts: list[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    write_config(tmp_path, images)

    said = command("run", "job.yaml", override)

    *progress, message = said.lines
    assert said.status == 2
    assert said.out == ""
    assert progress in ([], ["small: 60 items"])
    assert message.startswith("kmeans-dask: ")
    for part in parts:
        assert part in message


def test_wrong_input_is_recorded(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images)

    assert command("run", config, "fit.k=49").status == 2
    assert read_json(tmp_path / "runs" / "small" / "run.json")["state"] == "failed"


def test_a_folder_that_is_no_run(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, name="thesis")
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (tmp_path / "runs" / "thesis" / "thesis.tex").write_text("precious")

    for option in ("--resume", "--fresh"):
        said = command("run", config, option)
        assert said.status == 2
        assert len(said.lines) == 1
        assert "thesis is no run folder" in said.err
    assert (tmp_path / "runs" / "thesis" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_a_section(command: Command, images: Path, tmp_path: Path, stage: str):
    others = {"ingest": None, "fit": None, "evaluate": None, "report": None}
    config = write_config(tmp_path, images, **others, quantize={"k": 2})
    arguments = ["quantize=null", "ingest.size=[8,8]"] if stage == "quantize" else []

    said = command(stage, config, *arguments)

    assert said.status == 2
    assert said.lines == [
        f"kmeans-dask: the config has no section {stage}, so there is nothing to do; add it, or use run"
    ]


@pytest.mark.parametrize(
    ("stage", "need"), [("fit", "ingest"), ("evaluate", "fit"), ("report", "ingest")], ids=lambda value: value
)
def test_a_stage_before_the_one_that_it_reads(command: Command, images: Path, tmp_path: Path, stage: str, need: str):
    said = command(stage, write_config(tmp_path, images))

    assert said.status == 2
    assert said.lines[-1].endswith(f"which is not finished with this config: run {need} first")
    assert len(said.lines) == 2  # how many items, and what is wrong


def test_a_stage_does_not_read_what_another_config_wrote(command: Command, images: Path, tmp_path: Path):
    config = write_config(tmp_path, images, **FIT_ONLY)
    assert command("ingest", config).status == 0

    said = command("fit", config, "ingest.size=[8,8]")  # the collection holds images of 16 x 16

    assert said.status == 2
    assert "fit reads what ingest writes, which is not finished with this config: run ingest first" in said.err
    assert not (tmp_path / "runs" / "small" / "models").exists()


def test_what_is_said_on_the_way(whole_run: Run):
    said = whole_run.said

    assert said.status == 0
    assert said.lines[0] == "small: 60 items"
    assert "ingest: 60 items in 1 chunks of 1,024 items (0.8 MiB); 1 to do" in said.lines
    assert any(line.startswith("fit: 4 models of 48 rows x 768 numbers, 1 tasks a pass") for line in said.lines)
    for stage in ("ingest", "evaluate", "quantize"):
        assert any(line.startswith(f"{stage}: 60 items in ") for line in said.lines)
    assert "small: 4 models" in said.out
    for column in ("inertia", "homogeneity", "accuracy, held-out", "minibatch", "mean PSNR, dB"):
        assert column in said.out
    assert said.out.splitlines()[-1] == f"report: {whole_run.folder / 'report.html'}"
    assert max(map(len, said.out.splitlines()[:-1])) <= 140


def test_interrupted_by_the_keyboard_and_continued(
    command: Command, start: Callable[..., Process], planted: Planted, tmp_path: Path
):
    draw_images(tmp_path / "images", count=160, side=160)
    config = write_config(
        tmp_path,
        tmp_path / "images",
        **FIT_ONLY,
        ingest={"size": [112, 112]},
        cluster={"kind": "local", "n_workers": 1},
    )
    with planted.signalled(signal.SIGINT, "*/part-*.parquet", 3):  # as a terminal does: to the workers too
        process = start("kmeans-dask", "run", config)

    assert process.wait() == 130, process.output
    assert process.output.splitlines()[-1] == "kmeans-dask: interrupted; the same command again goes on from here"
    assert "Traceback" not in process.output
    assert read_json(tmp_path / "runs" / "small" / "run.json")["state"] == "interrupted"
    said = command("run", config, "cluster.kind=threads")
    assert said.status == 0
    assert "ingest: 160 items in 10 chunks of 16 items (0.6 MiB); 10 to do" not in said.lines


def test_show_tells_again_what_a_run_has_written(command: Command, whole_run: Run):
    ran = whole_run.said

    said = command("show", whole_run.folder)

    assert said.status == 0
    assert said.out.startswith("small: finished, ")
    tables = ran.out[: ran.out.rindex("report: ")]
    for line in tables.splitlines():
        assert line in said.out
    for stage in ("ingest", "fit", "evaluate", "quantize", "report"):
        assert f" {stage} " in said.out


def test_show_of_what_is_no_run(command: Command, tmp_path: Path):
    said = command("show", tmp_path)

    assert (said.status, said.out) == (2, "")
    assert "has no run.json" in said.err


def test_the_dashboard_and_the_performance_report_on_request(command: Command, images: Path, tmp_path: Path):
    cluster = {"kind": "local", "n_workers": 1, "dashboard": True, "performance_report": True}
    config = write_config(tmp_path, images, cluster=cluster, fit=None, evaluate=None, quantize=None, report=None)

    said = command("run", config)

    assert said.status == 0
    assert re.search(r"^dashboard: http://127\.0\.0\.1:\d+/status$", said.err, re.MULTILINE)
    page = (tmp_path / "runs" / "small" / "performance.html").read_text()
    assert "ingest_chunk" in page
    assert "Dask Performance Report" in page
