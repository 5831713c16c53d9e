"""Labels of items, and the train/holdout split."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kmeans_dask.errors import UserError


def folder_label(path: str) -> str | None:
    """Return the name of the folder containing an item, or None at the top level of its source."""
    folders = path.rpartition("/")[0]
    return folders.rpartition("/")[2] or None


def pattern_label(path: str, pattern: str) -> str | None:
    """Return the match of group ``label``, else of the first group, else of the whole regular expression."""
    match = re.search(pattern, path)
    if match is None:
        return None
    label = match["label"] if "label" in match.re.groupindex else match[min(1, match.re.groups)]
    return label or None


def resolve_labels(values: Sequence[Any], classes: Sequence[str]) -> list[str | None]:
    """Convert label values of any type to class names.

    Parameters
    ----------
    values
        Text, bytes, numbers or None. Negative numbers and NaN mean "no label".
    classes
        Class names; a value is a class name or the index of one. If empty, each value is its own class name.

    Returns
    -------
    list of str or None
        None for items without a label.

    Raises
    ------
    UserError
        A value is not one of the classes.
    """
    name_of = {str(position): name for position, name in enumerate(classes)} | {name: name for name in classes}
    labels: list[str | None] = []
    for value in values:
        text = _text_of(value)
        if text is not None and classes and text not in name_of:
            raise UserError(
                f"label {text!r} is not one of the {len(classes)} input.classes; add it, or correct the label"
            )
        labels.append(text if text is None else name_of.get(text, text))
    return labels


def _text_of(value: Any) -> str | None:
    """Return a value as label text, or None if it means "no label"."""
    if isinstance(value, bytes):  # from an array of bytes
        value = os.fsdecode(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or value != value or (isinstance(value, int) and value < 0):
        return None
    # undecodable bytes, kept as surrogates, are not valid UTF-8
    return str(value).encode("utf-8", "backslashreplace").decode()


def hold_out_matching(items: pa.Table, matches: Sequence[bool], setting: str) -> pa.Table:
    """Move the matching items to the holdout split.

    Parameters
    ----------
    items : (n) pyarrow.Table
        `manifest.MANIFEST_SCHEMA`.
    matches : (n,) sequence of bool
        Whether each item is held out.
    setting
        Value of ``input.holdout``, for the error message.

    Returns
    -------
    (n) pyarrow.Table
        Train items first, then the held-out ones; the order within each split is kept.

    Raises
    ------
    UserError
        No item matches, or all do.
    """
    held = np.array(matches, bool)
    if not held.any() or held.all():
        which = "all items" if held.any() else "no items"
        raise UserError(f"input.holdout={setting} holds out {which}; both the train and holdout splits need items")
    return _split(items, held)


def hold_out_fraction(items: pa.Table, fraction: float, seed: int) -> pa.Table:
    """Move a fraction of each label's items to the holdout split.

    Within a label, the items with the smallest hash of seed and path are held out: the choice does not depend on the
    listing order, and few items switch splits when new ones are added.

    Parameters
    ----------
    items : (n) pyarrow.Table
        `manifest.MANIFEST_SCHEMA`.
    fraction
        Fraction of the items to hold out, between 0 and 1.
    seed
        Key of the hash.

    Returns
    -------
    (n) pyarrow.Table
        Train items first, then the held-out ones; the order within each split is kept.

    Raises
    ------
    UserError
        The fraction is too small to hold out any item.
    """
    labels, group = np.unique(pc.fill_null(items["label"], "").to_numpy(), return_inverse=True)
    sizes = np.bincount(group)
    counts = _holdout_counts(sizes, fraction)
    if counts.sum() == 0:
        raise UserError(
            f"input.holdout={fraction} of {len(items)} items with {len(labels)} labels holds out no items; "
            "use a larger fraction, or more items per label"
        )
    key = seed.to_bytes(8, "little")
    paths = items["path"].to_pylist()
    hashes = [hashlib.blake2b(path.encode(), digest_size=8, key=key).digest() for path in paths]
    by_hash = np.lexsort((np.frombuffer(b"".join(hashes), "<u8"), group))
    rank = np.empty(len(items), np.int64)  # rank of each item within its label
    rank[by_hash] = np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return _split(items, rank < counts[group])


def _split(items: pa.Table, held: NDArray[np.bool_]) -> pa.Table:
    split = pa.array(np.where(held, "holdout", "train"), pa.string())
    items = items.set_column(items.schema.get_field_index("split"), "split", split)
    return items.take(np.argsort(held, kind="stable"))


def _holdout_counts(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return the number of items to hold out per label, by the largest-remainder method; never a whole label."""
    quota = sizes * fraction
    counts = np.floor(quota).astype(np.int64)
    missing = round(fraction * int(sizes.sum())) - int(counts.sum())
    counts[np.argsort(counts - quota, kind="stable")[:missing]] += 1
    return np.minimum(counts, sizes - 1)
