"""jobs/mnist.py and jobs/lfw.py run as programs, and their numbers and files are what scikit-learn and PIL find."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import accuracy_score, homogeneity_score
from sklearn.metrics.cluster import contingency_matrix

from kmeans_dask import KMeans, MiniBatchKMeans, open_collection, quantize_image

JOBS = Path(__file__).parents[2] / "jobs"
KS = ["10", "30"]


def run(name: str, *arguments: object, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(JOBS / name), *map(str, arguments)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200, check=check)


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cluster settings whose workers start at once."""
    path = tmp_path_factory.mktemp("cluster") / "threads.yaml"
    path.write_text("kind: threads\nn_workers: 2\n")
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test of digits as PNG files, 400 and 100 of them."""
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    for number in range(500):
        file = folder / ("train" if number % 5 else "test") / str(bunch.target[number]) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.minimum(16 * bunch.images[number], 255).astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey photos of two people, whose palettes do not depend on a seed, and one in colour."""
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(load_sample_images().images):
        for part in range(2):
            file = folder / f"person {number}" / f"{part}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels[200 + 90 * part : 290 + 90 * part, 200:320]).convert("L").save(file)
    Image.fromarray(load_sample_images().images[0][200:290, 200:320]).save(folder / "person 0" / "colour.png")
    return folder


def scores_of(line: str) -> tuple[str, int, float, float, float]:
    name, k, _, homogeneity, train, test = line.split()
    return name, int(k), float(homogeneity), float(train), float(test)


def expected_scores(estimator: KMeans, dest: Path) -> tuple[float, float, float]:
    """Homogeneity and accuracies as scikit-learn computes them from the labels of a new fit of the same estimator."""
    collection = open_collection(dest / "digits.zarr")
    (X, rows), (X_test, rows_test) = (collection.rows(split) for split in ("train", "holdout"))
    y, y_test = collection.labels[rows], collection.labels[rows_test]
    clusters = estimator.fit(X).labels_.compute()
    majority = contingency_matrix(y, clusters).argmax(axis=0)
    test = majority[estimator.predict(X_test).compute()]
    return homogeneity_score(y, clusters), accuracy_score(y, majority[clusters]), accuracy_score(y_test, test)


def test_mnist_scores_equal_scikit_learn(digits: Path, threads: Path, tmp_path: Path):
    done = run(
        "mnist.py", digits / "train", digits / "test", "--dest", "out", "-k", *KS, "--cluster", threads, folder=tmp_path
    )

    head, titles, *lines = done.stdout.splitlines()
    assert head == "Collection of 500 items of 28 x 28 x 1, 10 labels, 1 chunks"
    assert titles.split() == ["model", "K", "inertia", "homogeneity", "accuracy", "held-out"]
    fits = [(kind, k) for kind in (KMeans, MiniBatchKMeans) for k in map(int, KS)]
    assert [scores_of(line)[:2] for line in lines] == [(kind.__name__, k) for kind, k in fits]
    for (kind, k), line in zip(fits, lines, strict=True):
        expected = expected_scores(kind(k, random_state=0), tmp_path / "out")
        assert scores_of(line)[2:] == pytest.approx(expected, abs=0.00006)
        with Image.open(tmp_path / "out" / f"centres-{kind.__name__}-k{k}.png") as sheet:
            assert sheet.width > 1000
            assert np.asarray(sheet.convert("L")).std() > 20
    assert done.stderr == ""


def equals_quantize_image(source: Path, output: Path, k: int) -> bool:
    with Image.open(source) as original, Image.open(output) as written:
        return np.array_equal(
            np.asarray(quantize_image(original, k).convert("RGB")), np.asarray(written.convert("RGB"))
        )


def test_lfw_files_equal_quantize_image(photos: Path, threads: Path, tmp_path: Path):
    done = run("lfw.py", photos, "--dest", "out", "--cluster", threads, folder=tmp_path)

    lines = done.stdout.splitlines()
    assert lines[0].startswith("5 photos of 2 people, 0.")
    assert lines[1] == "2 to 3 photos per person; most of person 0"
    assert [line.split()[:2] for line in lines[3:]] == [["2", "5"], ["6", "5"], ["30", "5"]]
    written = sorted((tmp_path / "out" / "quantized").rglob("*.png"))
    assert len(written) == 15
    for file in written:
        k, person, name = file.relative_to(tmp_path / "out" / "quantized").parts
        with Image.open(file) as image:
            assert len(image.getcolors()) == int(k)
        assert name == "colour.png" or equals_quantize_image(photos / person / name, file, int(k))
    assert mean_psnr(photos, tmp_path / "out") == pytest.approx(
        [float(line.split()[2]) for line in lines[3:]], abs=0.006
    )
    with Image.open(tmp_path / "out" / "before-after.png") as sheet:
        assert sheet.width > 1000
    assert done.stderr == ""


def mean_psnr(source: Path, dest: Path) -> Sequence[float]:
    """Mean over the photos of the PSNR in dB, for each K."""

    def psnr(original: Path, k: int) -> float:
        files = (original, dest / "quantized" / str(k) / original.relative_to(source))
        before, after = (np.asarray(Image.open(file).convert("RGB"), float) for file in files)
        return float(10 * np.log10(255**2 / ((before - after) ** 2).mean()))

    return [float(np.mean([psnr(file, k) for file in sorted(source.rglob("*.png"))])) for k in (2, 6, 30)]


def test_mnist_on_worker_processes_of_this_machine(digits: Path, tmp_path: Path):
    done = run("mnist.py", digits / "train", digits / "test", "--dest", "out", "-k", "10", folder=tmp_path)

    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["KMeans", "MiniBatchKMeans"]


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.py")))
def test_help(name: str, tmp_path: Path):
    done = run(name, "--help", folder=tmp_path)

    assert "--cluster" in done.stdout


def test_stage_scripts_in_order_finish_a_job(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stages = ["ingest", "fit", "evaluate", "quantize", "report"]
    keys = [f"input={{path: '{images}', holdout: 0.2}}", "fit.k=3", "quantize={k: 2}", "cluster.kind=threads"]
    monkeypatch.chdir(tmp_path)

    def execute(name: str) -> object:
        """Run a script in this process: six fresh ones would spend half a minute on imports."""
        monkeypatch.setattr(sys, "argv", [name, str(JOBS.parent / "configs" / "digits.yaml"), *keys, "name=stages"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOBS / name), run_name="__main__")
        return end.value.code

    assert [execute(f"{stage}.py") for stage in stages] == [0] * 5
    assert (tmp_path / "runs" / "stages" / "report.html").exists()
    capsys.readouterr()
    assert execute("run.py") == 0
    assert capsys.readouterr().err.splitlines() == [f"{stage}: already finished" for stage in stages]


def test_mistake_in_a_script_is_one_line(tmp_path: Path):
    wrong = run("run.py", JOBS.parent / "configs" / "digits.yaml", "fit.k=0", folder=tmp_path, check=False)

    assert wrong.returncode == 2
    assert wrong.stderr.startswith("kmeans-dask: ")
    assert len(wrong.stderr.splitlines()) == 1
