"""Data sets available through scikit-learn: bundled ones (digits, photos), and downloads (MNIST, LFW)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.errors import JobError, UserError
from kmeans_dask.sources.images import encode_png
from kmeans_dask.storage.object_store import is_local
from kmeans_dask.storage.output_names import write_file
from kmeans_dask.storage.publish import create, publish, remove


def write_builtin(name: str, folder: Path) -> Path:
    """Write images bundled with scikit-learn as an ordinary image folder, unless it exists.

    Parameters
    ----------
    name
        ``digits`` or ``photos``.
    folder
        Parent of the image folder.

    Returns
    -------
    Path
        The image folder.
    """
    target, complete = folder.absolute() / name, folder / f"{name}.complete"
    # a local folder is published by one rename, so it is complete
    if target.is_dir() and (is_local(target) or complete.exists()):
        return target
    with publish(target) as partial:
        partial.mkdir()
        if name == "digits":
            _write_digits(partial)
        else:
            _write_photos(partial)
    if not is_local(target):
        create(complete, "")
    return target


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits  # takes 0.5 s, so only when needed

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


MNIST_TRAIN = 60_000
"""Size of the train split: the first 60,000 of the 70,000 digits."""
_MNIST_PIXELS = 784
"""Pixel columns, which precede the label column."""
LFW_FACES = 10
"""Minimum number of photos per person; 10 keeps 4,324 photos of 158 people."""


def fetch(name: Literal["mnist", "lfw"], folder: Path, data_home: Path | None = None) -> int:
    """Download a data set, unless scikit-learn has it cached, and write it as a folder of images.

    Parameters
    ----------
    name
        ``mnist``: PNG files ``train/<digit>/<number>.png`` and ``test/...``. ``lfw``: the original JPEG files,
        ``<person>/<file>.jpg``.
    folder
        Appears only once it is complete. Until then the files are in ``.<folder>.partial`` next to it, and the same
        call after an interruption writes only the missing ones.
    data_home
        Download folder of scikit-learn; None: its default.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    UserError
        `folder` already exists.
    JobError
        The data set cannot be downloaded.
    """
    if folder.exists():
        raise UserError(f"{folder} already exists; remove it to fetch {name} again, or choose another folder")
    try:
        with warnings.catch_warnings(action="ignore"):  # scikit-learn warns on every attempt
            if name == "mnist":
                from sklearn.datasets import fetch_openml

                digits = fetch_openml(
                    "mnist_784", version=1, as_frame=False, parser="pandas", data_home=data_home,
                    # pandas 3 parses these category labels as numbers, which breaks scikit-learn 1.9
                    read_csv_kwargs={"dtype": {_MNIST_PIXELS: str}},
                )  # fmt: skip
                labels = [str(label).strip("'") for label in digits.target]
                return write_digits(folder, digits.data.astype(np.uint8), labels, MNIST_TRAIN)
            from sklearn.datasets import fetch_lfw_people, get_data_home

            people = fetch_lfw_people(min_faces_per_person=LFW_FACES, resize=0.1, data_home=data_home)
            photos = Path(get_data_home(data_home)) / "lfw_home" / "lfw_funneled"
            return copy_photos(folder, photos, [str(person).replace(" ", "_") for person in people.target_names])
    except (OSError, ValueError) as error:  # OSError includes URLError; ValueError: an unexpected file was served
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise JobError(f"cannot fetch {name}: {reason}; check the network connection and free disk space") from None


def write_digits(folder: Path, pixels: NDArray[Any], labels: Sequence[str], n_train: int) -> int:
    """Write rows of square grey images as PNG files; see `fetch`.

    Parameters
    ----------
    folder
        Published once it is complete.
    pixels : (n, side * side) array
        Values from 0 to 255.
    labels : (n,) sequence of str
        Folder name of each image.
    n_train
        Number of rows written to ``train``; the rest go to ``test``.

    Returns
    -------
    int
        Number of images.
    """
    side = round(pixels.shape[1] ** 0.5)

    def write(row: int, path: str) -> None:
        write_file(path, encode_png(pixels[row].reshape(side, side).astype(np.uint8)))

    names = [
        f"{'train' if row < n_train else 'test'}/{label}/{row if row < n_train else row - n_train}.png"
        for row, label in enumerate(labels)
    ]
    return _publish(folder, names, write)


def copy_photos(folder: Path, photos: Path, people: Sequence[str]) -> int:
    """Copy the photos of selected people unchanged; see `fetch`.

    Parameters
    ----------
    folder
        Published once it is complete.
    photos
        Folder with one subfolder per person.
    people
        Names of the subfolders to copy.

    Returns
    -------
    int
        Number of photos.
    """
    names = [f"{person}/{photo.name}" for person in people for photo in sorted((photos / person).iterdir())]
    return _publish(folder, names, lambda row, path: write_file(path, (photos / names[row]).read_bytes()))


def _publish(folder: Path, names: Sequence[str], write: Callable[[int, str], None]) -> int:
    """Write the missing files to a temporary folder, then publish it with one rename."""
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    for row, name in enumerate(names):
        path = partial / name
        if not path.exists():
            write(row, str(path))
    for leftover in partial.rglob(".*.partial"):  # from a call that was killed
        remove(leftover)
    partial.rename(folder)
    return len(names)
