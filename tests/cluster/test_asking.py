"""What a job asks for and holds is its own, and is free again however early it ends."""

from pathlib import Path
from typing import Any

import commands
import pytest

from zfdist.config import Config
from zfdist.run_options import RunOptions


def test_room_is_held_until_it_is_taken_and_what_does_not_fit_is_asked_for(cluster: str) -> None:
    from cluster import nodes
    from cluster.demand import Demand
    from cluster.nodes import WorkerResources

    there = nodes.alive()
    with Demand(WorkerResources(1, 0)) as demand:
        demand.ask(1, 2)  # of two CPUs
        commands.wait_for(lambda: demand.reserved(there) == 2, "room for two", within_s=10)
        assert demand.reserved([]) == 0, "none of it on other machines"
        held = demand.take()
        assert len(held) == 2 and _groups("PENDING", "CREATED") == 2, "it no longer asks for the third"
        demand.ask(3, 0)
        assert demand.reserved(there) == 0 and _groups("PENDING") == 1, "all or none"
    from ray.util import remove_placement_group

    for group in held:
        remove_placement_group(group)
    commands.wait_for(commands.nothing_held, "nothing held", within_s=10)


def test_what_an_actor_held_that_was_killed_is_free_for_the_next(cluster: str) -> None:
    import ray

    from cluster.demand import Demand
    from cluster.nodes import WorkerResources

    class Holder:
        def hold(self) -> None:
            self.demand = Demand(WorkerResources(1, 0))
            self.demand.ask(2, 0)

    holder = ray.remote(Holder).options(num_cpus=0).remote()
    ray.get(holder.hold.remote())
    commands.wait_for(lambda: _groups("CREATED") == 1, "room that the actor holds", within_s=10)
    ray.kill(holder)
    commands.wait_for(lambda: _freed_by_the_next(), "what the dead actor held is free", within_s=10)


def test_a_launch_that_ends_before_a_worker_has_joined_frees_what_it_held(
    cluster: str, slow_config: Config, tmp_path: Path
) -> None:
    from cluster.nodes import WorkerResources
    from cluster.run.attempt import launch

    def interrupt() -> None:
        if _groups("CREATED"):
            raise KeyboardInterrupt

    run = RunOptions(slow_config, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        launch(run, 2, WorkerResources(1, 0), [], follow=interrupt, resize_reason=lambda seen, alive: None)
    commands.wait_for(commands.nothing_held, "all CPUs free and no placement group left", within_s=20)
    from ray._private.state import actors

    left = [actor["ActorClassName"] for actor in actors().values() if actor["State"] == "ALIVE"]
    assert not {"TrainController", "RayTrainWorker"} & set(left), left


def _groups(*states: str) -> int:
    """Return how many placement groups there are in these states."""
    import ray

    table: dict[str, Any] = ray.util.placement_group_table()
    return sum(group["state"] in states for group in table.values())


def _freed_by_the_next() -> bool:
    from cluster.demand import Demand
    from cluster.nodes import WorkerResources

    with Demand(WorkerResources(1, 0)):
        return commands.nothing_held()
