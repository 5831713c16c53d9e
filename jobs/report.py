"""Stage report: one page, and its pictures as files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from distributed import Client
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jobs.console import progress
from kmeans_dask.collection import Collection, open_collection
from kmeans_dask.colour_plots import error_distribution, palette_strips
from kmeans_dask.config import Config
from kmeans_dask.errors import without_secrets
from kmeans_dask.evaluation import nearest_items
from kmeans_dask.features import Features, open_features
from kmeans_dask.images import Content, ImageError, open_image
from kmeans_dask.models import Model, read_model
from kmeans_dask.normalize import POLICY, to_array
from kmeans_dask.palette_files import read_palette
from kmeans_dask.plots import (
    before_after_sheet,
    centroid_sheet,
    label_counts,
    metric_curves,
    sample_sheet,
    save,
)
from kmeans_dask.publish import read_json
from kmeans_dask.report import (
    Code,
    Facts,
    Folded,
    Part,
    Picture,
    Section,
    Table,
    failed_section,
    metrics_table,
    quantization_table,
    write_report,
)
from kmeans_dask.runs import RunFolder, run_folder
from kmeans_dask.sources import read_contents, read_manifest
from kmeans_dask.store import read_block

_WORST, _STRIPS, _STRIP_COLOURS = 8, 6, 256
"""Images with the largest errors that are shown for each K; images whose palettes are drawn; the largest K drawn."""


def run(config: Config, client: Client | None = None) -> dict[str, Any]:
    """Write the report of what the run folder holds.

    Parameters
    ----------
    config
        With the section ``report``.
    client
        Not used: the report is made of tables and a few images.

    Returns
    -------
    dict
        pictures.
    """
    folder = run_folder(config)
    sections: list[Section] = []
    with progress("report", None, "sections") as advance:
        for section in _sections(config, folder):
            sections.append(section)
            advance(1)
        write_report(folder.report, config.name, sections)
    return {"pictures": len(list(folder.sheets.glob("*.png")))}


def _sections(config: Config, folder: RunFolder) -> list[Section]:
    sections = []
    failed: list[dict[str, Any]] = []
    if config.ingest:
        collection = open_collection(folder.collection)
        sections.append(_data_section(config, folder, collection))
        failed += _failed(collection.items)
        if config.evaluate:
            sections.append(_clusters_section(config, folder, collection))
    else:
        sections.append(_listing_section(folder))
    if config.quantize:
        table = pq.read_table(folder.quantized)
        sections.append(_quantized_section(config, folder, table))
        known = {row["path"] for row in failed}
        failed += [row for row in _failed(table) if row["path"] not in known]
    sections.append(failed_section(failed, len(failed)))
    sections.append(_run_section(folder))
    return sections


def _failed(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of items that failed, each path once."""
    rows = table.filter(pc.not_equal(table["status"], "ok")).select(["path", "status", "error"]).to_pylist()
    return list({row["path"]: row for row in rows}.values())


def _listing_section(folder: RunFolder) -> Section:
    items = read_manifest(folder.manifest)
    return Section("Data", [Facts({"items": len(items), "bytes": int(pc.sum(items["bytes"]).as_py())})])


def _data_section(config: Config, folder: RunFolder, collection: Collection) -> Section:
    items = collection.items
    _, height, width, channels = collection.images.shape
    splits = Counter(items["split"].to_pylist())
    facts = {
        "items": len(items),
        "fitted": splits["train"],
        "held out": splits["holdout"],
        "failed": collection.n_failed,
        "labels": len(collection.class_names),
        "collection": f"{len(items):,} × {height} × {width} × {channels} uint8",
        "bytes of the files": int(pc.sum(items["bytes"]).as_py()),
    }
    parts: list[Part] = [Facts(facts), _shapes_table(items), *_changes_table(collection)]
    counts = np.bincount(collection.labels[collection.labels >= 0], minlength=len(collection.class_names))
    if len(counts):
        figure = label_counts(collection.class_names, counts.tolist())
        parts.append(_picture(folder, "label-counts", figure, "Items of each label"))
        order = np.argsort(-counts, kind="stable")
        rows = [[collection.class_names[i], int(counts[i])] for i in order]
        parts.append(Folded(f"Items of all {len(counts):,} labels", [Table({"label": "", "items": ",d"}, rows)]))
    assert config.report is not None
    figure = _samples(collection, config.report.samples)
    parts.append(_picture(folder, "samples", figure, "A sample of the items, as they are in the collection"))
    return Section("Data", parts)


def _shapes_table(items: pa.Table) -> Table:
    """Say how large the original images are: the ten most frequent shapes and the rest."""
    shapes = Counter(zip(*(items[name].to_pylist() for name in ("width", "height", "mode")), strict=True))
    shapes.pop((None, None, None), None)
    rows: list[Sequence[object]] = [[f"{w} × {h}", mode, n] for (w, h, mode), n in shapes.most_common(10)]
    rest = sum(shapes.values()) - sum(n for _, n in shapes.most_common(10))
    if rest:
        rows.append([f"{len(shapes) - 10:,} other shapes", "", rest])
    return Table({"original width × height, pixels": "", "mode": "", "items": ",d"}, rows)


def _changes_table(collection: Collection) -> list[Table]:
    """Say what was done to how many items beside resizing; nothing to say for plain images."""
    rows = [[change, POLICY[change], count] for change, count in collection.changes.items()]
    return [Table({"done to items beside resizing": "", "how": "", "items": ",d"}, rows)] if rows else []


def _samples(collection: Collection, size: int) -> Figure:
    """Draw items from all over the collection, in its order, each with its label."""
    (readable,) = np.nonzero(collection.items["status"].to_numpy() == "ok")
    rows = readable[np.unique(np.linspace(0, len(readable) - 1, size).astype(int))]
    pictures = np.concatenate([read_block(collection.folder, row, row + 1) for row in rows.tolist()])
    return sample_sheet(pictures, [_name(collection.labels[row], collection.class_names) for row in rows])


def _clusters_section(config: Config, folder: RunFolder, collection: Collection) -> Section:
    assert config.fit is not None
    metrics = read_json(folder.metrics)
    features = open_features(folder.path)
    parts: list[Part] = [
        "Labels are given to clusters by the majority of their fitted items, and accuracy is the share of items "
        "whose cluster has their label: it grows with K by construction, so compare it at equal K. Inertia is the "
        f"sum of squared distances to the nearest centre, {features.scale}.",
        metrics_table(metrics),
    ]
    if len(config.fit.ks) > 1:
        parts.append(_picture(folder, "curves", metric_curves(metrics), "Figures over K"))
    models = [read_model(folder.model(a, k)) for a in config.fit.algorithm for k in config.fit.ks]
    for model in models:
        what = "Centres" if features.to_pixels(model.centres) is not None else "Items nearest to the centres"
        caption = f"{what} of {model.algorithm}, K = {model.k}: inferred label and fitted items"
        name = f"centres-{model.algorithm}-k{model.k}"
        picture = _picture(folder, name, _centres(model, features, collection, folder), caption)
        parts.append(Folded(f"{what} of {model.algorithm}, K = {model.k}", [picture]))
    return Section("Clusters", parts)


def _centres(model: Model, features: Features, collection: Collection, folder: RunFolder) -> Figure:
    """Draw the centres; where features do not lead back to pixels, the fitted item that is nearest to each."""
    assert model.label_map is not None
    assert model.counts is not None
    pictures = features.to_pixels(model.centres)
    if pictures is None:
        rows = nearest_items(folder.clusters, model)
        blank = np.full(collection.images.shape[1:], 255, np.uint8)
        pictures = np.stack([read_block(collection.folder, r, r + 1)[0] if r >= 0 else blank for r in rows.tolist()])
    pictures = pictures.reshape(model.k, *collection.images.shape[1:])
    titles = [_name(label, collection.class_names) for label in model.label_map]
    return centroid_sheet(pictures, titles, model.counts.tolist())


def _quantized_section(config: Config, folder: RunFolder, table: pa.Table) -> Section:
    assert config.quantize is not None
    assert config.report is not None
    done = table.filter(pc.equal(table["status"], "ok"))
    of_k = {k: done.filter(pc.equal(done["k"], k)) for k in dict.fromkeys(table["k"].to_pylist())}
    rows = [
        {
            "k": k,
            "images": len(part),
            "mse": pc.mean(part["mse"]).as_py(),
            "psnr": pc.mean(part["psnr"]).as_py(),
            "bytes": pc.sum(part["bytes_out"]).as_py(),
        }
        for k, part in of_k.items()
    ]
    parts: list[Part] = [
        "MSE is the mean over the pixels of the squared RGB distance to the original, in bytes; PSNR is in dB.",
        quantization_table(rows),
    ]
    if config.quantize.space == "oklab":
        means = [[k, pc.mean(part["mse_oklab"]).as_py()] for k, part in of_k.items()]
        parts.append(Table({"K": "d", "mean MSE in OKLab (white is 255)": ",.3f"}, means))
    if len(done) == 0:
        return Section("Quantized images", parts)
    figure = error_distribution({k: part["mse"].to_pylist() for k, part in of_k.items() if len(part)})
    parts.append(_picture(folder, "quantized-errors", figure, "How the errors of the images are distributed"))
    paths = list(dict.fromkeys(done["path"].to_pylist()))
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, config.report.samples).astype(int))]
    sheet = _before_after(config, folder, done, chosen)
    parts.append(_picture(folder, "before-after", sheet, "Originals and their quantized versions"))
    parts.append(_worst(config, folder, done, of_k))
    parts.append(_palettes(folder, config.quantize.palette, done, chosen[:_STRIPS]))
    return Section("Quantized images", parts)


def _worst(config: Config, folder: RunFolder, done: pa.Table, of_k: Mapping[int, pa.Table]) -> Part:
    """Images with the largest errors: a sheet of those at the largest K, and a table of those at each."""
    rows: list[list[object]] = []
    for k, part in of_k.items():
        worst = part.sort_by([("mse", "descending"), ("path", "ascending")]).slice(0, _WORST)
        rows += [[k, *row.values()] for row in worst.select(["path", "mse", "psnr"]).to_pylist()]
    largest = max(of_k)
    sheet = _before_after(config, folder, done, [str(row[1]) for row in rows if row[0] == largest])
    picture = _picture(folder, "quantized-worst", sheet, f"The largest errors at K = {largest}, and other K")
    table = Table({"K": "d", "image": "", "MSE": ",.2f", "PSNR, dB": ",.2f"}, rows)
    return Folded("Images with the largest errors", [picture, table])


def _palettes(folder: RunFolder, palette: str, done: pa.Table, paths: Sequence[str]) -> Part:
    """Draw the one palette of each K, or some images' own."""
    strips, titles = [], []
    if palette == "image":
        for row in done.select(["path", "k", "output"]).to_pylist():
            if row["path"] in paths and row["k"] <= _STRIP_COLOURS:
                strips.append(read_palette(folder.path / row["output"]))
                titles.append(f"{row['path']}, K = {row['k']}")
    else:
        for k in dict.fromkeys(done["k"].to_pylist()):
            if k <= _STRIP_COLOURS:
                strips.append(read_palette(folder.path / "palettes" / f"{k}.gpl"))
                titles.append(f"K = {k}")
    if not strips:
        return f"Palettes of more than {_STRIP_COLOURS} colours are not drawn."
    return Folded("Palettes", [_picture(folder, "palettes", palette_strips(strips, titles), "Palettes, dark to light")])


def _before_after(config: Config, folder: RunFolder, done: pa.Table, chosen: Sequence[str]) -> Figure:
    outputs: dict[str, dict[int, str]] = {}
    for path, k, output in zip(*(done[name].to_pylist() for name in ("path", "k", "output")), strict=True):
        outputs.setdefault(path, {})[k] = output
    max_pixels = config.input.max_pixels
    found = _originals(folder, chosen, max_pixels)
    ks = list(dict.fromkeys(done["k"].to_pylist()))
    originals, versions, titles = [], [], []
    for path in chosen:
        if path in found and len(outputs[path]) == len(ks):  # else one of them could not be written
            originals.append(found[path])
            versions.append([_read_rgb(folder.path / outputs[path][k], max_pixels) for k in ks])
            titles.append(path)
    return before_after_sheet(originals, versions, ks, titles)


def _originals(folder: RunFolder, paths: Sequence[str], max_pixels: int) -> dict[str, NDArray[np.uint8]]:
    """Read the original images of these paths; those that have gone since are left out."""
    items = read_manifest(folder.manifest)
    items = items.filter(pc.is_in(items["path"], pa.array(paths, pa.string())))
    names = items["path"].to_pylist()
    found = {}
    for row, content in read_contents(items):
        with suppress(ImageError):
            found[names[row]] = _read_rgb(content, max_pixels)
    return found


def _read_rgb(content: Content, max_pixels: int) -> NDArray[np.uint8]:
    return to_array(open_image(content, max_pixels=max_pixels), mode="RGB")


def _run_section(folder: RunFolder) -> Section:
    record = folder.read()
    seconds = {f"{stage}, seconds": entry["seconds"] for stage, entry in record["stages"].items() if stage != "listing"}
    facts = Facts({**seconds, "seed": record["seed"], "Python": record["python"], **record["versions"]})
    text = without_secrets((folder.path / "config.yaml").read_text(encoding="utf-8"))
    return Section("Run", [facts, Folded("Config", [Code(text)])])


def _picture(folder: RunFolder, name: str, figure: Figure, caption: str) -> Picture:
    """Save a figure beside the report, and show the file in it."""
    path = folder.sheets / f"{name}.png"
    save(figure, path)
    return Picture(path, caption)


def _name(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label >= 0 else "–"


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage from the command line: CONFIG [KEY=VALUE ...] [--cluster ...]."""
    from jobs import cli

    return cli.main(["report", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
