"""Check the Docker files without a Docker engine: ``make test-docker``, as root on Debian.

The steps of the Dockerfile are run in a clean Debian 12 root with Python 3.11; the image has Python 3.12 on Debian 13.
This checks that the steps work in order, with nothing but what they install, and that an unprivileged user can run the
commands of compose.yaml: they run a whole job in an isolated network namespace. In a second root, Debian's
docker-compose parses compose.yaml, which needs no engine either.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
PYTHON = "python3,python3-pip,python3-venv,python-is-python3,ca-certificates"
"""Packages that correspond to the base image python:3.12-slim."""


def main() -> None:
    """Check compose.yaml, build the root, run the job in it."""
    with tempfile.TemporaryDirectory(prefix="kmeans-dask-image-") as folder:
        check_compose(Image(make_root(Path(folder) / "compose", "docker-compose")))
        root = make_root(Path(folder) / "root", PYTHON)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # Debian forbids pip in its Python; the base image does not
        for path in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(path, root / path[1:])
        image = Image(root)
        for step in steps((PROJECT / "docker" / "Dockerfile").read_text()):
            image.run_step(step)
        (root / "etc/hosts").write_text("127.0.0.1 localhost scheduler\n")
        run_services(image)
        report = root / "kmeans/runs/digits/report.html"
        print(f"{report.stat().st_size:,} bytes of report, written by user {report.stat().st_uid}")


def make_root(root: Path, packages: str) -> Path:
    """Install Debian 12 and some packages into a new folder."""
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)], check=True)
    return root


def steps(dockerfile: str) -> list[str]:
    """Return the instructions of a Dockerfile, with continuation lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    return [line.strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


class Image:
    """A root folder with the state that instructions set: environment, working folder and user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.environ |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.folder = "/"
        self.user = "0"

    def run_step(self, step: str) -> None:
        """Execute one instruction."""
        print(f"--- {step}", flush=True)
        name, _, rest = step.partition(" ")
        if name == "RUN":
            subprocess.run(self.command(["sh", "-c", rest.strip()]), check=True)
        elif name == "ENV":
            self.environ |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "WORKDIR":
            self.folder = rest.strip()
            (self.root / self.folder[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            self.user = rest.strip()
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                self._copy(PROJECT / source, self.root / self.folder[1:] / target, is_folder=target.endswith("/"))
        elif name not in ("FROM", "CMD"):
            raise SystemExit(
                f"docker/Dockerfile: docker/check.py does not support the instruction {name}; add it there"
            )

    def _copy(self, source: Path, target: Path, is_folder: bool) -> None:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / source.name if is_folder else target)

    def command(self, words: list[str], isolated: bool = False) -> list[str]:
        """Return the command line that runs a command in the root, optionally in a new network namespace."""
        environ = [f"{name}={value}" for name, value in {**self.environ, "HOME": "/tmp"}.items()]
        enter = ["chroot", f"--userspec={self.user}:{self.user}", self.root, "env", "-C", self.folder, "-i", *environ]
        script = [
            *(["ip link set lo up"] if isolated else []),
            f"mount -t proc proc {self.root}/proc",
            f"mount --rbind /dev {self.root}/dev",
            f"exec {shlex.join(str(word) for word in [*enter, *words])}",
        ]
        return ["unshare", "--mount", *(["--net"] if isolated else []), "sh", "-e", "-c", "\n".join(script)]


def check_compose(image: Image) -> None:
    """Compare compose.yaml, as docker-compose parses it, with what the services need."""
    text = (PROJECT / "docker" / "compose.yaml").read_text()
    name = "name: kmeans-dask\n"
    assert name in text  # the one key that Debian's version 1.29 does not know
    image.run_step("WORKDIR /kmeans/docker")  # relative paths refer to this folder
    words = ["docker-compose", "--file", "-", "config"]
    parsed = subprocess.run(
        image.command(words), input=text.replace(name, ""), stdout=subprocess.PIPE, text=True, check=True
    )
    print(parsed.stdout, flush=True)
    config = yaml.safe_load(parsed.stdout)
    services = config["services"]
    mounted = ["runs:/kmeans/runs:rw", "/kmeans/configs:/kmeans/configs:ro", "/kmeans/data:/kmeans/data:ro"]
    assert sorted(services) == ["job", "scheduler", "worker"]
    assert list(config["volumes"]) == ["runs"]
    for service in services.values():
        assert (service["image"], service["init"], service["volumes"]) == ("kmeans-dask", True, mounted)
        assert "ports" not in service
    scheduler, worker, job = services["scheduler"], services["worker"], services["job"]
    assert scheduler["build"] == {"context": "/kmeans", "dockerfile": "docker/Dockerfile"}
    assert scheduler["healthcheck"]["test"][:2] == ["CMD", "python"]
    assert [service["pull_policy"] for service in (scheduler, worker, job)] == ["build", "never", "never"]
    assert worker["deploy"] == {"replicas": 2}
    assert worker["depends_on"] == {"scheduler": {"condition": "service_healthy"}}
    assert job["depends_on"] == {**worker["depends_on"], "worker": {"condition": "service_started"}}
    assert job["command"][:3] == ["kmeans-dask", "run", "configs/digits.yaml"]


def run_services(image: Image) -> None:
    """Run the commands of compose.yaml in its order: scheduler and workers, then the job."""
    services = yaml.safe_load((PROJECT / "docker" / "compose.yaml").read_text())["services"]
    words = {name: service["command"] for name, service in services.items()}
    words["job"][words["job"].index("${CONFIG:-configs/digits.yaml}")] = "configs/digits.yaml"
    parts = [f"{shlex.join(words['scheduler'])} & sleep 5", *[f"{shlex.join(words['worker'])} &"] * 2]
    script = "\n".join([*parts, shlex.join(words["job"]), "status=$?", "kill $(jobs -p)", "wait", "exit $status"])
    start = time.monotonic()
    subprocess.run(image.command(["bash", "-c", script], isolated=True), check=True)
    print(f"the job took {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
