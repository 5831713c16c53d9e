"""A one-node Slurm on this machine: munged, slurmctld and slurmd, with all their files in one folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_CONF = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
JobRequeue=0
NodeName={name} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""
"""No cgroups, and possibly more CPUs than the machine has: the tests check that jobs start and end, not limits."""


class Slurm:
    """Context manager that runs the daemons; Slurm commands with its `environ` use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": commands}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        conf = _CONF.format(folder=self.folder, name=socket.gethostname(), ports=_free_ports(2))
        (self.folder / "slurm.conf").write_text(conf)
        try:
            files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
            self._wait_until("munge", "--no-input", f"--socket={self.folder}/munge.socket")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._wait_until("srun", "--immediate=5", "true")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root", "--full")
            self._wait_for_no_jobs()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: object) -> str:
        """Run a Slurm command and return its standard output."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=60, check=True).stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs in the queue."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def state(self, job: str) -> str:
        """State of a job, for example RUNNING, TIMEOUT or COMPLETED."""
        return self.run("scontrol", "show", "job", job).partition("JobState=")[2].split()[0]

    def wait(self, job: str, seconds: float) -> str:
        """Wait until a job has ended, and return its final state."""
        limit = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < limit, f"job {job} is {state}"
            time.sleep(0.5)
        return state

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}.out", "wb")  # noqa: SIM115  # inherited by the daemon
        with log:
            self._daemons.append(subprocess.Popen(command, env=self.environ, stdout=log, stderr=subprocess.STDOUT))

    def _wait_until(self, *command: str) -> None:
        for _ in range(60):
            if subprocess.run(command, env=self.environ, capture_output=True, check=False, timeout=20).returncode == 0:
                return
            time.sleep(0.5)
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))
        raise TimeoutError(f"{command} fails after 60 attempts:\n{logs}")

    def _wait_for_no_jobs(self) -> None:
        for _ in range(60):
            if not self.jobs():
                return
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
