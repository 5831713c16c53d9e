"""The items of a job: every source that the config names, labelled, split and put into one manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.archives import list_archive
from kmeans_dask.sources.kinds.arrays import list_array
from kmeans_dask.sources.kinds.datasets import write_builtin
from kmeans_dask.sources.kinds.folders import list_files, list_folder
from kmeans_dask.sources.kinds.lists import joined, list_list
from kmeans_dask.sources.kinds.locations import full_name, is_remote, shown
from kmeans_dask.sources.kinds.names import text_of_name
from kmeans_dask.sources.kinds.places import Place, find_places
from kmeans_dask.sources.kinds.source_listing import ListRequest, Sidecar, SourceListing
from kmeans_dask.sources.kinds.tables import list_table
from kmeans_dask.sources.labels import folder_label, hold_out_matching, hold_out_share, named, pattern_label
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA
from kmeans_dask.sources.ranges import with_ranges

_WHERE = ("file", "member", "position")
"""Columns of a manifest that say where an item lies."""


def list_items(
    source: Input,
    seed: int,
    builtin_folder: Path,
    *,
    known: pa.Table | None = None,
    usual: tuple[float, float] | None = None,
) -> pa.Table:
    """List the items of a job.

    Parameters
    ----------
    source
        The config's section ``input``.
    seed
        Decides which items a share holds out.
    builtin_folder
        Folder that the built-in images are written into when `source` asks for them.
    known, usual
        As for `ranges.with_ranges`: an older manifest of the source; the range of numbers of another one.

    Returns
    -------
    pyarrow.Table
        `manifest.MANIFEST_SCHEMA`; the train items first, then the held-out ones. Folders, globs and archives are in
        natural order of their paths, lists, tables and arrays in their own.

    Raises
    ------
    UserError
        A source is missing, cannot be read or holds no image; train and held-out items overlap; a share holds out no
        item; a label is none of the classes.
    """
    items = _split_items(source, seed, builtin_folder)
    return with_ranges(items, stated=source.range, known=known, usual=usual)


def _split_items(source: Input, seed: int, builtin_folder: Path) -> pa.Table:
    builtin = write_builtin(source.builtin, builtin_folder) if source.builtin else None
    names = [str(builtin)] if builtin else source.path or []
    holdout = source.holdout
    items, values = _list(names, source, "input.path")
    if holdout is None:
        return items
    if isinstance(holdout, float):
        return hold_out_share(items, holdout, seed)
    setting, _, argument = holdout.partition(":")
    if setting == "pattern":
        return hold_out_matching(items, [bool(re.search(argument, p)) for p in items["path"].to_pylist()], holdout)
    if setting == "column":
        wanted = argument.partition("=")[2]
        return hold_out_matching(items, [str(value) == wanted for value in values], holdout)
    of_held = {"column": source.holdout_column or source.column, "labels": source.holdout_labels or source.labels}
    if of_held["column"] == source.column:
        _check_folders_apart(names, holdout)
    held, _ = _list([holdout], source.model_copy(update=of_held), "input.holdout")
    _check_items_apart(items, held, holdout)
    held = held.set_column(held.schema.get_field_index("split"), "split", pa.repeat("holdout", len(held)))
    return pa.concat_tables([items, held])


def _list(names: Sequence[str], source: Input, key: str) -> tuple[pa.Table, list[object]]:
    """List sources as train items; beside it the values of the column that may decide what is held out."""
    column, _, _ = _holdout_column(source).partition("=")
    setting, _, argument = source.labels.partition(":")
    columns = {column or None, argument if setting == "column" else None} - {None}
    wanted = ListRequest(
        include=source.include,
        exclude=source.exclude,
        column=source.column,
        columns=() if source.table else tuple(sorted(filter(None, columns))),
        beside=_beside(setting, argument),
    )
    places = [place for name in names for place in find_places(name, wanted, key)]
    by_itself = len(names) == 1 and places[0].file == full_name(names[0])  # no pattern, which may match more tomorrow
    tables: list[pa.Table] = []
    values: list[object] = []
    for files in _grouped(places):
        listed = _list_place(files, wanted)
        paths = listed.items["path"].to_pylist()
        if source.table:
            listed = listed._replace(columns=joined(full_name(source.table), paths, tuple(filter(None, columns))))
        for name in filter(None, columns):
            if name not in listed.columns:
                raise UserError(f"{shown(files[0].file)} has no column {name}; name another, or give input.table")
        labels = named(_labels(setting, argument, paths, listed), source.classes)
        prefix = text_of_name(files[0].name) if not by_itself and files[0].kind != "file" else ""
        if prefix:
            paths = [f"{prefix}/{path}" for path in paths]
        tables.append(_as_manifest(listed.items, paths, labels))
        values += listed.columns[column] if column else []
    items = pa.concat_tables(tables)
    if len(places) > 1 or places[0].kind == "list":  # nothing else names an item twice
        first = _first_of_each(items)
        items, values = items.take(first), [values[row] for row in first] if column else []
    if source.labels not in ("folder", "none") and items["label"].null_count == len(items):
        raise UserError(
            f"input.labels={source.labels} gives no item a label, for example not {items['path'][0].as_py()!r}; "
            "correct it, or set input.labels=none"
        )
    return items, values


def _holdout_column(source: Input) -> str:
    holdout = source.holdout
    return holdout.removeprefix("column:") if isinstance(holdout, str) and holdout.startswith("column:") else ""


def _beside(setting: str, argument: str) -> Sidecar | None:
    if setting == "json":
        return Sidecar(b".json", argument)
    return Sidecar(os.fsencode("." + argument.removeprefix("."))) if setting == "text" else None


def _labels(setting: str, argument: str, paths: Sequence[str], listed: SourceListing) -> Sequence[object]:
    match setting:
        case "folder":
            return [folder_label(path) for path in paths]
        case "pattern":
            return [pattern_label(path, argument) for path in paths]
        case "column":
            return listed.columns[argument]
        case "json" | "text":
            return listed.beside or [None] * len(paths)
        case _:
            return [None] * len(paths)


def _as_manifest(items: pa.Table, paths: Sequence[str], labels: Sequence[str | None]) -> pa.Table:
    items = items.set_column(items.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
    unknown = pa.nulls(len(items), pa.float64())
    columns = [*items.columns, pa.array(labels, pa.string()), pa.repeat("train", len(items)), unknown, unknown]
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _list_place(places: Sequence[Place], wanted: ListRequest) -> SourceListing:
    """List one source, or several single files."""
    file, _, kind = places[0]
    match kind:
        case "file":
            return list_files([place.file for place in places], [place.name for place in places], wanted)
        case "folder":
            return list_folder(file, wanted)
        case "list":
            return list_list(file, wanted)
        case "parquet":
            return list_table(file, wanted)
        case "tar" | "tar.gz" | "zip":
            return list_archive(file, kind, wanted)
        case _:
            return list_array(file, kind, wanted)


def _grouped(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Yield sources one by one, neighbouring single files together."""
    start = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i].kind != "file" or places[start].kind != "file":
            yield places[start:i]
            start = i


def _first_of_each(items: pa.Table) -> list[int]:
    """Rows of the items that no earlier row names: what two patterns match is one item, fitted or held out."""
    texts = (items[name].cast(pa.string() if name == "position" else pa.binary()).cast(pa.binary()) for name in _WHERE)
    key = pc.binary_join_element_wise(*(pc.fill_null(text, b"") for text in texts), b"\0")
    _, first = np.unique(key.combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
    return sorted(first.tolist())


def _check_folders_apart(names: Sequence[str], holdout: str) -> None:
    for name in names:
        if is_remote(name) or is_remote(holdout):
            continue
        a, b = (Path(os.fsdecode(full_name(place))).resolve() for place in (name, holdout))
        if a == b or a in b.parents or b in a.parents:
            raise UserError(
                f"input.holdout={b} and input.path={a} overlap: held-out items would be fitted; "
                "give two folders side by side, or a share such as 0.2"
            )


def _check_items_apart(items: pa.Table, held: pa.Table, holdout: str) -> None:
    """Refuse a holdout that has an item of the train part, for example by a pattern that matches both."""
    keys, held_keys = (
        pc.binary_join_element_wise(part["file"], pc.fill_null(part["member"].cast(pa.binary()), b""), b"\0")
        for part in (items, held)
    )
    both = pc.is_in(held_keys, pc.unique(keys))
    if pc.any(both).as_py():
        name = held.filter(both)["file"][0].as_py()
        raise UserError(f"input.holdout={shown(holdout)} and input.path overlap: both have {shown(name)}")
