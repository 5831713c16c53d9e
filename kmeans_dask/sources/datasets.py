"""Data sets that scikit-learn has: the small ones that come with it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from kmeans_dask.object_store import is_local
from kmeans_dask.publish import create, publish


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
