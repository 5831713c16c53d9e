from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from jobs import cli

LABELS = ("disc", "bar", "ring")
COMMANDS = Path(sys.executable).parent
"""Where the project's own command and Dask's were installed."""


def draw_images(folder: Path, count: int = 60, side: int = 24, levels: int = 60) -> None:
    """Draw discs, bars and rings on noise of so many grey levels, in a folder a label."""
    rng = np.random.default_rng(7)
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        noise = rng.integers(0, levels, (side, side, 1), dtype=np.uint8)
        image = Image.fromarray(np.repeat(noise, 3, axis=2))
        canvas = ImageDraw.Draw(image)
        x, y = (int(value) for value in rng.integers(side // 12, side // 4, 2))
        if label == "disc":
            canvas.ellipse((x, y, x + side // 2, y + side // 2), fill=(230, 40, 40))
        elif label == "bar":
            canvas.rectangle((x, y, x + side // 6, y + side // 2), fill=(40, 230, 40))
        else:
            canvas.ellipse((x, y, x + side // 2, y + side // 2), outline=(40, 40, 230), width=side // 12)
        file = folder / label / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 24 x 24 pixels and three labels; tests must not write here."""
    folder = tmp_path_factory.mktemp("input") / "images"
    draw_images(folder)
    return folder


class S3Server(NamedTuple):
    """An S3 server of this machine."""

    client: Any
    requests: deque[str]
    """Lines of its log, one a request."""


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server, a process of its own; everything else finds it in the environment. Take buckets of your own."""
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as server, pytest.MonkeyPatch.context() as patch:  # fmt: skip
        try:
            assert server.stderr is not None
            url = next(line.split(" on ")[1].split()[0] for line in server.stderr if " on http://" in line)
            requests: deque[str] = deque(maxlen=10_000)  # safe between threads
            Thread(target=requests.extend, args=[server.stderr], daemon=True).start()
            for name, value in {
                "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "not-to-be-told",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            yield S3Server(boto3.client("s3"), requests)
        finally:
            server.terminate()


@contextmanager
def meanwhile(function: Callable[[Event], object]) -> Iterator[None]:
    """Run a function in a thread until the event that it is given is set, at the end of the block."""
    ended = Event()
    thread = Thread(target=function, args=[ended])
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def write_config(folder: Path, source: Path, **changes: Any) -> Path:
    """Write a config with all stages for a folder of images; a change replaces a section, None removes it."""
    config = {
        "name": "small",
        "output": str(folder / "runs"),
        "input": {"path": str(source), "holdout": 0.2},
        "ingest": {"size": [16, 16], "mode": "RGB"},
        "fit": {"k": [3, 5], "algorithm": ["kmeans", "minibatch"]},
        "evaluate": {},
        "quantize": {"k": [2, 6]},
        "report": {"samples": 6},
        "cluster": {"kind": "threads", "workers": 2},
        **changes,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


class Said(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of standard error."""
        return self.err.splitlines()


class Run(NamedTuple):
    """A finished run, and what its command answered."""

    folder: Path
    said: Said


@pytest.fixture(scope="session")
def whole_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages of `write_config` on the images; tests must not write here, but may copy it."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, images)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = cli.main(["run", str(config)])
    return Run(folder / "runs" / "small", Said(status, out.getvalue(), err.getvalue()))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return Said(status, *capsys.readouterr())

    return call


class Process:
    """A command in a process group of its own, so that it can be killed with all that it started."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                arguments, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")  # the last character may be half-written

    def wait(self, seconds: float = 240) -> int:
        return self._process.wait(seconds)

    def wait_until(self, condition: Callable[[], object], seconds: float = 120, pause: float = 0.01) -> None:
        """Wait for something that the running command brings about."""
        limit = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, f"ended too early:\n{self.output}"
            assert time.monotonic() < limit, f"waited in vain:\n{self.output}"
            time.sleep(pause)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started."""
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError):  # all of them may have ended
            self.signal_all(signal.SIGKILL)
        self._process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start an installed command, ``kmeans-dask`` or ``dask``; whatever is left of it at the end is killed."""
    started: list[Process] = []

    def call(name: str, *arguments: object, folder: Path = tmp_path) -> Process:
        started.append(Process([str(COMMANDS / name), *map(str, arguments)], folder))
        return started[-1]

    yield call
    for process in started:
        process.end()


PLANTED = """
import os, sys, time
from fnmatch import fnmatch
from PIL.PngImagePlugin import PngImageFile

gate, moment = os.environ["HELD_UNTIL"], os.environ.get("SIGNALLED_AT")
prepare = PngImageFile.load_prepare

def decode_later(self):
    while self.info.get("Comment") == "held" and not os.path.exists(gate):
        time.sleep(0.01)
    prepare(self)

PngImageFile.load_prepare = decode_later
if moment:
    number, left, pattern = moment.split(maxsplit=2)
    left = int(left)

    def signal_all(event, arguments):
        global left
        if event == "os.rename" and fnmatch(str(arguments[1]), pattern):
            left -= 1
            if left == 0:
                os.killpg(0, int(number))

    sys.addaudithook(signal_all)
"""
"""In a module of the name that Python imports when it starts."""


def hold_later(image: Path) -> None:
    """Mark a PNG file as one that `Planted` holds."""
    text = PngInfo()
    text.add_text("Comment", "held")
    with Image.open(image) as picture:
        picture.load()
    picture.save(image, pnginfo=text)


class Planted:
    """Processes that are started meet a moment that no machine is too fast or too slow for."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._gate, self._patch = folder / "gate", patch
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(PLANTED)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        patch.setenv("HELD_UNTIL", str(self._gate))

    def hold(self) -> None:
        """Have whoever decodes an image that is marked by `hold_later` wait until `let_go`, as from the start."""
        self._gate.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Let whoever waits for marked images decode them."""
        self._gate.touch()

    @contextmanager
    def signalled(self, number: signal.Signals, pattern: str, nth: int) -> Iterator[None]:
        """Of processes that are started in the block, all get a signal when one renames its n-th file to such a name.

        The file has not got its name when the signal is sent.
        """
        with self._patch.context() as patch:
            patch.setenv("SIGNALLED_AT", f"{int(number)} {nth} {pattern}")
            yield


@pytest.fixture
def planted(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    planted = Planted(tmp_path_factory.mktemp("planted") / "modules", monkeypatch)
    yield planted
    planted.let_go()


class Page(HTMLParser):
    """A report as a browser reads it: elements with their attributes, and the texts of the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self._open():
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text += data

    def _open(self) -> bool:
        return self.cdata_elem == "script"  # the parser is inside a script, whose content is no markup

    def block(self, name: str) -> str:
        """Text of the script block with an id."""
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return text

    @property
    def data(self) -> Any:
        """What the scripts of the page read."""
        return json.loads(self.block("data"))

    def picture(self, name: str) -> Image.Image:
        """A picture that lies in the page."""
        kind, _, data = self.block(name).partition(",")
        assert kind == "data:image/webp;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file below a folder: what was written anew has another one.

    What drivers say about themselves in a run folder is left out: every start says something.
    """
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("drivers", "logs")
    }
