"""Why a run that trains should save, end, and be launched again, though nothing has failed."""

import time
from collections.abc import Sequence

from cluster import nodes
from cluster.nodes import Node, WorkerResources
from cluster.run.heartbeat import WorkerStatus
from cluster.run.policy import Range

_STABLE_S = 5.0  # a machine that comes and goes is no reason to grow


class ResizeReason:
    """Why a launch that trains should save and end: a machine is taken away, or there is room for more workers."""

    def __init__(self, resources: WorkerResources, size: int, workers: Range, grow_every_s: float) -> None:
        self._resources = resources
        self._size = size
        self._high = workers.high
        self._grow_at_s = time.monotonic() + grow_every_s
        self._room_since_s: float | None = None

    def __call__(self, seen: Sequence[WorkerStatus], alive: Sequence[Node]) -> str | None:
        """Return the reason, or None to go on."""
        mine = {s.member.node_id for s in seen}
        for node in alive:
            if node.id in mine and node.draining_until_s is not None:
                left = f" in {node.draining_until_s - time.time():.0f} s" if node.draining_until_s else ""
                return f"{node.ip} is taken away{left}"
        now = time.monotonic()
        if self._size >= self._high or now < self._grow_at_s:
            return None
        more = nodes.room_for(nodes.free(nodes.staying(alive)), self._resources)
        self._room_since_s = (self._room_since_s or now) if more else None
        if self._room_since_s is None or now - self._room_since_s < _STABLE_S:
            return None
        count = min(more, self._high - self._size)
        return f"there is room for {count} worker{'s' * (count != 1)} more"
