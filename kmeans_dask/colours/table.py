"""Colour tables: the distinct colours of a set of pixels and how often each occurs; nearest palette colours.

K-Means on a colour table, weighted by the counts, is exactly K-Means on the pixels: equal pixels always share a
cluster. A photo of 62,500 pixels has about 20,000 colours; a whole folder has at most 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import assign_3d

jit = numba.njit(nogil=True, cache=True)
jit_fast = numba.njit(nogil=True, cache=True, fastmath=True)
"""As `jit`, but sums may be reordered, which lets LLVM use the vector units in reductions."""

# unsigned throughout: numba tests signed indices for being negative, and mixing signs promotes to float64
_1, _8, _16, _HASH = np.uint32(1), np.uint32(8), np.uint32(16), np.uint32(2654435761)  # Knuth's multiplier
_FREE, _32 = np.uint64(0), np.uint64(32)


@dataclass(frozen=True)
class ColourTable:
    """Distinct colours and the number of pixels of each.

    Attributes
    ----------
    colours : (m, 3) uint8
        Distinct RGB colours, sorted by red, then green, then blue.
    counts : (m,) int64 or float64
        Number of pixels of each colour, at least 1; or the weight of the colour in a fit, above 0.
    """

    colours: NDArray[np.uint8]
    counts: NDArray[np.int64] | NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of distinct colours."""
        return len(self.colours)

    @property
    def is_grey(self) -> bool:
        """Whether every colour has equal red, green and blue."""
        red, green, blue = self.colours.T
        return np.array_equal(red, green) and np.array_equal(green, blue)

    @property
    def points(self) -> NDArray[np.float32]:
        """The colours as (3, m) float32 with one contiguous row per channel, the layout the kernels expect."""
        return np.ascontiguousarray(self.colours.T, np.float32)


def colour_table(pixels: NDArray[np.uint8]) -> ColourTable:
    """Count the distinct colours of an image or a stack of images.

    Parameters
    ----------
    pixels : (height, width, 3) or (n, height, width, 3), or (height, width) or (height, width, 1) uint8
        RGB or grey.

    Returns
    -------
    ColourTable

    Raises
    ------
    ValueError
        The array is not uint8, is empty or has another shape.
    """
    return index_colours(pixels)[0]


def index_colours(pixels: NDArray[np.uint8]) -> tuple[ColourTable, NDArray[np.int32]]:
    """Count the distinct colours, and return the table row of every pixel.

    Parameters
    ----------
    pixels : (height, width, 3) or (n, height, width, 3), or (height, width) or (height, width, 1) uint8
        RGB or grey.

    Returns
    -------
    table : ColourTable
    index : (n_pixels,) int32
        Table row of each pixel, in C order.

    Raises
    ------
    ValueError
        The array is not uint8, is empty or has another shape.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"pixels have dtype {pixels.dtype}, shape {pixels.shape}; give uint8 and at least one pixel")
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        keys, counts, index = _index_grey(np.ascontiguousarray(pixels).reshape(-1))
    elif pixels.ndim >= 3 and pixels.shape[-1] == 3:
        keys, counts, index = _index_rgb(np.ascontiguousarray(pixels).reshape(-1, 3))
    else:
        raise ValueError(f"pixels have shape {pixels.shape}; give (height, width) or (height, width, 3)")
    return ColourTable(_unpack(keys), counts), index


def merge(tables: Sequence[ColourTable]) -> ColourTable:
    """Merge colour tables by adding the counts of equal colours.

    Parameters
    ----------
    tables
        One or more tables.

    Returns
    -------
    ColourTable
        At most 2^24 colours (184 MB), however many tables are merged.
    """
    if len(tables) == 1:
        return tables[0]
    keys, counts = _merge(
        np.concatenate([_pack(table.colours) for table in tables]),
        np.concatenate([table.counts for table in tables]),
    )
    return ColourTable(_unpack(keys), counts)


def nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the nearest centre of every colour; ties go to the lowest index.

    Parameters
    ----------
    points : (3, m) float32
        Colours, one row per channel.
    centres : (k, 3) float32

    Returns
    -------
    labels : (m,) int32
    squared : (m,) float32
        Squared distance to that centre; exact if all values are bytes, since integers below 2^24 fit float32.
    """
    labels = np.empty(points.shape[1], np.int32)
    squared = np.empty(points.shape[1], np.float32)
    assign_3d(points, centres, labels, squared)
    return labels, squared


def expand(labels: NDArray[np.int32], index: NDArray[np.int32]) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Give every pixel the label of its colour.

    Parameters
    ----------
    labels : (m,) int32
        Label of each row of a colour table.
    index : (n_pixels,) int32
        Table row of each pixel, from `index_colours`.

    Returns
    -------
    (n_pixels,) uint8, or int32 if any label exceeds 255
    """
    return _take(labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels, index)


def mean_squared_error(table: ColourTable, squared: NDArray[np.float32]) -> float:
    """Average the squared distance to the palette over all pixels of a table.

    Parameters
    ----------
    table
        Colour table of an image.
    squared : (m,) float32
        Squared distance of each colour to its palette colour, summed over the channels; from `nearest`.

    Returns
    -------
    float
    """
    return float(weighted_sum(squared, table.counts) / table.counts.sum())


def psnr(mse: float) -> float:
    """Convert a mean squared RGB distance to a peak signal-to-noise ratio in dB; infinite for 0.

    As usual for images, the error is averaged over the three channels: ``10 log10(255^2 / (mse / 3))``.
    """
    return float("inf") if mse == 0 else float(10 * np.log10(3 * 255.0**2 / mse))


@jit
def weighted_sum(values, weights):  # type: ignore[no-untyped-def]
    """Sum values times weights in float64, sequentially; BLAS would start threads for this."""
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i]) * weights[i]
    return total


def _pack(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Pack (m, 3) uint8 colours into integers 0xRRGGBB."""
    red, green, blue = colours.astype(np.uint32).T
    return (red << np.uint32(16)) | (green << np.uint32(8)) | blue


def _unpack(keys: NDArray[np.uint32]) -> NDArray[np.uint8]:
    colours = np.empty((len(keys), 3), np.uint8)
    for channel, shift in enumerate((16, 8, 0)):
        colours[:, channel] = keys >> np.uint32(shift)
    return colours


@jit
def _index_grey(pixels):  # type: ignore[no-untyped-def]
    histogram = np.zeros((4, 256), np.int64)  # four: runs of equal pixels would stall on a single one
    for i in range(len(pixels)):
        histogram[i & 3, pixels[i]] += 1
    counts = histogram.sum(axis=0)
    levels = np.flatnonzero(counts)
    rank = np.zeros(256, np.int32)
    for row in range(len(levels)):
        rank[levels[row]] = row
    index = np.empty(len(pixels), np.int32)
    for i in range(len(pixels)):
        index[i] = rank[pixels[i]]
    return (levels * 0x010101).astype(np.uint32), counts[levels], index


@jit
def _index_rgb(pixels):  # type: ignore[no-untyped-def]
    bits = 6
    while bits < 16 and 1 << bits < 2 * len(pixels):  # half a megabyte of slots at most to begin with, less for icons
        bits += 1
    keys, index = np.empty(1 << (bits - 1), np.uint32), np.empty(len(pixels), np.int32)
    slots, done, m = _slots(bits, keys[:0]), 0, 0
    while True:
        done, m = _number(pixels, done, slots, keys, m, index)
        if done == len(pixels):
            break
        bits += 1
        keys = np.append(keys, np.empty_like(keys))
        slots = _slots(bits, keys[:m])
    keys = keys[:m]
    order = _order(keys)
    rank, counts = np.empty(m, np.int32), np.zeros(m, np.int64)
    for row in range(m):
        rank[order[row]] = row
    for i in range(len(pixels)):
        index[i] = rank[index[i]]
        counts[index[i]] += 1
    return keys[order], counts, index


@jit
def _number(pixels, done, slots, keys, m, index):  # type: ignore[no-untyped-def]
    """Assign numbers to colours in order of appearance, by a linear-probing hash table, until `keys` is full.

    A slot holds (colour + 1) << 32 | number, or 0 if it is free; at most half of the slots are taken. Returns the
    number of pixels processed and the number of colours.
    """
    mask, shift = np.uint32(len(slots) - 1), np.uint32(32 - np.int64(np.log2(len(slots))))
    number, full = np.uint32(m), np.uint32(len(keys))
    for i in range(done, len(pixels)):
        key = np.uint32(pixels[i, 0]) << _16 | np.uint32(pixels[i, 1]) << _8 | np.uint32(pixels[i, 2])
        tag = np.uint64(key + _1)
        slot = np.uint32(key * _HASH) >> shift
        taken = slots[slot]
        while taken >> _32 != tag and taken != _FREE:
            slot = np.uint32(slot + _1) & mask
            taken = slots[slot]
        if taken == _FREE:
            if number == full:
                return i, np.int64(number)
            taken = tag << _32 | np.uint64(number)
            slots[slot], keys[number] = taken, key
            number = np.uint32(number + _1)
        index[i] = np.uint32(taken)
    return len(pixels), np.int64(number)


@jit
def _slots(bits, keys):  # type: ignore[no-untyped-def]
    """Build a hash table of 2^bits slots for `_number`, holding `keys`."""
    mask, shift = np.uint32((1 << bits) - 1), np.uint32(32 - bits)
    slots = np.zeros(1 << bits, np.uint64)
    for number in range(len(keys)):
        slot = np.uint32(keys[number] * _HASH) >> shift
        while slots[slot] != _FREE:
            slot = np.uint32(slot + _1) & mask
        slots[slot] = np.uint64(keys[number] + _1) << _32 | np.uint64(number)
    return slots


@jit
def _order(keys):  # type: ignore[no-untyped-def]
    """Argsort 24-bit keys with a stable radix sort of two 12-bit passes, ten times faster than a comparison sort."""
    order = np.arange(len(keys)).astype(np.uint32)
    for shift in (np.uint32(0), np.uint32(12)):
        start = np.zeros(4097, np.int64)
        for key in keys:
            start[(key >> shift & np.uint32(4095)) + _1] += 1
        start = np.cumsum(start)
        sorted_order = np.empty_like(order)
        for row in order:
            digit = keys[row] >> shift & np.uint32(4095)
            sorted_order[start[digit]] = row
            start[digit] += 1
        order = sorted_order
    return order


@jit
def _merge(keys, counts):  # type: ignore[no-untyped-def]
    order = _order(keys)
    merged_keys, merged_counts = np.empty_like(keys), np.zeros_like(counts)
    m = 0
    for i in range(len(order)):
        key = keys[order[i]]
        if i == 0 or merged_keys[m - 1] != key:
            merged_keys[m] = key
            m += 1
        merged_counts[m - 1] += counts[order[i]]
    return merged_keys[:m].copy(), merged_counts[:m].copy()


@jit
def _take(values, index):  # type: ignore[no-untyped-def]
    taken = np.empty(len(index), values.dtype)
    for i in range(len(index)):
        taken[i] = values[index[i]]
    return taken
