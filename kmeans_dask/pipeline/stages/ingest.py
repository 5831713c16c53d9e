"""Stage ingest: read the images into the collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmeans_dask.collection.collection import write_items_csv
from kmeans_dask.collection.ingest import ChunkSummary, finish_collection, ingest_tasks, plan_of
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.deploy.workers import workers_of
from kmeans_dask.pipeline.console import progress, say
from kmeans_dask.pipeline.failed_items import report_failed
from kmeans_dask.pipeline.plan.image_sizes import largest_image
from kmeans_dask.pipeline.plan.memory import chunk_limit
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.storage.run_folder import run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client) -> dict[str, Any]:
    """Decode every item of the manifest that is not in the collection yet, one task per chunk.

    Parameters
    ----------
    config
        Checked config with the section ``ingest``; the run folder has a manifest.
    client
        Client connected to the workers.

    Returns
    -------
    dict
        Number of ``items``, ``failed`` items and ``chunks``; ``changes`` (conversion -> number of items); ``content``
        (fingerprint of the collection).

    Raises
    ------
    JobError
        More than ``input.max_failed`` of the items could not be read.
    """
    assert config.ingest is not None
    folder = run_folder(config)
    largest = largest_image(read_manifest(folder.manifest))
    chunk_bytes = chunk_limit(config, workers_of(client), largest)
    tasks = ingest_tasks(folder.manifest, folder.collection, config.ingest, config.input, chunk_bytes)
    plan = plan_of(folder.collection)
    row_bytes = config.ingest.size[0] * config.ingest.size[1] * (1 if config.ingest.mode == "L" else 3)
    say(
        f"ingest: {plan.n_items:,} items in {len(plan.starts)} chunks of {plan.chunk_rows:,} items "
        f"({plan.chunk_rows * row_bytes / 2**20:.1f} MiB); {len(tasks)} to do"
    )
    with progress("ingest", min(len(tasks) * plan.chunk_rows, plan.n_items), "items") as advance:

        def count(summary: ChunkSummary) -> None:
            advance(summary.items, summary.failed)

        run_tasks(client, tasks, count)
    collection = finish_collection(folder.manifest, folder.collection, config.ingest, config.input)
    write_items_csv(collection.items, folder.items)
    n_items, n_failed = collection.n_items, collection.n_failed
    report_failed(
        "ingest", "read", n_failed, n_items,
        max_failed=config.input.max_failed, table=folder.items, retry=folder.path,
    )  # fmt: skip
    changes = collection.changes
    if changes:
        say("ingest: " + "; ".join(f"{change}: {count:,}" for change, count in changes.items()))
    return {
        "items": n_items,
        "failed": n_failed,
        "chunks": len(plan.starts),
        "changes": changes,
        "content": collection.fingerprint,
    }
