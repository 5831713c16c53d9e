"""The sections of a job's config: every key with its type, default and allowed values.

Each of `ingest`, `fit`, `evaluate`, `quantize` and `report` configures the stage of that name; a stage whose section is
absent does not run. The docstrings of the fields are the config reference of the documentation.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from kmeans_dask.config.base import ONE_OR_MORE, Name, Section, as_list, distinct
from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.location import check_location

Init = Literal["k-means||", "k-means++", "random"]
Algorithm = Literal["kmeans", "minibatch"]


def _source_or_fraction(value: Any) -> Any:
    is_fraction = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1
    if not (value is None or isinstance(value, str) or is_fraction):
        raise ValueError("must be a folder or another source, or a fraction of the items above 0 and below 1")
    if isinstance(value, str) and value.startswith("pattern:"):
        _check_pattern(value)
    if isinstance(value, str) and value.startswith("column:") and "=" not in value:
        raise ValueError("must be column:NAME=VALUE, for example column:split=test")
    return value


def _standard_or_number(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if not (value == "standard" or is_number):
        raise ValueError("must be a number above 0, or standard")
    return value


def _labels(value: str) -> str:
    setting, _, argument = value.partition(":")
    if value not in ("folder", "none") and not (setting in ("pattern", "column", "json", "text") and argument):
        raise ValueError("must be folder, none, pattern:REGEX, column:NAME, json:KEY or text:ENDING")
    if setting == "pattern":
        _check_pattern(value)
    return value


def _check_pattern(value: str) -> None:
    try:
        re.compile(value.partition(":")[2])
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"invalid regular expression: {error}") from None


_KINDS = ("pixels", "hog", "colour-histogram", "file")


def _colour(value: Any) -> Any:
    if not (isinstance(value, str) and re.fullmatch("white|black|#[0-9A-Fa-f]{6}", value)):
        raise ValueError('must be white, black or "#rrggbb", quoted because # starts a YAML comment')
    return value


class Input(Section):
    """Where images and labels come from, and which items are held out."""

    path: Annotated[list[Name], Field(min_length=1), BeforeValidator(as_list)] | None = None
    """Source of the images: a folder, archive, array, table, list of paths, image or glob pattern, as a local path or a
    URL; or a list of these. Required unless `builtin` is given."""
    builtin: Literal["digits", "photos"] | None = None
    """Images bundled with scikit-learn, given instead of `path` and written to the run folder as ordinary files:
    ``digits`` (1,797 handwritten digits of 8x8 pixels) or ``photos`` (two photos)."""
    holdout: Annotated[str | float | None, BeforeValidator(_source_or_fraction)] = None
    """Items that are scored but never fitted: another source; a fraction of the items of each label, above 0 and below
    1; ``column:NAME=VALUE``, the items with this value in a column; or ``pattern:REGEX``, the items whose path matches.
    Default: all items are fitted."""
    holdout_column: str | None = None
    """`column` of the holdout source if it differs, for example ``x_test`` where `column` is ``x_train``. Default: the
    same as `column`."""
    holdout_labels: Annotated[str | None, AfterValidator(lambda value: value and _labels(value))] = None
    """`labels` of the holdout source if they differ, for example ``column:y_test``. Default: the same as `labels`."""
    labels: Annotated[str, AfterValidator(_labels)] = "folder"
    """Where the label of an item comes from. ``folder``: name of the folder that contains the image; images directly in
    the source have no label. ``none``: no labels. ``pattern:REGEX``: a regular expression searched for in the path; the
    label is the group named ``label``, else the first group, else the whole match. ``column:NAME``: a column of the
    source or of `table`. ``json:KEY``: a key of the JSON file of the same name next to the image. ``text:ENDING``: the
    content of the text file of the same name next to the image, for example ``text:cls`` for ``.cls`` files."""
    classes: Annotated[list[Name], AfterValidator(distinct)] = []
    """Names of all classes, in order; integer labels are indices into this list, from 0. Default: empty, the labels
    themselves are the class names."""
    include: Annotated[list[Name], BeforeValidator(as_list)] = []
    """Shell patterns of the paths that are items; ``*`` also matches ``/``. Default: empty, all files with the
    extension of an image format."""
    exclude: Annotated[list[Name], BeforeValidator(as_list)] = []
    """Shell patterns of paths to leave out; ``*`` also matches ``/``. A pattern that ends with ``/`` excludes
    everything below the folder, which is then not searched. Default: empty, nothing is excluded."""
    column: str | None = None
    """Name of the column of a table, or of the array of an .npz file or zarr group, that holds the images; for a CSV
    list, the column of paths. Default: ``images``, ``image`` or the only candidate; ``path`` for a CSV list."""
    range: tuple[float, float] | None = None
    """Values of black and white, ``[black, white]``, for images that are not 8-bit: arrays of any type, and greyscale
    files of 16 bits, 32 bits or floats. Default: determined from the data; for arrays once, from all arrays together,
    for files separately for each one."""
    table: str | None = None
    """CSV or Parquet file whose columns can be used in `labels` and `holdout`; joined to the items on its column
    ``path``. Default: only the columns of the source itself."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Maximum fraction of items (0-1) that may be unreadable; the job fails if more are."""
    max_pixels: int = Field(200_000_000, gt=0)
    """Maximum number of pixels of an image. Larger images are not decoded but recorded as failed, which protects the
    memory of the workers."""

    @model_validator(mode="after")
    def _consistent(self) -> Input:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give either path (a folder or another source) or builtin (digits or photos)")
        if (self.holdout_column or self.holdout_labels) and self.holdout_source is None:
            raise ValueError("holdout_column and holdout_labels require a holdout that is a source")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range must be [black, white] with black below white")
        reads_column = any(
            str(value).startswith("column:") for value in (self.labels, self.holdout, self.holdout_labels)
        )
        if self.table is not None and not reads_column:
            raise ValueError("table is only used by labels=column:NAME or holdout=column:NAME=VALUE: give one of them")
        return self

    @property
    def holdout_source(self) -> str | None:
        """The second source if `holdout` is one, else None."""
        is_source = isinstance(self.holdout, str) and not self.holdout.startswith(("column:", "pattern:"))
        return str(self.holdout) if is_source else None


class Ingest(Section):
    """Stage ingest: how an image becomes a row of the collection."""

    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
    """Size that every image is resized to, ``[height, width]`` in pixels, each 1-4096."""
    mode: Literal["L", "RGB"] = "RGB"
    """Colour mode of the collection: ``L``, one grey channel, or ``RGB``, three channels."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image of another aspect ratio is resized. ``stretch``: distorted to the size. ``crop``: scaled to cover
    the size, the centre is kept. ``pad``: scaled to fit into the size, the rest is filled with `background`."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "box"
    """Resampling filter of Pillow; ``box`` averages the source pixels that a target pixel covers."""
    background: Annotated[str, BeforeValidator(_colour)] = "white"
    """Colour under transparent pixels and around padded images: ``white``, ``black`` or ``"#rrggbb"``."""
    chunk_mib: float = Field(8.0, gt=0, le=1024)
    """Maximum size of a chunk in MiB of pixels, up to 1024. A chunk is one zarr shard on disk, one Dask task and one
    array in memory."""


class Features(Section):
    """What is clustered in place of raw pixels. The steps are applied in the order of these keys."""

    kind: str = "pixels"
    """What an image is described by: ``pixels``; ``hog``, a histogram of oriented gradients; ``colour-histogram``;
    ``file``, rows computed elsewhere; or ``package.module:function``, your own function."""
    path: str | None = None
    """File of precomputed features for kind ``file``: .npy, .zarr or .parquet, one row per item."""
    scale: Annotated[Literal["standard"] | float, BeforeValidator(_standard_or_number)] = 1.0
    """Divisor of the features: a number above 0, or ``standard`` to divide each feature by its standard deviation over
    the fitted rows."""
    centre: bool = False
    """Whether to subtract the mean of the fitted rows."""
    pca: int | None = Field(None, ge=1)
    """Number of principal components to keep, at least 1, computed from the fitted rows. PCA always removes the mean,
    whatever `centre` is. Default: no PCA."""
    normalize: Literal["none", "l2"] = "none"
    """``l2``: divide every row by its Euclidean length and use spherical K-Means. ``none``: keep rows as they are."""

    @model_validator(mode="after")
    def _consistent(self) -> Features:
        if self.kind not in _KINDS and not re.fullmatch(r"\w+(\.\w+)*:\w+", self.kind):
            raise ValueError(f"kind={self.kind!r}: must be {', '.join(_KINDS)} or package.module:function")
        if (self.kind == "file") != (self.path is not None):
            raise ValueError(
                "kind file requires the key path, a .npy, .zarr or .parquet file; other kinds do not use it"
            )
        return self

    @property
    def raw(self) -> bool:
        """Whether the features are the unchanged uint8 pixels."""
        return self == Features()


_CANDIDATES = 16
"""Maximum number of values of K that ``auto`` fits; together they cost about three times as much as the largest."""


class Fit(Section):
    """Stage fit: which models are fitted. Every algorithm is combined with every K."""

    k: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[list[Annotated[int, Field(ge=1)]], *ONE_OR_MORE, Tag("list")],
        Discriminator(lambda value: "auto" if value == "auto" else "list"),
    ]
    """Number of clusters K, at least 1, or a list of them; each K is fitted. ``auto``: candidates from `k_range` are
    fitted, and the best of them is chosen."""
    algorithm: Annotated[list[Algorithm], *ONE_OR_MORE] = ["kmeans"]
    """``kmeans``: every pass reads all rows. ``minibatch``: every step reads a sample of the rows. One or a list."""
    init: Init = "k-means||"
    """How the initial centres are chosen: ``k-means||`` (scalable k-means++), ``k-means++`` or ``random`` (random
    rows)."""
    n_init: int = Field(1, ge=1, le=100)
    """Number of restarts from different initial centres, 1-100; the fit with the lowest inertia is kept."""
    max_iter: int = Field(300, ge=1)
    """Maximum number of passes over the data, at least 1; not used by ``minibatch``."""
    tol: float = Field(1e-4, ge=0)
    """Tolerance of convergence, at least 0; not used by ``minibatch``. A fit ends when the sum of squared shifts of its
    centres is at most this fraction of the mean variance of the features, or when a pass lowers the inertia by less
    than three times this fraction."""
    engine: Literal["kmeans-dask", "dask-ml"] = "kmeans-dask"
    """Implementation of K-Means; ``dask-ml`` runs the original estimator for comparison."""
    k_range: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = [2, 64]
    """Smallest and largest K that ``auto`` tries, ``[minimum, maximum]``: every K between them, or 16 in geometric
    progression if there are more."""

    @property
    def ks(self) -> list[int]:
        """Every K that is fitted: those given, or the candidates of ``auto``.

        The candidates are all integers of the range, or about 16 in geometric progression.
        """
        if self.k != "auto":
            return self.k
        low, high = self.k_range
        if high - low < _CANDIDATES:
            return list(range(low, high + 1))
        return sorted({round(low * (high / low) ** (i / (_CANDIDATES - 1))) for i in range(_CANDIDATES)})

    @model_validator(mode="after")
    def _consistent(self) -> Fit:
        if self.k_range[0] >= self.k_range[1]:
            raise ValueError(f"k_range={self.k_range}: the minimum must be less than the maximum")
        if self.k == "auto" and self.engine == "dask-ml":
            raise ValueError("engine dask-ml does not support k=auto: give k as numbers")
        if self.engine == "dask-ml" and (self.algorithm != ["kmeans"] or self.init == "k-means++"):
            raise ValueError("engine dask-ml supports only algorithm kmeans, with init k-means|| or random")
        return self


class Evaluate(Section):
    """Stage evaluate: metrics, label issues, outliers and duplicates. It has no keys; write ``evaluate: {}``."""


class Quantize(Section):
    """Stage quantize: reduce every image to K colours."""

    k: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], *ONE_OR_MORE] | None = None
    """Number of colours, 1-65,536, or a list of them. Above 256 the files are RGB instead of indexed. Required unless
    `palette` is a file, which determines the number."""
    palette: str = "image"
    """``image``: a separate palette for each image. ``shared``: one palette for all images. Anything else is a palette
    file: .gpl, .json or an image."""
    weight: Literal["pixels", "images"] = "pixels"
    """What has equal weight in a shared palette: ``pixels``, every pixel, or ``images``, every image whatever its
    size."""
    algorithm: Algorithm = "kmeans"
    """``kmeans``: palettes are fitted in passes over all colours. ``minibatch``: on mini-batches of pixels."""
    init: Literal["k-means++", "k-means||", "random", "variance"] = "k-means++"
    """How the initial colours are chosen; ``variance`` splits clusters deterministically, without random draws."""
    sample: float = Field(1.0, gt=0, le=1)
    """Fraction of the pixels, above 0 and at most 1, that palettes are fitted on; every pixel is remapped."""
    space: Literal["rgb", "oklab"] = "rgb"
    """Colour space that distances are measured in. With ``oklab``, which is closer to perception, the error is reported
    in both spaces."""
    rare: float = Field(0.0, ge=0, le=1)
    """Protection of rare colours, 0-1. 0: every pixel has equal weight. 1: every region of colour space has equal
    weight, however few pixels it has."""
    dither: Literal["none", "floyd-steinberg", "ordered"] = "none"
    """Dithering. ``none``: every pixel gets its nearest palette colour, which minimizes the error."""
    format: Literal["png", "webp", "gif"] = "png"
    """File format of the quantized images: indexed PNG, lossless WebP, or GIF (at most 256 colours)."""
    palette_files: list[Literal["gpl", "json", "png"]] = []
    """Formats in which the palette of each image is also written. A shared palette is always written in all of them.
    Default: empty, palettes of images are not written."""

    @model_validator(mode="after")
    def _consistent(self) -> Quantize:
        from_file = self.palette not in ("image", "shared")
        if from_file and self.k is not None:
            raise ValueError(f"a palette file determines the number of colours: remove k (palette={self.palette!r})")
        if not from_file and self.k is None:
            raise ValueError("give k, the number of colours, for example [2, 6, 30]")
        if self.format == "gif" and self.k and max(self.k) > 256:
            raise ValueError(f"format gif supports at most 256 colours: use png or webp for k={max(self.k)}")
        if self.dither != "none" and self.space != "rgb":
            raise ValueError(f"dither {self.dither} supports only space rgb: use space rgb, or dither none")
        return self


class Report(Section):
    """Stage report: a self-contained HTML page with all results."""

    samples: int = Field(24, ge=1, le=500)
    """Number of images on the sample sheet, and of images shown before and after quantization, 1-500."""


class Config(Section):
    """The whole config of a job."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: letters, digits, ``.``, ``_`` and ``-``, starting with a letter or digit. The run folder is
    ``<output>/<name>``."""
    output: Annotated[str, AfterValidator(check_location)] = "runs"
    """Folder that contains the run folders: a local path, or a URL in an object store (``s3://``, ``gs://``, ``az://``
    or ``abfs://``)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of all random draws, 0 to 4,294,967,295. The same seed gives the same result for any number of workers."""
    input: Input
    """Images and labels; required."""
    ingest: Ingest | None = None
    """Collect the images in one array of equal size and mode. Default: skipped."""
    features: Features | None = None
    """Features to cluster. Default: raw pixels."""
    fit: Fit | None = None
    """Fit K-Means models; requires `ingest`. Default: skipped."""
    evaluate: Evaluate | None = None
    """Score the models and find items that stand out; requires `fit`. Default: skipped."""
    quantize: Quantize | None = None
    """Reduce the number of colours of every image. Default: skipped."""
    report: Report | None = None
    """Write the HTML report. Default: skipped."""
    cluster: Cluster = Cluster()
    """Where the tasks run. Default: worker processes on this machine, one per core."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.fit and not self.ingest:
            raise ValueError("fit reads the collection: add the section ingest")
        if self.evaluate and not self.fit:
            raise ValueError("evaluate reads the models: add the section fit")
        if self.features and not self.fit:
            raise ValueError("features are read by fit: add the section fit")
        if self.features and self.features.normalize == "l2" and self.fit:
            self._check_spherical(self.fit)
        if not (self.ingest or self.quantize):
            raise ValueError("nothing to do: add the section ingest or quantize")
        return self

    @staticmethod
    def _check_spherical(fit: Fit) -> None:
        if fit.algorithm != ["kmeans"] or fit.engine != "kmeans-dask":
            raise ValueError(
                "features.normalize=l2 makes K-Means spherical: choose algorithm kmeans and engine kmeans-dask"
            )
