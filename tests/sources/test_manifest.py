from __future__ import annotations

from typing import Any

import pyarrow as pa

from kmeans_dask.sources.manifest import MANIFEST_SCHEMA, same_files, update_manifest


def manifest(*rows: tuple[Any, ...]) -> pa.Table:
    """Build a manifest from (name, time, label, split) of each item."""
    items = [
        {"file": f"/{name}".encode(), "path": name, "bytes": 9, "mtime_ns": time, "label": label, "split": split}
        for name, time, label, split in rows
    ]
    return pa.Table.from_pylist(items, schema=MANIFEST_SCHEMA)


A = ("a", 1, "x", "train")
B = ("b", 1, "y", "train")
C = ("c", 1, None, "holdout")


def test_unchanged_input_gives_the_same_manifest():
    items, *numbers = update_manifest(manifest(A, B, C), manifest(A, B, C), keep_splits=False)

    assert items.equals(manifest(A, B, C))
    assert numbers == [0, 0, 0]


def test_old_rows_stay_and_new_items_are_appended():
    items, *numbers = update_manifest(
        manifest(C, B, A), manifest(("0", 5, "x", "train"), A, ("b", 2, "z", "train")), keep_splits=False
    )

    expected = manifest(("c", 1, None, "removed"), ("b", 2, "z", "train"), A, ("0", 5, "x", "train"))
    assert items.equals(expected)
    assert numbers == [1, 1, 1]

    again, *numbers = update_manifest(items, manifest(A, ("b", 2, "z", "train")), keep_splits=False)
    assert again["split"].to_pylist() == ["removed", "train", "train", "removed"]
    assert numbers == [0, 0, 1]

    back, *numbers = update_manifest(again, manifest(A, ("b", 2, "z", "train"), C), keep_splits=True)
    assert back["split"].to_pylist() == ["holdout", "train", "train", "removed"]
    assert numbers == [1, 0, 0]


def test_same_name_in_another_folder_is_a_new_item():
    other = manifest(A).set_column(0, "file", pa.array([b"/elsewhere/a"], pa.binary()))

    items, *numbers = update_manifest(manifest(A), pa.concat_tables([manifest(A), other]), keep_splits=False)

    assert items["file"].to_pylist() == [b"/a", b"/elsewhere/a"]
    assert numbers == [1, 0, 0]


def test_arrays_of_one_file_are_separate_items():
    both = pa.concat_tables([manifest(A).set_column(2, "member", pa.array([name])) for name in ("x_train", "x_test")])

    items, *numbers = update_manifest(both, both, keep_splits=True)

    assert items["member"].to_pylist() == ["x_train", "x_test"]
    assert numbers == [0, 0, 0]


def test_keep_splits_ignores_a_new_draw():
    redrawn = manifest(("a", 1, "x", "holdout"), ("c", 1, None, "train"), ("d", 1, "x", "holdout"))

    kept = update_manifest(manifest(A, B, C), redrawn, keep_splits=True).items
    followed = update_manifest(manifest(A, B, C), redrawn, keep_splits=False).items

    assert kept["split"].to_pylist() == ["train", "removed", "holdout", "holdout"]
    assert followed["split"].to_pylist() == ["holdout", "removed", "train", "holdout"]


def test_same_files_ignores_label_and_split():
    same = same_files(manifest(A, B, C), manifest(("a", 1, None, "holdout"), ("b", 2, "y", "train"), C))

    assert same.tolist() == [True, False, True]
