"""Export of images: safe names of folders, and files that are recognized by the next export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmeans_dask.models.export import folder_names, write_images


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("disc", "disc"),
        ("a b", "a b"),
        ("../../etc", "__.._etc"),
        ("/etc/passwd", "_etc_passwd"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "_hidden"),
        ("a\nb\x00c", "a_b_c"),
        ("CON", "_CON"),
        ("aux.png", "_aux.png"),
        ("end. .", "end"),
        ("ñandú", "ñandú"),
        ("x" * 300, "x" * 100),
    ],
)
def test_folder_names(label: str, name: str):
    assert folder_names([label]) == [name]


def test_colliding_folder_names_are_numbered():
    assert folder_names(["a/b", "a_b", "A_B", "a:b"]) == ["a_b", "a_b~2", "A_B~3", "a_b~4"]


@given(st.lists(st.text(max_size=300), unique=True, max_size=6))
def test_folder_names_are_distinct_and_valid(labels: list[str]):
    names = folder_names(labels)

    assert len({name.casefold() for name in names}) == len(labels)
    for name in names:
        assert os.path.basename(name) == name
        assert name not in ("", ".", "..")
        assert 0 < len(os.fsencode(name)) <= 255


def test_images_with_equal_names_are_named_by_path(tmp_path: Path):
    names, files = [], []
    for path in ("1/a.png", "2/a.png", "2/b.png"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(path.encode())
        names.append((path, "all"))
        files.append(os.fsencode(tmp_path / "in" / path))

    assert write_images(names, enumerate(files), tmp_path / "out", link=False)["written"] == 3
    assert {path.name for path in (tmp_path / "out" / "all").iterdir()} == {"1_a.png", "2_a.png", "b.png"}


def test_images_with_equal_paths_are_numbered_consistently(tmp_path: Path):
    files = []
    for number in range(3):
        path = tmp_path / "in" / str(number) / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([number]))
        files.append(os.fsencode(path))
    names = [("a.png", "all")] * 3
    target = tmp_path / "out"

    assert write_images(names, enumerate(files), tmp_path / "out", link=False) == {
        "written": 3,
        "unchanged": 0,
        "failed": 0,
    }
    contents = {path.name: path.read_bytes() for path in (target / "all").iterdir()}
    assert contents == {"a.png": b"\0", "a~2.png": b"\1", "a~3.png": b"\2"}
    assert write_images(names, enumerate(files), tmp_path / "out", link=False) == {
        "written": 0,
        "unchanged": 3,
        "failed": 0,
    }
    (tmp_path / "in" / "0" / "a.png").write_bytes(b"new")
    assert write_images(names, enumerate(files), tmp_path / "out", link=False) == {
        "written": 1,
        "unchanged": 2,
        "failed": 0,
    }
    assert (target / "all" / "a.png").read_bytes() == b"\0"
