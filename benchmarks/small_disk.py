"""A small file system of its own, as root: it can be filled at a moment, and be lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOMY = 2**30
"""Bytes; what is not written takes no memory."""

_PAGE = 4096
"""Bytes; a size of 0 would be no limit."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system in memory on a folder, which is made."""
    folder.mkdir(exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _call("umount", str(folder))


def fill(folder: Path) -> None:
    """Leave no room: the file system gets as large as what it holds."""
    limit = 1000
    while limit := limit - 1:
        used = subprocess.run(["df", "--block-size=1", "--output=used", folder], capture_output=True, check=True)
        if (
            subprocess.run(
                ["mount", "-o", f"remount,size={max(int(used.stdout.split()[-1]), _PAGE)}", folder],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        ):  # else it has grown meanwhile
            return
    raise RuntimeError(f"{folder} grows faster than it can be filled")


def make_room(folder: Path) -> None:
    """Give it all its room again."""
    _call("mount", "-o", f"remount,size={ROOMY}", str(folder))


def bind(folder: Path, place: Path) -> None:
    """Show a folder at another place, which is made, and which is empty without it."""
    place.mkdir(exist_ok=True)
    _call("mount", "--bind", str(folder), str(place))


def lose(place: Path) -> None:
    """Take a file system away, although it is used."""
    _call("umount", "--lazy", str(place))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
