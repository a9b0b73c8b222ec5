"""Send a job to a running cluster, follow what it says, stop it.

A job is one command line of this project, run on the head with this checkout's code. Jobs are found by the name of
their run: Ray's own record of them is lost with the head, but what was run is in the run's folder too
(`jobs.cli.job_entrypoint`), so that a name is enough to run it again on another cluster.
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster import ray_internals
from cluster.address import dashboard_refused
from cluster.session import ClusterError

ROOT = Path(__file__).resolve().parents[2]
CODE = ("zfdist", "cluster", "jobs")
"""What travels with a job; the versions of all else are the nodes'."""
_MAX_CODE_MIB = 100
_SAVE_S = 300  # how long a run that is asked to stop may take to save, before Ray kills it
_NOT_YET = "No available agent"  # a head whose dashboard answers before its agent is there
_AGENT_S = 90
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

Say = Callable[[str], None]


class SubmittedJob(NamedTuple):
    """One submission as Ray records it."""

    id: str
    name: str
    state: str
    command: str
    started_s: float
    ended_s: float | None
    message: str
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether it is over, in whatever way."""
        return self.state in _ENDED


class Machine(NamedTuple):
    """One machine of the cluster as Ray's dashboard sees it."""

    host: str
    ip: str
    is_head: bool
    is_alive: bool
    cpus: float
    """That Ray may use."""
    gpus: float
    cpu_percent: float
    memory_percent: float


class Jobs:
    """The jobs of a cluster, reached through its dashboard.

    Args:
        address: of the dashboard, http://host:port.

    Raises:
        ClusterError: if it does not answer or refuses the token; so do all methods.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported, which reads it
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take these instead of what was asked for
            os.environ.pop(name, None)
        if why := dashboard_refused(address):
            raise ClusterError(f"no cluster to talk to at {address}: {why}")
        from ray.job_submission import JobSubmissionClient

        self._address = address
        self._client: Any = self._ask(lambda: JobSubmissionClient(address))
        logging.disable(logging.WARNING)  # Ray's client tells of each package and connection

    def submit(self, name: str, words: Sequence[str]) -> SubmittedJob:
        """Start `python -m ...` with these words on the head, with this checkout's code.

        Raises:
            ClusterError: also if a job of that name runs already.
        """
        before = [job for job in self.all() if job.name == name]
        for job in before:
            if not job.ended:
                raise ClusterError(f"{name} is running already: follow it with `zfdist cluster logs {name}`")
        check_code(ROOT)
        identifier = f"{name}-{len(before) + 1}-{int(time.time())}"
        self._ask(
            lambda: self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", *words]),
                submission_id=identifier,
                metadata={"name": name},
                runtime_env={
                    "working_dir": str(ROOT),
                    "excludes": all_but_code(ROOT),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_SAVE_S), "PYTHONUNBUFFERED": "1"},
                },
            )
        )
        return self.of(name)

    def machines(self) -> list[Machine]:
        """Return the machines of the cluster, the head first; one that is lost is remembered for a while."""
        answer = self._ask(lambda: ray_internals.dashboard_nodes(self._client))
        if answer.status_code != 200:
            raise ClusterError(f"{self._address}: the dashboard answers {answer.status_code} to a question for nodes")
        found = [_machine(node) for node in answer.json()["data"]["summary"]]
        return sorted(found, key=lambda machine: (not machine.is_head, not machine.is_alive, machine.ip))

    def all(self) -> list[SubmittedJob]:
        """Return all submissions that the cluster knows, oldest first."""
        found = [job for job in self._ask(self._client.list_jobs) if job.submission_id]
        return sorted((_job(info) for info in found), key=lambda job: job.started_s)

    def of(self, name: str) -> SubmittedJob:
        """Return the newest submission of a name.

        Raises:
            ClusterError: also if there is none; names those that there are.
        """
        jobs = self.all()
        mine = [job for job in jobs if name in (job.name, job.id)]
        if not mine:
            known = ", ".join(sorted({job.name for job in jobs})) or "none"
            raise ClusterError(f"the cluster knows no job {name!r} (it knows: {known}); a run of an earlier cluster "
                               f"goes on with `zfdist cluster resume {name}`")  # fmt: skip
        return mine[-1]

    def log(self, job: SubmittedJob) -> str:
        """Return all that a job has said."""
        return str(self._ask(lambda: self._client.get_job_logs(job.id)))

    def follow(self, job: SubmittedJob, write: Callable[[str], object]) -> SubmittedJob:
        """Pass on what a job says until it ends; return how it ended.

        Raises:
            ClusterError: if the connection is lost for good, which the job need not notice.
        """
        written = 0

        async def copy() -> None:
            nonlocal written
            told = 0
            async for text in self._client.tail_job_logs(job.id):  # after a lost connection from the start again
                fresh = text[max(0, written - told) :]
                told += len(text)
                if fresh:
                    write(fresh)
                    written = told

        while not (now := self._still(job)).ended:
            try:
                asyncio.run(copy())
            except (RuntimeError, OSError):
                time.sleep(1)
        write(self.log(now)[written:])
        return now

    def _still(self, job: SubmittedJob) -> SubmittedJob:
        try:
            return self.of(job.id)
        except ClusterError as error:
            again = f"`zfdist cluster logs {job.name}` follows it"
            raise ClusterError(f"{error} (if only the connection broke, {job.name} goes on: {again})") from None

    def stop(self, job: SubmittedJob, *, wait_s: float = _SAVE_S) -> SubmittedJob:
        """Ask a job to save and end, as Ctrl-C does on one machine; return how it ended."""
        if not job.ended:
            self._ask(lambda: self._client.stop_job(job.id))
        deadline_s = time.monotonic() + wait_s
        while not (job := self.of(job.id)).ended:
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{job.name} was asked to stop but still runs after {wait_s:.0f} s")
            time.sleep(0.5)
        return job

    def _ask(self, question: Callable[[], Any]) -> Any:
        from ray.exceptions import AuthenticationError

        deadline_s = time.monotonic() + _AGENT_S
        while True:
            try:
                return question()
            except AuthenticationError:
                reason = "it refuses the token in ~/.ray/auth_token; copy the one that the cluster was brought up with"
            except OSError:
                reason = "nothing answers; is its head up?"
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            if _NOT_YET not in reason or time.monotonic() > deadline_s:
                raise ClusterError(f"no cluster to talk to at {self._address}: {reason}")
            time.sleep(1)


def all_but_code(root: Path) -> list[str]:
    """Return what of a checkout does not travel with a job, as patterns of a .gitignore."""
    return [*(f"/{path.name}" for path in root.iterdir() if path.name not in CODE), "__pycache__"]


def check_code(root: Path) -> None:
    """Raise ClusterError if what would travel with a job is too large, naming the largest file."""
    files = [p for folder in CODE for p in (root / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    sizes = {path: path.stat().st_size for path in files}
    total_mib = sum(sizes.values()) / 2**20
    if total_mib > _MAX_CODE_MIB:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ClusterError(
            f"{root}: {total_mib:.0f} MiB would travel with the job, {_MAX_CODE_MIB} are allowed; move data elsewhere: "
            f"the largest file is {largest.relative_to(root)} ({sizes[largest] / 2**20:.0f} MiB)"
        )


def _machine(node: Any) -> Machine:
    ray = node["raylet"]
    has = ray.get("resourcesTotal") or {}
    return Machine(
        host=node.get("hostname") or ray.get("nodeManagerHostname") or "?",
        ip=node.get("ip") or ray.get("nodeManagerAddress") or "?",
        is_head=bool(ray.get("isHeadNode")),
        is_alive=ray.get("state") == "ALIVE",
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        cpu_percent=float(node.get("cpu") or 0.0),
        memory_percent=float((node.get("mem") or (0, 0, 0))[2]),
    )


def _job(info: Any) -> SubmittedJob:
    return SubmittedJob(
        id=info.submission_id,
        name=(info.metadata or {}).get("name", info.submission_id),
        state=str(getattr(info.status, "value", info.status)),
        command=info.entrypoint,
        started_s=(info.start_time or 0) / 1000,
        ended_s=info.end_time / 1000 if info.end_time else None,
        message=(info.message or "").partition(", last available logs")[0],
        exit_code=info.driver_exit_code,
    )
