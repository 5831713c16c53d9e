"""The sections of a job's config: every key with its type, its default and what is allowed.

Every section is one stage; a stage whose section is absent is not run.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kmeans_dask.object_store import check_location

Init = Literal["k-means||", "k-means++", "random"]
Algorithm = Literal["kmeans", "minibatch"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("each value may stand once")
    return values


_ONE_OR_MORE = (BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_distinct))
"""Of a list: a single value may stand without brackets, no value twice."""


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


_Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        is_switch = cls.model_fields[info.field_name or ""].annotation is bool
        values = value if isinstance(value, list) else [value]
        if not is_switch and any(isinstance(each, bool) for each in values):  # pydantic would take true as 1
            raise ValueError("true and false are not allowed here (nor yes, no, on, off, unless in quotes)")
        if any(isinstance(each, str) and "\0" in each for each in values):
            raise ValueError("a text may not hold the character NUL")
        return value


class Input(Section):
    """Where the images and their labels come from."""

    path: Annotated[list[_Name], Field(min_length=1), BeforeValidator(_as_list)] | None = None
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
    classes: Annotated[list[_Name], AfterValidator(_distinct)] = []
    """Names of the classes in their order; labels that are numbers are positions in it, from 0."""
    include: Annotated[list[_Name], BeforeValidator(_as_list)] = []
    """Shell patterns of the paths that are items, ``*`` also for ``/``; none: names that end as images do."""
    exclude: Annotated[list[_Name], BeforeValidator(_as_list)] = []
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
    fit: Literal["resize", "crop", "pad"] = "resize"
    """``resize``: stretched to the size. ``crop``: the middle, scaled to cover it. ``pad``: whole, on background."""
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
        | Annotated[list[Annotated[int, Field(ge=1)]], *_ONE_OR_MORE, Tag("list")],
        Discriminator(lambda value: "auto" if value == "auto" else "list"),
    ]
    """Numbers of clusters; or ``auto``: candidates of `k_range` are fitted, and one of them is chosen."""
    algorithm: Annotated[list[Algorithm], *_ONE_OR_MORE] = ["kmeans"]
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

    k: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], *_ONE_OR_MORE] | None = None
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


def _clock(value: Any) -> Any:
    """Write seconds as HH:MM:SS: that is what YAML makes of an unquoted 10:30:00."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}"
    return value


def _memory(value: Any) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B", value) if isinstance(value, str) else None
    size = float(match[1]) * (1024 if match[3] else 1000) ** ("kMGT".index(match[2]) + 1) if match else 0
    if value != "auto" and size < _LEAST_MEMORY:
        raise ValueError("allowed are auto or a size such as 2GiB, at least 256MiB")
    return value


_LEAST_MEMORY = 256 * 2**20
"""Bytes; a worker process has 150-225 MiB before its first task, and with less it would be ended again and again."""

_Word = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
"""What becomes a word of a command: no spaces, and no option."""

_JOB_KEYS = "workers workers_per_job threads memory queue account walltime adaptive host tls"
_KEYS_OF_KIND = {
    "local": "workers threads memory adaptive host tls",
    "threads": "workers threads",
    "address": "address tls",
    "slurm": _JOB_KEYS,
    "pbs": _JOB_KEYS,
    "slurm-runner": "threads memory host tls",
    "ssh": "hosts workers threads memory host tls",
    "kubernetes": "image namespace workers threads memory adaptive",
}
"""Keys that say something about a kind of cluster; `dashboard` and `performance_report` are for all of them."""

_NEEDED = {
    "address": (["address"], "for example tcp://127.0.0.1:8786"),
    "slurm": (["host"], "where the scheduler listens: an address of this machine or an interface, for example ib0"),
    "pbs": (["host"], "where the scheduler listens: an address of this machine or an interface, for example ib0"),
    "slurm-runner": (["host"], "where the scheduler listens: an interface of the nodes, for example ib0"),
    "ssh": (["hosts", "workers"], "for example hosts=[head,node1,node2] workers=4"),
    "kubernetes": (["image"], "of scheduler and workers, built with docker/Dockerfile"),
}
"""Keys that a kind cannot do without, and an example."""


class Tls(Section):
    """Certificates in PEM files: every connection is encrypted, and both ends prove who they are."""

    ca: str
    """Certificates of the authority that has signed those of scheduler, workers and client."""
    cert: str
    """Certificate of this end; of all, where the job starts scheduler and workers."""
    key: str | None = None
    """Its private key; absent: in the same file."""


class Cluster(Section):
    """Where the tasks run. Nothing else in a job knows."""

    kind: Literal["local", "threads", "address", "slurm", "slurm-runner", "pbs", "ssh", "kubernetes"] = "local"
    """``local``: worker processes here. ``threads``: threads of this process. ``address``: a running cluster.
    ``slurm``, ``pbs``: workers are jobs. ``slurm-runner``: the tasks of this Slurm job. ``ssh``: on `hosts`.
    ``kubernetes``: pods of the Dask operator."""
    workers: int | None = Field(None, ge=1)
    """Worker processes; of kind ssh on each host. Absent: one a core, for kind local and threads."""
    workers_per_job: int = Field(1, ge=1)
    """Worker processes in a job of the queue."""
    threads: int = Field(1, ge=1)
    """Threads a worker."""
    memory: Annotated[str, BeforeValidator(_memory)] = "auto"
    """Memory limit a worker, for example ``2GiB``; auto: this machine's memory shared out."""
    adaptive: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    """Least and largest number of workers, by the work that there is; instead of `workers`."""
    address: str | None = None
    """Address of the scheduler, for example ``tcp://127.0.0.1:8786``."""
    host: _Word | None = None
    """Where the scheduler listens: an address, a name, or a network interface. Absent: on loopback; of kind ssh at the
    first host's address."""
    tls: Tls | None = None
    """Certificates. Absent: whoever reaches the scheduler can run code on the workers."""
    hosts: Annotated[list[_Word], Field(min_length=2)] | None = None
    """Hosts that are reached by ssh: the first runs the scheduler, the others the workers; one may stand twice."""
    queue: _Word | None = None
    """Partition or queue that jobs go to."""
    account: _Word | None = None
    """Whom their time is charged to."""
    walltime: Annotated[str, BeforeValidator(_clock), Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$")] | None = None
    """Time limit of a job, HH:MM:SS."""
    image: _Word | None = None
    """Container image of scheduler and workers."""
    namespace: _Word | None = None
    """Namespace of the pods; absent: that of the current context."""
    dashboard: bool = False
    """Tell the link of Dask's dashboard."""
    performance_report: bool = False
    """Write what the workers did, when and for how long, to performance.html in the run folder."""

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Cluster:
        given = {key for key, field in Cluster.model_fields.items() if getattr(self, key) != field.default}
        allowed = _KEYS_OF_KIND[self.kind].split()
        foreign = sorted(given - {"kind", "dashboard", "performance_report", *allowed})
        if foreign:
            raise ValueError(f"kind {self.kind} has no key {foreign[0]}; allowed here: {', '.join(allowed)}")
        needed, example = _NEEDED.get(self.kind, ([], ""))
        missing = [key for key in needed if key not in given]
        if missing:
            raise ValueError(f"kind {self.kind} needs the key {missing[0]}, {example}")
        return self

    @model_validator(mode="after")
    def _how_many_and_how_large(self) -> Cluster:
        if self.adaptive and (self.workers or self.adaptive[0] > self.adaptive[1]):
            raise ValueError(f"adaptive={self.adaptive} is [least, largest] number of workers, instead of workers")
        if self.kind in ("slurm", "pbs", "kubernetes"):
            if not (self.workers or self.adaptive):
                raise ValueError(f"kind {self.kind} needs workers, or adaptive=[least, largest]")
            if self.memory == "auto":
                raise ValueError(f"kind {self.kind} needs memory, the limit of a worker, for example memory=4GiB")
        return self

    @model_validator(mode="after")
    def _encrypted_address(self) -> Cluster:
        if self.address and self.tls and not self.address.startswith("tls://"):
            raise ValueError(f"tls is for addresses that begin with tls://, not for {self.address}")
        return self


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
