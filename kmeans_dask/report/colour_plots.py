"""Figures of quantized images: distribution of the errors, and palettes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from kmeans_dask.colours.palette_files import palette_strip
from kmeans_dask.report.plots import DPI


def error_distribution(errors: Mapping[int, Sequence[float]]) -> Figure:
    """Draw the distribution of the images' errors, one panel per K.

    Parameters
    ----------
    errors
        K -> mean squared error of each image, all finite; images without error are counted in the title of the panel.

    Returns
    -------
    Figure
        Histograms over a logarithmic error axis, with a line at the median.
    """
    figure = Figure(figsize=(11, 2.6 * -(-len(errors) // 4) + 0.4), dpi=DPI, layout="constrained")
    axes = np.ravel(figure.subplots(-(-len(errors) // 4), min(len(errors), 4), squeeze=False))
    for panel in axes[len(errors) :]:
        panel.set_axis_off()
    for panel, (k, values) in zip(axes, errors.items(), strict=False):
        positive = np.array([value for value in values if value > 0])
        title = f"K = {k}"
        if len(positive) < len(values):
            title += f" ({len(values) - len(positive):,} without error)"
        if len(positive):
            low, high = positive.min() * 0.95, positive.max() * 1.05
            panel.hist(positive, bins=np.geomspace(low, high, 40), color="#0072B2")
            panel.axvline(float(np.median(positive)), color="#D55E00", linestyle="--", linewidth=1)
            panel.set_xscale("log")
            for axis_format in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
                axis_format(LogFormatter(minor_thresholds=(2, 0.5)))
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_xlabel("MSE; dashed: median", fontsize=8)
        panel.set_ylabel("images", fontsize=8)
        panel.tick_params(labelsize=7, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def palette_strips(palettes: Sequence[NDArray[np.uint8]], titles: Sequence[str]) -> Figure:
    """Draw palettes as strips with 16 colours per row, one below the other.

    Parameters
    ----------
    palettes
        Palettes, each (k, 3) uint8.
    titles
        One title per palette.

    Returns
    -------
    Figure
    """
    strips = [palette_strip(palette) for palette in palettes]
    for palette, strip in zip(palettes, strips, strict=True):
        if len(palette) > 16 and len(palette) % 16:
            strip[-32:, 32 * (len(palette) % 16) :] = 255  # blank the repeats of the last colour
    heights = [0.25 + 0.3 * strip.shape[0] / 32 for strip in strips]  # in inches: title and rows
    figure = Figure(figsize=(6, sum(heights) + 0.2), dpi=DPI, layout="constrained")
    axes = np.ravel(figure.subplots(len(strips), 1, squeeze=False, height_ratios=heights))
    for panel, strip, title in zip(axes, strips, titles, strict=True):
        panel.imshow(strip, interpolation="nearest", aspect="equal")
        panel.set_xlim(0, 512)
        panel.set_anchor("W")
        panel.set_axis_off()
        panel.set_title(title, fontsize=8, loc="left", parse_math=False)
    return figure
