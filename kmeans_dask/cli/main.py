"""The command ``kmeans-dask``, which is also the plug-in ``dask kmeans``.

Nothing heavy is imported before the config has been checked: help and a mistake in the config answer at once.
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
    """Turn the errors of a job into one line and an exit status, for the command and for the plug-in."""

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
    """Cluster and colour-quantize image collections with K-Means on Dask.

    CONFIG is a YAML file; KEY=VALUE replaces one of its keys, for example fit.k=[10,256] or input.path=photos.
    """


_CLUSTER = click.option(
    "--cluster", metavar="FILE|tcp://...", help="A running Dask cluster, or a file with cluster settings."
)


_UPDATE = click.option("--update", is_flag=True, help="Go on from the old centres if the collection has changed.")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Arguments that all commands share."""
    for decorate in (
        click.option("--fresh/--resume", default=False, help="Start over, or go on where the run stopped (default)."),
        click.option("--dry-run", is_flag=True, help="Print the plan: tasks, memory, rough time and disk; do nothing."),
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
    """Fit the models that are missing."""
    _run_stages(("fit",), config, overrides, cluster, fresh, update, dry_run)


def _add_stage(stage: str, help_text: str) -> None:
    @kmeans.command(stage, help=help_text)
    @_options
    def command(config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, dry_run: bool) -> None:
        _run_stages((stage,), config, overrides, cluster, fresh, dry_run=dry_run)


_add_stage("ingest", "Read the images into a collection.")
_add_stage("evaluate", "Map clusters to labels and measure every model.")
_add_stage("quantize", "Write every image again in few colours.")
_add_stage("report", "Write the report of what is there.")


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which model of a finished run."""
    algorithm = click.option("--algorithm", metavar="NAME", help="kmeans or minibatch; default: the config's first.")
    return click.option("--k", type=int, help="Number of clusters; default: the largest.")(algorithm(command))


@kmeans.command()
@_model_options
@_CLUSTER
@click.option("--output", metavar="FILE", help="Table, .parquet or .csv; default: in the run folder.")
@click.option("--column", metavar="NAME", help="Column or array of SOURCE that holds the images; default: as in RUN.")
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
    """Label the images of SOURCE with a model of the finished RUN."""
    from kmeans_dask.cli.predict import predict

    predict(run_folder, source, k, algorithm, cluster, output, column)


@kmeans.command()
@click.argument("run_folder", metavar="RUN")
def show(run_folder: str) -> None:
    """Show the state, the finished stages and the tables of a run."""
    from kmeans_dask.cli.show import show

    show(run_folder)


_SEEN_BY = click.option("--cluster", metavar="FILE|tcp://...", help="Ask a worker of this cluster, which sees RUN.")


@kmeans.command()
@_SEEN_BY
@click.argument("run_folder", metavar="[RUN]", required=False)
def status(run_folder: str | None, cluster: str | None) -> None:
    """Tell how far a run is, how long it will take, what failed, and whether its driver is alive.

    Without RUN: of all jobs that were submitted to the cluster.
    """
    from kmeans_dask.cli.status import status

    status(run_folder, cluster)


@kmeans.command()
@click.option("--follow", is_flag=True, help="Go on until the driver ends.")
@_SEEN_BY
@click.argument("run_folder", metavar="RUN")
def logs(run_folder: str, follow: bool, cluster: str | None) -> None:
    """Show the log of the driver that was started last on a run."""
    from kmeans_dask.cli.status import logs

    logs(run_folder, follow, cluster)


@kmeans.command()
@_SEEN_BY
@click.argument("run_folder", metavar="RUN")
def cancel(run_folder: str, cluster: str | None) -> None:
    """End the driver of a run cleanly, and wait until it has ended; the same command later goes on."""
    from kmeans_dask.cli.status import cancel

    cancel(run_folder, cluster)


@kmeans.command()
@_options
@_UPDATE
def submit(
    config: str, overrides: Sequence[str], cluster: str | None, fresh: bool, update: bool, dry_run: bool
) -> None:
    """Run all stages of a config from a driver on the cluster, and return at once.

    Relative paths are taken from the current folder; all paths must be there on the cluster.
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
    """Be the driver of a submitted job, which standard input names."""
    from kmeans_dask.cli.submit import drive

    drive()


@kmeans.command()
@_model_options
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
def compare(first: str, second: str, k: int | None, algorithm: str | None) -> None:
    """Tell how well the clusters of two finished runs agree, on the items that both have."""
    from kmeans_dask.cli.compare import compare

    compare(first, second, k, algorithm)


@kmeans.command()
@_model_options
@click.option("--by", type=click.Choice(["cluster", "label"]), help="Copy the images into a folder each.")
@click.option("--link", is_flag=True, help="With --by: symbolic links, not copies.")
@click.argument("run_folder", metavar="RUN")
@click.argument("target", metavar="DEST")
def export(run_folder: str, target: str, by: str | None, k: int | None, algorithm: str | None, link: bool) -> None:
    """Write what a finished RUN has found to DEST.

    With --by, DEST is a folder of folders of images. Else its ending says what is written: .npz, .skops (scikit-learn)
    or .onnx a model, .csv or .parquet the table of its clusters.
    """
    from kmeans_dask.cli.export import export

    export(run_folder, target, by, k, algorithm, link)


@kmeans.command()
@_CLUSTER
@click.argument("run_folder", metavar="RUN")
def retry(run_folder: str, cluster: str | None) -> None:
    """Try again what failed of a run, images to be read or to be quantized, and do again what is made from them.

    A RUN that only the cluster sees is retried by a driver there, as by submit.
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
    """Download MNIST or LFW through scikit-learn, and write it as a folder of images."""
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
    """Run some stages of a config, or all; what is imported here would slow down `--help`."""
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
    """Of the tasks of a Slurm job only one does the job; elsewhere this process does."""
    if config.cluster.kind != "slurm-runner":
        return nullcontext()
    leave_status_to_job()  # before the second that this import takes
    from kmeans_dask.deploy.slurm_runner import parts_of

    return parts_of(config.cluster)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; absent: those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 the input is wrong, 130 interrupted or cancelled, 143 ended by SIGTERM.
    """
    try:
        kmeans.main(args=None if argv is None else list(argv), prog_name="kmeans-dask", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
