"""Zarr groups: collections, models and colour tables are read back as written, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kmeans_dask.errors import UserError
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.zarr_groups import Layout


def make(folder: Path, n: int = 10, chunk_rows: int = 4, **attrs: object) -> Path:
    zarr_groups.create_collection(folder, Layout((n, 2, 3, 1), chunk_rows), np.arange(n, dtype=np.int32) - 1, attrs)
    return folder


def test_blocks_roundtrip_with_short_last_block(tmp_path: Path) -> None:
    folder = make(tmp_path / "c.zarr")
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 3, 1), dtype=np.uint8)
    for start in (8, 0, 4):
        zarr_groups.write_block(folder, start, images[start : start + 4])
    np.testing.assert_array_equal(zarr_groups.read_block(folder, 0, 10), images)
    np.testing.assert_array_equal(zarr_groups.read_block(folder, 3, 9), images[3:9])
    assert zarr_groups.read_layout(folder) == Layout((10, 2, 3, 1), 4)


def test_black_blocks_without_a_file_are_read_as_black(tmp_path: Path) -> None:
    folder = make(tmp_path / "c.zarr")
    zarr_groups.write_block(folder, 0, np.zeros((4, 2, 3, 1), np.uint8))
    assert not zarr_groups.read_block(folder, 0, 10).any()


@pytest.mark.parametrize(("start", "rows"), [(1, 4), (0, 3), (0, 5), (8, 4), (4, 1)])
def test_block_other_than_one_shard_raises(tmp_path: Path, start: int, rows: int) -> None:
    folder = make(tmp_path / "c.zarr")
    with pytest.raises(ValueError, match="not one shard of 4 rows"):
        zarr_groups.write_block(folder, start, np.ones((rows, 2, 3, 1), np.uint8))
    assert not zarr_groups.read_block(folder, 0, 10).any()


def test_labels_and_attrs_roundtrip(tmp_path: Path) -> None:
    folder = make(tmp_path / "c.zarr", class_names=["a", "b"])
    labels = zarr_groups.read_labels(folder)
    assert labels.dtype == np.int32
    assert labels.tolist() == list(range(-1, 9))
    attrs = zarr_groups.read_attrs(folder)
    assert attrs["class_names"] == ["a", "b"]
    assert attrs["format_version"] == zarr_groups.FORMAT_VERSION
    assert attrs["software"]["zarr"].startswith("3.")


def test_create_collection_replaces_old_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "c.zarr")
    zarr_groups.write_block(folder, 0, np.ones((4, 2, 3, 1), np.uint8))
    make(folder, n=6)
    assert not zarr_groups.read_block(folder, 0, 6).any()


def test_inner_chunks_divide_shards_and_have_at_most_a_mebibyte(tmp_path: Path) -> None:
    for shape, rows, expected in (
        ((1, 28, 28, 1), 8192, 1024),
        ((1, 64, 64, 3), 512, 64),
        ((1, 8, 8, 1), 1024, 1024),
        ((1, 2000, 2000, 3), 16, 1),
    ):
        zarr_groups.create_collection(tmp_path / "c", Layout(shape, rows), np.zeros(1, np.int32), {})
        metadata = json.loads((tmp_path / "c" / "images" / "zarr.json").read_text())
        assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [rows, *shape[1:]]
        assert metadata["codecs"][0]["name"] == "sharding_indexed"
        assert metadata["codecs"][0]["configuration"]["chunk_shape"] == [expected, *shape[1:]]


def test_model_roundtrip_replaces_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "kmeans" / "k=2.zarr"
    zarr_groups.write_model(folder, {"old": np.zeros(3)}, {})
    arrays = {
        "centres": np.array([[0.5, 1], [2, 3]], np.float32),
        "counts": np.array([3, 4], np.int64),
        "history": np.array([], np.float64),
        "inertia": np.array(1.25),
    }
    zarr_groups.write_model(folder, arrays, {"k": 2, "params": {"init": "k-means||", "tol": 1e-4}})
    read, attrs = zarr_groups.read_model(folder)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert attrs["k"] == 2
    assert attrs["params"] == {"init": "k-means||", "tol": 1e-4}
    assert [path.name for path in folder.parent.iterdir()] == ["k=2.zarr"]


def test_failed_write_keeps_old_model(tmp_path: Path) -> None:
    folder = tmp_path / "k=2.zarr"
    zarr_groups.write_model(folder, {"centres": np.zeros(3)}, {"good": True})
    with pytest.raises(TypeError):
        zarr_groups.write_model(folder, {"centres": np.ones(3)}, {"bad": object()})
    assert zarr_groups.read_model(folder)[1]["good"]
    assert [path.name for path in tmp_path.iterdir()] == ["k=2.zarr"]


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_colour_table_roundtrip_whole_and_in_parts(tmp_path: Path, dtype: type) -> None:
    generator = np.random.default_rng(0)
    colours, weights = generator.integers(0, 256, (50, 3), dtype=np.uint8), generator.uniform(1, 9, 50).astype(dtype)
    zarr_groups.write_colours(tmp_path / "c.zarr", colours[:5], weights[:5], 16, {})
    zarr_groups.write_colours(tmp_path / "c.zarr", colours, weights, 16, {"fingerprint": "abc"})
    for start, stop in ((0, None), (0, 16), (10, 40), (48, 50)):
        read_colours, read_weights = zarr_groups.read_colours(tmp_path / "c.zarr", start, stop)
        np.testing.assert_array_equal(read_colours, colours[start:stop])
        np.testing.assert_array_equal(read_weights, weights[start:stop])
        assert (read_colours.dtype, read_weights.dtype) == (np.uint8, dtype)
    assert zarr_groups.read_attrs(tmp_path / "c.zarr", "colour table")["fingerprint"] == "abc"
    assert len(list((tmp_path / "c.zarr" / "colours" / "c").iterdir())) == 4
    with pytest.raises(UserError, match="not a finished colour table"):
        zarr_groups.read_attrs(make(tmp_path / "other"), "colour table")


def test_empty_colour_table_roundtrip(tmp_path: Path) -> None:
    zarr_groups.write_colours(
        tmp_path / "c.zarr", np.empty((0, 3), np.uint8), np.empty(0, np.int64), 16, {"colours": 0}
    )
    assert [array.shape for array in zarr_groups.read_colours(tmp_path / "c.zarr")] == [(0, 3), (0,)]


def test_invalid_group_raises(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, text in (("broken", "{"), ("list", "[]"), ("other", "{}"), ("array", '{"node_type": "array"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text(text)
    for name in ("nowhere", "folder", "file", "broken", "list", "other", "array"):
        with pytest.raises(UserError, match=f"{name} is not a finished collection"):
            zarr_groups.read_attrs(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is not a finished model"):
            zarr_groups.read_model(tmp_path / name)


def test_wrong_kind_of_group_raises(tmp_path: Path) -> None:
    zarr_groups.write_model(tmp_path / "m", {}, {})
    with pytest.raises(UserError, match="not a finished collection"):
        zarr_groups.read_attrs(tmp_path / "m")
    with pytest.raises(UserError, match="not a finished model"):
        zarr_groups.read_model(make(tmp_path / "c"))


def test_other_format_version_raises(tmp_path: Path) -> None:
    folder = make(tmp_path / "c.zarr")
    metadata = folder / "zarr.json"
    written = f'"format_version": {zarr_groups.FORMAT_VERSION}'
    metadata.write_text(metadata.read_text().replace(written, '"format_version": 99'))
    with pytest.raises(UserError, match=f"format version 99, expected {zarr_groups.FORMAT_VERSION}"):
        zarr_groups.read_attrs(folder)
