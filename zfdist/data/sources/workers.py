"""Who does a converter's work: this process, or several of this machine; and how far all of them are.

Workers are a function of the work, the jobs, and who is told how far each job is. It yields the place of each job and
what came of it, in the order in which they end. `cluster.prepare` has one whose work is done by a cluster.
"""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from zfdist.errors import ZfdistError

Report = Callable[[int, str], None]
"""Called with the samples of this job that are done, and the input in hand."""
Told = Callable[[int, int, str], None]
"""Called with a job's place, its samples that are done, and the input in hand."""
Work = Callable[[Any, Report], Any]
"""What is done for a job; sent to other processes, so a function of a module, or a `partial` of one."""
Workers = Callable[[Work, Sequence[Any], Told], Iterator[tuple[int, Any]]]

REPORT_S = 0.5
"""A worker says no more often how far it is."""


class WorkerLost(ZfdistError):
    """A process that ended by itself; the message says in which input."""


def here(work: Work, jobs: Sequence[Any], told: Told) -> Iterator[tuple[int, Any]]:
    """Do the work in this process, one job after the other."""
    for place, job in enumerate(jobs):
        yield place, work(job, partial(told, place))


@dataclass(frozen=True)
class Processes:
    """So many processes of this machine."""

    count: int

    def __call__(self, work: Work, jobs: Sequence[Any], told: Told) -> Iterator[tuple[int, Any]]:
        """Do the work there; raises what a job raises, and WorkerLost. They end with the block or with this process."""
        waiting = iter(enumerate(jobs))
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as stack:
            at_work: dict[Connection, _AtWork] = {}
            for place, job in _first(waiting, self.count):
                ours, process = stack.enter_context(_started(context, work))
                ours.send(job)
                at_work[ours] = _AtWork(process, place, "")
            while at_work:
                for ready in wait(list(at_work)):
                    assert isinstance(ready, Connection)
                    worker = at_work[ready]
                    try:
                        what, value = ready.recv()
                    except (EOFError, ConnectionError):
                        raise WorkerLost(_ending(worker)) from None
                    if what == "report":
                        worker.name = value[1]
                        told(worker.place, *value)
                        continue
                    if what == "error":
                        raise value
                    yield worker.place, value
                    del at_work[ready]
                    for place, job in _first(waiting, 1):
                        ready.send(job)
                        at_work[ready] = _AtWork(worker.process, place, "")


@dataclass
class _AtWork:
    process: BaseProcess
    place: int
    name: str


def throttled(report: Report) -> Report:
    """Return a report that passes on one call in a while."""
    latest_s = -REPORT_S

    def seldom(samples: int, name: str) -> None:
        nonlocal latest_s
        if time.monotonic() - latest_s >= REPORT_S:
            latest_s = time.monotonic()
            report(samples, name)

    return seldom


def _first(waiting: Iterator[tuple[int, Any]], count: int) -> Iterator[tuple[int, Any]]:
    for _ in range(count):
        try:
            yield next(waiting)
        except StopIteration:
            return


@contextlib.contextmanager
def _started(context: Any, work: Work) -> Iterator[tuple[Connection, BaseProcess]]:
    """Start a process for the block."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        ours.close()
        process.terminate()
        process.join()


def _serve(connection: Connection, work: Work) -> None:
    """Do the jobs that come, until whoever sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, all processes get it: the first one ends the others

    def report(samples: int, name: str) -> None:
        connection.send(("report", (samples, name)))

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = connection.recv()
            try:
                done = ("done", work(job, throttled(report)))
            except ConnectionError:
                raise
            except Exception as error:
                if not isinstance(error, ZfdistError | OSError):
                    error.add_note(traceback.format_exc())  # where it was raised is not sent along
                done = ("error", error)
            connection.send(done)


def _ending(worker: _AtWork) -> str:
    worker.process.join(5)
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
    hint = " (perhaps for want of memory: try fewer --workers)" if code == -signal.SIGKILL else ""
    at = f", at {worker.name}" if worker.name else ""
    return f"a worker process {how}{hint}{at}; the same command goes on where it stopped"
