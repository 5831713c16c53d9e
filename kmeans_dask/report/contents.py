"""Contents of the report, collected from the files of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from kmeans_dask.report.colour_gallery import ItemReader, colour_gallery
from kmeans_dask.report.gallery import make_gallery
from kmeans_dask.report.sheets import draw_collection, draw_colours, draw_models
from kmeans_dask.report.thumbnails import TileSheets
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.normalize import POLICY, to_array
from kmeans_dask.sources.reading import read_contents
from kmeans_dask.storage.object_store import path_or_bytes, readable
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord

_MAX_FAILED = 1000
"""Maximum number of failed items listed on the page."""
_LISTS = ("label_issues", "outliers", "duplicates")
"""Tables of items to review: properties of `RunFolder`, and keys of the page."""
_TEXT_COLUMNS = (
    "path", "label", "suggested", "of_path", "of_label", "split", "of_split", "reason", "kind", "algorithm",
)  # fmt: skip


class PageContents:
    """What the page of a run shows, added part by part; each part also draws its figures.

    Parameters
    ----------
    config
        Checked config with the section ``report``.
    folder
        Run folder, in which all stages before the report are finished.

    Attributes
    ----------
    data : dict
        JSON values that the scripts of the page read.
    tiles : dict
        Name -> `TileSheets` of ``items`` and ``centres``; empty without models.
    images : list of bytes
        WebP files that `data` refers to by index.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.tiles: dict[str, TileSheets] = {}
        self.images: list[bytes] = []
        assert config.report is not None
        self._n_samples = config.report.samples
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

    @property
    def parts(self) -> list[Callable[[], None]]:
        """The methods that add the parts which the config calls for, in order."""
        parts = [self.add_items]
        if self.config.ingest:
            parts.append(self.add_collection)
            if self.config.evaluate:
                parts.append(self.add_models)
        if self.config.quantize:
            parts.append(self.add_colours)
        return parts

    def add_items(self) -> None:
        """Add the number of items and the size of their files."""
        items = _present(read_manifest(self.folder.manifest))
        self._add_facts({"items": len(items), "input size, MB": round((pc.sum(items["bytes"]).as_py() or 0) / 1e6, 1)})

    def add_collection(self) -> None:
        """Add the collection: image sizes, labels, and the items that could not be read."""
        collection = open_collection(self.folder.collection)
        _, height, width, channels = collection.images.shape
        splits = Counter(collection.items["split"].to_pylist())
        self._add_facts(
            {
                "fitted": splits["train"],
                "held out": splits["holdout"],
                "failed": collection.n_failed,
                "labels": len(collection.class_names),
                "array per item": f"{height} × {width} × {channels} bytes",
            }
        )
        counts = np.bincount(collection.labels[collection.labels >= 0], minlength=len(collection.class_names))
        self.data["labels"] = {"names": list(collection.class_names), "counts": counts.tolist()}
        self.data["run"]["shapes"] = _shape_counts(_present(collection.items))
        self.data["run"]["changes"] = [[name, POLICY[name], n] for name, n in collection.changes.items()]
        self._add_failed(collection.items)
        draw_collection(self.folder.sheets, collection, self._n_samples)

    def add_models(self) -> None:
        """Add every model with its metrics, clusters and confusion matrix, and the lists of items to review."""
        metrics = read_json(self.folder.metrics)
        collection = open_collection(self.folder.collection)
        models = [read_model(self.folder.model(row["algorithm"], row["k"])) for row in metrics]
        facts = pq.read_table(readable(self.folder.cluster_facts))
        lists = {name: _read_csv(getattr(self.folder, name)) for name in _LISTS}
        features = open_features(self.folder.path)
        gallery = make_gallery(collection, features, models, facts, self.folder.clusters, lists)
        self.tiles = {"items": gallery.items, "centres": gallery.centres}
        self.data |= gallery.data
        self.data |= {"metrics": metrics, "totals": {name: len(table) for name, table in lists.items()}}
        confusions = [model["confusion"] for model in gallery.data["models"]]
        draw_models(self.folder.sheets, collection.class_names, models, metrics, gallery.cluster_images, confusions)

    def add_colours(self) -> None:
        """Add the quantized images: errors, some images before and after, palettes."""
        assert self.config.quantize is not None
        path, palette = self.folder.path, self.config.quantize.palette
        table = pq.read_table(readable(self.folder.quantized))
        ks = list(dict.fromkeys(table["k"].to_pylist()))
        shared = None if palette == "image" else {k: read_palette(path / "palettes" / f"{k}.gpl") for k in ks}
        original = self._original_reader()
        self.data["colours"], self.images = colour_gallery(
            table, self._n_samples, shared, path, original, self._read_output
        )
        draw_colours(path, self.folder.sheets, table, self._n_samples, palette, original, self._read_output)
        self._add_failed(table)

    def _original_reader(self) -> ItemReader:
        items = read_manifest(self.folder.manifest)

        def read(path: str) -> NDArray[np.uint8]:
            for _, content in read_contents(items.filter(pc.equal(items["path"], path))):
                return _rgb(content, self.config.input.max_pixels)  # inside the loop: an archive is still open
            raise ImageError("missing", f"{path} is not in the manifest")

        return read

    def _read_output(self, path: Path) -> NDArray[np.uint8]:
        return _rgb(path_or_bytes(path), self.config.input.max_pixels)

    def _add_facts(self, values: dict[str, float | str]) -> None:
        self.data["run"]["facts"] += [
            [name, value if isinstance(value, str) else f"{value:,}"] for name, value in values.items()
        ]

    def _add_failed(self, table: pa.Table) -> None:
        """Add the failed items of a table, each path only once."""
        failures = self.data["failed"]
        is_ok = pc.is_in(table["status"], pa.array(["ok", REMOVED]))
        failed = table.filter(pc.invert(is_ok)).select(["path", "status", "error"])
        listed_paths = {row["path"] for row in failures["rows"]}
        new = {row["path"]: row for row in failed.to_pylist() if row["path"] not in listed_paths}
        failures["rows"] = [*failures["rows"], *new.values()][:_MAX_FAILED]
        failures["count"] += len(new)


def _present(items: pa.Table) -> pa.Table:
    """Drop the items that have been removed from the source."""
    return items.filter(pc.not_equal(items["split"], REMOVED))


def _rgb(content: Content, max_pixels: int) -> NDArray[np.uint8]:
    return to_array(open_image(content, max_pixels=max_pixels), mode="RGB")


def _read_csv(path: Path) -> pa.Table:
    """Read a list of items; labels that look like numbers stay text."""
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(_TEXT_COLUMNS, pa.string()), strings_can_be_null=True
    )
    return pyarrow.csv.read_csv(readable(path), convert_options=options)


def _shape_counts(items: pa.Table) -> list[list[object]]:
    """Count the original images by size and mode: the ten most frequent ones, and the rest as one row."""
    shapes = Counter(zip(*(items[name].to_pylist() for name in ("width", "height", "mode")), strict=True))
    shapes.pop((None, None, None), None)
    rows: list[list[object]] = [[f"{w} × {h}", mode, n] for (w, h, mode), n in shapes.most_common(10)]
    rest = sum(shapes.values()) - sum(n for _, n in shapes.most_common(10))
    if rest:
        rows.append([f"{len(shapes) - 10:,} other shapes", "", rest])
    return rows
