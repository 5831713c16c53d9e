"""An image that kills any process opening it, for each command that opens images: ``python -m benchmarks.poison``.

The package itself is unchanged: a crashing decoder is injected into all started processes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common import machine, table
from benchmarks.processes import COMMANDS

DECODER = """
import os
from PIL.PngImagePlugin import PngImageFile

open_png = PngImageFile._open

def open_or_end(self):
    begins = self.fp.read(30)
    self.fp.seek(0)
    if b"large" in begins:
        bytearray(b"x") * 2**31
    if b"POISON" in begins:
        os.abort()
    open_png(self)

PngImageFile._open = open_or_end
"""
"""Source of a ``sitecustomize`` module, which Python imports at start-up."""

POISON = b"\x89PNG\r\n\x1a\nPOISON "
ITEMS = 2000
CONFIG = """
name: run
output: {output}
input: {{path: {folder}}}
ingest: {{size: [28, 28], mode: L, chunk_mib: 0.5}}
fit: {{k: 4}}
evaluate: {{}}
quantize: {{k: [4], palette: shared}}
cluster: {{kind: local, n_workers: 2}}
"""
NOTICE = "Restarting worker"
"""Text that Dask logs for every worker that dies."""


def plant(folder: Path) -> str:
    """Write the module that injects the decoder, and return the PYTHONPATH with which processes find it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DECODER)
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def lines(scratch: Path) -> Iterator[list[str]]:
    """Run the commands one after the other; yield a table row for each."""
    images, run = scratch / "images", scratch / "run"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(ITEMS):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(images / f"{number:05d}.png")
    (images / "00500-poison.png").write_bytes(POISON)
    config = scratch / "job.yaml"
    config.write_text(CONFIG.format(folder=images, output=scratch))
    environ = os.environ | {"PYTHONPATH": plant(scratch / "planted")}
    predicted = run / "predictions" / "images-kmeans-k4.parquet"
    commands = (
        (["ingest", config], run / "items.csv"),
        (["fit", config], None),
        (["evaluate", config], None),
        (["quantize", config], run / "quantized.parquet"),
        (["predict", run, images], predicted),
    )
    for command, items in commands:
        words = [COMMANDS / "kmeans-dask", *command]
        done = subprocess.run(list(map(str, words)), env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        dead = done.stderr.count(NOTICE)
        if items is None:
            assert dead == 0, done.stderr
            continue
        rows = (pyarrow.csv.read_csv(items) if items.suffix == ".csv" else pq.read_table(items)).to_pylist()
        failed = "; ".join(f"{row['path']}: {row['status']}" for row in rows if row["status"] != "ok")
        yield [str(command[0]), str(dead), failed, f"{sum(row['status'] == 'ok' for row in rows):,} of {ITEMS:,}"]


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        table("A poison image", ["command", "dead workers", "failed items", "other items done"], lines(Path(folder)))
