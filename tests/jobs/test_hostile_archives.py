"""Members of archives, and paths in tables, that lead elsewhere: nothing is written outside the run folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Said, write_config
from PIL import Image

NAMES = [
    "/etc/evil.png", "//evil.png", "../evil.png", "a/../../evil.png", "a/../../../../../../../../tmp/evil.png", "..png",
    "a/..b/evil.png", "C:\\Windows\\evil.png", "..\\evil.png", "a//b.png", "good.png", "a/b/", "~/evil.png",
    "$(touch evil).png", "evil.png\n../x.png",
]  # fmt: skip


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path) -> None:
    """All names, and links that lead out of the archive with members below them."""
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size = len(png(number))
            archive.addfile(info, io.BytesIO(png(number)))
        for name, kind, target in (
            ("out", tarfile.SYMTYPE, "../.."), ("out.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "../good.png"), ("pipe.png", tarfile.FIFOTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("out/below.png")
        info.size = len(png(200))
        archive.addfile(info, io.BytesIO(png(200)))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(NAMES):
            archive.writestr(name, png(number))
        link = zipfile.ZipInfo("out.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")


def write_parquet(path: Path) -> None:
    images = [{"bytes": png(number), "path": name} for number, name in enumerate(NAMES)]
    pq.write_table(pa.table({"image": images}), path)


SOURCES = {"a.tar": write_tar, "a.zip": write_zip, "a.parquet": write_parquet}


def below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_written_outside_the_run_folder(
    name: str, command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    deep = tmp_path / "x" / "y" / "z"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    SOURCES[name](deep / name)
    stages = {"input": {"path": name, "include": ["*"]}, "fit": {"k": 2}, "quantize": {"k": 2}, "output": "runs"}
    config = write_config(deep, deep / name, **stages)
    before = below(tmp_path)

    said = command("run", config)

    run = deep / "runs" / "small"
    new = below(tmp_path) - before
    assert said.status == 0
    assert new
    assert all(path.is_relative_to(run) for path in new)
    assert not any(path.is_symlink() for path in new)
    rows = pq.read_table(run / "quantized.parquet").to_pylist()
    written = [row for row in rows if row["status"] == "ok"]
    assert len(written) >= 6
    assert len({row["output"] for row in written}) == len(written)
    for row in written:
        assert (run / row["output"]).resolve().is_relative_to(run / "quantized" / "2")
        assert (run / row["output"]).is_file()


def test_images_of_an_archive_are_no_files_to_be_copied(command: Callable[..., Said], tmp_path: Path):
    write_tar(tmp_path / "a.tar")
    stages = {"input": {"path": str(tmp_path / "a.tar")}, "fit": {"k": 2}, "quantize": None, "report": None}
    assert command("run", write_config(tmp_path, tmp_path, **stages)).status == 0

    said = command("export", tmp_path / "runs" / "small", tmp_path / "out", "--by", "label")

    assert said.status == 2
    assert "images inside archives" in said.lines[-1]
    assert not (tmp_path / "out").exists()
