"""Selection of items, and of the holdout by a column or a pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.listing import list_items
from tests.support.jobs import Result, write_config

NAMES = ["a/1.png", "a/2.png", "b/1.png", "b/deep/3.PNG", "b/4.jpeg", "c.gif"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six image files, never decoded, and some other files."""
    folder = tmp_path / "images"
    for name in [*NAMES, "a/notes.txt", "b/4.dat"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def listed(path: object, **options: Any) -> list[tuple[str, str]]:
    """Return (path, split) of every item, in order."""
    table = list_items(Input(path=str(path), **options), 0, Path("nowhere"))
    return list(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], NAMES),
        (["*.png"], [], ["a/1.png", "a/2.png", "b/1.png"]),  # * also matches /; case-sensitive
        (["b/*"], [], ["b/1.png", "b/4.dat", "b/4.jpeg", "b/deep/3.PNG"]),  # included files need no image suffix
        (["a/?.png", "c.*"], [], ["a/1.png", "a/2.png", "c.gif"]),
        ([], ["b/*"], ["a/1.png", "a/2.png", "c.gif"]),
        ([], ["b/"], ["a/1.png", "a/2.png", "c.gif"]),
        ([], ["b?"], NAMES),  # matches whole paths, not folders
        ([], ["*/deep/"], ["a/1.png", "a/2.png", "b/1.png", "b/4.jpeg", "c.gif"]),
        ([], ["*/[12].png"], ["b/4.jpeg", "b/deep/3.PNG", "c.gif"]),
        (["*.txt", "*.gif"], ["a/*"], ["c.gif"]),
    ],
)
def test_include_and_exclude(folder: Path, include: list[str], exclude: list[str], expected: list[str]):
    found = [path for path, _ in listed(folder, include=include, exclude=exclude)]

    assert sorted(found) == sorted(expected)


def test_globs_do_not_follow_links_to_folders(folder: Path):
    (folder / "b" / "up").symlink_to(folder)  # two such links make 2 ** 40 paths
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "b" / ".hidden").mkdir()
    (folder / "b" / ".hidden" / "x.png").touch()

    assert [path for path, _ in listed(folder / "**" / "*.png")] == ["a/1.png", "a/2.png", "b/1.png"]
    assert sorted(path for path, _ in listed(folder / "**")) == sorted(NAMES)
    assert [path for path, _ in listed(f"{folder.parent}/**/deep/**", include="*")] == ["images/b/deep/3.PNG"]


def test_duplicate_entries_are_one_item(folder: Path, tmp_path: Path):
    rows = ["a/1.png,u,fit", "b/1.png,v,fit", "a/1.png,w,test", "a/2.png,w,test"]
    (folder / "list.csv").write_text("\n".join(["path,kind,part", *rows]))
    source = Input(path=str(folder / "list.csv"), labels="column:kind", holdout="column:part=test")

    table = list_items(source, 0, tmp_path).to_pylist()

    assert [(row["path"], row["label"], row["split"]) for row in table] == [
        ("a/1.png", "u", "train"), ("b/1.png", "v", "train"), ("a/2.png", "w", "holdout"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"path,kind\na/1.png,u\n,v\n", "entry 2 is not a path: None"),
        ("list.txt", b"a/1.png\na/\0.png\n", r"entry 2 is not a path: 'a/\\x00.png'"),
        ("list.txt", b"\n\n", "names no files"),
    ],
)
def test_invalid_list_raises(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=message):
        listed(tmp_path / name)


def test_list_is_split_at_newlines_only(tmp_path: Path):
    names = ["next\x85line.png", "form\x0cfeed.png", "para\u2029graph.png"]
    (tmp_path / "list.txt").write_text("\r\n".join(names))

    assert [path for path, _ in listed(tmp_path / "list.txt")] == names


def test_undecodable_labels(folder: Path, tmp_path: Path):
    (tmp_path / "t.csv").write_bytes("path,kind\na/1.png,caf\xe9\na/2.png,nan\n".encode("latin-1"))
    (folder / "b" / "1.json").write_text('{"kind": "\\ud800"}')

    by_table = list_items(Input(path=str(folder), labels="column:kind", table=str(tmp_path / "t.csv")), 0, folder)
    by_json = list_items(Input(path=str(folder), labels="json:kind"), 0, folder)

    assert by_table["label"].to_pylist()[:2] == ["caf\\udce9", "nan"]
    assert by_json["label"].to_pylist()[2] == "\\ud800"


def test_patterns_matching_nothing_raise(folder: Path):
    with pytest.raises(UserError, match="contains no images"):
        listed(folder, include=["*.webp"])
    with pytest.raises(UserError, match="contains no images"):
        listed(folder, exclude=["*"])


def test_holdout_by_pattern(folder: Path):
    assert listed(folder, holdout=r"pattern:/1\.") == [
        ("a/2.png", "train"), ("b/4.jpeg", "train"), ("b/deep/3.PNG", "train"), ("c.gif", "train"),
        ("a/1.png", "holdout"), ("b/1.png", "holdout"),
    ]  # fmt: skip


def test_holdout_by_column_of_csv_list(folder: Path, tmp_path: Path):
    rows = [f"images/{name},{'test' if row % 3 == 1 else 'fit'}\n" for row, name in enumerate(NAMES)]
    (tmp_path / "list.csv").write_text("path,part\n" + "".join(rows))

    found = listed(tmp_path / "list.csv", holdout="column:part=test")

    assert [Path(path).name for path, split in found if split == "holdout"] == ["2.png", "4.jpeg"]
    assert [split for _, split in found] == ["train"] * 4 + ["holdout"] * 2


def test_holdout_and_labels_by_columns_of_joined_table(folder: Path, tmp_path: Path):
    rows = [f"{name},{row},{'ab'[row % 2]}\n" for row, name in enumerate(NAMES)]
    (tmp_path / "facts.csv").write_text("path,fold,kind\n" + "".join(reversed(rows)))

    source = Input(path=str(folder), table=str(tmp_path / "facts.csv"), labels="column:kind", holdout="column:fold=4")
    table = list_items(source, 0, tmp_path)

    held = [row for row in table.to_pylist() if row["split"] == "holdout"]
    assert [(row["path"], row["label"]) for row in held] == [("b/4.jpeg", "a")]
    assert table["label"].null_count == 0


def test_holdout_by_column_of_parquet_table(tmp_path: Path):
    columns = {"image": [b"x"] * 4, "split": ["train", "test", "train", "test"], "kind": ["u", "v", "u", "v"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")

    found = listed(tmp_path / "t.parquet", holdout="column:split=test", labels="column:kind")

    assert found == [("0", "train"), ("2", "train"), ("1", "holdout"), ("3", "holdout")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,other\na/1.png,u\n", "has no column kind, only path, other"),
        ("name,kind\na/1.png,u\n", "has no column path, only name, kind"),
        ("path,kind\na/1.png,u\na/1.png,v\n", "has duplicate paths"),
        ("path,kind\nelsewhere/1.png,u\n", "contains no item paths such as 'a/1.png'"),
        ("path,kind\na/1.png\n", "line 2 has 1 values, but the first line has 2"),
        ('path,kind\n"a/1.png,u\n', "unexpected end of data"),
        ("", "has no column path"),
        (None, "No such file"),
    ],
)
def test_invalid_table_raises(folder: Path, tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)

    with pytest.raises(UserError, match=message):
        listed(folder, labels="column:kind", table=str(tmp_path / "t.csv"))


def test_json_sidecar_without_value_gives_no_label(folder: Path):
    for name, text in (("a/1", '{"kind": "u"}'), ("a/2", "{broken"), ("b/1", "[" * 10**5), ("b/4", "[1]")):
        (folder / f"{name}.json").write_text(text)
    (folder / "b" / "deep" / "3.json").mkdir()

    table = list_items(Input(path=str(folder), labels="json:kind"), 0, folder)

    assert dict(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
        "a/1.png": "u", "a/2.png": None, "b/1.png": None, "b/4.jpeg": None, "b/deep/3.PNG": None, "c.gif": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ("pattern:nothing", "input.holdout=pattern:nothing holds out no items"),
        ("pattern:.", "input.holdout=pattern:. holds out all items"),
        ("column:split=test", "has no column split"),
        ("pattern:(", "invalid regular expression"),
        ("column:split", "must be column:NAME=VALUE"),
    ],
)
def test_invalid_holdout_is_reported_in_one_line(
    command: Callable[..., Result], folder: Path, tmp_path: Path, holdout: str, message: str
):
    config = write_config(tmp_path, folder, input={"path": str(folder), "holdout": holdout})

    result = command("run", config)

    assert result.status == 2
    assert message in result.lines[-1]
    assert sum(line.startswith("kmeans-dask: ") for line in result.lines) == 1
