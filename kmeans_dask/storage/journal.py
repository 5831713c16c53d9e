"""The record of a quantize stage: one line an image, written when its files are there, and the table made of it.

Each attempt at a batch appends to a file of its own, so that two workers never write to one. A line that was cut off
by a kill is as good as none: its image is done again. In an object store, where nothing can be appended, an attempt
writes its lines at its end: a batch that was killed is done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.errors import JobError
from kmeans_dask.storage.object_store import is_local, put
from kmeans_dask.storage.publish import publish, remove

QUANTIZED_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of the item, as in the manifest
        ("k", pa.int32()),  # colours asked for
        ("output", pa.string()),  # file, relative to the run folder; null when there is none
        ("colours", pa.int32()),  # of the palette, without a transparent entry
        ("mse", pa.float64()),  # mean over the opaque pixels of the squared RGB distance, in bytes
        ("psnr", pa.float64()),  # dB, against the mean over the channels; null when mse is 0
        ("mse_oklab", pa.float64()),  # the same in OKLab times 255; null unless the palette was fitted there
        ("bytes_in", pa.int64()),  # of the item's file
        ("bytes_out", pa.int64()),
        ("seconds", pa.float64()),  # fit, map, encode and write, and an equal share of decoding
        ("status", pa.string()),  # "ok", "not written", or the status of the ImageError
        ("error", pa.string()),  # its reason; null = none
    ]
)
"""One row an item and K, items in the order of the manifest."""


class Outcome(NamedTuple):
    """What became of one item in one K; the fields after `k` are those of `QUANTIZED_SCHEMA`."""

    row: int
    """Of the manifest."""
    k: int
    output: str | None
    colours: int | None
    mse: float | None
    psnr: float | None
    mse_oklab: float | None
    bytes_in: int
    bytes_out: int | None
    seconds: float | None
    status: str
    error: str | None


class Journal:
    """Journal files of one run and one set of settings.

    Parameters
    ----------
    folder
        ``quantized.journal/<fingerprint>`` in the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def attempt(self, start: int) -> Iterator[Callable[[Sequence[Outcome]], None]]:
        """Yield a function that notes outcomes, normally all K of one item; `start` is the first row of the batch."""
        name = f"{start:012d}-{uuid4().hex}.jsonl"
        if is_local(self.folder):
            with open(self.folder / name, "ab", buffering=0) as file:

                def tell(outcomes: Sequence[Outcome]) -> None:
                    file.write(_line_of(outcomes))

                yield tell
            return
        lines: list[bytes] = []
        try:
            yield lambda outcomes: lines.append(_line_of(outcomes))
        finally:
            put(self.folder, name, b"".join(lines))

    def outcomes(self) -> dict[tuple[int, int], Outcome]:
        """Return the outcome of every (row, k) that has one; of several, one that is ok if there is one."""
        known: dict[tuple[int, int], Outcome] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for outcome in _read(path):
                key = (outcome.row, outcome.k)
                if key not in known or known[key].status != "ok":
                    known[key] = outcome
        return known

    def forget_failed(self) -> int:
        """Take out what failed, so that the stage tries it again; return how many outcomes that were."""
        failed = {key for key, outcome in self.outcomes().items() if outcome.status != "ok"}
        for path in self.folder.glob("*.jsonl") if failed else []:
            outcomes = list(_read(path))
            kept = [outcome for outcome in outcomes if outcome.status == "ok"]
            if len(kept) < len(outcomes):
                with publish(path) as partial:
                    partial.write_bytes(_line_of(kept))
        return len(failed)


def journal_of(run_folder: Path) -> Journal | None:
    """Return the journal that a run folder has, None if it has none."""
    folders = [folder for folder in run_folder.glob("quantized.journal/*") if folder.is_dir()]
    return Journal(folders[0]) if folders else None


def open_journal(run_folder: Path, fingerprint: str) -> Journal:
    """Return the journal of these settings; what was written with other ones is removed, with its images.

    Parameters
    ----------
    run_folder
    fingerprint
        Of everything that decides about the outputs but K.

    Returns
    -------
    Journal
    """
    folder = run_folder / "quantized.journal" / fingerprint
    if not folder.is_dir():
        for name in ("quantized.parquet", "quantized.journal", "quantized", "palettes"):
            remove(run_folder / name)
        if is_local(folder):
            folder.mkdir(parents=True)
        else:
            put(folder, "begun", b"")  # a folder is there when something is in it
    return Journal(folder)


def write_table(run_folder: Path, paths: Mapping[int, str], ks: Sequence[int]) -> pa.Table:
    """Publish ``quantized.parquet`` from the journal.

    Parameters
    ----------
    run_folder
    paths
        Row of the manifest -> path, of the items that are there.
    ks
        The K of the table.

    Returns
    -------
    pyarrow.Table
        `QUANTIZED_SCHEMA`.

    Raises
    ------
    JobError
        An item has no outcome in one of the K.
    """
    journal = journal_of(run_folder)
    if journal is None:
        raise JobError(f"{run_folder} has no quantized images; run the stage quantize")
    known = journal.outcomes()
    wanted = [(row, k) for row in paths for k in ks]
    missing = sum(key not in known for key in wanted)
    if missing:
        raise JobError(f"{missing:,} of {len(wanted):,} outputs of {run_folder} are not written; run quantize again")
    rows = [(paths[key[0]], *known[key][1:]) for key in wanted]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(QUANTIZED_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, QUANTIZED_SCHEMA, strict=True)]
    table = pa.table(arrays, schema=QUANTIZED_SCHEMA)
    with publish(run_folder / "quantized.parquet") as partial:
        pq.write_table(table, partial)
    return table


def _line_of(outcomes: Sequence[Outcome]) -> bytes:
    return json.dumps(outcomes, separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> Iterator[Outcome]:
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line break was cut off
        try:
            values = json.loads(line)
        except ValueError:  # a disk that lost its power may hold anything
            continue
        yield from (Outcome(*each) for each in values)
