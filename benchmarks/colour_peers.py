"""Other colour quantizers: seconds and error of each on the same photos, without dithering."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from PIL import Image
from sklearn.cluster import KMeans

from kmeans_dask.colours.palettes import quantize_image
from kmeans_dask.colours.table import colour_table, nearest
from kmeans_dask.sources.images import open_image
from kmeans_dask.sources.normalize import to_array
from kmeans_dask.storage.output_names import write_file

MAX_PIXELS = 10**9
KS = (2, 6, 30, 256)
METHODS = {
    "Pillow median cut": (Image.Quantize.MEDIANCUT, 0),
    "Pillow median cut, kmeans=1": (Image.Quantize.MEDIANCUT, 1),
    "Pillow maximum coverage": (Image.Quantize.MAXCOVERAGE, 0),
    "Pillow fast octree": (Image.Quantize.FASTOCTREE, 0),
}
OURS, BEST, RECIPE = "kmeans-dask", "scikit-learn, best of 3", "scikit-learn, classic recipe"


# peers: RGB pixels and K in, RGB pixels out


def pillow(pixels, k, method, kmeans):
    return np.asarray(Image.fromarray(pixels).quantize(k, method, kmeans).convert("RGB"))


def libimagequant(pixels, k):
    import imagequant

    quantized = imagequant.quantize_pil_image(Image.fromarray(pixels).convert("RGBA"), dithering_level=0, max_colors=k)
    return np.asarray(quantized.convert("RGB"))


def program(pixels, k, command):
    """Run a program on PNG files; `command` holds the placeholders IN, OUT and K. Its time includes the PNG codec."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        Image.fromarray(pixels).save(source, compress_level=1)
        words = {"IN": str(source), "OUT": str(target), "K": str(k)}
        subprocess.run([words.get(word, word) for word in command], check=True, capture_output=True)
        return np.asarray(Image.open(target).convert("RGB"))


def recipe(pixels, k):
    """Quantize by the classic recipe: fit on a random 70 % of the pixels, predict all, rebuild from the centres."""
    X = pixels.reshape(-1, 3) / np.float32(255)
    rows = np.random.default_rng(0).permutation(len(X))[: int(0.7 * len(X))]
    model = KMeans(k, n_init=1, random_state=0).fit(X[rows])
    return np.rint(255 * model.cluster_centers_[model.predict(X)]).astype(np.uint8).reshape(pixels.shape)


def best_of_three(pixels, k):
    """Fit all pixels three times, as distinct colours weighted by count: the same sums in a fifth of the time."""
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
    found |= {name: (pillow, arguments) for name, arguments in METHODS.items()}
    if find_spec("imagequant"):
        found["libimagequant"] = (libimagequant, ())
    if shutil.which("pngquant"):
        found["pngquant"] = (program, (["pngquant", "--nofs", "--force", "--output", "OUT", "K", "IN"],))
    magick = shutil.which("magick") or shutil.which("convert-im6") or shutil.which("convert-im6.q16")
    if magick:
        found["ImageMagick"] = (program, ([magick, "IN", "-dither", "None", "-colors", "K", "OUT"],))
    found[RECIPE] = (recipe, ())
    found[BEST] = (best_of_three, ())
    return found


def squared_error(original, quantized) -> float:
    """Mean squared RGB distance over the pixels; the same measure for every peer."""
    return float(((quantized.astype(np.int64) - original) ** 2).sum(axis=2).mean())


def one_result(path, name, k):
    """Quantize one photo with one peer; return seconds and error."""
    pixels = np.array(to_array(open_image(path, max_pixels=MAX_PIXELS), mode="RGB"))
    function, more = peers()[name]
    start = time.perf_counter()
    quantized = function(pixels, k, *more)
    seconds = time.perf_counter() - start
    return seconds, squared_error(pixels, quantized)


def compare(client: Client, photos: Sequence[Path], ks: Sequence[int]) -> dict[tuple[str, int], tuple[float, float]]:
    """Mean seconds per photo and mean error for every peer and K; each photo is one single-threaded task."""
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


def whole_peer(path, name, k, target):
    """Decode, quantize, encode and write one photo with one peer; return the seconds."""
    function, more = peers()[name]
    start = time.perf_counter()
    pixels = np.array(to_array(open_image(path, max_pixels=MAX_PIXELS), mode="RGB"))
    stream = io.BytesIO()
    quantized = Image.fromarray(function(pixels, k, *more))
    quantized.quantize(k, dither=Image.Dither.NONE).save(stream, "PNG", compress_level=4)
    write_file(f"{target}/{time.monotonic_ns()}.png", stream.getvalue())
    return time.perf_counter() - start


def print_peers(table: dict[tuple[str, int], tuple[float, float]], ks: Sequence[int], n: int) -> list[list[str]]:
    print(f"\nSeconds per photo and mean squared RGB distance, {n} photos, no dithering, one thread\n")
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
        closest = min(others, key=others.__getitem__)
        ratio = f"{mine / others[closest]:.4f}x of {closest}"
        rows.append(["2", f"K={k}: error against the best other peer", ratio, "below 1x"])
    return rows
