"""`build_collection` equals the stage ingest, resumes, and replaces nothing but a collection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kmeans_dask import build_collection
from kmeans_dask.errors import UserError
from tests.support.images import draw_images
from tests.support.ingested import CONFIG, files_of, ingested
from tests.support.jobs import files_of as inodes_of


def build(source: Path, dest: Path, **options: object):
    options = {"size": CONFIG.size, "mode": CONFIG.mode, "holdout": 0.2, **options}
    return build_collection(source, dest, **options)  # type: ignore[arg-type]


def test_equals_the_stage_ingest(images: Path, tmp_path: Path):
    expected = ingested(tmp_path, path=[str(images)], holdout=0.2)

    built = build(images, tmp_path / "built.zarr")

    assert np.array_equal(built.images.compute(), expected.images.compute())
    assert built.items.equals(expected.items)
    assert built.class_names == ("bar", "disc", "ring")
    assert np.array_equal(built.labels, expected.labels)
    assert len(built.rows("holdout")[1]) == 12
    assert sorted(path.name for path in tmp_path.glob("built*")) == ["built.zarr"]
    assert files_of(built).keys() == {"labels/zarr.json", "labels/c/0", "images/zarr.json", "images/c/0/0/0/0"}


def test_a_finished_collection_is_opened(images: Path, tmp_path: Path):
    first = build(images, tmp_path / "built.zarr")
    before = inodes_of(tmp_path)

    assert build(str(images), str(tmp_path / "built.zarr")).fingerprint == first.fingerprint
    assert inodes_of(tmp_path) == before


def test_other_images_or_settings_replace_it(tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    build(tmp_path / "images", tmp_path / "built.zarr")
    draw_images(tmp_path / "images", count=9)

    assert build(tmp_path / "images", tmp_path / "built.zarr").n_items == 9
    assert build(tmp_path / "images", tmp_path / "built.zarr", mode="RGB").images.shape == (9, 12, 10, 3)


def test_holdout_may_be_a_folder(images: Path, tmp_path: Path):
    draw_images(tmp_path / "held out", count=9)

    built = build(images, tmp_path / "built.zarr", holdout=tmp_path / "held out")

    assert [len(built.rows(split)[1]) for split in ("train", "holdout")] == [60, 9]


def test_unreadable_images_are_counted(tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    (tmp_path / "images" / "bad.png").write_bytes(b"not an image")

    built = build(tmp_path / "images", tmp_path / "built.zarr", holdout=None, labels="none")

    assert (built.n_items, built.n_failed, len(built.rows("train")[1])) == (7, 1, 6)


@pytest.mark.parametrize("name", ["a folder", "a file"])
def test_something_else_is_not_replaced(name: str, images: Path, tmp_path: Path):
    (tmp_path / "a folder").mkdir()
    for file in (tmp_path / "a folder" / "mine.txt", tmp_path / "a file"):
        file.write_text("mine")

    with pytest.raises(UserError, match="exists and is not a collection; choose another path"):
        build(images, tmp_path / name)
    assert (tmp_path / "a folder" / "mine.txt").exists()
    assert (tmp_path / "a file").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 5)}, "^size="),
        ({"mode": "CMYK"}, "^mode='CMYK'"),
        ({"holdout": 1.5}, "^holdout="),
        ({"labels": "colour"}, "^labels='colour'"),
    ],
)
def test_invalid_argument_raises(options: dict[str, object], message: str, images: Path, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        build(images, tmp_path / "built.zarr", **options)
    assert list(tmp_path.iterdir()) == []
