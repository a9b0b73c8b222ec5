"""Making a data set on a cluster: the work of `zfdist.data.sources` as tasks on its machines.

What is read and written lies in an object store, or in folders that all machines share; a task first looks whether its
machine sees them. A lost machine costs what its tasks had not finished.
"""

import contextlib
import functools
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from cluster import nodes, tasks
from cluster.demand import Say, Shortage, Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import FitError, cause_of, root_message
from cluster.session import ClusterError
from zfdist.data.output import UNFINISHED, Where, output_at
from zfdist.data.sources.workers import REPORT_S, Told, Work, throttled
from zfdist.errors import ZfdistError
from zfdist.object_store import is_remote

__all__ = ["Tasks"]


class Tasks:
    """Workers for a converter (see `zfdist.data.sources.workers`) on a cluster; needs a connected Ray.

    Args:
        count: tasks under way at a time, a CPU each.
        sources: what the tasks read.
        out: what they write.
        say: told what is waited for.

    Raises:
        ClusterError: if the tasks do not fit, and no machines may come that could hold them.
    """

    def __init__(self, count: int, sources: Sequence[Where], out: Where, say: Say = print) -> None:
        self._count, self._sources, self._out, self._say = count, sources, out, say
        self._supply = Supply(None, say)
        self._resources: WorkerResources = self._supply.plan(
            lambda there, coming: nodes.resources_per_worker(
                there, workers=count, cpus_per_worker=1, use_gpu=False, coming=coming
            )
        )

    def __call__(self, work: Work, jobs: Sequence[Any], told: Told) -> Iterator[tuple[int, Any]]:
        """Do the work there; raises what a job raises, ClusterError, and FitError if workers died again and again."""
        task = ray.remote(_do).options(
            num_cpus=self._resources.cpus,
            max_retries=tasks.RETRIES,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        tally = ray.remote(_Tally).options(num_cpus=0, max_restarts=-1).remote()
        token = f"{UNFINISHED}/seen-{uuid.uuid4().hex}"
        output_at(self._out).write(token, b"by who makes the shards")
        seen = {str(source): _look(source) for source in self._sources if not is_remote(str(source))}
        common = ray.put((Path.cwd(), work, seen, self._out, token))

        def begin(place: int) -> Any:
            return task.remote(common, jobs[place], place, tally)

        def tell() -> None:
            with contextlib.suppress(ray.exceptions.RayError):  # what is told next has it again
                for place, (samples, name) in ray.get(tally.take.remote(), timeout=REPORT_S).items():
                    told(place, samples, name)

        shortage = Shortage(self._supply, self._resources, self._say)
        at_once = min(self._count, len(jobs))
        try:
            yield from tasks.ended(begin, len(jobs), at_once=at_once, shortage=shortage, beside=tell)
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, ZfdistError):
                raise cause from None
            raise FitError(f"a shard could not be made: {root_message(error)}") from None
        finally:
            output_at(self._out).delete([token])


class _Tally:
    """An actor that keeps how far tasks are until it is asked."""

    def __init__(self) -> None:
        self._news: dict[int, tuple[int, str]] = {}

    def tell(self, place: int, samples: int, name: str) -> None:
        self._news[place] = (samples, name)

    def take(self) -> dict[int, tuple[int, str]]:
        news, self._news = self._news, {}
        return news


def _do(common: tuple[Path, Work, dict[str, str], Where, str], job: Any, place: int, tally: Any) -> Any:
    """What a task does: a job, once its machine was found to see what the others see."""
    directory, work, seen, out, token = common
    if directory.is_dir():
        os.chdir(directory)  # relative paths mean what they mean to the command
    _refuse_blind(seen, out, token)
    return work(job, throttled(functools.partial(tally.tell.remote, place)))


def _refuse_blind(seen: dict[str, str], out: Where, token: str) -> None:
    here = f"machine {socket.gethostname()} ({ray.util.get_node_ip_address()})"
    for source, names in seen.items():
        if _look(Path(source)) != names:
            raise ClusterError(
                f"--source {source}: {here} sees something else there, or nothing; put it into a folder that all "
                "machines share, or into an object store"
            )
    output = output_at(out)
    if output.read(token) is None:
        raise ClusterError(
            f"--out {output.shown}: {here} does not see what this one writes there; choose a folder that all machines "
            "share, or an object store"
        )


def _look(source: Where) -> str:
    """Return what tells a folder or file from another of the same name: what is in it, or its size."""
    path = Path(source)
    try:
        return "\n".join(sorted(os.listdir(path))) if path.is_dir() else str(path.stat().st_size)
    except OSError:
        return ""
