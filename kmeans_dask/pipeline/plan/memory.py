"""What a job takes of a worker's memory, stage by stage, worked out before it starts; and the chunks that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kmeans_dask.config.sections import Config, Quantize
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.reduction import FAN_IN

MIB = 2**20

PROCESS = 385 * MIB
"""A worker process with what ingest and fit import, and the kernels of fit compiled: 377 MiB after digits of MNIST."""
EVALUATING = 35 * MIB
"""What evaluate imports and compiles beside that."""
COMPILING = 105 * MIB
"""What numba takes to compile the kernels of quantize and does not give back, in a process that finds none compiled:
LFW 94 MiB, colour photos 124 MiB more than with compiled ones."""
LEFT = 105 * MIB
"""What a process that has fitted and evaluated has left of that when it quantizes, with their kernels."""
_SHARE = 0.8
"""Of a worker's limit, above which Dask gives it no more tasks."""
KEPT_SHARE = 0.4
"""Rows are kept in the workers' memory if they take at most this share of it; Dask spills at 0.6."""
_COPIES = 3
"""Of a chunk while it is written: the block, the shard that is put together, and its compressed inner chunks."""
_DECODED = 11
"""Bytes a pixel of an image of any mode while it is decoded and brought to 8 bits; 549 MiB for 50 megapixels."""
_REMAPPED = 12
"""Bytes a pixel while it is decoded, counted, painted and encoded; photos take 8, with transparency 12."""
_MORE_REMAPPED = {"webp": 30, "floyd-steinberg": 20, "ordered": 34, "many colours": 10}
"""What the encoder of WebP, dithering, and more than 256 colours add, bytes a pixel."""
_COLOUR, _WEIGHED_COLOUR = 36, 80
"""Bytes a distinct colour; and where the fit is not the plain one: in OKLab, of a sample, protecting rare ones."""
_BYTES_A_COLOUR = 3
"""Of the file, at least: one of noise has 3.6 bytes for each distinct colour, photos have 3 to 8."""
_COLOURS = 2**24
_MERGED, _MERGED_COLOURS, _BYTES_A_MERGED_COLOUR = 60, 2**23, 6
"""Bytes a distinct colour of all images while tables of them are merged: half a million of 30 photos, 0.7 of 60. Rough:
images of noise may have more."""
PIXELS_A_BYTE = 8
"""Of files whose headers are not read. A JPEG of one bit a pixel is a bad one; few files hold more pixels a byte."""


class Largest(NamedTuple):
    """What the images of a job have at most, as far as it is known before they are read."""

    bytes: int
    """Of a file."""
    pixels: int
    together: int
    """Bytes of all files."""


class Demand(NamedTuple):
    """Something that takes memory of a worker."""

    stage: str
    what: str
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a worker.

    Attributes
    ----------
    demands : sequence of Demand
        Beside the process itself.
    workers : Workers
    """

    demands: Sequence[Demand]
    workers: Workers

    def total(self, stage: str) -> int:
        """Bytes of a worker in a stage at most, with the process itself."""
        return PROCESS + sum(demand.bytes for demand in self.demands if demand.stage == stage)

    @property
    def allowed(self) -> int:
        """Bytes that a worker may take; 0: as many as it likes."""
        return int(_SHARE * self.workers.limit)

    def check(self) -> None:
        """Refuse a plan that does not fit.

        Raises
        ------
        UserError
            A stage takes more than the workers have: which, for what, and what to change.
        """
        for stage in dict.fromkeys(demand.stage for demand in self.demands):
            total = self.total(stage)
            if self.allowed and total > self.allowed:
                parts = [("the process", PROCESS)] + [(d.what, d.bytes) for d in self.demands if d.stage == stage]
                told = ", ".join(f"{what} {_mib(size)}" for what, size in sorted(parts, key=lambda part: -part[1]))
                raise UserError(
                    f"{stage} takes {_mib(total)} of a worker, and {_mib(self.allowed)} of its "
                    f"{_mib(self.workers.limit)} may be used ({told}); give each worker "
                    f"{_mib(int(total / _SHARE) + MIB)}, fewer threads, smaller images or fewer clusters"
                )


def _mib(size: int) -> str:
    return f"{-(-size // MIB):,} MiB"


def row_bytes(config: Config) -> int:
    """Bytes of one item in the collection; 0 without the section ``ingest``."""
    if config.ingest is None:
        return 0
    height, width = config.ingest.size
    return height * width * (1 if config.ingest.mode == "L" else 3)


def decode_bytes(config: Config, largest: Largest) -> int:
    """Bytes that decoding the largest image takes, but of `input.max_pixels` at most."""
    return _DECODED * min(config.input.max_pixels, largest.pixels)


def paint_bytes(config: Config, largest: Largest) -> int:
    """Bytes that quantizing the largest image takes: its pixels, its distinct colours, its file."""
    assert config.quantize is not None
    pixels = min(config.input.max_pixels, largest.pixels)
    colours = min(pixels, largest.bytes // _BYTES_A_COLOUR, _COLOURS)
    return (
        _painted(config) * pixels
        + (_COLOUR if _is_plain(config.quantize) else _WEIGHED_COLOUR) * colours
        + largest.bytes
    )


def _painted(config: Config) -> int:
    """Bytes a pixel of an image that is quantized."""
    settings = config.quantize
    assert settings is not None
    told = (settings.format, settings.dither, "many colours" if max(settings.k or [1]) > 256 else "")
    return _REMAPPED + sum(_MORE_REMAPPED.get(each, 0) for each in told)


def _is_plain(settings: Quantize) -> bool:
    return settings.algorithm == "kmeans" and settings.space == "rgb" and settings.sample == 1 and settings.rare == 0


def chunk_limit(config: Config, workers: Workers, largest: Largest) -> float:
    """Return the bytes a chunk may have: `ingest.chunk_mib`, or less where the workers have less memory.

    Parameters
    ----------
    config
        With the section ``ingest``.
    workers
        Of the cluster.
    largest
        Of the images.

    Returns
    -------
    float
        A single slice of the kernels may be larger; results do not depend on it.
    """
    assert config.ingest is not None
    wanted = config.ingest.chunk_mib * MIB
    if not workers.limit:
        return wanted
    room = _SHARE * workers.limit - PROCESS - workers.threads * decode_bytes(config, largest)
    return min(wanted, max(room / 2, 0) / (_COPIES * workers.threads))


def plan_memory(config: Config, workers: Workers, n_items: int, chunk_rows: int, largest: Largest) -> MemoryPlan:
    """Work out what each stage of a config takes of a worker.

    Parameters
    ----------
    config
        Checked config.
    workers
        Of the cluster.
    n_items
        Items of the collection.
    chunk_rows
        Items a chunk.
    largest
        Of the images.

    Returns
    -------
    MemoryPlan
        Results of tasks, of which at most `reduction.FAN_IN` and one a thread are in a worker, are among the demands.
    """
    demands: list[Demand] = []
    row, threads = row_bytes(config), workers.threads
    chunk, decoding = chunk_rows * row, threads * decode_bytes(config, largest)
    if config.ingest:
        demands += [
            Demand("ingest", "chunks", threads * _COPIES * chunk),
            Demand("ingest", "decoding", decoding),
        ]
    if config.fit:
        n_centres = len(config.fit.algorithm) * sum(config.fit.ks) * (2 if config.fit.k == "auto" else 1)
        n_models = len(config.fit.algorithm) * len(config.fit.ks)
        raw = config.features is None or config.features.raw
        width = (config.features.pca if config.features else None) or row
        wide = width if raw else 4 * width  # bytes of a row that is fitted
        slices = threads * slice_rows(width) * (4 * width + 4 * n_centres)
        kept = n_items * wide
        is_kept = workers.limit == 0 or kept <= KEPT_SHARE * workers.limit * workers.n
        # what tasks return and one of the tree combines: sums of bytes are int32, others float64
        sums = (4 if raw else 8) * n_centres * width
        results = (min(FAN_IN, -(-n_items // max(chunk_rows, 1))) + 1 + threads) * sums
        read = threads * (2 * chunk + (0 if raw else chunk_rows * wide))
        demands += [
            Demand("fit", "chunks that are read", read),
            Demand("fit", "rows that are kept", -(-kept // workers.n) + chunk_rows * wide if is_kept else 0),
            Demand("fit", "slices", slices),
            Demand("fit", "centres and their sums", results + 3 * 4 * n_centres * width),
        ]
        if config.evaluate is not None:
            demands += [
                Demand("evaluate", "imports and kernels", EVALUATING),
                Demand("evaluate", "chunks that are read", read),
                Demand("evaluate", "slices", slices),
                Demand("evaluate", "clusters of the items", threads * 48 * n_models * chunk_rows),
                Demand("evaluate", "centres and their sums", results + 3 * 4 * n_centres * width),
            ]
    if config.quantize:
        demands += [
            Demand("quantize", "what fit and evaluate have left", LEFT if config.fit else 0),
            Demand("quantize", "kernels that are compiled", COMPILING),
            Demand("quantize", "decoding and painting", threads * paint_bytes(config, largest)),
        ]
        if config.quantize.palette == "shared":
            colours = min(largest.together // _BYTES_A_MERGED_COLOUR, _MERGED_COLOURS)
            demands += [Demand("quantize", "colour tables that are merged", _MERGED * colours)]
    return MemoryPlan(tuple(demands), workers)


def megapixels_that_fit(config: Config, plan: MemoryPlan, stage: str) -> float:
    """Size of one image for which a worker has room in a stage, in megapixels; larger ones may be set aside."""
    most = config.input.max_pixels / 1e6
    if not plan.allowed:
        return most
    other = sum(d.bytes for d in plan.demands if d.stage == stage and not d.what.startswith("decoding"))
    room = (plan.allowed - PROCESS - other) / plan.workers.threads
    return min(most, max(room, 0) / (_DECODED if stage == "ingest" else _painted(config)) / 1e6)
