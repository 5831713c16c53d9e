"""Simulated hosts: each has a network namespace with one address, and a folder that the other hosts do not see."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

_NETWORK = "198.18.7"
"""Reserved for network tests (RFC 2544); no packet leaves the namespaces."""


class Hosts:
    """Context manager that connects hosts to one virtual switch."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self._names = [f"kd{uuid4().hex[:6]}-{place}" for place in range(count)]
        self._switch = f"kd{uuid4().hex[:6]}-switch"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            _run(f"ip netns add {self._switch}")
            self._ip(self._switch, "link add switch type bridge", "link set switch up")
            for place, name in enumerate(self._names):
                _run(f"ip netns add {name}")
                port = f"port{place}"
                self._ip(self._switch, f"link add {port} type veth peer name wire netns {name}")
                self._ip(self._switch, f"link set {port} master switch up")
                self._ip(name, f"address add {self.address(place)}/24 dev wire", "link set wire up", "link set lo up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in reversed(self._started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in (*self._names, self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=20)

    def address(self, place: int) -> str:
        """Return the IP address of a host."""
        return f"{_NETWORK}.{place + 1}"

    def start(self, place: int, *command: object, **environ: str) -> subprocess.Popen[bytes]:
        """Start a command on a host, in a folder that is empty, in memory, and visible to this command only."""
        words = shlex.join(str(word) for word in command)
        script = f"mount -t tmpfs tmpfs {self.folder}; cd {self.folder}; exec {words}"
        log = self.log(place, len(self._started))
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output:
            # `ip netns exec` creates the mount namespace that makes the mount private, because it remounts /sys
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._names[place], "sh", "-e", "-c", script],
                stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ},
            )  # fmt: skip
        self._started.append(process)
        return process

    def log(self, place: int, number: int) -> Path:
        """Log file of a command."""
        return self.folder.with_name("logs") / f"host{place}-{number}.log"

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Return the output of a command so far."""
        number = self._started.index(process)
        (path,) = self.log(0, 0).parent.glob(f"host*-{number}.log")
        return path.read_text(errors="replace")

    def wait_for(self, process: subprocess.Popen[bytes], words: str, seconds: float = 60) -> None:
        """Wait until a command has printed certain words."""
        limit = time.monotonic() + seconds
        while words not in self.output(process):
            assert process.poll() is None, self.output(process)
            assert time.monotonic() < limit, self.output(process)
            time.sleep(0.1)

    def unplug(self, place: int) -> None:
        """Disconnect a host from the switch; its processes are not notified."""
        self._ip(self._switch, f"link set port{place} down")

    def files(self, process: subprocess.Popen[bytes]) -> set[str]:
        """Return the files in the private folder of a running command."""
        root = Path(f"/proc/{process.pid}/root{self.folder}")
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    def _ip(self, name: str, *commands: str) -> None:
        for command in commands:
            _run(f"ip -netns {name} {command}")


def _run(command: str) -> None:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, f"{command}: {done.stderr}"
