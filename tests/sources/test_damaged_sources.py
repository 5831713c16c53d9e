"""Truncated and corrupted archives, arrays and tables: refused in one line, or read with a reason per bad row."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from kmeans_dask.collection.decoding import decode_rows
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.listing import list_items
from tests.support.jobs import Result, write_config

N, SIDE = 12, 9
PIXELS = np.random.default_rng(4).integers(1, 256, (N, SIDE, SIDE), dtype=np.uint8)
INGEST = Ingest(size=(SIDE, SIDE), mode="L")
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "tar": ("a.tar", {}),
    "tar, JSON sidecars": ("b.tar", {"labels": "json:kind"}),
    "tar.gz": ("a.tar.gz", {}),
    "zip": ("a.zip", {}),
    "stored zip": ("stored.zip", {}),
    "zip, JSON sidecars": ("b.zip", {"labels": "json:kind"}),
    "npy": ("x.npy", {}),
    "npz": ("x.npz", {"labels": "column:y"}),
    "compressed npz": ("small.npz", {"labels": "column:y"}),
    "IDX": ("train-images-idx3-ubyte", {"labels": "column:labels"}),
    "IDX, compressed": ("t10k-images-idx3-ubyte.gz", {"labels": "column:labels"}),
    "zarr": ("x.zarr", {"labels": "column:y"}),
    "Parquet": ("x.parquet", {"labels": "column:kind"}),
}
"""Kind -> file or folder, and the `input` options it needs."""

CHECKED = {"tar.gz", "zip", "stored zip", "zip, JSON sidecars", "npz", "compressed npz", "IDX, compressed"}
"""Kinds with a checksum: whatever is read despite corruption is correct."""


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(stream, "PNG")
    return stream.getvalue()


def write_all(folder: Path) -> None:
    """Write the images in every format."""
    files = [png(row) for row in range(N)]
    sidecar = b'{"kind": "a"}'
    for name, mode, sidecars in (("a.tar", "w", ()), ("b.tar", "w", (sidecar,)), ("a.tar.gz", "w:gz", ())):
        with tarfile.open(folder / name, mode) as tar:
            for row, file in enumerate(files):
                for ending, data in (("png", file), *(("json", data) for data in sidecars)):
                    info = tarfile.TarInfo(f"a/{row:02d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    stored = zipfile.ZIP_STORED
    for name, method, sidecars in (
        ("a.zip", zipfile.ZIP_DEFLATED, ()), ("stored.zip", stored, ()), ("b.zip", stored, (sidecar,)),
    ):  # fmt: skip
        with zipfile.ZipFile(folder / name, "w", method) as archive:
            for row, file in enumerate(files):
                archive.writestr(f"a/{row:02d}.png", file)
                for data in sidecars:
                    archive.writestr(f"a/{row:02d}.json", data)
    numbers = np.arange(N) % 3
    np.save(folder / "x.npy", PIXELS)
    np.savez(folder / "x.npz", images=PIXELS, y=numbers)
    np.savez_compressed(folder / "small.npz", images=PIXELS, y=numbers)
    for name, pack in (("train-{}", bytes), ("t10k-{}.gz", gzip.compress)):
        for part, array in (("images-idx3-ubyte", PIXELS), ("labels-idx1-ubyte", numbers.astype(np.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / name.format(part)).write_bytes(pack(header + array.tobytes()))
    group = zarr.create_group(folder / "x.zarr")
    group.create_array("images", data=PIXELS, chunks=(5, SIDE, SIDE))
    group.create_array("y", data=numbers)
    pq.write_table(pa.table({"image": files, "kind": ["a"] * N}), folder / "x.parquet", row_group_size=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of source, read-only for tests."""
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(data, tmp_path / "copy"))


def outcome(path: Path, options: dict[str, Any]) -> list[bool] | str:
    """Return which rows have the original pixels, or why the source is refused; any other row must have a reason."""
    source = Input(path=str(path), **options)
    try:
        manifest = list_items(source, 0, path.parent)
    except UserError as error:
        return str(error)
    block, items = decode_rows(manifest, INGEST, 10_000)
    matches = []
    for pixels, row in zip(block[:, :, :, 0], items.to_pylist(), strict=True):
        if row["status"] == "ok":
            matches.append(any(np.array_equal(pixels, wanted) for wanted in PIXELS))
        else:
            assert not pixels.any()
            assert row["error"].strip()
            assert "\n" not in row["error"]
    return matches


def files_of(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", SOURCES)
def test_intact_source_is_read(kind: str, data: Path):
    name, options = SOURCES[kind]

    assert outcome(data / name, options) == [True] * N


@pytest.mark.parametrize("kind", SOURCES)
def test_truncated_source(kind: str, copy: Path):
    name, options = SOURCES[kind]
    for file in files_of(copy / name):
        whole = file.read_bytes()
        for tenth in range(10):
            file.write_bytes(whole[: len(whole) * tenth // 10])
            found = outcome(copy / name, options)
            if isinstance(found, str):
                assert "\n" not in found
                assert name in found
            else:
                assert all(found)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", SOURCES)
def test_corrupted_source(kind: str, copy: Path):
    name, options = SOURCES[kind]
    rng = np.random.default_rng(1)
    files = files_of(copy / name)
    for file in files:
        whole = file.read_bytes()
        for position in rng.integers(len(whole), size=60 // len(files)):
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            file.write_bytes(damaged)
            found = outcome(copy / name, options)
            if isinstance(found, str):
                assert "\n" not in found
            elif kind in CHECKED:
                assert all(found)
        file.write_bytes(whole)


def test_tar_with_damaged_header_is_refused(copy: Path):
    whole = bytearray((copy / "a.tar").read_bytes())
    whole[1024 * 5 + 3] ^= 1  # in the header of the sixth member, which makes its checksum wrong
    (copy / "a.tar").write_bytes(whole)

    reason = outcome(copy / "a.tar", {})

    assert reason == f"{copy / 'a.tar'} cannot be read as tar: damaged or truncated at byte 5,120; recreate the file"


def test_header_claiming_more_than_the_file_size_is_refused(tmp_path: Path):
    (tmp_path / "x-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28) + bytes(784))
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 28, 28)}
        np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress((tmp_path / "x-idx3-ubyte").read_bytes()))

    for name in ("x-idx3-ubyte", "x.npy", "x-idx3-ubyte.gz"):
        assert "it is truncated, or its header is wrong" in outcome(tmp_path / name, {})


@pytest.mark.parametrize("kind", SOURCES)
def test_job_reports_damage_in_one_line(kind: str, copy: Path, command: Callable[..., Result]):
    name, options = SOURCES[kind]
    for file in files_of(copy / name):
        file.write_bytes(file.read_bytes()[:3])
    config = write_config(copy, copy / name, input={"path": str(copy / name), **options})

    result = command("run", config)

    messages = [line for line in result.lines if line.startswith("kmeans-dask: ")]
    assert (result.status, len(messages)) == (2, 1)
    assert name in messages[0]
    assert "Traceback" not in result.err
