from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmeans_dask.models.export import folder_names, place


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
def test_names_of_folders(label: str, name: str):
    assert folder_names([label]) == [name]


def test_labels_that_would_share_a_folder_are_numbered():
    assert folder_names(["a/b", "a_b", "A_B", "a:b"]) == ["a_b", "a_b~2", "A_B~3", "a_b~4"]


@given(st.lists(st.text(max_size=300), unique=True, max_size=6))
def test_any_label_is_one_name_below_the_folder(labels: list[str]):
    names = folder_names(labels)

    assert len({name.casefold() for name in names}) == len(labels)
    for name in names:
        assert os.path.basename(name) == name
        assert name not in ("", ".", "..")
        assert 0 < len(os.fsencode(name)) <= 255


def test_images_of_one_name_are_told_by_their_path(tmp_path: Path):
    names, files = [], []
    for path in ("1/a.png", "2/a.png", "2/b.png"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(path.encode())
        names.append((path, "all"))
        files.append(os.fsencode(tmp_path / "in" / path))

    assert place(names, enumerate(files), tmp_path / "out", link=False)["written"] == 3
    assert {path.name for path in (tmp_path / "out" / "all").iterdir()} == {"1_a.png", "2_a.png", "b.png"}


def test_images_of_one_path_are_numbered_alike_every_time(tmp_path: Path):
    files = []
    for number in range(3):
        path = tmp_path / "in" / str(number) / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([number]))
        files.append(os.fsencode(path))
    names = [("a.png", "all")] * 3

    assert place(names, enumerate(files), tmp_path / "out", link=False) == {"written": 3, "there": 0, "failed": 0}
    contents = {path.name: path.read_bytes() for path in (tmp_path / "out" / "all").iterdir()}
    assert contents == {"a.png": b"\0", "a~2.png": b"\1", "a~3.png": b"\2"}
    assert place(names, enumerate(files), tmp_path / "out", link=False) == {"written": 0, "there": 3, "failed": 0}
    (tmp_path / "in" / "0" / "a.png").write_bytes(b"new")
    assert place(names, enumerate(files), tmp_path / "out", link=False) == {"written": 1, "there": 2, "failed": 0}
    assert (tmp_path / "out" / "all" / "a.png").read_bytes() == b"\0"
