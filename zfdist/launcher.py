"""Which of several workers this process is, as torchrun or srun say in its environment, and where they meet."""

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from zfdist.errors import ZfdistError

_SLURM_PORTS = (20_000, 10_000)  # from where and how many: steps of jobs that share a machine take others
_SLURM_ANSWERS_S = 30.0  # scontrol itself asks a controller that is down for minutes


class LauncherError(ZfdistError):
    """The environment does not say whole which of several workers this is, or there is no GPU though asked for."""


class Place(NamedTuple):
    """Which of the workers this process is, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: tuple[str, int] | None = None
    """Host and port at which rank 0 listens; None for a worker alone."""


def place(environ: Mapping[str, str]) -> Place:
    """Return what torchrun, srun, or nobody says of this process in its environment.

    Raises:
        LauncherError: if what is said is not whole.
    """
    try:
        if int(environ.get("WORLD_SIZE", "1")) > 1:  # torchrun, or a user
            size, meeting = int(environ["WORLD_SIZE"]), (environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))
            local = int(environ["LOCAL_RANK"]), int(environ.get("LOCAL_WORLD_SIZE", size))
            return Place(int(environ["RANK"]), size, *local, meeting)
        if "SLURM_STEP_ID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _of_slurm(environ)
    except KeyError as missing:
        message = f"{missing.args[0]} is not set, though this is one of several workers: use torchrun or srun"
        raise LauncherError(message) from None
    except (ValueError, IndexError) as error:
        raise LauncherError(
            f"the variables of torchrun or srun are damaged ({error}); unset them, or use one"
        ) from None
    return Place()


def _of_slurm(environ: Mapping[str, str]) -> Place:
    local_sizes = [
        int(size)
        for size, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
    low, count = _SLURM_PORTS
    port = low + (31 * int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])) % count
    return Place(
        int(environ["SLURM_PROCID"]),
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_LOCALID"]),
        local_sizes[int(environ["SLURM_NODEID"])],
        (host, int(environ.get("MASTER_PORT", port))),
    )


def _first_host(hosts: str) -> str:
    """Return the first of a list of hosts as Slurm writes it: "node[007-009,12],x" -> "node007"."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", hosts)
    if found is None:
        raise LauncherError(f"SLURM_STEP_NODELIST = {hosts!r} names no host; set MASTER_ADDR")
    return found[1] + (found[2] or "")


def address_of(host: str) -> str:
    """Return a name or address that this machine knows of the host of rank 0; Slurm's nodes may have other names.

    Raises:
        LauncherError: if there is none; torch would look for it for half an hour.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(host, None)
        return host
    told = ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = ["scontrol", "show", "node", host, "--oneliner"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=_SLURM_ANSWERS_S).stdout
    found = re.search(r"\bNodeAddr=(\S+)", told)
    if found is None or found[1] == host:
        here = socket.gethostname()
        raise LauncherError(f"MASTER_ADDR = {host}: {here} knows no host of this name, where rank 0 is; set another")
    return found[1]


def use_interface_to(address: str, port: int) -> None:
    """Make gloo and NCCL use the interface that reaches rank 0; by themselves they may take loopback."""
    from zfdist.world import interface_of

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # sends nothing
        interface = interface_of(probe.getsockname()[0])
        if interface:
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(name, interface)
