"""Publishing: readers see complete files only, and failures leave the old content."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kmeans_dask.storage.publish import create, publish, read_json, remove, remove_partials, write_json


def test_file_appears_when_complete(tmp_path: Path):
    target = tmp_path / "deep" / "down" / "table.txt"

    with publish(target) as partial:
        partial.write_text("complete")
        assert not target.exists()
        assert partial.parent == target.parent  # renaming across file systems would copy

    assert target.read_text() == "complete"
    assert list(target.parent.iterdir()) == [target]


def test_old_file_stays_until_new_one_is_complete(tmp_path: Path):
    target = tmp_path / "table.txt"
    target.write_text("old")

    with publish(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"

    assert target.read_text() == "new"


def test_folder_replaces_folder(tmp_path: Path):
    target = tmp_path / "model"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "old").write_text("old")

    with publish(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")

    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_old_file(tmp_path: Path, error: type[BaseException]):
    target = tmp_path / "table.txt"
    target.write_text("old")

    def write_half() -> None:
        with publish(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_concurrent_writers_do_not_interfere(tmp_path: Path):
    target = tmp_path / "table.txt"

    with publish(target) as first, publish(target) as second:
        first.write_text("first")
        second.write_text("second")

    assert target.read_text() == "first"  # its block ended last
    assert list(tmp_path.iterdir()) == [target]


def test_remove_file_folder_or_nothing(tmp_path: Path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")

    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_remove_partials_removes_only_partials(tmp_path: Path):
    left = f".{'0123456789abcdef' * 2}.partial"
    for name in (
        "a",
        f"deep/{left}/inner/c",
        f"deep/er/{left}",
        f"in use/{left}",
        "collection.zarr.partial/d",
        ".mine.partial",
        ".hidden",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    remove_partials(tmp_path, leave=["in use"])

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        ".hidden", ".mine.partial", "a", "collection.zarr.partial/d", f"in use/{left}",
    ]  # fmt: skip
    assert [path.parent.name for path in tmp_path.rglob(left)] == ["in use"]


def test_remove_keeps_target_of_link(tmp_path: Path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "file").write_text("kept")
    link.symlink_to(folder)

    remove(link)

    assert not link.is_symlink()
    assert (folder / "file").read_text() == "kept"


def test_json_roundtrip(tmp_path: Path):
    value = {"k": [3, 5], "inertia": 0.1 + 0.2, "label": "Ångström", "none": None, "yes": True}

    write_json(tmp_path / "value.json", value)

    assert read_json(tmp_path / "value.json") == value


def test_invalid_json_number_keeps_old_file(tmp_path: Path):
    write_json(tmp_path / "value.json", 1)

    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", math.nan)

    assert read_json(tmp_path / "value.json") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_create_is_exclusive(tmp_path: Path):
    target = tmp_path / "deep" / "lock"

    assert create(target, "one")
    assert not create(target, "two")
    assert target.read_text() == "one"
