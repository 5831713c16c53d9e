"""Figures: sheets of images, label counts, metrics over K, confusion matrices.

Every function returns a standalone matplotlib ``Figure``, made without pyplot: no display, no global state, nothing to
close. A sheet is one composed image with text on top, because one axes per image takes seconds at K = 256. The colours
are the colour-blind safe ones of Okabe and Ito (2008).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.publish import publish

DPI = 200
"""Dots per inch: about two per CSS pixel (1/96 inch), so that text is sharp on any screen."""

SHEET_WIDTH = 2200
"""Maximum width of a sheet in pixels, shown by browsers as 1,100."""

TOP_LABELS = 30
"""Maximum number of bars in `label_counts`."""

NUMBERED_LABELS, NAMED_LABELS = 20, 40
"""Maximum number of labels for which `confusion_matrix` writes numbers into cells, and names at the axes."""

_CAPTION = 8  # points
_CAPTION_HEIGHT = 34  # pixels, height of a line of that size
_CHARACTER = 13  # pixels, width of one character of that size
_LONGEST_CAPTION = 18  # characters; longer captions do not widen the cell but are truncated
_GAP = 14  # pixels between cells
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def centroid_sheet(
    centres: NDArray[np.floating | np.uint8], titles: Sequence[str], counts: Sequence[int] | None = None
) -> Figure:
    """Draw all centres as images, each titled with the label of its cluster.

    Parameters
    ----------
    centres : (k, height, width, channels) float or uint8
        Pixels on the scale 0-255; 1 or 3 channels.
    titles
        k labels.
    counts
        Number of items of each of the k clusters, shown after the label.

    Returns
    -------
    Figure
    """
    pixels = np.clip(np.rint(centres), 0, 255).astype(np.uint8)
    if counts is not None:
        sizes = [f" · {count:,}" for count in counts]
        titles = [
            _shorten(title, _LONGEST_CAPTION - len(size)) + size for title, size in zip(titles, sizes, strict=True)
        ]
    return sample_sheet(pixels, titles)


def sample_sheet(images: NDArray[np.uint8], titles: Sequence[str]) -> Figure:
    """Draw images of one size in a grid, each below its title.

    Parameters
    ----------
    images : (n, height, width, channels) uint8
        1 or 3 channels.
    titles
        n titles.

    Returns
    -------
    Figure
        At most `SHEET_WIDTH` pixels wide. Small images are enlarged by integer factors, without smoothing.
    """
    side = 224 if len(images) <= 40 else 128  # pixels
    longest = max((len(title) for title in titles), default=0)
    caption = _CHARACTER * min(longest, _LONGEST_CAPTION)
    tiles = [_resize(image, max(side, caption)) for image in images]
    width = max([caption, 1, *(tile.shape[1] for tile in tiles)])
    max_columns = (SHEET_WIDTH - _GAP) // (width + _GAP)
    rows = -(-len(tiles) // max_columns)
    return _sheet(tiles, titles, columns=-(-len(tiles) // max(rows, 1)), width=width)


def before_after_sheet(
    originals: Sequence[NDArray[np.uint8]],
    quantized: Sequence[Sequence[NDArray[np.uint8]]],
    ks: Sequence[int],
    titles: Sequence[str],
) -> Figure:
    """Draw each original next to its quantized versions.

    Parameters
    ----------
    originals
        n images (height, width) or (height, width, channels) uint8 of any size; up to a few dozen.
    quantized
        n sequences with one image per K.
    ks
        Numbers of colours.
    titles
        n titles, drawn above the originals.

    Returns
    -------
    Figure
        Quantized images are shrunk without interpolation, so that they show no colours beyond their K.
    """
    versions = 1 + len(ks)
    # two originals per row, provided that each image keeps 200 pixels, a hundred on screen
    abreast = 2 if len(originals) > 6 and SHEET_WIDTH // (2 * versions) >= 200 else 1
    width = min((SHEET_WIDTH - _GAP) // (abreast * versions) - _GAP, 512)
    tiles, captions = [], []
    for original, images, title in zip(originals, quantized, titles, strict=True):
        tiles += [_resize(original, width), *(_resize(image, width, smooth=False) for image in images)]
        captions += [title, *(f"K = {k}" for k in ks)]
    return _sheet(tiles, captions, columns=abreast * versions, width=width)


def label_counts(names: Sequence[str], counts: Sequence[int]) -> Figure:
    """Draw the number of items per label as bars.

    Up to `TOP_LABELS` labels are drawn in their order. If there are more, the most frequent ones are drawn, and the
    title states how many others there are.

    Parameters
    ----------
    names
        Labels.
    counts
        Number of items of each label.

    Returns
    -------
    Figure
    """
    bars = list(zip(names, counts, strict=True))
    title = "items per label"
    if len(bars) > TOP_LABELS:
        bars.sort(key=lambda bar: -bar[1])
        rest = bars[TOP_LABELS:]
        bars = bars[:TOP_LABELS]
        items = sum(count for _, count in rest)
        title += f": the {TOP_LABELS} most frequent; {items:,} items in {len(rest):,} others"
    figure = Figure(figsize=(8, 0.8 + 0.22 * len(bars)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(range(len(bars)), [count for _, count in bars], color=_COLOURS[0])
    axes.bar_label(drawn, labels=[f"{count:,}" for _, count in bars], padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), [_shorten(name, 40) for name, _ in bars], fontsize=8)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a label such as "$5" is not a formula
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def metric_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw inertia per sample, homogeneity and accuracy over K, one line per algorithm.

    Parameters
    ----------
    rows
        One mapping per model with the keys ``algorithm`` and ``k``, and any of ``inertia_per_sample``,
        ``homogeneity``, ``accuracy_train`` and ``accuracy_holdout``. A metric that no model has (missing or None) is
        left out.

    Returns
    -------
    Figure
    """
    panels = {
        "inertia per sample, train": {"inertia_per_sample": "-"},
        "homogeneity, train": {"homogeneity": "-"},
        "accuracy": {"accuracy_train": "-", "accuracy_holdout": "--"},
    }
    drawn = {
        title: lines
        for title, lines in panels.items()
        if any(row.get(metric) is not None for metric in lines for row in rows)
    }
    figure = Figure(figsize=(11, 3.6), dpi=DPI, layout="constrained")
    for axes, (title, lines) in zip(np.ravel(figure.subplots(1, max(len(drawn), 1))), drawn.items(), strict=False):
        _curves(axes, rows, lines)
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def confusion_matrix(table: NDArray[np.integer], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix.

    Parameters
    ----------
    table : (n, n) int
        Number of items by label (row) and label of their cluster (column).
    names
        n labels.

    Returns
    -------
    Figure
        Cells are shaded by the square root of their fraction of the row. Numbers are drawn for up to
        `NUMBERED_LABELS` labels, names for up to `NAMED_LABELS`.
    """
    n = len(names)
    side = min(11.0, 2.2 + 0.42 * n)
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    fractions = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(fractions), cmap="Blues", vmin=0, vmax=1)
    if n <= NUMBERED_LABELS:
        for row, column in np.argwhere(table):
            ink = "white" if fractions[row, column] > 0.3 else "black"
            size = 7 if n <= 12 else 5
            axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", fontsize=size, color=ink)
    if n <= NAMED_LABELS:
        shown = [_shorten(name, 20) for name in names]
        axes.set_xticks(range(n), shown, fontsize=8, rotation=90 if max(map(len, shown)) > 3 else 0)
        axes.set_yticks(range(n), shown, fontsize=8)
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)  # a label such as "$5" is not a formula
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("label of the cluster", fontsize=9)
    axes.set_ylabel("label", fontsize=9)
    axes.spines[:].set_visible(False)
    return figure


def render(figure: Figure, kind: str = "png") -> bytes:
    """Render a figure to the bytes of a file.

    Parameters
    ----------
    figure
    kind
        ``png``, ``svg`` or ``pdf``.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a label in a script that the font lacks is drawn as boxes; that is not worth a warning
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi="figure")
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file atomically.

    Parameters
    ----------
    figure
    path
        The suffix selects the format: ``.png``, ``.svg`` or ``.pdf``.
    """
    path = location(path)
    with publish(path) as partial:
        partial.write_bytes(render(figure, path.suffix.removeprefix(".").lower()))


def _sheet(tiles: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int, width: int) -> Figure:
    """Compose RGB tiles at most `width` pixels wide into one image, with a caption above each."""
    rows = max(1, -(-len(tiles) // max(columns, 1)))
    height = max((tile.shape[0] for tile in tiles), default=1)
    cell_width, cell_height = width + _GAP, _CAPTION_HEIGHT + height + _GAP
    # opaque RGBA: matplotlib converts RGB to float64, which takes twice as long
    sheet = np.full((_GAP + rows * cell_height, _GAP + max(columns, 1) * cell_width, 4), 255, np.uint8)

    # The axes cover the figure, and one data unit is one pixel: the sheet is drawn without resampling.
    # The extra thousandth keeps 29 / 200 * 200 from being truncated to 28 pixels.
    size = ((sheet.shape[1] + 0.001) / DPI, (sheet.shape[0] + 0.001) / DPI)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left = _GAP + i % columns * cell_width + (width - tile.shape[1]) // 2
        top = _GAP + i // columns * cell_height + _CAPTION_HEIGHT
        sheet[top : top + tile.shape[0], left : left + tile.shape[1], :3] = tile
        axes.text(
            left + tile.shape[1] / 2,
            top - 6,
            _shorten(caption, width // _CHARACTER),
            fontsize=_CAPTION,
            color="black",
            ha="center",
            va="baseline",
            parse_math=False,  # a label such as "$5" is not a formula
        )
    axes.imshow(sheet, extent=(0, sheet.shape[1], sheet.shape[0], 0), interpolation="nearest", aspect="auto")
    return figure


def _resize(image: NDArray[np.uint8], side: int, *, smooth: bool = True) -> NDArray[np.uint8]:
    """Return RGB pixels with a longer side of at most `side`, enlarged by an integer factor or shrunk."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    rgb = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    factor = side // max(rgb.size)
    if factor >= 1:
        size = (rgb.width * factor, rgb.height * factor)
        return np.asarray(rgb.resize(size, Image.Resampling.NEAREST))
    rgb.thumbnail((side, side), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    return np.asarray(rgb)


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, str]) -> None:
    """Draw metrics over K: colour and marker identify the algorithm, line style the metric."""
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    for index, algorithm in enumerate(algorithms):
        for metric, style in lines.items():
            points = sorted(
                (row["k"], row[metric]) for row in rows if row["algorithm"] == algorithm and row.get(metric) is not None
            )
            if not points:
                continue
            suffix = {"accuracy_train": ", train", "accuracy_holdout": ", held-out"}.get(metric, "")
            axes.plot(
                *zip(*points, strict=True),
                style,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                markerfacecolor="white" if style == "--" else None,
                label=algorithm + suffix,
            )
    ks = sorted({row["k"] for row in rows})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("K (clusters)", fontsize=9)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _shorten(text: str, length: int) -> str:
    """Return one printable line of at most `length` characters; longer text loses its middle."""
    text = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "backslashreplace").decode())
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return text[: length - 1 - tail] + "…" + text[len(text) - tail :]
