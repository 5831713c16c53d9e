"""Who runs the tasks: the only package that knows distributed."""

from kmeans_dask.cluster.allocation import parts_of
from kmeans_dask.cluster.connecting import connect
from kmeans_dask.cluster.detached import ask_worker, start_driver, submitted_jobs
from kmeans_dask.cluster.security import open_to_others
from kmeans_dask.cluster.tasks import run_tasks, run_tree
from kmeans_dask.cluster.watchdog import lost
from kmeans_dask.cluster.watching import dashboard_link, recorded, worker_hosts, worker_memory, workers_of

__all__ = [
    "ask_worker", "connect", "dashboard_link", "lost", "open_to_others", "parts_of", "recorded", "run_tasks",
    "run_tree", "start_driver", "submitted_jobs", "worker_hosts", "worker_memory", "workers_of",
]  # fmt: skip
