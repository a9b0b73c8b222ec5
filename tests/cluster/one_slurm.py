"""Slurm on this machine: its controller and two nodes of one CPU each, of Debian's slurm-wlm and munge."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from waiting import HostError, wait_for

# The ports lie below those that the kernel gives away.
_CONFIG = """
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port=16818 CPUs=1 RealMemory=1000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port=16819 CPUs=1 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def why_not() -> str | None:
    """Return why there can be no Slurm here; None if there can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Commands of Slurm speak to one of our own within the block."""
    for name in ("state", "one", "two"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(host=socket.gethostname(), folder=folder))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
    os.environ["SLURM_CONF"] = str(config)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "one"],
            ["slurmd", "-D", "-N", "two"],
        ):
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for(lambda: (folder / "munge.socket").exists(), "munged", log=folder / "munge.log")
        wait_for(lambda: asked("sinfo", "-h", "-o", "%D %T") == "2 idle", "two nodes", 60, folder / "slurmctld.log")
        yield
    finally:
        asked("scancel", "--user=root")
        with contextlib.suppress(HostError):
            wait_for(lambda: not asked("squeue", "-h"), "end of all jobs", 60)
        for process in reversed(started):
            process.terminate()
            process.wait()
        del os.environ["SLURM_CONF"]


def asked(*command: str) -> str:
    """Return what a command of Slurm answers; nothing while it cannot."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
