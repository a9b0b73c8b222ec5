"""The machines that the drills run on: apart from each other, cut off and crashed as told, gone with their maker."""

import signal
import subprocess
import sys
from pathlib import Path

import hosts
import pytest
from waiting import HostError, wait_for

pytestmark = pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))

MAKER = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import hosts
with hosts.Hosts(["one"]) as made:
    print(made.folder, *(host._init for host in (made.laptop, made["one"])), flush=True)
    time.sleep(60)
"""


def test_hosts_are_machines_of_their_own() -> None:
    with hosts.Hosts(["one", "two"], loopback="two") as made:
        assert made.laptop.run("ssh", "one", "hostname; echo $HOME").split() == ["one", str(hosts.HOME)]
        (made.shared / "seen").write_text("by all")
        assert made["one"].run("cat", str(made.shared / "seen")) == "by all"
        made["one"].run("touch", "/tmp/mine", str(hosts.HOME / "kept"))
        assert made["two"].run("ls", "/tmp", str(hosts.HOME)).split() == ["/tmp:", f"{hosts.HOME}:"]
        assert made["two"].run("getent", "hosts", "two").split()[0] == "127.0.1.1"
        assert made["one"].run("getent", "hosts", "two").split()[0] == made["two"].address

        reach = ["ssh", "-o", "ConnectTimeout=1", "one", "ls /tmp; ls"]
        made.partition("one")
        with pytest.raises(HostError, match="one ls"):
            made.laptop.run(*reach)
        made.heal("one")
        wait_for(lambda: made.laptop.run(*reach, check=False).split() == ["mine", "kept"], "one is back")
        made.crash("one")
        assert not made["one"].is_up and made["two"].is_up
        made.boot("one")
        assert made.laptop.run(*reach).split() == ["kept"], "the disk outlives a crash, /tmp does not"
    assert not made.folder.exists()


def test_hosts_die_with_a_killed_maker_and_the_next_sweeps_its_folder() -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    folder, *pids = maker.stdout.readline().split()
    assert all(Path("/proc", pid).exists() for pid in pids)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    wait_for(lambda: not any(_runs(pid) for pid in pids), "end of the hosts' processes", within_s=10)
    with hosts.Hosts([]):
        assert not Path(folder).exists()


def _runs(pid: str) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
