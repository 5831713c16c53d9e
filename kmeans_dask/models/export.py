"""A model as a file that other programs read: NumPy's .npz, scikit-learn's estimator as .skops, .onnx.

All three are data: a pickle, joblib's too, would run code when it is opened.
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
        File; what stands there is replaced.
    model
        Its arrays: ``centres`` (k, n_features) float32, ``history``, ``label_map`` (k,) int32, ``counts`` (k,) int64.
    class_names
        Written as ``class_names``; the label map counts in them.
    ingest, features
        How an image becomes a row; written as JSON under these names.
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
        File; what stands there is replaced.
    model
        The estimator predicts (n, n_features) float32 rows as they were fitted: pixels, 0-255, or features.

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
        File; what stands there is replaced.
    model
        Input ``X``: (n, n_features) float32 rows as they were fitted: pixels, 0-255, or features. Outputs: ``label``,
        the cluster, (n,) int64, and ``scores``, the distances to all centres, (n, k) float32.

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
    """Return a fitted scikit-learn estimator with the centres of a model, float32; it has no `labels_`."""
    estimator = sklearn.cluster.KMeans(model.k, init=model.centres, n_init=1, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # two centres may be alike
        estimator.fit(model.centres)
    estimator.cluster_centers_ = model.centres.copy()
    estimator.inertia_, estimator.n_iter_ = model.inertia, model.iterations
    del estimator.labels_  # those of the centres
    return estimator


def _not_installed(package: str) -> UserError:
    return UserError(f"the package {package} is not installed: pip install 'kmeans-dask[export]'")


_MAX_NAME = 100
"""Bytes of a folder or file name, of the 255 that file systems allow: a number and a suffix have room."""


def folder_names(labels: Sequence[str]) -> list[str]:
    """Name a folder for each label.

    Parameters
    ----------
    labels
        Distinct, of any letters.

    Returns
    -------
    list of str
        A single name each, none hidden, none with letters that a file system refuses; those that would be the same,
        also where upper and lower case are, are numbered: ``a``, ``A~2``.
    """
    taken: set[str] = set()
    names = []
    for label in labels:
        names.append(next(name for name in _numbered(_safe(label)) if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def place(
    names: Sequence[tuple[str, str]], contents: Iterable[tuple[int, Content]], target: Path, *, link: bool
) -> dict[str, int]:
    """Put every image into its folder, under its name; where several have the same one, under its path: ``a_1.png``.

    Parameters
    ----------
    names
        Path of each image, for people, and the name of its folder.
    contents
        Number in `names`, and what `sources.read_contents` gives, always in the same order. Files are copied as they
        are, members of archives and rows of tables with their bytes, rows of arrays become PNG files.
    target
        Folder of the folders.
    link
        Whether symbolic links are made, in place of copies; all contents are files then.

    Returns
    -------
    dict
        ``written``, ``there`` (they were before) and ``failed`` (the file has gone, or cannot be read) -> items.

    Raises
    ------
    UserError
        A folder is a link that leads out of the target.
    """
    counts = {"written": 0, "there": 0, "failed": 0}
    taken: dict[str, set[str]] = defaultdict(set)
    uses = Counter((folder, _safe(PurePosixPath(path).name).casefold()) for path, folder in names)
    for row, content in contents:
        path, name = names[row]
        folder = target / name
        if name not in taken:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.resolve().parent != target.resolve():
                raise UserError(
                    f"{folder} is a link that leads out of {target}; remove it, or export to another folder"
                )
        short = _safe(PurePosixPath(path).name)
        wanted = short if uses[name, short.casefold()] == 1 else _safe(path)
        try:
            done = _place(content, folder, wanted, taken[name], link)
            counts["written" if done else "there"] += 1
        except (OSError, ImageError):
            counts["failed"] += 1
    return counts


def _place(content: Content, folder: Path, name: str, taken: set[str], link: bool) -> bool:
    """Copy, write or link one image under the first free name; False if it is there."""
    plain = content.content if isinstance(content, Ranged) else content
    source = Path(os.fsdecode(plain)) if isinstance(plain, bytes) else _bytes_of(content)
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(source)
    for candidate in _numbered(f"{name}.png" if isinstance(plain, np.ndarray) else name):
        target = folder / candidate
        if candidate.casefold() in taken:
            continue
        there = os.path.lexists(target)
        if not there or _is(target, source, link):
            taken.add(candidate.casefold())
            break
    if there:
        return False
    with publish(target) as partial:
        if isinstance(source, bytes):
            partial.write_bytes(source)
        elif link:
            partial.symlink_to(source)
        else:
            shutil.copy2(source, partial)  # with its time, by which the next export knows it
    return True


def _bytes_of(content: Content) -> bytes:
    """Return an image that is no file as that of one."""
    plain = content.content if isinstance(content, Ranged) else content
    if isinstance(plain, ImageError):
        raise plain
    if isinstance(plain, np.ndarray):
        stream = io.BytesIO()
        open_image(content, max_pixels=plain.size).save(stream, "PNG")
        return stream.getvalue()
    assert isinstance(plain, io.BytesIO)
    return plain.getvalue()


def _is(target: Path, source: Path | bytes, link: bool) -> bool:
    if target.is_symlink():
        return link and Path(os.readlink(target)) == source
    if link or not target.is_file():
        return False
    return filecmp.cmp(source, target) if isinstance(source, Path) else target.read_bytes() == source


def _numbered(name: str) -> Iterator[str]:
    """Yield ``a.png``, ``a~2.png``, ``a~3.png`` and so on."""
    yield name
    stem, suffix = os.path.splitext(name)
    for number in count(2):
        yield f"{stem}~{number}{suffix}"


def _safe(name: str) -> str:
    """Make a single name of any text: no separator, no hidden or reserved one, not too long."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name.encode("utf-8", "replace").decode())
    name = re.sub(r"^[.\s~]+", "_", name).rstrip(". ")
    if re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name):  # Windows would take them for devices
        name = f"_{name}"
    stem, suffix = os.path.splitext(name)
    suffix = suffix.encode()[:20].decode(errors="ignore")
    return (stem.encode()[: _MAX_NAME - len(suffix.encode())].decode(errors="ignore") + suffix) or "_"
