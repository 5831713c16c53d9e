from __future__ import annotations

import math
from pathlib import Path

import pytest

from kmeans_dask.storage.publish import create, publish, read_json, remove, remove_partials, write_json


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "deep" / "down" / "table.txt"

    with publish(target) as partial:
        partial.write_text("all of it")
        assert not target.exists()
        assert partial.parent == target.parent  # a rename between two file systems would be a copy

    assert target.read_text() == "all of it"
    assert list(target.parent.iterdir()) == [target]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path):
    target = tmp_path / "table.txt"
    target.write_text("old")

    with publish(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"

    assert target.read_text() == "new"


def test_a_folder_replaces_a_folder(tmp_path: Path):
    target = tmp_path / "model"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "old").write_text("old")

    with publish(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")

    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]):
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


def test_two_writers_do_not_meet(tmp_path: Path):
    target = tmp_path / "table.txt"

    with publish(target) as first, publish(target) as second:
        first.write_text("first")
        second.write_text("second")

    assert target.read_text() == "first"  # it left its block last
    assert list(tmp_path.iterdir()) == [target]


def test_remove_takes_files_folders_and_nothing(tmp_path: Path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")

    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path):
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


def test_remove_leaves_what_a_link_points_to(tmp_path: Path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "file").write_text("kept")
    link.symlink_to(folder)

    remove(link)

    assert not link.is_symlink()
    assert (folder / "file").read_text() == "kept"


def test_json_comes_back(tmp_path: Path):
    value = {"k": [3, 5], "inertia": 0.1 + 0.2, "label": "Ångström", "none": None, "yes": True}

    write_json(tmp_path / "value.json", value)

    assert read_json(tmp_path / "value.json") == value


def test_a_number_that_json_does_not_know_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "value.json", 1)

    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", math.nan)

    assert read_json(tmp_path / "value.json") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_of_two_that_create_a_file_one_succeeds(tmp_path: Path):
    target = tmp_path / "deep" / "lock"

    assert create(target, "one")
    assert not create(target, "two")
    assert target.read_text() == "one"
