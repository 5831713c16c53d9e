"""Colour quantization against decoding and encoding alone, and against other quantizers.

    python -m benchmarks.quantization --speed data/lfw --photos data/bsds

prints two Markdown tables: seconds and error of every quantizer, and targets with the measured values. Quantizers that
are not installed are skipped: imagequant (pip), pngquant and ImageMagick (Debian packages). All files are written to
new folders below --work, which are removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from distributed import Client
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.colour_peers import KS, RECIPE, compare, peers, print_peers, whole_peer
from benchmarks.common import machine
from benchmarks.quantize_stage import MAX_PIXELS, config_of, files_of, peak_memory, run_stage, some, workers
from benchmarks.shared_palettes import shared, variants
from kmeans_dask.colours.remap import encode
from kmeans_dask.sources.images import open_image
from kmeans_dask.storage.output_names import write_file


def time_codec(files, quantized, target):
    """Decode the inputs, and encode and write the outputs of the stage again; return the seconds of the three steps."""
    images = []
    for path in quantized:
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
    """Wall seconds that the same workers take to only decode, only encode and only write the files of a run."""
    table = pq.read_table(run / "quantized.parquet").to_pylist()
    files = [bytes(file) for file in pq.read_table(run / "manifest.parquet")["file"].to_pylist()]
    outputs = {row["path"]: run / row["output"] for row in table if row["k"] == k and row["status"] == "ok"}
    paths = pq.read_table(run / "manifest.parquet")["path"].to_pylist()
    pairs = [(file, outputs[path]) for file, path in zip(files, paths, strict=True) if path in outputs]
    target = Path(tempfile.mkdtemp(dir=work))
    batches = [pairs[start : start + 64] for start in range(0, len(pairs), 64)]
    tasks = [client.submit(time_codec, *zip(*batch, strict=True), target, pure=False) for batch in batches]
    seconds = np.sum(client.gather(tasks), axis=0) / n_workers
    return float(seconds[0]), float(seconds[1]), float(seconds[2])


def speed(client: Client, args: argparse.Namespace, folder: Path, work: Path, name: str) -> list[list[str]]:
    """Item 1: table rows for the speed on one folder."""
    files = files_of(folder)
    n = len(files)
    run_stage(client, some(folder, 128, work), work, k=[2, 6, 30])  # compile
    alone, run = min((run_stage(client, folder, work, k=[30]) for _ in range(args.repeat)), key=lambda r: r[0])
    three = min(run_stage(client, folder, work, k=[2, 6, 30])[0] for _ in range(args.repeat))
    decode, coding, write = min((bare(client, run, work, args.workers, 30) for _ in range(args.repeat)), key=sum)
    each = 1000 * args.workers / n
    rows = [
        ["1", f"{n:,} {name}, K=30, stage", f"{n / alone:,.0f} photos/s", ""],
        [
            "1",
            "ms per photo and worker: stage; decode, encode, write alone",
            f"{alone * each:.2f}; {decode * each:.2f}, {coding * each:.2f}, {write * each:.2f}",
            "",
        ],
        [
            "1",
            "throughput as a fraction of decode + encode alone; of decode + encode + write alone",
            f"{(decode + coding) / alone:.0%}; {(decode + coding + write) / alone:.0%}",
            "at least 70 %",
        ],
        ["1", "K=2, 6, 30 against K=30 alone", f"{three / alone:.2f}x", "at most 2.2x"],
    ]
    for peer, most, target in ((RECIPE, 24, 30), ("libimagequant", 240, 8)):
        if peer in peers():
            chosen = files[:: max(1, n // most)]
            target_folder = tempfile.mkdtemp(dir=work)
            seconds = client.gather(client.map(whole_peer, chosen, name=peer, k=30, target=target_folder, pure=False))
            factor = float(np.mean(seconds)) / args.workers / (alone / n)
            rows.append(["1", f"K=30, against {peer}", f"{factor:.1f}x faster", f"at least {target}x"])
    return rows


def proportion(args: argparse.Namespace, work: Path) -> list[list[str]]:
    """Item 4: time and memory for a huge photo and for many icons, compared with an ordinary photo."""
    china = Image.fromarray(load_sample_image("china.jpg"))
    rows = []
    for name, megapixels in (("1-megapixel photo", 1.0), (f"{args.megapixels}-megapixel photo", args.megapixels)):
        folder = Path(tempfile.mkdtemp(dir=work))
        scale = math.sqrt(megapixels * 1e6 / (china.width * china.height))
        size = (round(china.width * scale), round(china.height * scale))
        china.resize(size, Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
        rows.append(measured(name, folder, work, megapixels, "s/megapixel"))
    folder = Path(tempfile.mkdtemp(dir=work))
    for number in range(args.icons):
        x, y = number * 7 % (china.width - 32), number * 3 % (china.height - 32)
        china.crop((x, y, x + 32, y + 32)).save(folder / f"{number:06}.png", compress_level=1)
    rows.append(measured(f"{args.icons:,} icons of 32 x 32", folder, work, args.icons / 1000, "s per thousand"))
    return rows


def measured(name: str, folder: Path, work: Path, amount: float, unit: str) -> list[str]:
    with workers(1) as client:
        tiny = Path(tempfile.mkdtemp(dir=work))
        Image.fromarray(load_sample_image("flower.jpg")[::4, ::4].copy()).save(tiny / "a.png")
        run_stage(client, tiny, work, k=[30])  # compile
        before = max(client.run(peak_memory).values())
        seconds, _ = run_stage(client, folder, work, k=[30])
        peak = max(client.run(peak_memory).values())
    figures = f"{seconds:.2f} s, {seconds / amount:.3f} {unit}; peak {before / 2**20:,.0f} -> {peak / 2**20:,.0f} MiB"
    return ["4", name, figures, "proportional"]


def same_files(args: argparse.Namespace, folder: Path, work: Path, name: str) -> list[list[str]]:
    """Item 5: compare all output files for one worker, for several, and for a job that was killed and resumed."""
    hashes = {}
    for n in dict.fromkeys((1, args.workers, 3)):
        with workers(n) as client:
            hashes[f"{n} workers"] = hash_of(run_stage(client, folder, work, k=[6, 30])[1])
    output = Path(tempfile.mkdtemp(dir=work))
    config = config_of(folder, output, "killed", k=[6, 30]).model_dump(mode="json", exclude_none=True)
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "kmeans_dask", "quantize", str(output / "config.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((output / "killed").glob("quantized/30/**/*.png"))) < 20:
        time.sleep(0.02)
    done = len(list((output / "killed").glob("quantized/30/**/*.png")))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    hashes[f"killed after {done} photos and resumed"] = hash_of(output / "killed")
    verdict = "identical" if len(set(hashes.values())) == 1 else "DIFFERENT"
    return [["5", f"files of {len(files_of(folder)):,} {name}: {', '.join(hashes)}", verdict, "bitwise identical"]]


def hash_of(run: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((run / "quantized").glob("**/*.png")):
        digest.update(str(path.relative_to(run)).encode() + path.read_bytes())
    return digest.hexdigest()


def print_machine() -> None:
    versions = [
        f"{name} {version(name)}" for name in ("pillow", "imagequant") if find_spec({"pillow": "PIL"}.get(name, name))
    ]
    for name, option in (("pngquant", "--version"), ("convert-im6", "-version"), ("magick", "-version")):
        if shutil.which(name):
            lines = subprocess.run([name, option], capture_output=True, text=True).stdout.splitlines()
            versions.append(f"{name} {lines[0].removeprefix('Version: ')}")
    print(f"{machine()}; {', '.join(versions)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=Path, required=True, help="folder of photos for the speed tests, e.g. LFW")
    parser.add_argument("--photos", type=Path, required=True, help="folder of colour photos for the error tests")
    parser.add_argument("--n-speed", type=int, default=4324, help="number of photos of --speed to use")
    parser.add_argument("--n-photos", type=int, default=50, help="number of photos of --photos to use")
    parser.add_argument("--times", type=int, default=20, help="repetitions of each photo of --photos in the speed test")
    parser.add_argument(
        "--variants", type=int, default=400, help="number of photos derived from --photos for a large colour table"
    )
    parser.add_argument("--n-same", type=int, default=500, help="number of photos whose files are compared bitwise")
    parser.add_argument("--k", type=int, nargs="+", default=KS, help="values of K in the table of errors")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of the stage; the fastest counts")
    parser.add_argument("--icons", type=int, default=10_000)
    parser.add_argument("--megapixels", type=int, default=50)
    parser.add_argument(
        "--sample", type=int, default=500_000, help="number of pixels that scikit-learn is fitted on in item 3"
    )
    parser.add_argument("--items", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="items to run")
    parser.add_argument(
        "--work",
        type=Path,
        default=None,
        help="parent folder of all written files (default: the system's temporary folder)",
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work, rows = Path(name), []
        print_machine()
        folder, photos = some(args.speed, args.n_speed, work), some(args.photos, args.n_photos, work)
        if 1 in args.items:
            with workers(args.workers) as client:
                rows += speed(client, args, folder, work, f"photos of {args.speed.name}")
                name = f"photos of {args.photos.name}, {args.n_photos} repeated {args.times} times"
                rows += speed(client, args, some(args.photos, args.n_photos, work, args.times), work, name)
        if 2 in args.items:
            with workers(args.workers) as client:
                rows += print_peers(compare(client, files_of(photos), args.k), args.k, args.n_photos)
        if 3 in args.items:
            chosen = {
                f"photos of {args.speed.name}": folder,
                f"photos of {args.photos.name}": photos,
                f"variants of photos of {args.photos.name}": variants(photos, work, args.variants),
            }
            for name, images in chosen.items():
                rows += shared(images, work, args.workers, args.sample, name)
        if 4 in args.items:
            rows += proportion(args, work)
        if 5 in args.items:
            rows += same_files(args, some(folder, args.n_same, work), work, f"photos of {args.speed.name}")
            rows += same_files(args, photos, work, f"photos of {args.photos.name}")
    print("\n| item | what | measured | target |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
