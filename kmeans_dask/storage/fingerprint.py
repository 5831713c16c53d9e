"""Fingerprints: one hash for everything that an output was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint_of(*parts: Any) -> str:
    """Hash the values that an output depends on.

    Parameters
    ----------
    *parts
        JSON values; tuples count as lists, and the order of the keys of a mapping does not matter.

    Returns
    -------
    str
        SHA-256 of the values as JSON, 64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hash the content of a file.

    Parameters
    ----------
    path
        A local file or an object in a store.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
