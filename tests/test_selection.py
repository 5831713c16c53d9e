"""Which paths are items, and which of them are held out by a column or a pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Said, write_config

from kmeans_dask.config import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources import list_items

NAMES = ["a/1.png", "a/2.png", "b/1.png", "b/deep/3.PNG", "b/4.jpeg", "c.gif"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, and files that are none; nobody decodes them."""
    folder = tmp_path / "images"
    for name in [*NAMES, "a/notes.txt", "b/4.dat"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def listed(path: object, **options: Any) -> list[tuple[str, str]]:
    """Path and split of every item, in their order."""
    table = list_items(Input(path=str(path), **options), 0, Path("nowhere"))
    return list(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], NAMES),
        (["*.png"], [], ["a/1.png", "a/2.png", "b/1.png"]),  # * stands for / too, and letters are as they are
        (["b/*"], [], ["b/1.png", "b/4.dat", "b/4.jpeg", "b/deep/3.PNG"]),  # what is included needs no known ending
        (["a/?.png", "c.*"], [], ["a/1.png", "a/2.png", "c.gif"]),
        ([], ["b/*"], ["a/1.png", "a/2.png", "c.gif"]),
        ([], ["*/[12].png"], ["b/4.jpeg", "b/deep/3.PNG", "c.gif"]),
        (["*.txt", "*.gif"], ["a/*"], ["c.gif"]),
    ],
)
def test_include_and_exclude(folder: Path, include: list[str], exclude: list[str], expected: list[str]):
    found = [path for path, _ in listed(folder, include=include, exclude=exclude)]

    assert sorted(found) == sorted(expected)


def test_patterns_that_leave_nothing_are_told(folder: Path):
    with pytest.raises(UserError, match="holds no image"):
        listed(folder, include=["*.webp"])
    with pytest.raises(UserError, match="holds no image"):
        listed(folder, exclude=["*"])


def test_a_pattern_holds_out_the_paths_that_it_is_found_in(folder: Path):
    assert listed(folder, holdout=r"pattern:/1\.") == [
        ("a/2.png", "train"), ("b/4.jpeg", "train"), ("b/deep/3.PNG", "train"), ("c.gif", "train"),
        ("a/1.png", "holdout"), ("b/1.png", "holdout"),
    ]  # fmt: skip


def test_a_column_of_a_csv_list_holds_out(folder: Path, tmp_path: Path):
    rows = [f"images/{name},{'test' if row % 3 == 1 else 'fit'}\n" for row, name in enumerate(NAMES)]
    (tmp_path / "list.csv").write_text("path,part\n" + "".join(rows))

    found = listed(tmp_path / "list.csv", holdout="column:part=test")

    assert [Path(path).name for path, split in found if split == "holdout"] == ["2.png", "4.jpeg"]
    assert [split for _, split in found] == ["train"] * 4 + ["holdout"] * 2


def test_a_column_of_a_joined_table_holds_out_and_another_labels(folder: Path, tmp_path: Path):
    rows = [f"{name},{row},{'ab'[row % 2]}\n" for row, name in enumerate(NAMES)]
    (tmp_path / "facts.csv").write_text("path,fold,kind\n" + "".join(reversed(rows)))

    source = Input(path=str(folder), table=str(tmp_path / "facts.csv"), labels="column:kind", holdout="column:fold=4")
    table = list_items(source, 0, tmp_path)

    held = [row for row in table.to_pylist() if row["split"] == "holdout"]
    assert [(row["path"], row["label"]) for row in held] == [("b/4.jpeg", "a")]
    assert table["label"].null_count == 0


def test_a_column_of_a_parquet_table_of_images_holds_out(tmp_path: Path):
    columns = {"image": [b"x"] * 4, "split": ["train", "test", "train", "test"], "kind": ["u", "v", "u", "v"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")

    found = listed(tmp_path / "t.parquet", holdout="column:split=test", labels="column:kind")

    assert found == [("0", "train"), ("2", "train"), ("1", "holdout"), ("3", "holdout")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("path,other\na/1.png,u\n", "has no column kind; it has path, other"),
        ("name,kind\na/1.png,u\n", "has no column path; it has name, kind"),
        ("path,kind\na/1.png,u\na/1.png,v\n", "has a path twice"),
        ("path,kind\nelsewhere/1.png,u\n", "has no path of the items, such as 'a/1.png'"),
        ("path,kind\na/1.png\n", "line 2 has 1 values, the first line 2"),
        ('path,kind\n"a/1.png,u\n', "unexpected end of data"),
        ("", "has no column path"),
        (None, "No such file"),
    ],
)
def test_a_table_that_does_not_fit_is_told(folder: Path, tmp_path: Path, content: str | None, told: str):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)

    with pytest.raises(UserError, match=told):
        listed(folder, labels="column:kind", table=str(tmp_path / "t.csv"))


def test_json_beside_that_says_nothing_is_no_label(folder: Path):
    for name, text in (("a/1", '{"kind": "u"}'), ("a/2", "{broken"), ("b/1", "[" * 10**5), ("b/4", "[1]")):
        (folder / f"{name}.json").write_text(text)
    (folder / "b" / "deep" / "3.json").mkdir()

    table = list_items(Input(path=str(folder), labels="json:kind"), 0, folder)

    assert dict(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
        "a/1.png": "u", "a/2.png": None, "b/1.png": None, "b/4.jpeg": None, "b/deep/3.PNG": None, "c.gif": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("holdout", "told"),
    [
        ("pattern:nothing", "input.holdout=pattern:nothing holds out no item"),
        ("pattern:.", "input.holdout=pattern:. holds out all items"),
        ("column:split=test", "has no column split"),
        ("pattern:(", "no regular expression"),
        ("column:split", "write the value that is held out"),
    ],
)
def test_mistakes_are_one_line(command: Callable[..., Said], folder: Path, tmp_path: Path, holdout: str, told: str):
    config = write_config(tmp_path, folder, input={"path": str(folder), "holdout": holdout})

    said = command("run", config)

    assert said.status == 2
    assert told in said.lines[-1]
    assert sum(line.startswith("kmeans-dask: ") for line in said.lines) == 1
