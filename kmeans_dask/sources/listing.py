"""List the items of a job: all sources in the config, labelled, split and merged into one manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kmeans_dask.config.loading import Source, input_of
from kmeans_dask.config.sections import Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.archives import list_archive
from kmeans_dask.sources.kinds.arrays import list_array
from kmeans_dask.sources.kinds.datasets import write_builtin
from kmeans_dask.sources.kinds.expand import SourceLocation, find_sources
from kmeans_dask.sources.kinds.folders import list_files, list_folder
from kmeans_dask.sources.kinds.lists import join_table, list_list
from kmeans_dask.sources.kinds.locations import full_path, is_remote, redacted
from kmeans_dask.sources.kinds.names import decode_name
from kmeans_dask.sources.kinds.source_listing import ListRequest, Sidecar, SourceListing
from kmeans_dask.sources.kinds.tables import list_table
from kmeans_dask.sources.labels import folder_label, hold_out_fraction, hold_out_matching, pattern_label, resolve_labels
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA
from kmeans_dask.sources.ranges import with_ranges

_LOCATION_COLUMNS = ("file", "member", "position")
"""Manifest columns that locate an item."""


def list_items(
    source: Input,
    seed: int,
    builtin_folder: Path,
    *,
    previous: pa.Table | None = None,
    preferred_range: tuple[float, float] | None = None,
) -> pa.Table:
    """List the items of a job.

    Parameters
    ----------
    source
        Section ``input`` of the config.
    seed
        Random seed; determines which items a fraction holds out.
    builtin_folder
        Folder to write the built-in images to, if `source` asks for them.
    previous, preferred_range
        See `ranges.with_ranges`: an earlier manifest of the same source; the value range of another run.

    Returns
    -------
    pyarrow.Table
        `manifest.MANIFEST_SCHEMA`; train items first, then the held-out ones. Folders, globs and archives are in
        natural order of their paths; lists, tables and arrays keep their own order.

    Raises
    ------
    UserError
        A source is missing, unreadable or contains no images; train and held-out items overlap; a fraction holds out
        no items; a label is not one of the classes.
    """
    items = _split_items(source, seed, builtin_folder)
    return with_ranges(items, given=source.range, previous=previous, preferred=preferred_range)


def list_images(source: Source, *, labels: str = "folder") -> pa.Table:
    """List the images of a folder or another source without opening them.

    Parameters
    ----------
    source
        Folder, archive, array, table, list of paths or glob pattern, local or as a URL; one or several.
    labels
        ``folder``: each label is the name of the folder that holds the image. Otherwise as the config key
        ``input.labels``, for example ``none``.

    Returns
    -------
    pyarrow.Table
        One row per image, in natural order of the paths: `manifest.MANIFEST_SCHEMA`. Among its columns are ``path``
        (relative to the source), ``bytes`` (file size) and ``label`` (null if the image has none).

    Raises
    ------
    UserError
        The source is missing, unreadable or contains no images.
    """
    return list_items(input_of(source, labels=labels), seed=0, builtin_folder=Path())  # no built-in images requested


def _split_items(source: Input, seed: int, builtin_folder: Path) -> pa.Table:
    builtin = write_builtin(source.builtin, builtin_folder) if source.builtin else None
    names = [str(builtin)] if builtin else source.path or []
    holdout = source.holdout
    items, values = _list(names, source, "input.path")
    if holdout is None:
        return items
    if isinstance(holdout, float):
        return hold_out_fraction(items, holdout, seed)
    setting, _, argument = holdout.partition(":")
    if setting == "pattern":
        return hold_out_matching(items, [bool(re.search(argument, p)) for p in items["path"].to_pylist()], holdout)
    if setting == "column":
        held_value = argument.partition("=")[2]
        return hold_out_matching(items, [str(value) == held_value for value in values], holdout)
    overrides = {"column": source.holdout_column or source.column, "labels": source.holdout_labels or source.labels}
    if overrides["column"] == source.column:
        _check_folders_disjoint(names, holdout)
    held, _ = _list([holdout], source.model_copy(update=overrides), "input.holdout")
    _check_items_disjoint(items, held, holdout)
    held = held.set_column(held.schema.get_field_index("split"), "split", pa.repeat("holdout", len(held)))
    return pa.concat_tables([items, held])


def _list(names: Sequence[str], source: Input, key: str) -> tuple[pa.Table, list[object]]:
    """List sources as train items; also return the values of the column that decides the holdout, if any."""
    column, _, _ = _holdout_column(source).partition("=")
    setting, _, argument = source.labels.partition(":")
    columns = {column or None, argument if setting == "column" else None} - {None}
    request = ListRequest(
        include=source.include,
        exclude=source.exclude,
        column=source.column,
        columns=() if source.table else tuple(sorted(filter(None, columns))),
        sidecar=_sidecar(setting, argument),
    )
    sources = [location for name in names for location in find_sources(name, request, key)]
    is_single = len(names) == 1 and sources[0].file == full_path(names[0])  # a pattern could match more files later
    tables: list[pa.Table] = []
    values: list[object] = []
    for files in _grouped(sources):
        listed = _list_source(files, request)
        paths = listed.items["path"].to_pylist()
        if source.table:
            listed = listed._replace(columns=join_table(full_path(source.table), paths, tuple(filter(None, columns))))
        for name in filter(None, columns):
            if name not in listed.columns:
                raise UserError(
                    f"{redacted(files[0].file)} has no column {name}; choose another column, or set input.table"
                )
        labels = resolve_labels(_labels(setting, argument, paths, listed), source.classes)
        prefix = decode_name(files[0].name) if not is_single and files[0].kind != "file" else ""
        if prefix:
            paths = [f"{prefix}/{path}" for path in paths]
        tables.append(_as_manifest(listed.items, paths, labels))
        values += listed.columns[column] if column else []
    items = pa.concat_tables(tables)
    if len(sources) > 1 or sources[0].kind == "list":  # no other kind of source can list an item twice
        first = _first_occurrences(items)
        items, values = items.take(first), [values[row] for row in first] if column else []
    if source.labels not in ("folder", "none") and items["label"].null_count == len(items):
        raise UserError(
            f"input.labels={source.labels} gives no item a label (first item: {items['path'][0].as_py()!r}); "
            "correct it, or set input.labels=none"
        )
    return items, values


def _holdout_column(source: Input) -> str:
    holdout = source.holdout
    return holdout.removeprefix("column:") if isinstance(holdout, str) and holdout.startswith("column:") else ""


def _sidecar(setting: str, argument: str) -> Sidecar | None:
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
            return listed.sidecar_values or [None] * len(paths)
        case _:
            return [None] * len(paths)


def _as_manifest(items: pa.Table, paths: Sequence[str], labels: Sequence[str | None]) -> pa.Table:
    items = items.set_column(items.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
    unknown = pa.nulls(len(items), pa.float64())
    columns = [*items.columns, pa.array(labels, pa.string()), pa.repeat("train", len(items)), unknown, unknown]
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _list_source(sources: Sequence[SourceLocation], request: ListRequest) -> SourceListing:
    """List one source, or a group of single files."""
    file, _, kind = sources[0]
    match kind:
        case "file":
            return list_files([single.file for single in sources], [single.name for single in sources], request)
        case "folder":
            return list_folder(file, request)
        case "list":
            return list_list(file, request)
        case "parquet":
            return list_table(file, request)
        case "tar" | "tar.gz" | "zip":
            return list_archive(file, kind, request)
        case _:
            return list_array(file, kind, request)


def _grouped(sources: Sequence[SourceLocation]) -> Iterator[Sequence[SourceLocation]]:
    """Yield sources one at a time, but consecutive single files together."""
    start = 0
    for i in range(1, len(sources) + 1):
        if i == len(sources) or sources[i].kind != "file" or sources[start].kind != "file":
            yield sources[start:i]
            start = i


def _first_occurrences(items: pa.Table) -> list[int]:
    """Return the rows that do not repeat an earlier item: a file matched by two patterns is one item, in one split."""
    texts = (
        items[name].cast(pa.string() if name == "position" else pa.binary()).cast(pa.binary())
        for name in _LOCATION_COLUMNS
    )
    key = pc.binary_join_element_wise(*(pc.fill_null(text, b"") for text in texts), b"\0")
    _, first = np.unique(key.combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
    return sorted(first.tolist())


def _check_folders_disjoint(names: Sequence[str], holdout: str) -> None:
    for name in names:
        if is_remote(name) or is_remote(holdout):
            continue
        a, b = (Path(os.fsdecode(full_path(location))).resolve() for location in (name, holdout))
        if a == b or a in b.parents or b in a.parents:
            raise UserError(
                f"input.holdout={b} and input.path={a} overlap, so held-out items would be fitted; "
                "use two separate folders, or a fraction such as 0.2"
            )


def _check_items_disjoint(items: pa.Table, held: pa.Table, holdout: str) -> None:
    """Refuse a holdout that shares items with the train split, for example through a pattern that matches both."""
    keys, held_keys = (
        pc.binary_join_element_wise(part["file"], pc.fill_null(part["member"].cast(pa.binary()), b""), b"\0")
        for part in (items, held)
    )
    both = pc.is_in(held_keys, pc.unique(keys))
    if pc.any(both).as_py():
        name = held.filter(both)["file"][0].as_py()
        raise UserError(f"input.holdout={redacted(holdout)} and input.path overlap: both contain {redacted(name)}")
