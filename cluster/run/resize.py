"""Why a run that trains should save, end, and be launched again, though nothing has failed."""

import time
from collections.abc import Sequence

from cluster import nodes
from cluster.demand import Demand
from cluster.nodes import Node
from cluster.run.heartbeat import WorkerStatus
from zfdist.run_options import Range

_STABLE_S = 5.0  # a machine that comes and goes is no reason to grow


class ResizeReason:
    """Why a launch that trains should save and end: a machine is taken away, or there is room for more workers.

    For the workers that it lacks it asks.
    """

    def __init__(self, demand: Demand, size: int, workers: Range, grow_every_s: float) -> None:
        self._demand = demand
        self._missing = workers.high - size
        self._grow_at_s = time.monotonic() + grow_every_s
        self._room_since_s: float | None = None

    def __call__(self, seen: Sequence[WorkerStatus], alive: Sequence[Node]) -> str | None:
        """Return the reason, or None to go on."""
        mine = {s.member.node_id for s in seen}
        for node in alive:
            if node.id in mine and node.draining_until_s is not None:
                left = f" in {node.draining_until_s - time.time():.0f} s" if node.draining_until_s else ""
                return f"{node.ip} is taken away{left}"
        self._demand.ask(0, self._missing)
        now = time.monotonic()
        more = self._demand.reserved(nodes.staying(alive)) if self._missing and now >= self._grow_at_s else 0
        self._room_since_s = (self._room_since_s or now) if more else None
        if self._room_since_s is None or now - self._room_since_s < _STABLE_S:
            return None
        return f"there is room for {more} worker{'s' * (more != 1)} more"
