"""``kill -9`` at random moments of a whole run: does it end, with the same outputs, and what is done twice.

``python -m benchmarks.faults kill FOLDER KILLS``: so many kills each of a worker, the driver and the scheduler of a
cluster of separate processes; FOLDER has images.
``python -m benchmarks.faults disk FOLDER``: the run folder on a small file system that gets full in each stage (root).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.common import machine, table
from benchmarks.processes import COMMANDS, Processes
from benchmarks.small_disk import fill, make_room, small_disk
from kmeans_dask.models.model import read_model
from kmeans_dask.storage.publish import read_json

CONFIG = """
name: run
output: {output}
input: {{path: {folder}, holdout: 0.2}}
ingest: {{size: [28, 28], mode: L, chunk_mib: 0.5}}
fit: {{k: [10, 16], algorithm: [kmeans, minibatch]}}
evaluate: {{}}
quantize: {{k: [4]}}
report: {{}}
"""
VICTIMS = ("worker", "driver", "scheduler")
STAGES = ("ingest", "fit", "evaluate", "quantize", "report")
MOST_SECONDS = 420
"""A run that takes longer counts as hung: undisturbed it takes 20 s on two quiet cores, 150 s beside other work."""


class Run:
    """One run folder and the command that is given as often as needed."""

    def __init__(self, scratch: Path, folder: Path, output: Path, cluster: str | None) -> None:
        self.folder = output / "run"
        self._config = scratch / "job.yaml"
        self._config.write_text(CONFIG.format(folder=folder, output=output))
        self._cluster = ["--cluster", cluster] if cluster else []
        self.log = scratch / "driver.log"

    def start(self) -> psutil.Popen:
        """Give the command."""
        with open(self.log, "ab") as log:
            command = [COMMANDS / "kmeans-dask", "run", self._config, *self._cluster]
            return psutil.Popen(list(map(str, command)), stdout=log, stderr=log)

    def moment(self) -> str:
        """Name the stage that the driver is in, by the last line that begins with one."""
        stages = re.findall(r"^(ingest|fit|evaluate|quantize|report)\b", self.log.read_text(), re.MULTILINE)
        return stages[-1] if stages else "start"

    def finished(self) -> set[str]:
        """Return the stages that run.json says are finished."""
        with suppress(FileNotFoundError):
            return set(read_json(self.folder / "run.json")["stages"])
        return set()

    def last_line(self) -> str:
        """Return the last line that the driver has said."""
        return (self.log.read_text().splitlines() or [""])[-1]

    def done_twice(self, log: Path) -> list[str]:
        """Count the chunks of ingest that began twice, the images that were written twice, the chunks of all passes."""
        chunks = Counter(re.findall(r"^ingest_chunk-(\d+)", log.read_text(), re.MULTILINE))
        passes = re.findall(r"^(?:\('call|evaluate_chunk|look_at_chunk)-", log.read_text(), re.MULTILINE)
        images: Counter[tuple[int, int]] = Counter()
        for path in self.folder.glob("quantized.journal/*/*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError):  # cut off by the kill
                    images.update((row, k) for row, k, *_ in json.loads(line))
        return [*(str(counts.total() - len(counts)) for counts in (chunks, images)), str(len(passes))]

    def hashes(self) -> dict[str, str]:
        """Hash of everything that the run is for; times are left out."""
        told: dict[str, bytes] = {}
        for path in sorted(self.folder.rglob("quantized/**/*.png")):
            told[str(path.relative_to(self.folder))] = path.read_bytes()
        for path in sorted(self.folder.glob("models/*/*.zarr")):
            model = read_model(path)
            arrays = (model.centres, model.label_map, model.counts)
            told[str(path.relative_to(self.folder))] = b"".join(a.tobytes() for a in arrays if a is not None)
        for name in ("items.csv", "label_issues.csv", "outliers.csv", "duplicates.csv"):
            told[name] = (self.folder / name).read_bytes()
        for name in ("clusters", "quantized", "confusion", "cluster_facts"):
            rows = pq.read_table(self.folder / f"{name}.parquet")
            told[name] = repr([rows[c].to_pylist() for c in rows.column_names if c != "seconds"]).encode()
        # the last digits of an inertia depend on how many models a pass has served
        metrics = [
            {key: float(f"{value:.12g}") if isinstance(value, float) else value for key, value in row.items()}
            for row in read_json(self.folder / "metrics.json")
        ]
        told["metrics"] = json.dumps([{**row, "seconds": 0} for row in metrics]).encode()
        return {name: hashlib.sha256(content).hexdigest() for name, content in told.items()}


def one(
    scratch: Path, images: Path, victim: str | None, share: float, usual: float
) -> tuple[dict[str, str], list[str]]:
    """Run once, with a kill after a share of the usual seconds: hashes of the outputs, and the cells of a line."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        own = Path(name)
        os.environ["TASK_LOG"] = str(own / "tasks.log")
        cluster = Processes(own, preload=Path(__file__).with_name("task_log.py"))
        try:
            cluster.start()
            run = Run(own, images, own / "runs", cluster.address)
            begun = time.monotonic()
            driver, commands, moment = run.start(), 1, ""
            if victim:
                with suppress(psutil.TimeoutExpired):
                    driver.wait(share * usual)
                moment = run.moment()
                victims = {"worker": cluster.workers()[:1], "driver": [driver], "scheduler": [cluster.scheduler]}
                with suppress(psutil.NoSuchProcess):  # a run that was faster than the undisturbed one
                    for process in victims[victim]:
                        process.kill()
            killed = time.monotonic()
            while driver.wait(MOST_SECONDS) != 0:
                said = f"{time.monotonic() - killed:.0f} s: {run.last_line()}"
                moment += f" ({said})" if victim == "scheduler" else ""
                if victim == "worker" or commands == 2:
                    raise RuntimeError(f"{victim} killed in {moment}:\n{run.log.read_text()}")
                if victim == "scheduler":
                    cluster.end()
                    cluster.start()
                driver, commands = run.start(), commands + 1
            if "Traceback" in run.log.read_text():
                moment += " (with a TRACEBACK)"
                print(run.log.read_text(), file=sys.stderr, flush=True)
            cells = [moment, str(commands), f"{time.monotonic() - begun:.0f}", *run.done_twice(own / "tasks.log")]
            return run.hashes(), cells
        finally:
            cluster.end()


def kill(scratch: Path, images: Path, kills: int) -> None:
    """Print a line a kill and what they come to."""
    whole, cells = one(scratch, images, None, 0, 0)
    usual = float(cells[2])
    rng = np.random.default_rng(0)
    lines = []

    def told() -> Iterator[list[str]]:
        yield ["-", *cells, "-"]
        for number in range(kills):
            for victim in VICTIMS:
                share = (number + rng.random()) / kills  # one in each part of the run
                try:
                    hashes, said = one(scratch, images, victim, share, usual)
                except RuntimeError as error:
                    print(error, file=sys.stderr, flush=True)
                    lines.append((victim, "FAILED", ["", "", "0", "0", "0", "0"]))
                    yield [victim, *lines[-1][2], "FAILED"]
                    continue
                said[-1] = str(int(said[-1]) - int(cells[-1]))
                differ = [name for name in whole if hashes.get(name) != whole[name]]
                same = "all the same" if not differ and len(hashes) == len(whole) else f"DIFFER: {differ[:5]}"
                lines.append((victim, same, said))
                yield [victim, *said, same]

    columns = [
        "killed", "in", "commands", "seconds", "chunks of ingest begun twice", "images written twice",
        "chunks of fit and evaluate more", "outputs",
    ]  # fmt: skip
    table(f"{len(whole):,} outputs compared", columns, told())
    print(f"\n{sum(same == 'all the same' for _, same, _ in lines)} of {len(lines)} runs ended with the same outputs")
    for victim in VICTIMS:
        worst = [max(int(said[i]) for name, _, said in lines if name == victim) for i in (3, 4, 5)]
        print(f"{victim}: at most {worst[0]} chunks begun twice, {worst[1]} images written twice, {worst[2]} of passes")


def undisturbed(scratch: Path, images: Path) -> dict[str, str]:
    """Run once in peace: hashes of the outputs."""
    run = Run(scratch, images, scratch, None)
    assert run.start().wait(MOST_SECONDS) == 0, run.log.read_text()
    return run.hashes()


def full_disk(scratch: Path, images: Path, stage: str) -> tuple[int, str, dict[str, str]]:
    """Leave no room for the run folder when a stage has begun, then all room.

    Returns
    -------
    status : int
        Exit status of the command without room.
    said : str
        Its last line, and the stage that it had not finished.
    hashes : dict
        Of the outputs after the same command again.
    """
    own = scratch / stage
    own.mkdir()
    small = own / "small"
    with small_disk(small):
        run = Run(own, images, small, None)
        driver = run.start()
        begun = {"ingest": "collection.zarr.partial/images/c/0", "quantize": "quantized/4/*"}.get(stage)
        while not (any(run.folder.glob(begun)) if begun else STAGES[STAGES.index(stage) - 1] in run.finished()):
            assert driver.poll() is None, run.log.read_text()
            time.sleep(0.001)
        fill(small)
        status, said = driver.wait(MOST_SECONDS), run.last_line()
        missing = [name for name in STAGES if name not in run.finished()]
        assert "Traceback" not in run.log.read_text(), run.log.read_text()
        make_room(small)
        again = run.start().wait(MOST_SECONDS)
        assert again == 0, run.log.read_text()
        return status, f"{missing[0] if missing else '-'}: {said}", run.hashes()


def disk(scratch: Path, images: Path) -> None:
    """Leave no room in each stage, make room, and go on."""
    whole = undisturbed(scratch, images)

    def told() -> Iterator[list[str]]:
        for stage in STAGES:
            status, said, hashes = full_disk(scratch, images, stage)
            ended_in, line = said.split(": ", 1)
            yield [stage, ended_in, str(status), line, "all the same" if hashes == whole else "DIFFER"]

    columns = ["full in", "ended in", "exit status", "last line", "outputs after the same command again"]
    table(f"A full disk, {len(whole):,} outputs compared", columns, told())


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1] == "kill":
            kill(Path(folder), Path(sys.argv[2]), int(sys.argv[3]))
        else:
            disk(Path(folder), Path(sys.argv[2]))
