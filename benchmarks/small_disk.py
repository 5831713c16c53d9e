"""A small in-memory file system that can be filled or taken away at any moment; needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOMY = 2**30
"""Size in bytes; unwritten space takes no memory."""

_PAGE = 4096
"""Smallest size in bytes: tmpfs takes a size of 0 as unlimited."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Create a folder and mount an in-memory file system on it during the block."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", str(folder))


def fill(folder: Path) -> None:
    """Leave no free space: shrink the file system to what it holds."""
    attempts = 1000
    while attempts := attempts - 1:
        used = subprocess.run(["df", "--block-size=1", "--output=used", folder], capture_output=True, check=True)
        if (
            subprocess.run(
                ["mount", "-o", f"remount,size={max(int(used.stdout.split()[-1]), _PAGE)}", folder],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        ):  # otherwise it has grown since df
            return
    raise RuntimeError(f"{folder} grows faster than it can be filled")


def make_room(folder: Path) -> None:
    """Restore the full size."""
    _run("mount", "-o", f"remount,size={ROOMY}", str(folder))


def bind(folder: Path, place: Path) -> None:
    """Create an empty folder and bind-mount another one on it."""
    place.mkdir(exist_ok=True)
    _run("mount", "--bind", str(folder), str(place))


def lose(place: Path) -> None:
    """Unmount a file system, even if it is in use."""
    _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
