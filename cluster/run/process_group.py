"""How the workers of a launch become one process group.

Ray Train's own way for torch, less its imports: this module is also read by the command and by Ray Train's controller,
which would each take seconds to import a torch that only the workers use.
"""

import os
import socket
import time
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig


class Group(BackendConfig):  # type: ignore[misc]
    """NCCL for workers with a GPU, else gloo, on the network interface that carries each node's Ray address."""

    @property
    def backend_cls(self) -> type:
        """The class that makes the process group."""
        return _Maker


class _Maker(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # NCCL reaches a GPU of the same node only if both workers see both

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Make the group; raises what a worker raises."""
        worker_group.execute(_prepare)
        address, port = worker_group.execute_single(0, _listen)
        worker_group.execute(_join, address, port)


def use_ray_interface() -> None:
    """Make gloo and NCCL use the interface of the node's Ray address; by themselves they may take loopback."""
    from zfdist.world import interface_of

    interface = interface_of(ray.util.get_node_ip_address())
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface and name not in os.environ:
            os.environ[name] = interface


def _prepare() -> None:
    """Import what takes long, so that no worker waits for another at the meeting."""
    from zfdist import startup

    startup.begin([startup.Phase("processes", time.time())])  # those before it were not here: `worker.work`
    import zfdist.train  # noqa: F401

    startup.ended("imports")
    use_ray_interface()


_listening: "list[socket.socket]" = []
"""In the process of rank 0, between `_listen` and `_join`."""


def _listen() -> tuple[str, int]:
    """Listen on this node's address of Ray alone, not on all that the machine has."""
    from zfdist import world

    ip = ray.util.get_node_ip_address()
    _listening[:] = [world.listener(ip)]
    return ip, _listening[0].getsockname()[1]


def _join(address: str, port: int) -> None:
    from zfdist import startup, world

    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as in Ray's own way
    size = context.get_world_size()
    world.join(world.meeting(address, port, size, _listening.pop() if _listening else None) if size > 1 else None)
    startup.ended("process group")
