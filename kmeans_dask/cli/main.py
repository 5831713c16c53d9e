"""The command ``kmeans-dask``, which is also the plug-in ``dask kmeans``.

Nothing heavy is imported before the config has been checked, so that help and mistakes are answered immediately.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import click

from kmeans_dask import __version__
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.pipeline.driver.stopping import Stopped, interrupted, leave_status_to_job, stoppable

if TYPE_CHECKING:
    from kmeans_dask.config.sections import Config


class _Commands(click.Group):
    """Turns the errors of a job into one line and an exit status, for the command and for the plug-in."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with stoppable():
                return super().invoke(context)
        except UserError as error:
            _fail(2, error)
        except JobError as error:
            _fail(1, error)
        except KeyboardInterrupt as error:
            stop = error if isinstance(error, Stopped) else interrupted()
            _fail(stop.status, stop)


def _fail(status: int, reason: object) -> None:
    click.echo(f"kmeans-dask: {reason}", err=True)
    sys.exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kmeans-dask")
def kmeans() -> None:
    """Cluster folders of images with K-Means on Dask, score the clusters, and reduce images to K colours.

    CONFIG is a YAML file. KEY=VALUE overrides one of its keys, for example fit.k=[10,256] or input.path=photos.
    """


_CLUSTER = click.option(
    "--cluster",
    metavar="FILE|tcp://...",
    help="Address of a running Dask cluster, or a YAML file with the section cluster.",
)


_UPDATE = click.option("--update", is_flag=True, help="Continue from the old centres if the collection changed.")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments shared by all commands that run stages."""
    for decorate in (
        click.option("--fresh/--resume", default=False, help="Start over, or resume where the run stopped (default)."),
        click.option("--dry-run", is_flag=True, help="Print the plan (tasks, memory, rough time and disk) and exit."),
        _CLUSTER,
        click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1),
        click.argument("config"),
    ):
        command = decorate(command)
    return command


@kmeans.command()
@_options
@_UPDATE
def run(config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, update: bool, dry_run: bool) -> None:
    """Run all stages of a config, in order."""
    _run_stages(None, config, overrides, cluster, fresh, update, dry_run)


@kmeans.command()
@_options
@_UPDATE
def fit(config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, update: bool, dry_run: bool) -> None:
    """Fit the models that do not exist yet."""
    _run_stages(("fit",), config, overrides, cluster, fresh, update, dry_run)


def _add_stage(stage: str, help_text: str) -> None:
    @kmeans.command(stage, help=help_text)
    @_options
    def command(config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, dry_run: bool) -> None:
        _run_stages((stage,), config, overrides, cluster, fresh, dry_run=dry_run)


_add_stage("ingest", "Read the images into a collection.")
_add_stage("evaluate", "Map clusters to labels and compute the metrics of every model.")
_add_stage("quantize", "Reduce every image to K colours.")
_add_stage("report", "Write the HTML report of the run.")


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a model of a finished run."""
    algorithm = click.option(
        "--algorithm", metavar="NAME", help="kmeans or minibatch (default: the first one of the config)."
    )
    return click.option("--k", type=int, help="Number of clusters (default: the largest).")(algorithm(command))


@kmeans.command()
@_model_options
@_CLUSTER
@click.option("--output", metavar="FILE", help="Table to write, .parquet or .csv (default: in the run folder).")
@click.option("--column", metavar="NAME", help="Column or array of SOURCE that holds the images (default: as in RUN).")
@click.argument("run_folder", metavar="RUN")
@click.argument("source")
def predict(
    run_folder: str,
    source: str,
    k: int | None,
    algorithm: str | None,
    cluster: str | None,
    output: str | None,
    column: str | None,
) -> None:
    """Assign the images of SOURCE to clusters with a model of the finished run RUN."""
    from kmeans_dask.cli.predict import predict

    predict(run_folder, source, k, algorithm, cluster, output, column)


@kmeans.command()
@click.argument("run_folder", metavar="RUN")
def show(run_folder: str) -> None:
    """Show the state, finished stages and result tables of a run."""
    from kmeans_dask.cli.show import show

    show(run_folder)


_ASK_CLUSTER = click.option(
    "--cluster", metavar="FILE|tcp://...", help="Ask a worker of this cluster, if only the cluster sees RUN."
)


@kmeans.command()
@_ASK_CLUSTER
@click.argument("run_folder", metavar="[RUN]", required=False)
def status(run_folder: str | None, cluster: str | None) -> None:
    """Show the progress of a run, its remaining time and failures, and whether its driver is alive.

    Without RUN: show all jobs that were submitted to the cluster.
    """
    from kmeans_dask.cli.status import status

    status(run_folder, cluster)


@kmeans.command()
@click.option("--follow", is_flag=True, help="Keep printing until the driver ends.")
@_ASK_CLUSTER
@click.argument("run_folder", metavar="RUN")
def logs(run_folder: str, follow: bool, cluster: str | None) -> None:
    """Show the log of the latest driver of a run."""
    from kmeans_dask.cli.status import logs

    logs(run_folder, follow, cluster)


@kmeans.command()
@_ASK_CLUSTER
@click.argument("run_folder", metavar="RUN")
def cancel(run_folder: str, cluster: str | None) -> None:
    """Stop the driver of a run cleanly and wait until it has ended; rerun its command later to resume."""
    from kmeans_dask.cli.status import cancel

    cancel(run_folder, cluster)


@kmeans.command()
@_options
@_UPDATE
def submit(
    config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, update: bool, dry_run: bool
) -> None:
    """Run all stages of a config with a driver on the cluster, and return immediately.

    Relative paths are relative to the current folder; all paths must exist on the cluster.
    """
    from kmeans_dask.config.loading import load_config

    if dry_run:
        _run_stages(None, config, overrides, cluster, fresh, dry_run=True)
        return
    checked = load_config(config, overrides, cluster)

    from kmeans_dask.cli.submit import submit

    submit(checked, fresh=fresh, update=update)


@kmeans.command(hidden=True)
def drive() -> None:
    """Drive a submitted job, which standard input describes."""
    from kmeans_dask.cli.submit import drive

    drive()


@kmeans.command()
@_model_options
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
def compare(first: str, second: str, k: int | None, algorithm: str | None) -> None:
    """Measure how well the clusters of two finished runs agree on their common items."""
    from kmeans_dask.cli.compare import compare

    compare(first, second, k, algorithm)


@kmeans.command()
@_model_options
@click.option(
    "--by", type=click.Choice(["cluster", "label"]), help="Copy the images into one folder per cluster or label."
)
@click.option("--link", is_flag=True, help="With --by: create symbolic links instead of copies.")
@click.argument("run_folder", metavar="RUN")
@click.argument("target", metavar="DEST")
def export(run_folder: str, target: str, by: str | None, k: int | None, algorithm: str | None, link: bool) -> None:
    """Export a model, its table of clusters, or the images of the finished run RUN to DEST.

    With --by, DEST becomes a folder with one sub-folder of images per cluster or label. Otherwise its suffix decides:
    .npz, .skops (scikit-learn) and .onnx hold the model, .csv and .parquet the cluster of every item.
    """
    from kmeans_dask.cli.export import export

    export(run_folder, target, by, k, algorithm, link)


@kmeans.command()
@_CLUSTER
@click.argument("run_folder", metavar="RUN")
def retry(run_folder: str, cluster: str | None) -> None:
    """Retry the images of a run that could not be read or quantized, and rerun what depends on them.

    If only the cluster sees RUN, a driver on the cluster retries it, as with submit.
    """
    from kmeans_dask.storage.run_folder import is_run

    if cluster is not None and not is_run(run_folder):
        from kmeans_dask.cli.submit import submit_retry

        submit_retry(run_folder, cluster)
        return
    from kmeans_dask.cli.retry import retry

    retry(run_folder, cluster)


@kmeans.command()
@click.argument("name", type=click.Choice(["mnist", "lfw"]))
@click.argument("dest")
def fetch(name: Literal["mnist", "lfw"], dest: str) -> None:
    """Download MNIST or LFW through scikit-learn and write it as a folder of images."""
    from pathlib import Path

    from kmeans_dask.sources.kinds.datasets import fetch

    click.echo(f"{fetch(name, Path(dest)):,} images in {dest}")


def _run_stages(
    stages: Sequence[str] | None,
    config: str,
    overrides: Sequence[str],
    cluster: str | None,
    fresh: bool,
    update: bool = False,
    dry_run: bool = False,
) -> None:
    """Run some stages of a config, or all if None. Imports are local because they would slow down `--help`."""
    from kmeans_dask.config.loading import check_sources, load_config

    checked = load_config(config, overrides, cluster)
    with _part_of_allocation(checked):
        check_sources(checked.input)
        from kmeans_dask.pipeline.resume import STAGES

        if dry_run:
            from kmeans_dask.pipeline.plan.dry_run import dry_run as print_plan

            print_plan(checked, stages or tuple(STAGES))
            return
        from kmeans_dask.pipeline.run import run_stages  # imports pyarrow, which takes 0.2 s

        run_stages(checked, stages or tuple(STAGES), fresh=fresh, update=update)


def _part_of_allocation(config: Config) -> AbstractContextManager[None]:
    """Return the context in which the job is driven; of the tasks of a Slurm job, only one enters its body."""
    if config.cluster.kind != "slurm-runner":
        return nullcontext()
    leave_status_to_job()  # before the next import, which takes a second
    from kmeans_dask.deploy.slurm_runner import slurm_roles

    return slurm_roles(config.cluster)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the name of the program; None: those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 invalid input, 130 interrupted or cancelled, 143 ended by SIGTERM.
    """
    try:
        kmeans.main(args=None if argv is None else list(argv), prog_name="kmeans-dask", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
