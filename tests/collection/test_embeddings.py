"""Embeddings: rows of a file are matched to items, and a file that does not fit is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from kmeans_dask.collection.embeddings import match_embeddings, read_embeddings
from kmeans_dask.errors import UserError

ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
PATHS = [f"a/{i}.png" for i in (3, 1, 0, 2, 6, 5, 4)]


@pytest.fixture
def items() -> pa.Table:
    """Seven items; the last one could not be read."""
    return pa.table({"path": PATHS, "status": ["ok"] * 6 + ["unreadable"]})


def write(path: Path, rows: np.ndarray = ROWS, paths: list[str] | None = None, lists: bool = True) -> str:
    """Write rows in the format given by the suffix."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".zarr":
        zarr.create_array(path, data=rows, chunks=(2, 3))
    else:
        columns: dict[str, object] = {"path": paths} if paths else {}
        columns |= {"vector": list(rows)} if lists else {f"x{i}": column for i, column in enumerate(rows.T)}
        pq.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize("name", ["e.npy", "e.zarr", "e.parquet"])
def test_rows_in_item_order(tmp_path: Path, items: pa.Table, name: str):
    matched = match_embeddings(write(tmp_path / name), items)

    assert (matched.n_features, matched.positions.tolist()) == (3, list(range(7)))
    np.testing.assert_array_equal(read_embeddings(matched.path, matched.positions[2:5], 3), ROWS[2:5])


@pytest.mark.parametrize("lists", [True, False])
def test_rows_matched_by_path(tmp_path: Path, items: pa.Table, lists: bool):
    order = np.random.default_rng(1).permutation(7)
    name = write(tmp_path / "e.parquet", ROWS[order], [PATHS[i] for i in order], lists)

    matched = match_embeddings(name, items)

    np.testing.assert_array_equal(read_embeddings(matched.path, matched.positions, 3), ROWS)


def test_unreadable_item_needs_no_row(tmp_path: Path, items: pa.Table):
    matched = match_embeddings(write(tmp_path / "e.parquet", ROWS[:6], PATHS[:6]), items)

    assert matched.positions[6] == -1
    assert read_embeddings(matched.path, matched.positions, 3)[6].tolist() == [0, 0, 0]


def test_extra_rows_are_ignored_when_matched_by_path(tmp_path: Path, items: pa.Table):
    name = write(tmp_path / "e.parquet", np.concatenate([ROWS, ROWS + 1]), PATHS + [f"b{i}" for i in range(7)])

    assert match_embeddings(name, items).positions.tolist() == list(range(7))


def test_unsuitable_file_raises(tmp_path: Path, items: pa.Table):
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "e.csv").write_text("1,2")
    pq.write_table(pa.table({"path": PATHS}), tmp_path / "no-numbers.parquet")
    pq.write_table(pa.table({"v": [[1.0, 2.0]] * 6 + [[1.0]]}), tmp_path / "ragged.parquet")
    np.save(tmp_path / "names.npy", np.array(PATHS))
    wrong = {
        "absent.npy": "no such file",
        "text.npy": "cannot be read",
        "folder.zarr": "is not a zarr array",
        "e.csv": "must be a .npy, .zarr or .parquet file",
        "no-numbers.parquet": "give one column of lists, or numeric columns",
        "names.npy": "give a numeric array",
        write(tmp_path / "short.npy", ROWS[:6]): "has 6 rows for 7 items; give one row per item",
        write(tmp_path / "flat.npy", ROWS[0]): r"shape \(3,\); give one row of features per item",
        write(tmp_path / "empty.parquet", ROWS[:0]): r"shape \(0, 0\)",
        write(tmp_path / "few.parquet", ROWS[:4], PATHS[:4]): "no row for 2 of 6 items, for example 'a/6.png'",
        write(tmp_path / "twice.parquet", ROWS, [PATHS[0], *PATHS[:6]]): "has the path 'a/3.png' more than once",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message) as raised:
            match_embeddings(str(tmp_path / name), items)
        assert "\n" not in str(raised.value)


def test_duplicate_item_paths_raise(tmp_path: Path):
    items = pa.table({"path": ["a", "a"], "status": ["ok", "ok"]})

    with pytest.raises(UserError, match="the collection has the path 'a' more than once"):
        match_embeddings(write(tmp_path / "e.parquet", ROWS[:2], ["a", "b"]), items)


def test_invalid_rows_raise_when_read(tmp_path: Path, items: pa.Table):
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    matched = match_embeddings(write(tmp_path / "e.npy", rows), items)

    read_embeddings(matched.path, matched.positions[:3], 3)
    with pytest.raises(UserError, match=r"1 of 7 rows contain NaN or infinity"):
        read_embeddings(matched.path, matched.positions, 3)
    pq.write_table(pa.table({"v": [[1.0, 2.0]] * 6 + [[1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match=r"the lists in column v have lengths \[2, 1\]; make them equally long"):
        read_embeddings(tmp_path / "ragged.parquet", np.arange(7), 2)
