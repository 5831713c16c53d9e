"""The state of a fit between two passes, as a file: whoever fits after a driver that was killed goes on from it."""

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

_SHARE = 20
"""Times as long as a write took is waited for the next one: at most 5 % of a fit goes into them. K = 256 of MNIST: 2 ms
after every pass of 150 ms."""


class Checkpoint:
    """A file that holds the newest state of one fit.

    Parameters
    ----------
    path
        The file; it need not be there.
    key
        What the fit depends on, as one word: the state of another fit is not gone on from.

    Attributes
    ----------
    seconds_before : float
        That the fit had taken until the state which was read; 0: none was.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.seconds_before = 0.0
        self._begun = time.monotonic()
        self._next = self._begun

    @property
    def seconds(self) -> float:
        """That the fit has taken: since this object was made, and before."""
        return self.seconds_before + time.monotonic() - self._begun

    def read(self) -> list[dict[str, Any]] | None:
        """Read the state that `write` left; None if there is none of this fit."""
        try:
            with np.load(BytesIO(read(self._path)), allow_pickle=False) as file:
                told = json.loads(str(file["told"]))
                if told["key"] != self._key:
                    return None
                states: list[dict[str, Any]] = told["states"]
                for name in file.files:
                    if name != "told":
                        number, _, field = name.partition(".")
                        states[int(number)][field] = file[name]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: the fit starts anew
            return None
        self.seconds_before = told["seconds"]
        return states

    def write(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Publish a state, unless too little time has passed since the last one.

        Parameters
        ----------
        states
            Names and their values: arrays, or what JSON knows.
        """
        begun = time.monotonic()
        if begun < self._next:
            return
        arrays: dict[str, Any] = {
            f"{i}.{name}": value
            for i, state in enumerate(states)
            for name, value in state.items()
            if isinstance(value, np.ndarray)
        }
        plain = [{name: v for name, v in state.items() if not isinstance(v, np.ndarray)} for state in states]
        told = json.dumps({"key": self._key, "seconds": self.seconds, "states": plain})
        with publish(self._path) as partial, partial.open("wb") as file:
            np.savez(file, told=np.array(told), **arrays)
        ended = time.monotonic()
        self._next = ended + _SHARE * (ended - begun)
