from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError, open_image
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA, read_manifest, write_manifest


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def listed(path: Path, **options: object) -> pa.Table:
    return list_items(Input(path=str(path), **options), 0, path)  # type: ignore[arg-type]


def paths(table: pa.Table, split: str | None = None) -> list[str]:
    return [row["path"] for row in table.to_pylist() if split in (None, row["split"])]


def test_manifest_columns(tmp_path: Path) -> None:
    file = tmp_path / "cats" / "tom.PNG"
    touch(file)
    table = listed(tmp_path)
    assert table.schema == MANIFEST_SCHEMA
    assert table.to_pylist() == [
        {
            "file": os.fsencode(file),
            "inside": None,
            "member": None,
            "position": None,
            "path": "cats/tom.PNG",
            "bytes": 1,
            "mtime_ns": file.stat().st_mtime_ns,
            "label": "cats",
            "split": "train",
            "black": None,
            "white": None,
        }
    ]


@pytest.mark.parametrize("years", [400, 20_000])
def test_file_times_in_the_far_future(tmp_path: Path, years: int) -> None:
    file = tmp_path / "a.png"
    touch(file)
    os.utime(file, (years * 31_556_952,) * 2)  # a file system may clamp this to its last supported year

    (time,) = listed(tmp_path, labels="none")["mtime_ns"].to_pylist()

    assert time == min(file.stat().st_mtime_ns, 2**63 - 1)


def test_nested_folders_in_natural_order(tmp_path: Path) -> None:
    in_order = ["Z.webp", "a-b/x.png", "a/deep/er/x.tiff", "a/z.jpg", "b.png"]
    in_order += ["img2.png", "img02b.png", "img010.png", "img10.png", "img10b.png", "é.gif"]
    touch(*(tmp_path / name for name in reversed(in_order)))
    assert paths(listed(tmp_path)) == in_order


def test_labels_are_the_containing_folders(tmp_path: Path) -> None:
    touch(tmp_path / "x.png", tmp_path / "a" / "b" / "y.png", tmp_path / "c" / "z.png")
    assert listed(tmp_path)["label"].to_pylist() == ["b", "c", None]
    assert listed(tmp_path, labels="none")["label"].null_count == 3


def test_skipped_files(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "notes.txt", tmp_path / ".hidden.png", tmp_path / ".git" / "x.png")
    touch(tmp_path / "folder.png" / "inside.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert paths(listed(tmp_path)) == ["a.png", "folder.png/inside.png"]


def test_links(tmp_path: Path) -> None:
    data = tmp_path / "data"
    touch(data / "a.png", tmp_path / "elsewhere" / "b.png")
    (data / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (data / "loop").symlink_to(data)
    (data / "loop.png").symlink_to(data)
    (data / "nothing.png").symlink_to(tmp_path / "nothing")
    (data / "circle.png").symlink_to(data / "circle.png")
    assert paths(listed(data)) == ["a.png", "circle.png", "link.png", "nothing.png"]


def test_undecodable_and_odd_file_names(tmp_path: Path) -> None:
    names = [
        b"caf\xe9.png",
        b"new\nline.png",
        "‏שלום.png".encode(),
        b"<b>&.png",
        b"x" * 250 + b".png",
        b"A.png",
        b"a.png",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    table = listed(tmp_path)
    assert [os.path.basename(file) for file in table["file"].to_pylist()] == sorted(names)
    assert "caf\\xe9.png" in paths(table)
    for file in table["file"].to_pylist():
        assert os.path.exists(file)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root privileges: in a container tests may run as root, who can read everything."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)


def test_missing_read_permission() -> None:
    with TemporaryDirectory() as name:  # tmp_path is readable only by its owner
        folder = Path(name)
        Image.new("L", (2, 2)).save(folder / "locked.png")
        (folder / "closed").mkdir()
        touch(folder / "old" / "x.png")
        for path, mode in (("locked.png", 0), ("closed", 0), ("old", 0o755), ("", 0o755)):
            (folder / path).chmod(mode)
        with as_nobody():
            with pytest.raises(UserError, match=r"cannot read folder .*closed/: Permission denied; .* or exclude it"):
                listed(folder)
            table = listed(folder, exclude=["closed/", "old/*"])
            with pytest.raises(ImageError, match="Permission denied") as caught:
                open_image(table["file"][0].as_py(), max_pixels=9)
        (folder / "closed").chmod(0o755)

    assert paths(table) == ["locked.png"]
    assert caught.value.status == "unreadable"


def test_second_folder_as_holdout(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "z.png", tmp_path / "test" / "a.png", tmp_path / "test" / "b.png")
    table = listed(tmp_path / "train", holdout=str(tmp_path / "test"))
    assert table["split"].to_pylist() == ["train", "holdout", "holdout"]
    assert paths(table) == ["z.png", "a.png", "b.png"]


@pytest.mark.parametrize(("path", "holdout"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "link")])
def test_overlapping_holdout_raises(tmp_path: Path, path: str, holdout: str) -> None:
    touch(tmp_path / "a" / "x.png", tmp_path / "a" / "b" / "y.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="overlap"):
        listed(tmp_path / path, holdout=str(tmp_path / holdout))


def folder_of_three_classes(folder: Path) -> Path:
    for label, n in (("a", 50), ("b", 30), ("c", 1)):
        touch(*(folder / label / f"{i}.png" for i in range(n)))
    return folder


def test_fraction_is_exact_and_stratified(tmp_path: Path) -> None:
    table = listed(folder_of_three_classes(tmp_path), holdout=0.25)
    held = table.filter(pa.array([split == "holdout" for split in table["split"].to_pylist()]))
    assert len(held) == 20  # of 81: quotas 12.5, 7.5 and 0.25; the two largest remainders, a before b, sum to 20
    assert Counter(held["label"].to_pylist()) == {"a": 13, "b": 7}
    in_order = paths(listed(tmp_path))
    assert paths(table, "train") == [path for path in in_order if path in paths(table, "train")]
    assert paths(table, "holdout") == [path for path in in_order if path in paths(table, "holdout")]
    assert table["split"].to_pylist() == ["train"] * 61 + ["holdout"] * 20


def test_fraction_depends_only_on_the_seed(tmp_path: Path) -> None:
    folder = folder_of_three_classes(tmp_path / "one")
    source = Input(path=str(folder), holdout=0.25)
    first = paths(list_items(source, 7, folder), "holdout")
    assert paths(list_items(source, 7, folder), "holdout") == first
    assert paths(list_items(source, 8, folder), "holdout") != first
    touch(folder / "b" / "new.png")
    changed = set(paths(list_items(source, 7, folder), "holdout")) ^ set(first)
    assert len(changed) <= 2


def test_fraction_never_holds_out_a_whole_label(tmp_path: Path) -> None:
    table = listed(folder_of_three_classes(tmp_path), holdout=0.99)
    train = [row["label"] for row in table.to_pylist() if row["split"] == "train"]
    assert set(train) == {"a", "b", "c"}


def test_fraction_without_labels(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{i}.png" for i in range(10)))
    assert listed(tmp_path, holdout=0.3, labels="none")["split"].to_pylist() == ["train"] * 7 + ["holdout"] * 3


def test_fraction_holding_out_nothing_raises(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / "b" / "1.png")
    with pytest.raises(UserError, match=r"input\.holdout=0\.5 of 2 items"):
        listed(tmp_path, holdout=0.5)


def test_invalid_source_is_named_in_the_error(tmp_path: Path) -> None:
    touch(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"input\.path=.*nowhere"):
        listed(tmp_path / "nowhere")
    touch(tmp_path / "file.doc")
    with pytest.raises(UserError, match="is not a supported file"):
        listed(tmp_path / "file.doc")
    with pytest.raises(UserError, match="contains no images"):
        listed(tmp_path / "empty")
    with pytest.raises(UserError, match=r"input\.holdout=.*nowhere"):
        listed(tmp_path, holdout=str(tmp_path / "nowhere"))


def test_builtin_digits(tmp_path: Path) -> None:
    table = list_items(Input(builtin="digits"), 0, tmp_path / "builtin")
    assert len(table) == 1797
    assert Counter(table["label"].to_pylist()) == Counter(map(str, load_digits().target))
    number = 1234
    digits = load_digits()
    with Image.open(tmp_path / "builtin" / "digits" / str(digits.target[number]) / f"{number}.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.rint(digits.images[number] * 255 / 16))
    assert list_items(Input(builtin="digits"), 0, tmp_path / "builtin").equals(table)


def test_builtin_photos(tmp_path: Path) -> None:
    table = list_items(Input(builtin="photos", labels="none"), 0, tmp_path)
    assert paths(table) == ["china.jpg", "flower.jpg"]
    with Image.open(tmp_path / "photos" / "china.jpg") as image:
        assert image.size == (640, 427)


def test_interrupted_builtin_folder_is_rewritten(tmp_path: Path) -> None:
    touch(tmp_path / "photos.partial" / "half.jpg")
    assert paths(list_items(Input(builtin="photos"), 0, tmp_path)) == ["china.jpg", "flower.jpg"]


def test_read_manifest_slices(tmp_path: Path) -> None:
    n = 10_000
    columns = {
        "file": [b"/x/%d" % i for i in range(n)],
        "inside": [None] * n,
        "member": [None] * n,
        "position": [None] * n,
        "path": [str(i) for i in range(n)],
        "bytes": range(n),
        "mtime_ns": range(n),
        "label": [None] * n,
        "split": ["train"] * n,
        "black": [None] * n,
        "white": [None] * n,
    }
    table = pa.table(columns, schema=MANIFEST_SCHEMA)
    write_manifest(table, tmp_path / "manifest.parquet")
    assert os.listdir(tmp_path) == ["manifest.parquet"]
    assert read_manifest(tmp_path / "manifest.parquet").equals(table)
    for start, stop in ((0, 1), (4095, 4097), (5000, 9999), (8192, 20_000), (9999, 10_000)):
        assert read_manifest(tmp_path / "manifest.parquet", start, stop).equals(table.slice(start, stop - start))
