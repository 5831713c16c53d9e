"""Build the image without a Docker engine: the steps of the Dockerfile in a clean Debian root, then a whole job in it.

As root, on Debian: ``make test-docker``. The root is Debian 12 with its Python 3.11 where the image has 3.12 on Debian
13: what is checked is that the steps work in order, with nothing but what they install, and that an ordinary user can
run the commands of compose.yaml. The job runs in a network of its own, in which nothing else is. In another root
Debian's docker-compose, which needs no engine for it, says what it reads in compose.yaml.
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
"""What the image python:3.12-slim brings along."""


def main() -> None:
    """Read compose.yaml, make the root, take the steps, run the job."""
    with tempfile.TemporaryDirectory(prefix="kmeans-dask-image-") as folder:
        check_compose(Image(make_root(Path(folder) / "compose", "docker-compose")))
        root = make_root(Path(folder) / "root", PYTHON)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # Debian keeps pip out of its own Python; that of the image is not Debian's
        for path in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(path, root / path[1:])
        image = Image(root)
        for step in steps((PROJECT / "docker" / "Dockerfile").read_text()):
            image.take(step)
        (root / "etc/hosts").write_text("127.0.0.1 localhost scheduler\n")
        run_services(image)
        report = root / "kmeans/runs/digits/report.html"
        print(f"{report.stat().st_size:,} bytes of report, written by user {report.stat().st_uid}")


def make_root(root: Path, packages: str) -> Path:
    """Install Debian 12 with some packages into a new folder."""
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)], check=True)
    return root


def steps(dockerfile: str) -> list[str]:
    """Return the instructions of a Dockerfile, a line each."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    return [line.strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


class Image:
    """A root folder, and what the instructions so far have said about commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.environ |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.folder = "/"
        self.user = "0"

    def take(self, step: str) -> None:
        """Take one instruction."""
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
            raise SystemExit(f"docker/Dockerfile: {name} is an instruction that this check cannot run; add it here")

    def _copy(self, source: Path, target: Path, is_folder: bool) -> None:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / source.name if is_folder else target)

    def command(self, words: list[str], alone: bool = False) -> list[str]:
        """Return the command that runs words in the root; alone: in a network of its own."""
        environ = [f"{name}={value}" for name, value in {**self.environ, "HOME": "/tmp"}.items()]
        enter = ["chroot", f"--userspec={self.user}:{self.user}", self.root, "env", "-C", self.folder, "-i", *environ]
        script = [
            *(["ip link set lo up"] if alone else []),
            f"mount -t proc proc {self.root}/proc",
            f"mount --rbind /dev {self.root}/dev",
            f"exec {shlex.join(str(word) for word in [*enter, *words])}",
        ]
        return ["unshare", "--mount", *(["--net"] if alone else []), "sh", "-e", "-c", "\n".join(script)]


def check_compose(image: Image) -> None:
    """Have docker-compose say what compose.yaml stands for, and compare it with what the services need."""
    text = (PROJECT / "docker" / "compose.yaml").read_text()
    name = "name: kmeans-dask\n"
    assert name in text  # a key of version 2; that of Debian is 1.29, which knows all others
    image.take("WORKDIR /kmeans/docker")  # paths are taken from here
    words = ["docker-compose", "--file", "-", "config"]
    said = subprocess.run(
        image.command(words), input=text.replace(name, ""), stdout=subprocess.PIPE, text=True, check=True
    )
    print(said.stdout, flush=True)
    config = yaml.safe_load(said.stdout)
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
    """Run the commands of compose.yaml as it does: scheduler and workers, then the job."""
    services = yaml.safe_load((PROJECT / "docker" / "compose.yaml").read_text())["services"]
    words = {name: service["command"] for name, service in services.items()}
    words["job"][words["job"].index("${CONFIG:-configs/digits.yaml}")] = "configs/digits.yaml"
    parts = [f"{shlex.join(words['scheduler'])} & sleep 5", *[f"{shlex.join(words['worker'])} &"] * 2]
    script = "\n".join([*parts, shlex.join(words["job"]), "status=$?", "kill $(jobs -p)", "wait", "exit $status"])
    start = time.monotonic()
    subprocess.run(image.command(["bash", "-c", script], alone=True), check=True)
    print(f"the job has run in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
