"""Remote sources, read from local servers."""

from __future__ import annotations

import gzip
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from kmeans_dask.cli import main
from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.reading import read_contents
from tests.support.ingested import files_of, ingested
from tests.support.jobs import Result, write_config
from tests.support.page import Page
from tests.support.s3 import S3Server

LABELS = ("bar", "disc", "ring")
Command = Callable[..., Result]


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as a folder, archives, a table and a zarr group, and their first channel as IDX."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "images").symlink_to(images)
    names = sorted(images.rglob("*.png"))
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in names:
            archive.add(name, str(name.relative_to(images)))
    kinds = [name.parent.name for name in names]
    pq.write_table(pa.table({"image": [name.read_bytes() for name in names], "kind": kinds}), folder / "a.parquet")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packing:
        for name in names:
            packing.write(name, str(name.relative_to(images)))
    pixels = np.stack([np.asarray(Image.open(name)) for name in names])
    group = zarr.create_group(folder / "a.zarr")
    group.create_array("images", data=pixels, chunks=(7, *pixels.shape[1:]))
    group.create_array("y", data=np.searchsorted(LABELS, kinds))
    grey = pixels[:, :, :, 0]
    header = struct.pack(">HBB3I", 0, 8, 3, *grey.shape)
    (folder / "grey-idx3-ubyte.gz").write_bytes(gzip.compress(header + grey.tobytes()))
    return folder


@pytest.fixture(scope="module")
def bucket(packed: Path, s3: S3Server) -> str:
    """A bucket with the images."""
    s3.client.create_bucket(Bucket="images")
    singles = [packed / name for name in ("a.tar", "a.zip", "a.parquet", "grey-idx3-ubyte.gz")]
    for path in [*packed.glob("images/*/*"), *filter(Path.is_file, packed.glob("a.zarr/**/*")), *singles]:
        s3.client.upload_file(str(path), "images", str(path.relative_to(packed)))
    return "s3://images"


@pytest.fixture(scope="module")
def site(packed: Path) -> Iterator[str]:
    """A local web server without support for range requests."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(packed))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of(ingested(tmp_path_factory.mktemp("here"), path=str(images)))


@pytest.mark.parametrize(
    "source",
    [
        {"path": "images"},
        {"path": "images/*/*.png"},
        {"path": "a.tar"},
        {"path": "a.zip"},
        {"path": "a.parquet", "labels": "column:kind"},
        {"path": "a.zarr", "labels": "column:y", "classes": LABELS},
    ],
)
def test_s3_gives_the_same_collection(
    source: dict[str, Any], bucket: str, expected: dict[str, bytes], images: Path, tmp_path: Path
) -> None:
    collection = ingested(tmp_path, **{**source, "path": f"{bucket}/{source['path']}"})

    assert collection.n_failed == 0
    assert collection.class_names == LABELS
    assert files_of(collection) == expected


@pytest.mark.parametrize("source", [{"path": "a.tar"}, {"path": "a.parquet", "labels": "column:kind"}])
def test_http_with_range_requests_gives_the_same_collection(
    source: dict[str, str], bucket: str, s3: S3Server, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The S3 server acts as a plain web server for presigned URLs."""
    place = {"Bucket": bucket.removeprefix("s3://"), "Key": source["path"]}
    url = s3.client.generate_presigned_url("get_object", Params=place)

    assert files_of(ingested(tmp_path, **{**source, "path": url})) == expected


def test_http_without_range_requests_raises(site: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="range requests"):
        list_items(Input(path=f"{site}/a.parquet", labels="column:kind"), 0, tmp_path)


def test_list_of_urls_with_a_missing_one(site: str, packed: Path, tmp_path: Path) -> None:
    here = sorted(packed.glob("images/*/*.png"))[:3]
    urls = [f"{site}/{path.relative_to(packed)}?token=secret" for path in here]
    (tmp_path / "list.txt").write_text("\n".join([*urls, f"{site}/none.png?token=secret"]))

    items = list_items(Input(path=str(tmp_path / "list.txt")), 0, tmp_path)
    contents = dict(read_contents(items))

    assert items["label"].to_pylist()[:3] == [path.parent.name for path in here]
    assert [contents[row].read() for row in range(3)] == [path.read_bytes() for path in here]  # type: ignore[union-attr]
    assert isinstance(contents[3], ImageError)
    assert contents[3].status == "missing"
    assert not any("secret" in path for path in items["path"].to_pylist())


def test_error_for_missing_source_hides_secrets(bucket: str, site: str, tmp_path: Path) -> None:
    for url in (f"{bucket}/none.tar", f"{site}/none.zip?token=secret", f"{bucket}/none", "nosuch://ann:secret@x/a.tar"):
        with pytest.raises(UserError) as refused:
            list_items(Input(path=url), 0, tmp_path)
        assert "secret" not in str(refused.value)


def test_missing_package_for_scheme_is_named(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if not installed
    config = write_config(tmp_path, tmp_path, input={"path": "gs://bucket/images"})

    result = command("run", config)

    assert (result.status, len(result.lines)) == (2, 1)
    assert result.err.startswith("kmeans-dask: cannot read gs://: ")
    assert result.err.endswith("pip install 'kmeans-dask[remote]'\n")


STAGES = {"ingest": None, "fit": None, "evaluate": None, "quantize": {"k": 3}, "report": {"samples": 4}}


def outputs(run: Path) -> list[bytes]:
    """Return the quantized images in the order of the items."""
    rows = pq.read_table(run / "quantized.parquet").sort_by("path").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    return [(run / row["output"]).read_bytes() for row in rows]


@pytest.fixture(scope="module")
def quantized(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder with the images quantized from a plain folder."""
    folder = tmp_path_factory.mktemp("quantized")
    assert (
        main.main(
            ["run", str(write_config(folder, packed / "images", input={"path": str(packed / "images")}, **STAGES))]
        )
        == 0
    )
    return folder / "runs" / "small"


@pytest.mark.parametrize("source", ["here/a.tar", "s3/a.zip", "s3/images"])
def test_every_source_gives_the_same_quantized_images(
    source: str, bucket: str, packed: Path, quantized: Path, tmp_path: Path
) -> None:
    where, _, name = source.partition("/")
    path = f"{bucket}/{name}" if where == "s3" else str(packed / name)

    assert main.main(["run", str(write_config(tmp_path, packed, input={"path": path}, **STAGES))]) == 0

    run = tmp_path / "runs" / "small"
    assert outputs(run) == outputs(quantized)
    shown, expected = (Page(folder / "report.html").data["colours"] for folder in (run, quantized))
    assert json.dumps(shown) == json.dumps(expected)


def test_rows_of_an_idx_file_are_quantized(bucket: str, packed: Path, tmp_path: Path) -> None:
    source = {"path": f"{bucket}/grey-idx3-ubyte.gz", "labels": "none"}
    assert main.main(["run", str(write_config(tmp_path, packed, input=source, **STAGES))]) == 0

    rows = pq.read_table(tmp_path / "runs" / "small" / "quantized.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"{row:02d}" for row in range(60)]
    for row, name in zip(rows, sorted(packed.glob("images/*/*.png")), strict=True):
        grey = np.asarray(Image.open(name))[:, :, 0].astype(float)
        remapped = np.asarray(Image.open(tmp_path / "runs" / "small" / row["output"]).convert("L")).astype(float)
        assert len(np.unique(remapped)) == 3
        assert 3 * ((grey - remapped) ** 2).mean() == pytest.approx(
            row["mse"]
        )  # the mse is summed over the three channels
