"""Which label an item has, and which items are held out."""

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
    """Return the name of the folder that an item lies in; None directly in its source."""
    folders = path.rpartition("/")[0]
    return folders.rpartition("/")[2] or None


def pattern_label(path: str, pattern: str) -> str | None:
    """Return what the group ``label``, else the first group, else the whole of a regular expression matches."""
    match = re.search(pattern, path)
    if match is None:
        return None
    label = match["label"] if "label" in match.re.groupindex else match[min(1, match.re.groups)]
    return label or None


def named(values: Sequence[Any], classes: Sequence[str]) -> list[str | None]:
    """Return the labels that values of any kind stand for.

    Parameters
    ----------
    values
        Text, bytes, numbers or None. A number below 0 is no label, nor is NaN.
    classes
        Names of the classes; a whole number is the position of its name. None given: every value is its own name.

    Returns
    -------
    list of str or None

    Raises
    ------
    UserError
        A value is none of the classes.
    """
    meant = {str(position): name for position, name in enumerate(classes)} | {name: name for name in classes}
    labels: list[str | None] = []
    for value in values:
        text = _text_of(value)
        if text is not None and classes and text not in meant:
            raise UserError(f"label {text!r} is none of the {len(classes)} input.classes; add it, or correct the label")
        labels.append(text if text is None else meant.get(text, text))
    return labels


def _text_of(value: Any) -> str | None:
    """Write a value as a label; None for what stands for no label."""
    if isinstance(value, bytes):  # of an array of bytes
        value = os.fsdecode(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or value != value or (isinstance(value, int) and value < 0):
        return None
    return str(value).encode("utf-8", "backslashreplace").decode()  # text in another encoding is no text


def hold_out_matching(items: pa.Table, held: Sequence[bool], told: str) -> pa.Table:
    """Move the items that are marked to the holdout; `told` is the setting that marked them.

    Raises
    ------
    UserError
        It marks none, or all.
    """
    marks = np.array(held, bool)
    if not marks.any() or marks.all():
        which = "all items" if marks.any() else "no item"
        raise UserError(f"input.holdout={told} holds out {which}; some must be left to fit, and some to score")
    return _split(items, marks)


def hold_out_share(items: pa.Table, share: float, seed: int) -> pa.Table:
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
    return _split(items, rank < counts[group])


def _split(items: pa.Table, held: NDArray[np.bool_]) -> pa.Table:
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
