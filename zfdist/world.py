"""Who am I among the workers, and the few things that workers decide together.

Control decisions (stop, save, who failed) travel over gloo on the CPU, so that they never wait for a GPU.
"""

import array
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from zfdist.errors import ZfdistError
from zfdist.run_protocol import GpuMemoryError

TIMEOUT = timedelta(minutes=30)


class MeetingError(ZfdistError):
    """The workers cannot meet: an interface or a port cannot be used, and could not the next time."""


class World(NamedTuple):
    """One worker's place: `rank` in 0..size-1, and the device that it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None
    """The gloo group for decisions; None in a world of one."""

    def any(self, flag: bool) -> bool:
        """Return whether any worker passed True; every worker must ask."""
        if self.control is None:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def gather(self, item: Any) -> list[Any]:
        """Return every worker's (picklable, small) item in rank order, on every worker."""
        if self.control is None:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over workers of a small tensor, on the CPU in float64."""
        total = values.detach().to("cpu", torch.float64)
        if self.control is not None:
            total = total.clone()
            dist.all_reduce(total, group=self.control)
        return total

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.control is not None:
            dist.barrier(group=self.control)


def join(store: Any = None) -> None:
    """Join the process group that the environment tells of (Ray, torchrun), or make one of this process alone.

    Args:
        store: where the workers meet, see `meeting`; None for MASTER_ADDR and MASTER_PORT of the environment.

    Raises:
        MeetingError: if the network interface that the environment names, or rank 0's port, cannot be used here.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    told = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, size = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if told else (0, 1)
    if size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]  # no port is opened
    try:
        if store is None:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        cannot = _unusable(str(error))
        if cannot is None:  # a worker that died meanwhile, for one
            raise
        raise MeetingError(cannot) from None


def _unusable(what_torch_says: str) -> str | None:
    """Return the sentence for what another try would not change; None for anything else."""
    name, host = os.environ.get("GLOO_SOCKET_IFNAME", ""), socket.gethostname()
    if "find address for" in what_torch_says or "find interface for" in what_torch_says:
        there = ", ".join(interface for _, interface in socket.if_nameindex())
        return f"GLOO_SOCKET_IFNAME = {name} is no network interface of {host} with an address; there are {there}"
    if any(sign in what_torch_says for sign in ("EADDRINUSE", "ddress already in use")):
        port = os.environ.get("MASTER_PORT")
        return (
            f"MASTER_PORT = {port}: another program of {host} listens there; choose another (torchrun: --master-port)"
        )
    return None


def listener(ip: str) -> socket.socket:
    """Return a socket that listens on a free port of one address of this machine, and on no other address."""
    found = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    found.bind((ip, 0))
    found.listen(socket.SOMAXCONN)
    return found


def meeting(ip: str, port: int, size: int, listening: socket.socket | None) -> Any:
    """Return the store of `size` workers at an address; the one whose socket is `listening` there serves it.

    Torch's own way serves it on every address of the machine. No token is asked for: who reaches the port can disturb
    the workers, so they need a network that others do not reach.
    """
    descriptor = None if listening is None else listening.detach()
    return dist.TCPStore(  # type: ignore[attr-defined]
        ip, port, size, is_master=listening is not None, timeout=TIMEOUT, wait_for_workers=False,
        master_listen_fd=descriptor,
    )  # fmt: skip


def connect(gpu_share: float = 1.0) -> World:
    """Return this worker's place in the process group; joins it first, unless its launcher has.

    Of its GPU's memory it takes no more than `gpu_share`, in (0, 1]: others may be on the same one.
    """
    # Read when cuBLAS starts: with it its products, and cuDNN's LSTMs, are the same bits whenever they are made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not dist.is_initialized():
        join()
    has_gpu = torch.cuda.is_available()
    size = dist.get_world_size()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # A worker that holds a fraction of a GPU sees only that one, whatever its local rank.
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(gpu_share, device)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT) if size > 1 else None
    return World(dist.get_rank(), size, local_rank, device, control)


def interface_of(ip: str) -> str | None:
    """Return the network interface that carries an IPv4 address of this machine, or None if none does."""
    query = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), query, request, True)
            except OSError:
                continue  # this interface has no IPv4 address
            if socket.inet_ntoa(request.tobytes()[20:24]) == ip:
                return name
    return None


@contextlib.contextmanager
def gpu_memory_explained() -> Iterator[None]:
    """Say what to do about a GPU whose memory is too small, within the block; raises GpuMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = torch.cuda.get_per_process_memory_fraction()
        raise GpuMemoryError(
            f"the run does not fit into {'its GPU' if share == 1 else f'its share ({share:g}) of a GPU'}: "
            f"{str(error).splitlines()[0]} Take more --engine.accumulation-steps, which changes no result but by "
            "rounding, or a smaller network" + ("" if share == 1 else ", or a larger --gpus-per-trial")
        ) from error
