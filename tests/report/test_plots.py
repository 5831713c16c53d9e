from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.report import plots


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(plots.render(figure))).convert("RGB"))


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_centres_are_drawn_exactly_below_their_labels() -> None:
    centres = np.random.default_rng(0).uniform(0, 255, size=(3, 28, 28, 1))
    figure = plots.centroid_sheet(centres, ["7", "no label", "1"], counts=[12, 0, 3456])
    assert _texts(figure) == ["7 · 12", "no label · 0", "1 · 3,456"]
    drawn = _pixels(figure)
    enlarged = np.kron(np.rint(centres[0, :, :, 0]).astype(np.uint8), np.ones((8, 8), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(drawn[:, :, 0], enlarged.shape)
    corners = (windows[:, :, 0, 0] == enlarged[0, 0]) & (windows[:, :, -1, -1] == enlarged[-1, -1])
    assert any((windows[y, x] == enlarged).all() for y, x in np.argwhere(corners))


def test_grey_levels_are_not_rescaled() -> None:
    drawn = _pixels(plots.centroid_sheet(np.full((4, 8, 8, 1), 100.0), list("abcd")))
    assert (drawn == 100).all(axis=2).sum() == 4 * 224 * 224


def test_colours_are_not_changed() -> None:
    image = np.full((1, 16, 16, 3), (250, 20, 130), np.uint8)
    drawn = _pixels(plots.sample_sheet(image, ["pink"]))
    assert (drawn == (250, 20, 130)).all(axis=2).sum() == 224 * 224


@pytest.mark.parametrize("k", [1, 10, 158, 256])
def test_sheet_of_any_k_fits_the_width(k: int) -> None:
    figure = plots.centroid_sheet(np.zeros((k, 8, 8, 1)), ["a name that is rather long"] * k, [10**6] * k)
    assert len(_texts(figure)) == k
    assert figure.get_figwidth() * plots.DPI < plots.SHEET_WIDTH + 1


def test_large_images_are_shrunk() -> None:
    drawn = _pixels(plots.sample_sheet(np.zeros((2, 900, 300, 3), np.uint8), ["a", "b"]))
    assert drawn.shape[0] < 300


def test_long_title_is_shortened_but_keeps_the_count() -> None:
    figure = plots.centroid_sheet(np.zeros((1, 8, 8, 1)), ["Luiz_Inacio_Lula_da_Silva"], [48])
    (text,) = _texts(figure)
    assert text.startswith("Luiz")
    assert text.endswith("Silva · 48")
    assert "…" in text


@pytest.mark.parametrize("title", ["$\\frac", "a\nb", "<b>", "猫", "\udc80.png", "", "_^{"])
def test_any_text_as_title_or_label(title: str) -> None:
    plots.render(plots.sample_sheet(np.zeros((1, 8, 8, 1), np.uint8), [title]))
    plots.render(plots.label_counts([title], [1]))
    plots.render(plots.metric_curves([{"algorithm": "kmeans", "k": 2, "homogeneity": 0.5}]))


def test_quantized_images_gain_no_colours() -> None:
    rng = np.random.default_rng(0)
    two = np.array([[250, 0, 0], [0, 0, 250]], np.uint8)[rng.integers(2, size=(900, 1200))]
    original = np.full((900, 1200), 128, np.uint8)
    figure = plots.before_after_sheet([original] * 8, [[two, two, two]] * 8, [2, 6, 30], ["photo"] * 8)
    assert _texts(figure) == ["photo", "K = 2", "K = 6", "K = 30"] * 8
    assert figure.get_figwidth() * plots.DPI < plots.SHEET_WIDTH + 1
    sheet = figure.axes[0].images[0].get_array()
    assert sheet is not None
    colours = np.unique(sheet[:, :, :3].reshape(-1, 3), axis=0)
    assert colours.tolist() == [[0, 0, 250], [128, 128, 128], [250, 0, 0], [255, 255, 255]]


def test_images_of_different_sizes_on_one_sheet() -> None:
    originals = [np.zeros((40, 300, 3), np.uint8), np.zeros((500, 20, 3), np.uint8)]
    figure = plots.before_after_sheet(originals, [[image] for image in originals], [2], ["wide", "tall"])
    assert _texts(figure) == ["wide", "K = 2", "tall", "K = 2"]


def test_few_labels_keep_their_order() -> None:
    axes = plots.label_counts(["b", "a"], [1, 2000]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in axes.texts] == ["1", "2,000"]


def test_many_labels_are_reduced_to_the_most_frequent() -> None:
    counts = list(range(1, 159))
    axes = plots.label_counts([f"person {count}" for count in counts], counts).axes[0]
    assert len(axes.patches) == 30
    assert axes.get_yticklabels()[0].get_text() == "person 158"
    assert f"{sum(range(1, 129)):,} items in 128 others" in axes.get_title(loc="left")


def test_curves_have_one_line_per_algorithm_sorted_by_k() -> None:
    rows = [
        {"algorithm": algorithm, "k": k, "inertia_per_sample": 1000.0 / k, "homogeneity": k / 300}
        | {"accuracy_train": k / 290, "accuracy_holdout": None}
        for algorithm in ("kmeans", "minibatch")
        for k in (256, 10, 64)
    ]
    figure = plots.metric_curves(rows)
    inertia, homogeneity, accuracy = figure.axes
    assert [line.get_label() for line in inertia.lines] == ["kmeans", "minibatch"]
    assert [line.get_label() for line in accuracy.lines] == ["kmeans, train", "minibatch, train"]
    np.testing.assert_array_equal(homogeneity.lines[0].get_xdata(), [10, 64, 256])
    np.testing.assert_allclose(homogeneity.lines[0].get_ydata(), [10 / 300, 64 / 300, 256 / 300])
    assert _pixels(figure).std() > 0


def test_without_labels_only_inertia_is_drawn() -> None:
    rows = [{"algorithm": "kmeans", "k": 6, "inertia_per_sample": 3.0, "homogeneity": None}]
    (axes,) = plots.metric_curves(rows).axes
    assert axes.get_title(loc="left").startswith("inertia")


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_save_publishes_only_the_finished_file(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"counts{suffix}"
    plots.save(plots.label_counts(["a"], [1]), path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_is_not_imported() -> None:
    code = (
        "import sys; from kmeans_dask.report import plots;"
        "plots.render(plots.label_counts(['a'], [1]));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
