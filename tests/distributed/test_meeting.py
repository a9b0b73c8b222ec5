"""Where workers meet: on one address of the machine, closed on all others; and nowhere if there is but one worker."""

import os
import socket
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zfdist import world
from zfdist.world import MeetingError

IP, OTHER = "127.0.0.2", "127.0.0.1"


def _meet(rank: int, folder: str, port: int, listening: socket.socket | None) -> None:
    if listening is not None and rank:
        listening.close()
        listening = None
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    world.join(world.meeting(IP, port, 2, listening))
    here = world.connect()
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    assert total.item() == 3 and (here.rank, here.size) == (rank, 2)
    if rank == 0:
        socket.create_connection((IP, port), timeout=5).close()
        with socket.socket() as knock:
            assert knock.connect_ex((OTHER, port)) != 0, "answers on another address of the machine"
        Path(folder, "met").touch()
    here.barrier()
    dist.destroy_process_group()


def test_workers_meet_on_one_address_alone(tmp_path: Path) -> None:
    with world.listener(IP) as listening:
        mp.spawn(_meet, (str(tmp_path), listening.getsockname()[1], listening), nprocs=2)
    assert (tmp_path / "met").exists()


def _alone(rank: int) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": OTHER, "MASTER_PORT": "1"}
    world.join()
    assert world.connect().size == 1
    listens = [c for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
    assert all(c.laddr.ip == OTHER for c in listens), listens
    dist.destroy_process_group()


def test_a_worker_alone_opens_no_port_to_others() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        mp.spawn(_alone, nprocs=1)
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


def _cannot(rank: int, folder: str, environment: dict[str, str], said: str) -> None:
    os.environ.update(environment)
    with pytest.raises(MeetingError, match=said):
        world.join()
    Path(folder, "refused").touch()


def test_an_interface_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    said = "GLOO_SOCKET_IFNAME = nope is no network interface of .*; there are .*lo"
    mp.spawn(_cannot, (str(tmp_path), {"GLOO_SOCKET_IFNAME": "nope"}, said))
    assert (tmp_path / "refused").exists()


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        first = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": OTHER, "MASTER_PORT": port}
        mp.spawn(_cannot, (str(tmp_path), first, f"MASTER_PORT = {port}: another program of .* listens there"))
    assert (tmp_path / "refused").exists()
