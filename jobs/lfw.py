"""Quantize every photo of a folder, such as Labeled Faces in the Wild, to palettes of 2, 6 and 30 colours.

python jobs/lfw.py lfw [--cluster tcp://10.0.0.1:8786]
"""

import argparse
from pathlib import Path

import numpy as np

from kmeans_dask import before_after_sheet, connect, list_images, quantize_folder, read_image


def main() -> None:
    """Print facts about the photos, quantize them, print a table of the errors, and draw some before and after."""
    parser = argparse.ArgumentParser(description="Quantize every photo of a folder to a few colours.")
    parser.add_argument("source", type=Path, help="folder of photos, with one folder per person")
    parser.add_argument("--dest", type=Path, default=Path("runs/lfw"), help="folder for all results")
    parser.add_argument("-k", type=int, nargs="+", default=[2, 6, 30], help="numbers of colours")
    parser.add_argument("--cluster", help="scheduler address, or YAML file; default: worker processes on this machine")
    args = parser.parse_args()

    photos = list_images(args.source)
    paths, megabytes = photos["path"].to_pylist(), photos["bytes"].to_numpy().sum() / 1e6
    people, counts = np.unique(photos["label"].fill_null("nobody").to_numpy(), return_counts=True)
    print(f"{len(paths):,} photos of {len(people):,} people, {megabytes:.1f} MB")
    print(f"{counts.min()} to {counts.max()} photos per person; most of {people[counts.argmax()]}")

    with connect(args.cluster):
        table = quantize_folder(args.source, args.dest, args.k)

    print("  K    photos  PSNR (dB)      MB   failed")
    ks, errors, sizes = (table[name].to_numpy() for name in ("k", "psnr", "bytes_out"))
    for k in args.k:
        psnr, size = errors[ks == k], sizes[ks == k]
        print(f"{k:3} {len(size):9,} {np.nanmean(psnr):10.2f} {np.nansum(size) / 1e6:7.1f} {np.isnan(size).sum():8}")

    outputs = {(row["path"], row["k"]): row["output"] for row in table.to_pylist() if row["status"] == "ok"}
    drawn = [path for path in paths[:: max(len(paths) // 5, 1)] if all((path, k) in outputs for k in args.k)]
    originals = [read_image(args.source / path) for path in drawn]
    quantized = [[read_image(args.dest / outputs[path, k]) for k in args.k] for path in drawn]
    before_after_sheet(originals, quantized, args.k, drawn).savefig(args.dest / "before-after.png")


if __name__ == "__main__":  # worker processes import this file
    main()
