"""Stage report: one page, and its pictures as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.collection.collection import open_collection
from kmeans_dask.collection.features import open_features
from kmeans_dask.colours.palette_files import read_palette
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import without_secrets
from kmeans_dask.models.model import read_model
from kmeans_dask.pipeline.console import progress
from kmeans_dask.report.colour_gallery import colour_gallery
from kmeans_dask.report.gallery import make_gallery
from kmeans_dask.report.page import write_report
from kmeans_dask.report.sheets import draw_collection, draw_colours, draw_models
from kmeans_dask.report.thumbnails import Sheets
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.normalize import POLICY, to_array
from kmeans_dask.sources.reading import read_contents
from kmeans_dask.storage.object_store import path_or_bytes, readable
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder, run_folder
from kmeans_dask.storage.run_record import RunRecord

if TYPE_CHECKING:
    from distributed import Client


_FAILED_SHOWN = 1000
_LISTS = ("label_issues", "outliers", "duplicates")


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
        pictures, bytes.
    """
    folder = run_folder(config)
    page = _Page(config, folder)
    parts = [page.add_items]
    if config.ingest:
        parts.append(page.add_collection)
        if config.evaluate:
            parts.append(page.add_models)
    if config.quantize:
        parts.append(page.add_colours)
    with progress("report", len(parts) + 1, "parts") as advance:
        for part in parts:
            part()
            advance(1)
        write_report(folder.report, config.name, page.data, page.sheets, page.pictures)
        advance(1)
    return {"pictures": len(list(folder.sheets.glob("*.png"))), "bytes": folder.report.stat().st_size}


class _Page:
    """What the page is told, part by part."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.sheets: dict[str, Sheets] = {}
        self.pictures: list[bytes] = []
        assert config.report is not None
        self.samples = config.report.samples
        record = RunRecord.read(folder)
        versions = {"seed": record.facts["seed"], "Python": record.facts["python"], **record.facts["versions"]}
        self.data: dict[str, Any] = {
            "run": {
                "facts": [],
                "shapes": [],
                "changes": [],
                "timings": [[stage, entry["seconds"]] for stage, entry in record.stages.items() if stage != "listing"],
                "versions": [[name, str(value)] for name, value in versions.items()],
                "config": without_secrets((folder.path / "config.yaml").read_text(encoding="utf-8")),
            },
            "labels": {"names": [], "counts": []},
            "metrics": [],
            "choice": record.stages.get("evaluate", {}).get("summary", {}).get("choice") or [],
            "models": [],
            "lists": {},
            "totals": {},
            "map": None,
            "colours": None,
            "failed": {"rows": [], "count": 0},
        }

    def add_items(self) -> None:
        """Say how many items there are."""
        items = _present(read_manifest(self.folder.manifest))
        self._facts({"items": len(items), "MB of files": round((pc.sum(items["bytes"]).as_py() or 0) / 1e6, 1)})

    def add_collection(self) -> None:
        """Describe the collection: shapes of the originals, labels, what could not be read."""
        collection = open_collection(self.folder.collection)
        _, height, width, channels = collection.images.shape
        splits = Counter(collection.items["split"].to_pylist())
        self._facts(
            {
                "fitted": splits["train"],
                "held out": splits["holdout"],
                "failed": collection.n_failed,
                "labels": len(collection.class_names),
                "a row": f"{height} × {width} × {channels} bytes",
            }
        )
        counts = np.bincount(collection.labels[collection.labels >= 0], minlength=len(collection.class_names))
        self.data["labels"] = {"names": list(collection.class_names), "counts": counts.tolist()}
        self.data["run"]["shapes"] = _shapes(_present(collection.items))
        self.data["run"]["changes"] = [[name, POLICY[name], n] for name, n in collection.changes.items()]
        self._failed(collection.items)
        draw_collection(self.folder.sheets, collection, self.samples)

    def add_models(self) -> None:
        """Show every model: its metrics, clusters, confusion, and the lists of items to look at."""
        assert self.config.fit is not None
        metrics = read_json(self.folder.metrics)
        collection = open_collection(self.folder.collection)
        models = [read_model(self.folder.model(row["algorithm"], row["k"])) for row in metrics]
        facts = pq.read_table(readable(self.folder.cluster_facts))
        lists = {name: _read_csv(getattr(self.folder, name)) for name in _LISTS}
        features = open_features(self.folder.path)
        gallery = make_gallery(collection, features, models, facts, self.folder.clusters, lists)
        self.sheets = {"items": gallery.items, "centres": gallery.centres}
        self.data |= gallery.data
        self.data |= {"metrics": metrics, "totals": {name: len(table) for name, table in lists.items()}}
        confusions = [model["confusion"] for model in gallery.data["models"]]
        draw_models(self.folder.sheets, collection.class_names, models, metrics, gallery.pictures, confusions)

    def add_colours(self) -> None:
        """Show the quantized images."""
        assert self.config.quantize is not None
        table = pq.read_table(readable(self.folder.quantized))
        palette = self.config.quantize.palette
        ks = list(dict.fromkeys(table["k"].to_pylist()))
        shared = (
            None if palette == "image" else {k: read_palette(self.folder.path / "palettes" / f"{k}.gpl") for k in ks}
        )
        path = self.folder.path
        self.data["colours"], self.pictures = colour_gallery(
            table, self.samples, shared, path, self._reader(), self._output
        )
        draw_colours(path, self.folder.sheets, table, self.samples, palette, self._reader(), self._output)
        self._failed(table)

    def _reader(self) -> Any:
        items = read_manifest(self.folder.manifest)

        def read(path: str) -> NDArray[np.uint8]:
            for _, content in read_contents(items.filter(pc.equal(items["path"], path))):
                return _rgb(content, self.config.input.max_pixels)  # inside: an archive is open while it is read
            raise ImageError("missing", f"{path} is not in the manifest")

        return read

    def _output(self, path: Path) -> NDArray[np.uint8]:
        return _rgb(path_or_bytes(path), self.config.input.max_pixels)

    def _facts(self, values: dict[str, float | str]) -> None:
        self.data["run"]["facts"] += [
            [name, value if isinstance(value, str) else f"{value:,}"] for name, value in values.items()
        ]

    def _failed(self, table: pa.Table) -> None:
        """Add items that failed, each path once."""
        told = self.data["failed"]
        there = pc.is_in(table["status"], pa.array(["ok", REMOVED]))
        failed = table.filter(pc.invert(there)).select(["path", "status", "error"])
        known = {row["path"] for row in told["rows"]}
        new = {row["path"]: row for row in failed.to_pylist() if row["path"] not in known}
        told["rows"] = [*told["rows"], *new.values()][:_FAILED_SHOWN]
        told["count"] += len(new)


def _present(items: pa.Table) -> pa.Table:
    """Leave out what has been removed from the source."""
    return items.filter(pc.not_equal(items["split"], REMOVED))


def _rgb(content: Content, max_pixels: int) -> NDArray[np.uint8]:
    return to_array(open_image(content, max_pixels=max_pixels), mode="RGB")


def _read_csv(path: Path) -> pa.Table:
    """Read a list of items; labels that look like numbers stay text."""
    texts = ("path", "label", "suggested", "of_path", "of_label", "split", "of_split", "reason", "kind", "algorithm")
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), strings_can_be_null=True)
    return pyarrow.csv.read_csv(readable(path), convert_options=options)


def _shapes(items: pa.Table) -> list[list[object]]:
    """Say how large the original images are: the ten most frequent shapes and the rest."""
    shapes = Counter(zip(*(items[name].to_pylist() for name in ("width", "height", "mode")), strict=True))
    shapes.pop((None, None, None), None)
    rows: list[list[object]] = [[f"{w} × {h}", mode, n] for (w, h, mode), n in shapes.most_common(10)]
    rest = sum(shapes.values()) - sum(n for _, n in shapes.most_common(10))
    if rest:
        rows.append([f"{len(shapes) - 10:,} other shapes", "", rest])
    return rows
