"""Where the images lie: folders become a manifest, a table with one row an item.

The manifest is written to disk once; tasks read their rows from it, so that no list of files travels in a
graph.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.config import Input, existing_folder
from kmeans_dask.errors import UserError
from kmeans_dask.publish import publish

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
"""A file whose name ends so, in upper or lower case, is an item; decoding shows whether it is an image."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("file", pa.binary()),  # full path, as the operating system spells it (any bytes)
        (
            "path",
            pa.string(),
        ),  # relative to its folder, with "/"; bytes that are no text as backslash escapes
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),  # nanoseconds since 1970
        ("label", pa.string()),  # null = none
        ("split", pa.string()),  # "train" | "holdout"
    ]
)

_ROW_GROUP = 4096
"""Rows that are read at least: half a megabyte. One million items are 250 groups, a footer of 0.2 MB."""

_ENDINGS = tuple(suffix.encode() for suffix in SUFFIXES)


class _File(NamedTuple):
    """One file found; tuples sort by the bytes of the relative path."""

    path: bytes
    bytes: int
    mtime_ns: int


def list_items(source: Input, seed: int, builtin_folder: Path) -> pa.Table:
    """List the items of a job.

    Folders are searched at any depth. Hidden files and folders (a leading dot) are skipped; a link to a file
    is an item, a link to a folder is not followed, so that there are no loops. A link to nothing is an item
    too: it will be reported as missing.

    Parameters
    ----------
    source
        The config's section ``input``.
    seed
        Decides which items a share holds out.
    builtin_folder
        Folder that the built-in images are written into when `source` asks for them.

    Returns
    -------
    pyarrow.Table
        `MANIFEST_SCHEMA`; the train items first, then the held-out ones, each sorted by the bytes of `path`.
        The label of an item is the name of the folder it lies in; none directly in the source folder.

    Raises
    ------
    UserError
        A folder is missing, is a file, cannot be read, or holds no image; the two folders overlap; the share
        holds out no item.
    """
    with_labels = source.labels == "folder"
    train = (
        _write_builtin(source.builtin, builtin_folder) if source.builtin else existing_folder("input.path", source.path)
    )
    items = _list_folder(train, "train", with_labels)
    if source.holdout is None:
        return items
    if isinstance(source.holdout, str):
        holdout = existing_folder("input.holdout", source.holdout)
        _check_apart(train, holdout)
        return pa.concat_tables([items, _list_folder(holdout, "holdout", with_labels)])
    return _hold_out(items, source.holdout, seed)


def write_manifest(items: pa.Table, path: Path) -> None:
    """Write a manifest as a Parquet file, published by a rename; its slices are cheap to read alone."""
    with publish(path) as partial:
        pq.write_table(items, partial, row_group_size=_ROW_GROUP, write_statistics=False)


def read_manifest(path: Path, start: int = 0, stop: int | None = None) -> pa.Table:
    """Read the rows ``start:stop`` of a manifest, and of the file little more than these.

    Parameters
    ----------
    path
        Written by `write_manifest`.
    start, stop
        Row numbers; None is the end.

    Returns
    -------
    pyarrow.Table
        `MANIFEST_SCHEMA`.
    """
    with pq.ParquetFile(path) as file:
        stop = file.metadata.num_rows if stop is None else min(stop, file.metadata.num_rows)
        first, last = start // _ROW_GROUP, -(-stop // _ROW_GROUP)
        groups = file.read_row_groups(list(range(first, last)))
    return groups.slice(start - first * _ROW_GROUP, stop - start)


def _check_apart(train: Path, holdout: Path) -> None:
    a, b = train.resolve(), holdout.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(
            f"input.holdout={holdout} and input.path={train} overlap: held-out items would be fitted; "
            "give two folders side by side, or a share such as 0.2"
        )


def _list_folder(folder: Path, split: str, with_labels: bool) -> pa.Table:
    root = os.fsencode(folder)
    try:
        files = sorted(_walk(root))
    except OSError as error:
        name = os.fsdecode(error.filename or root)
        raise UserError(f"cannot read folder {name}: {error.strerror}; give read permission, or move it") from None
    if not files:
        raise UserError(f"folder {folder} holds no image; files must end in one of {' '.join(SUFFIXES)}")
    columns = {
        "file": [os.path.join(root, file.path) for file in files],
        "path": [_text(file.path) for file in files],
        "bytes": [file.bytes for file in files],
        "mtime_ns": [file.mtime_ns for file in files],
        "label": [_folder_name(file.path) if with_labels else None for file in files],
        "split": pa.repeat(split, len(files)),
    }
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _walk(root: bytes) -> Iterator[_File]:
    """Yield the image files at any depth below a folder, in no order. Names stay bytes: not all are text."""
    pending = [b""]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                path = below + b"/" + entry.name if below else entry.name
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.name.lower().endswith(_ENDINGS) and (found := _look_at(entry, path)):
                    yield found


def _look_at(entry: os.DirEntry[bytes], path: bytes) -> _File | None:
    """Size and time of a file; None for what is none: a pipe (reading it would wait), a link to a folder."""
    try:
        facts = entry.stat()
    except OSError:  # a link to nothing or in a circle, or a file that went away meanwhile
        return _File(path, 0, 0)
    return _File(path, facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _folder_name(path: bytes) -> str | None:
    folders = path.rpartition(b"/")[0]
    return _text(folders.rpartition(b"/")[2]) if folders else None


def _hold_out(items: pa.Table, share: float, seed: int) -> pa.Table:
    """Move a share of each label's items to the holdout.

    Within a label the items with the smallest hash of seed and path go: the choice does not depend on the
    order of the listing, and few items change place when some are added.
    """
    labels, group = np.unique(pc.fill_null(items["label"], "").to_numpy(), return_inverse=True)
    sizes = np.bincount(group)
    counts = _held_counts(sizes, share)
    if counts.sum() == 0:
        raise UserError(
            f"input.holdout={share} of {len(items)} items with {len(labels)} labels holds out none; "
            "give a larger share, or more items a label"
        )
    key = seed.to_bytes(8, "little")
    paths = items["path"].to_pylist()
    hashes = [hashlib.blake2b(path.encode(), digest_size=8, key=key).digest() for path in paths]
    by_hash = np.lexsort((np.frombuffer(b"".join(hashes), "<u8"), group))
    rank = np.empty(len(items), np.int64)  # of each item among those of its label
    rank[by_hash] = np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = rank < counts[group]
    split = pa.array(np.where(held, "holdout", "train"), pa.string())
    items = items.set_column(items.schema.get_field_index("split"), "split", split)
    return items.take(np.argsort(held, kind="stable"))


def _held_counts(sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Items to hold out a label: in all the rounded share, by largest remainders, never a whole label."""
    quota = sizes * share
    counts = np.floor(quota).astype(np.int64)
    short = round(share * int(sizes.sum())) - int(counts.sum())
    counts[np.argsort(counts - quota, kind="stable")[:short]] += 1
    return np.minimum(counts, sizes - 1)


def _write_builtin(name: str, folder: Path) -> Path:
    """Write the images that scikit-learn ships as an ordinary image folder, once; returns that folder."""
    target = folder.absolute() / name
    if target.is_dir():
        return target
    with publish(target) as partial:
        partial.mkdir()
        if name == "digits":
            _write_digits(partial)
        else:
            _write_photos(partial)
    return target


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits  # half a second: only who asks for them pays

    from kmeans_dask.images import encode_png

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for label in digits.target_names:
        (folder / str(label)).mkdir()
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        (folder / str(label) / f"{number:04d}.png").write_bytes(encode_png(image))


def _write_photos(folder: Path) -> None:
    for photo in resources.files("sklearn.datasets.images").iterdir():
        if photo.name.endswith(".jpg"):
            (folder / photo.name).write_bytes(photo.read_bytes())
