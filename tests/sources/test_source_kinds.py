"""The same images from every kind of source give the same collection, bit for bit."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.listing import list_items
from tests.support.ingested import files_of, ingested

N, SIDE = 150, 20
LABELS = ("bar", "disc", "ring")
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
NUMBERS = np.sort(RNG.integers(0, 3, N))
"""Class of each image; sorted, so that class folders list in the order of the arrays."""


def name_of(row: int) -> str:
    return f"{LABELS[NUMBERS[row]]}/{row}.png"


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(stream, "PNG")
    return stream.getvalue()


FILES = [png(row) for row in range(N)]


def write_tar(path: Path, mode: str, rows: list[int]) -> None:
    with tarfile.open(path, mode) as archive:
        for row in rows:
            stem = name_of(row)[:-4]
            number = str(NUMBERS[row]).encode()
            for name, data in (
                (f"./{stem}.png", FILES[row]),
                (f"{stem}.json", json_sidecar(row)),
                (f"{stem}.cls", number),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def json_sidecar(row: int) -> bytes:
    return json.dumps({"label": LABELS[NUMBERS[row]]}).encode()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in every format, read-only for tests."""
    folder = tmp_path_factory.mktemp("data")
    shuffled = RNG.permutation(N).tolist()
    for row in range(N):
        file = folder / "images" / name_of(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(FILES[row])
        file.with_suffix(".json").write_bytes(json_sidecar(row))
        file.with_suffix(".txt").write_text(f" {LABELS[NUMBERS[row]]}\n")
        flat = folder / "flat" / f"{row}_{LABELS[NUMBERS[row]]}.png"
        flat.parent.mkdir(exist_ok=True)
        flat.write_bytes(FILES[row])
    (folder / "list.txt").write_text("".join(f"images/{name_of(row)}\n\n" for row in range(N)))
    lines = "".join(f"images/{name_of(row)}\r\n" for row in range(N))
    (folder / "windows.txt").write_bytes(lines.encode("utf-16"))
    rows = [f"images/{name_of(row)},{LABELS[NUMBERS[row]]}\n" for row in range(N)]
    (folder / "list.csv").write_text("file,kind\n" + "".join(rows))
    (folder / "semicolons.csv").write_text("\ufeff" + "file,kind\n".replace(",", ";") + "".join(rows).replace(",", ";"))
    rows = [f"{row}_{LABELS[NUMBERS[row]]}.png,{LABELS[NUMBERS[row]]}\n" for row in shuffled]
    (folder / "labels.csv").write_text("path,kind\n" + "".join(rows))
    pq.write_table(pyarrow.csv.read_csv(folder / "labels.csv"), folder / "labels.parquet")
    write_tar(folder / "a.tar", "w", shuffled)
    write_tar(folder / "a.tar.gz", "w:gz", shuffled)
    for i in range(3):
        write_tar(folder / f"shard-{i:03d}.tar", "w", list(range(N))[50 * i : 50 * i + 50])
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for row in shuffled:
            method = zipfile.ZIP_DEFLATED if row % 2 else zipfile.ZIP_STORED
            archive.writestr(f"{name_of(row)[:-4]}.json", json_sidecar(row), method)
            archive.writestr(name_of(row), FILES[row], method)
    np.save(folder / "x.npy", PIXELS)
    np.save(folder / "y.npy", NUMBERS)
    np.savez(folder / "x.npz", images=PIXELS, y=NUMBERS)
    np.savez_compressed(folder / "small.npz", images=PIXELS, y=NUMBERS)
    np.savez(
        folder / "keras.npz",
        x_train=PIXELS,
        y_train=NUMBERS[:, None],
        x_test=PIXELS[:40] // 2,
        y_test=NUMBERS[:40, None],
    )
    np.savez(folder / "names.npz", images=PIXELS, y=np.array(LABELS)[NUMBERS], z=np.array(LABELS, bytes)[NUMBERS])
    old = zarr.create_group(folder / "old", zarr_format=2)
    old.create_array("images", data=PIXELS, chunks=(7, SIDE, SIDE, 3))
    old.create_array("y", data=NUMBERS)
    group = zarr.create_group(folder / "x.zarr")
    group.create_array("images", data=PIXELS, chunks=(7, SIDE, SIDE, 3))
    group.create_array("y", data=NUMBERS)
    for split, n, divisor in (("train", N, 1), ("test", 40, 2)):
        group = zarr.create_group(folder / "two.zarr" / split)
        group.create_array("x", data=PIXELS[:n] // divisor)
        group.create_array("y", data=NUMBERS[:n])
        np.save(folder / f"x_{split}.npy", PIXELS[:n] // divisor)
        np.save(folder / f"y_{split}.npy", NUMBERS[:n])
    plain = pa.table({"image": FILES, "kind": [LABELS[i] for i in NUMBERS]})
    pq.write_table(plain, folder / "plain.parquet", row_group_size=40)
    structs = [{"bytes": FILES[row], "path": f"{row}.png"} for row in range(N)]
    features = {"label": {"names": list(LABELS), "_type": "ClassLabel"}}
    hugging = pa.table({"image": structs, "label": NUMBERS})
    hugging = hugging.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(hugging, folder / "hugging.parquet", row_group_size=64)
    return folder


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the collection made from the folder."""
    collection = ingested(tmp_path_factory.mktemp("folder"), path=str(data / "images"))
    assert collection.images.shape == (N, 12, 10, 1)
    assert collection.class_names == LABELS
    assert collection.labels.tolist() == NUMBERS.tolist()
    first = np.asarray(Image.fromarray(PIXELS[0]).convert("L").resize((10, 12), Image.Resampling.BOX))
    np.testing.assert_array_equal(collection.images[0, :, :, 0].compute(), first)
    return files_of(collection)


SOURCES: dict[str, dict[str, Any]] = {
    "glob": {"path": "images/*/*.png"},
    "deep glob": {"path": "images/**/*.png"},
    "braces": {"path": "images/{bar,disc,ring}/*.png", "labels": "json:label"},
    "several folders": {"path": [f"images/{label}" for label in LABELS], "labels": "json:label"},
    "several archives": {"path": [f"shard-{i:03d}.tar" for i in range(3)]},
    "folder, JSON sidecars": {"path": "images", "labels": "json:label"},
    "folder, text sidecars": {"path": "images", "labels": "text:txt"},
    "overlapping patterns": {"path": ["images/*/*.png", "images/**/*.png"]},
    "folder, pattern": {"path": "flat", "labels": r"pattern:_(?P<label>\w+)\."},
    "folder, table": {"path": "flat", "labels": "column:kind", "table": "labels.csv"},
    "folder, Parquet table": {"path": "flat", "labels": "column:kind", "table": "labels.parquet"},
    "text list": {"path": "list.txt"},
    "Windows text list": {"path": "windows.txt"},
    "CSV list with semicolons": {"path": "semicolons.csv", "column": "file", "labels": "column:kind"},
    "CSV list": {"path": "list.csv", "column": "file", "labels": "column:kind"},
    "tar": {"path": "a.tar"},
    "tar, JSON sidecars": {"path": "a.tar", "labels": "json:label"},
    "tar.gz": {"path": "a.tar.gz"},
    "shards": {"path": "shard-{000..002}.tar"},
    "shards, text sidecars": {"path": "shard-{000..002}.tar", "labels": "text:cls", "classes": LABELS},
    "shards by glob": {"path": "shard-*.tar", "labels": "json:label"},
    "zip": {"path": "a.zip"},
    "zip, JSON sidecars": {"path": "a.zip", "labels": "json:label"},
    "npy": {"path": "x.npy", "labels": "column:y.npy", "classes": LABELS},
    "npz": {"path": "x.npz", "labels": "column:y", "classes": LABELS},
    "compressed npz": {"path": "small.npz", "labels": "column:y", "classes": LABELS},
    "Keras npz": {"path": "keras.npz", "column": "x_train", "labels": "column:y_train", "classes": LABELS},
    "npz, labels as text": {"path": "names.npz", "labels": "column:y"},
    "npz, labels as bytes": {"path": "names.npz", "labels": "column:z"},
    "zarr format 2": {"path": "old", "labels": "column:y", "classes": LABELS},
    "zarr": {"path": "x.zarr", "labels": "column:y", "classes": LABELS},
    "zarr array": {"path": "x.zarr/images", "labels": "column:y", "table": "y.csv", "classes": LABELS},
    "Parquet": {"path": "plain.parquet", "labels": "column:kind"},
    "Hugging Face": {"path": "hugging.parquet", "labels": "column:label"},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_collection(
    kind: str, data: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for entry in data.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "y.csv").write_text("path,y\n" + "".join(f"{row:03d},{NUMBERS[row]}\n" for row in range(N)))

    collection = ingested(tmp_path / "run", **SOURCES[kind])

    assert collection.n_failed == 0
    assert collection.class_names == LABELS
    assert files_of(collection) == expected


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_with_labels(ending: str, tmp_path: Path, data: Path) -> None:
    """IDX images are grey, as in MNIST."""
    grey = np.stack([np.asarray(Image.fromarray(pixels).convert("L")) for pixels in PIXELS])
    for row in range(N):
        Image.fromarray(grey[row]).save(tmp_path / f"{row}_{NUMBERS[row]}.png")
    pack = gzip.compress if ending else bytes
    (tmp_path / f"t10k-images-idx3-ubyte{ending}").write_bytes(pack(idx(grey)))
    (tmp_path / f"t10k-labels-idx1-ubyte{ending}").write_bytes(pack(idx(NUMBERS.astype(np.uint8))))

    images = ingested(tmp_path / "a", path=str(tmp_path), labels=r"pattern:_(\d)")
    source = str(tmp_path / f"t10k-images-idx3-ubyte{ending}")
    rows = ingested(tmp_path / "b", path=source, labels="column:labels")

    assert files_of(rows) == files_of(images)
    assert rows.class_names == ("0", "1", "2")


HELD_OUT: dict[str, dict[str, Any]] = {
    "two arrays of a file": {
        "path": "keras.npz", "column": "x_train", "labels": "column:y_train",
        "holdout": "keras.npz", "holdout_column": "x_test", "holdout_labels": "column:y_test",
    },
    "two groups of a zarr": {"path": "two.zarr/train", "column": "x", "labels": "column:y", "holdout": "two.zarr/test"},
    "two image files and two label files": {
        "path": "x_train.npy", "labels": "column:y_train.npy",
        "holdout": "x_test.npy", "holdout_labels": "column:y_test.npy",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD_OUT)
def test_train_and_holdout_arrays(kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)

    collection = ingested(tmp_path, **HELD_OUT[kind], classes=LABELS)

    X, rows = collection.rows("train")
    held, _ = collection.rows("holdout")
    assert rows.tolist() == list(range(N))
    assert held.shape == (40, 120)
    assert collection.labels.tolist() == [*NUMBERS, *NUMBERS[:40]]
    assert held[0].compute().mean() == pytest.approx(X[0].compute().mean() / 2, abs=1)


def test_overlapping_holdout_arrays_raise(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    options: dict[str, Any] = {"path": "keras.npz", "column": "x_train", "labels": "none", "holdout": "keras.npz"}

    for change in ({}, {"holdout_column": "x_train"}):
        with pytest.raises(UserError, match="overlap, so held-out items would be fitted"):
            list_items(Input(**options | change), 0, data)
    with pytest.raises(UserError, match="overlap: both contain"):
        list_items(Input(**options | {"path": ["keras.npz", "x.npy"], "holdout": "ker*.npz"}), 0, data)
    for holdout in (None, 0.2, "pattern:1", "column:y=1"):
        with pytest.raises(ValueError, match="require a holdout that is a source"):
            Input(path="x.npz", holdout=holdout, holdout_column="y")
    with pytest.raises(ValueError, match="must be folder, none"):
        Input(path="x.npz", holdout="x.npz", holdout_labels="y_test")
