from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kmeans_dask.cli import main
from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.datasets import copy_photos, fetch, write_digits


def test_digits_are_written_unchanged(tmp_path: Path) -> None:
    digits = load_digits()
    n = write_digits(tmp_path / "digits", digits.data, [str(label) for label in digits.target], 1500)

    files = sorted((tmp_path / "digits").rglob("*.*"))
    assert n == len(files) == 1797
    assert len(list((tmp_path / "digits" / "train").rglob("*.png"))) == 1500
    with Image.open(tmp_path / "digits" / "test" / str(digits.target[1501]) / "1.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), digits.images[1501])


def test_interrupted_call_resumes(tmp_path: Path) -> None:
    pixels = np.arange(40).reshape(10, 4)

    class Interrupted:
        """Rows that raise an exception after the sixth."""

        shape = pixels.shape

        def __getitem__(self, row: int) -> np.ndarray:
            if row == 6:
                raise KeyboardInterrupt
            return pixels[row]

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_digits(folder, Interrupted(), ["a"] * 10, 10)  # type: ignore[arg-type]
    assert not folder.exists()
    partial = tmp_path / ".out.partial"
    before = {path.name: path.stat().st_ino for path in partial.rglob("*.png")}
    assert len(before) == 6
    (partial / "train" / "a" / ".half.partial").write_bytes(b"cut")

    write_digits(folder, pixels, ["a"] * 10, 10)

    after = {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    assert len(after) == 10
    assert before.items() <= after.items()
    assert not partial.exists()


N_DIGITS = 30
DIGITS = np.random.default_rng(0).integers(0, 256, (N_DIGITS, 784))
DIGIT_LABELS = [str(number % 10) for number in range(N_DIGITS)]


def arff(quote: str = "") -> bytes:
    """The digits in the format and with the attributes of OpenML's mnist_784, optionally with quoted labels."""
    names = [f"pixel{i}" for i in range(1, 785)]
    head = ["@RELATION mnist_784", *(f"@ATTRIBUTE {name} real" for name in names)]
    head += ["@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}", "@DATA"]
    rows = [
        ",".join([*map(str, row), f"{quote}{label}{quote}"])
        for row, label in zip(DIGITS.tolist(), DIGIT_LABELS, strict=True)
    ]
    return "\n".join([*head, *rows, ""]).encode()


def fake_openml_cache(url: str, digest: str, data_home: Path) -> None:
    """Fill scikit-learn's cache of OpenML responses about mnist_784, with `url` as the location of the data."""
    feature = {"data_type": "numeric", "is_target": "false", "is_ignore": "false", "is_row_identifier": "false",
               "number_of_missing_values": "0"}  # fmt: skip
    features = [{**feature, "index": str(i), "name": f"pixel{i + 1}"} for i in range(784)]
    target = {"index": "784", "name": "class", "data_type": "nominal", "is_target": "true"}
    features.append({**feature, **target, "nominal_value": [str(digit) for digit in range(10)]})
    description = {
        "id": "554",
        "name": "mnist_784",
        "version": "1",
        "format": "ARFF",
        "status": "active",
        "description": "",
    }
    answers = {
        "data/list/data_name/mnist_784/limit/2/data_version/1": {"data": {"dataset": [{"did": 554}]}},
        "data/554": {"data_set_description": {**description, "url": url, "md5_checksum": digest}},
        "data/features/554": {"data_features": {"feature": features}},
        "data/qualities/554": {
            "data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(N_DIGITS)}]}
        },
    }  # fmt: skip
    for path, answer in answers.items():
        file = data_home / "openml" / "openml.org" / "api" / "v1" / "json" / f"{path}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(json.dumps(answer).encode()))


@pytest.fixture
def openml(tmp_path: Path) -> Iterator[str]:
    """A local web server with the digits, with and without quoted labels."""
    (tmp_path / "site" / "data").mkdir(parents=True)
    (tmp_path / "site" / "data" / "mnist_784.arff").write_bytes(arff())
    (tmp_path / "site" / "data" / "quoted.arff").write_bytes(arff("'"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "quote"), [("mnist_784.arff", ""), ("quoted.arff", "'")])
def test_mnist_is_downloaded_through_scikit_learn(
    name: str,
    quote: str,
    openml: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The responses about the data set are those of OpenML; the file itself comes from a local server."""
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    fake_openml_cache(f"{openml}/{name}", hashlib.md5(arff(quote)).hexdigest(), tmp_path / "home")

    assert main.main(["fetch", "mnist", str(tmp_path / "mnist")]) == 0

    assert capsys.readouterr().out == f"{N_DIGITS} images in {tmp_path / 'mnist'}\n"
    for row, label in enumerate(DIGIT_LABELS):
        with Image.open(tmp_path / "mnist" / "train" / label / f"{row}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), DIGITS[row].reshape(28, 28))
    assert len(list((tmp_path / "mnist").rglob("*.*"))) == N_DIGITS


def test_wrong_checksum_of_download_is_reported_in_one_line(
    openml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    fake_openml_cache(f"{openml}/mnist_784.arff", "0" * 32, tmp_path / "home")

    assert main.main(["fetch", "mnist", str(tmp_path / "mnist")]) == 1

    error = capsys.readouterr().err
    assert error.startswith("kmeans-dask: cannot fetch mnist: The md5 checksum")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "mnist").exists()


def fake_lfw_cache(data_home: Path, photo: Path) -> None:
    """Fill scikit-learn's cache of LFW: 12 photos of one person, 3 of another."""
    home = data_home / "lfw_home"
    for person, count in (("Ann_Lee", 12), ("Bo_Ek", 3)):
        folder = home / "lfw_funneled" / person
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{person}_{number:04d}.jpg").write_bytes(photo.read_bytes())
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (home / name).write_text("")


def test_lfw_from_the_cache_of_scikit_learn(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (250, 250), (90, 60, 30)).save(photo)
    fake_lfw_cache(tmp_path / "home", photo)

    assert fetch("lfw", tmp_path / "lfw", tmp_path / "home") == 12

    files = sorted((tmp_path / "lfw").rglob("*.jpg"))
    assert [file.parent.name for file in files] == ["Ann_Lee"] * 12
    assert files[0].read_bytes() == photo.read_bytes()
    with pytest.raises(UserError, match="already exists; remove it"):
        fetch("lfw", tmp_path / "lfw", tmp_path / "home")


def test_copy_photos_of_selected_people(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_bytes(name.encode())

    assert copy_photos(tmp_path / "some", tmp_path / "all", ["b"]) == 2
    assert sorted(os.listdir(tmp_path / "some" / "b")) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("name", ["mnist", "lfw"])
def test_missing_network_is_reported_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing listens on this port
    monkeypatch.setattr("time.sleep", lambda _: None)  # scikit-learn retries four times, one second apart

    assert main.main(["fetch", name, str(tmp_path / "out")]) == 1

    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"kmeans-dask: cannot fetch {name}: ")
    assert "check the network" in output.err
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        fetch("mnist", tmp_path, tmp_path)
