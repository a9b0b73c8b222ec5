"""The commands as a user types them, and what they leave on Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zfdist.config import Config


def flags(config: Config) -> list[str]:
    """Return the command-line flags that turn any recipe into `config`."""
    return [word for name, value in config.flat().items() for word in (f"--{name.replace('_', '-')}", str(value))]


def start(job: str, *words: str, folder: Path) -> subprocess.Popen[str]:
    """Start `python -m jobs.JOB ...` in `folder`; its output is one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def run(job: str, *words: str, folder: Path) -> tuple[int, str]:
    """Run `python -m jobs.JOB ...` in `folder` to its end; return exit code and output."""
    process = start(job, *words, folder=folder)
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def wait_for(true: Callable[[], bool], what: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9, as the kernel's out-of-memory killer does."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def nothing_held() -> bool:
    """Return whether all CPUs are free and no placement group is left."""
    import ray

    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    return not groups and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
