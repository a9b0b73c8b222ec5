"""How many workers a run is launched with: asks for the most, and waits for the fewest."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster import nodes
from cluster.demand import Demand, Fallback, Say, Supply, Waiting
from cluster.nodes import Coming, Node, WorkerResources
from cluster.run.policy import GATHER_S, SETTLE_S, team_size
from zfdist.run_options import Range
from zfdist.worker import POLL_S

WAIT_FOR_NODES_S = 600.0
"""After a loss, where no machine is known to come."""
_PLACED_S = 2.0  # what can be placed is by then
_YIELD_S = 180.0  # with room for some of the fewest only, held against others who wait in the same way


class RunLog(NamedTuple):
    """How whoever started a run hears of it."""

    note: Say
    """Tells what becomes of the workers: through the run's log, which in a store is written by rank 0 alone."""
    follow: Callable[[], None]
    """Passes on what the run has written since the last call."""


class Team(NamedTuple):
    """The workers of a run, of which there are as many as the machines allow."""

    workers: Range
    resources: WorkerResources
    demand: Demand
    supply: Supply
    run_log: RunLog
    stop: Path
    """A file that asks the run to stop."""

    def assemble(self, *, gathers: bool = False) -> int:
        """Return how many workers to launch now, for which room is reserved then; 0 if asked to stop meanwhile.

        With `gathers`, the fewest wait for a moment for more, where more may come.

        Raises:
            ClusterError: if too few machines came in time.
        """
        low, high = self.workers
        started_s = enough_since_s = time.monotonic()
        patience_s = self.supply.patience_s(otherwise=WAIT_FOR_NODES_S)
        waiting = Waiting(self.supply, self.resources, patience_s, self.run_log.note)
        is_stuck = False
        fallback: Fallback | None = None
        while True:
            self.demand.ask(low, 0 if is_stuck else high - low, fallback)
            there = nodes.reachable(nodes.staying(nodes.alive()))
            reserved = self.demand.reserved(there)
            coming = self.supply.coming(there) if gathers else None
            waited_s = time.monotonic() - started_s
            if reserved < low:
                enough_since_s = time.monotonic()
            size = team_size(
                self.workers,
                reserved=reserved,
                room=self._room(there, coming),
                enough_for_s=time.monotonic() - enough_since_s,
                settle_s=SETTLE_S if coming is None else GATHER_S,
            )
            if size is not None:
                return size
            if reserved < low and waited_s > _PLACED_S:
                waiting.look(high - reserved, self._missing(there, reserved), fallback)
                if fallback is None:
                    fallback = self._fallback(there, reserved, waited_s)
            is_stuck = is_stuck or fallback is not None or (0 < reserved < low and waited_s > _YIELD_S)
            if self.stop.exists():
                return 0
            self.run_log.follow()
            time.sleep(POLL_S)

    def _fallback(self, there: Sequence[Node], reserved: int, waited_s: float) -> Fallback | None:
        """Return what to ask for in place of machines that have not come, for as many workers as cannot do without."""
        missing = self.workers.low - reserved - nodes.room_for(nodes.free(there), self.resources)
        fallback = self.supply.fallback(self.resources, missing, waited_s)
        if fallback is not None:
            self.run_log.note(str(fallback))
        return fallback

    def _room(self, there: Sequence[Node], coming: Coming | None) -> int:
        """Return for how many workers there would be room, if all machines were empty, and those came that may."""
        room = nodes.room_for(there, self.resources)
        if coming is None:
            return room
        return self.workers.high if coming.of_unknown_size else room + coming.room_for(self.resources)

    def _missing(self, there: Sequence[Node], reserved: int) -> str:
        needed = f"{count(self.workers.low)} of {describe(self.resources)} each needed"
        held = " that nobody else holds" if nodes.room_for(there, self.resources) >= self.workers.low else ""
        return f"{needed}, room for {reserved}{held} on {nodes.describe(there)}"


def count(workers: int) -> str:
    """Return e.g. "2 workers"."""
    return f"{workers} worker{'s' * (workers != 1)}"


def describe(resources: WorkerResources) -> str:
    """Return e.g. "4 CPUs, 1 GPU"."""
    return f"{resources.cpus} CPU{'s' * (resources.cpus != 1)}" + (
        f", {resources.gpus:g} GPU" if resources.gpus else ""
    )
