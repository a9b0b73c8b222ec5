"""Tasks of a job on the cluster: never more than so many under way; machines that they wait for are asked for in time.

Ray hands a task out again if its machine dies.
"""

from collections.abc import Callable, Iterator
from typing import Any

import ray

from cluster.demand import Shortage

RETRIES = 3
"""Of a task whose worker died."""
_LOOK_S = 1.0  # how often it is looked whether machines are missing


def ended(
    begin: Callable[[int], Any],
    count: int,
    *,
    at_once: int,
    shortage: Shortage,
    beside: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """Yield the place of each of `count` tasks and what it returned, in the order in which they end.

    A task that no machine can hold yet is what the cluster's autoscaler starts one for.

    Args:
        begin: starts the task of a place.
        count: tasks.
        at_once: never more are under way.
        shortage: watches whether any machine can hold one.
        beside: called about once a second.

    Raises:
        RayError: if one failed. The others end with this process: Ray's cancel now and then aborts it, where a task
            ends in that moment.
        ClusterError: if no machine came that could hold one.
    """
    waiting = iter(range(count))
    under_way = {begin(place): place for _, place in zip(range(at_once), waiting, strict=False)}
    while under_way:
        done, _ = ray.wait(list(under_way), timeout=_LOOK_S)
        beside()
        if not done:
            shortage.look(1, most=len(under_way))
            continue
        (task,) = done
        yield under_way.pop(task), ray.get(task)
        for place in waiting:
            under_way[begin(place)] = place
            break
