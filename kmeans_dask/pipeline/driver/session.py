"""What a driver does beside the work: it holds the run, says how far it is, hears a request to cancel, keeps a log."""

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
from kmeans_dask.pipeline.driver.failures import StoreLostError, went_away
from kmeans_dask.pipeline.driver.logs import Log, current_stage, logged
from kmeans_dask.pipeline.driver.stopping import Stopped, cancelled, homeless, interrupted, lost, stop_here
from kmeans_dask.storage.lock import BEAT_SECONDS, Lock, LockLostError, acquire
from kmeans_dask.storage.object_store import reporting_unreachable
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


@contextmanager
def holding(folder: RunFolder, command: str, job: str | None = None) -> Iterator[Lock]:
    """Hold a run: no other driver works on it meanwhile, everybody can see how far it is, and it can be cancelled.

    Parameters
    ----------
    folder
        Run folder; it exists.
    command
        What was asked for, for people.
    job
        Key of the submitted job that this driver belongs to, if it was submitted.

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
    ended, is_lost, speaking = threading.Event(), False, threading.Lock()
    try:
        with logged(folder.log(lock.number)) as log:
            facts = {"command": command, "host": platform.node(), "pid": os.getpid()}
            LOG.info("driver started", extra={"facts": facts})
            if lock.took_over:
                say(f"{folder.path.name}: {lock.took_over} is dead; this goes on from where it was")
            parts = (lock, folder, log, ended, speaking)
            heart = threading.Thread(target=_beat, args=parts, name="heartbeat", daemon=True)
            heart.start()
            try:
                yield lock
            except StoreLostError:
                is_lost = True
                log.abandon()
                raise
            finally:
                with speaking:
                    ended.set()
                if not is_lost:
                    heart.join()
    finally:
        if not is_lost:
            with suppress(OSError):  # the disk may be what failed; that a driver is dead is seen without
                lock.release()


def _beat(lock: Lock, folder: RunFolder, log: Log, ended: threading.Event, speaking: threading.Lock) -> None:
    """Say once a second how far the work is, and interrupt it where that is asked for."""
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
                stop_here(homeless(went_away(folder.path)) if is_gone else lost(str(error)))
            return
        # OSError, or what the package of an object store raises: it may come back; if not, the work itself finds out
        except Exception as error:
            with speaking:  # nothing is said after the line that ends the job
                if not ended.is_set():
                    LOG.warning(f"the run folder cannot be reached: {error}")
        if ended.wait(BEAT_SECONDS):
            return


def _is_cancelled(request: Path, lock: Lock) -> bool:
    """Whether this driver, or the submitted job that it belongs to, is asked to end."""
    try:
        asked = read_json(request)
    except (FileNotFoundError, ValueError):
        return False
    return bool(asked["driver"] == lock.number or (lock.job is not None and asked["job"] == lock.job))


@contextmanager
def recorded_end(record: RunRecord, lock: Lock) -> Iterator[None]:
    """Record in run.json and in the log how the work in the block ended, unless it did well."""
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
            with suppress(OSError):  # the disk may be what failed
                record.set_state("failed")
        raise
    finally:
        lock.ending = True


def command_line() -> str:
    """Return what this process was asked to do, without secrets of URLs."""
    return without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
