"""Sources written by other programs and systems."""

from __future__ import annotations

import io
import subprocess
import tarfile
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

GREYS = np.repeat(np.arange(10, 60, 10, dtype=np.uint8), 16).reshape(5, 4, 4)


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), grey).save(stream, "PNG")
    return stream.getvalue()


def decoded(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    """Return (path, label, grey level, error) of every item."""
    source = Input(path=str(path), **options)
    block, items = decode_rows(list_items(source, 0, path), Ingest(size=(4, 4), mode="L"), source.max_pixels)
    columns = (items[name].to_pylist() for name in ("path", "label", "error"))
    return [(name, label, int(row.max()), error) for name, label, error, row in zip(*columns, block, strict=True)]


def test_windows_backslashes_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(png(10))
    (tmp_path / "odd\\name.png").write_bytes(png(20))
    (tmp_path / "list.csv").write_text("path\na\\x.png\nodd\\name.png\nC:\\pictures\\y.png\n")

    assert decoded(tmp_path / "list.csv") == [
        ("a/x.png", "a", 10, None),
        ("odd\\name.png", None, 20, None),
        ("C:/pictures/y.png", "pictures", 0, "no such file"),
    ]


def test_duplicate_column_names_raise(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,kind,kind\na.png,x,y\n")

    with pytest.raises(UserError, match="it has two columns named kind"):
        decoded(tmp_path / "list.csv", labels="column:kind")


def test_hard_links_in_a_tar(tmp_path: Path) -> None:
    """As tar stores files with several names, for example from a deduplicated disk."""
    for name in ("a/1.png", "b/2.png", "b/other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "a/1.png").write_bytes(png(10))
    (tmp_path / "b/2.png").hardlink_to(tmp_path / "a/1.png")
    (tmp_path / "b/note.txt").write_text("note")
    (tmp_path / "b/3.png").hardlink_to(tmp_path / "b/note.txt")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a/1.png", "b/2.png", "b/note.txt", "b/3.png"):
            archive.add(tmp_path / name, f"./{name}")
        assert [member.islnk() for member in archive.getmembers()] == [False, True, False, True]

    assert decoded(tmp_path / "x.tar") == [("a/1.png", "a", 10, None), ("b/2.png", "b", 10, None)]


def test_sparse_member_of_a_tar_is_reported(tmp_path: Path) -> None:
    with (tmp_path / "1.png").open("wb") as file:
        file.write(png(10))
        file.truncate(10**6)
    (tmp_path / "2.png").write_bytes(png(20))
    subprocess.run(["tar", "--sparse", "-cf", "x.tar", "1.png", "2.png"], cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 10**5

    (first, *_, error), second = decoded(tmp_path / "x.tar")

    assert first == "1.png"
    assert error == "stored as a sparse file in the tar archive; recreate the archive without --sparse"
    assert second == ("2.png", None, 20, None)


@pytest.mark.parametrize("kind", ["dictionary", "view"])
def test_other_binary_column_types(kind: str, tmp_path: Path) -> None:
    images = pa.array([png(10), png(20), png(10)], pa.binary_view() if kind == "view" else pa.binary())
    images = images.dictionary_encode() if kind == "dictionary" else images
    labels = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"picture": images, "kind": labels}), tmp_path / "x.parquet")

    assert [row[1:] for row in decoded(tmp_path / "x.parquet", labels="column:kind")] == [
        ("x", 10, None), ("y", 20, None), ("x", 10, None),
    ]  # fmt: skip


def test_arrays_in_nested_zarr_groups(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    for split, rows in (("train", GREYS[:3]), ("test", GREYS[3:])):
        below = group.create_group(split)
        below.create_array("x", data=rows)
        below.create_array("y", data=rows[:, 0, 0])
    zarr.create_group(tmp_path / "empty.zarr")

    rows = decoded(
        tmp_path / "x.zarr", column="train/x", labels="column:train/y",
        holdout=str(tmp_path / "x.zarr"), holdout_column="test/x", holdout_labels="column:test/y",
    )  # fmt: skip

    assert [row[1:3] for row in rows] == [("10", 10), ("20", 20), ("30", 30), ("40", 40), ("50", 50)]
    with pytest.raises(UserError, match="has the arrays test/x, test/y, train/x, train/y; choose one of them"):
        decoded(tmp_path / "x.zarr")
    with pytest.raises(UserError, match="the group has no arrays"):
        decoded(tmp_path / "empty.zarr")


def test_channels_first_array_raises_with_fix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.uint8))

    with pytest.raises(UserError, match=r"save numpy\.moveaxis\(array, 1, 3\)"):
        decoded(tmp_path / "x.npy")
