"""Output names: distinct, inside the folder, and reported where they change."""

from __future__ import annotations

import os

import pytest

from kmeans_dask.storage.output_names import output_names, renamed, write_file
from kmeans_dask.storage.publish import remove_partials


def test_names_keep_folders_and_change_suffix():
    assert output_names(["a/b.jpg", "c.tar.gif", "d", "é/ü.PNG"]) == ["a/b.png", "c.tar.png", "d.png", "é/ü.png"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg.png", "a.png.png", "b.png"]),
        (["x/a.png", "x/A.png"], ["x/a.png.png", "x/A~2.png.png"]),
        (["a.png", "a.png", "a.png"], ["a.png.png", "a~2.png.png", "a~3.png.png"]),
        (["a.jpg", "a.png", "a.jpg.gif"], ["a~2.jpg.png", "a.png.png", "a.jpg.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),
    ],
)
def test_names_are_distinct(paths, names):
    assert output_names(paths) == names


@pytest.mark.parametrize("path", ["../up.png", "/etc/passwd", "a/../../b.png", "..", "./x.png", "a//b.png", ""])
def test_names_stay_in_folder(tmp_path, path):
    (name,) = output_names([path])
    assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())
    assert (tmp_path / name).resolve() != tmp_path.resolve()


def test_names_take_given_suffix():
    assert output_names(["a/b.jpg", "c.png", "c.jpg"], ".webp") == ["a/b.webp", "c.png.webp", "c.jpg.webp"]


def test_renamed_lists_changed_names():
    paths = ["a.jpg", "a.png", "b/c.jpg", "d", "e.tar.gif"]
    assert renamed(paths, output_names(paths)) == [("a.jpg", "a.jpg.png"), ("a.png", "a.png.png")]


def test_write_file_replaces(tmp_path):
    path = tmp_path / "new" / "file.png"
    for data in (b"first", b"x" * 100_000, b""):
        write_file(str(path), data)
        assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["file.png"]


def test_write_file_retries_if_partial_is_removed(tmp_path, monkeypatch):
    rename = os.replace

    def remove_once(partial, path):
        monkeypatch.setattr(os, "replace", rename)
        remove_partials(tmp_path)
        rename(partial, path)

    monkeypatch.setattr(os, "replace", remove_once)
    write_file(str(tmp_path / "file.png"), b"data")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file.png", b"data")]


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="name too long"):
        write_file(str(tmp_path / ("x" * 300)), b"data")
    assert list(tmp_path.iterdir()) == []
