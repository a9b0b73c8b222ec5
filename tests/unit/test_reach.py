"""What the ways to a cluster read out of what machines and Ray's launcher say."""

import socket
import sys
from pathlib import Path

import pytest

from cluster.provision import reach

# As /proc/net/tcp is on a head behind ssh -tt: lines end with CR; 8265 listens, 6379 is only a connection of it.
TABLE = (
    "  sl  local_address rem_address   st tx_queue rx_queue\r\n"
    "   0: 0100007F:2049 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\r\n"
    "   1: 0200004D:18EB 0300004D:C350 01 00000000:00000000 00:00000000 00000000     0        0 2\r\n"
)


def test_listening_ports_are_those_of_listening_sockets() -> None:
    assert reach.listening_ports(TABLE) == {8265}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_socket_of_this_machine_is_seen_while_it_listens(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        port = listener.getsockname()[1]
        assert port not in reach.listening_ports(_tables())
        listener.listen()
        assert port in reach.listening_ports(_tables())
    assert port not in reach.listening_ports(_tables())


def test_a_failure_of_the_launcher_is_told_by_the_command_that_failed() -> None:
    time = "2026-11-25 18:57:37,055\t"
    log = (
        f"{time}INFO updater.py:469 -- [6/7] Running setup commands\n{time}VINFO command_runner.py:399 -- Running `x`\n"
        f"doing\nzfdist: no g++: install it\n{time}ERR updater.py:177 -- New status: update-failed\n"
        f"Traceback (most recent call last):\nclick.exceptions.ClickException: SSH command failed.\n"
    )
    assert reach.why_failed(log) == "[6/7] Running setup commands: zfdist: no g++: install it"
    crashed = "Traceback (most recent call last):\n  File x\nbotocore.exceptions.NoCredentialsError: Unable to locate\n"
    assert reach.why_failed(crashed) == "botocore.exceptions.NoCredentialsError: Unable to locate"
    assert reach.why_failed(f"{time}PANIC commands.py:925 -- Failed.\n").endswith("Failed.")


def test_the_last_line_is_the_last_that_says_something() -> None:
    assert reach.last_line("Traceback ...\n\x1b[31mNoCredentialsError: none\x1b[0m\n\n") == "NoCredentialsError: none"
    assert reach.last_line("") == "nothing"


def _tables() -> str:
    return "".join(path.read_text() for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists())
