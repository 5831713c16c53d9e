"""Export a model for other programs (NumPy .npz, a scikit-learn estimator as .skops, .onnx), or images into folders.

All three formats are pure data; a pickle, and so a joblib file, would run code when it is opened.
"""

from __future__ import annotations

import filecmp
import io
import json
import os
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask.config.sections import Features, Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.models.model import Model
from kmeans_dask.sources.images import Content, ImageError, Ranged, open_image
from kmeans_dask.storage.publish import publish


def write_npz(path: Path, model: Model, class_names: Sequence[str], ingest: Ingest, features: Features) -> None:
    """Write a model as a NumPy archive; `numpy.load` reads it without pickles.

    Parameters
    ----------
    path
        Destination; an existing file is replaced.
    model
        Written as ``centres`` (k, n_features) float32, ``history`` (n,) float64, ``label_map`` (k,) int32, ``counts``
        (k,) int64, ``algorithm`` and ``inertia``.
    class_names
        Written as ``class_names``; the label map holds indices into them.
    ingest, features
        Settings that turn an image into a row; written as JSON under these names.
    """
    assert model.label_map is not None
    assert model.counts is not None
    with publish(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            centres=model.centres,
            history=model.history,
            label_map=model.label_map,
            counts=model.counts,
            class_names=np.array(class_names, dtype=np.str_),
            algorithm=model.algorithm,
            inertia=model.inertia,
            ingest=json.dumps(ingest.model_dump(mode="json")),
            features=json.dumps(features.model_dump(mode="json")),
        )


def write_skops(path: Path, model: Model) -> None:
    """Write a model as a scikit-learn estimator; ``skops.io.load`` opens it and executes nothing.

    Parameters
    ----------
    path
        Destination; an existing file is replaced.
    model
        The model. The estimator predicts (n, n_features) float32 rows like the fitted ones: pixels, 0-255, or
        features.

    Raises
    ------
    UserError
        The package skops is not installed.
    """
    try:
        from skops.io import dump
    except ImportError:
        raise _not_installed("skops") from None
    with publish(path) as partial, open(partial, "wb") as file:
        dump(to_sklearn(model), file)


def write_onnx(path: Path, model: Model) -> None:
    """Write a model as an ONNX graph.

    Parameters
    ----------
    path
        Destination; an existing file is replaced.
    model
        The model. The input of the graph is ``X``, (n, n_features) float32 rows like the fitted ones: pixels,
        0-255, or features. Its outputs are ``label``, the cluster, (n,) int64, and ``scores``, the distances to all
        centres, (n, k) float32.

    Raises
    ------
    UserError
        The package skl2onnx is not installed.
    """
    try:
        from skl2onnx import to_onnx
    except ImportError:
        raise _not_installed("skl2onnx") from None
    graph = to_onnx(to_sklearn(model), model.centres[:1])
    with publish(path) as partial:
        partial.write_bytes(graph.SerializeToString())


def to_sklearn(model: Model) -> sklearn.cluster.KMeans:
    """Return a fitted scikit-learn estimator with the float32 centres of a model; it has no `labels_`."""
    estimator = sklearn.cluster.KMeans(model.k, init=model.centres, n_init=1, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # two centres may be equal
        estimator.fit(model.centres)
    estimator.cluster_centers_ = model.centres.copy()
    estimator.inertia_, estimator.n_iter_ = model.inertia, model.iterations
    del estimator.labels_  # those of the centres, not of the fitted rows
    return estimator


def _not_installed(package: str) -> UserError:
    return UserError(f"the package {package} is not installed: pip install 'kmeans-dask[export]'")


_MAX_NAME = 100
"""Upper limit of a folder or file name in bytes; file systems allow 255, so a number and a suffix still fit."""


def folder_names(labels: Sequence[str]) -> list[str]:
    """Choose a folder name for each label.

    Parameters
    ----------
    labels
        Distinct labels, with any characters.

    Returns
    -------
    list of str
        One name per label, neither hidden nor with characters that a file system refuses. Names that would be equal,
        even if only on a case-insensitive file system, are numbered: ``a``, ``A~2``.
    """
    taken: set[str] = set()
    names = []
    for label in labels:
        names.append(next(name for name in _numbered(_safe(label)) if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def write_images(
    names: Sequence[tuple[str, str]], contents: Iterable[tuple[int, Content]], target: Path, *, link: bool
) -> dict[str, int]:
    """Write each image into its folder under its file name, or under its path (``a_1.png``) if names collide.

    Parameters
    ----------
    names
        Path of each image, and the name of its folder.
    contents
        Indices into `names` and the contents from `sources.read_contents`, always in the same order. Files, members of
        archives and images in tables are copied byte by byte; rows of arrays become PNG files.
    target
        Parent of the folders.
    link
        Whether to make symbolic links instead of copies; all contents must then be files.

    Returns
    -------
    dict
        Number of images that were ``written``, are ``unchanged`` from an earlier export, or ``failed`` because they no
        longer exist or cannot be read.

    Raises
    ------
    UserError
        A folder is a link to a place outside the target.
    """
    counts = {"written": 0, "unchanged": 0, "failed": 0}
    taken: dict[str, set[str]] = defaultdict(set)
    uses = Counter((folder, _safe(PurePosixPath(path).name).casefold()) for path, folder in names)
    for row, content in contents:
        path, name = names[row]
        folder = target / name
        if name not in taken:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.resolve().parent != target.resolve():
                raise UserError(
                    f"{folder} is a link to a place outside {target}; remove it, or export to another folder"
                )
        short = _safe(PurePosixPath(path).name)
        wanted = short if uses[name, short.casefold()] == 1 else _safe(path)
        try:
            written = _write_image(content, folder, wanted, taken[name], link)
            counts["written" if written else "unchanged"] += 1
        except (OSError, ImageError):
            counts["failed"] += 1
    return counts


def _write_image(content: Content, folder: Path, name: str, taken: set[str], link: bool) -> bool:
    """Copy, write or link one image under the first free name; return False if it already exists."""
    plain = content.content if isinstance(content, Ranged) else content
    source = Path(os.fsdecode(plain)) if isinstance(plain, bytes) else _bytes_of(content)
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(source)
    for candidate in _numbered(f"{name}.png" if isinstance(plain, np.ndarray) else name):
        target = folder / candidate
        if candidate.casefold() in taken:
            continue
        exists = os.path.lexists(target)
        if not exists or _is_same(target, source, link):
            taken.add(candidate.casefold())
            break
    if exists:
        return False
    with publish(target) as partial:
        if isinstance(source, bytes):
            partial.write_bytes(source)
        elif link:
            partial.symlink_to(source)
        else:
            shutil.copy2(source, partial)  # keeps the modification time, by which the next export recognizes it
    return True


def _bytes_of(content: Content) -> bytes:
    """Return the bytes of an image file for content that is not a file."""
    plain = content.content if isinstance(content, Ranged) else content
    if isinstance(plain, ImageError):
        raise plain
    if isinstance(plain, np.ndarray):
        stream = io.BytesIO()
        open_image(content, max_pixels=plain.size).save(stream, "PNG")
        return stream.getvalue()
    assert isinstance(plain, io.BytesIO)
    return plain.getvalue()


def _is_same(target: Path, source: Path | bytes, link: bool) -> bool:
    if target.is_symlink():
        return link and Path(os.readlink(target)) == source
    if link or not target.is_file():
        return False
    return filecmp.cmp(source, target) if isinstance(source, Path) else target.read_bytes() == source


def _numbered(name: str) -> Iterator[str]:
    """Yield ``a.png``, ``a~2.png``, ``a~3.png``, ..."""
    yield name
    stem, suffix = os.path.splitext(name)
    for number in count(2):
        yield f"{stem}~{number}{suffix}"


def _safe(name: str) -> str:
    """Turn any text into one file name: no separators, not hidden, not reserved, not too long."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name.encode("utf-8", "replace").decode())
    name = re.sub(r"^[.\s~]+", "_", name).rstrip(". ")
    if re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name):  # devices on Windows
        name = f"_{name}"
    stem, suffix = os.path.splitext(name)
    suffix = suffix.encode()[:20].decode(errors="ignore")
    return (stem.encode()[: _MAX_NAME - len(suffix.encode())].decode(errors="ignore") + suffix) or "_"
