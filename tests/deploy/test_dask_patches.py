"""A clock that is set back during the work, in a separate process so that all of Dask uses it."""

from __future__ import annotations

import os
import subprocess
import sys

SET_BACK = """
import sys, threading, time

clock, back = time.time, 0
time.time = lambda: clock() - back

from kmeans_dask.deploy.client import connect; from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.config.cluster import Cluster
import dask

with connect(Cluster(kind="threads", n_workers=2)) as client:
    done = []

    def count(result):
        global back
        done.append(result)
        if len(done) == 20:
            back = 3600

    task = dask.delayed(time.sleep, pure=False)
    for _ in range(40):
        run_tasks(client, [task(0.001) for _ in range(5)], count)
    before = client.run_on_scheduler(lambda dask_scheduler: [w.last_seen for w in dask_scheduler.workers.values()])
    limit = time.monotonic() + 60
    has_beaten = [False]
    while not all(has_beaten) and time.monotonic() < limit:
        time.sleep(0.1)
        after = client.run_on_scheduler(lambda dask_scheduler: [w.last_seen for w in dask_scheduler.workers.values()])
        has_beaten = [a > b for a, b in zip(after, before)]
    print(len(done), back, has_beaten)
"""


def test_streams_and_heartbeats_survive_clock_change():
    done = subprocess.run(
        [sys.executable, "-c", SET_BACK], capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )

    assert (done.returncode, done.stdout) == (0, "200 3600 [True, True]\n"), done.stderr
