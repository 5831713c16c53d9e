"""Archive members and table paths that point elsewhere never cause writes outside the run folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.jobs import Result, write_config

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
    """Write all names, and links that lead out of the archive with members below them."""
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
    name: str, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    deep = tmp_path / "x" / "y" / "z"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    SOURCES[name](deep / name)
    stages = {"input": {"path": name, "include": ["*"]}, "fit": {"k": 2}, "quantize": {"k": 2}, "output": "runs"}
    config = write_config(deep, deep / name, **stages)
    before = below(tmp_path)

    result = command("run", config)

    run = deep / "runs" / "small"
    new = below(tmp_path) - before
    assert result.status == 0
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


@pytest.mark.parametrize("name", [*SOURCES, "x.npy"])
def test_export_of_images_inside_files_stays_in_its_folder(name: str, command: Callable[..., Result], tmp_path: Path):
    pixels = np.array([np.asarray(Image.open(io.BytesIO(png(number)))) for number in range(12)])
    np.save(tmp_path / "x.npy", pixels)
    if name in SOURCES:
        SOURCES[name](tmp_path / name)
    source = {"path": str(tmp_path / name), "include": ["*"]}
    stages = {"input": source, "fit": {"k": 2}, "quantize": None, "report": None}
    assert command("run", write_config(tmp_path, tmp_path, **stages)).status == 0
    run, before = tmp_path / "runs" / "small", below(tmp_path)

    linked = command("export", run, tmp_path / "out", "--by", "cluster", "--link")
    first, second = (command("export", run, tmp_path / "out", "--by", "cluster") for _ in range(2))

    assert linked.status == 2
    assert "cannot be linked; leave out --link" in linked.lines[-1]
    new = below(tmp_path) - before
    rows = [row for row in pq.read_table(run / "clusters.parquet").to_pylist() if row["kmeans_k2_cluster"] is not None]
    assert len(new) == len(rows) >= 8
    assert first.out.startswith(f"{len(rows)} images copied: ")
    assert second.out.startswith(f"0 images copied, {len(rows)} already existed: ")
    for path in new:
        assert path.parent in (tmp_path / "out" / "0", tmp_path / "out" / "1")
    levels = [[Image.open(path).getpixel((0, 0))[0] for path in new if path.parent.name == c] for c in "01"]
    assert min(max(levels[0]), max(levels[1])) < max(min(levels[0]), min(levels[1]))  # dark and bright are separated
