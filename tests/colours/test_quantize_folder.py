"""`quantize_folder`: every image of a source in K colours, by one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmeans_dask import quantize_folder, quantize_image
from kmeans_dask.errors import UserError
from kmeans_dask.storage.journal import QUANTIZED_SCHEMA
from tests.support.images import draw_images
from tests.support.jobs import files_of


def colours_in(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("dither", ["none", "ordered"])
def test_files_equal_quantize_image(dither: str, images: Path, tmp_path: Path):
    table = quantize_folder(images, tmp_path / "few", [2, 6], init="variance", dither=dither)  # type: ignore[arg-type]

    assert table.schema.equals(QUANTIZED_SCHEMA)
    assert len(table) == 120
    for row in table.to_pylist():
        with Image.open(images / row["path"]) as original:
            expected = quantize_image(original, row["k"], init="variance", dither=dither)  # type: ignore[arg-type]
        assert row["status"] == "ok"
        assert np.array_equal(colours_in(tmp_path / "few" / row["output"]), np.asarray(expected.convert("RGB")))


def test_finished_images_are_skipped_and_new_ones_added(tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    quantize_folder(tmp_path / "images", tmp_path / "few", 2)
    before = files_of(tmp_path / "few" / "quantized")

    table = quantize_folder(tmp_path / "images", tmp_path / "few", [2, 3])

    assert len(table) == 12
    assert before.items() <= files_of(tmp_path / "few" / "quantized").items()


def test_outputs_inside_the_source_are_not_quantized_themselves(tmp_path: Path):
    draw_images(tmp_path, count=6)

    for _ in range(2):
        assert len(quantize_folder(tmp_path, tmp_path / "few", 2)) == 6


def test_unreadable_image_is_a_row_with_the_reason(tmp_path: Path):
    draw_images(tmp_path / "images", count=3)
    (tmp_path / "images" / "bad.png").write_bytes(b"not an image")

    table = quantize_folder(tmp_path / "images", tmp_path / "few", 2, file_format="webp")

    assert [row["status"] for row in table.to_pylist()] == ["unreadable", "ok", "ok", "ok"]
    assert table["output"].to_pylist()[:2] == [None, "quantized/2/bar/001.webp"]


@pytest.mark.parametrize("name", ["mine.txt", "run.json"])
def test_folder_of_something_else_is_left_alone(name: str, images: Path, tmp_path: Path):
    (tmp_path / "quantized").mkdir()
    (tmp_path / name).write_text("{}")

    with pytest.raises(UserError, match="holds something other than quantized images; choose a new or empty folder"):
        quantize_folder(images, tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "quantized"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "^k="),
        ({"k": 300, "file_format": "gif"}, "gif"),
        ({"k": 2, "space": "oklab", "dither": "ordered"}, "dither ordered"),
        ({"k": 2, "sample": 0}, "^sample=0"),
    ],
)
def test_invalid_argument_raises(options: dict[str, object], message: str, images: Path, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        quantize_folder(images, tmp_path / "few", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "few").exists()
