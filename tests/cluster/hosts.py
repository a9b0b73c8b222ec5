"""Machines for tests, made of Linux namespaces: each has its own address, name, processes, sshd, /tmp, home and 1 CPU.

    with Hosts(["head", "one"]) as hosts:
        hosts["laptop"].run("ssh", "head", "hostname")
        hosts["one"].crash()

All are on one switch, with the machine called laptop, from which a person would use them. The rest of the disk is the
machine's own and serves as the shared storage. The namespaces have no names and die with the process that made them,
by whatever means it dies: only a folder can stay behind, which the next user of this module removes.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from waiting import HostError, last_lines, wait_for

LAPTOP = "laptop"
HOME = Path("/var/tmp/zfdist-home")
"""The home of every machine: a folder that each sees its own of."""
_NEWNET = 0x40000000  # CLONE_NEWNET of <sched.h>
_PREFIX = "zfdist-hosts-"
_TOOLS = ("sshd", "ssh", "ssh-keygen", "ip", "rsync", "nsenter", "unshare", "setpriv")
_SSH = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\nIdentityFile ~/.ssh/id\nUser root\n"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT = """
set -e
hostname "$1"
mount -t sysfs sysfs /sys
mount --bind "$2/cgroup" /sys/fs/cgroup
mount -t tmpfs -o size=2g,mode=1777 tmpfs /tmp
mount -t tmpfs -o size=12g,mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount --bind "$2/home" "$3"
mount --bind "$2/etc/hosts" /etc/hosts
mount --bind "$2/etc/passwd" /etc/passwd
mkdir /run/sshd
cd /
exec "$(command -v sshd)" -D -e -f /dev/null -h "$2/etc/host_key" -o UsePAM=no -o StrictModes=no \\
    -o AuthorizedKeysFile=.ssh/authorized_keys -o PasswordAuthentication=no -o MaxStartups=100 2>>"$2/sshd.log"
"""


def why_not() -> str | None:
    """Return why this machine can make no such hosts, with the remedy; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts of namespaces need root on Linux"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return (
            f"missing: {', '.join(missing)} (apt-get install openssh-server openssh-client iproute2 rsync util-linux)"
        )
    for path in (Path(__file__).resolve(), Path(sys.prefix).resolve(), Path(sys.executable).resolve()):
        if path.is_relative_to("/tmp"):
            return f"{path} is under /tmp, of which every host has its own: clone the repository elsewhere"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return f"no namespaces here: {trial.stderr.decode().strip()}" if trial.returncode else None


class Host:
    """One machine. Its disk (home) outlives a crash, its /tmp and processes do not."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.home = folder / "home"
        """The machine's home as seen from outside."""
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    @property
    def is_up(self) -> bool:
        """Whether the machine runs."""
        return self._unshare is not None and self._unshare.poll() is None

    def boot(self) -> None:
        """Start the machine with nothing but sshd, not yet on the network."""
        assert not self.is_up, f"{self.name} is up"
        (self.folder / "sshd.log").write_text("")
        spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = ["bash", "-c", _BOOT, "boot", self.name, str(self.folder), str(HOME)]
        with (self.folder / "boot.log").open("ab") as log:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, *script],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        wait_for(lambda: children.exists() and children.read_text().strip() != "", f"{self.name}: first process")
        self._init = int(children.read_text())
        wait_for(self._answers, f"{self.name}: sshd ({self.folder}/boot.log)")

    def halt(self) -> None:
        """Kill every process of the machine at once."""
        if self._unshare is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)  # all others die with the first
            self._unshare.wait()
            self._unshare = None

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the command line that runs `words` on the machine, as root at its console; needs no network."""
        variables = {"HOME": str(HOME), "PATH": _PATH, "USER": "root", "LANG": "C.UTF-8", **(env or {})}
        inside = ["env", "-i", f"--chdir={HOME}", *(f"{k}={v}" for k, v in variables.items())]
        return ["nsenter", f"--target={self._init}", "--net", "--mount", "--uts", "--ipc", "--pid", *inside, *words]

    def run(self, *words: str, timeout_s: float = 60, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """Run a command on the machine and return what it printed.

        Raises:
            HostError: if it fails (unless `check` is false) or takes too long.
        """
        command = self.command("timeout", "-k", "5", f"{timeout_s:g}", *words, env=env)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True, errors="replace")
        if check and done.returncode:
            how = f"not within {timeout_s:g} s" if done.returncode in (124, 137) else f"exit code {done.returncode}"
            raise HostError(f"{self.name}: {' '.join(words)[:300]}: {how}\n{last_lines(done.stdout)}")
        return done.stdout

    def seen_from_outside(self, path: Path) -> Path:
        """Return where a path of the machine, which may have something mounted there, is for this process."""
        return Path(f"/proc/{self._init}/root") / path.relative_to("/")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let the sockets that this thread makes within the block be on the machine's network, and stay there."""
        setns = ctypes.CDLL(None, use_errno=True).setns
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self._init}/ns/net") as theirs:
            assert setns(theirs.fileno(), _NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert setns(ours.fileno(), _NEWNET) == 0, os.strerror(ctypes.get_errno())

    def processes(self, containing: str = "") -> dict[int, str]:
        """Return state and command line of the machine's processes by pid, of those whose command line has a text."""
        lines = self.run("ps", "-eww", "-o", "pid=,stat=,args=").splitlines()
        found = {int(pid): text for pid, text in (line.split(None, 1) for line in lines)}
        return {pid: text for pid, text in found.items() if containing in text and "ps -eww" not in text}

    def kill(self, containing: str, signal_name: str = "KILL") -> list[int]:
        """Send a signal to the machine's processes whose command line has a text; return their pids."""
        pids = list(self.processes(containing))
        self.run("kill", f"-{signal_name}", *map(str, pids), check=False)
        return pids

    def _answers(self) -> bool:
        if not self.is_up:
            log = (self.folder / "boot.log").read_text() + (self.folder / "sshd.log").read_text()
            raise HostError(f"{self.name} did not boot\n{last_lines(log)}")
        return "Server listening" in (self.folder / "sshd.log").read_text()


class Hosts:
    """The laptop and the machines of the given names, booted, on one switch; a context manager.

    Args:
        names: of the machines besides the laptop.
        loopback: a machine whose own name resolves to 127.0.1.1 there, as Debian's installer has it.
        are_booted: false for machines that are down at first.
    """

    def __init__(self, names: Sequence[str], *, loopback: str = "", are_booted: bool = True) -> None:
        _sweep()
        self._first = [LAPTOP, *names] if are_booted else [LAPTOP]
        HOME.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/var/tmp"))
        self.shared = self.folder / "shared"
        """A folder that all machines see at the same place."""
        self.shared.mkdir()
        self._hosts = {
            name: Host(name, f"10.77.0.{number}", self.folder / name)
            for number, name in enumerate([LAPTOP, *names], start=1)
        }
        self._make_disks(loopback)

    def __enter__(self) -> "Hosts":
        try:
            for name in self._first:
                self.boot(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts.values():
            host.halt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return (host for name, host in self._hosts.items() if name != LAPTOP)

    @property
    def laptop(self) -> Host:
        """Where a person sits."""
        return self._hosts[LAPTOP]

    def boot(self, name: str) -> None:
        """Start a machine that is down and plug it in."""
        host = self._hosts[name]
        host.boot()
        if name == LAPTOP:
            self._ip(LAPTOP, "link", "add", "eth0", "type", "bridge")
        else:
            hardware = f"02:00:00:00:00:{int(host.address.split('.')[-1]):02x}"  # the same after a crash
            peer = ["peer", "name", "eth0", "address", hardware, "netns", str(host._init)]
            subprocess.run(
                ["nsenter", f"--target={self.laptop._init}", "--net", "ip", "link", "add", name, "type", "veth", *peer],
                check=True,
            )
            self._ip(LAPTOP, "link", "set", name, "master", "eth0", "up")
        self._ip(name, "address", "add", f"{host.address}/24", "dev", "eth0")
        self._ip(name, "link", "set", "lo", "up")
        self._ip(name, "link", "set", "eth0", "up")
        if name != LAPTOP:
            self._ip(name, "route", "add", "default", "via", self.laptop.address)

    def crash(self, name: str) -> None:
        """Cut a machine's power: nobody hears a goodbye."""
        self._ip(LAPTOP, "link", "delete", name)
        self._hosts[name].halt()

    def partition(self, name: str) -> None:
        """Pull a machine's network cable; it runs on."""
        self._ip(LAPTOP, "link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Plug the cable in again."""
        self._ip(LAPTOP, "link", "set", name, "up")

    def _ip(self, name: str, *words: str) -> None:
        self._hosts[name].run("ip", *words)

    def _make_disks(self, loopback: str) -> None:
        key, host_key = self.folder / "id", self.folder / "host_key"
        for path in (key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        everyone = "".join(f"{host.address} {host.name}\n" for host in self._hosts.values())
        for host in self._hosts.values():
            for place in ("home/.ssh", "etc", "cgroup"):
                (host.folder / place).mkdir(parents=True)
            (host.folder / "cgroup/cpu.max").write_text("100000 100000\n")  # where Ray reads that this is 1 CPU
            others = everyone.replace(f"{host.address} ", "127.0.1.1 ") if host.name == loopback else everyone
            (host.folder / "etc/hosts").write_text(f"127.0.0.1 localhost\n{others}")
            (host.folder / "etc/passwd").write_text(_passwd())
            shutil.copy(host_key, host.folder / "etc/host_key")
            shutil.copy(f"{key}.pub", host.home / ".ssh/authorized_keys")
            (host.folder / "sshd.log").touch()
        shutil.copy(key, self.laptop.home / ".ssh/id")
        (self.laptop.home / ".ssh/config").write_text(_SSH)


def _passwd() -> str:
    """Return the machine's users, root's home being ours."""
    lines = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    lines = [[*line[:5], str(HOME), "/bin/bash"] if line[0] == "root" else line for line in lines]
    return "".join(":".join(line) + "\n" for line in lines)


def _sweep() -> None:
    """Remove the folders of hosts whose maker was killed."""
    for folder in Path("/var/tmp").glob(f"{_PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(_PREFIX).split("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)
