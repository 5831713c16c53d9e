"""Fixtures shared by all tests; their building blocks are in tests/support."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from kmeans_dask.cli import main
from tests.support.images import draw_images
from tests.support.jobs import Result, Run, write_config
from tests.support.processes import COMMANDS, Planted, Process
from tests.support.s3 import S3Server, serving


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 24 x 24 pixels with three labels; tests must not write to this folder."""
    folder = tmp_path_factory.mktemp("input") / "images"
    draw_images(folder)
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A local S3 server; every test should create its own buckets."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def whole_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of all stages of `write_config`; tests must not write to its folder, but may copy it."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, images)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main.main(["run", str(config)])
    return Run(folder / "runs" / "small", Result(status, out.getvalue(), err.getvalue()))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main.main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start an installed command, ``kmeans-dask`` or ``dask``; it is killed at the end of the test if still running."""
    started: list[Process] = []

    def call(name: str, *arguments: object, folder: Path = tmp_path) -> Process:
        started.append(Process([str(COMMANDS / name), *map(str, arguments)], folder))
        return started[-1]

    yield call
    for process in started:
        process.end()


@pytest.fixture
def planted(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    planted = Planted(tmp_path_factory.mktemp("planted") / "modules", monkeypatch)
    yield planted
    planted.let_go()
