"""Feed random configs and images to their readers, which may raise only the documented errors.

``python -m benchmarks.fuzz [CASES]`` draws 10,000 cases for each reader; the test suite draws a few hundred.
``python -m benchmarks.fuzz CASES config|image`` runs atheris, which mutates file bytes guided by coverage (needs the
extra ``fuzz``). Its seeds are the configs of this project, or an image in every format.
"""

from __future__ import annotations

import copy
import io
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from kmeans_dask.config.loading import check_sources, load_config
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError, decode
from kmeans_dask.sources.normalize import POLICY

CASES = 10_000
MAX_PIXELS = 1_000_000
OUTCOMES: Counter[str] = Counter()
SLOWEST: dict[str, float] = {}


def record(kind: str, outcome: str, seconds: float) -> None:
    """Count an outcome and keep the longest time."""
    OUTCOMES[f"{kind}: {outcome}"] += 1
    SLOWEST[kind] = max(SLOWEST.get(kind, 0.0), seconds)


def check_message(error: Exception, limit: int) -> None:
    """Check that a message is one printable line of reasonable length."""
    assert 5 < len(str(error)) < limit, str(error)[:5000]
    assert str(error).isprintable(), repr(str(error))


# -- configs

VALID: dict[str, Any] = {
    "name": "a",
    "input": {"path": "x", "holdout": 0.2},
    "ingest": {"size": [8, 8], "mode": "L"},
    "fit": {"k": [2, 3]},
    "evaluate": {},
    "quantize": {"k": 5},
    "report": {"samples": 3},
    "cluster": {"kind": "local", "n_workers": 2},
}


def keys_of(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the paths of all config keys, sections included."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*prefix, name))
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += keys_of(kind, (*prefix, name))
    return keys


KEYS = keys_of(Config)
NAMES = [".".join(keys) for keys in KEYS]
LAUGHS = "[&a0 [x, x], " + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)) + "]"
"""A YAML list of 2 x 9^9 values once its aliases are expanded (billion laughs)."""

SNIPPETS = (
    "&a [*a]",
    "&a {b: *a}",
    "2001-99-99",
    "12:61:61",
    "1" * 5000,
    "0x" + "f" * 5000,
    "[" * 3000,
    "{a: " * 500,
    "!!python/object/apply:os.getcwd []",
    "!!binary x",
    "!!set {a}",
    "!!timestamp x",
    "!!int x",
    "!!float x",
    "!!omap [1]",
    "<<: *a",
    "{<<: 1}",
    "? [a]\n: b",
    "{[a]: b}",
    "{1: 2}",
    "{null: 2}",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "1e-4",
    "'10'",
    "true",
    "[true, false]",
    "~",
    "''",
    '"\\0"',
    "~nobody/x",
    "/" + "x" * 5000,
    "a: b: c",
    "- a\nb",
    "%TAG",
    "\t",
    "---\na\n---\nb",
    LAUGHS,
)
"""YAML fragments that have broken readers."""

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates(), st.binary(max_size=4),
    st.sampled_from([10**400, -1, 0, 1, 10, 2**32, 0.5, 1e-4, "~nobody/x", "a\0b", "a\nb", "x" * 5000, "RGB", "pad", "tcp://"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.lists(st.tuples(st.sampled_from(KEYS) | st.tuples(st.text(max_size=4)), VALUES), max_size=3)
PAIRS = st.tuples(st.sampled_from(NAMES), st.sampled_from(SNIPPETS) | st.text(max_size=9)).map("=".join)
GOOD = st.sampled_from(
    ["seed=7", "fit.k=[4,9]", "fit.tol=1e-5", "ingest.resize=crop", "report=null", "input.holdout=other"]
)
OVERRIDES = st.lists(GOOD, max_size=2) | st.lists(GOOD | PAIRS | st.text(max_size=9), max_size=2)
ODD = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(SNIPPETS),
    st.tuples(st.sampled_from(KEYS), st.sampled_from(SNIPPETS)).map(lambda pair: f"{pair[0][0]}: {pair[1]}"),
)
CONFIGS = st.just(yaml.safe_dump(VALID)) | CHANGES.map(lambda changes: changed(changes)) | ODD.map(lambda text: text)
"""A third each of valid, changed and odd texts: the last ``map`` makes the odd ones count as one strategy."""

CLUSTERS = st.sampled_from([*[None] * 8, "tcp://a:1", "://", "/dev/null", "a\0b", "nowhere.yaml"])


def changed(changes: list[tuple[tuple[str, ...], Any]]) -> str:
    """Return a valid config with some keys set to arbitrary values, as YAML."""
    raw = copy.deepcopy(VALID)
    for keys, value in changes:
        section = raw
        for key in keys[:-1]:
            section = section[key] if isinstance(section.get(key), dict) else section
        section[keys[-1]] = value
    return yaml.safe_dump(raw, allow_unicode=True)


def check_config(text: str | bytes, overrides: list[str], cluster: str | None) -> None:
    """Load a config: it raises a one-line UserError, or survives a round trip through YAML."""
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        file.flush()
        try:
            config = load_config(file.name, overrides, cluster)
        except UserError as error:
            check_message(error, 2000)
            outcome = "refused"
        else:
            dumped = Path(file.name)
            dumped.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
            assert load_config(dumped) == config
            outcome = "accepted"
            try:
                check_sources(config.input)
            except UserError as error:
                check_message(error, 2000)
    record("config", outcome, time.perf_counter() - start)


# -- images


def examples() -> list[bytes]:
    """Encode a small image in every format, also with several frames, modes, compressions and kinds of metadata."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(rng.integers(0, 65536, (5, 7), dtype=np.uint16))
    images: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((noise, kind, {}) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")),
        *((noise, kind, {"exif": exif, "icc_profile": b"x" * 200}) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF")),
        *((noise, kind, {"save_all": True, "append_images": [noise]}) for kind in ("PNG", "GIF", "TIFF", "MPO")),
        *((noise.convert(mode), "TIFF", {}) for mode in ("1", "P", "LA", "RGBA", "CMYK", "YCbCr", "F", "I")),
        *((noise.convert(mode), "PNG", {}) for mode in ("1", "L", "P", "LA", "RGBA")),
        *((noise, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        (noise.convert("1"), "TIFF", {"compression": "group4"}),
        (noise.convert("CMYK"), "JPEG", {"icc_profile": b"x" * 200}),
        (noise.resize((500, 300)), "JPEG", {"progressive": True}),
        (noise, "WEBP", {"lossless": True}),
        (wide, "PNG", {}),
        (wide, "TIFF", {}),
    ]  # fmt: skip
    files = []
    for image, kind, options in images:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
    return [*files, b"P3 2 1 255 1 2 3 4 5 6", b"P5 2 2 65535\n" + bytes(8), b"Pf 2 1 -1.0\n" + bytes(8)]


EXAMPLES = examples()
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"II*\0\x08\0\0\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBP",
    b"P6 ",
)
WORDS = [
    b"\0",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x01\0\0\0",
    bytes(16),
]
PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "put", "insert", "remove", "splice"]),
        PLACES,
        st.sampled_from(WORDS) | st.binary(max_size=8),
    ),
    max_size=5,
)
FILES = st.one_of(
    st.tuples(st.sampled_from(EXAMPLES), EDITS, st.sampled_from(EXAMPLES), st.booleans()).map(
        lambda drawn: damaged(*drawn)
    ),
    st.tuples(st.sampled_from(MAGIC), st.binary(max_size=300)).map(b"".join),
)


def damaged(file: bytes, edits: list[tuple[str, float, bytes]], other: bytes, mend: bool) -> bytes:
    """Edit a file; with ``mend`` the chunk checksums of a PNG are fixed, so that readers get past the first chunk."""
    for kind, place, data in edits:
        at = int(place * len(file))
        file = {
            "cut": file[:at],
            "put": file[:at] + data + file[at + len(data) :],
            "insert": file[:at] + data + file[at:],
            "remove": file[:at] + file[at + len(data) :],
            "splice": file[:at] + other[int(place * len(other)) :],
        }[kind]
    return with_checksums(file) if mend and file[:8] == MAGIC[0] else file


def with_checksums(png: bytes) -> bytes:
    """Fix the checksums of all chunks of a PNG file."""
    at, parts = 8, [png[:8]]
    while at + 12 <= len(png):
        end = at + 8 + struct.unpack(">I", png[at : at + 4])[0]
        parts += [png[at:end], struct.pack(">I", zlib.crc32(png[at + 4 : end]))]
        at = end + 4
    return b"".join([*parts, png[at:]])


def check_image(file: bytes, mode: Any, size: tuple[int, int], resize: Any, resampling: Any) -> None:
    """Decode a file: it gives a valid row of the collection, or raises a one-line ImageError."""
    start = time.perf_counter()
    try:
        row = decode(
            io.BytesIO(file), size=size, mode=mode, max_pixels=MAX_PIXELS, resize=resize, resampling=resampling
        )
    except ImageError as error:
        check_message(error, 220)
        outcome: str = error.status
    else:
        assert row.pixels.shape == (*size, 1 if mode == "L" else 3)
        assert row.pixels.dtype == np.uint8
        assert 0 < row.width * row.height <= MAX_PIXELS
        assert set(row.changes) <= POLICY.keys()
        outcome = "ok"
    record("image", outcome, time.perf_counter() - start)


# -- runs

CHECKS: dict[str, Callable[[], None]] = {
    "config": given(CONFIGS, OVERRIDES, CLUSTERS)(check_config),
    "image": given(
        FILES,
        st.sampled_from(["L", "RGB"]),
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        st.sampled_from(["stretch", "crop", "pad"]),
        st.sampled_from(["box", "lanczos", "nearest"]),
    )(check_image),
}


def run(name: str, cases: int, *, same: bool = False) -> None:
    """Run one of `CHECKS` on a number of random cases; with ``same`` the cases are the same every time."""
    drawn = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=same,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    drawn(CHECKS[name])()


def config_of_bytes(data: bytes) -> None:
    """Check the bytes as the text of a config; parts after zero bytes are overrides."""
    text, *overrides = data.split(b"\0")
    check_config(text, [each.decode("utf-8", "surrogateescape") for each in overrides[:2]], None)


def image_of_bytes(data: bytes) -> None:
    """Check the bytes as an image file; their number selects mode and resizing."""
    check_image(data, ("L", "RGB")[len(data) % 2], (7, 5), ("stretch", "crop", "pad")[len(data) % 3], "box")


def guided(name: str, cases: int) -> None:
    """Let atheris mutate files towards new lines of Python code; atheris ends the process."""
    import atheris  # type: ignore[import-not-found, unused-ignore]

    if name == "config":
        check_bytes, words = config_of_bytes, [word.encode() for word in (*NAMES, *SNIPPETS)]
        configs = [path.read_bytes() for path in Path("configs").glob("*.yaml")]
        seeds = [yaml.safe_dump(VALID).encode() + b"\0fit.k=[4,9]", *configs]
    else:
        check_bytes, words, seeds = image_of_bytes, [*MAGIC, *WORDS], EXAMPLES

    def check(data: bytes) -> None:
        check_bytes(data)
        if OUTCOMES.total() % 1000 == 0:
            print(dict(OUTCOMES), SLOWEST, flush=True)

    with tempfile.TemporaryDirectory() as corpus, tempfile.NamedTemporaryFile("w", suffix=".dict") as dictionary:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        for word in (word for word in words if 0 < len(word) < 64):
            dictionary.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
        dictionary.flush()
        atheris.instrument_all()
        limits = [f"-runs={cases}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=20000", f"-dict={dictionary.name}"]
        atheris.Setup(["fuzz", *limits, corpus], check)
        atheris.Fuzz()


def main() -> None:
    """Run both checks, or one of them guided by coverage, and print the outcomes."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else CASES
    if len(sys.argv) > 2:
        guided(sys.argv[2], cases)
    print("| reader | cases | outcomes | slowest, s | seconds |\n|---|---|---|---|---|")
    for name in CHECKS:
        start = time.perf_counter()
        run(name, cases)
        mine = {key.partition(": ")[2]: count for key, count in OUTCOMES.items() if key.startswith(name)}
        counts = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(mine.items()))
        print(
            f"| {name} | {sum(mine.values()):,} | {counts} | {SLOWEST[name]:.2f} | {time.perf_counter() - start:.0f} |"
        )
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
