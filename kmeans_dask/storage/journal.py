"""The journal of a quantize stage, one line per image whose files are complete, and the table made from it.

Each attempt at a batch appends to its own file, so no two workers write to the same one. A line that a kill cut short
does not count, and its image is redone. An object store has no append: an attempt writes all its lines when it ends,
and a batch that is killed is redone.
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
        ("path", pa.string()),  # path of the item, as in the manifest
        ("k", pa.int32()),  # requested number of colours
        ("output", pa.string()),  # output file, relative to the run folder; null if there is none
        ("colours", pa.int32()),  # palette size, not counting a transparent entry
        ("mse", pa.float64()),  # mean squared RGB distance over the opaque pixels, channels 0-255
        ("psnr", pa.float64()),  # dB, from the mean over pixels and channels; null if mse is 0
        ("mse_oklab", pa.float64()),  # the same in OKLab times 255; null unless the palette was fitted there
        ("bytes_in", pa.int64()),  # size of the item's file
        ("bytes_out", pa.int64()),
        ("seconds", pa.float64()),  # fitting, mapping, encoding and writing, plus an equal part of the decoding
        ("status", pa.string()),  # "ok", "not written", or the status of the ImageError
        ("error", pa.string()),  # why it failed; null if it did not
    ]
)
"""One row per item and K, items in manifest order."""


class Outcome(NamedTuple):
    """Result of quantizing one item to one K; the fields after `k` are those of `QUANTIZED_SCHEMA`."""

    row: int
    """Row of the item in the manifest."""
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
        """Open a journal file for one attempt at a batch.

        Parameters
        ----------
        start
            First manifest row of the batch.

        Yields
        ------
        callable
            Records some outcomes, normally all K of one item.
        """
        name = f"{start:012d}-{uuid4().hex}.jsonl"
        if is_local(self.folder):
            with open(self.folder / name, "ab", buffering=0) as file:

                def record(outcomes: Sequence[Outcome]) -> None:
                    file.write(_line_of(outcomes))

                yield record
            return
        lines: list[bytes] = []
        try:
            yield lambda outcomes: lines.append(_line_of(outcomes))
        finally:
            put(self.folder, name, b"".join(lines))

    def outcomes(self) -> dict[tuple[int, int], Outcome]:
        """Return the outcome of each (row, k) in the journal; a successful one wins over failed ones."""
        known: dict[tuple[int, int], Outcome] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for outcome in _read(path):
                key = (outcome.row, outcome.k)
                if key not in known or known[key].status != "ok":
                    known[key] = outcome
        return known

    def forget_failed(self) -> int:
        """Remove failed outcomes, so that the stage tries them again, and return their number."""
        failed = {key for key, outcome in self.outcomes().items() if outcome.status != "ok"}
        for path in self.folder.glob("*.jsonl") if failed else []:
            outcomes = list(_read(path))
            successful = [outcome for outcome in outcomes if outcome.status == "ok"]
            if len(successful) < len(outcomes):
                with publish(path) as partial:
                    partial.write_bytes(_line_of(successful))
        return len(failed)


def find_journal(run_folder: Path) -> Journal | None:
    """Return the journal of a run folder, or None if it has none."""
    folders = [folder for folder in run_folder.glob("quantized.journal/*") if folder.is_dir()]
    return Journal(folders[0]) if folders else None


def open_journal(run_folder: Path, fingerprint: str) -> Journal:
    """Open the journal for these settings; a journal of other settings is removed along with its images.

    Parameters
    ----------
    run_folder
        The run folder.
    fingerprint
        Hash of everything that the outputs depend on, except K.

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
            put(folder, "begun", b"")  # in a store, a folder exists only if it holds an object
    return Journal(folder)


def write_table(run_folder: Path, paths: Mapping[int, str], ks: Sequence[int]) -> pa.Table:
    """Publish ``quantized.parquet`` from the journal.

    Parameters
    ----------
    run_folder
        The run folder.
    paths
        Manifest row -> path, for all items that have not been removed.
    ks
        Numbers of colours to include.

    Returns
    -------
    pyarrow.Table
        `QUANTIZED_SCHEMA`.

    Raises
    ------
    JobError
        An item has no outcome for one of these numbers of colours.
    """
    journal = find_journal(run_folder)
    if journal is None:
        raise JobError(f"{run_folder} has no quantized images; run the stage quantize")
    known = journal.outcomes()
    wanted = [(row, k) for row in paths for k in ks]
    missing = sum(key not in known for key in wanted)
    if missing:
        raise JobError(f"{missing:,} of {len(wanted):,} outputs of {run_folder} are missing; rerun quantize")
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
    for line in path.read_bytes().split(b"\n")[:-1]:  # anything after the last newline was cut short
        try:
            records = json.loads(line)
        except ValueError:  # after a power failure, a disk may hold anything
            continue
        yield from (Outcome(*fields) for fields in records)
