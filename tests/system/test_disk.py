"""Full and lost file systems, on small ones that the tests mount: ``make test-disk``, as root on Linux."""

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
def test_full_disk_in_a_stage(tmp_path: Path, images: Path, whole: dict[str, str], stage: str):
    status, message, hashes = full_disk(tmp_path, images, stage)

    assert status == 1
    assert message.startswith(f"{stage}: kmeans-dask: cannot write in {tmp_path}")
    assert "no space left on the disk" in message
    assert message.endswith("; rerun the same command to resume")
    assert hashes == whole


def fail_while(run: Run, disturb: Callable[[], object]) -> str:
    """Disturb a run after its first chunk is written, and return the line that it fails with."""
    driver = run.start()
    while not list(run.folder.glob("collection.zarr.partial/items/part-*.parquet")):
        assert driver.poll() is None, run.log.read_text()
    disturb()
    assert driver.wait(200) == 1, run.log.read_text()
    assert "Traceback" not in run.log.read_text(), run.log.read_text()
    return run.last_line()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A bind mount of the folder ``kept``, unmounted at the end."""
    (tmp_path / "kept").mkdir()
    bind(tmp_path / "kept", tmp_path / "mount")
    yield tmp_path / "mount"
    lose(tmp_path / "mount")


def test_file_system_lost(tmp_path: Path, images: Path, whole: dict[str, str], mount: Path):
    run = Run(tmp_path, images, mount, None)

    assert fail_while(run, lambda: lose(mount)) == run_folder_lost(run)

    bind(tmp_path / "kept", mount)
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def test_run_folder_removed(tmp_path: Path, images: Path, whole: dict[str, str]):
    run = Run(tmp_path, images, tmp_path / "runs", None)

    assert fail_while(run, lambda: run.folder.rename(tmp_path / "elsewhere")) == run_folder_lost(run)

    shutil.rmtree(run.folder, ignore_errors=True)  # what was being written when it was renamed
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def run_folder_lost(run: Run) -> str:
    return (
        f"kmeans-dask: the run folder {run.folder} no longer exists (is its file system still mounted?); "
        "rerun the same command to resume"
    )


def test_source_lost(tmp_path: Path, images: Path, whole: dict[str, str], mount: Path):
    shutil.copytree(images, tmp_path / "kept", dirs_exist_ok=True)
    run = Run(tmp_path, mount, tmp_path, None)

    message = fail_while(run, lambda: lose(mount))

    assert message.startswith(f"kmeans-dask: the input became unavailable: {mount}")
    assert message.endswith("is its file system still mounted?); rerun the same command to resume")
    bind(tmp_path / "kept", mount)
    assert run.start().wait(200) == 0, run.log.read_text()
    assert run.hashes() == whole


def test_full_spill_folder(tmp_path: Path, images: Path, whole: dict[str, str]):
    """Dask's workers, here set to spill every result at once, keep the data in memory."""
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

    log = run.log.read_text()
    assert "Spill to disk failed; keeping data in memory: [Errno 28] No space left on device" in log
    assert "Traceback" not in log
    assert run.hashes() == whole
