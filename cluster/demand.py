"""Ask the cluster for machines and wait for them.

What a job asks for are placement groups of its own. One that cannot be placed yet is what Ray's autoscaler starts
machines for; one that is placed holds its room until the job takes it. Either way it goes with the job, also by
kill -9, and leaves alone what other jobs ask for. (`ray.autoscaler.sdk.request_resources` does neither: it is one list
for the whole cluster, which the next call of any job overrides, and which stays.)
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from cluster import nodes, ray_internals
from cluster.nodes import Autoscaler, Coming, Node, NodeType, WorkerResources
from cluster.session import ClusterError

PATIENCE_S = 900.0
"""For machines that may come: a cloud starts one in minutes."""
_FIRST_LOOK_S = 2.0
_SAY_EVERY_S = 30.0
_ANSWER_S = 5
_WHY_NOT_UP = "why one that starts does not join is in /tmp/ray/session_latest/logs/monitor.out on the head"

Say = Callable[[str], None]


class Demand:
    """Room for workers that a job asks for, in placement groups; a context manager that ends with nothing held."""

    def __init__(self, resources: WorkerResources) -> None:
        self._bundle = resources.bundle
        self._together: PlacementGroup | None = None
        self._asked: tuple[int, Fallback | None] = 0, None
        self._apart: list[PlacementGroup] = []
        # Of an actor that did the same before and was killed: Ray frees them only with the whole job.
        ray_internals.remove_placement_groups(of_dead_actors=True)

    def __enter__(self) -> "Demand":
        return self

    def __exit__(self, *error: object) -> None:
        self.ask(0, 0)

    def ask(self, together: int, apart: int, fallback: "Fallback | None" = None) -> None:
        """Ask for room for so many workers: some of them all or none, the others one by one; what is held counts.

        Args:
            together: workers all or none.
            apart: further workers.
            fallback: how many of the former are to be on machines of a type that stands in for those that do not come.
        """
        if (together, fallback) != self._asked and self._together is not None:
            remove_placement_group(self._together)
            self._together = None
        self._asked = together, fallback
        if self._together is None and together:
            selectors = fallback.selectors(together) if fallback else None
            self._together = placement_group(
                [self._bundle] * together, strategy="PACK", bundle_label_selector=selectors
            )
        while len(self._apart) > apart:
            remove_placement_group(self._apart.pop())
        while len(self._apart) < apart:
            self._apart.append(placement_group([self._bundle]))

    def reserved(self, on: Sequence[Node]) -> int:
        """Return for how many workers there is room that nobody else can take, on these machines."""
        usable = {node.id for node in on}
        return sum(group.bundle_count for group in self._groups() if _is_held(group, usable))

    def take(self) -> list[PlacementGroup]:
        """Return what is held, for the caller to free in the moment that it takes the room; stop asking for more."""
        everywhere = {node.id for node in nodes.alive()}
        groups = self._groups()
        held = [group for group in groups if _is_held(group, everywhere)]
        for group in groups:
            if group not in held:
                remove_placement_group(group)
        self._together, self._apart, self._asked = None, [], (0, None)
        return held

    def _groups(self) -> list[PlacementGroup]:
        return [*([self._together] if self._together else []), *self._apart]


class Fallback(NamedTuple):
    """Machines that stand in for those that have not come, such as on-demand ones for spot."""

    type: NodeType
    workers: int
    """For so many."""

    def selectors(self, together: int) -> list[dict[str, str]]:
        """Return on what machines so many workers may be: the last of them on these only."""
        return [{}] * (together - self.workers) + [self.type.selector] * self.workers

    def __str__(self) -> str:
        """Return what people are told."""
        plural = "s" * (self.workers != 1)
        return (
            f"no machine for {self.workers} worker{plural} in {self.type.asked_after_s} s: asking for {self.type.name}"
        )


def _is_held(group: PlacementGroup, usable: set[str]) -> bool:
    told: dict[str, Any] = placement_group_table(group)
    return told.get("state") == "CREATED" and set(told["bundles_to_node_id"].values()) <= usable


class Supply:
    """What may come to the cluster, and how long a job waits for it.

    Args:
        wait_s: to wait for machines; None for PATIENCE_S where any may come.
        say: told what is waited for.
    """

    def __init__(self, wait_s: float | None, say: Say) -> None:
        self._wait_s, self._say = wait_s, say
        self._autoscaler: Autoscaler | None = nodes.autoscaler()

    def coming(self, alive: Sequence[Node]) -> Coming:
        """Return what may come to the machines that are up."""
        return nodes.coming(alive, self._autoscaler)

    def patience_s(self, *, otherwise: float) -> float:
        """Return how long to wait for machines; `otherwise` where nobody told and none may come."""
        if self._wait_s is not None:
            return self._wait_s
        return PATIENCE_S if self._autoscaler or self.coming(nodes.alive()).of_unknown_size else otherwise

    def plan(self, choose: Callable[[Sequence[Node], Coming], WorkerResources]) -> WorkerResources:
        """Return what `choose` does, given the machines that are up and what may come.

        If it refuses, it is asked again while machines of a size that nobody knows are still to come.

        Raises:
            ClusterError: what it raises: at once where it is known what may come, else after a while.
        """
        started_s, told = time.monotonic(), False
        while True:
            there = nodes.staying(nodes.alive())
            coming = self.coming(there)
            try:
                return choose(there, coming)
            except ClusterError as error:
                refusal = error
            patience_s = self.patience_s(otherwise=0.0)
            is_final = not coming.of_unknown_size and (self._autoscaler is not None or self._wait_s is None)
            if is_final or time.monotonic() - started_s > patience_s:
                raise refusal
            if not told:
                self._say(f"waiting up to {patience_s:.0f} s for machines (there are {nodes.describe(there)}) ...")
                told = True
            time.sleep(1)

    def fallback(self, resources: WorkerResources, missing: int, waited_s: float) -> Fallback | None:
        """Return what to ask for instead of machines for so many workers that have not come for so long; or None."""
        for kind in sorted(self._types(), key=lambda kind: kind.asked_after_s or 0):
            if kind.asked_after_s is not None and kind.node is not None and waited_s > kind.asked_after_s:
                workers = min(missing, kind.most * nodes.room_for([kind.node], resources))
                if workers > 0:
                    return Fallback(kind, workers)
        return None

    def _types(self) -> Sequence[NodeType]:
        return () if self._autoscaler is None else self._autoscaler.types

    def asked(self, resources: WorkerResources, missing: int, fallback: Fallback | None = None) -> str:
        """Return what is asked for and how far it is, e.g. "asked for 2 x gpu, 1 starting"; empty if nobody answers."""
        types = [kind for kind in self._types() if kind.asked_after_s is None]
        if fallback is not None:
            types, missing = [fallback.type], fallback.workers
        rooms = {kind.name: nodes.room_for([kind.node], resources) for kind in types if kind.node is not None}
        fitting = {name: room for name, room in rooms.items() if room}
        if not fitting:
            return ""
        machines = -(-missing // max(fitting.values()))
        starting, refused = ray_internals.starting_machines(ray.get_runtime_context().gcs_address, within_s=_ANSWER_S)
        count = sum(starting.get(name, 0) for name in fitting)
        said = f"asked for {machines} x {' or '.join(fitting)}, {count} starting"
        return said + (f"; the last that could not be started: {refused}" if refused and not count else "")


class Waiting:
    """Tells people what is waited for, and ends when their patience does.

    Args:
        supply: what may come.
        resources: of one worker.
        patience_s: for a wait without a break.
        say: told at once, when something changes, and twice a minute.
    """

    def __init__(self, supply: Supply, resources: WorkerResources, patience_s: float, say: Say) -> None:
        self._supply, self._resources, self._patience_s, self._say = supply, resources, patience_s, say
        self._since_s: float | None = None

    def over(self) -> None:
        """Note that nothing is missing."""
        self._since_s = None

    def look(self, missing: int, why: str, fallback: Fallback | None = None) -> float:
        """Note that room for so many workers is missing, and return for how long it has been, in seconds.

        Args:
            missing: workers.
            why: the sentence about it.
            fallback: what is asked for in place of machines that have not come.

        Raises:
            ClusterError: if it has been missing for too long.
        """
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s, self._told, self._next_look_s, self._next_word_s = now_s, "", now_s + _FIRST_LOOK_S, 0.0
            self._say(f"waiting up to {self._patience_s:.0f} s for machines ({why}) ...")
        waited_s = now_s - self._since_s
        if waited_s > self._patience_s:
            asked = self._supply.asked(self._resources, missing, fallback)
            so_far = f"{asked}, after {waited_s:.0f} s" if asked else f"waited {waited_s:.0f} s"
            if asked and ", 0 starting" not in asked:
                so_far += f" ({_WHY_NOT_UP})"
            raise ClusterError(f"{why}: {so_far}; the same command goes on once there are more machines")
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + 1
            asked = self._supply.asked(self._resources, missing, fallback)
            if asked and (asked != self._told or now_s > self._next_word_s):
                self._say(f"{asked}, {waited_s:.0f} s")
                self._told, self._next_word_s = asked, now_s + _SAY_EVERY_S
        return waited_s


class Shortage:
    """Watches for others (Ray Tune, tasks) who wait for machines themselves, and would do so for ever.

    Args:
        supply: what may come.
        resources: of one worker.
        say: told what is waited for.
        others_ask_instead: whether they also ask themselves for what stands in for machines that do not come.
    """

    def __init__(
        self, supply: Supply, resources: WorkerResources, say: Say, *, others_ask_instead: bool = False
    ) -> None:
        self._supply, self._resources, self._say = supply, resources, say
        self._asks_instead = not others_ask_instead
        self._fallback: Fallback | None = None
        self._group: PlacementGroup | None = None
        self._waiting = Waiting(supply, resources, supply.patience_s(otherwise=PATIENCE_S), say)

    def has_room_for(self, fewest: int) -> bool:
        """Return whether the machines that are up could hold so many workers, if they were empty."""
        return self._room(nodes.reachable(nodes.staying(nodes.alive()))) >= fewest

    def look(self, fewest: int, *, most: int) -> None:
        """Look whether the machines that are up could hold the fewest workers with which anything can be done.

        Args:
            fewest: workers.
            most: workers that are asked for.

        Raises:
            ClusterError: if they could not for too long.
        """
        there = nodes.reachable(nodes.staying(nodes.alive()))
        room = self._room(there)
        if room >= fewest:
            self._waiting.over()
            if self._group is not None:  # those that wait take what it held
                remove_placement_group(self._group)
            self._fallback = self._group = None
            return
        needed = f"{fewest} x {nodes.describe_worker(self._resources)} needed"
        why = f"{needed}, room for {room} on {nodes.describe(there)}"
        waited_s = self._waiting.look(most - room, why, self._fallback)
        if self._fallback is None and self._asks_instead:
            self._fallback = self._supply.fallback(self._resources, fewest - room, waited_s)
            if self._fallback is not None:
                self._say(str(self._fallback))
                self._group = self._asked_for(self._fallback)

    def _asked_for(self, fallback: Fallback) -> PlacementGroup:
        """Ask for the machines, and for a little of the head: Ray serves the larger of those that wait first.

        Those that others ask for in vain would otherwise use up how many there may be in all.
        """
        bundles = [self._resources.bundle] * fallback.workers
        selectors = fallback.selectors(fallback.workers)
        return placement_group([*bundles, {nodes.HEAD: 0.001}], bundle_label_selector=[*selectors, {}])

    def _room(self, there: Sequence[Node]) -> int:
        return nodes.room_for(there, self._resources)
