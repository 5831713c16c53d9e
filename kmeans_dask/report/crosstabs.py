"""Cross-tabulation of labels and clusters, read in batches from the table of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.evaluation.metrics import contingency_block
from kmeans_dask.models.model import Model, column_prefix
from kmeans_dask.storage.object_store import readable

CELL_ROWS = 8
"""Number of items kept per cell of the confusion matrix: those nearest to their centres."""


@dataclass
class Crosstab:
    """Labels against clusters of one model, over the items of both splits.

    Attributes
    ----------
    counts : (k, n_classes) int64
        Number of items per cluster and label; items without a label are not counted.
    cells, rows : (m,) int64
        Cell (``label * n_classes + predicted label``) and collection row of the items kept, at most `CELL_ROWS` per
        cell, sorted by cell and distance. Clusters without a label predict none and have no cell.
    """

    counts: NDArray[np.int64]
    cells: NDArray[np.int64]
    rows: NDArray[np.int64]
    _distances: NDArray[np.float32]

    @classmethod
    def empty(cls, k: int, n_classes: int) -> Crosstab:
        """Create a table without items."""
        no_rows = np.empty(0, np.int64)
        return cls(np.zeros((k, n_classes), np.int64), no_rows, no_rows, np.empty(0, np.float32))

    def add(
        self,
        clusters: NDArray[np.int64],
        labels: NDArray[np.int64],
        predicted: NDArray[np.int64],
        distances: NDArray[np.float32],
        first_row: int,
    ) -> None:
        """Count a batch of items, and keep the nearest of each cell; the order of batches does not matter."""
        n_classes = self.counts.shape[1]
        self.counts += contingency_block(clusters, labels, *self.counts.shape)
        has_cell = np.flatnonzero((labels >= 0) & (predicted >= 0))
        cells = np.concatenate([self.cells, labels[has_cell] * n_classes + predicted[has_cell]])
        rows = np.concatenate([self.rows, has_cell + first_row])
        distances = np.concatenate([self._distances, distances[has_cell]])
        order = np.lexsort((rows, distances, cells))
        cells = cells[order]
        rank = np.arange(len(cells)) - np.searchsorted(cells, cells)
        kept = order[rank < CELL_ROWS]
        self.cells, self.rows, self._distances = cells[rank < CELL_ROWS], rows[kept], distances[kept]


def crosstabs(
    path: Path, models: Sequence[Model], class_names: Sequence[str], selected: NDArray[np.int64]
) -> tuple[list[Crosstab], NDArray[np.int64]]:
    """Count labels against clusters for several models in one read, and look up the clusters of some items.

    Parameters
    ----------
    path
        ``clusters.parquet`` of a run.
    models
        Models with label maps.
    class_names
        Names of the classes.
    selected : (m,) int64
        Collection rows to look up, ascending.

    Returns
    -------
    tables : list of Crosstab
        One per model.
    selected_clusters : (n_models, m) int64
        Cluster of each selected row in each model; -1: none.
    """
    names = [column_prefix(model) for model in models]
    columns = ["label", *(f"{name}_{what}" for name in names for what in ("cluster", "distance"))]
    classes = pa.array(class_names, pa.string())
    tables = [Crosstab.empty(model.k, len(class_names)) for model in models]
    selected_clusters = np.full((len(models), len(selected)), -1)
    first_row = 0
    for batch in pq.ParquetFile(readable(path)).iter_batches(columns=columns):
        labels = _integers(pc.index_in(batch["label"].cast(pa.string()), value_set=classes))
        in_batch = slice(*np.searchsorted(selected, [first_row, first_row + len(batch)]))
        for m, (name, model, table) in enumerate(zip(names, models, tables, strict=True)):
            assert model.label_map is not None
            clusters = _integers(batch[f"{name}_cluster"])
            selected_clusters[m, in_batch] = clusters[selected[in_batch] - first_row]
            predicted = np.where(clusters >= 0, model.label_map[clusters], -1).astype(np.int64)
            distances = batch[f"{name}_distance"].fill_null(np.inf).to_numpy(zero_copy_only=False)
            table.add(clusters, labels, predicted, distances.astype(np.float32), first_row)
        first_row += len(batch)
    return tables, selected_clusters


def _integers(values: pa.Array) -> NDArray[np.int64]:
    """Convert to int64, with -1 for null."""
    return values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
