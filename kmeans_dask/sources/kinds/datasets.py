"""Data sets that scikit-learn has: the small ones that come with it."""

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
    """Write the images that scikit-learn ships as an ordinary image folder, once; returns that folder.

    Parameters
    ----------
    name
        ``digits`` or ``photos``.
    folder
        That holds the image folder.

    Returns
    -------
    Path
    """
    target, complete = folder.absolute() / name, folder / f"{name}.complete"
    if target.is_dir() and (is_local(target) or complete.exists()):  # here a folder appears by a rename, as a whole
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
    from sklearn.datasets import load_digits  # half a second: only who asks for them pays

    from kmeans_dask.sources.images import encode_png

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
"""The first 60,000 of the 70,000 digits are the train part."""
_MNIST_PIXELS = 784
"""Columns before that of the labels."""
LFW_FACES = 10
"""Photos that a person has at least: 4,324 photos of 158 people."""


def fetch(name: Literal["mnist", "lfw"], folder: Path, data_home: Path | None = None) -> int:
    """Download a data set, unless scikit-learn has it already, and write it as a folder of images.

    Parameters
    ----------
    name
        ``mnist``: PNG files ``train/<digit>/<number>.png`` and ``test/...``. ``lfw``: the JPEG files as they were
        published, ``<person>/<file>.jpg``.
    folder
        Is there when all of its files are; until then they are in ``.<folder>.partial`` beside it, and the same call
        after an interruption goes on with those that are missing.
    data_home
        Folder of scikit-learn's downloads; None: where it has it.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    UserError
        Something else has that name.
    JobError
        It cannot be downloaded.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to fetch {name} again, or give another folder")
    try:
        with warnings.catch_warnings(action="ignore"):  # scikit-learn warns at every attempt
            if name == "mnist":
                from sklearn.datasets import fetch_openml

                digits = fetch_openml(
                    "mnist_784", version=1, as_frame=False, parser="pandas", data_home=data_home,
                    # pandas 3 makes numbers of categories such as these, over which scikit-learn 1.9 stumbles
                    read_csv_kwargs={"dtype": {_MNIST_PIXELS: str}},
                )  # fmt: skip
                labels = [str(label).strip("'") for label in digits.target]
                return write_digits(folder, digits.data.astype(np.uint8), labels, MNIST_TRAIN)
            from sklearn.datasets import fetch_lfw_people, get_data_home

            people = fetch_lfw_people(min_faces_per_person=LFW_FACES, resize=0.1, data_home=data_home)
            photos = Path(get_data_home(data_home)) / "lfw_home" / "lfw_funneled"
            return copy_photos(folder, photos, [str(person).replace(" ", "_") for person in people.target_names])
    except (OSError, ValueError) as error:  # URLError is one; the other: what came is not what it should be
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise JobError(f"cannot fetch {name}: {reason}; it needs a network, and space on the disk") from None


def write_digits(folder: Path, pixels: NDArray[Any], labels: Sequence[str], n_train: int) -> int:
    """Write rows of square grey images as PNG files; see `fetch`.

    Parameters
    ----------
    folder
        Published when it is complete.
    pixels : (n, side * side)
        Numbers from 0 to 255.
    labels : (n,)
        Name of the folder of each.
    n_train
        Rows that go to ``train``; the others go to ``test``.

    Returns
    -------
    int
        n
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
    """Copy the photos of some people as they are; see `fetch`.

    Parameters
    ----------
    folder
        Published when it is complete.
    photos
        Folder with a folder a person.
    people
        Names of the folders.

    Returns
    -------
    int
        Number of photos.
    """
    names = [f"{person}/{photo.name}" for person in people for photo in sorted((photos / person).iterdir())]
    return _publish(folder, names, lambda row, path: write_file(path, (photos / names[row]).read_bytes()))


def _publish(folder: Path, names: Sequence[str], write: Callable[[int, str], None]) -> int:
    """Write the files that are missing under a temporary name, and publish the folder by one rename."""
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    for row, name in enumerate(names):
        path = partial / name
        if not path.exists():
            write(row, str(path))
    for left in partial.rglob(".*.partial"):  # of a call that was killed
        remove(left)
    partial.rename(folder)
    return len(names)
