"""Figures of quantized images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kmeans_dask.report.colour_plots import error_distribution, palette_strips
from kmeans_dask.report.plots import render


@pytest.mark.parametrize("count", [1, 4, 6])
def test_one_panel_per_k(count):
    errors = {k: [1.0 * k, 2.0, 300.0] for k in range(1, count + 1)}
    figure = error_distribution(errors)
    assert [axes.get_title("left") for axes in figure.axes if axes.axison] == [f"K = {k}" for k in errors]
    for axes, values in zip(figure.axes, errors.values(), strict=False):
        assert sum(bar.get_height() for bar in axes.patches) == len(values)
    assert Image.open(io.BytesIO(render(figure))).width == 2200


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 5.0], [5.0]])
def test_images_without_error_are_counted_in_title(values):
    (axes,) = error_distribution({7: values}).axes
    title = axes.get_title("left")
    assert ("without error" in title) == (0.0 in values)
    render(axes.figure)


def test_strips_show_every_colour():
    palettes = [np.array([[255, 0, 0], [0, 255, 0]], np.uint8), np.arange(60, dtype=np.uint8).reshape(20, 3)]
    figure = palette_strips(palettes, ["two $", "twenty"])
    pixels = np.asarray(Image.open(io.BytesIO(render(figure))).convert("RGB")).reshape(-1, 3)
    shown = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    assert {tuple(colour) for palette in palettes for colour in palette.tolist()} <= shown
