"""Stage quantize: every image reduced to K colours."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kmeans_dask.colours.palette_files import read_palette, write_palette
from kmeans_dask.colours.palettes import Palettes
from kmeans_dask.colours.quantize import BatchSummary, QuantizeJob, finish_quantized, missing_outputs, quantize_tasks
from kmeans_dask.colours.shared_palette import count_tasks, fit_shared, n_colours
from kmeans_dask.config.sections import Config, Quantize
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.deploy.workers import workers_of
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import progress, say
from kmeans_dask.pipeline.failed_items import report_failed
from kmeans_dask.pipeline.tables import show_colours
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.storage.object_store import is_local
from kmeans_dask.storage.output_names import output_names, renamed
from kmeans_dask.storage.publish import publish
from kmeans_dask.storage.run_folder import run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client) -> dict[str, Any]:
    """Write every item of the manifest in every K, one task per batch of images.

    Parameters
    ----------
    config
        Checked config with the section ``quantize``; the run folder has a manifest.
    client
        Client connected to the workers.

    Returns
    -------
    dict
        Number of ``items``, ``failed`` items and ``outputs``.

    Raises
    ------
    JobError
        More than ``input.max_failed`` of the items could not be quantized.
    UserError
        The palette file cannot be read, or the input folder is the run's own output folder.
    """
    assert config.quantize is not None
    settings, folder = config.quantize, run_folder(config)
    given = _given_palette(settings)
    ks = settings.k or list(given)
    job = QuantizeJob(folder.manifest, folder.path, settings, config.seed, config.input.max_pixels)
    manifest = read_manifest(folder.manifest)
    _refuse_own_outputs(config, manifest)
    missing = missing_outputs(job, given)
    workers = workers_of(client)
    threads = workers.n * workers.threads
    n_items = len(manifest) - manifest["split"].to_pylist().count(REMOVED)
    say(f"quantize: {n_items:,} items in K = {', '.join(map(str, ks))}; {len(missing):,} items to do")
    _log_renamed(manifest["path"].to_pylist(), settings.format)
    palettes = given or None
    if missing and settings.palette == "shared":
        palettes = _shared_palettes(job, client, plan_batches(manifest, threads))
    for k, palette in (palettes or {}).items():
        for kind in ("gpl", "json", "png"):
            write_palette(folder.path / "palettes" / f"{k}.{kind}", palette)
    with progress("quantize", len(missing), "items") as advance:

        def count(summary: BatchSummary) -> None:
            advance(summary.done + summary.failed, summary.failed)

        run_tasks(client, quantize_tasks(job, missing, palettes, threads), count)
    table = finish_quantized(folder.path, ks)
    return _summarize(config, table, ks, n_items)


def _refuse_own_outputs(config: Config, manifest: pa.Table) -> None:
    """Raise if input images are in the output folder of this run (links resolved): they would be overwritten."""
    quantized = run_folder(config).path / "quantized"
    folders = {os.path.dirname(file) for file in manifest["file"].to_pylist()}
    if is_local(quantized):
        own = os.path.join(os.path.realpath(os.fsencode(quantized)), b"")
        folders = {os.path.realpath(folder) for folder in folders}
    else:
        own = f"{quantized}/".encode()
    if any(os.path.join(folder, b"").startswith(own) for folder in folders):
        raise UserError(f"input.path: images are in {quantized}, which this run overwrites; change name or output")


def _given_palette(settings: Quantize) -> Palettes:
    """Read the palette file named in the config, keyed by its number of colours; empty if there is none."""
    if settings.palette in ("image", "shared"):
        return {}
    palette = read_palette(settings.palette)
    if settings.format == "gif" and len(palette) > 256:
        raise UserError(f"format gif supports 256 colours, {settings.palette} has {len(palette):,}: use png or webp")
    return {len(palette): palette}


def _log_renamed(paths: Sequence[str], kind: str) -> None:
    changed = renamed(paths, output_names(paths, f".{kind}"))
    if changed:
        shown = ", ".join(f"{path} -> {name}" for path, name in changed[:3])
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        say(f"quantize: renamed outputs whose names would clash: {shown}{more}; quantized.parquet lists all names")


def _shared_palettes(job: QuantizeJob, client: Client, batches: Sequence[tuple[int, int]]) -> Palettes:
    """Count the colours of all items, unless they are stored already, and fit one palette for each K."""
    tasks = count_tasks(job, batches)
    if tasks:
        with progress("count colours", batches[-1][1], "items") as advance:
            run_tasks(client, tasks, advance)
    say(f"quantize: {n_colours(job.folder):,} colours {'counted' if tasks else 'already counted'}")
    start = time.monotonic()
    palettes = fit_shared(job)
    say(f"quantize: shared palettes fitted in {time.monotonic() - start:.1f} s; files in {job.folder / 'palettes'}")
    return palettes


def _summarize(config: Config, table: pa.Table, ks: Sequence[int], n_items: int) -> dict[str, Any]:
    """Show the results, and raise if too many items failed."""
    folder = run_folder(config)
    failed = {row["path"] for row in table.filter(pc.not_equal(table["status"], "ok")).select(["path"]).to_pylist()}
    items = table.filter(pc.equal(table["k"], ks[0]))
    if not config.ingest:  # otherwise ingest has written items.csv
        with publish(folder.items) as partial:
            pyarrow.csv.write_csv(items.select(["path", "status", "error"]), partial)
    report_failed(
        "quantize", "quantized", len(failed), n_items,
        max_failed=config.input.max_failed, table=folder.quantized, retry=folder.path,
    )  # fmt: skip
    show_colours(config.name, table)
    return {"items": n_items, "failed": len(failed), "outputs": int(pc.sum(pc.equal(table["status"], "ok")).as_py())}
