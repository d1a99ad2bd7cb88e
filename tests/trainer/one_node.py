"""A real SLURM of one node, run by the user of the tests: munged, slurmctld and slurmd with ports
and folders of their own.
"""

from __future__ import annotations

import getpass
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """
ClusterName=tests
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=cpu Nodes={host} MaxTime=60 State=UP
"""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def missing() -> list[str]:
    return [name for name in PROGRAMS if _program(name) is None]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """What the tests ask of the cluster. `environment` leads every SLURM program to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def said(self, *words: str) -> str:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, …; of an array the first state of its tasks that is
        not COMPLETED.
        """
        lines = self.said(
            "squeue", "--noheader", "--all", "--states=all", f"--jobs={job}", "--format=%T"
        ).split()
        return next((line for line in lines if line != "COMPLETED"), "COMPLETED")

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """Until a job has one of the states; a requeued one is not left to wait for its minute or
        two.
        """
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, (
                f"job {job} is {state}: {self.said('scontrol', 'show', 'job', job)}"
            )
            if state == "PENDING" and "BeginTime" in self.said(
                "squeue", "--noheader", f"--jobs={job}", "--format=%r"
            ):
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now"],
                    capture_output=True,
                    env={**os.environ, **self.environment},
                )
            time.sleep(0.2)
        return state


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o711)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=host,
            ports=_free_ports(2),
            folder=folder,
            user=getpass.getuser(),
            # Lightning takes a job's port from its number; two clusters of two workers would clash.
            first=random.randrange(1, 9000),
        )
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {
        "key-file": key,
        "socket": folder / "munge.socket",
        "pid-file": folder / "munge.pid",
        "log-file": folder / "munge.log",
        "seed-file": folder / "munge.seed",
    }
    commands = [
        [
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={path}" for option, path in files.items()),
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    cluster, running = Slurm(folder), []
    environment = {**os.environ, **cluster.environment}
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            program = _program(command[0])
            running.append(
                subprocess.Popen([program, *command[1:]], stdout=log, stderr=log, env=environment)
            )  # type: ignore[list-item]
            log.close()
            time.sleep(1)  # each asks the one before
        end = time.monotonic() + 30
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "--noheader"], capture_output=True, text=True, env=environment
            ).stdout
        ):
            logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.out"))
            assert time.monotonic() < end and all(one.poll() is None for one in running), logs
            time.sleep(0.3)
        yield cluster
    finally:
        subprocess.run(
            ["scancel", f"--user={getpass.getuser()}"],
            capture_output=True,
            timeout=30,
            env=environment,
        )
        for one in reversed(running):
            one.terminate()
            try:
                one.wait(15)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
