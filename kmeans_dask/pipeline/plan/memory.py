"""The memory that each stage of a job takes on a worker, computed before it starts, and the chunks that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kmeans_dask.colours.dither import DITHER_BYTES
from kmeans_dask.colours.remap import FORMAT_BYTES
from kmeans_dask.config.sections import Config, Quantize
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.reduction import FAN_IN

MIB = 2**20

PROCESS = 385 * MIB
"""Size of a worker process after the imports of ingest and fit, with fit's kernels compiled; 377 MiB on MNIST."""
EVALUATING = 35 * MIB
"""What evaluate imports and compiles on top of that."""
COMPILING = 105 * MIB
"""What numba needs to compile the kernels of quantize, and does not release, in a process without a cache of compiled
kernels: on LFW 94 MiB more than with a cache, on colour photos 124 MiB."""
RETAINED = 105 * MIB
"""What fit and evaluate leave behind in a process that then quantizes, kernels included."""
_USABLE_FRACTION = 0.8
"""Fraction of a worker's memory limit above which Dask assigns it no more tasks."""
KEPT_FRACTION = 0.4
"""Rows are kept in the memory of the workers if they take at most this fraction of it; Dask spills at 0.6."""
_COPIES = 3
"""Copies of a chunk while it is written: the block, the assembled shard, and its compressed inner chunks."""
_DECODED = 11
"""Bytes per pixel while an image of any mode is decoded and converted to 8 bits; 549 MiB for 50 megapixels."""
_REMAPPED = 12
"""Bytes per pixel while an image is decoded, counted, remapped and encoded; photos take 8, with transparency 12."""
_MANY_COLOURS = 10
"""What more than 256 colours add, in bytes per pixel."""
_COLOUR, _WEIGHED_COLOUR = 36, 80
"""Bytes per distinct colour: in the default fit, and with OKLab, a sample, or protection of rare colours."""
_BYTES_PER_COLOUR = 3
"""Least bytes of a file per distinct colour: noise has 3.6, photos have 3 to 8."""
_COLOURS = 2**24
"""Number of distinct RGB colours."""
_MERGED, _MERGED_COLOURS, _BYTES_PER_MERGED_COLOUR = 60, 2**23, 6
"""While the colour tables of all images are merged: bytes per distinct colour, the most colours that are assumed, and
bytes of files per distinct colour. 30 photos have 0.5 million colours, 60 have 0.7. Rough: noise may have more."""
PIXELS_PER_BYTE = 8
"""Assumed for files whose headers are not read: one bit per pixel is a poor JPEG, and few files are denser."""


class Largest(NamedTuple):
    """Upper bounds for the images of a job, as far as they are known before they are read."""

    bytes: int
    """Size of the largest file."""
    pixels: int
    """Pixels of the largest image."""
    total_bytes: int
    """Total size of all files."""


class Demand(NamedTuple):
    """A use of memory on a worker."""

    stage: str
    what: str
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory that a job needs per worker.

    Attributes
    ----------
    demands : sequence of Demand
        Uses of memory in addition to the process itself.
    workers : Workers
        Number, threads and memory limit of the workers.
    """

    demands: Sequence[Demand]
    workers: Workers

    def total(self, stage: str) -> int:
        """Return the peak bytes of a worker in a stage, including the process itself."""
        return PROCESS + sum(demand.bytes for demand in self.demands if demand.stage == stage)

    @property
    def allowed(self) -> int:
        """Bytes that a worker may use; 0 means no limit."""
        return int(_USABLE_FRACTION * self.workers.limit)

    def check(self) -> None:
        """Refuse a plan that does not fit.

        Raises
        ------
        UserError
            A stage needs more than the workers have; the message names the stage, its largest uses, and what to change.
        """
        for stage in dict.fromkeys(demand.stage for demand in self.demands):
            total = self.total(stage)
            if self.allowed and total > self.allowed:
                parts = [("the process", PROCESS)] + [(d.what, d.bytes) for d in self.demands if d.stage == stage]
                uses = ", ".join(f"{what} {_mib(size)}" for what, size in sorted(parts, key=lambda part: -part[1]))
                raise UserError(
                    f"{stage} needs {_mib(total)} per worker, but only {_mib(self.allowed)} of its "
                    f"{_mib(self.workers.limit)} may be used ({uses}); give each worker "
                    f"{_mib(int(total / _USABLE_FRACTION) + MIB)}, fewer threads, smaller images or fewer clusters"
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
    """Bytes for decoding the largest image that `input.max_pixels` admits."""
    return _DECODED * min(config.input.max_pixels, largest.pixels)


def remap_bytes(config: Config, largest: Largest) -> int:
    """Bytes for quantizing the largest image: its pixels, its distinct colours, its file."""
    assert config.quantize is not None
    pixels = min(config.input.max_pixels, largest.pixels)
    colours = min(pixels, largest.bytes // _BYTES_PER_COLOUR, _COLOURS)
    return (
        _remap_bytes_per_pixel(config.quantize) * pixels
        + (_COLOUR if _is_plain(config.quantize) else _WEIGHED_COLOUR) * colours
        + largest.bytes
    )


def _remap_bytes_per_pixel(settings: Quantize) -> int:
    many_colours = _MANY_COLOURS if max(settings.k or [1]) > 256 else 0
    return _REMAPPED + FORMAT_BYTES[settings.format] + DITHER_BYTES[settings.dither] + many_colours


def _is_plain(settings: Quantize) -> bool:
    return settings.algorithm == "kmeans" and settings.space == "rgb" and settings.sample == 1 and settings.rare == 0


def chunk_limit(config: Config, workers: Workers, largest: Largest) -> float:
    """Return the largest size of a chunk in bytes: `ingest.chunk_mib`, or less where workers have little memory.

    Parameters
    ----------
    config
        Checked config with the section ``ingest``.
    workers
        Number, threads and memory limit of the workers.
    largest
        Bounds for the images.

    Returns
    -------
    float
        Bytes; results do not depend on it. A chunk holds at least one slice of the kernels, even if that is larger.
    """
    assert config.ingest is not None
    wanted = config.ingest.chunk_mib * MIB
    if not workers.limit:
        return wanted
    available = _USABLE_FRACTION * workers.limit - PROCESS - workers.threads * decode_bytes(config, largest)
    return min(wanted, max(available / 2, 0) / (_COPIES * workers.threads))


def plan_memory(config: Config, workers: Workers, n_items: int, chunk_rows: int, largest: Largest) -> MemoryPlan:
    """Compute the memory that each stage of a config takes on a worker.

    Parameters
    ----------
    config
        Checked config.
    workers
        Number, threads and memory limit of the workers.
    n_items
        Items of the collection.
    chunk_rows
        Items per chunk.
    largest
        Bounds for the images.

    Returns
    -------
    MemoryPlan
        Includes results of tasks: a worker holds at most `reduction.FAN_IN` of them, and one per thread, at a time.
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
        n_features = (config.features.pca if config.features else None) or row
        fit_row = n_features if raw else 4 * n_features  # bytes of a fitted row
        slices = threads * slice_rows(n_features) * (4 * n_features + 4 * n_centres)
        all_rows = n_items * fit_row
        is_kept = workers.limit == 0 or all_rows <= KEPT_FRACTION * workers.limit * workers.n
        # what tasks return, and what a node of the tree combines: sums of bytes are int32, others float64
        sums = (4 if raw else 8) * n_centres * n_features
        results = (min(FAN_IN, -(-n_items // max(chunk_rows, 1))) + 1 + threads) * sums
        read = threads * (2 * chunk + (0 if raw else chunk_rows * fit_row))
        demands += [
            Demand("fit", "chunks being read", read),
            Demand("fit", "rows kept in memory", -(-all_rows // workers.n) + chunk_rows * fit_row if is_kept else 0),
            Demand("fit", "slices", slices),
            Demand("fit", "centres and their sums", results + 3 * 4 * n_centres * n_features),
        ]
        if config.evaluate is not None:
            demands += [
                Demand("evaluate", "imports and kernels", EVALUATING),
                Demand("evaluate", "chunks being read", read),
                Demand("evaluate", "slices", slices),
                Demand("evaluate", "clusters of the items", threads * 48 * n_models * chunk_rows),
                Demand("evaluate", "centres and their sums", results + 3 * 4 * n_centres * n_features),
            ]
    if config.quantize:
        demands += [
            Demand("quantize", "left behind by fit and evaluate", RETAINED if config.fit else 0),
            Demand("quantize", "compiling kernels", COMPILING),
            Demand("quantize", "decoding and remapping", threads * remap_bytes(config, largest)),
        ]
        if config.quantize.palette == "shared":
            colours = min(largest.total_bytes // _BYTES_PER_MERGED_COLOUR, _MERGED_COLOURS)
            demands += [Demand("quantize", "merging colour tables", _MERGED * colours)]
    return MemoryPlan(tuple(demands), workers)


def megapixels_that_fit(config: Config, plan: MemoryPlan, stage: str) -> float:
    """Return the largest image, in megapixels, that fits on a worker in a stage; larger ones may fail."""
    max_megapixels = config.input.max_pixels / 1e6
    if not plan.allowed:
        return max_megapixels
    other = sum(d.bytes for d in plan.demands if d.stage == stage and not d.what.startswith("decoding"))
    available = (plan.allowed - PROCESS - other) / plan.workers.threads
    per_pixel = _DECODED if stage == "ingest" or config.quantize is None else _remap_bytes_per_pixel(config.quantize)
    return min(max_megapixels, max(available, 0) / per_pixel / 1e6)
