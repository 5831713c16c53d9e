"""The session of a driver: it holds the run's lock, sends heartbeats, obeys requests to cancel, and keeps a log."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kmeans_dask.errors import JobError, UserError, without_secrets
from kmeans_dask.pipeline.console import LOG, current_step, say
from kmeans_dask.pipeline.driver.failures import StoreLostError, describe_lost_folder
from kmeans_dask.pipeline.driver.logs import Log, current_stage, logged
from kmeans_dask.pipeline.driver.stopping import Stopped, cancelled, folder_gone, interrupted, lost, stop_here
from kmeans_dask.storage.lock import BEAT_SECONDS, Lock, LockLostError, acquire
from kmeans_dask.storage.object_store import reporting_unreachable
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


@contextmanager
def holding(folder: RunFolder, command: str, job: str | None = None) -> Iterator[Lock]:
    """Hold a run: no other driver works on it meanwhile, its progress is visible, and it can be cancelled.

    Parameters
    ----------
    folder
        Run folder; it exists.
    command
        Command line of the driver, shown to users.
    job
        Key of the submitted job that this driver belongs to; None for a local driver.

    Yields
    ------
    Lock

    Raises
    ------
    UserError
        Another driver works on the run.
    """
    with reporting_unreachable(folder.path):
        lock = acquire(folder.drivers, command, job)
    ended, is_lost, output_lock = threading.Event(), False, threading.Lock()
    try:
        with logged(folder.log(lock.number)) as log:
            facts = {"command": command, "host": platform.node(), "pid": os.getpid()}
            LOG.info("driver started", extra={"facts": facts})
            if lock.took_over:
                say(f"{folder.path.name}: {lock.took_over} is dead; resuming its work")
            arguments = (lock, folder, log, ended, output_lock)
            heart = threading.Thread(target=_beat, args=arguments, name="heartbeat", daemon=True)
            heart.start()
            try:
                yield lock
            except StoreLostError:
                is_lost = True
                log.abandon()
                raise
            finally:
                with output_lock:
                    ended.set()
                if not is_lost:
                    heart.join()
    finally:
        if not is_lost:
            # the disk may have failed; the missing heartbeats show others that this driver is dead
            with suppress(OSError):
                lock.release()


def _beat(lock: Lock, folder: RunFolder, log: Log, ended: threading.Event, output_lock: threading.Lock) -> None:
    """Publish the progress once a second, and interrupt the work on request."""
    stopping = False
    while True:
        step = current_step()
        try:
            lock.beat({"stage": current_stage(), "step": step.facts() if step else None})
            log.flush()
            if not stopping and _is_cancelled(folder.cancel_request, lock):
                stopping = True
                stop_here(cancelled())
        except (LockLostError, FileNotFoundError) as error:
            is_gone = isinstance(error, FileNotFoundError)
            if not (stopping or lock.ending):
                stop_here(folder_gone(describe_lost_folder(folder.path)) if is_gone else lost(str(error)))
            return
        # OSError, or an error of an object store's package: it may recover; otherwise the work itself will fail
        except Exception as error:
            with output_lock:  # nothing is printed after the line that ends the job
                if not ended.is_set():
                    LOG.warning(f"the run folder cannot be reached: {error}")
        if ended.wait(BEAT_SECONDS):
            return


def _is_cancelled(path: Path, lock: Lock) -> bool:
    """Whether this driver, or the submitted job that it belongs to, has been cancelled."""
    try:
        request = read_json(path)
    except (FileNotFoundError, ValueError):
        return False
    return bool(request["driver"] == lock.number or (lock.job is not None and request["job"] == lock.job))


@contextmanager
def recorded_end(record: RunRecord, lock: Lock) -> Iterator[None]:
    """Record in run.json and in the log how the work in the block failed or was stopped."""
    try:
        yield
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Stopped) else interrupted()
        LOG.warning(str(stop))
        if stop.state:
            record.set_state(stop.state)
        raise
    except Exception as error:
        LOG.error(str(error), exc_info=not isinstance(error, (UserError, JobError)))
        if not isinstance(error, StoreLostError):
            with suppress(OSError):  # the disk may have failed
                record.set_state("failed")
        raise
    finally:
        lock.ending = True


def command_line() -> str:
    """Return the command line of this process, without secrets in URLs."""
    return without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
