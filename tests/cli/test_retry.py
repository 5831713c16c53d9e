"""``retry``: failed items are read again even if size and time of their files are unchanged, and no other items are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow.parquet as pq
import pytest

from kmeans_dask import open_collection
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import Result, files_of, write_config

Command = Callable[..., Result]
SMALL: dict[str, Any] = {"ingest": {"size": [96, 96]}, "fit": {"k": 3}, "quantize": {"k": [2]}, "report": None}
"""Config with 32 items per chunk, so that 40 items make two chunks."""


def rows_of(run: Path) -> dict[str, tuple[str, str | None, bytes]]:
    """Path -> status, error and pixels of every item."""
    collection = open_collection(run / "collection.zarr")
    pixels = [image.tobytes() for image in collection.images.compute(scheduler="sync")]
    path, status, error = (collection.items[name].to_pylist() for name in ("path", "status", "error"))
    return {name: facts for name, *facts in zip(path, status, error, pixels, strict=True)}


def replace_keeping_stat(path: Path, content: bytes) -> None:
    """Replace the content of a file, but keep its size and modification time."""
    before = path.stat()
    path.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_repaired_file_with_unchanged_size_and_time(command: Command, tmp_path: Path):
    images = tmp_path / "images"
    draw_images(images, count=40)
    broken = images / "ring" / "005.png"
    good = broken.read_bytes()
    replace_keeping_stat(broken, b"not an image")
    config = write_config(tmp_path, images, **SMALL)
    result = command("run", config)
    run = tmp_path / "runs" / "small"
    assert f"kmeans-dask retry {run} tries them again" in result.err
    assert command("run", config).lines[0] == "ingest: already finished"  # it compares sizes and times
    before, files = rows_of(run), files_of(run)

    result = command("retry", run)  # nothing has changed yet

    assert result.lines[0] == "small: retrying 1 items that could not be read and 1 outputs that failed"
    assert "ingest: 40 items in 2 chunks of 32 items (0.8 MiB); 1 to do" in result.lines
    assert {"fit: already finished", "evaluate: already finished"} <= {*result.lines}
    assert rows_of(run) == before
    models = {name: facts for name, facts in files.items() if name.startswith("models")}
    assert {name: files_of(run)[name] for name in models} == models

    replace_keeping_stat(broken, good)
    result = command("retry", run)

    assert result.status == 0
    assert "fit: the collection changed; running it again" in result.lines
    assert "quantize: 40 items in K = 2; 1 items to do" in result.lines
    after = rows_of(run)
    assert {name for name in after if after[name] != before[name]} == {"ring/005.png"}
    assert after["ring/005.png"][:2] == ["ok", None]
    now = files_of(run)
    kept = {name for name in files if name.startswith(("collection.zarr/images/c", "quantized/"))}
    assert {name for name in kept if now[name] != files[name]} == {f"collection.zarr/images/c/{chunk_of(run)}/0/0/0"}
    assert command("run", config, "name=fresh").status == 0
    assert rows_of(tmp_path / "runs" / "fresh") == after
    assert centres_of(run) == centres_of(tmp_path / "runs" / "fresh")

    result = command("retry", run)
    assert result.lines[0] == "small: retrying 0 items that could not be read and 0 outputs that failed"
    assert all(line.endswith(": already finished") for line in result.lines[1:])


def chunk_of(run: Path) -> int:
    return list(rows_of(run)).index("ring/005.png") // 32


def centres_of(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(run.glob("models/*/*/centres/**/*")) if path.is_file()]


class Site(ThreadingHTTPServer):
    """A web server that refuses the files in ``refused`` and counts the requested ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.refused, self.requested = folder, set[str](), Counter[str]()
        super().__init__(("127.0.0.1", 0), _Files)


class _Files(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.requested[self.path] += 1
        self._answer((self.server.folder / self.path[1:]).read_bytes())

    def do_HEAD(self) -> None:
        self._answer((self.server.folder / self.path[1:]).read_bytes())

    def _answer(self, content: bytes) -> None:
        refused = self.path in self.server.refused and self.command == "GET"
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if refused else HTTPStatus.OK)
        self.send_header("Content-Length", str(0 if refused else len(content)))
        self.end_headers()
        if self.command == "GET" and not refused:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    draw_images(tmp_path / "images", count=12)
    with Site(tmp_path / "images") as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_only_refused_files_are_requested_again(command: Command, site: Site, tmp_path: Path):
    names = [f"/{path.relative_to(site.folder)}" for path in sorted(site.folder.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("".join(f"http://127.0.0.1:{site.server_port}{name}\n" for name in names))
    config = write_config(tmp_path, tmp_path / "list.txt", **SMALL | {"fit": None, "evaluate": None, "quantize": None})
    site.refused = {*names[3:11]}
    run = tmp_path / "runs" / "small"

    result = command("run", config)

    assert result.status == 1  # 8 of 12 items
    assert result.lines[-1].endswith(f"; kmeans-dask retry {run} tries them again")
    before = rows_of(run)
    site.refused, site.requested = {names[4]}, Counter()
    result = command("retry", run)

    assert result.status == 0
    assert site.requested == dict.fromkeys(names[3:11], 1)
    after = rows_of(run)
    (refused,) = (name for name, (status, *_) in after.items() if status != "ok")
    assert refused.endswith(names[4])
    assert after[refused][0] == "unreadable"
    assert "503" in str(after[refused][1])
    untouched = [name for name in before if before[name][0] == "ok"]
    assert len(untouched) == 4
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert read_json(run / "run.json")["state"] == "finished"


def test_changed_archive_is_listed_again(command: Command, tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    files = sorted((tmp_path / "images").rglob("*.png"))

    def pack(broken: Path | None) -> None:
        with ZipFile(tmp_path / "a.zip", "w") as archive:
            for path in files:
                archive.writestr(path.name, b"no image" if path == broken else path.read_bytes())

    pack(files[1])
    config = write_config(
        tmp_path, tmp_path / "a.zip", **SMALL | {"fit": None, "evaluate": None},
        input={"path": str(tmp_path / "a.zip"), "labels": "none"},
    )  # fmt: skip
    assert command("run", config).status == 0
    before = rows_of(tmp_path / "runs" / "small")
    pack(None)  # the members after the broken one move to other offsets

    result = command("retry", tmp_path / "runs" / "small")

    assert result.status == 0
    after = rows_of(tmp_path / "runs" / "small")
    assert {name for name in after if after[name] != before[name]} == {files[1].name}
    assert {status for status, *_ in after.values()} == {"ok"}
    outputs = pq.read_table(tmp_path / "runs" / "small" / "quantized.parquet")
    assert outputs["status"].to_pylist() == ["ok"] * 6


def test_retry_ignores_new_files_and_stages(command: Command, tmp_path: Path):
    draw_images(tmp_path / "images", count=12)
    broken = tmp_path / "images" / "disc" / "000.png"
    good = broken.read_bytes()
    broken.write_bytes(b"no image")
    config = write_config(tmp_path, tmp_path / "images", **SMALL)
    run = tmp_path / "runs" / "small"
    assert command("ingest", config).status == 0
    broken.write_bytes(good)
    Path(tmp_path / "images" / "disc" / "new.png").write_bytes(good)

    result = command("retry", run)

    assert result.status == 0
    assert np.array_equal([status for status, *_ in rows_of(run).values()], ["ok"] * 12)  # not the new file
    assert set(read_json(run / "run.json")["stages"]) == {"listing", "ingest"}
    assert "small: the input changed: 1 items added, 1 changed, 0 removed" in command("ingest", config).lines


def test_nothing_to_retry_is_one_line(command: Command, whole_run: Any, tmp_path: Path):
    result = command("retry", tmp_path)
    assert (result.status, len(result.lines)) == (2, 1)
    assert "is not a run folder" in result.err
    draw_images(tmp_path / "images", count=6)
    config = write_config(tmp_path, tmp_path / "images", **SMALL, input={"path": str(tmp_path / "images")})
    assert command("run", config, "fit.k=7").status == 2  # only 6 items: refused before anything is read
    result = command("retry", tmp_path / "runs" / "small")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "has been ingested or quantized yet, so there is nothing to retry" in result.err
