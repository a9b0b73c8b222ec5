"""A cluster from zero: its head and workers are booted because Ray asks for them, and ended when it lets them go."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import host_provider
from hosts import Host, Hosts
from real_cluster import HEAD, RealCluster, make_image
from waiting import wait_for

from cluster import nodes

IDLE_S = 12
"""After so much idleness Ray lets a machine go."""
TYPE, ON_DEMAND = "cpu", "cpu-on-demand"
_DEFAULTS = {  # those of Ray for clouds that it knows; for another it has none, and asks for them
    "cluster_synced_files": [],
    "initialization_commands": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}


class Event(NamedTuple):
    """Something that happened to a machine."""

    at_s: float
    name: str
    what: str
    """asked for, up, gone"""


class HostCloud:
    """Boots and ends hosts as the provider is told, in a thread of its own, within the block."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts, self.folder = hosts, folder
        self.is_sold_out = False
        """Whether machines are asked for in vain: they never boot."""
        self.on_boot: Callable[[Host], None] = lambda host: None
        """Done to each machine once it has booted, before Ray's launcher reaches it."""
        self.events: list[Event] = []
        folder.mkdir(parents=True)
        self.refuse()
        (folder / host_provider.POOL).write_text(json.dumps({host.name: host.address for host in hosts}))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "HostCloud":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def refuse(self, *types: str) -> None:
        """Have no machine of these types from now on, and say so to whoever asks."""
        (self.folder / host_provider.REFUSED).write_text(json.dumps(types))

    def workers(self) -> list[str]:
        """Return the names of the machines besides the head that Ray has asked for and not let go."""
        with host_provider.locked(self.folder):
            known = host_provider.machines(self.folder)
        return [name for name, machine in known.items() if machine["state"] != "let go" and name != HEAD]

    def since(self, at_s: float, what: str) -> list[Event]:
        """Return what happened to the workers since a time."""
        return [event for event in self.events if event.at_s >= at_s and event.what == what and event.name != HEAD]

    def _serve(self) -> None:
        while not self._over.wait(0.1):
            with host_provider.locked(self.folder):
                known = host_provider.machines(self.folder)
            for name, machine in known.items():
                if machine["state"] == "asked for":
                    self._ask(name, machine)
                elif machine["state"] == "let go":
                    self._end(name)

    def _ask(self, name: str, machine: dict[str, Any]) -> None:
        asked = Event(machine["asked_s"], name, "asked for")
        if asked not in self.events:
            self.events.append(asked)
        if self.is_sold_out and name != HEAD:
            return
        make_image(self._hosts[name])
        self._hosts.boot(name)
        self.on_boot(self._hosts[name])
        self._note(name, "up")

    def _end(self, name: str) -> None:
        if self._hosts[name].is_up:
            self._hosts.crash(name)
        with host_provider.locked(self.folder):
            (self.folder / f"{name}.json").unlink()
        self.events.append(Event(time.time(), name, "gone"))

    def _note(self, name: str, state: str) -> None:
        with host_provider.locked(self.folder):
            if host_provider.machines(self.folder)[name]["state"] == "asked for":
                host_provider.note(self.folder, name, state=state)
        self.events.append(Event(time.time(), name, state))


class CloudCluster(RealCluster):
    """A cluster whose workers come and go; at most as many as there are names.

    Args:
        hosts: with a machine called head.
        workers: names of those that may come.
        cloud: boots and ends them.
        fallback_s: after so many seconds a second type stands in for the first; None for one type.
    """

    def __init__(self, hosts: Hosts, workers: Sequence[str], cloud: HostCloud, fallback_s: int | None = None) -> None:
        self.cloud = cloud
        provider = {"type": "external", "module": "host_provider.HostProvider", "folder": str(cloud.folder)}
        worker = {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": len(workers), "node_config": {}}
        types = {"head": {"resources": {"CPU": 0}, "node_config": {}}, TYPE: worker | {"priority": 1}}
        if fallback_s is not None:
            types[ON_DEMAND] = worker | {"labels": {nodes.ASKED_AFTER: str(fallback_s)}}
        super().__init__(
            hosts,
            workers,
            {
                "provider": provider,
                "available_node_types": types,
                "max_workers": len(workers),
                "idle_timeout_minutes": IDLE_S / 60,
                **_DEFAULTS,
            },
        )

    def mend_cloud(self) -> None:
        """End what a drill that failed has left running, and wait until nothing is asked for."""
        self.cloud.is_sold_out = False
        self.cloud.refuse()
        self.cloud.on_boot = lambda host: None
        self.hosts[HEAD].kill("jobs.cli.job_entrypoint")
        self.wait_for_zero()

    def wait_for_zero(self, within_s: float = 240) -> float:
        """Wait until the cluster is but a head; return the time at which it was."""
        wait_for(lambda: not self.cloud.workers(), "no worker's machine is left", within_s)
        return time.time()


@contextlib.contextmanager
def cluster_from_zero(workers: Sequence[str], fallback_s: int | None = None) -> Iterator[CloudCluster]:
    """A head that `zfdist cluster up` brought up from ray-cluster.yaml, and nothing else yet; ended by `down`."""
    with Hosts([HEAD, *workers], are_booted=False) as hosts, HostCloud(hosts, hosts.shared / "cloud") as cloud:
        cluster = CloudCluster(hosts, workers, cloud, fallback_s)
        cluster.command("up", timeout_s=300)
        yield cluster
        cluster.command("down")
        wait_for(lambda: not any(host.is_up for host in hosts), "end of all machines")
