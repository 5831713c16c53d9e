"""Colour quantization measured: against decoding and encoding alone, and against the peers.

    python -m benchmarks.quantization --speed data/lfw --photos data/bsds

prints Markdown: a table with seconds and error of every peer, and a table of what was promised and what was measured.
Peers that are not installed are left out: imagequant (pip), pngquant and ImageMagick (Debian packages).
Everything is written to new folders below --work, which are removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from distributed import Client
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from benchmarks.common import machine  # isort: skip
from jobs import quantize as stage_quantize
from jobs.listing import list_items_once
from kmeans_dask.cluster import connect
from kmeans_dask.colours import colour_table, nearest
from kmeans_dask.config import Cluster, Config
from kmeans_dask.images import open_image
from kmeans_dask.normalize import to_array
from kmeans_dask.outputs import write_file
from kmeans_dask.painting import encode
from kmeans_dask.palettes import quantize_image
from kmeans_dask.quantize import finish_quantized, missing_outputs, plan_batches, quantize_tasks
from kmeans_dask.runs import open_run
from kmeans_dask.shared_palette import count_tasks, fit_shared
from kmeans_dask.sources import read_manifest

MAX_PIXELS = 10**9
KS = (2, 6, 30, 256)
METHODS = {
    "Pillow median cut": (Image.Quantize.MEDIANCUT, 0),
    "Pillow median cut, kmeans=1": (Image.Quantize.MEDIANCUT, 1),
    "Pillow maximum coverage": (Image.Quantize.MAXCOVERAGE, 0),
    "Pillow fast octree": (Image.Quantize.FASTOCTREE, 0),
}
OURS, BEST = "kmeans-dask", "scikit-learn, best of 3"


# peers: RGB pixels and K in, RGB pixels out


def pillow(pixels, k, method, kmeans):
    return np.asarray(Image.fromarray(pixels).quantize(k, method, kmeans).convert("RGB"))


def libimagequant(pixels, k):
    import imagequant

    painted = imagequant.quantize_pil_image(Image.fromarray(pixels).convert("RGBA"), dithering_level=0, max_colors=k)
    return np.asarray(painted.convert("RGB"))


def program(pixels, k, command):
    """Run a program on PNG files; `command` has IN, OUT and K in it. Encoding and decoding are in its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        Image.fromarray(pixels).save(source, compress_level=1)
        words = {"IN": str(source), "OUT": str(target), "K": str(k)}
        subprocess.run([words.get(word, word) for word in command], check=True, capture_output=True)
        return np.asarray(Image.open(target).convert("RGB"))


def recipe(pixels, k):
    """Do as the classic recipe: fit on a random 70 % of the pixels, predict all, rebuild from the centres."""
    X = pixels.reshape(-1, 3) / np.float32(255)
    rows = np.random.default_rng(0).permutation(len(X))[: int(0.7 * len(X))]
    model = KMeans(k, n_init=1, random_state=0).fit(X[rows])
    return np.rint(255 * model.cluster_centers_[model.predict(X)]).astype(np.uint8).reshape(pixels.shape)


def best_of_three(pixels, k):
    """Fit three times to all pixels, as distinct colours with their counts: the same sums in a fifth of the time."""
    table = colour_table(pixels)
    if len(table) <= k:
        return pixels
    fits = [
        KMeans(k, n_init=1, random_state=seed).fit(table.colours.astype(np.float32), sample_weight=table.counts)
        for seed in range(3)
    ]
    centres = np.rint(min(fits, key=lambda fit: fit.inertia_).cluster_centers_).astype(np.uint8)
    return nearest_pixels(pixels, centres)


def nearest_pixels(pixels, palette):
    points = np.ascontiguousarray(pixels.reshape(-1, 3).T, np.float32)
    return palette[nearest(points, palette.astype(np.float32))[0]].reshape(pixels.shape)


def ours(pixels, k):
    return np.asarray(quantize_image(pixels, k).convert("RGB"))


def peers() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {OURS: (ours, ())}
    found |= {name: (pillow, told) for name, told in METHODS.items()}
    if find_spec("imagequant"):
        found["libimagequant"] = (libimagequant, ())
    if shutil.which("pngquant"):
        found["pngquant"] = (program, (["pngquant", "--nofs", "--force", "--output", "OUT", "K", "IN"],))
    magick = shutil.which("magick") or shutil.which("convert-im6") or shutil.which("convert-im6.q16")
    if magick:
        found["ImageMagick"] = (program, ([magick, "IN", "-dither", "None", "-colors", "K", "OUT"],))
    found["scikit-learn, classic recipe"] = (recipe, ())
    found[BEST] = (best_of_three, ())
    return found


def squared_error(original, painted) -> float:
    """Mean over the pixels of the squared RGB distance: the one measure of every peer."""
    return float(((painted.astype(np.int64) - original) ** 2).sum(axis=2).mean())


def one_result(path, name, k):
    """Quantize one photo by one peer: seconds and error."""
    pixels = np.array(to_array(open_image(path, max_pixels=MAX_PIXELS), mode="RGB"))
    function, more = peers()[name]
    begun = time.perf_counter()
    painted = function(pixels, k, *more)
    seconds = time.perf_counter() - begun
    return seconds, squared_error(pixels, painted)


def compare(client: Client, photos: Sequence[Path], ks: Sequence[int]) -> dict[tuple[str, int], tuple[float, float]]:
    """Seconds a photo and mean error of every peer and K, each photo in one worker with one thread."""
    names = list(peers())
    client.gather([client.submit(one_result, photos[0], OURS, k, pure=False) for k in ks for _ in range(4)])  # compile
    jobs = [(name, k, path) for k in ks for name in names for path in photos]
    futures = client.map(lambda job: one_result(job[2], job[0], job[1]), jobs, pure=False)
    results = client.gather(futures)
    table = {}
    for name in names:
        for k in ks:
            mine = [result for job, result in zip(jobs, results, strict=True) if job[:2] == (name, k)]
            table[name, k] = (float(np.mean([r[0] for r in mine])), float(np.mean([r[1] for r in mine])))
    return table


# the stage


@contextmanager
def workers(n: int) -> Iterator[Client]:
    with connect(Cluster(kind="local", workers=n, threads=1)) as client:
        yield client


def config_of(folder: Path, output: Path, name: str, **settings: Any) -> Config:
    source = {"path": str(folder), "labels": "none", "max_pixels": MAX_PIXELS}
    return Config(name=name, output=str(output), input=source, quantize=settings)


def run_stage(client: Client, folder: Path, work: Path, **settings: Any) -> tuple[float, Path]:
    """Run the stage on a folder into a new run folder: seconds of the stage, listing excluded."""
    config = config_of(folder, Path(tempfile.mkdtemp(dir=work)), "run", **settings)
    run = open_run(config, fresh=True)
    with redirect_stdout(sys.stderr):
        list_items_once(config, run)
        begun = time.perf_counter()
        stage_quantize.run(config, client)
        return time.perf_counter() - begun, run.path


def encode_alone(files, painted, target):
    """Decode files, and encode and write what the stage made of them: seconds of the three, painted images read."""
    images = []
    for path in painted:
        image = Image.open(path)
        image.load()
        image.info.clear()
        images.append(image)
    decoded = encoded = written = 0.0
    for number, (path, image) in enumerate(zip(files, images, strict=True)):
        at = time.perf_counter()
        open_image(path, max_pixels=MAX_PIXELS)
        decoded_at = time.perf_counter()
        data = encode(image, "png")
        encoded_at = time.perf_counter()
        write_file(f"{target}/{number % 97}/{os.getpid()}-{number}-{time.monotonic_ns()}.png", data)
        decoded += decoded_at - at
        encoded += encoded_at - decoded_at
        written += time.perf_counter() - encoded_at
    return decoded, encoded, written


def bare(client: Client, run: Path, work: Path, n_workers: int, k: int) -> tuple[float, float, float]:
    """Wall time of decoding, encoding and writing the files of a run by as many workers, in seconds each."""
    table = pq.read_table(run / "quantized.parquet").to_pylist()
    files = [bytes(file) for file in pq.read_table(run / "manifest.parquet")["file"].to_pylist()]
    outputs = {row["path"]: run / row["output"] for row in table if row["k"] == k and row["status"] == "ok"}
    paths = pq.read_table(run / "manifest.parquet")["path"].to_pylist()
    pairs = [(file, outputs[path]) for file, path in zip(files, paths, strict=True) if path in outputs]
    target = Path(tempfile.mkdtemp(dir=work))
    batches = [pairs[start : start + 64] for start in range(0, len(pairs), 64)]
    tasks = [client.submit(encode_alone, *zip(*batch, strict=True), target, pure=False) for batch in batches]
    seconds = np.sum(client.gather(tasks), axis=0) / n_workers
    return float(seconds[0]), float(seconds[1]), float(seconds[2])


def whole_peer(path, name, k, target):
    """Decode, quantize, encode and write one photo by one peer; return seconds."""
    function, more = peers()[name]
    begun = time.perf_counter()
    pixels = np.array(to_array(open_image(path, max_pixels=MAX_PIXELS), mode="RGB"))
    stream = io.BytesIO()
    painted = Image.fromarray(function(pixels, k, *more))
    painted.quantize(k, dither=Image.Dither.NONE).save(stream, "PNG", compress_level=4)
    write_file(f"{target}/{time.monotonic_ns()}.png", stream.getvalue())
    return time.perf_counter() - begun


def speed(client: Client, args: argparse.Namespace, folder: Path, work: Path) -> list[list[str]]:
    n = len(list(folder.iterdir()))
    run_stage(client, some(folder, 128, work), work, k=[2, 6, 30])  # compile
    alone, run = min((run_stage(client, folder, work, k=[30]) for _ in range(args.repeat)), key=lambda r: r[0])
    three = min(run_stage(client, folder, work, k=[2, 6, 30])[0] for _ in range(args.repeat))
    decode, coding, write = min((bare(client, run, work, args.workers, 30) for _ in range(args.repeat)), key=sum)
    files = sorted(folder.iterdir())
    rows = [
        ["1", "K=30, stage", f"{n / alone:,.0f} photos/s", ""],
        [
            "1",
            "share of decode + encode + write alone",
            f"{(decode + coding + write) / alone:.0%} (without write {(decode + coding) / alone:.0%})",
            "at least 70 %",
        ],
        ["1", "K=2, 6, 30 against K=30 alone", f"{three / alone:.2f}x", "at most 2.2x"],
    ]
    for name, most, target in (("scikit-learn, classic recipe", 24, 30), ("libimagequant", 240, 8)):
        if name in peers():
            chosen = files[:: max(1, len(files) // most)]
            work_folder = tempfile.mkdtemp(dir=work)
            seconds = client.gather(client.map(whole_peer, chosen, name=name, k=30, target=work_folder, pure=False))
            factor = float(np.mean(seconds)) / args.workers / (alone / n)
            rows.append(["1", f"K=30, against {name}", f"{factor:.1f}x faster", f"at least {target}x"])
    return rows


def shared(args: argparse.Namespace, folder: Path, work: Path) -> list[list[str]]:
    """One palette of 256 colours for all: the time split, the memory, the error against a large sample."""
    files = sorted(folder.iterdir())
    settings = {"k": [256], "palette": "shared"}
    with workers(args.workers) as client:
        run_stage(client, some(folder, 64, work), work, **settings)  # compile
        batches = [files[start : start + 64] for start in range(0, len(files), 64)]
        decode = sum(client.gather(client.map(decode_alone, batches, pure=False))) / args.workers
        config = config_of(folder, Path(tempfile.mkdtemp(dir=work)), "run", **settings)
        run = open_run(config, fresh=True)
        list_items_once(config, run)
        job = (run.manifest, run.path, config.quantize, 0, MAX_PIXELS)
        at = [time.perf_counter()]
        client.gather(client.compute(count_tasks(*job, plan_batches(read_manifest(run.manifest)))))
        at.append(time.perf_counter())
        palettes = fit_shared(run.path, config.quantize, 0)
        at.append(time.perf_counter())
        client.gather(client.compute(quantize_tasks(*job, missing_outputs(*job), palettes)))
        mine = finish_quantized(run.path, [256]).to_pylist()
        at.append(time.perf_counter())
        peak = max(client.run(peak_memory).values())
    count, fit, write = np.diff(at)
    colours, weights = (np.load(run.path / "colours" / f"{name}.npy") for name in ("colours", "weights"))
    sizes = {row["path"]: math.prod(open_image(folder / row["path"], max_pixels=MAX_PIXELS).size) for row in mine}
    error = sum(row["mse"] * sizes[row["path"]] for row in mine) / sum(sizes.values())
    told = "every colour is in the palette"
    if len(colours) > 256:
        rows = np.random.default_rng(0).choice(len(colours), args.sample, p=weights / weights.sum())
        theirs = KMeans(256, n_init=1, random_state=0).fit(colours[rows].astype(np.float32))
        centres = np.rint(theirs.cluster_centers_).astype(np.float32)
        points = np.ascontiguousarray(colours.T, np.float32)
        told = f"{error / float(nearest(points, centres)[1] @ weights / weights.sum()):.4f}x"
    split = f"{decode:.1f} / {max(count - decode, 0):.1f} / {fit:.1f} / {write:.1f} s"
    return [
        [
            "3",
            f"{len(files):,} photos, {len(colours):,} colours: decode / table / fit / write",
            split,
            "fit below 10 s",
        ],
        ["3", "peak memory of a worker", f"{peak / 2**20:,.0f} MiB", ""],
        ["3", f"error against K-Means on {args.sample:,} pixels", told, "at most 1.005x"],
    ]


def decode_alone(files):
    begun = time.perf_counter()
    for file in files:
        open_image(file, max_pixels=MAX_PIXELS)
    return time.perf_counter() - begun


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def proportion(args: argparse.Namespace, work: Path) -> list[list[str]]:
    """Time and memory of a huge photo and of many icons, beside those of a usual photo."""
    china = Image.fromarray(load_sample_image("china.jpg"))
    rows = []
    for name, megapixels in (("1-megapixel photo", 1.0), (f"{args.megapixels}-megapixel photo", args.megapixels)):
        folder = Path(tempfile.mkdtemp(dir=work))
        scale = math.sqrt(megapixels * 1e6 / (china.width * china.height))
        size = (round(china.width * scale), round(china.height * scale))
        china.resize(size, Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
        rows.append(measured(name, folder, work, megapixels, "s a megapixel"))
    folder = Path(tempfile.mkdtemp(dir=work))
    for number in range(args.icons):
        x, y = number * 7 % (china.width - 32), number * 3 % (china.height - 32)
        china.crop((x, y, x + 32, y + 32)).save(folder / f"{number:06}.png", compress_level=1)
    rows.append(measured(f"{args.icons:,} icons of 32 x 32", folder, work, args.icons / 1000, "s a thousand"))
    return rows


def measured(name: str, folder: Path, work: Path, amount: float, unit: str) -> list[str]:
    with workers(1) as client:
        tiny = Path(tempfile.mkdtemp(dir=work))
        Image.fromarray(load_sample_image("flower.jpg")[::4, ::4].copy()).save(tiny / "a.png")
        run_stage(client, tiny, work, k=[30])  # compile
        before = max(client.run(peak_memory).values())
        seconds, _ = run_stage(client, folder, work, k=[30])
        peak = max(client.run(peak_memory).values())
    told = f"{seconds:.2f} s, {seconds / amount:.3f} {unit}; peak {before / 2**20:,.0f} -> {peak / 2**20:,.0f} MiB"
    return ["4", name, told, "in proportion"]


def same_files(args: argparse.Namespace, folder: Path, work: Path) -> list[list[str]]:
    """Hashes of all outputs for one worker, for several, and for a job that was killed and resumed."""
    hashes = {}
    for n in dict.fromkeys((1, args.workers, 3)):
        with workers(n) as client:
            hashes[f"{n} workers"] = hash_of(run_stage(client, folder, work, k=[6, 30])[1])
    output = Path(tempfile.mkdtemp(dir=work))
    config = config_of(folder, output, "killed", k=[6, 30]).model_dump(mode="json", exclude_none=True)
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.cli", "quantize", str(output / "config.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((output / "killed").glob("quantized/30/**/*.png"))) < 20:
        time.sleep(0.02)
    done = len(list((output / "killed").glob("quantized/30/**/*.png")))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    hashes[f"killed after {done} photos and resumed"] = hash_of(output / "killed")
    verdict = "the same" if len(set(hashes.values())) == 1 else "DIFFERENT"
    return [["5", f"files of {len(list(folder.iterdir())):,} photos: {', '.join(hashes)}", verdict, "bitwise the same"]]


def hash_of(run: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((run / "quantized").glob("**/*.png")):
        digest.update(str(path.relative_to(run)).encode() + path.read_bytes())
    return digest.hexdigest()


# what is printed


def print_peers(table: dict[tuple[str, int], tuple[float, float]], ks: Sequence[int], n: int) -> list[list[str]]:
    print(f"\nSeconds a photo and mean squared RGB distance, {n} photos, undithered, one thread\n")
    print("| | " + " | ".join(f"K={k}: s | MSE" for k in ks) + " |")
    print("|---" * (1 + 2 * len(ks)) + "|")
    for name in dict.fromkeys(name for name, _ in table):
        cells = [f"{table[name, k][0]:.4f} | {table[name, k][1]:,.2f}" for k in ks]
        print(f"| {name} | " + " | ".join(cells) + " |")
    rows = []
    for k in ks:
        mine, best = table[OURS, k][1], table[BEST, k][1]
        bound = 1.01 if k == 256 else 1.005
        rows.append(["2", f"K={k}: error against the best of 3 scikit-learn fits", f"{mine / best:.4f}x", f"{bound}x"])
        others = {name: table[name, k][1] for name, kk in table if kk == k and name != OURS and "scikit" not in name}
        nearest_name = min(others, key=others.__getitem__)
        told = f"{mine / others[nearest_name]:.4f}x of {nearest_name}"
        rows.append(["2", f"K={k}: error against the best other peer", told, "below 1x"])
    return rows


def print_machine() -> None:
    told = [
        f"{name} {version(name)}" for name in ("pillow", "imagequant") if find_spec({"pillow": "PIL"}.get(name, name))
    ]
    for name, option in (("pngquant", "--version"), ("convert-im6", "-version"), ("magick", "-version")):
        if shutil.which(name):
            lines = subprocess.run([name, option], capture_output=True, text=True).stdout.splitlines()
            told.append(f"{name} {lines[0].removeprefix('Version: ')}")
    print(f"{machine()}; {', '.join(told)}")


def some(folder: Path, n: int, work: Path) -> Path:
    """Make a folder with links to n photos from all over another."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = files if n >= len(files) else [files[i] for i in np.linspace(0, len(files) - 1, n).astype(int)]
    linked = Path(tempfile.mkdtemp(dir=work))
    for path in chosen:
        (linked / path.name).symlink_to(path.resolve())
    return linked


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=Path, required=True, help="folder of photos for the speed, for example LFW")
    parser.add_argument("--photos", type=Path, required=True, help="folder of colour photos for the errors")
    parser.add_argument("--n-speed", type=int, default=4324, help="photos of --speed")
    parser.add_argument("--n-photos", type=int, default=50, help="photos of --photos")
    parser.add_argument("--n-same", type=int, default=500, help="photos whose files are compared bitwise")
    parser.add_argument("--k", type=int, nargs="+", default=KS, help="K of the table of errors")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of the stage; the fastest counts")
    parser.add_argument("--icons", type=int, default=10_000)
    parser.add_argument("--megapixels", type=int, default=50)
    parser.add_argument("--sample", type=int, default=500_000, help="pixels that K-Means of item 3 is fitted on")
    parser.add_argument("--items", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="parts that are run")
    parser.add_argument("--work", type=Path, default=None, help="folder for what is written; absent: a temporary one")
    args = parser.parse_args(argv)
    os.environ.pop("OPENBLAS_CORETYPE", None)
    os.environ.pop("OPENBLAS_L2_SIZE", None)
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work, rows = Path(name), []
        print_machine()
        folder = some(args.speed, args.n_speed, work)
        if 1 in args.items:
            with workers(args.workers) as client:
                rows += speed(client, args, folder, work)
        if 2 in args.items:
            photos = sorted(some(args.photos, args.n_photos, work).iterdir())
            with workers(args.workers) as client:
                rows += print_peers(compare(client, photos, args.k), args.k, len(photos))
        if 3 in args.items:
            rows += shared(args, folder, work)
            rows += shared(args, some(args.photos, args.n_photos, work), work)
        if 4 in args.items:
            rows += proportion(args, work)
        if 5 in args.items:
            rows += same_files(args, some(folder, args.n_same, work), work)
    print("\n| item | what | measured | wanted |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
