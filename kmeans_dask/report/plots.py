"""Figures: sheets of pictures, label counts, curves over K.

Every function returns a free-standing matplotlib ``Figure``: no pyplot, hence no display, no global state and
nothing to close. Sheets are one composed image with text over it, because an axes a picture takes seconds at
K = 256. Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
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
"""Pixels an inch: two for each CSS pixel (96 an inch, about), so that text is sharp on any screen."""

SHEET_WIDTH = 2200
"""Width of a sheet in pixels at most; a browser shows it 1,100 wide."""

TOP_LABELS = 30
"""Bars that `label_counts` draws at most."""

NUMBERED_LABELS, NAMED_LABELS = 20, 40
"""Labels up to which `confusion_matrix` writes the numbers into the cells, and the names beside them."""

_CAPTION = 8  # points
_CAPTION_HEIGHT = 34  # pixels of one line of that size
_CHARACTER = 13  # pixels, width of one character of that size
_LONGEST_CAPTION = 18  # characters that may widen a cell; longer captions are cut to the cell
_GAP = 14  # pixels between cells
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def centroid_sheet(
    centres: NDArray[np.floating | np.uint8], titles: Sequence[str], counts: Sequence[int] | None = None
) -> Figure:
    """Draw all centres as pictures, each titled with the label of its cluster.

    Parameters
    ----------
    centres
        (k, height, width, channels) float or uint8 pixels on the scale 0-255; 1 or 3 channels.
    titles
        k labels.
    counts
        k numbers of items; drawn behind the label.

    Returns
    -------
    Figure
    """
    pixels = np.clip(np.rint(centres), 0, 255).astype(np.uint8)
    if counts is not None:
        sizes = [f" · {count:,}" for count in counts]
        titles = [_cut(title, _LONGEST_CAPTION - len(size)) + size for title, size in zip(titles, sizes, strict=True)]
    return sample_sheet(pixels, titles)


def sample_sheet(images: NDArray[np.uint8], titles: Sequence[str]) -> Figure:
    """Draw images of one size in a grid, each under its title.

    Parameters
    ----------
    images
        (n, height, width, channels) uint8; 1 or 3 channels.
    titles
        n titles.

    Returns
    -------
    Figure
        At most `SHEET_WIDTH` pixels wide. Small images are enlarged by whole factors, never smoothed.
    """
    side = 224 if len(images) <= 40 else 128  # pixels: few pictures are shown larger
    longest = max((len(title) for title in titles), default=0)
    caption = _CHARACTER * min(longest, _LONGEST_CAPTION)
    tiles = [_fit(image, max(side, caption)) for image in images]
    width = max([caption, 1, *(tile.shape[1] for tile in tiles)])
    most = (SHEET_WIDTH - _GAP) // (width + _GAP)
    rows = -(-len(tiles) // most)
    return _sheet(tiles, titles, columns=-(-len(tiles) // max(rows, 1)), width=width)


def before_after_sheet(
    originals: Sequence[NDArray[np.uint8]],
    quantized: Sequence[Sequence[NDArray[np.uint8]]],
    ks: Sequence[int],
    titles: Sequence[str],
) -> Figure:
    """Draw each original beside its quantized versions.

    Parameters
    ----------
    originals
        n images (height, width) or (height, width, channels) uint8, of any sizes; a few dozen.
    quantized
        n sequences, each with one image for every K.
    ks
        Numbers of colours.
    titles
        n titles, drawn over the originals.

    Returns
    -------
    Figure
        Quantized images are made smaller without mixing pixels: they show no colour beyond their K.
    """
    versions = 1 + len(ks)
    # two images a row while each picture keeps 200 pixels, a hundred on screen
    abreast = 2 if len(originals) > 6 and SHEET_WIDTH // (2 * versions) >= 200 else 1
    width = min((SHEET_WIDTH - _GAP) // (abreast * versions) - _GAP, 512)
    tiles, captions = [], []
    for original, images, title in zip(originals, quantized, titles, strict=True):
        tiles += [_fit(original, width), *(_fit(image, width, mix=False) for image in images)]
        captions += [title, *(f"K = {k}" for k in ks)]
    return _sheet(tiles, captions, columns=abreast * versions, width=width)


def label_counts(names: Sequence[str], counts: Sequence[int]) -> Figure:
    """Draw the number of items of each label as bars.

    Up to `TOP_LABELS` labels keep their order; of more, the most frequent are drawn, and the figure states
    how many others there are.

    Parameters
    ----------
    names
        Labels.
    counts
        Items of each label.

    Returns
    -------
    Figure
    """
    bars = list(zip(names, counts, strict=True))
    note = "items per label"
    if len(bars) > TOP_LABELS:
        bars.sort(key=lambda bar: -bar[1])
        rest = bars[TOP_LABELS:]
        bars = bars[:TOP_LABELS]
        items = sum(count for _, count in rest)
        note += f": the {TOP_LABELS} most frequent; {items:,} items in {len(rest):,} others"
    figure = Figure(figsize=(8, 0.8 + 0.22 * len(bars)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(range(len(bars)), [count for _, count in bars], color=_COLOURS[0])
    axes.bar_label(drawn, labels=[f"{count:,}" for _, count in bars], padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), [_cut(name, 40) for name, _ in bars], fontsize=8)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a label such as "$5" is no formula
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(note, fontsize=9, loc="left")
    return figure


def metric_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw inertia per sample, homogeneity and accuracy over K, one line an algorithm.

    Parameters
    ----------
    rows
        One mapping a model with the keys ``algorithm``, ``k`` and any of ``inertia_per_sample``,
        ``homogeneity``, ``accuracy_train`` and ``accuracy_holdout``. A metric that is missing or None
        everywhere is left out.

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
    """Draw how many items of each label lie in clusters of each label.

    Parameters
    ----------
    table
        (n, n) items; rows are labels of items, columns labels of their clusters.
    names
        n labels.

    Returns
    -------
    Figure
        A cell is as dark as the square root of its share of the row. Numbers stand in the cells of up to
        `NUMBERED_LABELS` labels, names at the axes of up to `NAMED_LABELS`.
    """
    n = len(names)
    side = min(11.0, 2.2 + 0.42 * n)
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if n <= NUMBERED_LABELS:
        for row, column in np.argwhere(table):
            ink = "white" if shares[row, column] > 0.3 else "black"
            size = 7 if n <= 12 else 5
            axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", fontsize=size, color=ink)
    if n <= NAMED_LABELS:
        shown = [_cut(name, 20) for name in names]
        axes.set_xticks(range(n), shown, fontsize=8, rotation=90 if max(map(len, shown)) > 3 else 0)
        axes.set_yticks(range(n), shown, fontsize=8)
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)  # a label such as "$5" is no formula
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("label of the cluster", fontsize=9)
    axes.set_ylabel("label", fontsize=9)
    axes.spines[:].set_visible(False)
    return figure


def render(figure: Figure, kind: str = "png") -> bytes:
    """Draw a figure into bytes.

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
        # a label in a script that the font lacks is drawn as boxes; that is no reason to stop a job
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi="figure")
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, published by one rename.

    Parameters
    ----------
    figure
    path
        File whose suffix says the kind: ``.png``, ``.svg`` or ``.pdf``.
    """
    path = location(path)
    with publish(path) as partial:
        partial.write_bytes(render(figure, path.suffix.removeprefix(".").lower()))


def _sheet(tiles: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int, width: int) -> Figure:
    """Compose RGB tiles of at most ``width`` pixels into one image, and write the captions over them."""
    rows = max(1, -(-len(tiles) // max(columns, 1)))
    height = max((tile.shape[0] for tile in tiles), default=1)
    cell_width, cell_height = width + _GAP, _CAPTION_HEIGHT + height + _GAP
    # opaque RGBA: from RGB, matplotlib makes float64 of all pixels and takes twice the time
    sheet = np.full((_GAP + rows * cell_height, _GAP + max(columns, 1) * cell_width, 4), 255, np.uint8)

    # The axes cover the figure and one unit is one pixel: the sheet is drawn as it is, without resampling.
    # The thousandth keeps 29 / 200 * 200 from being cut to 28 pixels.
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
            _cut(caption, width // _CHARACTER),
            fontsize=_CAPTION,
            color="black",
            ha="center",
            va="baseline",
            parse_math=False,  # a label such as "$5" is no formula
        )
    axes.imshow(sheet, extent=(0, sheet.shape[1], sheet.shape[0], 0), interpolation="nearest", aspect="auto")
    return figure


def _fit(image: NDArray[np.uint8], side: int, *, mix: bool = True) -> NDArray[np.uint8]:
    """RGB pixels of an image whose longer side is ``side`` at most, enlarged by a whole factor only."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    factor = side // max(picture.size)
    if factor >= 1:
        size = (picture.width * factor, picture.height * factor)
        return np.asarray(picture.resize(size, Image.Resampling.NEAREST))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS if mix else Image.Resampling.NEAREST)
    return np.asarray(picture)


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, str]) -> None:
    """Draw some metrics over K, one colour and marker an algorithm, one line style a metric."""
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    for number, algorithm in enumerate(algorithms):
        for metric, style in lines.items():
            points = sorted(
                (row["k"], row[metric]) for row in rows if row["algorithm"] == algorithm and row.get(metric) is not None
            )
            if not points:
                continue
            part = {"accuracy_train": ", train", "accuracy_holdout": ", held-out"}.get(metric, "")
            axes.plot(
                *zip(*points, strict=True),
                style,
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                markerfacecolor="white" if style == "--" else None,
                label=algorithm + part,
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


def _cut(text: str, length: int) -> str:
    """One printable line of at most ``length`` characters; what is too long loses its middle."""
    text = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "backslashreplace").decode())
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return text[: length - 1 - tail] + "…" + text[len(text) - tail :]
