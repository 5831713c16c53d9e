"""Build a collection in one call, on whatever scheduler Dask uses: an active client, else threads of this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import dask

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config.loading import Source, check_section, input_of
from kmeans_dask.config.sections import Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest
from kmeans_dask.storage.object_store import location, make_folder
from kmeans_dask.storage.publish import remove
from kmeans_dask.storage.zarr_groups import read_attrs


def build_collection(
    source: Source,
    dest: str | os.PathLike[str],
    *,
    size: tuple[int, int],
    mode: Literal["L", "RGB"] = "RGB",
    resize: Literal["stretch", "crop", "pad"] = "stretch",
    labels: str = "folder",
    holdout: float | str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Collection:
    """Decode images of any size and format into a collection, one zarr array of equal-sized images on disk.

    The work runs on the active Dask client, if there is one. Calling the function again with the same arguments opens
    the finished collection, or resumes an interrupted build.

    Parameters
    ----------
    source
        Folder, archive, array, table, list of paths or glob pattern, local or as a URL; one or several.
    dest
        Path of the collection, for example ``digits.zarr``; a folder that all workers can write, or a URL in an
        object store. A collection of other images or settings is replaced.
    size : (height, width)
        Size in pixels that every image is resized to.
    mode
        ``L``: one grey channel. ``RGB``: three channels.
    resize
        ``stretch`` to the size; ``crop`` the centre, scaled to cover it; or ``pad`` the whole image with white.
    labels
        ``folder``: each label is the name of the folder that holds the image. Otherwise as the config key
        ``input.labels``, for example ``none``.
    holdout
        Images to score but never fit: a second source, or a fraction (0-1) of the images of each label.
    seed
        Random seed; selects the images that a fraction holds out.

    Returns
    -------
    Collection
        ``rows("train")`` and ``rows("holdout")`` return the images as rows for an estimator, without those that
        could not be read; `items` has the reason for each of these, and `n_failed` their number.

    Raises
    ------
    UserError
        An argument is invalid, the source is missing or has no images, or `dest` is not a collection.

    Examples
    --------
    >>> digits = build_collection("mnist/train", "digits.zarr", size=(28, 28), mode="L")  # doctest: +SKIP
    >>> X, index = digits.rows("train")  # doctest: +SKIP
    """
    folder = location(dest).absolute()
    _check_dest(folder)
    images = input_of(source, labels=labels, holdout=str(holdout) if isinstance(holdout, os.PathLike) else holdout)
    settings = check_section(Ingest, size=size, mode=mode, resize=resize)
    # the table of a finished collection holds everything that the manifest does
    manifest = folder.with_name(f"{folder.name}.manifest.parquet")
    make_folder(folder.parent)
    write_manifest(list_items(images, seed, folder.parent), manifest)
    dask.compute(*ingest_tasks(manifest, folder, settings, images))
    collection = finish_collection(manifest, folder, settings, images)
    remove(manifest)
    return collection


def _check_dest(folder: Path) -> None:
    """Refuse to replace anything but a collection."""
    # if there is a partial collection too, the folder is one that a killed call was about to replace
    if folder.exists() and not folder.with_name(f"{folder.name}.partial").exists():
        try:
            read_attrs(folder)
        except UserError:
            raise UserError(f"dest={folder} exists and is not a collection; choose another path") from None
