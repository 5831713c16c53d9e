"""``kill -9`` at random moments of a run: whether its outputs stay the same, and how much work is repeated.

``python -m benchmarks.faults kill FOLDER KILLS``: kill a worker, the driver and the scheduler KILLS times each while a
run on the images of FOLDER uses a cluster of separate processes.
``python -m benchmarks.faults disk FOLDER``: fill the file system of the run folder during each stage (needs root).
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
MAX_SECONDS = 420
"""A run that takes longer counts as hung: undisturbed it takes 20 s on two idle cores, 150 s on busy ones."""


class Run:
    """One run folder, and the command that starts or resumes its run."""

    def __init__(self, scratch: Path, folder: Path, output: Path, cluster: str | None) -> None:
        self.folder = output / "run"
        self._config = scratch / "job.yaml"
        self._config.write_text(CONFIG.format(folder=folder, output=output))
        self._cluster = ["--cluster", cluster] if cluster else []
        self.log = scratch / "driver.log"

    def start(self) -> psutil.Popen:
        """Start the command."""
        with open(self.log, "ab") as log:
            command = [COMMANDS / "kmeans-dask", "run", self._config, *self._cluster]
            return psutil.Popen(list(map(str, command)), stdout=log, stderr=log)

    def moment(self) -> str:
        """Return the current stage of the driver: that of the last log line that starts with a stage name."""
        stages = re.findall(r"^(ingest|fit|evaluate|quantize|report)\b", self.log.read_text(), re.MULTILINE)
        return stages[-1] if stages else "start"

    def finished(self) -> set[str]:
        """Return the stages recorded as finished in run.json."""
        with suppress(FileNotFoundError):
            return set(read_json(self.folder / "run.json")["stages"])
        return set()

    def last_line(self) -> str:
        """Return the last line that the driver printed."""
        return (self.log.read_text().splitlines() or [""])[-1]

    def repeated_work(self, log: Path) -> list[str]:
        """Count the ingest chunks started twice, the images written twice, and the chunk tasks of all passes."""
        chunks = Counter(re.findall(r"^ingest_chunk-(\d+)", log.read_text(), re.MULTILINE))
        passes = re.findall(r"^(?:\('call|evaluate_chunk|second_pass_chunk)-", log.read_text(), re.MULTILINE)
        images: Counter[tuple[int, int]] = Counter()
        for path in self.folder.glob("quantized.journal/*/*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError):  # cut off by the kill
                    images.update((row, k) for row, k, *_ in json.loads(line))
        return [*(str(counts.total() - len(counts)) for counts in (chunks, images)), str(len(passes))]

    def hashes(self) -> dict[str, str]:
        """Hashes of all results of the run, without times."""
        contents: dict[str, bytes] = {}
        for path in sorted(self.folder.rglob("quantized/**/*.png")):
            contents[str(path.relative_to(self.folder))] = path.read_bytes()
        for path in sorted(self.folder.glob("models/*/*.zarr")):
            model = read_model(path)
            arrays = (model.centres, model.label_map, model.counts)
            contents[str(path.relative_to(self.folder))] = b"".join(a.tobytes() for a in arrays if a is not None)
        for name in ("items.csv", "label_issues.csv", "outliers.csv", "duplicates.csv"):
            contents[name] = (self.folder / name).read_bytes()
        for name in ("clusters", "quantized", "confusion", "cluster_facts"):
            rows = pq.read_table(self.folder / f"{name}.parquet")
            contents[name] = repr([rows[c].to_pylist() for c in rows.column_names if c != "seconds"]).encode()
        # the last digits of an inertia depend on how many models share a pass
        metrics = [
            {key: float(f"{value:.12g}") if isinstance(value, float) else value for key, value in row.items()}
            for row in read_json(self.folder / "metrics.json")
        ]
        contents["metrics"] = json.dumps([{**row, "seconds": 0} for row in metrics]).encode()
        return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def one(
    scratch: Path, images: Path, victim: str | None, fraction: float, usual: float
) -> tuple[dict[str, str], list[str]]:
    """Run once, killing the victim after a fraction of the usual seconds; return output hashes and table cells."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        own = Path(name)
        os.environ["TASK_LOG"] = str(own / "tasks.log")
        cluster = Processes(own, preload=Path(__file__).with_name("task_log.py"))
        try:
            cluster.start()
            run = Run(own, images, own / "runs", cluster.address)
            start = time.monotonic()
            driver, commands, moment = run.start(), 1, ""
            if victim:
                with suppress(psutil.TimeoutExpired):
                    driver.wait(fraction * usual)
                moment = run.moment()
                victims = {"worker": cluster.workers()[:1], "driver": [driver], "scheduler": [cluster.scheduler]}
                with suppress(psutil.NoSuchProcess):  # the run was faster than the undisturbed one and has ended
                    for process in victims[victim]:
                        process.kill()
            killed = time.monotonic()
            while driver.wait(MAX_SECONDS) != 0:
                failure = f"{time.monotonic() - killed:.0f} s: {run.last_line()}"
                moment += f" ({failure})" if victim == "scheduler" else ""
                if victim == "worker" or commands == 2:
                    raise RuntimeError(f"{victim} killed in {moment}:\n{run.log.read_text()}")
                if victim == "scheduler":
                    cluster.end()
                    cluster.start()
                driver, commands = run.start(), commands + 1
            if "Traceback" in run.log.read_text():
                moment += " (with a TRACEBACK)"
                print(run.log.read_text(), file=sys.stderr, flush=True)
            cells = [moment, str(commands), f"{time.monotonic() - start:.0f}", *run.repeated_work(own / "tasks.log")]
            return run.hashes(), cells
        finally:
            cluster.end()


def kill(scratch: Path, images: Path, kills: int) -> None:
    """Print one row per kill, and a summary."""
    whole, cells = one(scratch, images, None, 0, 0)
    usual = float(cells[2])
    rng = np.random.default_rng(0)
    lines = []

    def rows() -> Iterator[list[str]]:
        yield ["-", *cells, "-"]
        for number in range(kills):
            for victim in VICTIMS:
                fraction = (number + rng.random()) / kills  # one kill in each n-th of the run
                try:
                    hashes, row = one(scratch, images, victim, fraction, usual)
                except RuntimeError as error:
                    print(error, file=sys.stderr, flush=True)
                    lines.append((victim, "FAILED", ["", "", "0", "0", "0", "0"]))
                    yield [victim, *lines[-1][2], "FAILED"]
                    continue
                row[-1] = str(int(row[-1]) - int(cells[-1]))
                differ = [name for name in whole if hashes.get(name) != whole[name]]
                same = "identical" if not differ and len(hashes) == len(whole) else f"DIFFER: {differ[:5]}"
                lines.append((victim, same, row))
                yield [victim, *row, same]

    columns = [
        "killed", "stage", "commands", "seconds", "ingest chunks started twice", "images written twice",
        "extra chunk tasks of fit and evaluate", "outputs",
    ]  # fmt: skip
    table(f"{len(whole):,} outputs compared", columns, rows())
    print(f"\n{sum(same == 'identical' for _, same, _ in lines)} of {len(lines)} runs ended with identical outputs")
    for victim in VICTIMS:
        chunks, twice, extra = (max(int(row[i]) for name, _, row in lines if name == victim) for i in (3, 4, 5))
        print(f"{victim}: at most {chunks} chunks started twice, {twice} images written twice, {extra} extra tasks")


def undisturbed(scratch: Path, images: Path) -> dict[str, str]:
    """Run once without any fault; return the hashes of the outputs."""
    run = Run(scratch, images, scratch, None)
    assert run.start().wait(MAX_SECONDS) == 0, run.log.read_text()
    return run.hashes()


def full_disk(scratch: Path, images: Path, stage: str) -> tuple[int, str, dict[str, str]]:
    """Fill the disk of the run folder once a stage has started, then free it and rerun.

    Returns
    -------
    status : int
        Exit status of the command on the full disk.
    failure : str
        The first unfinished stage, and the last line of the command, as ``stage: line``.
    hashes : dict
        Hashes of the outputs after the rerun.
    """
    own = scratch / stage
    own.mkdir()
    small = own / "small"
    with small_disk(small):
        run = Run(own, images, small, None)
        driver = run.start()
        started = {"ingest": "collection.zarr.partial/images/c/0", "quantize": "quantized/4/*"}.get(stage)
        while not (any(run.folder.glob(started)) if started else STAGES[STAGES.index(stage) - 1] in run.finished()):
            assert driver.poll() is None, run.log.read_text()
            time.sleep(0.001)
        fill(small)
        status, line = driver.wait(MAX_SECONDS), run.last_line()
        missing = [name for name in STAGES if name not in run.finished()]
        assert "Traceback" not in run.log.read_text(), run.log.read_text()
        make_room(small)
        rerun_status = run.start().wait(MAX_SECONDS)
        assert rerun_status == 0, run.log.read_text()
        return status, f"{missing[0] if missing else '-'}: {line}", run.hashes()


def disk(scratch: Path, images: Path) -> None:
    """Fill the disk in each stage, free it, and resume."""
    whole = undisturbed(scratch, images)

    def rows() -> Iterator[list[str]]:
        for stage in STAGES:
            status, failure, hashes = full_disk(scratch, images, stage)
            ended_in, line = failure.split(": ", 1)
            yield [stage, ended_in, str(status), line, "identical" if hashes == whole else "DIFFER"]

    columns = ["full in", "ended in", "exit status", "last line", "outputs after the rerun"]
    table(f"A full disk, {len(whole):,} outputs compared", columns, rows())


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1] == "kill":
            kill(Path(folder), Path(sys.argv[2]), int(sys.argv[3]))
        else:
            disk(Path(folder), Path(sys.argv[2]))
