"""Sources behind URLs, read from servers of this machine."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3Server
from test_source_kinds import files_of, ingested

from kmeans_dask.config import Input
from kmeans_dask.errors import UserError
from kmeans_dask.images import ImageError
from kmeans_dask.sources import list_items, read_contents

LABELS = ("bar", "disc", "ring")


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as a folder, an archive and a table."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "images").symlink_to(images)
    names = sorted(images.rglob("*.png"))
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in names:
            archive.add(name, str(name.relative_to(images)))
    kinds = [name.parent.name for name in names]
    pq.write_table(pa.table({"image": [name.read_bytes() for name in names], "kind": kinds}), folder / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def bucket(packed: Path, s3: S3Server) -> str:
    """A bucket with the images in it."""
    s3.client.create_bucket(Bucket="images")
    for path in [*packed.glob("images/*/*"), packed / "a.tar", packed / "a.parquet"]:
        s3.client.upload_file(str(path), "images", str(path.relative_to(packed)))
    return "s3://images"


@pytest.fixture(scope="module")
def site(packed: Path) -> Iterator[str]:
    """A web server of this machine that knows no ranges."""

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
        {"path": "a.parquet", "labels": "column:kind"},
    ],
)
def test_s3_gives_the_same_collection(
    source: dict[str, str], bucket: str, expected: dict[str, bytes], images: Path, tmp_path: Path
) -> None:
    collection = ingested(tmp_path, **{**source, "path": f"{bucket}/{source['path']}"})

    assert collection.n_failed == 0
    assert collection.class_names == LABELS
    assert files_of(collection) == expected


def test_a_list_of_urls_and_what_is_missing(site: str, packed: Path, tmp_path: Path) -> None:
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


def test_what_is_not_there_is_said_without_secrets(bucket: str, site: str, tmp_path: Path) -> None:
    for url in (f"{bucket}/none.tar", f"{site}/none.zip?token=secret", f"{bucket}/none", "nosuch://ann:secret@x/a.tar"):
        with pytest.raises(UserError) as refused:
            list_items(Input(path=url), 0, tmp_path)
        assert "secret" not in str(refused.value)
