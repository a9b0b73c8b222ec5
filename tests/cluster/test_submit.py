"""Jobs on a real Ray with tokens, through its dashboard: submit, follow, stop, resume, look at it, be refused."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import psutil
import pytest

from zfdist.config import Config

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


class Head:
    """A Ray of its own: token, ports and folder."""

    def __init__(self, folder: Path) -> None:
        ports = _free_ports(6)
        self.token = secrets.token_hex(32)
        self.gcs, self.address = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self.runs = folder / "runs"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "COLUMNS": "200", "HOME": str(folder)}
        self.env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        options = [f"--{name}={port}" for name, port in zip(names, ports[2:], strict=False)]
        options += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[5]}"]
        options += ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}/ray"]
        self.process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *options],
            env=self.env,
            start_new_session=True,
            stdout=(folder / "ray.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        self.log = folder / "ray.log"

    def run(self, *words: str, code: int = 0, token: str | None = None) -> str:
        """Run `zfdist cluster VERB --address ...` to its end."""
        process = self.start(*words, token=token)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, out
        assert "Traceback" not in out, out
        return out

    def start(self, verb: str, *words: str, token: str | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cluster", verb, "--address", self.address, *words],
            cwd=ROOT,
            env=self.env | ({"RAY_AUTH_TOKEN": token} if token else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _free_ports(count: int) -> list[int]:
    """Return free ports that neither the kernel (32768 up) nor Ray (10002 to 19999) hands to others by itself."""
    free: set[int] = set()
    while len(free) < count:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.add(port)
    return list(free)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that answers; one whose ports were taken meanwhile is tried again with others."""
    with tempfile.TemporaryDirectory(prefix="h") as folder:  # Ray's sockets take no path as long as pytest's
        for attempt in range(3):
            (at := Path(folder, str(attempt))).mkdir()
            head = Head(at)
            try:
                if _answers(head):
                    yield head
                    return
            finally:
                _kill(head)
        raise AssertionError(f"three heads did not answer; the last one said:\n{head.log.read_text()[-4000:]}")


def _answers(head: Head) -> bool:
    from cluster.provision.reach import answers

    deadline_s = time.monotonic() + 90
    while head.process.poll() is None and time.monotonic() < deadline_s:
        if answers(head.address):
            return True
        time.sleep(0.2)
    return False


def _kill(head: Head) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(head.process.pid)
        for process in [*leader.children(recursive=True), leader]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    head.process.wait(timeout=60)


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_run_is_submitted_followed_stopped_and_resumed_by_name(head: Head, slow_config: Config) -> None:
    config = slow_config.with_values({"train.steps": 1_000_000})
    words = ["--storage", str(head.runs), "train", "demo", "--name", "r1", *commands.flags(config)]
    following = head.start("submit", *words)
    metrics = head.runs / "r1" / "metrics.jsonl"
    commands.wait_for(lambda: metrics.exists() or following.poll() is not None, "first metrics", within_s=300)
    assert following.poll() is None, following.communicate()[0]

    assert "running already: follow it with" in head.run("submit", *words, code=1)
    status = head.run("status")
    assert "(head)" in status and "r1" in status and "running" in status

    following.send_signal(signal.SIGINT)  # leaves the run alone
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 130 and "r1 goes on without you" in out, out

    assert "stopped; `zfdist cluster resume r1` goes on" in head.run("stop", "r1")
    assert "saving, then stopping" in head.run("logs", "r1")
    stopped_at = _newest_step(head.runs / "r1")
    assert stopped_at > 0, "stopping saved the step that it had come to"
    assert json.loads((head.runs / "r1" / "submission.json").read_text())["command"][:2] == ["train", "demo"]

    assert "submitted r1 as job r1-2-" in head.run("resume", "--detach", "--storage", str(head.runs), "r1")
    commands.wait_for(lambda: _newest_step(head.runs / "r1") > stopped_at, "a later checkpoint", within_s=300)
    head.run("stop", "r1")
    assert "has ended already (stopped)" in head.run("stop", "r1")


def _newest_step(run: Path) -> int:
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*") if p.name[5:].isdigit()), default=0)


@pytest.mark.timeout(900)
def test_the_doctor_asks_every_node(head: Head) -> None:
    out = head.run("doctor", "--storage", str(head.runs), "--workers", "2")
    assert "deepspeed" in out and "(head)" in out and "FAIL" not in out, out
    out = head.run("doctor", "--storage", "/proc/nowhere", "--workers", "9", code=1)
    assert "FAIL  cluster: room for 2 workers, 9 asked" in out and ": storage: " in out, out
    assert not list(head.runs.glob("doctor-*"))


def test_a_job_that_fails_says_so(head: Head) -> None:
    out = head.run("submit", "--storage", str(head.runs), "train", "dmeo", "--name", "bad", code=2)
    assert "perhaps you meant 'demo'" in out
    out = head.run("resume", "--storage", str(head.runs), "never-was", code=1)
    assert "no such run was submitted" in out
    assert "knows no job 'nobody'" in head.run("logs", "nobody", code=1)


def test_a_stranger_is_refused(head: Head) -> None:
    for verb in (
        ["status"],
        ["logs", "r1"],
        ["stop", "r1"],
        ["submit", "--storage", "/x", "train", "demo", "--name", "r"],
    ):
        assert "it refuses the token" in head.run(*verb, code=1, token="0" * 64)


def test_nobody_at_the_address() -> None:
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cluster", "status", "--address", "http://127.0.0.1:1"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "no cluster to talk to at http://127.0.0.1:1" in done.stderr, started_s
    assert "Traceback" not in done.stderr
