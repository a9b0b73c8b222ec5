"""The ways from here to a cluster: ssh to machines of ours, Ray's launcher to a cloud's, and its calls.

A person may reach the head by ssh alone, through a firewall or a host between (auth.ssh_proxy_command): so whatever is
asked of it is asked on it. No port of it is tried from here.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import ray_internals
from cluster.provision.cluster_file import Cluster
from cluster.session import ClusterError

SSH_FAILED = 255
"""The exit code of ssh where the machine cannot be reached; else it is the command's."""
_DASHBOARD = 8265
_HEAD_PORTS = {6379: "Ray", _DASHBOARD: "the dashboard"}
_ANSWER_S = 60
_TABLES = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null"
_HEADING = "local_address"
_LISTENS = re.compile(r"^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) \S+ 0A ", re.MULTILINE)
_STEP = re.compile(r"\[\d+/\d+\] .*")
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\t(\w+) ")
_ERRORS = ("ERR", "VERR", "PANIC")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NO_HEAD = re.compile(r"Head node of cluster .* not found")
_CREDENTIALS = {
    "aws": "pip install boto3, and `aws configure` or AWS_PROFILE",
    "gcp": "pip install google-api-python-client, and `gcloud auth application-default login`",
    "azure": "the packages that cluster/azure.yaml names, and `az login`",
}


def head_of_ours(cluster: Cluster) -> str:
    """Return the address of the head that is a machine of ours, as this machine reaches it."""
    provider = cluster.config["provider"]
    return str(provider.get("external_head_ip") or provider["head_ip"])


def head_in_the_cloud(cluster: Cluster) -> str | None:
    """Return the address of the head that a cloud runs; None if there is none.

    Raises:
        ClusterError: if the cloud cannot be asked.
    """
    done = launcher("get-head-ip", str(cluster.file), cluster=cluster)
    if done.returncode == 0 and done.stdout.strip():
        return str(done.stdout.split()[-1])
    if _NO_HEAD.search(done.stdout + done.stderr):
        return None
    kind = str(cluster.config["provider"]["type"])
    remedy = f"; it needs {_CREDENTIALS[kind]}" if kind in _CREDENTIALS else ""
    raise ClusterError(f"{kind} cannot be asked for cluster {cluster.name}: {last_line(done.stderr)}{remedy}")


def listening(cluster: Cluster) -> list[str]:
    """Return which of the head's services listen on it, e.g. ["Ray on port 6379"].

    Raises:
        ClusterError: if the head cannot be asked.
    """
    tables = _on_head(cluster, _TABLES)
    if _HEADING not in tables:
        raise ClusterError(f"the head of cluster {cluster.name} does not tell what runs on it: {last_line(tables)}")
    ports = listening_ports(tables)
    return [f"{what} on port {port}" for port, what in _HEAD_PORTS.items() if port in ports]


def listening_ports(tables: str) -> set[int]:
    """Return the ports on which a machine listens, from its /proc/net/tcp and tcp6."""
    return {int(port, 16) for port in _LISTENS.findall(tables)}


def ssh(cluster: Cluster, machine: str, command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on a machine of ours."""
    words = [*_ssh_words(cluster, machine), command]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


@contextlib.contextmanager
def tunnel(cluster: Cluster) -> Iterator[str]:
    """Reach the head's dashboard, which listens on the head's loopback only; gives its address here.

    Raises:
        ClusterError: if it does not answer.
    """
    port = _free_port()
    forward = subprocess.Popen(
        _forwarding(cluster, port),
        env=_environment(cluster),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for us
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + _ANSWER_S
        while not answers(address):
            if forward.poll() is not None:
                said = last_line(forward.stdout.read() if forward.stdout else "")
                raise ClusterError(f"no way to the head of cluster {cluster.name}: is it up? (ssh said: {said})")
            if time.monotonic() > deadline_s:
                raise ClusterError(f"the head of cluster {cluster.name} does not answer; see zfdist cluster up")
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(forward.pid, signal.SIGTERM)
        forward.wait()


def answers(address: str) -> bool:
    """Return whether a Ray dashboard answers at the address, be it with a refusal."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def launcher(verb: str, *words: str, cluster: Cluster) -> "subprocess.CompletedProcess[str]":
    """Run a verb of Ray's launcher; what it says is returned."""
    return subprocess.run(
        [*ray_internals.launcher_command(), verb, *words],
        env=_environment(cluster), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
    )  # fmt: skip


def followed_launcher(verb: str, *words: str, cluster: Cluster, log: Path, say: Callable[[str], None]) -> str | None:
    """Run a verb of Ray's launcher, which says hundreds of lines: all of them to `log`, its numbered steps to `say`.

    Returns:
        None, or why it failed.
    """
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*ray_internals.launcher_command(), verb, *words],
            env=_environment(cluster), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None, "it is a pipe"
        for coloured in process.stdout:
            line = _COLOURS.sub("", coloured)
            file.write(line)
            file.flush()
            if step := _STEP.search(line):
                say(f"  {step.group()}")
    return why_failed(log.read_text()) if process.returncode else None


def why_failed(log: str) -> str:
    """Return what the command said last that Ray's launcher had run when it failed, and its step; else its own words.

    Lines of the launcher itself begin with a time and a level; the command's come before the first of its errors.
    """
    step, said = "", ""
    for line in log.splitlines():
        record = _RECORD.match(line)
        if record and record.group(1) in _ERRORS:
            break
        if found := _STEP.search(line):
            step, said = f"{found.group()}: ", ""
        elif not record and line.strip():
            said = line.strip()
    return step + (said or last_line(log))


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in _COLOURS.sub("", text).splitlines()]
    return next((line for line in reversed(lines) if line), "nothing")


def _on_head(cluster: Cluster, command: str) -> str:
    """Return what a command prints on the head; raises ClusterError if the head cannot be reached."""
    if cluster.is_local:
        where, done = head_of_ours(cluster), ssh(cluster, head_of_ours(cluster), command)
        failed = done.returncode == SSH_FAILED
    else:
        where = "of the cloud"
        done = launcher("exec", str(cluster.file), command, "--run-env", "host", cluster=cluster)
        failed = done.returncode != 0
    if failed:
        raise ClusterError(
            f"the head {where} of cluster {cluster.name} cannot be reached by ssh, so whether Ray runs there is not "
            f"known (ssh said: {last_line(done.stderr or done.stdout)})"
        )
    return str(done.stdout)


def _forwarding(cluster: Cluster, port: int) -> list[str]:
    """Return the words that hold a port of this machine open to the head's dashboard."""
    if not cluster.is_local:
        return [*ray_internals.launcher_command(), "dashboard", str(cluster.file), "--port", str(port)]
    # Ray's own way asks a file of the machine that brought the cluster up, in its /tmp.
    keep = ["-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    forward = ["-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{_DASHBOARD}"]
    program, *words = _ssh_words(cluster, head_of_ours(cluster))
    return [program, *keep, *forward, *words]


def _ssh_words(cluster: Cluster, machine: str) -> list[str]:
    auth = cluster.config.get("auth", {})
    key = ["-i", os.path.expanduser(auth["ssh_private_key"])] if "ssh_private_key" in auth else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if auth.get("ssh_proxy_command") else []
    quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    user = f"{auth.get('ssh_user', 'ubuntu')}@{machine}"
    return ["ssh", "-o", "ConnectTimeout=10", "-o", "BatchMode=yes", *quiet, *key, *proxy, user]


def _environment(cluster: Cluster) -> dict[str, str]:
    """What Ray's launcher reads: its second autoscaler does not know machines of ours (2.60)."""
    off = {"RAY_UP_enable_autoscaler_v2": "0"} if cluster.is_local else {}
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"} | off


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
