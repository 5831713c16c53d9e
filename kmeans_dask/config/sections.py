"""The sections of a job's config: every key with its type, its default and what is allowed.

Every section is one stage; a stage whose section is absent is not run.
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

from kmeans_dask.config.base import ONE_OR_MORE, Name, Section, as_list, check_location, distinct
from kmeans_dask.config.cluster import Cluster

Init = Literal["k-means||", "k-means++", "random"]
Algorithm = Literal["kmeans", "minibatch"]


def _folder_or_share(value: Any) -> Any:
    is_share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1
    if not (value is None or isinstance(value, str) or is_share):
        raise ValueError("allowed are a folder or another source, or a share of the items above 0 and below 1")
    if isinstance(value, str) and value.startswith("pattern:"):
        _check_pattern(value)
    if isinstance(value, str) and value.startswith("column:") and "=" not in value:
        raise ValueError("write the value that is held out, for example column:split=test")
    return value


def _standard_or_number(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if not (value == "standard" or is_number):
        raise ValueError("allowed are a number above 0 that is divided by, or standard")
    return value


def _labels(value: str) -> str:
    setting, _, argument = value.partition(":")
    if value not in ("folder", "none") and not (setting in ("pattern", "column", "json", "text") and argument):
        raise ValueError("allowed are folder, none, pattern:REGEX, column:NAME, json:KEY and text:ENDING")
    if setting == "pattern":
        _check_pattern(value)
    return value


def _check_pattern(value: str) -> None:
    try:
        re.compile(value.partition(":")[2])
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None


_KINDS = ("pixels", "hog", "colour-histogram", "file")


def _colour(value: Any) -> Any:
    if not (isinstance(value, str) and re.fullmatch("white|black|#[0-9A-Fa-f]{6}", value)):
        raise ValueError('allowed are white, black or "#rrggbb", in quotes because # begins a comment')
    return value


class Input(Section):
    """Where the images and their labels come from."""

    path: Annotated[list[Name], Field(min_length=1), BeforeValidator(as_list)] | None = None
    """Folder, archive, array, table, list of paths, image or pattern, here or as a URL; one or several."""
    builtin: Literal["digits", "photos"] | None = None
    """Images that come with scikit-learn, written out as a folder: 1,797 digits of 8x8, or two photos."""
    holdout: Annotated[str | float | None, BeforeValidator(_folder_or_share)] = None
    """Scored, never fitted: a second source; a share of the items of each label (0-1); ``column:NAME=VALUE``, the items
    with that value; or ``pattern:REGEX``, those with such a path."""
    holdout_column: str | None = None
    """As `column`, of a holdout that is a source, where it is another one: ``x_test`` beside ``x_train``."""
    holdout_labels: Annotated[str | None, AfterValidator(lambda value: value and _labels(value))] = None
    """As `labels`, of a holdout that is a source, where they are told otherwise: ``column:y_test``."""
    labels: Annotated[str, AfterValidator(_labels)] = "folder"
    """``folder``: the name of the folder that an image lies in. ``none``. ``pattern:REGEX``: its group ``label`` or
    first group, on the path. ``column:NAME``: of the source, or of `table`. ``json:KEY``: of a JSON file beside it.
    ``text:ENDING``: that of a text file beside it, for example ``text:cls``."""
    classes: Annotated[list[Name], AfterValidator(distinct)] = []
    """Names of the classes in their order; labels that are numbers are positions in it, from 0."""
    include: Annotated[list[Name], BeforeValidator(as_list)] = []
    """Shell patterns of the paths that are items, ``*`` also for ``/``; none: names that end as images do."""
    exclude: Annotated[list[Name], BeforeValidator(as_list)] = []
    """Shell patterns of the paths that are left out; one that ends with ``/``: all below such a folder."""
    column: str | None = None
    """Column of a table, or array of an .npz file or zarr group, that holds the images; of a CSV list, the paths."""
    range: tuple[float, float] | None = None
    """Numbers that are black and white, [black, white], where images are not of bytes: in arrays of any type, and in
    grey files of 16 bits, 32 bits or floats. None: see `sources.ranges`."""
    table: str | None = None
    """CSV or Parquet file of columns for `labels` and `holdout`, joined on its column ``path``."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Share of unreadable items (0-1) above which the job fails."""
    max_pixels: int = Field(200_000_000, gt=0)
    """Pixels of one image above which it is not decoded (protects the workers' memory)."""

    @model_validator(mode="after")
    def _one_source(self) -> Input:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give either path (a folder or another source) or builtin (digits or photos)")
        if (self.holdout_column or self.holdout_labels) and self.holdout_source is None:
            raise ValueError("holdout_column and holdout_labels are of a second source, which holdout names")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range is [black, white], the number that is black and a larger one that is white")
        reads_column = any(
            str(value).startswith("column:") for value in (self.labels, self.holdout, self.holdout_labels)
        )
        if self.table is not None and not reads_column:
            raise ValueError("table is read for labels=column:NAME or holdout=column:NAME=VALUE: give one of them")
        return self

    @property
    def holdout_source(self) -> str | None:
        """The second source, if that is what is held out."""
        is_source = isinstance(self.holdout, str) and not self.holdout.startswith(("column:", "pattern:"))
        return str(self.holdout) if is_source else None


class Ingest(Section):
    """How an image becomes a row of the collection."""

    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
    """Height and width in pixels that every image is resized to."""
    mode: Literal["L", "RGB"] = "RGB"
    """``L``: one grey channel. ``RGB``: three channels."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """``stretch``: stretched to the size. ``crop``: the middle, scaled to cover it. ``pad``: whole, on background."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "box"
    """How pixels are averaged; ``box`` takes the mean of those that a pixel covers."""
    background: Annotated[str, BeforeValidator(_colour)] = "white"
    """Colour under transparent pixels and around padded images: white, black or "#rrggbb"."""
    chunk_mib: float = Field(8.0, gt=0, le=1024)
    """Size of one chunk in MiB of pixels: one file, one task, one block in memory."""


class Features(Section):
    """What is clustered instead of raw pixels, made in the order of these keys."""

    kind: str = "pixels"
    """``pixels``, ``hog``, ``colour-histogram``, ``file``, or a function ``package.module:function``."""
    path: str | None = None
    """File of kind ``file``: .npy, .zarr or .parquet, a row an item."""
    scale: Annotated[Literal["standard"] | float, BeforeValidator(_standard_or_number)] = 1.0
    """The numbers are divided by it; ``standard``: each feature by its standard deviation over the fitted rows."""
    centre: bool = False
    """Whether the mean of the fitted rows is subtracted."""
    pca: int | None = Field(None, ge=1)
    """Principal components of the fitted rows that are kept; they are about the mean, whatever `centre` says."""
    normalize: Literal["none", "l2"] = "none"
    """``l2``: every row is divided by its length, and K-Means is spherical."""

    @model_validator(mode="after")
    def _consistent(self) -> Features:
        if self.kind not in _KINDS and not re.fullmatch(r"\w+(\.\w+)*:\w+", self.kind):
            raise ValueError(f"kind={self.kind!r}: allowed are {', '.join(_KINDS)} or package.module:function")
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("kind file needs the key path, a .npy, .zarr or .parquet file; other kinds have none")
        return self

    @property
    def raw(self) -> bool:
        """Whether these are the pixels as they are, in uint8."""
        return self == Features()


_CANDIDATES = 16
"""Numbers of clusters that ``auto`` fits at most; together they cost about as much as three times the largest."""


class Fit(Section):
    """Which models are fitted: every algorithm with every K."""

    k: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[list[Annotated[int, Field(ge=1)]], *ONE_OR_MORE, Tag("list")],
        Discriminator(lambda value: "auto" if value == "auto" else "list"),
    ]
    """Numbers of clusters; or ``auto``: candidates of `k_range` are fitted, and one of them is chosen."""
    algorithm: Annotated[list[Algorithm], *ONE_OR_MORE] = ["kmeans"]
    """``kmeans``: every pass reads all rows. ``minibatch``: every step reads a sample of the rows."""
    init: Init = "k-means||"
    """How the first centres are chosen."""
    n_init: int = Field(1, ge=1, le=100)
    """Restarts from different starts; the one with the lowest inertia is kept."""
    max_iter: int = Field(300, ge=1)
    """Passes over the data at most."""
    tol: float = Field(1e-4, ge=0)
    """Stop when the centres move less than this share of the mean feature variance (squared distance)."""
    engine: Literal["kmeans-dask", "dask-ml"] = "kmeans-dask"
    """``dask-ml`` runs the stock estimator instead, for comparison."""
    k_range: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = [2, 64]
    """Least and largest number of clusters that ``auto`` tries."""

    @property
    def ks(self) -> list[int]:
        """Numbers of clusters that are fitted: those given, or the candidates of ``auto``.

        Candidates are all numbers of the range, or about 16, each larger than the one before by about the same factor.
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
            raise ValueError(f"k_range={self.k_range}: the first number must be less than the second")
        if self.k == "auto" and self.engine == "dask-ml":
            raise ValueError("engine dask-ml is for comparison: give k as numbers")
        if self.engine == "dask-ml" and (self.algorithm != ["kmeans"] or self.init == "k-means++"):
            raise ValueError("engine dask-ml has only algorithm kmeans, with init k-means|| or random")
        return self


class Evaluate(Section):
    """Metrics of every model; it has no options."""


class Quantize(Section):
    """Every image again, in K colours."""

    k: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], *ONE_OR_MORE] | None = None
    """Numbers of colours, 1-65,536; above 256 the files are RGB. Absent if `palette` is a file."""
    palette: str = "image"
    """``image``: a palette of its own for each image. ``shared``: one for all. Else a palette file: .gpl, .json or an
    image."""
    weight: Literal["pixels", "images"] = "pixels"
    """What counts alike in a shared palette: every pixel, or every image, whatever its size."""
    algorithm: Algorithm = "kmeans"
    """``minibatch`` fits the palette on mini-batches of colours."""
    init: Literal["k-means++", "k-means||", "random", "variance"] = "k-means++"
    """How the first colours are chosen; ``variance`` draws nothing."""
    sample: float = Field(1.0, gt=0, le=1)
    """Share of the pixels that palettes are fitted on (0-1]; every pixel is mapped."""
    space: Literal["rgb", "oklab"] = "rgb"
    """What distances are measured in; with ``oklab`` the error is reported in both."""
    rare: float = Field(0.0, ge=0, le=1)
    """Protection of colours that few pixels have: 0 none, 1 every region of colours counts alike."""
    dither: Literal["none", "floyd-steinberg", "ordered"] = "none"
    """``none``: every pixel gets its nearest colour, the least error."""
    format: Literal["png", "webp", "gif"] = "png"
    """Indexed PNG, lossless WebP or GIF."""
    palette_files: list[Literal["gpl", "json", "png"]] = []
    """Kinds of files that the palette of each image is also written to; a shared palette always is, to all."""

    @model_validator(mode="after")
    def _consistent(self) -> Quantize:
        from_file = self.palette not in ("image", "shared")
        if from_file != (self.k is None):
            told = f"a palette file says how many colours there are: leave out k (palette={self.palette!r})"
            raise ValueError(told if from_file else "give k, the numbers of colours, for example [2, 6, 30]")
        if self.format == "gif" and self.k and max(self.k) > 256:
            raise ValueError(f"format gif holds 256 colours, k={max(self.k)} needs png or webp")
        if self.dither != "none" and self.space != "rgb":
            raise ValueError(f"dither {self.dither} measures in rgb: choose space rgb, or dither none")
        return self


class Report(Section):
    """The one-file HTML report."""

    samples: int = Field(24, ge=1, le=500)
    """Items shown on the sample sheet, and images shown before and after quantization."""


class Config(Section):
    """A whole job."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder."""
    output: Annotated[str, AfterValidator(check_location)] = "runs"
    """Folder that holds the run folders; on a file system, or a URL in an object store."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every random draw."""
    input: Input
    ingest: Ingest | None = None
    features: Features | None = None
    fit: Fit | None = None
    evaluate: Evaluate | None = None
    quantize: Quantize | None = None
    report: Report | None = None
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _stages_have_what_they_read(self) -> Config:
        if self.fit and not self.ingest:
            raise ValueError("fit reads the collection: add the section ingest")
        if self.evaluate and not self.fit:
            raise ValueError("evaluate reads the models: add the section fit")
        if self.features and not self.fit:
            raise ValueError("features are what fit reads: add the section fit")
        if self.features and self.features.normalize == "l2" and self.fit:
            self._spherical(self.fit)
        if not (self.ingest or self.quantize):
            raise ValueError("nothing to do: add the section ingest or quantize")
        return self

    @staticmethod
    def _spherical(fit: Fit) -> None:
        if fit.algorithm != ["kmeans"] or fit.engine != "kmeans-dask":
            raise ValueError(
                "features.normalize=l2 makes K-Means spherical: choose algorithm kmeans and engine kmeans-dask"
            )
