"""Checkpoints: the state of a fit between two passes, from which the next driver resumes if this one is killed."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from kmeans_dask.storage.object_store import read
from kmeans_dask.storage.publish import publish

_PAUSE_FACTOR = 20
"""Wait this many times the duration of a write before the next one, so that checkpoints take at most 5 % of a fit.
MNIST, K = 256: 2 ms after each pass of 150 ms."""

_HEADER = "header"
"""Name of the array that holds, as JSON, the key, the seconds and all values that are not arrays."""


class Checkpoint:
    """A file with the newest state of one fit.

    Parameters
    ----------
    path
        The file; it need not exist.
    key
        Identifies the fit and everything it depends on; a state with another key is ignored.

    Attributes
    ----------
    seconds_before : float
        Duration of the fit up to the state that was read; 0 if none was.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.seconds_before = 0.0
        self._started = time.monotonic()
        self._next_write = self._started

    @property
    def seconds(self) -> float:
        """Duration of the fit so far, including the drivers before this one."""
        return self.seconds_before + time.monotonic() - self._started

    def read(self) -> list[dict[str, Any]] | None:
        """Read the state that `write` left, or None if there is none with this key."""
        try:
            with np.load(BytesIO(read(self._path)), allow_pickle=False) as file:
                header = json.loads(str(file[_HEADER]))
                if header["key"] != self._key:
                    return None
                states: list[dict[str, Any]] = header["states"]
                for name in file.files:
                    if name != _HEADER:
                        number, _, field = name.partition(".")
                        states[int(number)][field] = file[name]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: the fit starts over
            return None
        self.seconds_before = header["seconds"]
        return states

    def write(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Publish a state, unless too little time has passed since the last one.

        Parameters
        ----------
        states
            Mappings from names to arrays or JSON values.
        """
        started = time.monotonic()
        if started < self._next_write:
            return
        arrays: dict[str, Any] = {
            f"{i}.{name}": value
            for i, state in enumerate(states)
            for name, value in state.items()
            if isinstance(value, np.ndarray)
        }
        plain = [{name: v for name, v in state.items() if not isinstance(v, np.ndarray)} for state in states]
        arrays[_HEADER] = np.array(json.dumps({"key": self._key, "seconds": self.seconds, "states": plain}))
        with publish(self._path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        finished = time.monotonic()
        self._next_write = finished + _PAUSE_FACTOR * (finished - started)
