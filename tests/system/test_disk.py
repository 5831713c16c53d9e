"""Full and lost file systems, small ones of the tests' own: ``make test-disk``, as root on Linux."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults import STAGES, Run, full_disk, undisturbed
from benchmarks.small_disk import bind, fill, lose, small_disk
from tests.support.images import draw_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "images"
    draw_images(folder, count=300, side=40)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, str]:
    """Hashes of the outputs of an undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("whole"), images)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_in_a_stage(tmp_path: Path, images: Path, whole: dict[str, str], stage: str):
    status, said, hashes = full_disk(tmp_path, images, stage)

    assert status == 1
    assert said.startswith(f"{stage}: kmeans-dask: cannot write in {tmp_path}")
    assert "no space left on the disk" in said
    assert said.endswith("; the same command goes on from here")
    assert hashes == whole


def end_of(run: Run, disturb: Callable[[], object]) -> str:
    """Disturb a run when its first chunk is written; it fails with one line, which is returned."""
    driver = run.start()
    while not list(run.folder.glob("collection.zarr.partial/items/part-*.parquet")):
        assert driver.poll() is None, run.log.read_text()
    disturb()
    assert driver.wait(200) == 1, run.log.read_text()
    assert "Traceback" not in run.log.read_text(), run.log.read_text()
    return run.last_line()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is shown at another place; it is taken away in the end."""
    (tmp_path / "kept").mkdir()
    bind(tmp_path / "kept", tmp_path / "place")
    yield tmp_path / "place"
    lose(tmp_path / "place")


def test_a_file_system_that_is_taken_away(tmp_path: Path, images: Path, whole: dict[str, str], place: Path):
    run = Run(tmp_path, images, place, None)

    assert end_of(run, lambda: lose(place)) == went_away(run)

    bind(tmp_path / "kept", place)
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def test_a_run_folder_that_is_removed(tmp_path: Path, images: Path, whole: dict[str, str]):
    run = Run(tmp_path, images, tmp_path / "runs", None)

    assert end_of(run, lambda: run.folder.rename(tmp_path / "elsewhere")) == went_away(run)

    shutil.rmtree(run.folder, ignore_errors=True)  # what was being written at that moment
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def went_away(run: Run) -> str:
    return (
        f"kmeans-dask: the run folder {run.folder} went away (is its file system still mounted?); "
        "the same command goes on from here"
    )


def test_a_source_that_is_taken_away(tmp_path: Path, images: Path, whole: dict[str, str], place: Path):
    shutil.copytree(images, tmp_path / "kept", dirs_exist_ok=True)
    run = Run(tmp_path, place, tmp_path, None)

    said = end_of(run, lambda: lose(place))

    assert said.startswith(f"kmeans-dask: the input went away: {place}")
    assert said.endswith("is its file system still mounted?); the same command goes on from here")
    bind(tmp_path / "kept", place)
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def test_a_full_folder_for_what_is_temporary(tmp_path: Path, images: Path, whole: dict[str, str]):
    """Where Dask's workers spill, here every result at once: it stays in memory."""
    small = tmp_path / "small"
    environ = {"TMPDIR": str(small), "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "0.0000001"}
    with small_disk(small), pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        run = Run(tmp_path, images, tmp_path, None)
        driver = run.start()
        while not list(run.folder.glob("collection.zarr.partial/items/part-*.parquet")):
            assert driver.poll() is None, run.log.read_text()
        fill(small)
        assert driver.wait(200) == 0, run.log.read_text()

    said = run.log.read_text()
    assert "Spill to disk failed; keeping data in memory: [Errno 28] No space left on device" in said
    assert "Traceback" not in said
    assert run.hashes() == whole
